"""Bytes that are on the disk when a call returns: here alone the knowledge base writes, syncs and unlinks files.

A new file is written under a temporary name, synced, renamed, and its directory synced: under its own name it is
whole or it is not there. Names that start with `.new-` belong to writers that died; opening a collection removes
them.
"""

import ctypes
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Self

from appliance.errors import AlreadyExists, Busy, DiskFull, StoreDamaged
from appliance.ports import Buffer

TEMPORARY = ".new-"
Pace = Callable[[int], None]
"""Is told how many bytes are about to be written, and waits as long as they shall."""

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of `path` into DiskFull, Busy, or StoreDamaged, each naming the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"No space is left to write {path}.") from error
        if error.errno in _PASSING:
            raise Busy(f"{path.name} cannot be opened or read just now: {error.strerror}.") from error
        raise StoreDamaged(f"{path}: {error.strerror or 'the disk failed'}.") from error


def unpaced(size_bytes: int) -> None:
    """The pace of what somebody waits for."""


class TokenBucket:
    """A pace: so many bytes a second at most, in bursts of up to a second's worth. Safe to use from many threads."""

    def __init__(self, bytes_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_second, self._clock = bytes_per_second, clock
        self._free_seconds = clock() - 1.0  # when all that was let through so far would have been written at that pace
        self._lock = Lock()

    def __call__(self, size_bytes: int) -> None:
        with self._lock:
            now = self._clock()
            self._free_seconds = max(self._free_seconds, now - 1.0) + size_bytes / self._bytes_per_second
            wait_seconds = self._free_seconds - now
        if wait_seconds > 0:
            time.sleep(wait_seconds)


class NewFile:
    """A file that has no name yet. Use as a context: left without `publish`, nothing of it stays."""

    def __init__(self, directory: Path, pace: Pace = unpaced) -> None:
        self._directory, self._pace = directory, pace
        self._temporary = directory / f"{TEMPORARY}{secrets.token_hex(8)}"
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def __enter__(self) -> Self:
        with disk_errors(self._temporary):
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        with suppress(OSError):
            os.unlink(self._temporary)

    def write(self, data: Buffer) -> None:
        """Append. Raises DiskFull."""
        self._pace(len(data))
        with disk_errors(self._temporary):
            write_at(self._descriptor, data, self.size_bytes)
        self._digest.update(data)
        self.size_bytes += len(data)

    def sha256(self) -> str:
        """Over everything written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def publish(self, name: str) -> None:
        """Durable under `name` on return, in place of what had that name. Raises DiskFull.

        After a failure a name that was new is not there; which file has an old name is left open.
        """
        path = self._directory / name
        with disk_errors(path):
            os.fsync(self._descriptor)
            replaces = path.exists()
            os.rename(self._temporary, path)
            try:
                sync_directory(self._directory)
            except OSError:
                if not replaces:
                    with suppress(OSError):
                        os.unlink(path)
                raise

    def publish_new(self, name: str) -> None:
        """As `publish`, but never in place of anything, not even of a link. Raises AlreadyExists, DiskFull."""
        path = self._directory / name
        with disk_errors(path):
            os.fsync(self._descriptor)
            try:
                rename_new(self._temporary, path)
            except FileExistsError:
                raise AlreadyExists(f"There is a file {path} already.") from None
            try:
                sync_directory(self._directory)
            except OSError:
                with suppress(OSError):
                    os.unlink(path)
                raise


def rename_new(source: Path, target: Path) -> None:
    """Give a file a name that nothing has (renameat2(2), which FAT knows, or else a hard link). Raises OSError."""
    if not _libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(target))
    os.link(source, target)
    os.unlink(source)


def exchange(one: Path, other: Path) -> None:
    """Each gets the other's name, in one instant (renameat2(2)). Raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def write_file(path: Path, data: Buffer) -> None:
    """A whole file, durable on return. Raises DiskFull."""
    with NewFile(path.parent) as file:
        file.write(data)
        file.publish(path.name)


def overwrite(path: Path, data: Buffer, offset: int = 0) -> None:
    """Bytes of a file that is there, in place; durable on return. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        write_at(descriptor, data, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: Buffer, offset: int) -> None:
    """All of `data` at `offset`. Raises OSError."""
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only at the end of the file. Raises OSError."""
    pieces: list[bytes] = []
    while size and (piece := os.pread(descriptor, size, offset)):
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_file(path: Path) -> bytes:
    """Raises StoreDamaged, naming the file, where it is not there or cannot be read."""
    with disk_errors(path):
        return path.read_bytes()


def make_directory(path: Path) -> None:
    """With the parents that it lacks, each durable on return. Raises OSError."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_all_but(directory: Path, keep: frozenset[str]) -> None:
    """Unlink every file of `directory` that is not kept. A reader that holds one open reads on.

    Raises StoreDamaged where there is no such directory.
    """
    with disk_errors(directory):
        strays = [path for path in directory.iterdir() if path.name not in keep]
    for path in strays:
        with suppress(OSError):
            os.unlink(path)
