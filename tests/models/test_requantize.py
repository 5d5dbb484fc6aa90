"""Quantizing by the real llama.cpp in its own process."""

import asyncio
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import DiskFull, InvalidArgument, ModelDamaged, NotFound, WorkerDied
from appliance.infer import llama
from appliance.infer.quantizer import WorkerQuantizer
from appliance.jobs import JobRunner
from appliance.models import gguf
from appliance.models.requantize import Requantizer
from appliance.models.store import ModelStore
from appliance.types import Job, JobState
from appliance.vault.keyring import FileKeyring
from tests import gguf_models
from tests.gguf_lora import write_lora

Q4_K, Q6_K, Q8_0 = 12, 14, 8
WIDE = replace(gguf_models.TINY, embedding=256, feed_forward=256, layers=1)  # K-quants go by blocks of 256


class Bench:
    def __init__(self, root: Path) -> None:
        self.store = ModelStore(root / "models", FileKeyring.open(root / "keys", root / "data"))
        self.jobs = JobRunner()
        self.scratch = root / "scratch"
        self.requantizer = Requantizer(self.store, self.jobs, WorkerQuantizer(), self.scratch)

    async def end(self, job: Job) -> tuple[Job, list[Job]]:
        seen = [state async for state in self.jobs.watch(job.id)]
        return seen[-1], seen


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.jobs.stop()


@pytest.mark.parametrize(("storage", "types"), [("Q8_0", {Q8_0}), ("Q4_K_M", {Q4_K, Q6_K})])
async def test_a_model_in_fewer_bits_is_a_model_of_its_own(
    bench: Bench, tmp_path: Path, storage: str, types: set[int]
) -> None:
    whole = bench.store.add(gguf_models.write_llama(tmp_path / "m.gguf", WIDE))
    job, seen = await bench.end(bench.requantizer.start(whole.name, storage))
    assert (job.state, job.error_message) == (JobState.SUCCEEDED, "")
    made = bench.store.get(f"random-llama-{storage.lower()}")
    assert job.note == f"models/{made.name}"
    assert made.size_bytes < whole.size_bytes
    assert (made.parameters, made.scaffold) == (whole.parameters, whole.scaffold)
    bench.store.verify(made)
    tensors = gguf.read(Path(made.path)).tensors
    assert {tensor.storage for tensor in tensors if len(tensor.dimensions) > 1} == types
    assert job.done == job.total == len(tensors)
    assert [state.done for state in seen] == sorted(state.done for state in seen)
    assert list(bench.scratch.iterdir()) == []


async def test_a_model_that_is_quantized_already_is_not_quantized_again(bench: Bench, tmp_path: Path) -> None:
    bench.store.add(gguf_models.write_llama(tmp_path / "m.gguf"))
    await bench.end(bench.requantizer.start("random-llama", "Q8_0", "small"))
    job, _ = await bench.end(bench.requantizer.start("small", "Q8_0"))
    assert (job.state, job.error_reason) == (JobState.FAILED, "INVALID_ARGUMENT")
    assert "quantized already" in job.error_message


async def test_what_cannot_be_quantized_is_refused_before_a_job_is_made(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_models.write_llama(tmp_path / "m.gguf")
    bench.store.add(path)
    bench.store.add(write_lora(tmp_path / "a.gguf", path, name="style"))
    start = bench.requantizer.start
    for arguments, kind in (
        (("none", "Q8_0"), NotFound),
        (("random-llama", "Q3_K"), InvalidArgument),
        (("style", "Q8_0"), InvalidArgument),
        (("random-llama", "Q8_0", "../x"), InvalidArgument),
    ):
        with pytest.raises(kind):
            start(*arguments)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 100 << 20))
    with pytest.raises(DiskFull, match="the disk has 100 MiB free"):
        start("random-llama", "Q8_0")
    assert bench.jobs.list() == ()


async def test_cancelling_ends_the_process_and_leaves_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.store.add(gguf_models.write_llama(tmp_path / "m.gguf"))
    script = tmp_path / "slow"
    script.write_text(
        '#!/bin/sh\nread -r told\necho \'{"done": 1, "total": 9}\'\necho $$ > "$0.pid"\nexec sleep 1000\n'
    )
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    job = bench.requantizer.start("random-llama", "Q8_0")
    async with asyncio.timeout(20):
        while not (tmp_path / "slow.pid").exists() or bench.jobs.get(job.id).total != 9:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    bench.jobs.cancel(job.id)
    ended, _ = await bench.end(job)
    assert ended.state is JobState.CANCELLED
    pid = (tmp_path / "slow.pid").read_text().strip()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert list(bench.scratch.iterdir()) == []
    assert [file.name for file in bench.store.list()] == ["random-llama"]


def quantize(source: Path, target: Path) -> None:
    asyncio.run(WorkerQuantizer().quantize(source, target, "Q8_0", lambda done, total: None))


def test_a_file_that_native_code_refuses_says_why(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelDamaged, match="cannot quantize"):
        quantize(path, tmp_path / "out.gguf")


def test_a_disk_that_fills_up_is_no_fault_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_models.write_llama(tmp_path / "m.gguf")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 4096))
    with pytest.raises(DiskFull, match="while the model was quantized"):
        llama.quantize(str(path), "/dev/full", "Q8_0", 1, lambda done, total: None)


async def test_models_are_quantized_one_at_a_time_each_against_the_space_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """ports.Quantizer that waits, and fills the disk."""

        running, most, go = 0, 0, asyncio.Event()

        async def quantize(self, source: Path, target: Path, storage: str, report: Callable[[int, int], None]) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await self.go.wait()
            self.running -= 1
            usage = namedtuple("usage", "total used free")
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 100 << 20))
            raise ModelDamaged("Enough.")

    bench, slow = Bench(tmp_path), Slow()
    bench.requantizer = Requantizer(bench.store, bench.jobs, slow, bench.scratch)
    bench.store.add(gguf_models.write_llama(tmp_path / "m.gguf"))
    jobs = [bench.requantizer.start("random-llama", "Q8_0", name) for name in ("one", "two")]
    async with asyncio.timeout(20):
        while not slow.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    slow.go.set()
    ended = [(await bench.end(job))[0].error_reason for job in jobs]
    assert (ended, slow.most) == (["MODEL_DAMAGED", "DISK_FULL"], 1)
    await bench.jobs.stop()


@pytest.mark.parametrize(("script", "message"), [("kill -SEGV $$", "was ended by SIGSEGV"), ("exit 9", "with code 9")])
def test_a_process_that_dies_is_an_error_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    path = tmp_path / "worker"
    path.write_text(f"#!/bin/sh\nread -r told\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))
    with pytest.raises(WorkerDied, match=message):
        quantize(tmp_path / "m.gguf", tmp_path / "out.gguf")


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "tmp1234").mkdir(parents=True)
    store = ModelStore(tmp_path / "models", FileKeyring.open(tmp_path / "keys", tmp_path / "data"))
    Requantizer(store, JobRunner(), WorkerQuantizer(), tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []
