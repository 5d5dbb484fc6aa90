import sys

import pytest

from appliance.errors import NotFound
from appliance.knowledge.quality import drift
from appliance.knowledge.quality.drift import LEAST_RECENT, WINDOW, SearchTallies, TalliedRetriever
from appliance.types import Found, Leg, Passage, Principal, SearchOptions, Span
from tests.fakes import LibraryRetriever, MemoryLibrary
from tests.knowledge.desk import CALLER, document


def drift_of(tallies: SearchTallies) -> float | None:
    return tallies.tallies()[0].best_score_drift


def test_drift_is_the_mean_of_the_last_searches_less_that_of_the_first() -> None:
    tallies = SearchTallies()
    for _ in range(WINDOW):
        tallies.searched("acme", "handbook", 0.8)
    assert drift_of(tallies) is None
    for _ in range(LEAST_RECENT - 1):
        tallies.searched("acme", "handbook", 0.6)
    assert drift_of(tallies) is None
    tallies.searched("acme", "handbook", 0.6)
    assert drift_of(tallies) == pytest.approx(-0.2)


def test_only_the_last_window_counts_and_the_first_stays_what_it_was() -> None:
    tallies = SearchTallies()
    for score, count in ((0.5, WINDOW), (0.1, 3 * WINDOW + 7), (0.7, WINDOW)):
        for _ in range(count):
            tallies.searched("acme", "handbook", score)
    assert drift_of(tallies) == pytest.approx(0.2)
    for _ in range(WINDOW // 2):
        tallies.searched("acme", "handbook", 0.5)
    assert drift_of(tallies) == pytest.approx(0.1)


def test_searches_without_a_comparable_score_are_counted_but_do_not_drift() -> None:
    tallies = SearchTallies()
    for _ in range(2 * WINDOW):
        tallies.searched("acme", "handbook", None)
    (tally,) = tallies.tallies()
    assert (tally.searches, tally.best_score_drift) == (2 * WINDOW, None)


def test_tenants_and_collections_are_apart_and_can_begin_anew() -> None:
    tallies = SearchTallies()
    tallies.answered("acme", "handbook", answered=True)
    tallies.answered("acme", "handbook", answered=False)
    tallies.answered("other", "handbook", answered=False)
    tallies.searched("acme", "rules", 0.5)
    told = [(one.tenant, one.collection, one.searches, one.answers, one.empty_answers) for one in tallies.tallies()]
    assert told == [("acme", "handbook", 0, 2, 1), ("acme", "rules", 1, 0, 0), ("other", "handbook", 0, 1, 1)]
    tallies.forget("acme", "handbook")
    tallies.forget("acme", "absent")
    assert len(tallies.tallies()) == 2


def test_memory_is_bounded_in_collections_and_in_what_is_kept_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MAX_COLLECTIONS", 3)
    tallies = SearchTallies()
    for name in ("a", "b", "c", "a", "d"):
        tallies.searched("acme", name, 0.5)
    assert [one.collection for one in tallies.tallies()] == ["a", "c", "d"]
    for _ in range(3 * WINDOW):
        tallies.searched("acme", "d", 0.5)
    assert sys.getsizeof(tallies._counts["acme", "d"].scores.last) <= 8 * WINDOW


class Scored(LibraryRetriever):
    """Finds one passage with the score that the query names."""

    async def search(
        self,
        caller: Principal,
        collection: str,
        query: str,
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
        page: str = "",
    ) -> Found:
        return Found((Passage("collections/h/documents/1", "", Span(1, 0, 1), "x", float(query)),), next_page="more")


async def test_a_retriever_is_tallied_by_its_first_pages_on_one_scale() -> None:
    tallies = SearchTallies()
    retriever = TalliedRetriever(Scored(MemoryLibrary()), tallies)
    for _ in range(WINDOW):
        await retriever.search(CALLER, "handbook", "0.5", 1)
    for options in (
        SearchOptions(filter="year > 1"),
        SearchOptions(reranker="judge"),
        SearchOptions(diversity=0.5),
        SearchOptions(legs=frozenset({Leg.WORDS})),
    ):
        for _ in range(LEAST_RECENT):
            await retriever.search(CALLER, "handbook", "9.0", 1, options)
    assert drift_of(tallies) is None
    for _ in range(LEAST_RECENT):
        await retriever.search(CALLER, "handbook", "0.75", 1)
        await retriever.search(CALLER, "handbook", "0.1", 1, page="more")
    assert drift_of(tallies) == pytest.approx(0.25)
    assert tallies.tallies()[0].searches == WINDOW + 5 * LEAST_RECENT


async def test_a_retriever_passes_everything_on_and_a_failed_search_is_none() -> None:
    library, tallies = MemoryLibrary(), SearchTallies()
    library.create("handbook")
    behind = LibraryRetriever(library)
    retriever = TalliedRetriever(behind, tallies)
    assert (await retriever.search(CALLER, "handbook", "badge", 3)).passages == ()
    library.add("handbook", document("a.txt", "A badge."))
    options = SearchOptions(explain=True)
    (passage,) = (await retriever.search(CALLER, "handbook", "badge", 3, options)).passages
    assert (passage.text, behind.asked[-1]) == ("A badge.", ("badge", options))
    with pytest.raises(NotFound):
        await retriever.search(CALLER, "absent", "badge", 3)
    assert [one.searches for one in tallies.tallies()] == [2]
