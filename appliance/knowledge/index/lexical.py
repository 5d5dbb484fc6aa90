"""BM25 over an immutable, compressed inverted index.

Score: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), k1 = 1.2, b = 0.75, with
the inverse document frequency kept positive as ln(1 + (N - n + 0.5) / (n + 0.5)).

Bytes, little endian, nothing but sizes and values, so that no offset can point outside:

    magic "BM25\\x01\\0\\0\\0", u32 rows, u32 terms, u32 vocabulary bytes
    u32 length[rows]                  terms of each row
    u16 term bytes[terms]             then the vocabulary itself, UTF-8, sorted by bytes
    u32 row count[terms]              rows that hold the term
    u8  kind[terms]                   0: dense; 1, 2, 4: bytes a gap
    dense  u8 [dense terms, rows]     how often each row holds the term
    gaps   u8, u16, u32 pools         for each sparse term: rows, as differences, in the pool of its kind
    counts u8                         how often, for each sparse posting; 255 stands for more
"""

import re
import struct
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.types import Bools, Floats

K1 = 1.2
B = 0.75

_WORD = re.compile(r"[^\W_]+")
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Ranges of characters whose words are not always parted by spaces, for a class of a regular expression."""

_UNSPACED = re.compile(f"([{UNSPACED}]+)")
_TERM_CHARACTERS = 64

_T = TypeVar("_T", bound=np.generic)

_MAGIC = b"BM25\x01\0\0\0"
_HEADER = struct.Struct("<8sIII")
_DENSE = 0
_WIDTHS = (1, 2, 4)


def terms(text: str) -> list[str]:
    """The terms of a text in order: NFKC, lower case, endings folded; pairs of characters where words have no spaces.

    Folding drops a plural s, then keeps the first 7 letters of a word (6 in Cyrillic): the truncation of McNamee,
    Nicholas and Mayfield (SIGIR 2009), which needs no word list of a language. Words with digits are kept whole.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if not _UNSPACED.search(text):
        return [_fold(word) for word in words]
    return [term for word in words for part in _UNSPACED.split(word) if part for term in _pairs_or_fold(part)]


def _pairs_or_fold(part: str) -> list[str]:
    if not _UNSPACED.match(part):
        return [_fold(part)]
    return [part[at : at + 2] for at in range(max(1, len(part) - 1))]


def _fold(word: str) -> str:
    if not word.isalpha():
        return word[:_TERM_CHARACTERS]
    if "а" <= word[0] <= "ё":
        return word[:6]
    if len(word) > 3 and word.endswith("s") and word[-2] not in "us":
        word = f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]
    return word[:7]


@dataclass(frozen=True)
class Statistics:
    """What BM25 knows of all that is searched: rows, terms in them, and rows that hold each of the query's terms."""

    rows: int
    total_terms: int
    frequencies: Mapping[str, int]


