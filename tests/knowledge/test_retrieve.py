"""Search in pages that stand still, in a reranker's order."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from appliance.errors import InvalidArgument, NotFound
from appliance.knowledge.library import Library
from appliance.knowledge.search import retrieve
from appliance.knowledge.search.retrieve import Kept, Retriever
from appliance.types import (
    CANDIDATE,
    EVERYONE,
    Encoded,
    Expand,
    Found,
    Passage,
    Principal,
    Ranking,
    Role,
    SearchOptions,
)
from tests.fakes import WordEncoders
from tests.knowledge.conftest import ALL, Shelf, new_document

ANN = Principal("default", "ann", Role.APP)
SECRET = frozenset({"role:admin"})


class OneLibrary:
    """`ports.Libraries` of one tenant."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.asked: list[str] = []

    def of(self, tenant: str) -> Library:
        self.asked.append(tenant)
        return self.shelf.library


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A retriever over a shelf of numbered documents, whose texts are told apart by their number."""

    def __init__(self, shelf: Shelf, documents: int = 10, encoders: WordEncoders | None = None) -> None:
        self.shelf, self.clock, self.libraries = shelf, Clock(), OneLibrary(shelf)
        self.retriever = Retriever(self.libraries, encoders or WordEncoders(), self.clock)
        self.made = [shelf.add(f"Badges expire on day {number}.") for number in range(documents)]

    async def page(self, limit: int = 3, page: str = "", caller: Principal = ANN, **options: object) -> Found:
        asked = SearchOptions(**options)  # type: ignore[arg-type]
        return await self.retriever.search(caller, "handbook", "badges expire day", limit, asked, page)

    async def rest(self, page: str, limit: int = 3) -> list[str]:
        """Everything from that page on."""
        texts: list[str] = []
        while page:
            found = await self.page(limit, page)
            texts += said(found)
            page = found.next_page
        return texts


def said(found: Found) -> list[str]:
    return [passage.text for passage in found.passages]


@pytest.fixture
def desk(shelf: Shelf) -> Desk:
    return Desk(shelf)


async def test_pages_together_are_the_whole_ranking_each_passage_once(desk: Desk) -> None:
    first = await desk.page(3)
    assert len(first.passages) == 3
    texts = [*said(first), *await desk.rest(first.next_page)]
    ranking = desk.shelf.library.rank("handbook", "badges expire day", ALL, 100)
    shown = desk.shelf.library.show("handbook", "badges expire day", ALL, ranking)
    assert texts == [passage.text for passage in shown]
    assert len(set(texts)) == 10
    assert desk.libraries.asked[0] == "default"


async def test_the_last_page_has_no_next_one(desk: Desk) -> None:
    assert (await desk.page(10)).next_page == ""
    assert (await desk.page(9)).next_page != ""
    assert (await desk.page(100)).next_page == ""


async def test_no_more_than_ten_pages_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "LEAST_CANDIDATES", 5)
    monkeypatch.setattr(retrieve, "PAGES", 2)
    first = await desk.page(3)
    assert len(await desk.rest(first.next_page)) == 3


async def test_what_is_written_between_two_pages_moves_nothing(desk: Desk) -> None:
    whole = said(await desk.page(10))
    first = await desk.page(3)
    for number in range(5):
        desk.shelf.add(f"Badges expire day badges expire day {number}")
    desk.shelf.compact()
    assert [*said(first), *await desk.rest(first.next_page, 2)] == whole


async def test_what_is_deleted_or_revoked_between_two_pages_is_left_out_and_the_page_filled(desk: Desk) -> None:
    whole = said(await desk.page(10))
    first = await desk.page(3)
    gone = {text: document for document in desk.made for text in desk.shelf.contents()[document.id]}
    desk.shelf.delete(gone[whole[3]])
    desk.shelf.library.set_readers("handbook", gone[whole[5]].id, SECRET, ALL)
    desk.shelf.compact()
    second = await desk.page(3, first.next_page)
    assert said(second) == [whole[4], whole[6], whole[7]]
    assert await desk.rest(second.next_page) == whole[8:]


async def test_a_page_may_be_read_again(desk: Desk) -> None:
    first = await desk.page(3)
    second = await desk.page(3, first.next_page)
    assert await desk.page(3, first.next_page) == second
    assert said(await desk.page(2, first.next_page)) == said(second)[:2]


async def test_a_token_is_good_for_its_caller_and_its_arguments_only(desk: Desk) -> None:
    token = (await desk.page(3)).next_page
    for caller in (Principal("default", "bob", Role.APP), Principal("other", "ann", Role.APP)):
        with pytest.raises(InvalidArgument, match="page_token: belongs to another search"):
            await desk.page(3, token, caller)
    with pytest.raises(InvalidArgument, match="page_token: belongs to another search"):
        await desk.page(3, token, filter="page_count = 1")
    with pytest.raises(InvalidArgument, match="page_token: belongs to another search"):
        await desk.retriever.search(ANN, "handbook", "badges", 3, SearchOptions(), token)


@pytest.mark.parametrize("token", ["x", "1-2", "0" * 32, f"{'0' * 32}-", f"{'0' * 32}--1", f"{'0' * 32}-99999", "é"])
async def test_a_token_that_is_none_is_refused(desk: Desk, token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        await desk.page(3, token)


async def test_a_place_behind_the_end_gives_an_empty_last_page(desk: Desk) -> None:
    token, _ = (await desk.page(3)).next_page.split("-")
    assert await desk.page(3, f"{token}-9999") == Found(())


async def test_a_token_expires_ten_minutes_after_its_last_use(desk: Desk) -> None:
    token = (await desk.page(3)).next_page
    desk.clock.now += 599
    await desk.page(3, token)
    desk.clock.now += 599
    await desk.page(3, token)
    desk.clock.now += 601
    with pytest.raises(InvalidArgument, match="page_token: has expired; search again"):
        await desk.page(3, token)


@pytest.mark.parametrize("limit", [-1, 0, 101])
async def test_a_limit_out_of_bounds_is_refused(desk: Desk, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="limit: must be between 1 and 100"):
        await desk.page(limit)


async def test_a_collection_that_is_not_there_is_not_found(desk: Desk) -> None:
    with pytest.raises(NotFound):
        await desk.retriever.search(ANN, "none", "badges", 3)


async def test_an_empty_collection_gives_one_empty_page(shelf: Shelf) -> None:
    desk = Desk(shelf, documents=0)
    assert await desk.page(3) == Found(())
    assert await desk.page(3, reranker="judge") == Found(())


async def test_facets_come_with_the_first_page_alone(desk: Desk) -> None:
    first = await desk.page(3, facets=("source",))
    assert [(count.value, count.documents) for count in first.facets["source"]] == [("stick", 10)]
    assert (await desk.page(3, first.next_page, facets=("source",))).facets == {}


async def test_options_reach_later_pages(desk: Desk) -> None:
    first = await desk.page(3, expand=Expand.PAGE, explain=True)
    second = await desk.page(3, first.next_page, expand=Expand.PAGE, explain=True)
    assert [passage.context for passage in second.passages] == said(second)
    assert all(passage.explanation for passage in second.passages)


async def test_a_reranker_that_there_is_not_is_told_before_anything_is_searched(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked: list[object] = []
    monkeypatch.setattr(Library, "rank", lambda *asked: ranked.append(asked))
    for query in ("badges", "nothing that there is"):
        with pytest.raises(NotFound, match="models/none"):
            await desk.retriever.search(ANN, "handbook", query, 3, SearchOptions(reranker="none"))
    assert ranked == []


class Backwards(WordEncoders):
    """A reranker that likes high days best, or says what is no number."""

    def __init__(self, nonsense: bool = False) -> None:
        self.nonsense = nonsense
        self.read: list[str] = []

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> Encoded:
        self.read = list(texts)
        days = [float(text.split()[-1].rstrip(".")) for text in texts]
        scores = [np.nan if self.nonsense and day > 5 else day for day in days]
        return Encoded(np.array(scores, np.float32)[:, None], len(texts))


async def test_a_reranker_orders_the_best_anew_and_says_its_score(shelf: Shelf) -> None:
    encoders = Backwards()
    desk = Desk(shelf, encoders=encoders)
    first = await desk.page(4, reranker="judge", explain=True)
    assert said(first) == [f"Badges expire on day {number}." for number in (9, 8, 7, 6)]
    assert [passage.explanation and passage.explanation.reranked for passage in first.passages] == [9, 8, 7, 6]
    second = await desk.page(6, first.next_page, reranker="judge", explain=True)
    assert said(second) == [f"Badges expire on day {number}." for number in (5, 4, 3, 2, 1, 0)]
    assert len(encoders.read) == 10


async def test_what_a_reranker_gives_no_number_for_comes_last_of_what_it_read(shelf: Shelf) -> None:
    desk = Desk(shelf, encoders=Backwards(nonsense=True))
    found = said(await desk.page(10, reranker="judge"))
    assert found[:5] == [f"Badges expire on day {number}." for number in (5, 4, 3, 2, 1)]


async def test_what_no_reranker_read_follows_as_it_stood(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "RERANKED", 4)
    desk = Desk(shelf, encoders=Backwards())
    plain = said(await desk.page(10))
    found = await desk.page(10, reranker="judge", explain=True)
    assert said(found)[4:] == plain[4:]
    assert sorted(said(found)[:4], reverse=True) == said(found)[:4]
    assert [passage.explanation and passage.explanation.reranked for passage in found.passages[4:]] == [None] * 6


async def test_a_reranker_reads_headings_and_text(shelf: Shelf) -> None:
    class Reader(WordEncoders):
        read: tuple[str, ...] = ()

        async def rerank(self, model: str, query: str, texts: Sequence[str]) -> Encoded:
            self.read = tuple(texts)
            return Encoded(np.zeros((len(texts), 1), np.float32), 1)

    reader = Reader()
    desk = Desk(shelf, documents=0, encoders=reader)
    shelf.add("# Access\n\nBadges expire every day.")
    await desk.page(1, reranker="judge")
    assert "Access" in reader.read[0]
    assert "Badges expire every day." in reader.read[0]


async def test_diversity_comes_after_the_reranker(shelf: Shelf) -> None:
    desk = Desk(shelf, documents=0, encoders=Backwards())
    for text in ("Badges expire on day 9", "Badges expire on day 8", "Doors close at night after 7"):
        shelf.add(text, title="same")
    assert said(await desk.page(2, reranker="judge"))[1] == "Badges expire on day 8"
    assert said(await desk.page(2, reranker="judge", diversity=0.9))[1] == "Doors close at night after 7"


async def test_a_reranker_that_is_not_there_is_not_found(desk: Desk) -> None:
    with pytest.raises(NotFound, match="models/other"):
        await desk.page(3, reranker="other")


def ranking(candidates: int) -> Ranking:
    return Ranking(np.zeros(candidates, CANDIDATE), 0.5, {}, np.zeros((candidates, 384), np.float32))


def test_kept_rankings_are_bounded_in_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    kept = Kept(clock)
    first, second = (kept.put(("ann",), ranking(1000)) for _ in range(2))
    kept.get(first, ("ann",))
    monkeypatch.setattr(retrieve, "KEPT_BYTES", 2000 * CANDIDATE.itemsize)
    last = kept.put(("ann",), ranking(50))
    assert len(kept) == 2
    assert 1050 * CANDIDATE.itemsize < kept.used_bytes < 2000 * CANDIDATE.itemsize
    assert kept.get(last, ("ann",)).vectors.size == 0
    with pytest.raises(InvalidArgument, match="has expired"):
        kept.get(second, ("ann",))
    clock.now += 601
    kept.put(("ann",), ranking(1))
    assert len(kept) == 1
    assert kept.used_bytes < 20 * CANDIDATE.itemsize + 1024
    monkeypatch.setattr(retrieve, "KEPT_BYTES", 10 * CANDIDATE.itemsize + 50_000)
    for _ in range(100):
        kept.put(("ann",), ranking(0))
    assert len(kept) < 60


def test_a_tenant_with_many_rankings_pushes_out_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "KEPT_BYTES", 500 * CANDIDATE.itemsize)
    kept = Kept(Clock())
    mine = kept.put(("acme", "ann"), ranking(100))
    others = [kept.put(("other", f"user{number}"), ranking(50)) for number in range(30)]
    assert len(kept.get(mine, ("acme", "ann")).candidates) == 100
    with pytest.raises(InvalidArgument, match="has expired"):
        kept.get(others[0], ("other", "user0"))
    assert len(kept.get(others[-1], ("other", "user29")).candidates) == 50


def test_everyone_is_a_group_of_every_caller() -> None:
    assert EVERYONE in ANN.groups


async def test_a_search_of_one_page_has_the_same_first_page_and_no_next(desk: Desk) -> None:
    first = await desk.page()
    alone = await desk.page(paged=False)
    assert said(alone) == said(first)
    assert (bool(first.next_page), alone.next_page) == (True, "")


class Meddling(OneLibrary):
    """Runs `meddle` before passages are shown the first time, and notes what each showing asks for."""

    def __init__(self, shelf: Shelf, meddle: Callable[[], object]) -> None:
        super().__init__(shelf)
        self.meddle, self.shown = meddle, list[SearchOptions]()

    def of(self, tenant: str) -> Library:
        library = self.shelf.library

        class Shown:
            rank = library.rank

            def show(_, collection: str, query: str, groups: frozenset[str], *rest: Any) -> tuple[Passage, ...]:  # noqa: N805
                if not self.shown:
                    self.meddle()
                self.shown.append(rest[1])
                return library.show(collection, query, groups, *rest)

        return cast(Library, Shown())


@pytest.mark.parametrize("reranker", ["", "judge"])
async def test_what_is_replaced_between_ranking_and_reading_is_found_as_it_is_now(shelf: Shelf, reranker: str) -> None:
    old = shelf.add("Badges expire after 90 days.")
    for number in range(5):
        shelf.add(f"Doors close at {number}.")
    new = replace(new_document("Badges expire after 30 days."), replaces=old.id)
    libraries = Meddling(shelf, lambda: shelf.library.add("handbook", new))
    retriever = Retriever(libraries, WordEncoders())
    found = await retriever.search(ANN, "handbook", "badges expire", 1, SearchOptions(reranker=reranker, paged=False))
    assert said(found) == ["Badges expire after 30 days."]


async def test_what_is_deleted_between_ranking_and_reading_leaves_a_full_page(shelf: Shelf) -> None:
    made = [shelf.add(f"Badges expire on day {number}.") for number in range(4)]
    libraries = Meddling(shelf, lambda: list(map(shelf.delete, made[:2])))
    found = await Retriever(libraries, WordEncoders()).search(ANN, "handbook", "badges expire day", 3)
    assert sorted(said(found)) == ["Badges expire on day 2.", "Badges expire on day 3."]
    assert found.next_page == ""


async def test_a_reranker_reads_no_wider_text_than_the_passages(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    libraries = Meddling(shelf, lambda: None)
    options = SearchOptions(reranker="judge", expand=Expand.PAGE, explain=True)
    found = await Retriever(libraries, WordEncoders()).search(ANN, "handbook", "Badges", 3, options)
    assert [one.expand for one in libraries.shown] == [Expand.NONE, Expand.PAGE]
    assert [passage.context for passage in found.passages] == ["Badges expire."]


async def test_a_passages_score_is_the_rerankers_where_there_is_one(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieve, "RERANKED", 2)
    desk = Desk(shelf, 3, Backwards())
    found = (await desk.page(3, reranker="judge", explain=True)).passages
    reranked = [passage.explanation and passage.explanation.reranked for passage in found]
    fused = [passage.explanation and passage.explanation.fused for passage in found]
    assert [passage.score for passage in found] == [*reranked[:2], fused[2]]
    assert [passage.score for passage in (await desk.page(3)).passages] == sorted(fused, reverse=True)  # type: ignore[type-var]
