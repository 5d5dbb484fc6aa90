"""Files that a caller sends in pieces, durable as they come: <directory>/<tenant>/uploads/<id>, a SealedLog.

Its first record says what it is: JSON of [user, path, collection, readers, begun (seconds since 1970)]; the others are
the file's bytes, in order. One that nobody goes on with is dropped.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock

from appliance.errors import ApplianceError, InvalidArgument, NotFound, QueueFull, StoreDamaged, UploadTooLarge
from appliance.ingest import durable
from appliance.ingest.keys import IngestKeys
from appliance.ingest.memfd import new_memfd, seal
from appliance.ingest.prefix import whole_id
from appliance.ingest.sealed_log import HEADER_BYTES, SealedLog
from appliance.types import Principal, Upload

MAX_OPEN = 32
"""Of a tenant."""

IDLE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an upload shall become. path: printable."""

    user: str
    path: str
    collection: str
    readers: frozenset[str]


@dataclass
class _Upload:
    wanted: Wanted
    log: SealedLog
    begun_seconds: float
    size_bytes: int = 0
    lock: RLock = field(default_factory=RLock)


class Uploads:
    """Blocking; safe to use from many threads. Who may list and cancel a tenant's may not go on with another user's."""

    def __init__(self, directory: Path, keys: IngestKeys, max_bytes: int) -> None:
        self._directory, self._keys, self._max_bytes = directory, keys, max_bytes
        self._lock = RLock()
        self._open: dict[tuple[str, str], _Upload] = {}

    def begin(self, tenant: str, wanted: Wanted, size_bytes: int = 0) -> str:
        """Its id. size_bytes: what it will have, 0: not known. Raises UploadTooLarge, QueueFull, DiskFull, …"""
        if size_bytes > self._max_bytes:
            raise UploadTooLarge.of(self._max_bytes)
        folder = self._directory / tenant / "uploads"
        with self._lock, durable.disk_errors(folder):
            durable.make_directory(folder)
            self.drop_idle(tenant)
            if sum(1 for _ in folder.iterdir()) >= MAX_OPEN:
                cancel = "cancel one that nobody goes on with: `appliance ingest uploads list`"
                raise QueueFull(f"{MAX_OPEN} uploads of this tenant are open: finish one, or {cancel}.", 60.0)
            upload, now = secrets.token_hex(16), time.time()
            record = json.dumps([wanted.user, wanted.path, wanted.collection, sorted(wanted.readers), now]).encode()
            log = SealedLog.create(folder / upload, self._keys, tenant, _context(tenant, upload), record)
            self._open[tenant, upload] = _Upload(wanted, log, now)
            return upload

    def list(self, tenant: str) -> tuple[Upload, ...]:
        """Of every user, those begun first before the others. Raises StoreDamaged."""
        folder, found = self._directory / tenant / "uploads", list[Upload]()
        with durable.disk_errors(folder):
            for path in filter(_is_upload, folder.iterdir() if folder.is_dir() else ()):
                with suppress(FileNotFoundError):  # it was finished in this moment
                    found.append(self._told(tenant, path))
        return tuple(sorted(found, key=lambda one: (one.create_time, one.id)))

    def cancel(self, tenant: str, upload: str) -> None:
        """Destroy what came of it, whoever sends it; named also by what one id alone begins with.

        Raises NotFound, InvalidArgument (several begin so), StoreDamaged.
        """
        folder = self._directory / tenant / "uploads"
        with self._lock:
            upload = whole_id(upload, (path.name for path in folder.iterdir()) if folder.is_dir() else (), "uploads")
            if not _is_id(upload) or not (folder / upload).exists():
                raise _not_found(upload)
            found = self._open.get((tenant, upload))
            if found is None:
                return self.drop(tenant, upload)
        with found.lock:  # what is being written of it is written first
            return self.drop(tenant, upload)

    def size(self, caller: Principal, upload: str) -> int:
        """Bytes that are durable. Raises NotFound."""
        return self._find(caller, upload).size_bytes

    def append(self, caller: Principal, upload: str, offset: int, data: bytes) -> int:
        """The size then. Raises NotFound, InvalidArgument, UploadTooLarge (it is dropped then), DiskFull."""
        found = self._find(caller, upload)
        with found.lock:
            self._require_open(caller, upload, found)
            if not 0 <= offset <= found.size_bytes:
                raise InvalidArgument.of("offset", f"must be at most {found.size_bytes}: so many bytes are here.")
            if offset + len(data) > self._max_bytes:
                self.drop(caller.tenant, upload)
                raise UploadTooLarge.of(self._max_bytes)
            if fresh := data[found.size_bytes - offset :]:
                found.log.append(fresh)
                found.size_bytes += len(fresh)
            return found.size_bytes

    def whole(self, caller: Principal, upload: str, sha256: str) -> tuple[Wanted, int]:
        """A sealed memfd of it, which the caller closes; it stays open until `drop`.

        Raises NotFound, InvalidArgument where it is another file: it is dropped then.
        """
        found = self._find(caller, upload)
        with found.lock:
            self._require_open(caller, upload, found)
            digest, offset, memfd = hashlib.sha256(), 0, new_memfd()
            try:
                for piece in _pieces(found.log):
                    digest.update(piece)
                    offset = durable.write_at(memfd, piece, offset)
                if digest.hexdigest() != sha256.lower():
                    self.drop(caller.tenant, upload)
                    raise InvalidArgument.of("sha256", "is not of the file that came here; send it again.")
                seal(memfd)
            except BaseException:
                os.close(memfd)
                raise
            return found.wanted, memfd

    def drop(self, tenant: str, upload: str) -> None:
        """Nothing of it stays. Raises StoreDamaged."""
        with self._lock:
            self._open.pop((tenant, upload), None)
            durable.destroy(self._directory / tenant / "uploads" / upload, HEADER_BYTES)

    def forget(self, tenant: str) -> None:
        """What is known of a tenant's uploads whose keys are gone."""
        with self._lock:
            self._open = {key: upload for key, upload in self._open.items() if key[0] != tenant}

    def drop_idle(self, tenant: str) -> None:
        """Drop those to which nothing came for a day, and what a crash left of one that was dropped. Raises
        StoreDamaged.
        """
        folder = self._directory / tenant / "uploads"
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # it was finished in this moment
                if path.stat().st_mtime < time.time() - IDLE_SECONDS or _is_destroyed(path):
                    self.drop(tenant, path.name)

    def _find(self, caller: Principal, upload: str) -> _Upload:
        with self._lock:
            found = self._load(caller.tenant, upload)
            if found is None or found.wanted.user != caller.user:
                raise _not_found(upload)
            return found

    def _require_open(self, caller: Principal, upload: str, found: _Upload) -> None:
        """Raises NotFound where it was cancelled while this call waited for another on it."""
        with self._lock:
            if self._open.get((caller.tenant, upload)) is not found:
                raise _not_found(upload)

    def _load(self, tenant: str, upload: str) -> _Upload | None:
        """None where there is none that can be read."""
        with self._lock:
            if (tenant, upload) not in self._open and _is_id(upload):
                with suppress(ApplianceError, FileNotFoundError):
                    self._open[tenant, upload] = self._read(tenant, upload)
            return self._open.get((tenant, upload))

    def _told(self, tenant: str, path: Path) -> Upload:
        """Raises FileNotFoundError."""
        status, found = path.stat(), self._load(tenant, path.name)
        changed = datetime.fromtimestamp(status.st_mtime, UTC)
        if found is None:
            return Upload(path.name, "", "", "", status.st_size, changed, changed)
        begun, wanted = datetime.fromtimestamp(found.begun_seconds, UTC), found.wanted
        return Upload(path.name, wanted.path, wanted.collection, wanted.user, found.size_bytes, begun, changed)

    def _read(self, tenant: str, upload: str) -> _Upload:
        """One of before a restart."""
        path = self._directory / tenant / "uploads" / upload
        log = SealedLog.open(path, self._keys, tenant, _context(tenant, upload))
        records = log.records()
        first = next(records, None)
        if first is None:
            raise StoreDamaged(f"{path} is damaged: it has lost its first record.")
        user, name, collection, readers, *begun = json.loads(first)
        wanted = Wanted(user, name, collection, frozenset(readers))
        return _Upload(wanted, log, begun[0] if begun else path.stat().st_mtime, sum(map(len, records)))


def _is_destroyed(path: Path) -> bool:
    """Overwritten from its first byte on, and not unlinked any more. Raises FileNotFoundError."""
    with path.open("rb") as file:
        return file.read(1) == b"\0"


def _is_upload(path: Path) -> bool:
    return _is_id(path.name)


def _is_id(upload: str) -> bool:
    return len(upload) == 32 and set(upload) <= set("0123456789abcdef")


def _not_found(upload: str) -> NotFound:
    return NotFound(f"There is no upload {upload!r:.80}.")


def _pieces(log: SealedLog) -> Iterator[bytes]:
    records = log.records()
    next(records)
    return records


def _context(tenant: str, upload: str) -> bytes:
    return b"upload\x00" + f"{tenant}\x00{upload}".encode()