class Postings:
    """The inverted index of a fixed set of rows. Immutable; safe to score from many threads."""

    def __init__(
        self,
        lengths: NDArray[np.uint32],
        vocabulary: bytes,
        term_ends: NDArray[np.int64],
        row_counts: NDArray[np.uint32],
        kinds: NDArray[np.uint8],
        dense: NDArray[np.uint8],
        gaps: Mapping[int, NDArray[np.unsignedinteger]],
        counts: NDArray[np.uint8],
    ) -> None:
        self._lengths = lengths
        self._vocabulary = vocabulary
        self._term_ends = term_ends
        self._row_counts = row_counts
        self._kinds = kinds
        self._dense = dense
        self._gaps = gaps
        self._counts = counts
        sparse = np.where(kinds == _DENSE, 0, row_counts)
        self._count_ends = np.cumsum(sparse, dtype=np.int64)
        self._places = np.zeros(len(kinds), np.int64)  # of a dense term its line; of a sparse one its start in the pool
        self._places[kinds == _DENSE] = np.arange(np.count_nonzero(kinds == _DENSE))
        for width in _WIDTHS:
            of_width = kinds == width
            self._places[of_width] = np.cumsum(row_counts[of_width], dtype=np.int64) - row_counts[of_width]

    @classmethod
    def build(cls, documents: Sequence[str]) -> "Postings":
        """The index of the documents; row i is documents[i]."""
        numbers: dict[str, int] = {}
        lengths = np.zeros(len(documents), np.uint32)
        flat: list[NDArray[np.int64]] = []
        for row, document in enumerate(documents):
            found = terms(document)
            lengths[row] = len(found)
            flat.append(np.fromiter((numbers.setdefault(term, len(numbers)) for term in found), np.int64, len(found)))
        encoded = [term.encode() for term in numbers]
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        rank = np.zeros(len(order), np.int64)
        rank[order] = np.arange(len(order))
        term_of = rank[np.concatenate(flat)] if flat else np.zeros(0, np.int64)
        return cls._of(lengths, [encoded[at] for at in order], term_of)

    @classmethod
    def _of(cls, lengths: NDArray[np.uint32], vocabulary: list[bytes], term_of: NDArray[np.int64]) -> "Postings":
        rows = len(lengths)
        row_of = np.repeat(np.arange(rows, dtype=np.int64), lengths)
        keys, how_often = np.unique(term_of * max(rows, 1) + row_of, return_counts=True)
        term, row = np.divmod(keys, max(rows, 1))
        row_counts = np.bincount(term, minlength=len(vocabulary)).astype(np.uint32)
        starts = np.cumsum(row_counts, dtype=np.int64) - row_counts
        gap = np.diff(row, prepend=0)
        gap[starts] = row[starts]
        widest = np.maximum.reduceat(gap, starts) if len(gap) else gap
        kinds = np.select([widest < 1 << 8, widest < 1 << 16], [1, 2], 4).astype(np.uint8)
        kinds[row_counts.astype(np.int64) * (kinds + 1) >= rows] = _DENSE
        kind_of = kinds[term]
        counts = np.minimum(how_often, 255).astype(np.uint8)
        dense = np.zeros((np.count_nonzero(kinds == _DENSE), rows), np.uint8)
        line = np.cumsum(kinds == _DENSE) - 1
        is_dense = kind_of == _DENSE
        dense[line[term[is_dense]], row[is_dense]] = counts[is_dense]
        gaps = {width: gap[kind_of == width].astype(f"<u{width}") for width in _WIDTHS}
        term_ends = np.cumsum([len(word) for word in vocabulary], dtype=np.int64)
        return cls(lengths, b"".join(vocabulary), term_ends, row_counts, kinds, dense, gaps, counts[~is_dense])

    @property
    def rows(self) -> int:
        return len(self._lengths)

    def total_terms(self, allowed: Bools) -> int:
        """Of the allowed rows together. allowed: bool [rows]."""
        return int(self._lengths.sum(dtype=np.int64, where=allowed))

    def frequency(self, term: str, allowed: Bools) -> int:
        """How many allowed rows hold the term. Raises StoreDamaged."""
        at = self._find(term)
        if at is None:
            return 0
        if self._kinds[at] == _DENSE:
            return int(np.count_nonzero(self._dense[self._places[at]].astype(np.bool_) & allowed))
        return int(np.count_nonzero(allowed[self._sparse(at)[0]]))

    def score(self, query: Sequence[str], statistics: Statistics) -> Floats:
        """BM25 of each row, float32 [rows]; 0 where a row holds none of the terms. query: from `terms`.

        statistics: of all that is searched, so that scores of several segments compare. Raises StoreDamaged.
        """
        scores = np.zeros(self.rows, np.float32)
        mean = max(statistics.total_terms, 1) / max(statistics.rows, 1)
        norm = self._lengths * np.float32(K1 * B / mean)
        norm += np.float32(K1 * (1 - B))
        for term in query:
            at = self._find(term)
            if at is None:
                continue
            holding = statistics.frequencies[term]
            weight = np.float32((K1 + 1) * np.log1p(max(0.0, statistics.rows - holding + 0.5) / (holding + 0.5)))
            if self._kinds[at] == _DENSE:
                count = self._dense[self._places[at]].astype(np.float32)
                scores += weight * count / (count + norm)
            else:
                rows, count = self._sparse(at)
                scores[rows] += weight * count / (count + norm[rows])
        return scores

    def _sparse(self, at: int) -> tuple[NDArray[np.int64], Floats]:
        size, start, end = int(self._row_counts[at]), int(self._places[at]), int(self._count_ends[at])
        rows = np.cumsum(self._gaps[int(self._kinds[at])][start : start + size], dtype=np.int64)
        if rows[-1] >= self.rows:
            raise StoreDamaged("The postings of a segment name a row that it does not have.")
        return rows, self._counts[end - size : end].astype(np.float32)

    def _term(self, at: int) -> bytes:
        return self._vocabulary[int(self._term_ends[at - 1]) if at else 0 : int(self._term_ends[at])]

    def _find(self, term: str) -> int | None:
        wanted = term.encode()
        at = bisect_left(range(len(self._kinds)), wanted, key=self._term)
        return at if at < len(self._kinds) and self._term(at) == wanted else None

    def to_bytes(self) -> bytes:
        """The module's format; the same documents give the same bytes."""
        term_bytes = np.diff(self._term_ends, prepend=0).astype("<u2")
        return b"".join(
            (
                _HEADER.pack(_MAGIC, self.rows, len(self._kinds), len(self._vocabulary)),
                self._lengths.astype("<u4").tobytes(),
                term_bytes.tobytes(),
                self._vocabulary,
                self._row_counts.astype("<u4").tobytes(),
                self._kinds.tobytes(),
                self._dense.tobytes(),
                *(self._gaps[width].tobytes() for width in _WIDTHS),
                self._counts.tobytes(),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> "Postings":
        """The index that `to_bytes` wrote. Raises StoreDamaged where sizes don't add up."""
        reader = _Reader(data)
        rows, term_count, vocabulary_bytes = reader.header()
        lengths = reader.take(np.dtype("<u4"), rows)
        term_ends = np.cumsum(reader.take(np.dtype("<u2"), term_count), dtype=np.int64)
        reader.check(int(term_ends[-1]) if term_count else 0, vocabulary_bytes)
        vocabulary = reader.take(np.dtype("u1"), vocabulary_bytes).tobytes()
        row_counts = reader.take(np.dtype("<u4"), term_count)
        kinds = reader.take(np.dtype("u1"), term_count)
        if not np.isin(kinds, (_DENSE, *_WIDTHS)).all() or (row_counts == 0).any() or (row_counts > rows).any():
            raise StoreDamaged("The postings of a segment have an impossible term.")
        dense_terms = int(np.count_nonzero(kinds == _DENSE))
        dense = reader.take(np.dtype("u1"), dense_terms * rows).reshape(dense_terms, rows)
        in_pool = {width: int(row_counts[kinds == width].sum(dtype=np.int64)) for width in _WIDTHS}
        gaps = {width: reader.take(np.dtype(f"<u{width}"), in_pool[width]) for width in _WIDTHS}
        counts = reader.take(np.dtype("u1"), sum(in_pool.values()))
        reader.check(reader.left, 0)
        return cls(lengths, vocabulary, term_ends, row_counts, kinds, dense, gaps, counts)


class _Reader:
    """Takes arrays off the front of a buffer, never past its end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def check(self, value: int, expected: int) -> None:
        if value != expected:
            raise StoreDamaged("The sizes in the postings of a segment don't add up.")

    def header(self) -> tuple[int, int, int]:
        if self.left < _HEADER.size:
            raise StoreDamaged("The postings of a segment are cut short.")
        magic, rows, term_count, vocabulary_bytes = _HEADER.unpack_from(self._data)
        if magic != _MAGIC:
            raise StoreDamaged("The postings of a segment have another format.")
        self._at = _HEADER.size
        return rows, term_count, vocabulary_bytes

    def take(self, dtype: "np.dtype[_T]", count: int) -> NDArray[_T]:
        size = dtype.itemsize * count
        if size > self.left:
            raise StoreDamaged("The postings of a segment are cut short.")
        array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size
        return array
