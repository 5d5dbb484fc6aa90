"""An ingestion that is cancelled, or a daemon that ends, in the midst of a long document: with a real library, and an
embedder whose batches are let through one by one."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.errors import Cancelled, DocumentRefused
from appliance.ingest.commit import Commit, Read
from appliance.ingest.judge import Judge, refused
from appliance.ingest.keys import IngestKeys
from appliance.ingest.quarantine import Quarantine
from appliance.knowledge.library import Library
from appliance.types import Extracted, FileState, Floats, Ingestion, IngestionState
from tests.fakes import WordEmbedder
from tests.ingest.bench import EVERYBODY, OPERATOR, Bench, PlainExtractor, ends, until
from tests.knowledge.conftest import new_document, open_libraries

BATCH_TEXTS = 8
MIB = 1 << 20
LONG = "\n\n".join(f"Rule {number} of the house. " + "The porter rings before he enters the ward. " * 20
                   for number in range(5 * BATCH_TEXTS))  # fmt: skip


class GatedEmbedder(WordEmbedder):
    """Begins a batch at once, and ends it when it may. begun: how many."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self._may_end = threading.Semaphore(0)

    def let(self, batches: int = 1 << 20) -> None:
        self._may_end.release(batches)

    def embed(self, texts: Sequence[str]) -> Floats:
        self.begun += 1
        assert self._may_end.acquire(timeout=60)
        return np.eye(len(texts), self.dimension, dtype=np.float32) + np.float32(0.1)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.knowledge.intake.EMBEDDED_TEXTS", BATCH_TEXTS)


@pytest.fixture
def embedder() -> Iterator[GatedEmbedder]:
    gated = GatedEmbedder()
    yield gated
    gated.let()


@pytest.fixture
def library(tmp_path: Path, embedder: GatedEmbedder) -> Iterator[Library]:
    opened = open_libraries(tmp_path / "real", embedder).of("default")
    yield opened
    opened.close()


@pytest.fixture
def bench(tmp_path: Path, library: Library) -> Bench:
    bench = Bench(tmp_path, PlainExtractor())
    bench.library = library  # type: ignore[assignment]
    bench.restart()
    bench.write(a__txt="Short.", c__txt=LONG, d__txt="Another.", e__txt="no text")
    return bench


async def in_the_midst(bench: Bench, embedder: GatedEmbedder) -> Ingestion:
    """Until a.txt is committed, and the second batch of c.txt is being embedded; all else that may be read is."""
    begun = await bench.start()
    await until(lambda: embedder.begun == 1)
    assert isinstance(bench.extractor, PlainExtractor)
    names = bench.extractor.names
    await until(lambda: {"c.txt", "d.txt", "e.txt"} <= {*names})
    embedder.let(2)
    await until(lambda: embedder.begun == 3)
    return begun


def titles(library: Library) -> list[str]:
    return [one.title for one in library.documents("handbook", EVERYBODY)[0]]


async def test_cancelling_in_a_long_document_embeds_no_further_batch_and_commits_nothing_more(
    bench: Bench, library: Library, embedder: GatedEmbedder
) -> None:
    begun = await in_the_midst(bench, embedder)
    cancelling = asyncio.create_task(bench.ingest.cancel(OPERATOR, begun.name))
    for _ in range(10):
        await asyncio.sleep(0)
    embedder.let()
    cancelled = await cancelling
    assert cancelled.state is IngestionState.CANCELLED
    assert embedder.begun == 3
    assert titles(library) == ["a.txt"]
    rest = dict.fromkeys(("c.txt", "d.txt", "e.txt"), "left")
    assert ends(bench.files(cancelled)) == rest | {"a.txt": "committed"}
    assert bench.held() == []


