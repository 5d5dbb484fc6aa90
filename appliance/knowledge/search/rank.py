"""The best passages by words and by meaning together, over units that are each searched alone.

What the caller may not read, and what was deleted, is left out of both legs before they choose, and of the statistics
that scores depend on: no score tells what words are in a document that its reader may not see. The best of each leg
are candidates, and every candidate gets both scores. They are made comparable before they are added: BM25 as a share
of the most that the query's words could score, cosine as it is.

The weight of meaning is gated by how well the embedder knows the query's language. An English model cuts a foreign word
into many tokens, so tokens a word tell: about 1.3 for English, 2 for German, 4 and more for Russian.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.catalog import Row
from appliance.knowledge.chunk import Piece
from appliance.knowledge.index.lexical import K1, Phrase, Statistics, Term, parse, to_statistics
from appliance.knowledge.index.postings import Postings
from appliance.ports import Embedder
from appliance.types import Bools, Floats, Leg, Span

LEG_CANDIDATES = 50
"""How many of each leg are scored by the other as well, at least."""

QUERY_CHARACTERS = 4096
"""Of a query as much is read: more than the embedder sees of any text."""

_MEANING_WEIGHT = 0.5
_KNOWN_TOKENS_PER_WORD = 1.6
_FOREIGN_TOKENS_PER_WORD = 3.0
_BLOCK_ROWS = 64
_JUDGED_WORDS = 24  # so few that the embedder's limit of tokens doesn't cut them in any language
_WORD = re.compile(r"[^\W_]+")

Rows = NDArray[np.uint32]


class Unit(Protocol):
    """Passages that are searched together: a sealed segment, or a block of the memtable. Immutable.

    number, first_ordinal, documents: which documents of the catalogue these are; owners: uint32 [rows], the document of
    each passage, counted from first_ordinal, ascending.
    """

    @property
    def number(self) -> int: ...
    @property
    def first_ordinal(self) -> int: ...
    @property
    def documents(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def owners(self) -> NDArray[np.uint32]: ...
    @property
    def postings(self) -> Postings: ...

    def nearest(self, query: Floats, allowed: Bools, k: int) -> tuple[Rows, Floats]:
        """The k best allowed rows by cosine, best first: rows [n], scores [n], n <= k."""

    def vectors(self, rows: Rows) -> Floats:
        """float32 [len(rows), dimension], unit norm. Raises StoreDamaged."""

    def places(self, rows: Rows) -> NDArray[np.void]:
        """Where some rows stand: fields of types.CANDIDATE from `document` to `section_end`."""

    def passage(self, row: int) -> tuple[Span, str]:
        """Where a passage stands in its document, and its text. Raises StoreDamaged."""

    def around(self, row: int, document: Row | None, characters: int) -> tuple[str, int]:
        """Its section, or its page where the document's catalogue row is given, and where in that the passage starts.

        Of what is longer, no less than so many characters on either side of the passage. Raises StoreDamaged.
        """

    def piece(self, row: int) -> Piece:
        """The passage in its surroundings. Raises StoreDamaged."""


@dataclass(frozen=True, slots=True)
class Query:
    """terms, phrases: of `lexical.parse`, no terms to leave words out; vector: float32 [dimension], unit norm, None to
    leave meaning out; meaning_weight: 0 to 1, of the fused score."""

    terms: tuple[Term, ...]
    vector: Floats | None
    meaning_weight: float
    phrases: tuple[Phrase, ...] = ()

    @classmethod
    def of(cls, text: str, vector: Floats, tokens: int) -> "Query":
        """tokens: how many the embedder reads of the text."""
        return cls(parse(text).terms, vector, meaning_weight(text, tokens))

    @classmethod
    def asked(cls, text: str, legs: frozenset[Leg], embedder: Embedder) -> "Query":
        """The query that a text of any length is. One without a single letter or digit finds nothing."""
        text = read(text)
        judged = [match.end() for match in islice(_WORD.finditer(text), _JUDGED_WORDS)]
        if not judged:
            return cls((), None, 0.0)
        parsed = parse(text)
        words = parsed.terms if Leg.WORDS in legs else ()
        vector = embedder.embed([text])[0] if Leg.MEANING in legs else None
        if vector is None or not np.isfinite(vector).all():
            return cls(words, None, 0.0, parsed.phrases)
        known = text[: judged[-1]]
        weight = meaning_weight(known, embedder.count_tokens([known])) if Leg.WORDS in legs else 1.0
        return cls(words, vector, weight, parsed.phrases)


@dataclass(frozen=True, slots=True)
class Hit:
    unit: Unit
    row: int
    score: float


def read(query: str) -> str:
    """As much of a query as is read: QUERY_CHARACTERS from its first letter or digit, with a mark before that."""
    first = _WORD.search(query)
    return query[max(0, first.start() - 1) :][:QUERY_CHARACTERS] if first else ""


def meaning_weight(text: str, tokens: int) -> float:
    """How much the embedder's opinion counts for this query: 0 to `_MEANING_WEIGHT`."""
    words = len(_WORD.findall(text))
    if not words:
        return _MEANING_WEIGHT
    foreign = (tokens - 2) / words - _KNOWN_TOKENS_PER_WORD  # two tokens mark start and end
    share = 1 - foreign / (_FOREIGN_TOKENS_PER_WORD - _KNOWN_TOKENS_PER_WORD)
    return _MEANING_WEIGHT * min(1.0, max(0.0, share))


