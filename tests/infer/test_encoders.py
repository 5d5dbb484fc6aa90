"""Imported ONNX models in real processes of their own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import (
    DeadlineExceeded,
    ModelDamaged,
    ModelTooLarge,
    ModelUnsupported,
    NotFound,
    QueueFull,
    WorkerDied,
)
from appliance.infer import encoders as encoders_module
from appliance.infer.encoders import EncoderOptions, Encoders
from appliance.infer.imported_embedder import ImportedEmbedder
from appliance.models.store import ModelStore
from appliance.types import ModelFile, ModelKind, ModelState, ModelStatus
from appliance.vault.keyring import FileKeyring
from tests.fakes import WordEmbedder
from tests.onnx_models import WORTH, write_embedder, write_glutton, write_reranker

EMBEDDING, RERANKER = ModelKind.EMBEDDING, ModelKind.RERANKER
WORDS = list(WORTH)


class Bench:
    """A store, and what runs its ONNX models; `now` and `free_bytes` are what a test says."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.free_bytes = root, 0.0, 8 << 30
        self.store = ModelStore(root / "models", FileKeyring.open(root / "keys", root / "data"))
        self.encoders = Encoders(
            self.store,
            EncoderOptions(queue=2, idle_seconds=60.0),
            free_bytes=lambda: self.free_bytes,
            clock=lambda: self.now,
        )

    def add(self, folder: Path, kind: ModelKind = EMBEDDING) -> str:
        return self.store.add(folder, kind=kind).name

    def pid(self, name: str) -> int:
        child = self.encoders._loaded[name].child
        assert child
        return child.process.pid

    def state(self, name: str) -> tuple[ModelState, str]:
        status = self.encoders.told(ModelStatus(name, EMBEDDING, ModelState.STORED))
        return status.state, status.detail


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.encoders.close()


def script(path: Path, text: str) -> str:
    """An executable that stands in for the worker's Python."""
    path.write_text(f"#!/bin/sh\nread -r told\n{text}\n")
    path.chmod(0o700)
    return str(path)


def proc(pid: int, what: str) -> str:
    return Path(f"/proc/{pid}/{what}").read_text()


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("output", ["sentence_embedding", "last_hidden_state"])
async def test_an_imported_embedder_gives_unit_vectors_in_the_order_of_the_texts(bench: Bench, output: str) -> None:
    name = bench.add(write_embedder(bench.root / "words", output))
    texts = ["badge " * 30, "garden", "", "badge garden \ud800"] * 6
    found = await bench.encoders.embed(name, texts)
    assert found.rows.dtype == np.float32
    assert found.rows.shape == (24, len(WORDS))
    np.testing.assert_allclose(np.linalg.norm(found.rows, axis=1), 1.0, atol=1e-6)
    assert found.tokens == 6 * (32 + 3 + 2 + 5)
    badge, garden = WORDS.index("badge"), WORDS.index("garden")
    assert found.rows[0, badge] > 0.99
    assert found.rows[1, garden] == pytest.approx(3**-0.5)  # beside the two tokens of the frame
    np.testing.assert_array_equal(found.rows[:4], found.rows[20:])
    assert bench.state(name) == (ModelState.READY, "")


async def test_a_model_loads_though_every_thread_of_the_process_waits_for_it(bench: Bench) -> None:
    name, loop = bench.add(write_embedder(bench.root / "words")), asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    embedder = ImportedEmbedder(bench.encoders, bench.store.get(name), WordEmbedder(), loop)
    async with asyncio.timeout(60):
        found = await asyncio.gather(*(asyncio.to_thread(embedder.embed, ["badge"]) for _ in range(2)))
    assert [rows.shape for rows in found] == [(1, len(WORDS))] * 2


async def test_an_imported_reranker_scores_in_the_order_of_the_texts(bench: Bench) -> None:
    name = bench.add(write_reranker(bench.root / "judge"), RERANKER)
    found = await bench.encoders.rerank(name, "badge", ["garden", "badge expires", ""] * 5)
    assert found.rows.tolist() == [[-1.0], [3.0], [0.0]] * 5
    assert found.tokens == 5 * (5 + 6 + 4)


