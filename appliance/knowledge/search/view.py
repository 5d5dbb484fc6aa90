"""What a search found, as a ranking that outlives the segments it was found in, and as the passages that are shown."""

import math
from collections.abc import Mapping

import numpy as np

from appliance.errors import InvalidArgument
from appliance.knowledge.index.lexical import parse as parse_query
from appliance.knowledge.search.diversity import diverse_order
from appliance.knowledge.search.filter import Condition, parse
from appliance.knowledge.search.rank import QUERY_CHARACTERS, Candidates, Unit
from appliance.types import CANDIDATE, Expand, Explanation, FacetCount, LegScore, Ranking, SearchOptions, Span

MAX_CANDIDATES = 1000
RERANKED = 50
DIVERSIFIED = 100
CONTEXT_CHARACTERS = 8000


def condition_of(limit: int, options: SearchOptions) -> Condition | None:
    """The options' filter, None where there is none. Raises InvalidArgument for what a search may not be asked."""
    if not 1 <= limit <= MAX_CANDIDATES:
        raise InvalidArgument.of("limit", f"must be between 1 and {MAX_CANDIDATES}.")
    if not options.legs:
        raise InvalidArgument.of("legs", "must name one at least: words, meaning.")
    if not (math.isfinite(options.diversity) and 0 <= options.diversity <= 1):
        raise InvalidArgument.of("diversity", "must be between 0 and 1.")
    return parse(options.filter) if options.filter.strip() else None


def to_ranking(found: Candidates, options: SearchOptions, facets: Mapping[str, tuple[FacetCount, ...]]) -> Ranking:
    """The candidates by what stays the same, made diverse unless a reranker has its say first. Raises StoreDamaged."""
    vectors = np.zeros((0, 0), np.float32)
    if options.diversity and options.reranker:
        vectors = found.first(RERANKED).vectors()
    elif options.diversity:
        best = found.first(DIVERSIFIED)
        order = diverse_order(best.fused, best.vectors(), options.diversity)
        found = found.take(np.concatenate([order, np.arange(len(order), len(found))]))
    ranked = np.zeros(len(found), CANDIDATE)
    for unit, at in found.by_unit():
        places = unit.places(found.row[at])
        for name in places.dtype.names or ():
            ranked[name][at] = places[name]
    for name in ("words_rank", "words", "meaning_rank", "meaning", "fused"):
        ranked[name] = getattr(found, name)
    ranked["reranked"] = np.nan
    return Ranking(ranked, found.meaning_weight, facets, vectors)


def span(candidate: np.void) -> Span:
    return Span(int(candidate["page"]), int(candidate["start"]), int(candidate["end"]))


def stored(unit: Unit, ordinal: int, wanted: Span) -> str:
    """The text of a document's passage; '' where it has none at that span any more, as it was cut anew.

    Raises StoreDamaged.
    """
    first, last = np.searchsorted(unit.owners, np.array([0, 1], np.uint32) + np.uint32(ordinal - unit.first_ordinal))
    places = unit.places(np.arange(first, last, dtype=np.uint32))
    same = (places["page"] == wanted.page) & (places["start"] == wanted.start) & (places["end"] == wanted.end)
    return unit.passage(int(first) + int(np.argmax(same)))[1] if same.any() else ""


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


def context(page: str, candidate: np.void, expand: Expand) -> str:
    """What stands around a passage on its page, CONTEXT_CHARACTERS at most, with the passage about in the middle.

    Its section, where that is asked for and known; else the page.
    """
    at, to, start, end = int(candidate["start"]), int(candidate["end"]), 0, len(page)
    if expand is Expand.SECTION and candidate["section_end"]:
        start, end = min(at, int(candidate["section_start"])), max(to, int(candidate["section_end"]))
    if end - start > CONTEXT_CHARACTERS:
        lead = max(0, CONTEXT_CHARACTERS - (to - at)) // 2
        start = min(max(start, at - lead), end - CONTEXT_CHARACTERS)
        end = start + CONTEXT_CHARACTERS
    return page[start:end].strip()


def query_terms(query: str) -> frozenset[bytes]:
    """What a snippet marks."""
    parsed = parse_query(query.strip()[:QUERY_CHARACTERS])
    return frozenset(form for term in parsed.terms for form in term.forms)
