import asyncio
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from appliance.errors import DocumentRefused
from appliance.sandbox.volumes import LockedVolumes
from appliance.types import Entry, Volume
from tests.sandbox.hostile_volumes import SIZE_BYTES
from tests.sandbox.locked import LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="module")

STICK = Volume(0, "FAT32", 0, SIZE_BYTES, "1A2B-3C4D", "STICK")
FILE = Entry(STICK, "a.txt", SIZE_BYTES, 1_700_000_000_000_000_000, 2, contiguous=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile() -> AsyncIterator[LockedVolumes]:
    volumes = LockedVolumes(LIMITS, "tests.sandbox.hostile_volumes")
    yield volumes
    await volumes.close()


def device(said: str) -> int:
    fd = os.memfd_create("stick")
    os.write(fd, said.encode())
    return fd


def target() -> int:
    return os.memfd_create("file", os.MFD_ALLOW_SEALING)


async def read(volumes: LockedVolumes, said: str, max_bytes: int = SIZE_BYTES) -> tuple[str, int]:
    stick, file = device(said), target()
    try:
        told = await volumes.read(stick, FILE, file, max_bytes)
        assert hashlib.sha256(os.pread(file, SIZE_BYTES, 0)).hexdigest() == told[0]
        with pytest.raises(PermissionError):
            os.write(file, b"more")
        return told
    finally:
        os.close(stick)
        os.close(file)


async def refusal(work: "asyncio.Future[object] | object") -> DocumentRefused:
    with pytest.raises(DocumentRefused) as refused:
        await work  # type: ignore[misc]
    return refused.value


async def listed(volumes: LockedVolumes, said: str) -> tuple[Entry, ...]:
    fd = device(said)
    try:
        return await volumes.list(fd)
    finally:
        os.close(fd)


async def test_no_process_runs_before_the_first_stick() -> None:
    volumes = LockedVolumes(LIMITS, "tests.sandbox.hostile_volumes")
    await volumes.prove()
    assert volumes.walls is None
    await volumes.close()


async def test_every_file_and_every_volume_is_listed(hostile: LockedVolumes) -> None:
    stick = Volume(0, "FAT32", 0, 2, "1A2B-3C4D", "STICK")
    other = Volume(1, "", 2, 512, reason="UNSUPPORTED_FILESYSTEM", detail="It is NTFS.")
    assert await listed(hostile, "ok") == (
        Entry(stick, "a.txt", SIZE_BYTES, 1_700_000_000_000_000_000, 2, contiguous=True),
        Entry(stick, "folder/ü.pdf", 1, 0, 9, reason="CHAIN_LOOP", detail="Its chain never ends."),
        Entry(other, "", reason="UNSUPPORTED_FILESYSTEM", detail="It is NTFS."),
    )
    assert hostile.walls


async def test_a_file_comes_whole_hashed_and_sealed(hostile: LockedVolumes) -> None:
    expected = b"x" * (SIZE_BYTES - 1) + b"a"
    assert await read(hostile, "ok") == (hashlib.sha256(expected).hexdigest(), SIZE_BYTES)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("refused", "BAD_PARTITION_TABLE"),
        ("pulled", "UNREADABLE"),
        ("raw", "PARSER_FAILED"),
        ("abort", "CRASHED"),
        ("open", "FORBIDDEN_CALL"),
    ],
)
async def test_a_listing_that_fails_says_why_and_the_next_stick_is_read(
    hostile: LockedVolumes, said: str, reason: str
) -> None:
    assert (await refusal(listed(hostile, said))).file_reason == reason
    assert len(await listed(hostile, "ok")) == 3


@pytest.mark.parametrize(
    ("said", "reason"),
    [("pulled while read", "UNREADABLE"), ("changed", "CHANGED"), ("short", "CHANGED"), ("long", "CHANGED")],
)
async def test_a_file_that_does_not_come_whole_says_why(hostile: LockedVolumes, said: str, reason: str) -> None:
    assert (await refusal(read(hostile, said))).file_reason == reason


async def test_a_file_in_crumbs_is_not_swallowed_one_by_one(hostile: LockedVolumes) -> None:
    assert (await refusal(read(hostile, "crumbs"))).file_reason == "PARSER_FAILED"


async def test_after_a_cancelled_read_nothing_more_is_written_to_its_target(
    hostile: LockedVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick, file, writing, go = device("ok"), target(), threading.Event(), threading.Event()
    real, task = os.write, asyncio.current_task()

    def write(fd: int, data: bytes) -> int:
        if fd == file and not writing.is_set():
            writing.set()
            if threading.current_thread() is not threading.main_thread():
                go.wait(5)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    reading = asyncio.create_task(hostile.read(stick, FILE, file, SIZE_BYTES))
    while not writing.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    os.ftruncate(file, 0)
    go.set()
    await asyncio.sleep(0.05)
    assert reading.cancelled()
    assert os.fstat(file).st_size == 0
    assert task is asyncio.current_task()
    os.close(stick)
    os.close(file)


async def test_what_a_dead_zygote_began_is_read_again_from_the_start(hostile: LockedVolumes) -> None:
    await hostile.prove()
    assert len(await listed(hostile, "ok")) == 3
    for work in (listed(hostile, "nap"), read(hostile, "nap while read")):
        idle = len(zygotes())
        running = asyncio.ensure_future(work)
        while len(zygotes()) == idle:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        os.kill(zygotes()[0].pid, signal.SIGKILL)
        assert await running


def zygotes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_a_file_that_is_too_large_is_not_asked_for(hostile: LockedVolumes) -> None:
    assert (await refusal(read(hostile, "abort", SIZE_BYTES - 1))).file_reason == "TOO_LARGE"


async def mtools(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


@pytest.mark.skipif(shutil.which("mformat") is None, reason="needs mtools")
async def test_a_real_stick_is_read_behind_the_walls(tmp_path: Path) -> None:
    image, file = tmp_path / "stick.img", tmp_path / "letter.txt"
    file.write_bytes(os.urandom(200_000))
    image.write_bytes(bytes(8 << 20))
    await mtools("mformat", "-i", image, "-v", "STICK", "::")
    await mtools("mmd", "-i", image, "::/Ordner mit Umläuten")
    await mtools("mcopy", "-i", image, file, "::/Ordner mit Umläuten/Brief an alle.txt")
    volumes = LockedVolumes(LIMITS, "appliance.ingest.volume")
    fd, taken = os.open(image, os.O_RDONLY), target()
    try:
        (entry,) = await volumes.list(fd)
        assert (entry.path, entry.size_bytes) == ("Ordner mit Umläuten/Brief an alle.txt", 200_000)
        sha256, size = await volumes.read(fd, entry, taken, 1 << 20)
        assert (sha256, size) == (hashlib.sha256(file.read_bytes()).hexdigest(), 200_000)
    finally:
        os.close(fd)
        os.close(taken)
        await volumes.close()
