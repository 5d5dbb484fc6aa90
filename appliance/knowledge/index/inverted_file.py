"""The bytes of an inverted index, written and read.

Two sections, little endian. `postings` stays in memory:

    magic "POSTING\\x01", u32 rows, u32 terms, u64 vocabulary bytes, u64 list bytes
    u64 list end[terms]        where the list of each term ends in `lists`; it begins where the one before ends
    u32 term end[terms]        the same for `vocabulary`
    u32 length[rows]           terms of each row, with those of its heading as often as they count (inversion.py)
    u8  kind[terms]            0: dense; else the bytes of a gap, 1, 2 or 4, and 8 more where counts follow
    vocabulary                 index terms (analysis.py), ascending by bytes, each of 1 to 255
    lists                      dense: u8 count[rows], 0 where the row has not the term
                               else gap[n], then u8 count[n], or no counts where all are 1

A gap is a row less the row before it, of the first the row itself. Counts end at 255. `positions` is read by range,
when a phrase is asked for:

    u64 end[terms]             from where the positions begin
    positions                  of each term: for each of its rows as many as its count, ascending; u8, u16 or u32 as the
                               greatest needs, which the bytes for so many positions tell
"""

import struct
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.index.inversion import Inversion, Part
from appliance.ports import Buffer

ReadPositions = Callable[[int, int], Buffer]
"""From which byte of `positions`, how many. Raises StoreDamaged."""

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

_MAGIC = b"POSTING\x01"
_HEADER = struct.Struct("<8sIIQQ")
_DENSE = 0
_COUNTED = 8
_WIDTHS = (1, 2, 4)
_POSTING_BYTES = np.array([1, 1, 2, 0, 4, 0, 0, 0, 0, 2, 3, 0, 5])  # by kind; 0 for what is none
_MAX_TERM_BYTES = 255
_END_BYTES = 8
_NO_INTEGERS = np.zeros(0, np.int64)
_NO_BYTES = np.zeros(0, np.uint8)

_T = TypeVar("_T", bound=np.generic)


def pack(inversion: Inversion) -> dict[str, bytes]:
    """The sections `postings` and `positions`; the same rows give the same bytes."""
    list_sizes, kinds, lists, position_sizes, positions = zip(
        (_NO_INTEGERS, _NO_BYTES, _NO_BYTES, _NO_INTEGERS, _NO_BYTES),
        *((*_pack_lists(part, len(inversion.lengths)), *_pack_positions(part)) for part in inversion.parts()),
        strict=True,
    )
    vocabulary = b"".join(inversion.vocabulary)
    list_bytes = sum(map(len, lists))
    postings = (
        _HEADER.pack(_MAGIC, len(inversion.lengths), len(inversion.vocabulary), len(vocabulary), list_bytes),
        np.cumsum(np.concatenate(list_sizes), dtype="<u8"),
        np.cumsum([len(term) for term in inversion.vocabulary], dtype="<u4"),
        inversion.lengths.astype("<u4"),
        *kinds,
        vocabulary,
        *lists,
    )
    ends = np.cumsum(np.concatenate(position_sizes), dtype="<u8")
    return {"postings": b"".join(postings), "positions": b"".join((ends.tobytes(), *positions))}


def _pack_lists(part: Part, rows: int) -> tuple[Integers, Bytes, Bytes]:
    """The size of each list in bytes, its kind, and the lists."""
    starts = np.cumsum(part.sizes) - part.sizes
    gap = np.diff(part.rows, prepend=0)
    gap[starts] = part.rows[starts]
    widths = _narrowest(gap, starts)
    counted = np.maximum.reduceat(part.counts, starts) > 1
    dense = part.sizes * (widths + counted) >= rows
    sizes = np.where(dense, rows, part.sizes * (widths + counted))
    begins = np.cumsum(sizes) - sizes
    lists = np.zeros(sizes.sum(), np.uint8)
    term, nth = _numbered(part.sizes)
    is_dense = dense[term]
    lists[begins[term[is_dense]] + part.rows[is_dense]] = part.counts[is_dense]
    _scatter(lists, begins[term] + nth * widths[term], gap, np.where(is_dense, 0, widths[term]))
    with_count = np.flatnonzero(~is_dense & counted[term])
    of = term[with_count]
    lists[begins[of] + part.sizes[of] * widths[of] + nth[with_count]] = part.counts[with_count]
    return sizes, np.where(dense, _DENSE, widths + _COUNTED * counted).astype(np.uint8), lists


def _pack_positions(part: Part) -> tuple[Integers, Bytes]:
    """How many bytes the positions of each term are, and the positions."""
    sizes = np.add.reduceat(part.counts, np.cumsum(part.sizes) - part.sizes)
    widths = _narrowest(part.positions, np.cumsum(sizes) - sizes)
    packed = np.zeros((sizes * widths).sum(), np.uint8)
    begins = np.cumsum(sizes * widths) - sizes * widths
    term, nth = _numbered(sizes)
    _scatter(packed, begins[term] + nth * widths[term], part.positions, widths[term])
    return sizes * widths, packed


def _numbered(sizes: Integers) -> tuple[Integers, Integers]:
    """Of runs of those sizes, for each member: which run it is in, and as which of it."""
    run = np.repeat(np.arange(len(sizes)), sizes)
    return run, np.arange(len(run)) - (np.cumsum(sizes) - sizes)[run]


def _narrowest(values: Integers, starts: Integers) -> Integers:
    """The bytes that each run of values needs for each of its values; starts: of the runs, none empty."""
    greatest = np.maximum.reduceat(values, starts)
    return 1 << ((greatest >= 1 << 8).astype(np.int64) + (greatest >= 1 << 16))


