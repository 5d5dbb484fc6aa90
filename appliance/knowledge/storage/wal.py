"""The write-ahead log: what was acknowledged and is not yet in a segment.

    header   64   magic "AKWL", version u16, zeros u16, collection 16, file id 16, zeros to 64
    record   16   length u32 of the ciphertext, seq u64, CRC-32 over file id, length and seq
             n    AES-256-GCM ciphertext and tag; nonce = seq; n is a multiple of 16
                  plaintext: length u32 of the payload, payload, zeros
    …

AAD of a record: header, length, seq, and the tag of the record before (for the first: zeros). Integers are big-endian.
The key is random, one a file, wrapped in the manifest that names the file. A log is appended to by the process that
made it and by no other; seq runs on from log to log.

What the end of a log may look like. A write that a kill or a power cut ended early leaves fewer bytes than its head
promises or, where the file system had grown the file first, whole 512-byte sectors of zeros, which ciphertext never
holds. Such a last record was never acknowledged, and is cut. Everything else that does not verify is damage: a
complete record whose tag or head fails, anything at all that has a later record behind it.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.ports import Cipher

HEADER_BYTES = 64
SECTOR_BYTES = 512
_VERSION = 1
_HEADER = struct.Struct(">4sHH16s16s")
_HEAD = struct.Struct(">IQI")
_LENGTH = struct.Struct(">I")
_TAG_BYTES = 16
_ALIGN = 16
LONGEST_PAYLOAD = (1 << 32) - 64


@dataclass(frozen=True, slots=True)
class WalId:
    """What a log's every record is bound to."""

    collection: bytes
    file_id: bytes

    @property
    def name(self) -> str:
        return self.file_id.hex()

    @property
    def header(self) -> bytes:
        return _HEADER.pack(b"AKWL", _VERSION, 0, self.collection, self.file_id).ljust(HEADER_BYTES, b"\0")

    def head(self, length: int, seq: int) -> bytes:
        return _HEAD.pack(length, seq, zlib.crc32(self.file_id + struct.pack(">IQ", length, seq)))

    def aad(self, length: int, seq: int, previous_tag: bytes) -> bytes:
        return self.header + struct.pack(">IQ", length, seq) + previous_tag


class WalWriter:
    """A new log. One writer at a time. After a failed append nothing more may be appended: start another log."""

    def __init__(self, directory: Path, wal: WalId, cipher: Cipher, first_seq: int) -> None:
        """Makes the file, durable on return. Raises DiskFull."""
        self.path = directory / wal.name
        self.end_bytes = HEADER_BYTES
        self.next_seq = first_seq
        self.file_id = wal.file_id
        self._wal, self._cipher, self._previous_tag = wal, cipher, bytes(_TAG_BYTES)
        durable.write_file(self.path, wal.header)
        with durable.disk_errors(self.path):
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)

    def append(self, payload: bytes) -> int:
        """Write one record; when it returns the record survives power loss. Returns its seq.

        Raises DiskFull, and then nothing of the record stays.
        """
        plaintext = _LENGTH.pack(len(payload)) + payload
        plaintext += bytes(-len(plaintext) % _ALIGN)
        seq, length = self.next_seq, len(plaintext) + _TAG_BYTES
        sealed = self._cipher.seal(_nonce(seq), plaintext, self._wal.aad(length, seq, self._previous_tag))
        with durable.disk_errors(self.path):
            try:
                durable.write_at(self._descriptor, self._wal.head(length, seq) + sealed, self.end_bytes)
                os.fdatasync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self.end_bytes)
                os.fdatasync(self._descriptor)
                raise
        self._previous_tag = sealed[-_TAG_BYTES:]
        self.end_bytes += _HEAD.size + length
        self.next_seq = seq + 1
        return seq

    def close(self) -> None:
        os.close(self._descriptor)


