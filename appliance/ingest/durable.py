"""Bytes that are on the disk when a call returns: here alone ingest writes, syncs and unlinks files."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import DiskFull, StoreDamaged

NEW = ".new-"
"""Names that begin so belong to writers that died."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of `path` into DiskFull or StoreDamaged, each naming the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"No space is left to write {path}.") from error
        raise StoreDamaged(f"{path}: {error.strerror or 'the disk failed'}.") from error


def make_directory(path: Path) -> None:
    """With the parents that it lacks, each durable on return. Raises OSError."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """A new file of its name or none, its bytes durable on return; its name once the directory is synced.

    Raises DiskFull, StoreDamaged.
    """
    with disk_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            offset = 0
            for piece in pieces:
                offset = write_at(fd, piece, offset)
            os.fsync(fd)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)


def replace_file(path: Path, pieces: Iterable[bytes]) -> None:
    """In one step, in place of what had that name; durable on return. Raises DiskFull, StoreDamaged."""
    new = path.with_name(NEW + path.name)
    write_file(new, pieces)
    with disk_errors(path):
        os.rename(new, path)
        sync_directory(path.parent)


def write_at(fd: int, data: bytes, offset: int) -> int:
    """All of `data`; where it ends. Raises OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written
    return offset


def append(path: Path, data: bytes, offset: int) -> None:
    """`data` at the end of a file, which is `offset`; durable on return. When it raises nothing of it stays.

    Raises DiskFull, StoreDamaged.
    """
    with disk_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != offset:  # what an append left that could not even be undone
                os.ftruncate(fd, offset)
            write_at(fd, data, offset)
            os.fdatasync(fd)
        except OSError:
            os.ftruncate(fd, offset)
            raise
        finally:
            os.close(fd)


def destroy(path: Path, secret_bytes: int) -> bool:
    """Overwrite what it begins with, durably, then unlink it; whether it was there. Raises StoreDamaged."""
    with disk_errors(path):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            write_at(fd, bytes(secret_bytes), 0)
            os.fdatasync(fd)
        finally:
            os.close(fd)
            os.unlink(path)
        return True
