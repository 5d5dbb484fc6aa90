"""How searches and answers fare as they go on: how often nothing answers, and whether what is found fits less well.

Drift is a difference of means: of the best passage's score over the last WINDOW searches, less the same over the first
WINDOW since the daemon's start. It falls below 0 where people begin to ask for what the documents do not hold, or where
documents went away. Only searches by words and meaning together in a collection's own order are compared: others score
on other scales. What is kept of a search is one number; no query, no vector.
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from appliance.ports import Retriever
from appliance.types import Found, Leg, Principal, SearchOptions, SearchTally

WINDOW = 1_000
LEAST_RECENT = 100  # searches after the first WINDOW, before a drift is told
MAX_COLLECTIONS = 1_000  # the one that was searched longest ago is forgotten first


@dataclass
class _Scores:
    """The first WINDOW scores as their sum, and the last WINDOW after them in a ring."""

    first_count: int = 0
    first_sum: float = 0.0
    last: "array[float]" = field(default_factory=lambda: array("f"))
    oldest: int = 0

    def add(self, score: float) -> None:
        if self.first_count < WINDOW:
            self.first_count += 1
            self.first_sum += score
        elif len(self.last) < WINDOW:
            self.last.append(score)
        else:
            self.last[self.oldest] = score
            self.oldest = (self.oldest + 1) % WINDOW

    @property
    def drift(self) -> float | None:
        if len(self.last) < LEAST_RECENT:
            return None
        return sum(self.last) / len(self.last) - self.first_sum / self.first_count


@dataclass
class _Counts:
    searches: int = 0
    answers: int = 0
    empty_answers: int = 0
    scores: _Scores = field(default_factory=_Scores)


class SearchTallies:
    """Counts by tenant and collection. Safe to use from many threads; its memory is bounded."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: OrderedDict[tuple[str, str], _Counts] = OrderedDict()

    def searched(self, tenant: str, collection: str, best_score: float | None) -> None:
        """A search was made. best_score: of its first passage, None where it is on another scale or there is none."""
        with self._lock:
            counts = self._of(tenant, collection)
            counts.searches += 1
            if best_score is not None:
                counts.scores.add(best_score)

    def answered(self, tenant: str, collection: str, answered: bool) -> None:
        """A question was answered, or the documents did not answer it."""
        with self._lock:
            counts = self._of(tenant, collection)
            counts.answers += 1
            counts.empty_answers += not answered

    def forget(self, tenant: str, collection: str) -> None:
        """Begin anew, for a collection whose scores change their scale or which is no more."""
        with self._lock:
            self._counts.pop((tenant, collection), None)

    def tallies(self) -> tuple[SearchTally, ...]:
        """One a collection, by tenant and name."""
        with self._lock:
            return tuple(
                SearchTally(tenant, name, counts.searches, counts.answers, counts.empty_answers, counts.scores.drift)
                for (tenant, name), counts in sorted(self._counts.items(), key=lambda item: item[0])
            )

    def _of(self, tenant: str, collection: str) -> _Counts:
        counts = self._counts.setdefault((tenant, collection), _Counts())
        self._counts.move_to_end((tenant, collection))
        if len(self._counts) > MAX_COLLECTIONS:
            self._counts.popitem(last=False)
        return counts


class TalliedRetriever:
    """A `ports.Retriever` that counts what passes through another."""

    def __init__(self, retriever: Retriever, tallies: SearchTallies) -> None:
        self._retriever, self._tallies = retriever, tallies

    async def search(
        self,
        caller: Principal,
        collection: str,
        query: str,
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
        page: str = "",
    ) -> Found:
        """As the Retriever behind it; a page after the first is no search of its own."""
        found = await self._retriever.search(caller, collection, query, limit, options, page)
        if not page:
            best = found.passages[0].score if found.passages and _compared(options) else None
            self._tallies.searched(caller.tenant, collection, best)
        return found


def _compared(options: SearchOptions) -> bool:
    """Whether the search's scores are on the collection's own scale, and over all of it."""
    return not options.filter and not options.reranker and not options.diversity and options.legs == frozenset(Leg)
