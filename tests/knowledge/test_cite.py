"""Citations: a quotation is found again where it stands, and an answer's sentence is believed only with evidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.answer.cite import (
    Sentence,
    Statement,
    locate,
    quoted_from,
    sentences_of,
    statements,
    supporting,
)
from appliance.types import Floats, Passage, Span

PAGE = "Badges expire after 90 days.\nA new badge costs 5 euros. The front desk “makes” badges."


def stored(page: str = PAGE, number: int = 1) -> list[Sentence]:
    return sentences_of(
        number, Passage("collections/c/documents/d", "badges.md", Span(1, 0, len(page)), page, 1.0), page
    )


def statement(text: str, *cited: int) -> Statement:
    return Statement(0, len(text), text, frozenset(cited))


def likeness(*values: float) -> Floats:
    return np.array(values, np.float32)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_stands_in_a_text_is_found_there(before: str, quote: str, after: str) -> None:
    text = f"{before} {quote} {after}"
    found = locate(quote, text)
    assert found is not None if quote else found is None
    assert found is None or text[slice(*found)] == quote


@given(
    st.text(st.sampled_from("aB ßİ\n“\u00ad-—'"), max_size=30),
    st.text(st.sampled_from("aB ßİ\n“\u00ad-—'"), max_size=5),
)
def test_a_place_is_always_inside_the_text(text: str, wanted: str) -> None:
    found = locate(wanted, text)
    assert found is None or 0 <= found[0] < found[1] <= len(text)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("badges EXPIRE after", "Badges expire after"),
        ("90 days. A new", "90 days.\nA new"),
        ('"makes" badges', "“makes” badges"),
        ("Badges expire after", "Badges expire after"),
    ],
)
def test_a_quotation_is_found_despite_case_white_space_and_marks(wanted: str, expected: str) -> None:
    found = locate(wanted, PAGE)
    assert found is not None
    assert PAGE[slice(*found)] == expected


def test_letters_that_fold_to_two_keep_their_place() -> None:
    text = "Die STRASSE und die Straße am Fluß."
    found = locate("die strasse am fluss", text)
    assert found is not None
    assert text[slice(*found)] == "die Straße am Fluß"


def test_what_does_not_stand_there_is_not_found() -> None:
    assert locate("badges never expire", PAGE) is None
    assert locate("", PAGE) is None
    assert locate("\u00ad ", PAGE) is None


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("after 9", "after 90 days"),
        ("after 9.", "after 9.5 days"),
        ("5 euros", "costs 1,5 euros"),
        ("pay fees", "pay feesable"),
        ("able", "payable"),
        ("fuss", "Fußball"),
    ],
)
def test_part_of_a_word_or_number_is_no_quotation(quote: str, text: str) -> None:
    assert locate(quote, text) is None


def test_a_later_occurrence_between_word_borders_is_found() -> None:
    assert locate("fees", "feesable fees") == (9, 13)
    assert locate("有効期限", "社員証の有効期限は九十日です。") == (4, 8)


def test_statements_take_their_markers_with_them_wherever_they_stand() -> None:
    answer = "Badges expire [1]. New ones cost 5 euros. [2] [3, 4] Ask at the desk."
    found = statements(answer)
    assert [(one.text, sorted(one.cited)) for one in found] == [
        ("Badges expire.", [1]),
        ("New ones cost 5 euros.", [2, 3, 4]),
        ("Ask at the desk.", []),
    ]
    assert [answer[one.start : one.end] for one in found] == [
        "Badges expire [1].",
        "New ones cost 5 euros. [2] [3, 4]",
        "Ask at the desk.",
    ]


def test_an_answer_of_marks_and_markers_alone_states_nothing() -> None:
    assert statements("") == statements(" … [1] --- !") == []


@given(st.text(st.sampled_from("ab .[]123,\n"), max_size=60))
def test_statements_are_in_order_and_inside_the_answer(answer: str) -> None:
    found = statements(answer)
    places = [place for one in found for place in (one.start, one.end)]
    assert places == sorted(places)
    assert all(0 <= one.start < one.end <= len(answer) for one in found)


def test_words_that_are_repeated_are_cited_at_their_very_place() -> None:
    sentence = quoted_from(statement("a new badge costs 5 EUROS"), stored())
    assert sentence is not None
    assert sentence.text == PAGE[sentence.span.start : sentence.span.end] == "A new badge costs 5 euros"


def test_a_repetition_is_looked_for_in_the_cited_passage_first() -> None:
    both = stored(number=1) + stored(number=2)
    found = quoted_from(statement("Badges expire after 90 days.", 2), both)
    assert found is not None
    assert found.passage == 2


@pytest.mark.parametrize(
    ("said", "page"),
    [
        ("Badges expire after 9.", "Badges expire after 90 days."),
        ("Visitors must pay fees", "No visitors must pay feesable things."),
        ("Visitors must pay fees.", "No visitors must pay fees."),
        ("Visitors must pay fees.", "It isn't so that visitors must pay fees."),
        ("Besucher zahlen eine Gebühr", "Nie sollen Besucher zahlen eine Gebühr."),
    ],
)
def test_words_cut_out_of_what_says_otherwise_are_backed_by_nothing(said: str, page: str) -> None:
    assert quoted_from(statement(said, 1), stored(page)) is None
    assert supporting(statement(said, 1), stored(page), likeness(1)) is None


def test_a_denial_is_backed_by_a_denial() -> None:
    page = "No visitors must pay fees."
    assert quoted_from(statement("No visitors must pay fees."), stored(page)) is not None
    assert supporting(statement("Visitors must not pay fees."), stored(page), likeness(1)) is not None


def test_a_word_or_two_are_no_quotation() -> None:
    assert quoted_from(statement("Badges."), stored()) is None


def test_the_same_in_other_words_is_supported_by_words_and_meaning_together() -> None:
    said = statement("After 90 days all badges will expire.")
    found = supporting(said, stored(), likeness(0.9, 0.3, 0.3))
    assert found is not None
    assert found.text == "Badges expire after 90 days."
    assert supporting(said, stored(), likeness(0.1, 0.1, 0.1)) is None


def test_another_number_is_never_supported() -> None:
    assert supporting(statement("Badges expire after 30 days.", 1), stored(), likeness(1, 1, 1)) is None


def test_a_marker_lowers_the_bar_but_is_not_believed_by_itself() -> None:
    said = "Badges will surely expire at some point."
    assert supporting(statement(said), stored(), likeness(0.8, 0.2, 0.2)) is None
    assert supporting(statement(said, 1), stored(), likeness(0.84, 0.2, 0.2)) is not None
    assert supporting(statement("The moon is made of cheese.", 1), stored(), likeness(0.2, 0.2, 0.2)) is None


def test_sentences_are_whole_where_a_passage_cuts_them() -> None:
    page = "First of all. Words " + "word " * 100 + "end. Last of all."
    cut = Span(1, 200, len(page) - 40)
    found = sentences_of(3, Passage("d", "t", cut, page[cut.start : cut.end], 1.0), page)
    assert [one.text for one in found] == ["Words " + "word " * 100 + "end."]
    assert page[found[0].span.start : found[0].span.end] == found[0].text


def test_a_page_like_a_book_is_split_only_around_the_passage() -> None:
    page = "This is a sentence of a long book. " * 100_000
    span = Span(1, 1_750_000, 1_750_700)
    found = sentences_of(1, Passage("d", "t", span, page[span.start : span.end], 1.0), page)
    assert 20 <= len(found) <= 22
    assert all(page[one.span.start : one.span.end] == one.text for one in found)
