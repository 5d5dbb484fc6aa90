"""The embedder of what nobody waits for: the same vectors, by threads that leave the processor to others."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import get_native_id

import numpy as np
import pytest

from appliance.errors import EmbedderChanged, ModelDamaged
from appliance.infer.onnx import OnnxEmbedder
from appliance.jobs import JobRunner
from appliance.knowledge.embedders import Background, built_in
from appliance.knowledge.upkeep import Upkeep
from appliance.models import minilm
from appliance.ports import Embedder
from appliance.types import Floats, Ints, JobState
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import Shelf, new_document

TEXTS = ["Badges expire.", "Doors open at nine and close at five.", "Die Größe zählt."]


def niceness(thread: int = 0) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def threads() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


class Watched(WordEmbedder):
    """Remembers the thread that made it, those that used it, and how nice they were."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [(get_native_id(), niceness())]

    def embed(self, texts: Sequence[str]) -> Floats:
        self.seen.append((get_native_id(), niceness()))
        return super().embed(texts)

    def token_ends(self, texts: Sequence[str]) -> list[Ints]:
        self.seen.append((get_native_id(), niceness()))
        return super().token_ends(texts)


def test_it_is_made_and_run_by_one_thread_that_steps_back() -> None:
    before, made = niceness(), list[Watched]()

    def make() -> Embedder:
        made.append(Watched())
        return made[0]

    background, plain = Background(make), WordEmbedder()
    assert (background.identity, background.dimension) == (plain.identity, plain.dimension)
    assert background.max_tokens == plain.max_tokens
    assert np.array_equal(background.embed(TEXTS), plain.embed(TEXTS))
    assert background.count_tokens(TEXTS) == plain.count_tokens(TEXTS)
    assert [list(ends) for ends in background.token_ends(TEXTS)] == [list(ends) for ends in plain.token_ends(TEXTS)]
    ((thread, nice),) = set(made[0].seen)
    assert len(made[0].seen) == 3
    assert thread != get_native_id()
    assert nice == min(before + 10, 19)
    assert niceness() == before


def test_threads_that_its_session_starts_are_as_nice(tmp_path: Path) -> None:
    files = minilm.prepare(tmp_path)
    OnnxEmbedder(files.onnx, files.tokenizer).embed(TEXTS)  # the tokenizers' pool is there then
    before = threads()
    background = Background(lambda: OnnxEmbedder(files.onnx, files.tokenizer, threads=3))
    found = background.embed(TEXTS)
    started = threads() - before
    assert len(started) == 3  # it, and two of its session's
    assert {niceness(thread) for thread in started} == {min(niceness() + 10, 19)}
    assert np.array_equal(found, OnnxEmbedder(files.onnx, files.tokenizer).embed(TEXTS))


def test_a_model_that_does_not_open_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"none")
    with pytest.raises(ModelDamaged):
        Background(lambda: OnnxEmbedder(tmp_path / "model", tmp_path / "model"))


def test_where_the_box_forbids_it_ingest_goes_on_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refused)
    assert Background(WordEmbedder).embed(TEXTS).shape == (3, 32)


def test_documents_are_embedded_in_the_background_and_queries_are_not(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, behind = Watched(), Watched()
    monkeypatch.setattr(shelf.collection, "_embedders", built_in(front, behind))
    shelf.library.add_all("handbook", [new_document(text) for text in TEXTS])
    shelf.add("Keys do not expire.")
    assert (len(front.seen), len(behind.seen)) == (1, 7)  # made; for four documents in two calls: ends, and vectors
    shelf.search("badges")
    assert (len(front.seen), len(behind.seen)) == (2, 7)


async def test_a_collection_is_embedded_anew_in_the_background(shelf: Shelf) -> None:
    front, behind, jobs = Watched(), Watched(), JobRunner()
    shelf.add("Badges expire.")
    job = Upkeep(shelf.libraries, built_in(front, behind), jobs).reembed("default", "handbook", "")
    ended = [one async for one in jobs.watch(job.id)][-1]
    assert ended.state is JobState.SUCCEEDED
    assert (len(front.seen), len(behind.seen) > 1) == (1, True)


def test_another_embedder_than_there_is_is_refused_in_the_background_too() -> None:
    embedders = built_in(WordEmbedder())
    assert embedders("", "", background=True) is embedders("", WordEmbedder().identity)
    for name, identity in (("other", ""), ("", "0" * 64)):
        with pytest.raises(EmbedderChanged):
            embedders(name, identity, background=True)