async def test_a_model_of_another_kind_does_not_answer(bench: Bench) -> None:
    embedder = bench.add(write_embedder(bench.root / "words"))
    reranker = bench.add(write_reranker(bench.root / "judge"), RERANKER)
    with pytest.raises(NotFound, match="no reranker model"):
        await bench.encoders.rerank(embedder, "q", ["a"])
    with pytest.raises(NotFound, match="no reranker model"):
        bench.encoders.check_reranker(embedder)
    bench.encoders.check_reranker(reranker)
    with pytest.raises(NotFound, match="no embedding model"):
        await bench.encoders.embed(reranker, ["a"])
    with pytest.raises(NotFound, match="models/none"):
        await bench.encoders.embed("none", ["a"])


async def test_a_process_that_is_killed_fails_its_call_and_the_next_call_starts_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    with monkeypatch.context() as patch:
        text = "echo '{\"width\": 1}'\nread -r asked\nkill -KILL $$"
        patch.setattr(sys, "executable", script(bench.root / "worker", text))
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await bench.encoders.embed(name, ["badge"])
    assert (await bench.encoders.embed(name, ["badge"])).tokens == 3


async def test_a_process_that_died_while_idle_is_replaced_unnoticed(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    await bench.encoders.load(name)
    child = bench.encoders._loaded[name].child
    assert child
    os.kill(child.process.pid, signal.SIGKILL)
    await until(lambda: child.process.returncode is not None)
    assert bench.state(name) == (ModelState.STORED, "")
    assert (await bench.encoders.embed(name, ["badge"])).tokens == 3
    assert bench.pid(name) != child.process.pid


async def test_an_idle_process_is_ended_and_comes_back(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    await bench.encoders.load(name)
    pid = bench.pid(name)
    bench.now = 59.0
    await bench.encoders.unload_idle()
    assert not ended(pid)
    bench.now = 60.0
    await bench.encoders.unload_idle()
    assert ended(pid)
    assert bench.state(name) == (ModelState.STORED, "")
    assert (await bench.encoders.embed(name, ["badge"])).tokens == 3


async def test_the_process_can_open_no_file_and_leaves_no_core(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    await bench.encoders.load(name)
    limits, status = (proc(bench.pid(name), what) for what in ("limits", "status"))
    assert "NoNewPrivs:\t1" in status
    assert any(line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if line.startswith("Max core file size"))
    assert any(line.split()[3:5] == ["0", "0"] for line in limits.splitlines() if line.startswith("Max file size"))


async def test_a_model_cannot_take_more_memory_than_was_planned(bench: Bench) -> None:
    name = bench.add(write_glutton(bench.root / "glutton", 4 << 30))
    with pytest.raises((ModelDamaged, WorkerDied)):
        await bench.encoders.embed(name, ["badge"])


async def test_a_model_that_does_not_fit_is_not_started(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    bench.free_bytes = 1 << 20
    with pytest.raises(ModelTooLarge, match="1 are free"):
        await bench.encoders.embed(name, ["badge"])
    assert bench.state(name)[0] is ModelState.FAILED
    bench.free_bytes = 8 << 30
    await bench.encoders.load(name)
    assert bench.state(name) == (ModelState.READY, "")


@pytest.mark.parametrize(("damage", "error"), [("model", ModelDamaged), ("tokenizer", ModelDamaged)])
async def test_hostile_files_are_refused_by_the_process(bench: Bench, damage: str, error: type[Exception]) -> None:
    folder = write_embedder(bench.root / "words")
    (folder / ("model.onnx" if damage == "model" else "tokenizer.json")).write_bytes(os.urandom(4096))
    name = bench.add(folder)
    for _ in range(2):
        with pytest.raises(error, match="can't be opened"):
            await bench.encoders.embed(name, ["badge"])
    assert bench.state(name)[0] is ModelState.FAILED


async def test_a_reranker_imported_as_an_embedder_is_refused_by_name_of_fault(bench: Bench) -> None:
    name = bench.add(write_reranker(bench.root / "judge", types=False))
    vectors = await bench.encoders.embed(name, ["badge"])  # its one output is a vector of one number
    assert vectors.rows.shape == (1, 1)
    folder = write_embedder(bench.root / "words")
    with pytest.raises(ModelUnsupported, match="one score a text"):
        await bench.encoders.rerank(bench.add(folder, RERANKER), "badge", ["badge"])


async def test_a_file_that_changed_in_the_store_is_not_given_to_a_process(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    model = Path(bench.store.get(name).path) / "model.onnx"
    model.chmod(0o600)
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ModelDamaged, match="sha256 differs"):
        await bench.encoders.embed(name, ["badge"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("exit 9", WorkerDied),
        ("kill -SEGV $$", ModelDamaged),
        ("echo nonsense", WorkerDied),
        ("echo '[]'", WorkerDied),
        ("echo '{}'", WorkerDied),
        ("echo '{\"width\": -1}'", ModelDamaged),
        ("echo '{\"width\": 99999999999}'", ModelDamaged),
        ('echo \'{"reason": "FORBIDDEN", "message": "no"}\'', WorkerDied),
        ('echo \'{"reason": "MODEL_DAMAGED", "message": 1}\'', WorkerDied),
        ("head -c 200000 /dev/zero; sleep 60", WorkerDied),
        ("head -c 60000 /dev/zero | tr '\\0' '['; echo; sleep 60", WorkerDied),
    ],
)
async def test_a_process_that_cannot_be_understood_while_loading_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    monkeypatch.setattr(sys, "executable", script(bench.root / "worker", text))
    with pytest.raises(error):
        await bench.encoders.embed(name, ["badge"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("exit 9", WorkerDied),
        ("echo nonsense; sleep 60", WorkerDied),
        ("echo '{\"tokens\": -1}'; sleep 60", WorkerDied),
        ("echo '{\"tokens\": 3}'; printf ab; exit 0", WorkerDied),
        ("echo '{\"tokens\": 3}'; printf '\\0\\0\\300\\177'; sleep 60", ModelDamaged),  # not a number
        ("exec >&-; sleep 60", WorkerDied),
        ("sleep 60", DeadlineExceeded),
    ],
)
async def test_a_process_that_answers_something_else_or_nothing_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    monkeypatch.setattr(encoders_module, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(
        sys, "executable", script(bench.root / "worker", f"echo '{{\"width\": 1}}'\nread -r asked\n{text}")
    )
    with pytest.raises(error):
        await bench.encoders.embed(name, ["badge"])


Waiting = Callable[[], object]


async def until(condition: Waiting) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def stuck(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose process loads and then never answers."""
    name = bench.add(write_embedder(bench.root / "words"))
    text = "echo '{\"width\": 1}'\nexec sleep 1000"
    monkeypatch.setattr(sys, "executable", script(bench.root / "worker", text))
    return name


async def test_more_calls_than_may_wait_are_told_so(bench: Bench, stuck: str) -> None:
    calls = [asyncio.create_task(bench.encoders.embed(stuck, ["badge"])) for _ in range(2)]
    await until(lambda: stuck in bench.encoders._loaded and bench.encoders._loaded[stuck].calls == 2)
    with pytest.raises(QueueFull, match="2 calls"):
        await bench.encoders.embed(stuck, ["badge"])
    await bench.encoders.unload(stuck)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Exception) for outcome in outcomes), outcomes


async def test_unloading_ends_the_process_and_the_call(bench: Bench, stuck: str) -> None:
    call = asyncio.create_task(bench.encoders.embed(stuck, ["badge"]))
    await until(lambda: stuck in bench.encoders._loaded and bench.encoders._loaded[stuck].child)
    pid = bench.pid(stuck)
    await bench.encoders.unload(stuck)
    with pytest.raises(WorkerDied, match="unloaded"):
        await call
    assert ended(pid)


async def test_who_goes_away_leaves_the_process_to_the_next_in_turn(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    await bench.encoders.load(name)
    pid = bench.pid(name)
    gone = asyncio.create_task(bench.encoders.embed(name, ["badge"] * 256))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone.cancel()
    after = asyncio.create_task(bench.encoders.embed(name, ["garden", "badge"]))
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (await after).rows[0, WORDS.index("garden")] == pytest.approx(3**-0.5)
    assert bench.pid(name) == pid


async def test_a_model_of_the_same_name_and_other_bytes_gets_its_own_process(bench: Bench) -> None:
    name = bench.add(write_embedder(bench.root / "words"))
    await bench.encoders.load(name)
    pid = bench.pid(name)
    bench.store.delete(name)
    file: ModelFile = bench.store.add(write_embedder(bench.root / "words", "last_hidden_state"), kind=EMBEDDING)
    assert file.name == name
    await bench.encoders.load(name)
    assert bench.pid(name) != pid
    assert ended(pid)
