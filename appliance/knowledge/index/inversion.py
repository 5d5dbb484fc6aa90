"""Rows of words turned over: for each term, the rows that hold it, how often, and where.

Heading words count more by BM25F's simple form: the heading is indexed HEADING_WEIGHT times beside the text, so that
counts and lengths are the weighted ones (Robertson, Zaragoza and Taylor, "Simple BM25 extension to multiple weighted
fields", 2004). A position is left free between text and heading: no phrase reaches from one into the other.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.index import analysis

HEADING_WEIGHT = 2
MAX_COUNT = 255
"""A term that a row holds more often counts, and is found in phrases, as if it stood there so often."""

_PART_WORDS = 1 << 22

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """What is indexed of one passage. heading: the words above it, such as title and headings, which count more."""

    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The postings of neighbouring terms; a posting is a term in a row. They are in the order of terms, then of rows.

    sizes: how many each term has, never 0; rows, counts: of each posting, counts from 1 to MAX_COUNT; positions:
    ascending in each posting, as many as its count.
    """

    sizes: Integers
    rows: Integers
    counts: Integers
    positions: Integers


class Inversion:
    """The rows turned over; row i is rows[i]. Takes some 40 bytes of memory for each word.

    lengths: terms of each row, uint32 [rows]; vocabulary: the terms, ascending.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._keys, self.vocabulary, self._texts, self._headings = _read(rows)
        lengths = self._texts + HEADING_WEIGHT * self._headings
        self.lengths = lengths.astype(np.uint32)
        self._starts = np.cumsum(lengths) - lengths
        self._row_of = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        # one number to sort by: term, then place
        self._place_bits = len(self._keys).bit_length()
        self._keys <<= self._place_bits
        self._keys |= np.arange(len(self._keys))
        self._keys.sort()

    def parts(self) -> Iterator[Part]:
        """All postings, some million words at a time."""
        start = 0
        while start < len(self._keys):
            last = self._keys.item(min(start + _PART_WORDS, len(self._keys)) - 1) >> self._place_bits
            end = int(np.searchsorted(self._keys, (last + 1) << self._place_bits))
            yield self._part(self._keys[start:end])
            start = end

    def _part(self, keys: Integers) -> Part:
        term, place = keys >> self._place_bits, keys & ((1 << self._place_bits) - 1)
        row = self._row_of[place]
        position = place - self._starts[row]
        beyond = position - self._texts[row]  # from 0 in the heading, which is there HEADING_WEIGHT times
        position += np.where(beyond >= 0, 1 + beyond // np.maximum(self._headings[row], 1), 0)
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = (term[1:] != term[:-1]) | (row[1:] != row[:-1])
        first = np.flatnonzero(is_first)
        how_often = np.diff(first, append=len(keys))
        if (how_often > MAX_COUNT).any():
            position = position[np.arange(len(keys)) - np.repeat(first, how_often) < MAX_COUNT]
        sizes = np.bincount(term[first] - term[0])
        return Part(sizes, row[first].astype(np.int64), np.minimum(how_often, MAX_COUNT), position)


def _read(rows: Sequence[Row]) -> tuple[Integers, tuple[bytes, ...], Integers, Integers]:
    """All words one after another, as numbers of terms; the terms; how many words each row's text and heading have."""
    words = analysis.Words()
    number = count().__next__
    seen: defaultdict[int, defaultdict[str, int]] = defaultdict(lambda: defaultdict(number))
    flat = array("i")
    sizes = np.zeros((2, len(rows)), np.int64)
    for at, row in enumerate(rows):
        text, heading = words.of(row.text), words.of(row.heading)
        sizes[:, at] = len(text), len(heading)
        of_language = seen[analysis.language_of(text + heading)]
        flat.extend(map(of_language.__getitem__, text + heading * HEADING_WEIGHT))
    # numbered as first seen, so in each language ascending, but not over all
    order = np.fromiter(chain.from_iterable(numbers.values() for numbers in seen.values()), np.int64)
    terms = [term for language, numbers in seen.items() for term in analysis.index_terms(list(numbers), language)]
    vocabulary = tuple(sorted(set(terms)))
    rank = {term: place for place, term in enumerate(vocabulary)}
    term_of = np.zeros(len(terms), np.int64)
    term_of[order] = np.fromiter(map(rank.__getitem__, terms), np.int64, len(terms))
    return term_of[np.frombuffer(flat, np.int32)], vocabulary, sizes[0], sizes[1]
