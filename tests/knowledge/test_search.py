"""Fused search: who may see what, before the best are chosen; and both legs' opinions in one score."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event, Thread
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidArgument
from appliance.knowledge import published
from appliance.knowledge.catalog import Instant, Places
from appliance.knowledge.index.vectors import SegmentVectors
from appliance.knowledge.search import rank, view
from appliance.knowledge.search.rank import LEG_CANDIDATES, Query, best_passages, meaning_weight
from appliance.ports import Embedder
from appliance.types import EVERYONE, Bools, Document, Expand, FacetCount, Floats, Leg, Ranking, SearchOptions
from tests.knowledge.conftest import ALL, Shelf, new_document
from tests.searching import search

SECRET = frozenset({"role:admin"})
MEANING, WORDS = 1.0, 0.0

State = Callable[[Shelf], object]
STATES = [lambda shelf: None, Shelf.reopen, Shelf.compact]


def leg(shelf: Shelf, text: str, meaning: float, groups: frozenset[str] = ALL, limit: int = 10) -> list[str]:
    """What one leg finds alone."""
    collection = shelf.collection
    snapshot, places, _ = collection._published.pin(groups)
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
    passages = search(shelf.library, "handbook", "badges", ALL, 7).passages
    assert len(passages) == 7
    scores = [passage.score for passage in passages]
    assert scores == sorted(scores, reverse=True)


def test_a_passage_carries_the_name_and_title_of_its_document(shelf: Shelf) -> None:
    document = shelf.add("Badges expire.", title="badges.md")
    (passage,) = search(shelf.library, "handbook", "badges", ALL, 3).passages
    assert (passage.document, passage.title) == (document.name, "badges.md")


def test_scores_compare_across_memtable_and_segments(make_shelf: Callable[..., Shelf]) -> None:
    texts = [f"badge {'expires ' * (number % 5)} office {number} {'door ' * (number % 3)}" for number in range(40)]
    whole, parts = make_shelf(), make_shelf(seal_passages=9)
    for text in texts:
        whole.add(text)
        parts.add(text)
    assert len(list((parts.files / "seg").iterdir())) == 4
    wanted = search(whole.library, "handbook", "badge expires", ALL, 15).passages
    found = search(parts.library, "handbook", "badge expires", ALL, 15).passages
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
        found = search(shelf.library, "handbook", "badges merger", ALL, 5).passages
        scores.append({passage.text: passage.score for passage in found})
    assert scores[0] == scores[1] == scores[2]


def test_a_caller_who_may_read_all_of_a_segment_is_searched_for_without_a_filter(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("Badges expire.")
    secret = shelf.add("Doors close.", readers=SECRET)
    shelf.compact()
    filters: list[object] = []
    nearest = SegmentVectors.search

    def watched(index: SegmentVectors, query: Floats, allowed: Bools | None, k: int) -> object:
        filters.append(None if allowed is None else allowed.tolist())
        return nearest(index, query, allowed, k)

    monkeypatch.setattr(SegmentVectors, "search", watched)
    shelf.search("badges")
    shelf.search("badges", ALL | SECRET)
    assert filters == [[True, False], None]
    assert secret.name in [hit.document for hit in search(shelf.library, "handbook", "doors", ALL | SECRET, 1).passages]


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


def add(shelf: Shelf, text: str, readers: frozenset[str] = ALL, **metadata: str | float | bool) -> Document:
    return shelf.library.add("handbook", replace(new_document(text, readers=readers), metadata=metadata))


def texts(shelf: Shelf, query: str, groups: frozenset[str] = ALL, limit: int = 10, **options: Any) -> list[str]:
    found = search(shelf.library, "handbook", query, groups, limit, SearchOptions(**options))
    return [passage.text for passage in found.passages]


@pytest.mark.parametrize("state", STATES)
def test_a_filter_narrows_what_the_caller_may_read_and_nothing_widens_it(shelf: Shelf, state: State) -> None:
    add(shelf, "Badges expire in 2020.", year=2020.0)
    add(shelf, "Badges expire in 2026.", year=2026.0)
    add(shelf, "Badges expire in secret.", SECRET, year=2026.0)
    state(shelf)
    assert texts(shelf, "badges", filter="year = 2026") == ["Badges expire in 2026."]
    assert texts(shelf, "badges", filter="NOT year = 2026") == ["Badges expire in 2020."]
    assert texts(shelf, "badges", filter="year >= 0 OR NOT year >= 0") == texts(shelf, "badges")
    assert texts(shelf, "badges", SECRET, filter="year = 2020") == []
    with pytest.raises(InvalidArgument, match="filter: at character 6"):
        texts(shelf, "badges", filter="year ~ 2026")


def test_facets_count_what_may_be_read_and_passes_the_filter(shelf: Shelf) -> None:
    for year in (2020.0, 2026.0, 2026.0):
        add(shelf, f"Badges of {year} {len(shelf.contents())}", year=year)
    add(shelf, "Badges expire in secret.", SECRET, year=2026.0)
    found = search(shelf.library, "handbook", "badges", ALL, 1, SearchOptions(facets=("year",)))
    assert found.facets == {"year": (FacetCount("2026", 2), FacetCount("2020", 1))}
    filtered = search(
        shelf.library, "handbook", "badges", ALL, 1, SearchOptions(facets=("year",), filter="year < 2026")
    )
    assert filtered.facets == {"year": (FacetCount("2020", 1),)}
    with pytest.raises(InvalidArgument, match="facets: must be at most 16"):
        texts(shelf, "badges", facets=("year",) * 17)


def test_nobody_waits_for_a_filter_that_takes_long_and_it_finds_what_there_was(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(shelf, "Badges expire.", year=2026.0)
    add(shelf, "Badges of old expire.", year=2020.0)
    begun, go_on, places = Event(), Event(), Instant.places

    def slow(instant: Instant) -> Places:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(60)
        return places(instant)

    monkeypatch.setattr(Instant, "places", slow)
    options, found = SearchOptions("year = 2026", facets=("year",)), list[Ranking]()
    thread = Thread(target=lambda: found.append(shelf.library.rank("handbook", "badges", ALL, 9, options)))
    thread.start()
    assert begun.wait(60)
    later = add(shelf, "Badges of today expire.", year=2026.0)
    shelf.compact()
    assert len(shelf.search("badges expire")) == 3
    go_on.set()
    thread.join()
    (ranking,) = found
    assert (len(ranking.candidates), ranking.facets["year"]) == (1, (FacetCount("2026", 1),))
    again = shelf.library.rank("handbook", "badges", ALL, 9, options)
    assert bytes.fromhex(later.id) in [bytes(document) for document in again.candidates["document"]]


def test_a_filter_is_looked_at_once_for_all_facets_and_a_facet_once_however_often_it_is_named(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(shelf, "Badges expire.", year=2026.0)
    asked, run = list[tuple[str, str]](), Instant._run

    def noted(instant: Instant, query: str, *values: Any, **named: Any) -> object:
        asked.append((query, instant._where))
        return run(instant, query, *values, **named)

    monkeypatch.setattr(Instant, "_run", noted)
    shelf.library.rank("handbook", "badges", ALL, 1, SearchOptions("year = 2026", facets=("source", "source", "year")))
    assert len([query for query, _ in asked if "GROUP BY" in query]) == 1 + 3
    assert len([where for _, where in asked if "numbers[?] = ?" in where]) == 1


def test_what_is_remembered_of_who_may_read_what_is_bounded_in_bytes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_REMEMBERED_BYTES", 50_000)
    shelf.add("Badges expire.")
    for number in range(40):
        shelf.library.rank("handbook", "badges", ALL | {f"user:{number}"}, 1)
    remembered = shelf.collection._published._places
    assert 2 < len(remembered) < 20
    assert sum(places.size_bytes for places in remembered.values()) <= 50_000
    assert (ALL | {"user:39"}, None) in remembered
    monkeypatch.setattr(published, "_REMEMBERED_BYTES", 1)
    shelf.library.rank("handbook", "badges", ALL, 1)
    assert list(remembered) == [(ALL, None)]


def test_each_leg_may_be_asked_alone(shelf: Shelf) -> None:
    shelf.add("Badges expire after ninety days.")
    shelf.add("Doors close at night.")
    assert texts(shelf, "badges expire", legs=frozenset({Leg.WORDS})) == ["Badges expire after ninety days."]
    assert texts(shelf, "badges expire", legs=frozenset({Leg.MEANING}))[0] == "Badges expire after ninety days."
    assert len(texts(shelf, "badges expire", legs=frozenset({Leg.MEANING}))) == 2
    with pytest.raises(InvalidArgument, match="legs"):
        texts(shelf, "badges expire", legs=frozenset())


@pytest.mark.parametrize("state", STATES)
def test_an_explanation_tells_each_legs_rank_and_score_and_how_they_add_up(shelf: Shelf, state: State) -> None:
    shelf.add("Badges expire after ninety days.")
    shelf.add("Doors close at night.")
    state(shelf)
    first, second = search(shelf.library, "handbook", "badges expire", ALL, 2, SearchOptions(explain=True)).passages
    assert first.explanation
    assert second.explanation
    assert (first.explanation.words.rank, first.explanation.meaning.rank) == (1, 1)
    assert (second.explanation.words.rank, second.explanation.meaning.rank) == (0, 2)
    assert first.explanation.words.score > second.explanation.words.score == 0
    assert first.explanation.fused == first.score > second.score
    assert second.score == pytest.approx(second.explanation.meaning_weight * second.explanation.meaning.score, abs=1e-6)
    assert first.explanation.reranked is None
    assert search(shelf.library, "handbook", "badges", ALL, 1).passages[0].explanation is None


def test_ranks_of_a_leg_are_counted_over_all_units(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(seal_passages=4)
    for number in range(14):
        shelf.add(f"badge number{number}" + " badge" * number)
    options = SearchOptions(explain=True, legs=frozenset({Leg.WORDS}))
    found = search(shelf.library, "handbook", "badge", ALL, 14, options).passages
    assert [passage.explanation and passage.explanation.words.rank for passage in found] == [*range(1, 15)]


def test_diversity_puts_something_else_before_a_near_copy(shelf: Shelf) -> None:
    for text in (
        "Badges expire after ninety days",
        "Badges expire after ninety days!",
        "Badges open the doors at night",
    ):
        shelf.add(text, title="same")
    assert "open" not in "".join(texts(shelf, "badges expire days", limit=2))
    assert "open" in texts(shelf, "badges expire days", limit=2, diversity=0.9)[1]
    for diversity in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidArgument, match="diversity"):
            texts(shelf, "badges", diversity=diversity)


@pytest.mark.parametrize("state", STATES)
def test_a_passage_is_shown_with_its_section_or_its_page_and_never_with_another_document(
    shelf: Shelf, state: State
) -> None:
    section = "# Badges\n\n" + "A badge is worn by all who enter. " * 60 + "\n\nBadges expire after ninety days."
    page = f"{section}\n\n# Doors\n\n" + "A door is closed at night by the guard. " * 60
    shelf.add(page, "Another page.")
    shelf.add("Badges of another document expire.")
    state(shelf)

    def context(expand: Expand) -> str:
        found = search(shelf.library, "handbook", "badges expire ninety days", ALL, 1, SearchOptions(expand=expand))
        (passage,) = found.passages
        assert "ninety days" in passage.text
        return passage.context

    assert context(Expand.NONE) == ""
    assert context(Expand.SECTION).strip() == section
    assert context(Expand.PAGE) == page.strip()


def test_the_context_of_a_passage_is_bounded_with_the_passage_in_it() -> None:
    text = "".join(f"{number:05d} " for number in range(5000))
    for start in (0, 7_000, 15_000, 29_990):
        shown = view.bounded(text, start, start + 10)
        assert len(shown) <= view.CONTEXT_CHARACTERS
        assert text[start : start + 10].strip() in shown
    assert view.bounded("short", 1, 3) == "short"


def test_a_passage_carries_its_headings_and_a_snippet(shelf: Shelf) -> None:
    shelf.add("# Access\n\n## Badges\n\n" + "Nothing is said here. " * 40 + "A badge expires after ninety days.")
    found = search(shelf.library, "handbook", "when do badges expire", ALL, 5).passages
    passage = next(passage for passage in found if "ninety" in passage.text)
    assert "Access" in passage.heading
    assert "A badge expires after ninety days." in passage.snippet.text
    marked = [passage.snippet.text[start:end] for start, end in passage.snippet.highlights]
    assert {"badge", "expires"} <= set(marked)


@pytest.mark.parametrize("query", ["", "  ", "?!", '"', '""', "“”", "\0", "—", "_", "🙂"])
def test_a_query_without_a_letter_or_digit_finds_nothing(shelf: Shelf, query: str) -> None:
    shelf.add("Badges expire?! — 🙂")
    assert texts(shelf, query) == []


@pytest.mark.parametrize(
    "query",
    [
        "badges expire " * 8000,
        "x" * 100_000,
        " " * 99_000 + "badges",
        '"' * 100_000 + "badges",
        "badges " + "é" * 100_000,
    ],
)
def test_of_a_query_of_a_hundred_thousand_characters_the_beginning_counts(shelf: Shelf, query: str) -> None:
    shelf.add("Badges expire.")
    assert texts(shelf, query) == ["Badges expire."]


def test_words_in_quotation_marks_must_stand_together_unless_they_do_nowhere(shelf: Shelf) -> None:
    shelf.add("Badges expire here.")
    shelf.add("Expire badges there.")
    assert texts(shelf, '"badges expire"') == ["Badges expire here."]
    assert len(texts(shelf, '"badges never"')) == 2


def test_a_phrase_that_only_others_may_read_is_nowhere(shelf: Shelf) -> None:
    shelf.add("Badges expire here.")
    before = texts(shelf, '"secret merger" badges')
    shelf.add("The secret merger of badges.", readers=SECRET)
    assert texts(shelf, '"secret merger" badges') == before


@pytest.mark.parametrize("limit", [-1, 0, 1001])
def test_a_limit_out_of_bounds_is_refused(shelf: Shelf, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="limit: must be between 1 and 1000"):
        shelf.library.rank("handbook", "badges", ALL, limit)


def test_a_query_whose_vector_is_no_number_is_searched_by_its_words(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("Doors close.")
    shelf.add("Badges expire.")
    monkeypatch.setattr(shelf.embedder, "embed", lambda queries: np.full((len(queries), 32), np.nan, np.float32))
    for legs in (frozenset(Leg), frozenset({Leg.WORDS})):
        assert texts(shelf, "badges", legs=legs) == ["Badges expire."]
    assert texts(shelf, "badges", legs=frozenset({Leg.MEANING})) == []


def test_meaning_of_a_long_foreign_query_counts_as_little_as_of_a_short_one(shelf: Shelf) -> None:
    class Tokens:
        """Four tokens a word, 256 in all at most."""

        def embed(self, queries: Sequence[str]) -> Floats:
            return np.ones((len(queries), 32), np.float32)

        def count_tokens(self, queries: Sequence[str]) -> int:
            return sum(min(256, 2 + 4 * len(query.split())) for query in queries)

    for words in (5, 500):
        query = Query.asked("слово " * words, frozenset(Leg), cast(Embedder, Tokens()))
        assert query.meaning_weight == 0


def test_a_ranking_is_shown_after_compaction_and_without_what_was_deleted_or_revoked(shelf: Shelf) -> None:
    made = [shelf.add(f"Badges expire {number}.") for number in range(6)]
    ranking = shelf.library.rank("handbook", "badges expire", ALL, 10)
    wanted = [passage.text for passage in shelf.library.show("handbook", "badges expire", ALL, ranking)]
    assert len(wanted) == 6
    shelf.delete(made[0])
    shelf.library.set_readers("handbook", made[1].id, SECRET, ALL)
    shelf.add("Badges expire now.")
    for change in (lambda: None, shelf.compact, shelf.reopen):
        change()
        shown = shelf.library.show("handbook", "badges expire", ALL, ranking, SearchOptions(expand=Expand.SECTION))
        left = [text for text in wanted if text not in ("Badges expire 0.", "Badges expire 1.")]
        assert [passage.text for passage in shown] == left
        assert [passage.context for passage in shown] == left
    assert shelf.library.show("handbook", "badges expire", frozenset({EVERYONE + "!"}), ranking) == ()


def test_where_no_word_tells_passages_apart_meaning_orders_them(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        shelf.add(f"{'badge ' * number}door {number}", title="same")
    monkeypatch.setattr(rank, "meaning_weight", lambda text, tokens: 0.0)
    found = search(shelf.library, "handbook", "guard", ALL, 9, SearchOptions(explain=True)).passages
    assert {passage.score for passage in found} == {0.0}
    assert [passage.explanation and passage.explanation.meaning.rank for passage in found] == [*range(1, 10)]


@given(st.lists(st.integers(0, 20), max_size=700), st.integers(1, 60))
def test_the_best_rows_by_score_are_found_whatever_their_number(values: list[int], k: int) -> None:
    scores = np.array(values, np.float32)
    best = rank._top(scores, k)
    assert len(set(best.tolist())) == len(best) == min(k, np.count_nonzero(scores))
    assert sorted(scores[best].tolist(), reverse=True) == sorted(values, reverse=True)[: len(best)]
