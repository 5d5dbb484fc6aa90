"""What is asked of the postings, and how what they hold is scored.

Score: BM25 by Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), k1 = 1.2,
b = 0.75, with the inverse document frequency kept positive as ln(1 + (N - n + 0.5) / (n + 0.5)).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from appliance.knowledge.index import analysis

K1 = 1.2
B = 0.75
MAX_QUERY_TERMS = 64
"""The first so many different words of a query are sought."""
MAX_PHRASES = 8
MAX_PHRASE_TERMS = 32
"""Of a longer phrase the beginning is sought."""

_QUOTED = re.compile(r'(?<!\w)"([^"]*)"(?!\w)|“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»')


@dataclass(frozen=True, slots=True)
class Term:
    """A word that is asked for; terms are equal when their words are. forms: the index terms that it can be."""

    word: str
    forms: tuple[bytes, ...] = field(compare=False, repr=False)


Phrase = tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """terms: all words, each once, also those of phrases; phrases: what stood in quotation marks, in order."""

    terms: tuple[Term, ...]
    phrases: tuple[Phrase, ...] = ()


class Matched(Protocol):
    """What one unit that is searched adds to the statistics."""

    @property
    def rows(self) -> int: ...
    @property
    def total_terms(self) -> int: ...
    @property
    def frequencies(self) -> Mapping[Term, int]: ...


@dataclass(frozen=True, slots=True)
class Statistics:
    """What BM25 knows of all that is searched: rows, terms in them, and rows that hold each of the query's terms."""

    rows: int
    total_terms: int
    frequencies: Mapping[Term, int]

    def rarity(self, term: Term) -> float:
        """The inverse document frequency; never negative."""
        holding = self.frequencies[term]
        return float(np.log1p(max(0.0, self.rows - holding + 0.5) / (holding + 0.5)))


def to_statistics(matches: Iterable[Matched]) -> Statistics:
    """Of all units that are searched together."""
    frequencies: Counter[Term] = Counter()
    rows, total_terms = 0, 0
    for matched in matches:
        rows += matched.rows
        total_terms += matched.total_terms
        frequencies.update(matched.frequencies)
    return Statistics(rows, total_terms, frequencies)


def parse(text: str) -> ParsedQuery:
    """The query that a text is. `"words in order"` is a phrase; so is what stands in “these”, „these“ and «these».

    Bounded by MAX_QUERY_TERMS, MAX_PHRASES and MAX_PHRASE_TERMS; linear in the text.
    """
    asked = list(dict.fromkeys(analysis.words(text)))[:MAX_QUERY_TERMS]
    quoted = [analysis.words("".join(match.groups(""))) for match in _QUOTED.finditer(text)]
    phrases = [found[:MAX_PHRASE_TERMS] for found in quoted if found][:MAX_PHRASES]
    return ParsedQuery(_to_terms(asked), tuple(map(_to_terms, phrases)))


def _to_terms(found: Sequence[str]) -> tuple[Term, ...]:
    return tuple(map(Term, found, analysis.forms(found)))
