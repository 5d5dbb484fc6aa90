"""Fused search: who may see what, before the best are chosen; and both legs' opinions in one score."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.index.vectors import VectorIndex
from appliance.knowledge.search.rank import LEG_CANDIDATES, Query, best_passages, meaning_weight
from appliance.types import Bools, Document, Floats
from tests.knowledge.conftest import ALL, Shelf

SECRET = frozenset({"role:admin"})
MEANING, WORDS = 1.0, 0.0

State = Callable[[Shelf], object]
STATES = [lambda shelf: None, Shelf.reopen, Shelf.compact]


def leg(shelf: Shelf, text: str, meaning: float, groups: frozenset[str] = ALL, limit: int = 10) -> list[str]:
    """What one leg finds alone."""
    collection = shelf.collection
    snapshot, places = collection._pin(groups)
    query = replace(Query.of(text, shelf.embedder.embed([text])[0], 0), meaning_weight=meaning)
    hits = best_passages(
        snapshot.units, lambda unit: places.mask(unit.number, unit.first_ordinal, unit.documents), query, limit
    )
    return [hit.unit.passage(hit.row)[1] for hit in hits if hit.score > 0]


def every_leg(shelf: Shelf, text: str, groups: frozenset[str] = ALL, limit: int = 10) -> list[list[str]]:
    return [
        leg(shelf, text, MEANING, groups, limit),
        leg(shelf, text, WORDS, groups, limit),
        shelf.search(text, groups, limit),
    ]


@pytest.mark.parametrize("state", STATES)
def test_a_deleted_document_is_not_found_by_any_leg(shelf: Shelf, state: State) -> None:
    document = shelf.add("Badges expire after 90 days.")
    shelf.add("Doors close at night.")
    state(shelf)
    for found in every_leg(shelf, "Badges expire"):
        assert found[0] == "Badges expire after 90 days."
    shelf.delete(document)
    for again in (lambda: None, shelf.reopen, shelf.compact):
        again()
        for found in every_leg(shelf, "Badges expire"):
            assert "Badges expire after 90 days." not in found


@pytest.mark.parametrize("state", STATES)
def test_the_one_readable_passage_is_found_behind_hundreds_that_are_not(shelf: Shelf, state: State) -> None:
    for number in range(3):
        page = "\n\n".join(f"Badges expire badges expire {number} {line}. " * 25 for line in range(LEG_CANDIDATES))
        shelf.add(page, readers=SECRET)
    shelf.add("Some badges also expire later.")
    assert shelf.library.collections()[0].passage_count > 2 * LEG_CANDIDATES
    state(shelf)
    for found in every_leg(shelf, "badges expire", limit=1):
        assert found == ["Some badges also expire later."]
    for found in every_leg(shelf, "badges expire", frozenset({"user:nobody"})):
        assert found == []


def test_a_search_of_an_empty_collection_finds_nothing(shelf: Shelf) -> None:
    assert shelf.search("badges") == []


@pytest.mark.parametrize("query", ["", "   ", "?!", "\0", "x" * 5000])
def test_a_query_without_words_or_of_one_endless_word_finds_something_or_nothing_but_does_not_fail(
    shelf: Shelf, query: str
) -> None:
    shelf.add("Badges expire.")
    assert shelf.search(query) in ([], ["Badges expire."])


def test_no_more_than_the_limit_comes_back_best_first(shelf: Shelf) -> None:
    for number in range(20):
        shelf.add("badges " * number + f"expire {number}")
    passages = shelf.library.search("handbook", "badges", ALL, 7).passages
    assert len(passages) == 7
    scores = [passage.score for passage in passages]
    assert scores == sorted(scores, reverse=True)


def test_a_passage_carries_the_name_and_title_of_its_document(shelf: Shelf) -> None:
    document = shelf.add("Badges expire.", title="badges.md")
    (passage,) = shelf.library.search("handbook", "badges", ALL, 3).passages
    assert (passage.document, passage.title) == (document.name, "badges.md")


def test_scores_compare_across_memtable_and_segments(make_shelf: Callable[..., Shelf]) -> None:
    texts = [f"badge {'expires ' * (number % 5)} office {number} {'door ' * (number % 3)}" for number in range(40)]
    whole, parts = make_shelf(), make_shelf(seal_passages=9)
    for text in texts:
        whole.add(text)
        parts.add(text)
    assert len(list((parts.files / "seg").iterdir())) == 4
    wanted = whole.library.search("handbook", "badge expires", ALL, 15).passages
    found = parts.library.search("handbook", "badge expires", ALL, 15).passages
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=2e-3)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("gone", [False, True])
def test_no_score_tells_what_words_are_in_a_document_that_may_not_be_read(
    make_shelf: Callable[..., Shelf], state: State, gone: bool
) -> None:
    scores = []
    for hidden in ("", "Merger.", "Badges and a merger " * 30):
        shelf = make_shelf()
        shelf.add("Badges expire after 90 days.")
        shelf.add("Doors close at night.")
        if hidden:
            document = shelf.add(hidden, readers=ALL if gone else SECRET)
            if gone:
                state(shelf)
                shelf.delete(document)
        state(shelf)
        found = shelf.library.search("handbook", "badges merger", ALL, 5).passages
        scores.append({passage.text: passage.score for passage in found})
    assert scores[0] == scores[1] == scores[2]


def test_a_caller_who_may_read_all_of_a_segment_is_searched_for_without_a_filter(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("Badges expire.")
    secret = shelf.add("Doors close.", readers=SECRET)
    shelf.compact()
    filters: list[object] = []
    search = VectorIndex.search

    def watched(index: VectorIndex, query: Floats, allowed: Bools | None, k: int) -> object:
        filters.append(None if allowed is None else allowed.tolist())
        return search(index, query, allowed, k)

    monkeypatch.setattr(VectorIndex, "search", watched)
    shelf.search("badges")
    shelf.search("badges", ALL | SECRET)
    assert filters == [[True, False], None]
    assert secret.name in [hit.document for hit in shelf.library.search("handbook", "doors", ALL | SECRET, 1).passages]


def test_a_document_with_the_words_of_the_query_beats_one_without(shelf: Shelf) -> None:
    shelf.add("Doors close at night and open at dawn.")
    shelf.add("Badges expire after ninety days.")
    assert shelf.search("when do badges expire", limit=1) == ["Badges expire after ninety days."]


def test_meaning_counts_less_the_less_the_embedder_knows_the_words() -> None:
    english = meaning_weight("when do badges expire", tokens=7)
    german = meaning_weight("wann laufen Ausweise ab", tokens=11)
    russian = meaning_weight("когда истекает срок действия", tokens=27)
    assert english > german > russian == 0


@given(st.text(), st.integers(0, 600))
def test_the_weight_of_meaning_is_a_share(text: str, tokens: int) -> None:
    assert 0 <= meaning_weight(text, tokens) <= 0.5


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_every_leg_finds_exactly_what_there_is(make_shelf: Callable[..., Shelf], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shelf = make_shelf(seal_passages=int(rng.integers(2, 7)))
    readable: dict[str, tuple[Document, str]] = {}
    for step in range(25):
        what = rng.choice(["add", "add", "add secret", "delete", "compact", "reopen"])
        text = f"badge number{step} expires"
        if what == "add":
            document = shelf.add(text)
            readable[document.id] = (document, text)
        elif what == "add secret":
            shelf.add(text, readers=SECRET)
        elif what == "delete" and readable:
            document, _ = readable.pop(str(rng.choice(sorted(readable))))
            shelf.delete(document)
        elif what == "compact":
            shelf.compact()
        elif what == "reopen":
            shelf.reopen()
        wanted = sorted(text for _, text in readable.values())
        for found in every_leg(shelf, "badge expires", limit=50):
            assert sorted(found) == wanted
        assert {document: pages for document, (pages,) in shelf.contents().items()} == {
            document: text for document, (_, text) in readable.items()
        }
