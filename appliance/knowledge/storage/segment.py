"""A sealed segment on disk: named sections in one immutable encrypted file, read by range.

    header   64   magic "AKSG", version u16, kind u16 (1), collection 16, file id 16, chunk bytes u32, chunk count u32,
                  plaintext bytes u64, zeros to 64; big-endian
    chunk         up to `chunk bytes` of plaintext as AES-256-GCM ciphertext and tag; nonce = chunk number,
                  AAD = header, number
    …

The file's name is the sha256 of all its bytes, which `Collection.verify` compares and opening does not: every chunk
that is read is authenticated for itself, bound to its file, its number and the count of chunks. The key is random and
the file's own, wrapped in the manifest, which also says where in the plaintext each section lies; sections start at
multiples of 64. A chunk swapped, cut, or taken from another file fails before anything parses it.

Chunks are 64 KiB (version 1: 1 MiB): a float16 row read alone costs one of them, about 30 µs when the disk has it in
memory. The version tells what the sections hold, too.
"""

import hashlib
import os
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.knowledge.storage.durable import Pace, unpaced
from appliance.knowledge.storage.resident import Kept, Memory
from appliance.ports import Buffer, Cipher

VERSION = 2
CHUNK_BYTES = 1 << 16
HEADER_BYTES = 64
_CHUNK_BYTES_OF_VERSION_1 = 1 << 20
_TAG_BYTES = 16
_ALIGN = 64
_KIND = 1
_HEADER = struct.Struct(">4sHH16s16sIIQ")
_NUMBER = struct.Struct(">I")
_SCAN_BYTES = 1 << 20  # a longer read is not for the cache of chunks: it would push everything else out
_READ_AHEAD_CHUNKS = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Layout:
    """A written segment: its name, its size on disk, and where (start, length) each section lies in the plaintext."""

    file: str
    size_bytes: int
    plaintext_bytes: int
    sections: Mapping[str, tuple[int, int]]
    chunk_bytes: int = _CHUNK_BYTES_OF_VERSION_1
    version: int = 1

    @property
    def chunk_count(self) -> int:
        return -(-self.plaintext_bytes // self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class SegmentId:
    """What every chunk of a segment is bound to."""

    collection: bytes
    file_id: bytes

    def header(self, plaintext_bytes: int, chunk_bytes: int = CHUNK_BYTES, version: int = VERSION) -> bytes:
        chunks = -(-plaintext_bytes // chunk_bytes)
        packed = _HEADER.pack(
            b"AKSG", version, _KIND, self.collection, self.file_id, chunk_bytes, chunks, plaintext_bytes
        )
        return packed.ljust(HEADER_BYTES, b"\0")


def write_segment(
    directory: Path, segment: SegmentId, cipher: Cipher, sections: Mapping[str, Buffer], pace: Pace = unpaced
) -> Layout:
    """Encrypt the sections into a new file, durable on return. Raises DiskFull."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, data in sections.items():
        start = -(-end // _ALIGN) * _ALIGN
        places[name] = (start, len(data))
        end = start + len(data)
    header = segment.header(end)
    with durable.NewFile(directory, pace) as file:
        file.write(header)
        for number, chunk in enumerate(_chunks(sections, places)):
            file.write(cipher.seal(_nonce(number), chunk, header + _NUMBER.pack(number)))
        file.publish(file.sha256())
        return Layout(file.sha256(), file.size_bytes, end, places, CHUNK_BYTES, VERSION)


def _chunks(sections: Mapping[str, Buffer], places: Mapping[str, tuple[int, int]]) -> Iterator[Buffer]:
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
            yield bytes(buffer) + view[:room] if buffer else view[:room]
            view, buffer = view[room:], bytearray()
        buffer += view
    if buffer:
        yield bytes(buffer)


class SegmentFile:
    """A segment opened for reading by range. Safe to use from many threads.

    The file stays open while this object lives: a segment that compaction unlinked is read on by those who hold it.
    """

    def __init__(self, directory: Path, layout: Layout, segment: SegmentId, cipher: Cipher, memory: Memory) -> None:
        """Reads the header alone. Raises StoreDamaged, naming the file, where it is missing, or header or size are
        not those that were written."""
        self.path = directory / layout.file
        self._layout, self._cipher, self._memory, self._file_id = layout, cipher, memory, segment.file_id
        self._header = segment.header(layout.plaintext_bytes, layout.chunk_bytes, layout.version)
        self._kept: list[Kept[bytes] | None] = [None] * layout.chunk_count
        with durable.disk_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, _let_go, self._descriptor, memory, segment.file_id)
        with durable.disk_errors(self.path):
            header = durable.read_at(self._descriptor, HEADER_BYTES, 0)
            size_bytes = os.fstat(self._descriptor).st_size
        if header != self._header:
            raise StoreDamaged(f"{self.path} is damaged: its header is not the one that was written.")
        if size_bytes != layout.size_bytes:
            raise StoreDamaged(f"{self.path} is damaged: it has {size_bytes} of {layout.size_bytes} bytes.")

    @property
    def version(self) -> int:
        """Of the format of its sections."""
        return self._layout.version

    def size(self, section: str) -> int:
        """The bytes of a section; 0 where there is none."""
        return self._layout.sections.get(section, (0, 0))[1]

    def hot(self, part: str, size_bytes: int, load: Callable[[], T]) -> T:
        """What `load` makes of this segment, kept in memory while there is room for it in the whole library.

        part: a name for it in this segment. size_bytes: what it takes in memory. The value must not hold this file, or
        neither is let go before the other.
        """
        return self._memory.hot.get((self._file_id, part), size_bytes, load)

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
        chunk_bytes = self._layout.chunk_bytes
        first, last = (at + start) // chunk_bytes, (at + start + length - 1) // chunk_bytes
        skip = at + start - first * chunk_bytes
        if first == last:
            return self._chunk(first)[skip : skip + length]
        numbers = range(first, last + 1)
        chunks = self._scan(numbers) if length > _SCAN_BYTES else map(self._chunk, numbers)
        return b"".join(chunks)[skip : skip + length]

    def rows(self, section: str, row_bytes: int, rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Rows of a section of rows of `row_bytes` each, uint8 [len(rows), row_bytes], each chunk decrypted once.

        Raises StoreDamaged, naming the file.
        """
        return np.frombuffer(self.rows_joined(section, row_bytes, rows), np.uint8).reshape(len(rows), row_bytes)

    def rows_joined(self, section: str, row_bytes: int, rows: NDArray[np.integer]) -> bytes:
        """As `rows`, one row after another."""
        at, size = self._layout.sections.get(section, (0, 0))
        chunk_bytes, held = self._layout.chunk_bytes, dict[int, bytes]()
        pieces: list[bytes] = []
        for row in rows.tolist():  # a search reads about ten, for which this is faster than numpy
            start = row * row_bytes
            if not 0 <= start <= size - row_bytes:
                raise StoreDamaged(f"{self.path} is damaged: it points outside its own section {section!r}.")
            number, skip = divmod(at + start, chunk_bytes)
            if number not in held:
                held[number] = self._chunk(number)
            piece = held[number][skip : skip + row_bytes]
            while len(piece) < row_bytes:  # it goes on in the next chunk
                number += 1
                if number not in held:
                    held[number] = self._chunk(number)
                piece += held[number][: row_bytes - len(piece)]
            pieces.append(piece)
        return b"".join(pieces)

    def check(self) -> Iterator[str]:
        """Read every byte: one problem for each chunk that is not what was written, then one for a wrong name."""
        digest = hashlib.sha256(self._header)
        for first in range(0, self._layout.chunk_count, _READ_AHEAD_CHUNKS):
            for number, sealed in self._sealed(range(first, min(first + _READ_AHEAD_CHUNKS, self._layout.chunk_count))):
                digest.update(sealed)
                try:
                    self._open(number, sealed)
                except StoreDamaged:
                    yield f"Chunk {number} is not what was written."
        if digest.hexdigest() != self._layout.file:
            yield "Its content is not what its name says."

    def _chunk(self, number: int) -> bytes:
        kept = self._kept[number]
        if kept is not None and (chunk := kept.value) is not None:
            kept.used = True
            return chunk

        def load() -> bytes:
            return next(self._scan(range(number, number + 1)))

        chunk, self._kept[number] = self._memory.chunks.keep((self._file_id, number), self._layout.chunk_bytes, load)
        return chunk

    def _scan(self, numbers: range) -> Iterator[bytes]:
        """Chunks past the cache, several a read."""
        for first in numbers[::_READ_AHEAD_CHUNKS]:
            for number, sealed in self._sealed(range(first, min(first + _READ_AHEAD_CHUNKS, numbers.stop))):
                try:
                    yield self._open(number, sealed)
                except StoreDamaged:
                    raise StoreDamaged(f"{self.path} is damaged in chunk {number}.") from None

    def _sealed(self, numbers: range) -> Iterator[tuple[int, memoryview]]:
        step = self._layout.chunk_bytes + _TAG_BYTES
        with durable.disk_errors(self.path):
            raw = memoryview(durable.read_at(self._descriptor, step * len(numbers), HEADER_BYTES + numbers[0] * step))
        for number in numbers:
            start = (number - numbers[0]) * step
            yield number, raw[start : start + step]

    def _open(self, number: int, sealed: Buffer) -> bytes:
        return self._cipher.open(_nonce(number), sealed, self._header + _NUMBER.pack(number))


def _let_go(descriptor: int, memory: Memory, file_id: bytes) -> None:
    """A segment that nobody holds: its file is closed, and nothing of what was decrypted of it is kept."""
    os.close(descriptor)
    memory.hot.forget(file_id)
    memory.chunks.forget(file_id)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
