"""Snippets: the best part of a passage in one line, and which of its words were asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.search.snippet import SNIPPET_CHARACTERS, snippet
from appliance.knowledge.search.view import query_words
from appliance.types import Snippet

FILLER = "Nothing of that kind is said in this sentence here. "


def shown(text: str, query: str) -> tuple[str, list[str]]:
    """The snippet, and what is highlighted in it."""
    found = snippet(text, query_words(query))
    return found.text, [found.text[start:end] for start, end in found.highlights]


def test_a_short_passage_is_shown_whole_in_one_line_with_the_words_that_were_asked_for() -> None:
    assert shown("Badges\n  expire after\t90 days.", "badges 90") == ("Badges expire after 90 days.", ["Badges", "90"])


def test_the_sentence_that_answers_is_found_in_a_long_passage() -> None:
    text, marked = shown(FILLER * 10 + "A badge expires after ninety days. " + FILLER * 10, "when do badges expire")
    assert text.startswith("A badge expires after ninety days.")
    assert marked == ["badge", "expires"]


def test_two_words_in_one_sentence_win_over_the_same_word_many_times() -> None:
    text, _ = shown("The badge is a badge. Badges! " * 10 + FILLER * 9 + "Your badge will expire soon.", "badge expire")
    assert "Your badge will expire soon." in text


@pytest.mark.parametrize(
    ("text", "query", "marked"),
    [
        ("Die Ausweise der Mitarbeiter verfallen nach neunzig Tagen.", "Ausweis verfällt Mitarbeiter", ["Ausweise"]),
        ("The officers were renewing their badges and the keys.", "officer renew badge", ["officers", "renewing"]),
        ("我的工作证在九十天后过期。", "工作证过期", ["工作证", "过期"]),
        ("ＡＢＣ badge №5", "abc", ["ＡＢＣ"]),
        ("Straße und STRASSE", "strasse", ["Straße", "STRASSE"]),
    ],
)
def test_words_are_compared_as_the_index_compares_them(text: str, query: str, marked: list[str]) -> None:
    assert set(marked) <= set(shown(text, query)[1])


def test_without_any_word_of_the_query_the_beginning_is_shown() -> None:
    text, marked = shown(FILLER * 20, "badges")
    assert text.startswith("Nothing of that kind")
    assert marked == []


def test_an_endless_sentence_is_cut_at_words_around_the_first_that_was_asked_for() -> None:
    text, marked = shown("word " * 300 + "badge " + "word " * 300, "badge")
    assert text.startswith("… word")
    assert text.endswith("word …")
    assert marked == ["badge"]


@pytest.mark.parametrize("text", ["", " \n ", "x" * 5000, "。" * 1000, "a\u0301" * 700, "🙂" * 700, "\0"])
def test_no_text_is_too_strange(text: str) -> None:
    assert len(shown(text, "badge x 。 🙂")[0]) <= SNIPPET_CHARACTERS + 4


def test_nothing_gives_nothing() -> None:
    assert snippet("", query_words("badge")) == Snippet("")
    assert snippet("Badges.", query_words("")) == Snippet("Badges.")


WORDS = st.sampled_from(
    ["badge", "Badges.", "expire", "door", "\n\n", "工作证过期", "ausweise", "—", "word" * 30, "3.5", "é."]
)


@given(words=st.lists(WORDS, max_size=120), query=st.lists(WORDS, max_size=4))
def test_a_snippet_is_one_line_of_the_text_and_its_highlights_are_words_of_it(
    words: list[str], query: list[str]
) -> None:
    text = " ".join(words)
    found = snippet(text, query_words(" ".join(query)))
    body = found.text.removeprefix("… ").removesuffix(" …")
    assert body in " ".join(text.split()) or body == ""
    assert len(body) <= SNIPPET_CHARACTERS
    assert "\n" not in found.text
    last = 0
    for start, end in found.highlights:
        assert last <= start < end <= len(found.text)
        assert not found.text[start:end].isspace()
        last = end + 1
