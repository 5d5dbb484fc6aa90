"""Key files: readable by their owner alone, written whole or not at all, overwritten only to be destroyed.

    slots/file.key   the root key in the clear: a FILE KEY SLOT, for boxes that unlock without a person
    slots/next.key   the root key that takes its place, while all that the root key wraps is wrapped anew
    signing.key      the box's Ed25519 key, wrapped under the root key
    tenants/<tenant>/<epoch>   a tenant's key, wrapped under the root key (see `tenants`)
    cache/key        of the prefix caches, wrapped under the root key (see `cache_key`)

All are magic(8) version(2, big-endian) kind(2) payload sha256(32 of all before it). The digest tells a damaged file
from a foreign one; it protects no secret. A key that is destroyed is overwritten with zeros before it is unlinked; a
file of zeros is one whose destruction a crash cut short. On a copy-on-write file system, or behind a flash controller,
an overwritten block may live on.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import DiskFull, KeyUnavailable

MAGIC = b"APPLKEY\n"
VERSION = (1).to_bytes(2, "big")
KIND_ROOT_IN_CLEAR = (1).to_bytes(2, "big")
KIND_SIGNING = (2).to_bytes(2, "big")
KIND_CACHE = (3).to_bytes(2, "big")
KIND_TENANT = (4).to_bytes(2, "big")
_HEAD_BYTES = len(MAGIC) + 4
_DIGEST_BYTES = 32


def write_key_file(path: Path, kind: bytes, payload: bytes) -> None:
    """Make `path` with mode 0600, whole or not at all, and durable on return. Raises DiskFull, KeyUnavailable."""
    with _told(path):
        _write_beside(path, kind, payload)
        os.link(_temporary(path), path)  # unlike rename, fails where a key already lies
        os.unlink(_temporary(path))
        sync_directory(path.parent)


def replace_key_file(path: Path, kind: bytes, payload: bytes) -> None:
    """In one step, in place of the key file that is there; durable on return. Raises DiskFull, KeyUnavailable.

    The old bytes may live on in free blocks: this is for keys whose wrapping key is destroyed next.
    """
    with _told(path):
        _write_beside(path, kind, payload)
        os.rename(_temporary(path), path)
        sync_directory(path.parent)


def destroy_key_file(path: Path) -> None:
    """Overwrite it with zeros, then unlink it; durable on return. Nothing where there is none.

    Raises DiskFull, KeyUnavailable; it may be called again then.
    """
    with _told(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.unlink(path)
        sync_directory(path.parent)


def is_destroyed(path: Path) -> bool:
    """Whether nothing is left of it: no file, or one of zeros alone."""
    try:
        return not any(path.read_bytes())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def rename_key_file(path: Path, target: Path) -> None:
    """Durable on return. Raises DiskFull, KeyUnavailable."""
    with _told(target):
        os.rename(path, target)
        sync_directory(target.parent)


def _write_beside(path: Path, kind: bytes, payload: bytes) -> None:
    body = MAGIC + VERSION + kind + payload
    temporary = _temporary(path)
    _make_directory(path.parent)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(body + hashlib.sha256(body).digest())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the operating system says into DiskFull or KeyUnavailable, naming the file."""
    try:
        yield
    except OSError as error:
        refused = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else KeyUnavailable
        raise refused(f"The key file {path} could not be written: {error.strerror}.") from None


def remove_leftover(path: Path) -> None:
    """Unlink what a writer of `path` left that died: it holds the same secret. Raises KeyUnavailable."""
    try:
        _temporary(path).unlink(missing_ok=True)
    except OSError as error:
        raise KeyUnavailable(f"{_temporary(path)} cannot be removed: {error.strerror}.") from None


def read_key_file(path: Path, kind: bytes) -> bytes:
    """The payload of a key file. Raises KeyUnavailable, naming the file, for every way in which it cannot be used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyUnavailable(f"The key file {path} is missing.") from None
    except OSError as error:
        raise KeyUnavailable(f"The key file {path} cannot be opened: {error.strerror}.") from None
    with open(descriptor, "rb") as file:
        _check_private(path, os.fstat(descriptor))
        raw = file.read(4096)
    body, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if body[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != digest:
        raise KeyUnavailable(f"The key file {path} is damaged, or is no key file.")
    if body[len(MAGIC) : _HEAD_BYTES] != VERSION + kind:
        raise KeyUnavailable(f"The key file {path} is of a version or kind that this release does not know.")
    return body[_HEAD_BYTES:]


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyUnavailable(f"The key file {path} is not a regular file.")
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyUnavailable(f"The key file {path} belongs to another user.")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise KeyUnavailable(f"The key file {path} is open to other users (mode {mode:04o}); make it 0600.")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _make_directory(path: Path) -> None:
    """With the parents that it lacks, each durable on return. Raises OSError."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
