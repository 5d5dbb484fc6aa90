"""Disks that fail: at a chosen step of what writes to them, and by losing their power.

A step is a call that changes the disk or syncs it. Of a write that is tried, each step is hit.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
NEVER = 1 << 30
_CHAIN = 5
_STEPS = ("open", "pwrite", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir", "link", "rmdir")
ALL_STEPS = frozenset(_STEPS)


class Died(BaseException):
    """The process is gone: no handler of the code under test may run on it."""


class Disk:
    """Counts the steps that go to the disk; the one of number `fails_at` fails, and all after it.

    kinds: for each step its call, and the functions of the code under test that it came from.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Callable[[str, tuple[object, ...]], None]) -> None:
        self._patch, self._fault = monkeypatch, fault
        self.steps = 0
        self.fails_at = 0
        self.kinds: list[tuple[str, ...]] = []

    @contextmanager
    def failing_at(self, step: int) -> Iterator[None]:
        self.steps, self.fails_at, self.kinds = 0, step, []
        with self._patch.context() as patch:
            for name in _STEPS:
                patch.setattr(f"appliance.knowledge.storage.durable.os.{name}", self._wrap(name, getattr(os, name)))
            yield

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            writes = os.O_CREAT | os.O_WRONLY
            reads = name == "open" and isinstance(arguments[1], int) and not arguments[1] & writes
            if not reads:
                self.steps += 1
                self.kinds.append((name, *islice(_callers(), _CHAIN)))
                if self.steps > self.fails_at:
                    self._fault(name, arguments)
            return real(*arguments, **options)

        return step


def _callers() -> Iterator[str]:
    """The functions of the code under test that are running, the innermost first."""
    frame = sys._getframe(2)
    while frame.f_back:
        if f"{os.sep}appliance{os.sep}" in frame.f_code.co_filename:
            yield frame.f_code.co_qualname
        frame = frame.f_back


def left_by_kills(
    monkeypatch: pytest.MonkeyPatch, root: Path, write: Callable[[list[T]], None]
) -> list[tuple[Path, list[T]]]:
    """What a kill before each step of a write, and one behind its last, leaves of a folder, as copies of it that are
    made while the write runs once; and what it had put into its list, as acknowledged, by then.

    A step that changes no byte, as a sync, leaves what the one before it did: of these states there is one.
    """
    found: list[tuple[Path, list[T]]] = []
    known: set[object] = set()
    acknowledged: list[T] = []
    copying = False  # which is no step

    def keep(*_: object) -> None:
        nonlocal copying
        if not copying:
            copying = True
            state = tuple(
                (str(path), path.read_bytes() if path.is_file() else None) for path in sorted(root.rglob("*"))
            )
            if (seen := (state, len(acknowledged))) not in known:
                known.add(seen)
                found.append((shutil.copytree(root, root.with_name(f"{root.name}-{len(found)}")), [*acknowledged]))
            copying = False

    with Disk(monkeypatch, keep).failing_at(0):
        write(acknowledged)
    keep()
    return found


def die(name: str, arguments: tuple[object, ...]) -> None:
    raise Died


def die_in_the_middle(name: str, arguments: tuple[object, ...]) -> None:
    """Half of what was to be written is written."""
    if name == "pwrite":
        descriptor, data, offset = arguments
        assert isinstance(descriptor, int)
        assert isinstance(data, bytes | memoryview)
        assert isinstance(offset, int)
        _PWRITE(descriptor, data[: len(data) // 2], offset)
    raise Died


def run_full(name: str, arguments: tuple[object, ...]) -> None:
    """A new file still gets its name; what is in it finds no room, nor does a folder or a link."""
    if name not in ("open", "rename", "unlink", "ftruncate", "rmdir"):
        raise OSError(errno.ENOSPC, "No space left on device")


def break_down(name: str, arguments: tuple[object, ...]) -> None:
    """The disk fails in everything that is asked of it."""
    raise OSError(errno.EIO, "Input/output error")


class Platter:
    """What a power cut leaves of a folder: of a file what was in it when it was synced last, of a folder the names that
    were there then. What was never synced may have come through for all that, in any order: `left` makes three of the
    states that may be.

    Files are told apart by their inode, which is kept open, lest another file gets its number.
    """

    def __init__(self, root: Path) -> None:
        """All that is there now came through."""
        self._root = root
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: list[int] = []
        for path in (root, *root.rglob("*")):
            self._hold(path)
            if path.is_file():
                self._content[path.stat().st_ino] = path.read_bytes()
            else:
                self._names[path.stat().st_ino] = {one.name: one.inode() for one in os.scandir(path)}

    @contextmanager
    def watching(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in ("fsync", "fdatasync"):
                patch.setattr(os, name, self._wrap(getattr(os, name)))
            yield

    def _wrap(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            real(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}")
            number = os.fstat(descriptor).st_ino
            self._hold(path)
            if path.is_dir():
                self._names[number] = {one.name: one.inode() for one in os.scandir(descriptor)}
                for name in self._names[number]:
                    with suppress(FileNotFoundError):  # another thread has removed it
                        self._hold(path / name)
            else:
                self._content[number] = path.read_bytes()

        return sync

    def _hold(self, path: Path) -> None:
        self._held.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def left(self, target: Path, state: str) -> Path:
        """state: "nothing" that was not synced came through, "removals" did, "names" did without any content."""
        live = {path.stat().st_ino for path in self._root.rglob("*")}
        present = {path.stat().st_ino: {one.name: one.inode() for one in os.scandir(path)}
                   for path in (self._root, *self._root.rglob("*")) if path.is_dir()}  # fmt: skip

        def names(number: int) -> dict[str, int]:
            if state == "names":
                return present[number]
            synced = self._names.get(number, {})
            return {
                name: one
                for name, one in synced.items()
                if state == "nothing" or one in live or name in present.get(number, {})
            }

        def make(number: int, path: Path) -> None:
            if number in self._names or number in present:
                path.mkdir(mode=0o700)
                for name, one in names(number).items():
                    make(one, path / name)
            else:
                path.write_bytes(self._content.get(number, b""))
                path.chmod(0o600)

        make(self._root.stat().st_ino, target)
        return target


STATES = ("nothing", "removals", "names")
_PWRITE = os.pwrite


def steps_of(kinds: list[tuple[str, ...]], only: frozenset[str] = ALL_STEPS) -> list[int]:
    """Each step of a write that is one of the calls `only`, and the one behind its last."""
    return [*(step for step, kind in enumerate(kinds) if kind[0] in only), len(kinds)]