def _scatter(target: Bytes, at: Integers, values: Integers, widths: Integers) -> None:
    """Writes each value at its place, as an integer of its width."""
    for width in _WIDTHS:
        chosen = np.flatnonzero(widths == width)
        if len(chosen):
            octets = values[chosen].astype(f"<u{width}").view(np.uint8).reshape(-1, width)
            target[at[chosen, None] + np.arange(width)] = octets


class InvertedFile:
    """The sections opened. Nothing that they say leads outside of them, whatever was done to their bytes.

    languages: the numbers of those that its terms are of.
    """

    def __init__(self, postings: Buffer, read_positions: ReadPositions) -> None:
        """postings: the section, whose memory is used as it is. Raises StoreDamaged."""
        self._read_positions = read_positions
        reader = _Reader(postings)
        self.rows, terms, vocabulary_bytes, list_bytes = reader.header()
        self._list_ends = reader.take(np.dtype("<u8"), terms)
        self._term_ends = reader.take(np.dtype("<u4"), terms)
        self.lengths = reader.take(np.dtype("<u4"), self.rows)
        self._kinds = reader.take(np.dtype("u1"), terms)
        vocabulary = reader.take(np.dtype("u1"), vocabulary_bytes)
        self._vocabulary = vocabulary.data
        self._lists = reader.take(np.dtype("u1"), list_bytes)
        _check(reader.left == 0)
        starts = _parted(self._term_ends, vocabulary_bytes)
        _check(bool((self._term_ends - starts <= _MAX_TERM_BYTES).all()))
        self.languages = frozenset(np.flatnonzero(np.bincount(vocabulary[starts])).tolist())
        self._check_lists(_parted(self._list_ends, list_bytes))

    def _check_lists(self, starts: Integers) -> None:
        sizes = self._list_ends.astype(np.int64) - starts
        _check(bool((self._kinds < len(_POSTING_BYTES)).all()))
        posting_bytes = _POSTING_BYTES[self._kinds]
        _check(bool((posting_bytes > 0).all()))
        _check(bool((sizes % posting_bytes == 0).all()) and bool((sizes[self._kinds == _DENSE] == self.rows).all()))

    @property
    def terms(self) -> int:
        """How many; they are numbered from 0."""
        return len(self._kinds)

    def find(self, term: bytes) -> int | None:
        """The number of an index term, None where no row holds it."""
        at = bisect_left(range(len(self._kinds)), term, key=self._term)
        return at if at < len(self._kinds) and self._term(at) == term else None

    def _term(self, at: int) -> bytes:
        start = self._term_ends.item(at - 1) if at else 0
        return self._vocabulary[start : self._term_ends.item(at)].tobytes()

    def dense(self, at: int) -> Bytes | None:
        """How often each row holds the term, uint8 [rows], where its list is dense."""
        if self._kinds.item(at) != _DENSE:
            return None
        end = self._list_ends.item(at)
        return self._lists[end - self.rows : end]

    def sparse(self, at: int) -> tuple[Integers, Bytes]:
        """The rows of a list that is not dense, ascending, and how often each holds the term. Raises StoreDamaged."""
        start, end = (self._list_ends.item(at - 1) if at else 0), self._list_ends.item(at)
        kind = self._kinds.item(at)
        width, counted = kind & (_COUNTED - 1), kind >= _COUNTED
        size = (end - start) // (width + counted)
        rows = np.cumsum(np.frombuffer(self._lists, f"<u{width}", size, start), dtype=np.int64)
        _check(rows.item(-1) < self.rows)
        return rows, self._lists[end - size : end] if counted else np.ones(size, np.uint8)

    def positions(self, at: int, count: int) -> Integers:
        """All positions of the term, row after row. count: how many they must be. Raises StoreDamaged."""
        first = max(0, at - 1)
        ends = np.frombuffer(self._read(first * _END_BYTES, (at - first + 1) * _END_BYTES), "<u8")
        start, end = (ends.item(0) if at else 0), ends.item(-1)
        width, rest = divmod(end - start, max(count, 1))
        _check(rest == 0 and width in _WIDTHS)
        packed = self._read(len(self._kinds) * _END_BYTES + start, end - start)
        return np.frombuffer(packed, f"<u{width}").astype(np.int64)

    def _read(self, start: int, length: int) -> Buffer:
        found = self._read_positions(start, length)
        _check(len(found) == length)
        return found


def _parted(ends: NDArray[np.unsignedinteger], total: int) -> Integers:
    """Where the parts begin that end there and fill `total` bytes, none of them empty. Raises StoreDamaged."""
    _check((ends.item(-1) if len(ends) else 0) == total and bool((ends[1:] > ends[:-1]).all()))
    _check(len(ends) == 0 or ends.item(0) > 0)
    return np.concatenate((np.zeros(1, np.int64), ends[:-1].astype(np.int64)))[: len(ends)]


def _check(holds: bool) -> None:
    if not holds:
        raise StoreDamaged("The postings of a segment contradict themselves.")


class _Reader:
    """Takes arrays off the front of a buffer, never past its end."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def header(self) -> tuple[int, int, int, int]:
        if self.left < _HEADER.size:
            raise StoreDamaged("The postings of a segment are cut short.")
        magic, rows, terms, vocabulary_bytes, list_bytes = _HEADER.unpack_from(self._data)
        if magic != _MAGIC:
            raise StoreDamaged("The postings of a segment have another format.")
        self._at = _HEADER.size
        return rows, terms, vocabulary_bytes, list_bytes

    def take(self, dtype: "np.dtype[_T]", count: int) -> NDArray[_T]:
        size = dtype.itemsize * count
        if size > self.left:
            raise StoreDamaged("The postings of a segment are cut short.")
        array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size
        return array
