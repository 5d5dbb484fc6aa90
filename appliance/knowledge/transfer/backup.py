"""A collection's encrypted files in a folder, as of one instant, and back; this box and its tenant's key open them.

    <folder>/files/<sha256>   each file of the collection, named by its content, so that the next backup into the same
                              folder copies what is new
    <folder>/backup.json      {"signature":"…","statement":{…}}: what the backup consists of. Written last: a folder
                              without it is no backup, and a backup that was cut short leaves the one before it whole

The statement is `collection`, `tenant`, `uid`, `generation`, `time` (microseconds since 1970, UTC) and `files`: by name
below the collection's folder, `sha256` and `bytes`. The signature is Ed25519 by this box, in hexadecimal, over
"appliance backup 1", a zero byte, and the statement's bytes as they stand in the file.

A backup holds the collection's key as the tenant's key wraps it, and nothing that opens it: where that key was
destroyed or replaced (rotated), the backup is destroyed with it.
"""

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.errors import AlreadyExists, BackupRefused, Busy, NotFound, StoreDamaged
from appliance.knowledge.library import Library
from appliance.knowledge.storage import durable, key
from appliance.knowledge.storage.pin import Pinned
from appliance.knowledge.storage.record import to_micros
from appliance.ports import Keyring, Progress

STATEMENT = "backup.json"
FILES = "files"
_FORMAT = b"appliance backup 1\x00"
_FRAME = re.compile(rb'\{"signature":"([0-9a-f]{128})","statement":(\{.*\})\}\n', re.DOTALL)
_NAME = re.compile(r"(?:[a-zA-Z0-9][a-zA-Z0-9.]{0,79}/)?[a-zA-Z0-9][a-zA-Z0-9.]{0,79}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_STATEMENT_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Copied:
    """A file of a backup."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Statement:
    """What a backup consists of. uid: the collection's, in hexadecimal; files: by name below its folder."""

    collection: str
    tenant: str
    uid: str
    generation: int
    time: int
    files: Mapping[str, Copied]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())


def backup(library: Library, tenant: str, collection: str, folder: Path, keyring: Keyring, progress: Progress) -> None:
    """Copy the collection as it is at this instant into a new folder, or into that of an earlier backup of it.

    progress: in bytes; may raise, and then an earlier backup stays as it was. Raises NotFound, AlreadyExists (another
    folder of that name), BackupRefused (a backup of something else), Busy (another backup into it goes on, or keys are
    rotated all the time), DiskFull, StoreDamaged.
    """
    for _ in range(_TRIES):
        with library.pin_files(collection) as pinned, _prepared(folder, tenant, pinned.collection.hex(), keyring):
            tell = _Tally(progress, sum(pinned.sizes.values()))
            files = {name: _copy_out(pinned, name, folder / FILES, tell) for name in sorted(pinned.sizes)}
            if _is_under_its_key(library, collection, pinned):
                time = to_micros(datetime.now(UTC))
                statement = Statement(collection, tenant, pinned.collection.hex(), pinned.generation, time, files)
                durable.write_file(folder / STATEMENT, _sign(statement, keyring))
                durable.remove_all_but(folder / FILES, frozenset(file.sha256 for file in files.values()))
                return
    raise Busy(f"The keys of collection {collection} were rotated whenever it was copied.")


