"""The postings of a fixed set of rows, searched: which rows hold what is asked for, and how well by BM25.

Rows that may not be seen are left out before anything is counted: no frequency, length or score depends on them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.index.inversion import Inversion, Row
from appliance.knowledge.index.inverted_file import Bytes, Integers, InvertedFile, ReadPositions, pack
from appliance.knowledge.index.languages import ANY, UNKNOWN
from appliance.knowledge.index.lexical import K1, B, Phrase, Statistics, Term
from appliance.ports import Buffer
from appliance.types import Bools, Floats

_FEW = 8  # up to an 8th of all rows it is faster to visit each than to compute with an array over all
_ROW_BITS = 33  # in a number that stands for both, the row is above the position, which no damage lifts so high


def to_sections(rows: Sequence[Row]) -> dict[str, bytes]:
    """The sections `postings` and `positions` of a segment of these rows; row i is rows[i]."""
    return pack(Inversion(rows))


class Postings:
    """The inverted index of a fixed set of rows. Immutable; safe to search from many threads."""

    def __init__(self, postings: Buffer, read_positions: ReadPositions) -> None:
        """postings: that section, which stays in memory; read_positions: reads the other. Raises StoreDamaged."""
        self._file = InvertedFile(postings, read_positions)

    @classmethod
    def build(cls, rows: Sequence[Row]) -> Self:
        """The index of the rows, in memory."""
        sections = to_sections(rows)
        positions = memoryview(sections["positions"])
        return cls(sections["postings"], lambda start, length: positions[start : start + length])

    @property
    def rows(self) -> int:
        return self._file.rows

    def match(self, terms: Iterable[Term], allowed: Bools) -> "Matches":
        """What the allowed rows hold of the terms. allowed: bool [rows]. Raises StoreDamaged."""
        seen = _Seen(allowed)
        held = {term: [self._held(at, seen) for at in self._find(term.forms)] for term in terms}
        return Matches(self._file.lengths, seen, held)

    def holding(self, phrases: Iterable[Phrase], allowed: Bools) -> Bools:
        """The allowed rows that hold each phrase: its words one after another, in order. Raises StoreDamaged."""
        for phrase in phrases:
            allowed = self._holding(phrase, allowed)
        return allowed

    def _find(self, forms: Iterable[bytes]) -> list[int]:
        found = (self._file.find(form) for form in forms if form[0] in self._file.languages)
        return [at for at in found if at is not None]

    def _held(self, at: int, seen: "_Seen") -> "_Held":
        """The list of a term, without the rows that are not seen."""
        counts = self._file.dense(at)
        if counts is None:
            rows, counts = self._file.sparse(at)
            if seen.few is not None or len(rows) * _FEW <= self.rows:
                if seen.every:
                    return _Held(rows, counts)
                kept = np.flatnonzero(seen.mask[rows])
                return _Held(rows[kept], counts[kept])
            counts = _spread(rows, counts, self.rows)
        if seen.few is not None:
            counts = counts[seen.few]
            kept = np.flatnonzero(counts)
            return _Held(seen.few[kept], counts[kept])
        return _Held(None, counts if seen.every else counts * seen.mask)

    def _holding(self, phrase: Phrase, allowed: Bools) -> Bools:
        found = np.zeros(self.rows, np.bool_)
        # a row is of one language, so all words of the phrase are sought in the same
        for language in (self._file.languages - {ANY}) or {UNKNOWN}:
            of_language = (ANY, language)
            places = [at for term in phrase for at in self._find(form for form in term.forms if form[0] in of_language)]
            if len(places) == len(phrase):
                found |= self._in_order(places, allowed)
        return found

    def _in_order(self, places: Sequence[int], allowed: Bools) -> Bools:
        """The allowed rows that hold these terms at neighbouring positions."""
        lists = {at: self._all(at) for at in set(places)}
        for rows, _ in lists.values():
            held = np.zeros(self.rows, np.bool_)
            held[rows] = True
            allowed = allowed & held
        if len(places) == 1 or not allowed.any():
            return allowed
        starts: Integers | None = None
        for nth, at in sorted(enumerate(places), key=lambda place: len(lists[place[1]][0])):
            rows, counts = lists[at]
            row = np.repeat(rows, counts)
            position = self._file.positions(at, len(row))
            kept = np.flatnonzero(allowed[row])
            start = (row[kept] << _ROW_BITS) + position[kept] + (len(places) - nth)
            starts = start if starts is None else _in_both(starts, start)
        found = np.zeros(self.rows, np.bool_)
        if starts is not None:
            found[starts >> _ROW_BITS] = True
        return found

    def _all(self, at: int) -> tuple[Integers, Bytes]:
        counts = self._file.dense(at)
        if counts is None:
            return self._file.sparse(at)
        rows = np.flatnonzero(counts)
        return rows, counts[rows]


def _spread(rows: Integers, counts: Bytes, total: int) -> Bytes:
    """The counts of every row, with zeros."""
    spread = np.zeros(total, np.uint8)
    spread[rows] = counts
    return spread


def _in_both(values: Integers, others: Integers) -> Integers:
    """Of `values` those that are in `others`; both ascending."""
    at: Integers = np.searchsorted(others, values)
    inside = at < len(others)
    found: Integers = values[inside][others[at[inside]] == values[inside]]
    return found


class _Seen:
    """The rows that may be seen. few: their numbers, where they are few."""

    def __init__(self, mask: Bools) -> None:
        self.mask = mask
        self.rows = int(np.count_nonzero(mask))
        self.every = self.rows == len(mask)
        self.few = np.flatnonzero(mask) if self.rows * _FEW <= len(mask) else None


@dataclass(frozen=True, slots=True)
class _Held:
    """The rows seen that hold an index term. rows: None where there is a count of every row, with zeros."""

    rows: Integers | None
    counts: Bytes

    @property
    def frequency(self) -> int:
        return int(np.count_nonzero(self.counts)) if self.rows is None else len(self.rows)


class Matches:
    """What the allowed rows hold of the terms that are asked for: found once, then counted and scored.

    rows, total_terms: of the allowed rows; frequencies: for each term, how many of them hold it.
    """

    def __init__(self, lengths: NDArray[np.uint32], seen: _Seen, held: Mapping[Term, Sequence[_Held]]) -> None:
        self._lengths = lengths
        self._held = held
        self.rows = seen.rows
        self.total_terms = int((lengths * seen.mask).sum(dtype=np.int64))
        self.frequencies = {term: sum(one.frequency for one in lists) for term, lists in held.items()}

    def score(self, statistics: Statistics) -> Floats:
        """BM25 of each row, float32 [rows]; 0 where it is not allowed or holds none of the terms.

        statistics: of all that is searched, so that scores of several segments compare.
        """
        scores = np.zeros(len(self._lengths), np.float32)
        mean = max(statistics.total_terms, 1) / max(statistics.rows, 1)
        base, slope = np.float32(K1 * (1 - B)), np.float32(K1 * B / mean)
        norm: Floats | None = None
        for term, lists in self._held.items():
            weight = np.float32((K1 + 1) * statistics.rarity(term))
            for held in lists:
                counts = held.counts.astype(np.float32)
                if held.rows is None:
                    norm = _norm(self._lengths, base, slope) if norm is None else norm
                    scores += _gain(counts, norm, weight)
                else:
                    scores[held.rows] += _gain(counts, _norm(self._lengths[held.rows], base, slope), weight)
        return scores


def _norm(lengths: NDArray[np.uint32], base: np.float32, slope: np.float32) -> Floats:
    """How much longer rows need a term more often: float32 [n]."""
    norm = lengths.astype(np.float32)
    norm *= slope
    norm += base
    return norm


def _gain(counts: Floats, norm: Floats, weight: np.float32) -> Floats:
    """weight * counts / (counts + norm), in the memory of `counts`."""
    divisor = counts + norm
    counts *= weight
    counts /= divisor
    return counts