async def test_a_file_that_is_still_to_be_copied_when_it_is_cancelled_is_not(
    bench: Bench, embedder: GatedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.ingest.work.HELD_AHEAD_BYTES", 10)
    begun = await bench.start()
    await until(lambda: embedder.begun == 1)
    cancelling = asyncio.create_task(bench.ingest.cancel(OPERATOR, begun.name))
    for _ in range(10):
        await asyncio.sleep(0)
    copied, read = [*bench.stick.copied], [*bench.extractor.names]  # type: ignore[attr-defined]
    embedder.let()
    await cancelling
    assert (bench.stick.copied, bench.extractor.names) == (copied, read)  # type: ignore[attr-defined]


async def test_a_daemon_that_ends_in_a_long_document_waits_for_no_further_batch_and_the_next_one_takes_it(
    bench: Bench, library: Library, embedder: GatedEmbedder
) -> None:
    begun = await in_the_midst(bench, embedder)
    bench.ingest.stop()
    stopping = asyncio.create_task(bench.jobs.stop())
    for _ in range(10):
        await asyncio.sleep(0)
    embedder.let()
    await stopping
    assert embedder.begun == 3
    assert titles(library) == ["a.txt"]
    assert bench.files(begun)["c.txt"].state is FileState.HELD
    bench.restart()
    await bench.ingest.open()
    done = await bench.wait(begun)
    assert done.state is IngestionState.SUCCEEDED
    assert titles(library) == ["a.txt", "c.txt", "d.txt"]


@pytest.mark.parametrize("asked", range(1, 9))
def test_a_library_that_is_told_to_stop_at_any_moment_has_added_nothing(
    library: Library, embedder: GatedEmbedder, asked: int
) -> None:
    library.create("handbook")
    embedder.let()
    documents = [new_document("Short."), new_document(LONG)]
    with pytest.raises(Cancelled):
        library.add_all("handbook", documents, stops_at(asked))
    assert titles(library) == []
    library.add_all("handbook", documents)
    assert len(titles(library)) == 2


def stops_at(asked: int) -> Callable[[], bool]:
    """Says so from the time on that it is asked for so often."""
    left = asked

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left <= 0

    return stop


def test_a_library_asks_before_each_batch_and_before_it_writes(library: Library, embedder: GatedEmbedder) -> None:
    library.create("handbook")
    embedder.let()
    begun: list[int] = []

    def stop() -> bool:
        begun.append(embedder.begun)
        return False

    library.add_all("handbook", [new_document(LONG)], stop)
    assert begun == [0, *range(embedder.begun), embedder.begun]


# --- a commit alone --------------------------------------------------------------------------------------------------


async def committing(folder: Path, **files: str) -> tuple[Bench, Commit, list[Read]]:
    """Of an ingestion whose files were previewed, and are read."""
    bench = Bench(folder)
    bench.write(**files)
    waiting, _ = await bench.run(approve=False)
    ledger = bench.ingest._ledgers.get("clinic", waiting.id)
    quarantine = Quarantine(bench.config.data_dir / "nowhere", IngestKeys(folder, bench.keyring, bench.tenant_keys))
    library: Any = bench.library
    commit = Commit(ledger, library, Judge(ledger, library), quarantine, MIB, 200)
    texts = {name: content.decode() for name, content in bench.stick.files.items()}
    items = [item.changed(state=FileState.HELD) for item in ledger.items()]
    return bench, commit, [Read(item, Extracted("text/plain", "plain 1", (texts[item.name],))) for item in items]


async def test_a_commit_that_was_stopped_before_it_began_tells_of_nothing(tmp_path: Path) -> None:
    bench, commit, reads = await committing(tmp_path, a__txt="One.", b__txt="Two.")
    commit.stop()
    refusal = DocumentRefused("EMPTY", "It is empty.")
    with pytest.raises(Cancelled):
        commit.commit([replace(read, item=refused(read.item, refusal), extracted=None) for read in reads])
    [waiting] = bench.ingest.list("clinic")
    assert set(ends(bench.files(waiting)).values()) == {"found"}


async def test_what_a_commit_had_added_before_it_was_stopped_is_told_of(tmp_path: Path) -> None:
    bench, commit, reads = await committing(tmp_path, a__txt="One.", b__txt="Two.", c__txt="Three.")
    bench.library.after_add = lambda document: commit.stop()
    same = replace(reads[1], item=reads[1].item.changed(sha256=reads[0].item.outcome.sha256))
    with pytest.raises(Cancelled):
        commit.commit([reads[0], same, reads[2]])
    [waiting] = bench.ingest.list("clinic")
    assert bench.titles() == ["a.txt"]
    assert ends(bench.files(waiting)) == {"a.txt": "committed", "b.txt": "found", "c.txt": "found"}
