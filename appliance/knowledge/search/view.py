"""What a search found, as a ranking that outlives the segments it was found in, and as the passages that are shown."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import InvalidArgument
from appliance.knowledge.catalog import Row
from appliance.knowledge.index.analysis import words
from appliance.knowledge.index.lexical import MAX_QUERY_TERMS
from appliance.knowledge.intake import METADATA_NAME
from appliance.knowledge.search import rank
from appliance.knowledge.search.diversity import diverse_order
from appliance.knowledge.search.filter import Condition, parse
from appliance.knowledge.search.rank import Candidates, Unit
from appliance.types import CANDIDATE, Bools, Expand, Explanation, FacetCount, LegScore, Ranking, SearchOptions, Span

MAX_CANDIDATES = 1000
RERANKED = 50
DIVERSIFIED = 100
MAX_FACETS = 16
CONTEXT_CHARACTERS = 8000


def condition_of(limit: int, options: SearchOptions) -> Condition | None:
    """The options' filter, None where there is none. Raises InvalidArgument for what a search may not be asked."""
    if not 1 <= limit <= MAX_CANDIDATES:
        raise InvalidArgument.of("limit", f"must be between 1 and {MAX_CANDIDATES}.")
    if not options.legs:
        raise InvalidArgument.of("legs", "must name one at least: words, meaning.")
    if not (math.isfinite(options.diversity) and 0 <= options.diversity <= 1):
        raise InvalidArgument.of("diversity", "must be between 0 and 1.")
    if len(options.facets) > MAX_FACETS:
        raise InvalidArgument.of("facets", f"must be at most {MAX_FACETS}.")
    for field in options.facets:  # who may read is no field
        if not METADATA_NAME.fullmatch(field) or field == "readers":
            raise InvalidArgument.of("facets", "each must be media_type, source, or a name of metadata.")
    return parse(options.filter) if options.filter.strip() else None


def candidates_for(limit: int, options: SearchOptions) -> int:
    """How many candidates so many passages are chosen from."""
    return max(limit, DIVERSIFIED) if options.diversity else limit


def to_ranking(
    found: Candidates, limit: int, options: SearchOptions, facets: Mapping[str, tuple[FacetCount, ...]]
) -> Ranking:
    """The best `limit` by what stays the same, made diverse unless a reranker has its say first.

    Raises StoreDamaged.
    """
    vectors = np.zeros((0, 0), np.float32)
    if options.diversity and options.reranker:
        vectors = found.first(RERANKED).vectors()
    elif options.diversity:
        best = found.first(DIVERSIFIED)
        order = diverse_order(best.fused, best.vectors(), options.diversity)
        found = found.take(np.concatenate([order, np.arange(len(order), len(found))]))
    found = found.first(limit)
    ranked = np.zeros(len(found), CANDIDATE)
    for unit, at in found.by_unit():
        places = unit.places(found.row[at])
        for name in places.dtype.names or ():
            ranked[name][at] = places[name]
    for name in ("row", "words_rank", "words", "meaning_rank", "meaning", "fused"):
        ranked[name] = getattr(found, name)
    ranked["reranked"] = np.nan
    return Ranking(ranked, found.meaning_weight, facets, vectors)


def span(candidate: np.void) -> Span:
    return Span(int(candidate["page"]), int(candidate["start"]), int(candidate["end"]))


@dataclass(frozen=True, slots=True)
class Reading:
    """What is stored of a passage."""

    text: str
    heading: str
    context: str


def read(
    candidate: np.void, unit: Unit, ordinal: int, expand: Expand, document: Row | None, page: Callable[[], str]
) -> Reading:
    """A candidate's passage in the unit that its document lies in.

    document: its catalogue row, for Expand.PAGE alone. page: reads the passage's page; where the document was cut anew
    since, the passage is what that holds at its span. Raises StoreDamaged.
    """
    row, at = _row(candidate, unit, ordinal), span(candidate)
    if row is None:
        whole = page()
        return Reading(whole[at.start : at.end], "", "" if expand is Expand.NONE else bounded(whole, at.start, at.end))
    text, heading = unit.passage(row)[1], unit.piece(row).heading
    if expand is Expand.NONE:
        return Reading(text, heading, "")
    around, start = unit.around(row, document, CONTEXT_CHARACTERS)
    return Reading(text, heading, bounded(around, start, start + at.end - at.start))


def _row(candidate: np.void, unit: Unit, ordinal: int) -> int | None:
    row = int(candidate["row"])
    if row < unit.rows and _same(unit.places(np.array([row], np.uint32)), candidate)[0]:
        return row  # nothing was sealed or compacted since
    first, last = np.searchsorted(unit.owners, np.array([0, 1], np.uint32) + np.uint32(ordinal - unit.first_ordinal))
    found = np.flatnonzero(_same(unit.places(np.arange(first, last, dtype=np.uint32)), candidate))
    return int(first + found[0]) if len(found) else None


def _same(places: NDArray[np.void], candidate: np.void) -> Bools:
    same: Bools = places["document"] == candidate["document"]
    for name in ("page", "start", "end"):
        same &= places[name] == candidate[name]
    return same


def score(candidate: np.void) -> float:
    """The reranker's where one read the passage, else the fused one."""
    reranked = float(candidate["reranked"])
    return float(candidate["fused"]) if math.isnan(reranked) else reranked


def explanation(candidate: np.void, meaning_weight: float) -> Explanation:
    """Why a candidate stands where it does."""
    reranked = float(candidate["reranked"])
    return Explanation(
        LegScore(int(candidate["words_rank"]), float(candidate["words"])),
        LegScore(int(candidate["meaning_rank"]), float(candidate["meaning"])),
        meaning_weight,
        float(candidate["fused"]),
        None if math.isnan(reranked) else reranked,
    )


def bounded(text: str, start: int, end: int) -> str:
    """What stands around [start, end) of a text: CONTEXT_CHARACTERS at most, with the range about in the middle."""
    lead = max(0, CONTEXT_CHARACTERS - (end - start)) // 2
    first = max(0, min(start - lead, len(text) - CONTEXT_CHARACTERS))
    return text[first : first + CONTEXT_CHARACTERS].strip()


def query_words(query: str) -> tuple[str, ...]:
    """What a snippet marks."""
    return tuple(dict.fromkeys(words(rank.read(query))))[:MAX_QUERY_TERMS]
