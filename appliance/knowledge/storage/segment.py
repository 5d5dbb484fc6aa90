"""A sealed segment on disk: named sections in one immutable encrypted file, read by range.

    header   64   magic "AKSG", version u16, kind u16 (1), collection 16, file id 16, chunk bytes u32, chunk count u32,
                  plaintext bytes u64, zeros to 64; big-endian
    chunk         up to 1 MiB of plaintext as AES-256-GCM ciphertext and tag; nonce = chunk number, AAD = header, number
    …

The file's name is the sha256 of all its bytes. Its key is random and its own, wrapped in the manifest, which also says
where in the plaintext each section lies; sections start at multiples of 64. A chunk swapped, cut, or taken from another
file fails before anything parses it.
"""

import hashlib
import os
import struct
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.ports import Buffer, Cipher

CHUNK_BYTES = 1 << 20
HEADER_BYTES = 64
_TAG_BYTES = 16
_ALIGN = 64
_VERSION = 1
_KIND = 1
_HEADER = struct.Struct(">4sHH16s16sIIQ")
_NUMBER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class SegmentId:
    """What every chunk of a segment is bound to."""

    collection: bytes
    file_id: bytes

    def header(self, plaintext_bytes: int) -> bytes:
        chunks = -(-plaintext_bytes // CHUNK_BYTES)
        return _HEADER.pack(
            b"AKSG", _VERSION, _KIND, self.collection, self.file_id, CHUNK_BYTES, chunks, plaintext_bytes
        ).ljust(HEADER_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class Layout:
    """A written segment: its name, its size on disk, and where (start, length) each section lies in the plaintext."""

    file: str
    size_bytes: int
    plaintext_bytes: int
    sections: Mapping[str, tuple[int, int]]


class ChunkCache:
    """Decrypted chunks of one collection, the last used kept, bounded in bytes. Safe to use from many threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._chunks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[bytes, int]) -> bytes | None:
        with self._lock:
            if (chunk := self._chunks.get(key)) is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: tuple[bytes, int], chunk: bytes) -> None:
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = chunk
                self._used_bytes += len(chunk)
            while self._used_bytes > self._capacity_bytes and len(self._chunks) > 1:
                self._used_bytes -= len(self._chunks.popitem(last=False)[1])


def write_segment(directory: Path, segment: SegmentId, cipher: Cipher, sections: Mapping[str, Buffer]) -> Layout:
    """Encrypt the sections into a new file, durable on return. Raises DiskFull."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, data in sections.items():
        start = -(-end // _ALIGN) * _ALIGN
        places[name] = (start, len(data))
        end = start + len(data)
    header = segment.header(end)
    with durable.NewFile(directory) as file:
        file.write(header)
        for number, chunk in enumerate(_chunks(sections, places)):
            file.write(cipher.seal(_nonce(number), chunk, header + _NUMBER.pack(number)))
        file.publish(file.sha256())
        return Layout(file.sha256(), file.size_bytes, end, places)


def _chunks(sections: Mapping[str, Buffer], places: Mapping[str, tuple[int, int]]) -> Iterator[bytes]:
    """The plaintext, CHUNK_BYTES at a time."""
    buffer = bytearray()
    position = 0
    for name, data in sections.items():
        start, length = places[name]
        buffer += bytes(start - position)
        position = start + length
        view = memoryview(data).cast("B")
        while len(buffer) + len(view) >= CHUNK_BYTES:
            room = CHUNK_BYTES - len(buffer)
            yield bytes(buffer) + view[:room]
            view, buffer = view[room:], bytearray()
        buffer += view
    if buffer:
        yield bytes(buffer)


class SegmentFile:
    """A segment opened for reading by range. Safe to use from many threads.

    The file stays open while this object lives: a segment that compaction unlinked is read on by those who hold it.
    """

    def __init__(self, directory: Path, layout: Layout, segment: SegmentId, cipher: Cipher, cache: ChunkCache) -> None:
        """Raises StoreDamaged, naming the file, where it is missing or its content is not what its name says."""
        self.path = directory / layout.file
        self._layout, self._cipher, self._cache, self._file_id = layout, cipher, cache, segment.file_id
        self._header = segment.header(layout.plaintext_bytes)
        with durable.disk_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._check()

    def size(self, section: str) -> int:
        """The bytes of a section; 0 where there is none."""
        return self._layout.sections.get(section, (0, 0))[1]

    def read(self, section: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes of a section from `start`, to its end by default; only the chunks they lie in are decrypted.

        Raises StoreDamaged, naming the file.
        """
        at, size = self._layout.sections.get(section, (0, 0))
        length = size - start if length is None else length
        if not 0 <= start <= start + length <= size:
            raise StoreDamaged(f"{self.path} is damaged: it points outside its own section {section!r}.")
        if not length:
            return b""
        first, last = (at + start) // CHUNK_BYTES, (at + start + length - 1) // CHUNK_BYTES
        skip = at + start - first * CHUNK_BYTES
        if first == last:
            return self._chunk(first)[skip : skip + length]
        joined = b"".join(map(self._chunk, range(first, last + 1)))
        return joined[skip : skip + length]

    def _chunk(self, number: int) -> bytes:
        if (cached := self._cache.get((self._file_id, number))) is not None:
            return cached
        offset = HEADER_BYTES + number * (CHUNK_BYTES + _TAG_BYTES)
        with durable.disk_errors(self.path):
            sealed = durable.read_at(self._descriptor, CHUNK_BYTES + _TAG_BYTES, offset)
        try:
            chunk = self._cipher.open(_nonce(number), sealed, self._header + _NUMBER.pack(number))
        except StoreDamaged:
            raise StoreDamaged(f"{self.path} is damaged in chunk {number}.") from None
        self._cache.put((self._file_id, number), chunk)
        return chunk

    def _check(self) -> None:
        digest = hashlib.sha256()
        with durable.disk_errors(self.path):
            for offset in range(0, max(os.fstat(self._descriptor).st_size, 1), CHUNK_BYTES):
                piece = durable.read_at(self._descriptor, CHUNK_BYTES, offset)
                if not offset and piece[:HEADER_BYTES] != self._header:
                    raise StoreDamaged(f"{self.path} is damaged: its header is not the one that was written.")
                digest.update(piece)
        if digest.hexdigest() != self._layout.file:
            raise StoreDamaged(f"{self.path} is damaged: its content is not what its name says.")


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