def restore(
    library: Library,
    tenant: str,
    collection: str,
    folder: Path,
    keyring: Keyring,
    progress: Progress,
    *,
    replace: bool = False,
) -> None:
    """A collection of what a backup holds. Every byte is compared before anyone sees it.

    collection: a name that is free, while the one that was backed up is gone: two with the same keys cannot live side
    by side; or its own name, where it is damaged, or with `replace`. progress: in bytes; may raise, and then everything
    is as before. Raises NotFound (of the folder), AlreadyExists, InvalidArgument, BackupRefused, Busy (a backup into it
    goes on), DiskFull, StoreDamaged (this box's disk fails).
    """
    with _opened(folder) as top, _opened(FILES, top, folder) as files:
        _take(top, folder, fcntl.LOCK_SH)
        statement = _read_statement(top, folder, keyring)
        if statement.tenant != tenant:
            raise BackupRefused(f"{folder} is a backup of another tenant.")
        if stranger := _stranger(top, files):
            raise BackupRefused(f"{folder} holds {stranger!r}, which is no part of the backup.")
        tell = _Tally(progress, statement.size_bytes)

        def fill(directory: Path) -> None:
            for name in statement.files:
                _copy_in(files, folder, statement.files[name], directory / name, tell)

        try:
            library.adopt(collection, statement.collection, bytes.fromhex(statement.uid), fill, replace=replace)
        except StoreDamaged as error:
            if isinstance(error.__cause__, OSError):  # this box's own disk
                raise
            raise BackupRefused(
                f"{folder} is what this box wrote, and does not open any more: its collection or tenant was shredded,"
                f" or their keys were rotated since. {error}"
            ) from None


def _is_under_its_key(library: Library, collection: str, pinned: Pinned) -> bool:
    """Whether what was read of its key record is what lies there: else it may be what a rotation or a drop left.

    Raises NotFound.
    """
    with library.pin_files(collection) as present:
        if present.collection != pinned.collection:
            raise NotFound(f"The collection {collection} was deleted while it was backed up.")
        return _key_records(present) == _key_records(pinned)


def _key_records(pinned: Pinned) -> dict[str, bytes]:
    return {name: b"".join(pinned.pieces(name)) for name in pinned.sizes if name.startswith(key.PREFIX)}


class _Tally:
    """Bytes done, told as they are."""

    def __init__(self, progress: Progress, total_bytes: int) -> None:
        self._progress, self._total_bytes, self._done_bytes = progress, total_bytes, 0
        progress.update(0, total_bytes)

    def __call__(self, size_bytes: int, name: str) -> None:
        self._done_bytes += size_bytes
        self._progress.update(self._done_bytes, self._total_bytes, name)


# --- writing


@contextmanager
def _prepared(folder: Path, tenant: str, uid: str, keyring: Keyring) -> Iterator[None]:
    """A folder, made where there is none, that holds an earlier backup, or the start of one, and nothing else.

    Nobody else writes into it meanwhile.
    """
    with durable.disk_errors(folder):
        durable.make_directory(folder / FILES)
    with _opened(folder) as top, _opened(FILES, top, folder) as files:
        _take(top, folder, fcntl.LOCK_EX)
        if stranger := _stranger(top, files):
            raise AlreadyExists(f"{folder} holds {stranger!r}, which is no part of a backup.")
        if STATEMENT in os.listdir(top):
            earlier = _read_statement(top, folder, keyring)
            if (earlier.tenant, earlier.uid) != (tenant, uid):
                raise BackupRefused(f"{folder} holds a backup of another collection, {earlier.collection}.")
        yield


def _take(top: int, folder: Path, mode: int) -> None:
    """The lock on the folder, until its descriptor is closed. Raises Busy."""
    with durable.disk_errors(folder):
        try:
            fcntl.flock(top, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"Another backup or restore uses {folder} just now.") from None


def _copy_out(pinned: Pinned, name: str, files: Path, tell: _Tally) -> Copied:
    digest, size = Path(name).name, pinned.sizes[name]
    if _DIGEST.fullmatch(digest) and _holds(files / digest, Copied(digest, size)):
        tell(size, name)
        return Copied(digest, size)
    with durable.NewFile(files) as file:
        for piece in pinned.pieces(name):
            file.write(piece)
            tell(len(piece), name)
        if _DIGEST.fullmatch(digest) and file.sha256() != digest:
            raise StoreDamaged(f"{name} of the collection is damaged: its content is not what its name says.")
        file.publish(file.sha256())
        return Copied(file.sha256(), file.size_bytes)


