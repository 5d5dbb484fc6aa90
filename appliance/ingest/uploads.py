"""Files that a caller sends in pieces, durable as they come: <directory>/<tenant>/uploads/<id>, a SealedLog.

Its first record says what it is; the others are the file's bytes, in order. One that nobody goes on with is dropped.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

from appliance.errors import ApplianceError, InvalidArgument, NotFound, QueueFull, RequestTooLarge, StoreDamaged
from appliance.ingest import durable
from appliance.ingest.keys import IngestKeys
from appliance.ingest.memfd import new_memfd, seal
from appliance.ingest.sealed_log import HEADER_BYTES, SealedLog
from appliance.types import Principal

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
    size_bytes: int = 0
    lock: RLock = field(default_factory=RLock)


class Uploads:
    """Blocking; safe to use from many threads. Of a user's uploads nobody else knows."""

    def __init__(self, directory: Path, keys: IngestKeys, max_bytes: int) -> None:
        self._directory, self._keys, self._max_bytes = directory, keys, max_bytes
        self._lock = RLock()
        self._open: dict[tuple[str, str], _Upload] = {}

    def begin(self, tenant: str, wanted: Wanted) -> str:
        """Its id. Raises QueueFull, DiskFull, KeyUnavailable."""
        folder = self._directory / tenant / "uploads"
        with self._lock, durable.disk_errors(folder):
            durable.make_directory(folder)
            self.drop_idle(tenant)
            if sum(1 for _ in folder.iterdir()) >= MAX_OPEN:
                raise QueueFull(f"{MAX_OPEN} uploads are open; finish one, or try again tomorrow.", 60.0)
            upload = secrets.token_hex(16)
            made = [wanted.user, wanted.path, wanted.collection, sorted(wanted.readers)]
            record = json.dumps(made).encode()
            log = SealedLog.create(folder / upload, self._keys, tenant, _context(tenant, upload), record)
            self._open[tenant, upload] = _Upload(wanted, log)
            return upload

    def size(self, caller: Principal, upload: str) -> int:
        """Bytes that are durable. Raises NotFound."""
        return self._find(caller, upload).size_bytes

    def append(self, caller: Principal, upload: str, offset: int, data: bytes) -> int:
        """The size then. Raises NotFound, InvalidArgument, RequestTooLarge, DiskFull."""
        found = self._find(caller, upload)
        with found.lock:
            if not 0 <= offset <= found.size_bytes:
                raise InvalidArgument.of("offset", f"must be at most {found.size_bytes}: so many bytes are here.")
            if offset + len(data) > self._max_bytes:
                raise RequestTooLarge(f"A file may have {self._max_bytes >> 20} MiB (`document_max_mib`).")
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
        """Drop those to which nothing came for a day. Raises StoreDamaged."""
        folder = self._directory / tenant / "uploads"
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # it was finished in this moment
                if path.stat().st_mtime < time.time() - IDLE_SECONDS:
                    self.drop(tenant, path.name)

    def _find(self, caller: Principal, upload: str) -> _Upload:
        with self._lock:
            key = caller.tenant, upload
            if key not in self._open and len(upload) == 32 and set(upload) <= set("0123456789abcdef"):
                with suppress(ApplianceError):
                    self._open[key] = self._read(*key)
            if key not in self._open or self._open[key].wanted.user != caller.user:
                raise NotFound(f"There is no upload {upload!r:.80}.")
            return self._open[key]

    def _read(self, tenant: str, upload: str) -> _Upload:
        """One of before a restart."""
        path = self._directory / tenant / "uploads" / upload
        log = SealedLog.open(path, self._keys, tenant, _context(tenant, upload))
        records = log.records()
        first = next(records, None)
        if first is None:
            raise StoreDamaged(f"{path} is damaged: it has lost its first record.")
        user, name, collection, readers = json.loads(first)
        return _Upload(Wanted(user, name, collection, frozenset(readers)), log, sum(map(len, records)))


def _pieces(log: SealedLog) -> Iterator[bytes]:
    records = log.records()
    next(records)
    return records


def _context(tenant: str, upload: str) -> bytes:
    return b"upload\x00" + f"{tenant}\x00{upload}".encode()