class WalReader:
    """An old log, replayed once from its start. After that `end_bytes` and `next_seq` say where it ended."""

    def __init__(self, directory: Path, wal: WalId, cipher: Cipher, first_seq: int) -> None:
        self.path = directory / wal.name
        self.end_bytes = HEADER_BYTES
        self.next_seq = first_seq
        self.cut_bytes = 0
        self._wal, self._cipher, self._previous_tag = wal, cipher, bytes(_TAG_BYTES)

    def records(self, end_bytes: int | None) -> Iterator[bytes]:
        """The payloads in order. end_bytes: where a log ended that a later manifest closed; None for the last log.

        Raises StoreDamaged, naming the file and the place.
        """
        with durable.disk_errors(self.path), open(self.path, "rb", buffering=0) as file:
            if end_bytes is None:  # its writer may have died before a sync, and a manifest will say that this is there
                os.fdatasync(file.fileno())
            stop = os.fstat(file.fileno()).st_size if end_bytes is None else end_bytes
            if durable.read_at(file.fileno(), HEADER_BYTES, 0) != self._wal.header:
                raise StoreDamaged(f"{self.path} is damaged: its header is not the one that was written.")
            while self.end_bytes < stop:
                sealed = self._read(file.fileno())
                payload = sealed and self._open(sealed)
                if not sealed or payload is None:
                    self._cut(file.fileno(), stop, closed=end_bytes is not None)
                    return
                yield payload
                self._previous_tag = sealed[-_TAG_BYTES:]
                self.end_bytes += _HEAD.size + len(sealed)
                self.next_seq += 1

    def _read(self, descriptor: int) -> bytes:
        """The next record's ciphertext; nothing where it is not all there."""
        head = durable.read_at(descriptor, _HEAD.size, self.end_bytes)
        length = self._promised(head)
        sealed = durable.read_at(descriptor, length, self.end_bytes + _HEAD.size)
        return sealed if len(sealed) == length else b""

    def _promised(self, head: bytes) -> int:
        """How many bytes of ciphertext a head promises; 0 where it is no head of the next record."""
        if len(head) < _HEAD.size:
            return 0
        length: int = _HEAD.unpack_from(head)[0]
        return length if head[: _HEAD.size] == self._wal.head(length, self.next_seq) else 0

    def _open(self, sealed: bytes) -> bytes | None:
        aad = self._wal.aad(len(sealed), self.next_seq, self._previous_tag)
        try:
            plaintext = self._cipher.open(_nonce(self.next_seq), sealed, aad)
        except StoreDamaged:
            return None
        (length,) = _LENGTH.unpack_from(plaintext)
        return plaintext[_LENGTH.size : _LENGTH.size + length]

    def _cut(self, descriptor: int, stop: int, closed: bool) -> None:
        """Accept the rest of the file as a torn write, or raise StoreDamaged."""
        rest = durable.read_at(descriptor, stop - self.end_bytes, self.end_bytes)
        if closed or not self._is_torn(rest):
            raise StoreDamaged(f"{self.path} is damaged: the record at byte {self.end_bytes} is not what was written.")
        self.cut_bytes = len(rest)

    def _is_torn(self, rest: bytes) -> bool:
        promised = self._promised(rest)
        if len(rest) < _HEAD.size + promised:
            return True
        written = rest[: _HEAD.size + promised] if promised else rest
        return _lacks_a_sector(written, self.end_bytes) and not self._has_later_record(rest)

    def _has_later_record(self, rest: bytes) -> bool:
        """Whether a head of a record to come lies anywhere in `rest`; by chance once in 2**70 bytes."""
        heads = np.frombuffer(rest, [("length", ">u4"), ("seq", ">u8"), ("crc", ">u4")], len(rest) // _HEAD.size)
        near = heads[(heads["seq"] > self.next_seq) & (heads["seq"] <= self.next_seq + len(heads))]
        return any(head.tobytes() == self._wal.head(int(head["length"]), int(head["seq"])) for head in near)


def _lacks_a_sector(written: bytes, offset: int) -> bool:
    """Whether a 512-byte sector of the file, or what `written` at `offset` has of it, is all zeros."""
    first = -offset % SECTOR_BYTES
    borders = [0, *range(first, len(written), SECTOR_BYTES), len(written)]
    return any(start < end and not any(written[start:end]) for start, end in pairwise(borders))


def _nonce(seq: int) -> bytes:
    return seq.to_bytes(12, "big")