def best_passages(
    units: Sequence[Unit], readable: Callable[[Unit], Bools], query: Query, limit: int
) -> tuple[Hit, ...]:
    """The best `limit` passages, best first. readable: bool [documents], which of a unit's documents may be found."""
    found = candidates(units, readable, query, limit)
    columns = zip(found.unit.tolist(), found.row.tolist(), found.fused.tolist(), strict=True)
    return tuple(Hit(found.units[unit], row, score) for unit, row, score in columns)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Found passages by column, best first: which of `units` (int32), its row (uint32), BM25, cosine and the fused
    score (float32), and the rank that each leg gave it (uint32, from 1; 0 where that leg did not find it)."""

    units: Sequence[Unit]
    unit: NDArray[np.int32]
    row: Rows
    words: Floats
    meaning: Floats
    fused: Floats
    words_rank: Rows
    meaning_rank: Rows
    meaning_weight: float

    def __len__(self) -> int:
        return len(self.row)

    def vectors(self) -> Floats:
        """float32 [n, dimension]. Raises StoreDamaged."""
        parts = [(at, unit.vectors(self.row[at])) for unit, at in self.by_unit()]
        found = np.zeros((len(self), parts[0][1].shape[1] if parts else 0), np.float32)
        for at, vectors in parts:
            found[at] = vectors
        return found

    def by_unit(self) -> Iterator[tuple[Unit, NDArray[np.intp]]]:
        """Each unit with the places of its passages."""
        for number in np.unique(self.unit):
            yield self.units[number], np.flatnonzero(self.unit == number)

    def first(self, count: int) -> "Candidates":
        return self.take(np.arange(min(count, len(self))))

    def take(self, places: NDArray[np.intp]) -> "Candidates":
        """Those at some places, in that order."""
        columns = ("unit", "row", "words", "meaning", "fused", "words_rank", "meaning_rank")
        return replace(self, **{name: getattr(self, name)[places] for name in columns})


def candidates(units: Sequence[Unit], readable: Callable[[Unit], Bools], query: Query, limit: int) -> Candidates:
    """As best_passages, by column."""
    searched = [(unit, rows) for unit in units if (rows := _rows(unit, readable(unit))) is not None]
    matched = [unit.postings.match(query.terms, allowed) for unit, allowed in searched]
    statistics = to_statistics(matched)
    depth = max(limit, LEG_CANDIDATES)
    parts = [
        _of_unit(unit, allowed, query, matches.score(statistics), depth)
        for (unit, allowed), matches in zip(_holding(searched, query.phrases), matched, strict=True)
    ] or [_NOTHING]
    words = np.concatenate([part.words for part in parts])
    meaning = np.concatenate([part.meaning for part in parts])
    weight, most = np.float32(query.meaning_weight), np.float32(_most(statistics, query.terms))
    fused = (1 - weight) * (words / most) + weight * np.fmax(meaning, 0)  # where there is no number, 0
    found = Candidates(
        [unit for unit, _ in searched],
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.row) for part in parts]),
        np.concatenate([part.row for part in parts]),
        words,
        meaning,
        fused,
        _ranks(words, np.concatenate([part.by_words for part in parts])),
        _ranks(meaning, np.concatenate([part.by_meaning for part in parts])),
        query.meaning_weight,
    )
    return found.take(np.lexsort((-meaning, -fused))[:limit])  # where no word tells them apart, meaning does


def _rows(unit: Unit, readable: Bools) -> Bools | None:
    """Which rows may be found, bool [rows]; None where none may."""
    if readable.all():
        return np.ones(unit.rows, np.bool_)  # much faster than to look at each row's owner
    return readable[unit.owners] if readable.any() else None


def _holding(searched: list[tuple[Unit, Bools]], phrases: Sequence[Phrase]) -> list[tuple[Unit, Bools]]:
    """The rows that hold every phrase; all of them where none does, because a question may quote what is nowhere."""
    held = [(unit, unit.postings.holding(phrases, allowed)) for unit, allowed in searched] if phrases else searched
    return held if any(allowed.any() for _, allowed in held) else searched


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The candidates of one unit by column; by_words, by_meaning: which leg found each."""

    row: Rows
    words: Floats
    meaning: Floats
    by_words: Bools
    by_meaning: Bools


