"""A file that grows by encrypted records: an ingestion's ledger, an upload's bytes.

    header   72   magic "AIGL", version u16, zeros u16, the file's key wrapped by the tenant's ingest key (61), zeros
    record    8   length u32 of the ciphertext, CRC-32 over context, place and length
             12   a random nonce
              n   AES-256-GCM ciphertext and tag
    …

AAD of a record: what the log is of, its place in the log (u64), and the tag of the record before (the first: zeros).
Integers are big-endian. The last record is cut off where it is too short, ends in zeros or lacks a sector, as a crash
or a power cut leaves it: it was not acknowledged. Anything else that does not verify is damage.
"""

import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Lock

import structlog

from appliance.errors import StoreDamaged
from appliance.ingest import durable
from appliance.ingest.keys import WRAPPED_BYTES, IngestKeys
from appliance.ports import Cipher

HEADER_BYTES = 72
_HEADER = struct.Struct(">4sHH")
_HEAD = struct.Struct(">II12s")
_TAG_BYTES = 16
_SECTOR_BYTES = 512
log = structlog.get_logger()


class SealedLog:
    """Safe to use from many threads. context: what it is of; a log of something else does not open in its place."""

    def __init__(self, path: Path, context: bytes, cipher: Cipher) -> None:
        self.path = path
        self.end_bytes = HEADER_BYTES
        self._context, self._cipher = context, cipher
        self._count, self._previous_tag = 0, bytes(_TAG_BYTES)
        self._lock = Lock()

    @classmethod
    def create(cls, path: Path, keys: IngestKeys, tenant: str, context: bytes, *records: bytes) -> "SealedLog":
        """A new log, in place of one of that name if there is one; durable on return.

        Raises DiskFull, KeyUnavailable, StoreDamaged.
        """
        cipher, wrapped = keys.new(tenant, context)
        made = cls(path, context, cipher)
        pieces = [(_HEADER.pack(b"AIGL", 1, 0) + wrapped).ljust(HEADER_BYTES, b"\0"), *map(made._sealed, records)]
        durable.replace_file(path, pieces)
        made.end_bytes = sum(map(len, pieces))
        return made

    @classmethod
    def open(cls, path: Path, keys: IngestKeys, tenant: str, context: bytes) -> "SealedLog":
        """Its records are read by `records`. Raises StoreDamaged, KeyUnavailable."""
        with durable.disk_errors(path), path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        if header[: _HEADER.size] != _HEADER.pack(b"AIGL", 1, 0) or len(header) < HEADER_BYTES:
            raise StoreDamaged(f"{path} is damaged: its header is not the one that was written.")
        wrapped = header[_HEADER.size : _HEADER.size + WRAPPED_BYTES]
        return cls(path, context, keys.open(tenant, wrapped, context))

    def records(self) -> Iterator[bytes]:
        """From the first on; at the end the torn tail is cut off, if the log has one, and it may be appended to.

        Raises StoreDamaged, naming the file and the place.
        """
        self.end_bytes, self._count, self._previous_tag = HEADER_BYTES, 0, bytes(_TAG_BYTES)
        with durable.disk_errors(self.path), self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(HEADER_BYTES)
            while self.end_bytes < size:
                head = file.read(_HEAD.size)
                length = self._promised(head)
                sealed = file.read(length) if self.end_bytes + _HEAD.size + length <= size else b""
                record = self._opened(head, sealed) if sealed else None
                if record is None:
                    self._cut(file.fileno(), size, length)
                    return
                yield record
                self.end_bytes += _HEAD.size + length

    def append(self, record: bytes) -> None:
        """Durable on return; when it raises nothing of it stays. Raises DiskFull, StoreDamaged."""
        with self._lock:
            before = self._count, self._previous_tag
            sealed = self._sealed(record)
            try:
                durable.append(self.path, sealed, self.end_bytes)
            except BaseException:
                self._count, self._previous_tag = before
                raise
            self.end_bytes += len(sealed)

    def _sealed(self, record: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        sealed = self._cipher.seal(nonce, record, self._aad())
        head = _HEAD.pack(len(sealed), self._crc(len(sealed), self._count), nonce)
        self._count, self._previous_tag = self._count + 1, sealed[-_TAG_BYTES:]
        return head + sealed

    def _opened(self, head: bytes, sealed: bytes) -> bytes | None:
        try:
            record = self._cipher.open(_HEAD.unpack(head)[2], sealed, self._aad())
        except StoreDamaged:
            return None
        self._count, self._previous_tag = self._count + 1, sealed[-_TAG_BYTES:]
        return record

    def _promised(self, head: bytes) -> int:
        """How many bytes of ciphertext a head promises; 0 where it is no head of the next record."""
        if len(head) < _HEAD.size:
            return 0
        length, crc, _ = _HEAD.unpack(head)
        return int(length) if crc == self._crc(length, self._count) else 0

    def _crc(self, length: int, place: int) -> int:
        return zlib.crc32(self._context + struct.pack(">QI", place, length))

    def _aad(self) -> bytes:
        return self._context + struct.pack(">Q", self._count) + self._previous_tag

    def _cut(self, fd: int, size: int, length: int) -> None:
        """Cut off a torn record, of which the head promises `length` bytes, 0: it has none. Raises StoreDamaged."""
        rest = os.pread(fd, size - self.end_bytes, self.end_bytes)
        if not self._is_torn(rest, length):
            raise StoreDamaged(f"{self.path} is damaged: the record at byte {self.end_bytes} is not what was written.")
        log.warning("ingest.log_cut", cut_bytes=len(rest))
        os.truncate(self.path, self.end_bytes)

    def _is_torn(self, rest: bytes, length: int) -> bool:
        if len(rest) < _HEAD.size + length:
            return True
        written = rest[: _HEAD.size + length] if length else rest
        lacks = not any(rest[-_TAG_BYTES:]) or _lacks_a_sector(written, self.end_bytes)
        return lacks and not self._has_later_record(rest)

    def _has_later_record(self, rest: bytes) -> bool:
        """Whether the head of the record after this one lies anywhere in `rest`."""
        for place in range(1, len(rest) - _HEAD.size + 1):
            length, crc = struct.unpack_from(">II", rest, place)
            if length <= len(rest) and crc == self._crc(length, self._count + 1):
                return True
        return False


def _lacks_a_sector(written: bytes, offset: int) -> bool:
    """Whether a 512-byte sector of the file, or what `written` at `offset` has of it, is all zeros."""
    first = -offset % _SECTOR_BYTES
    borders = [0, *range(first, len(written), _SECTOR_BYTES), len(written)]
    return any(start < end and not any(written[start:end]) for start, end in pairwise(borders))