def _holds(path: Path, file: Copied) -> bool:
    """Whether that very file is there already."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != file.size_bytes:
            return False
        with durable.disk_errors(path):
            while piece := opened.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest() == file.sha256


def _sign(statement: Statement, keyring: Keyring) -> bytes:
    files = {name: {"bytes": file.size_bytes, "sha256": file.sha256} for name, file in statement.files.items()}
    facts = {name: getattr(statement, name) for name in Statement.__dataclass_fields__} | {"files": files}
    raw = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    signature = keyring.sign(_FORMAT + raw).hex().encode()
    return b'{"signature":"' + signature + b'","statement":' + raw + b"}\n"


# --- reading


@contextmanager
def _opened(path: Path | str, inside: int | None = None, folder: Path | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no link. Raises NotFound, BackupRefused."""
    named = folder / path if folder else path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    except FileNotFoundError:
        raise NotFound(f"There is no folder {named} on this box.") from None
    except OSError as error:
        raise BackupRefused(f"{named} cannot be opened as a folder: {error.strerror}.") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _file(inside: int, name: str, path: Path) -> Iterator[int]:
    """A descriptor of a regular file that is no link. Raises BackupRefused."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
    except FileNotFoundError:
        raise BackupRefused(f"{path} is missing.") from None
    except OSError as error:
        raise BackupRefused(f"{path} cannot be opened, or is a link: {error.strerror}.") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BackupRefused(f"{path} is no regular file.")
        yield descriptor
    finally:
        os.close(descriptor)


def _read_statement(top: int, folder: Path, keyring: Keyring) -> Statement:
    """Raises BackupRefused."""
    path = folder / STATEMENT
    with _file(top, STATEMENT, path) as descriptor:
        raw = _read(descriptor, _MAX_STATEMENT_BYTES, 0, path)
    framed = _FRAME.fullmatch(raw)
    if not framed:
        raise BackupRefused(f"{path} is damaged, or was not written by a backup.")
    try:
        keyring.verify(_FORMAT + framed[2], bytes.fromhex(framed[1].decode()))
    except StoreDamaged:
        raise BackupRefused(f"{path} was changed, or is of another box: its signature is not this box's.") from None
    return _parse(json.loads(framed[2]), path)


def _parse(facts: dict[str, Any], path: Path) -> Statement:
    """The statement of facts that this box signed; that no name leads out of a folder is seen to all the same."""
    files = {name: Copied(file["sha256"], file["bytes"]) for name, file in facts["files"].items()}
    for name, file in files.items():
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(file.sha256):
            raise BackupRefused(f"{path} names a file {name!r}, which no collection has.")
    return Statement(**facts | {"files": files})


def _stranger(top: int, files: int) -> str:
    """The first name that no backup gives, "" for none.

    What a backup left that was cut short lies under a digest or a temporary name.
    """
    names = {f"{name}" for name in os.listdir(top)} - {STATEMENT, FILES}
    names |= {f"{FILES}/{name}" for name in os.listdir(files) if not _DIGEST.fullmatch(name)}
    return min((name for name in names if not Path(name).name.startswith(durable.TEMPORARY)), default="")


def _copy_in(files: int, folder: Path, file: Copied, target: Path, tell: _Tally) -> None:
    """Raises BackupRefused where it is not the file that was backed up; DiskFull."""
    path = folder / FILES / file.sha256
    with durable.disk_errors(target):
        target.parent.mkdir(mode=0o700, exist_ok=True)
    with _file(files, file.sha256, path) as descriptor, durable.NewFile(target.parent) as copy:
        while piece := _read(descriptor, _PIECE_BYTES, copy.size_bytes, path):
            copy.write(piece)
            tell(len(piece), target.name)
            if copy.size_bytes > file.size_bytes:
                break
        if (copy.sha256(), copy.size_bytes) != (file.sha256, file.size_bytes):
            raise BackupRefused(f"{path} is damaged: it is not what was backed up.")
        copy.publish(target.name)


def _read(descriptor: int, size: int, offset: int, path: Path) -> bytes:
    try:
        return durable.read_at(descriptor, size, offset)
    except OSError as error:
        raise BackupRefused(f"{path} cannot be read: {error.strerror}.") from None
