"""Faults at every step that changes the disk: a kill, also in the middle of a write, a power cut, a disk that is full.

A step is a call that writes, syncs, makes, renames or removes a file. A kill loses nothing that was written, a power
cut what was not synced (`Platter`).
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.ingest.quarantine import HEADER_BYTES
from appliance.types import Ingestion
from tests.ingest.bench import Bench
from tests.knowledge.disk_faults import STATES, Platter

_STEPS = ("open", "pwrite", "fsync", "fdatasync", "rename", "replace", "unlink", "ftruncate", "mkdir")
_OPEN_WRITES = os.O_CREAT | os.O_WRONLY
_PWRITE = os.pwrite
_KEY = slice(16, HEADER_BYTES)  # of a held file, behind its magic, version and size
Fault = Callable[[str, tuple[object, ...]], None]


class Died(BaseException):
    """The process is gone: no handler of the code under test may run on it."""


class Disk:
    """Counts the steps below a folder; the one of number `fails_at` fails, and all after it do until it is mended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, fault: Fault):
        self._patch, self._root, self._fault = monkeypatch, str(root), fault
        self._lock = threading.Lock()
        self.steps, self.fails_at = 0, 1 << 30

    @contextmanager
    def failing_at(self, step: int) -> Iterator[None]:
        self.steps, self.fails_at = 0, step
        with self._patch.context() as patch:
            for name in _STEPS:
                patch.setattr(os, name, self._wrap(name, getattr(os, name)))
            yield

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if self._changes_the_disk(name, arguments):
                with self._lock:
                    self.steps += 1
                    failed = self.steps > self.fails_at
                if failed:
                    self._fault(name, arguments)
            return real(*arguments, **options)

        return step

    def _changes_the_disk(self, name: str, arguments: tuple[object, ...]) -> bool:
        target = arguments[0]
        if isinstance(target, int):
            target = os.readlink(f"/proc/self/fd/{target}")
        if name == "open" and not (isinstance(arguments[1], int) and arguments[1] & _OPEN_WRITES):
            return False
        return str(target).startswith(self._root)


def die(name: str, arguments: tuple[object, ...]) -> None:
    raise Died


def die_in_the_middle(name: str, arguments: tuple[object, ...]) -> None:
    """Half of what was to be written is written."""
    if name == "pwrite":
        fd, data, offset = arguments
        assert isinstance(fd, int)
        assert isinstance(data, bytes | memoryview)
        assert isinstance(offset, int)
        _PWRITE(fd, data[: len(data) // 2], offset)
    raise Died


ALL = "all"
DEATHS = [(die, ALL), (die_in_the_middle, ALL), *((die, state) for state in STATES)]
"""A fault, and what the disk holds after it: all that was written, or what a power cut leaves."""


@contextmanager
def dying_at(step: int, bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Fault, left: str) -> Iterator[None]:
    """What the context does to the bench's folder ends at a step, or with the context; what is left is there after it.

    left: one of DEATHS. The context stops the bench, as no process outlives it.
    """
    folder = bench.config.data_dir
    disk = Disk(monkeypatch, folder / "ingest", fault)
    if left == ALL:
        with disk.failing_at(step):
            yield
        return
    platter = Platter(folder)
    try:
        with platter.watching(monkeypatch), disk.failing_at(step):
            yield
        after = platter.left(folder.with_name("after"), left)
        shutil.rmtree(folder)
        after.rename(folder)
    finally:
        platter.close()


def come_back(bench: Bench) -> list[Path]:
    """Copies in the quarantine whose keys are there still, be they of files that were destroyed."""
    return [path for path in bench.held() if any(path.read_bytes()[_KEY])]


def run_full(name: str, arguments: tuple[object, ...]) -> None:
    if name in ("pwrite", "mkdir", "fsync", "fdatasync"):
        raise OSError(errno.ENOSPC, "No space left on device")


async def died(bench: Bench, begun: Ingestion) -> None:
    """Until its job has come to the step, or to its end."""
    async for _ in bench.jobs.watch(bench.ingest.get("clinic", begun.id).job.removeprefix("jobs/")):
        pass
    for entry in bench.jobs._entries.values():  # lest asyncio logs, when it forgets the task, that nobody asked for it
        if entry.task and entry.task.done() and not entry.task.cancelled():
            entry.task.exception()