_NO_ROWS, _NO_SCORES, _NO_FLAGS = np.zeros(0, np.uint32), np.zeros(0, np.float32), np.zeros(0, np.bool_)
_NOTHING = _Part(_NO_ROWS, _NO_SCORES, _NO_SCORES, _NO_FLAGS, _NO_FLAGS)


def _of_unit(unit: Unit, allowed: Bools, query: Query, lexical: Floats, depth: int) -> _Part:
    """The best of both legs in one unit. lexical: BM25 of its rows, 0 where they may not be read."""
    if not allowed.any():
        return _NOTHING
    if query.phrases:
        lexical = np.where(allowed, lexical, np.float32(0))
    by_words, by_meaning, near = _top(lexical, depth), _NO_ROWS, _NO_SCORES
    if query.vector is not None:
        by_meaning, near = unit.nearest(query.vector, allowed, depth)
    row = np.union1d(by_words, by_meaning)
    found, meaning = np.isin(row, by_meaning), np.zeros(len(row), np.float32)
    meaning[np.searchsorted(row, by_meaning)] = near
    if query.vector is not None:
        meaning[~found] = unit.vectors(row[~found]) @ query.vector
    return _Part(row, lexical[row], meaning, np.isin(row, by_words), found)


def _top(scores: Floats, k: int) -> Rows:
    """The rows of the k greatest scores above 0, in no order.

    The k-th greatest of the blocks' maxima is a bound that k rows reach: what is below need not be sorted.
    """
    whole = len(scores) // _BLOCK_ROWS * _BLOCK_ROWS
    blocks = scores[:whole].reshape(-1, _BLOCK_ROWS).max(axis=1)
    least = np.partition(blocks, -k)[-k] if len(blocks) >= k else np.float32(0)
    rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    if len(rows) > k:
        rows = rows[np.argpartition(-scores[rows], k - 1)[:k]]
    return rows.astype(np.uint32)


def _ranks(scores: Floats, found: Bools) -> Rows:
    """By score from 1 where found, else 0."""
    ranks = np.zeros(len(scores), np.uint32)
    order = np.argsort(np.where(found, -scores, np.inf), kind="stable")[: np.count_nonzero(found)]
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def _most(statistics: Statistics, query_terms: Sequence[Term]) -> float:
    """What BM25 would give a passage that consists of the query's words: the scale of its scores. Never 0."""
    return (K1 + 1) * sum(map(statistics.rarity, query_terms)) or 1.0
