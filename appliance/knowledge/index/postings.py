"""An immutable, compressed inverted index, scored by BM25 (lexical.py).

Two sections, little endian. `postings` stays in memory:

    magic "POSTING\\x01", u32 rows, u32 terms, u64 vocabulary bytes, u64 list bytes
    u64 list end[terms]        where the list of each term ends in `lists`; it begins where the one before ends
    u32 term end[terms]        the same for `vocabulary`
    u32 length[rows]           terms of each row, with those of its heading as often as they count (inversion.py)
    u8  kind[terms]            0: dense; else the bytes of a gap, 1, 2 or 4, and 8 more where counts follow
    vocabulary                 index terms (analysis.py), ascending by bytes, each of 1 to 255
    lists                      dense: u8 count[rows]; else gap[n], then u8 count[n], or no counts where all are 1

A gap is a row less the row before it, of the first the row itself. Counts end at 255. `positions` is read by range,
when a phrase is asked for:

    u64 end[terms]             from where the positions begin
    positions                  of each term: for each of its rows, as many as its count, ascending; u8, u16 or u32 as the
                               greatest needs, which the number of bytes for so many positions tells
"""

import struct
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.index.inversion import Inversion, Row, invert
from appliance.knowledge.index.languages import ANY, UNKNOWN
from appliance.knowledge.index.lexical import B, K1, Phrase, Statistics, Term
from appliance.ports import Buffer
from appliance.types import Bools, Floats

ReadPositions = Callable[[int, int], Buffer]
"""From where, how many bytes."""

_MAGIC = b"POSTING\x01"
_HEADER = struct.Struct("<8sIIQQ")
_DENSE = 0
_COUNTED = 8
_WIDTHS = (1, 2, 4)
_END = np.dtype("<u8")
_FEW = 16  # rows under a 16th of all are handled one by one, more as an array over all

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Held:
    """The allowed rows that hold an index term. rows: None where counts are of every row, with zeros."""

    rows: Integers | None
    counts: Bytes

    def frequency(self) -> int:
        return int(np.count_nonzero(self.counts)) if self.rows is None else len(self.rows)


class _Allowed:
    """The rows that may be seen. few: their numbers, where they are few."""

    def __init__(self, mask: Bools) -> None:
        self.mask = mask
        self.rows = int(np.count_nonzero(mask))
        self.every = self.rows == len(mask)
        self.few = np.flatnonzero(mask) if self.rows * _FEW < len(mask) else None


class Matches:
    """What the allowed rows hold of the terms that are asked for: found once, counted and scored from that."""

    def __init__(self, lengths: NDArray[np.uint32], allowed: _Allowed, held: Mapping[Term, Sequence[_Held]]) -> None:
        self._lengths = lengths
        self._held = held
        self.rows = allowed.rows
        self.frequencies = {term: sum(held.frequency() for held in lists) for term, lists in held.items()}
        if allowed.few is None:
            self.total_terms = int(np.dot(lengths, allowed.mask))
        else:
            self.total_terms = int(lengths[allowed.few].sum(dtype=np.int64))

    def score(self, statistics: Statistics) -> Floats:
        """BM25 of every row, float32 [rows]; 0 where it is not allowed or holds none of the terms.

        statistics: of all that is searched, so that scores of several segments compare.
        """
        scores = np.zeros(len(self._lengths), np.float32)
        mean = max(statistics.total_terms, 1) / max(statistics.rows, 1)
        slope, base = np.float32(K1 * B / mean), np.float32(K1 * (1 - B))
        norm: Floats | None = None
        for term, lists in self._held.items():
            weight = np.float32((K1 + 1) * statistics.rarity(term))
            for held in lists:
                counts = held.counts.astype(np.float32)
                if held.rows is None:
                    norm = self._lengths * slope + base if norm is None else norm
                    gain = counts + norm
                    np.divide(counts, gain, out=gain)
                    gain *= weight
                    scores += gain
                else:
                    scores[held.rows] += weight * counts / (counts + (self._lengths[held.rows] * slope + base))
        return scores


class Postings:
    """The inverted index of a fixed set of rows. Immutable; safe to search from many threads."""

    def __init__(self, data: Buffer, read_positions: ReadPositions) -> None:
        """data: a `postings` section; its memory is used as it is. Raises StoreDamaged."""
        reader = _Reader(data)
        self._data = data
        self._read_positions = read_positions
        rows, terms, vocabulary_bytes, list_bytes = reader.header()
        self._list_ends = reader.take(_END, terms)
        self._term_ends = reader.take(np.dtype("<u4"), terms)
        self._lengths = reader.take(np.dtype("<u4"), rows)
        self._kinds = reader.take(np.dtype("u1"), terms)
        self._vocabulary = reader.take(np.dtype("u1"), vocabulary_bytes)
        self._lists = reader.take(np.dtype("u1"), list_bytes)
        _check(reader.left == 0)
        self._check_terms(vocabulary_bytes)
        self._check_lists(list_bytes)
        starts = np.concatenate(([0], self._term_ends[:-1])).astype(np.int64)[:terms]
        self._languages = frozenset(np.unique(self._vocabulary[starts]).tolist())

    def _check_terms(self, vocabulary_bytes: int) -> None:
        sizes = np.diff(self._term_ends.astype(np.int64), prepend=0)
        _check(bool(((sizes > 0) & (sizes <= 255)).all()) and int(sizes.sum()) == vocabulary_bytes)

    def _check_lists(self, list_bytes: int) -> None:
        ends, dense = self._list_ends, self._kinds == _DENSE
        _check(bool((ends <= list_bytes).all()) and int(ends[-1] if len(ends) else 0) == list_bytes)
        sizes = np.diff(ends.astype(np.int64), prepend=0)
        posting_bytes = np.where(dense, max(self.rows, 1), (self._kinds & 7) + (self._kinds >= _COUNTED))
        known = np.isin(self._kinds, (_DENSE, *_WIDTHS, *(_COUNTED + width for width in _WIDTHS)))
        _check(bool((known & (sizes > 0)).all()) and bool((sizes % np.maximum(posting_bytes, 1) == 0).all()))
        _check(bool((sizes[dense] == self.rows).all()))

    @classmethod
    def build(cls, rows: Sequence[Row]) -> "Postings":
        """The index of the rows; row i is rows[i]."""
        return cls.from_sections(pack(invert(rows)))

    @classmethod
    def from_sections(cls, sections: Mapping[str, Buffer]) -> "Postings":
        """The index of two sections in memory. Raises StoreDamaged."""
