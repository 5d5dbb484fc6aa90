"""Rows of words turned over: for each term, the rows that hold it, how often, and where.

Heading words count more by BM25F's simple form: the heading is indexed HEADING_WEIGHT times beside the text, so that
counts and lengths are the weighted ones (Robertson, Zaragoza and Taylor, "Simple BM25 extension to multiple weighted
fields", 2004). A position is left free between text and heading: no phrase reaches from one into the other.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.index import analysis

HEADING_WEIGHT = 2
MAX_COUNT = 255
"""A term that a row holds more often counts, and is found in phrases, as if it stood there so often."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """What is indexed of one passage. heading: the words above it, such as title and headings, which count more."""

    text: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Inversion:
    """A posting is a term in a row; they are in the order of terms, then of rows.

    lengths: terms of each row; vocabulary: ascending; terms, rows, counts: of each posting, counts from 1 to MAX_COUNT;
    positions: ascending in each posting, as many as its count.
    """

    lengths: NDArray[np.uint32]
    vocabulary: tuple[bytes, ...]
    terms: Integers
    rows: Integers
    counts: Integers
    positions: Integers


@dataclass(frozen=True, slots=True)
class _Words:
    """All words one after another, as numbers of index terms; texts, headings: how many of each row are of which."""

    vocabulary: tuple[bytes, ...]
    numbers: Integers
    texts: Integers
    headings: Integers


def invert(rows: Sequence[Row]) -> Inversion:
    """The inversion of the rows; row i is rows[i]. Takes some 40 bytes of memory for each word."""
    words = _read(rows)
    lengths = words.texts + HEADING_WEIGHT * words.headings
    starts = np.cumsum(lengths) - lengths
    at_bits = len(words.numbers).bit_length()
    key = words.numbers << at_bits  # one number to sort by: term, then place
    key |= np.arange(len(key))
    key.sort()
    term, at = key >> at_bits, key & ((1 << at_bits) - 1)
    row = np.repeat(np.arange(len(rows)), lengths)[at]
    at -= starts[row]
    beyond = at - words.texts[row]
    position = at + np.where(beyond >= 0, 1 + beyond // np.maximum(words.headings[row], 1), 0)
    is_first = np.ones(len(key), np.bool_)
    is_first[1:] = (term[1:] != term[:-1]) | (row[1:] != row[:-1])
    first = np.flatnonzero(is_first)
    how_often = np.diff(first, append=len(key))
    counts = np.minimum(how_often, MAX_COUNT)
    if (how_often > MAX_COUNT).any():
        position = position[np.arange(len(key)) - np.repeat(first, how_often) < MAX_COUNT]
    return Inversion(lengths.astype(np.uint32), words.vocabulary, term[first], row[first], counts, position)


def _read(rows: Sequence[Row]) -> _Words:
    number = count().__next__
    seen: defaultdict[int, defaultdict[str, int]] = defaultdict(lambda: defaultdict(number))
    flat: list[NDArray[np.int32]] = []
    sizes = np.zeros((2, len(rows)), np.int64)
    for at, row in enumerate(rows):
        text = analysis.words(row.text)
        heading = analysis.words(row.heading)
        sizes[:, at] = len(text), len(heading)
        of_language = seen[analysis.language_of(text + heading)]
        found = text + heading * HEADING_WEIGHT
        flat.append(np.fromiter(map(of_language.__getitem__, found), np.int32, len(found)))
    # numbered as first seen, so in each language ascending, but not over all
    order = np.fromiter(chain.from_iterable(words.values() for words in seen.values()), np.int64)
    terms = [term for language, words in seen.items() for term in analysis.index_terms(list(words), language)]
    vocabulary = tuple(sorted(set(terms)))
    rank = {term: place for place, term in enumerate(vocabulary)}
    term_of = np.zeros(len(terms), np.int64)
    term_of[order] = np.fromiter(map(rank.__getitem__, terms), np.int64, len(terms))
    return _Words(vocabulary, term_of[np.concatenate(flat)] if flat else np.zeros(0, np.int64), sizes[0], sizes[1])
