"""The best passages by words and by meaning together, over units that are each searched alone.

What the caller may not read, and what was deleted, is left out of both legs before they choose, and of the statistics
that scores depend on: no score tells what words are in a document that its reader may not see. The best of each leg
are candidates, and every candidate gets both scores. They are made comparable before they are added: BM25 as a share
of the most that the query's words could score, cosine as it is.

The weight of meaning is gated by how well the embedder knows the query's language. An English model cuts a foreign word
into many tokens, so tokens a word tell: about 1.3 for English, 2 for German, 4 and more for Russian.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.index.lexical import K1, Postings, Statistics, terms
from appliance.types import Bools, Floats, Span

LEG_CANDIDATES = 50
"""How many of each leg are scored by the other as well, at least."""

_MEANING_WEIGHT = 0.5
_KNOWN_TOKENS_PER_WORD = 1.6
_FOREIGN_TOKENS_PER_WORD = 3.0
_WORD = re.compile(r"\w+")


class Unit(Protocol):
    """Passages that are searched together: a sealed segment, or a block of the memtable. Immutable.

    number, first_ordinal, documents: which documents of the catalogue these are; owners: uint32 [rows], the document of
    each passage, counted from first_ordinal.
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

    def nearest(self, query: Floats, allowed: Bools, k: int) -> tuple[NDArray[np.uint32], Floats]:
        """The k best allowed rows by cosine, best first: rows [n], scores [n], n <= k."""

    def document_id(self, owner: int) -> str: ...

    def passage(self, row: int) -> tuple[Span, str]: ...


@dataclass(frozen=True, slots=True)
class Query:
    """terms: of `lexical.terms`; vector: float32 [dimension], unit norm; meaning_weight: 0 to 1."""

    terms: tuple[str, ...]
    vector: Floats
    meaning_weight: float

    @classmethod
    def of(cls, text: str, vector: Floats, tokens: int) -> "Query":
        """tokens: how many the embedder reads of the text."""
        return cls(tuple(terms(text)), vector, meaning_weight(text, tokens))


@dataclass(frozen=True, slots=True)
class Hit:
    unit: Unit
    row: int
    score: float


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
    searched = [(unit, readable(unit)[unit.owners]) for unit in units]
    statistics = _statistics(searched, query.terms)
    most = _most(statistics, query.terms)
    found: list[Hit] = []
    for unit, allowed in searched:
        rows, lexical, meaning = _candidates(unit, allowed, query, statistics, limit)
        weight = query.meaning_weight
        scores = (1 - weight) * lexical / most + weight * np.maximum(meaning, 0)
        best = np.argsort(-scores, kind="stable")[:limit]
        found += [Hit(unit, int(rows[at]), float(scores[at])) for at in best]
    found.sort(key=lambda hit: -hit.score)
    return tuple(found[:limit])


def _candidates(
    unit: Unit, allowed: Bools, query: Query, statistics: Statistics, limit: int
) -> tuple[NDArray[np.uint32], Floats, Floats]:
    """The best of both legs in one unit: rows [n], and their BM25 and cosine, each float32 [n]."""
    depth = max(limit, LEG_CANDIDATES)
    lexical = np.where(allowed, unit.postings.score(query.terms, statistics), np.float32(0))
    by_words = _top(lexical, depth)
    by_meaning, near = unit.nearest(query.vector, allowed, depth)
    cosines = dict(zip(by_meaning.tolist(), near.tolist(), strict=True))
    only_words = np.setdiff1d(by_words, by_meaning)
    if len(only_words):
        missing = np.zeros(unit.rows, np.bool_)
        missing[only_words] = True
        rows, scores = unit.nearest(query.vector, missing, len(only_words))
        cosines |= dict(zip(rows.tolist(), scores.tolist(), strict=True))
    rows = np.fromiter(cosines, np.uint32, len(cosines))
    return rows, lexical[rows], np.fromiter(cosines.values(), np.float32, len(cosines))


def _top(scores: Floats, k: int) -> NDArray[np.uint32]:
    """The rows of the k greatest scores above 0, in no order."""
    rows = np.flatnonzero(scores).astype(np.uint32)
    if len(rows) > k:
        rows = rows[np.argpartition(-scores[rows], k - 1)[:k]]
    return rows


def _statistics(searched: Sequence[tuple[Unit, Bools]], query_terms: Sequence[str]) -> Statistics:
    return Statistics(
        rows=sum(int(np.count_nonzero(allowed)) for _, allowed in searched),
        total_terms=sum(unit.postings.total_terms(allowed) for unit, allowed in searched),
        frequencies={
            term: sum(unit.postings.frequency(term, allowed) for unit, allowed in searched) for term in set(query_terms)
        },
    )


def _most(statistics: Statistics, query_terms: Sequence[str]) -> float:
    """What BM25 would give a passage that consists of the query's words: the scale of its scores. Never 0."""
    rarities = [
        np.log1p((statistics.rows - count + 0.5) / (count + 0.5))
        for count in (statistics.frequencies[term] for term in query_terms)
    ]
    return float((K1 + 1) * sum(rarities)) or 1.0
