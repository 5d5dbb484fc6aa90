"""Sentences are ranges: in order, inside the text, and nothing between them but white space."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.chunk import SENTENCE_CHARACTERS, sentences

TEXTS = st.text(
    st.one_of(
        st.characters(), st.sampled_from(" \n\t.!?…,;:-#*|()\"'„“»«0123456789abzABZäßéфЯ中。！\r\f\u2028\u00a0\ufeff")
    ),
    max_size=400,
)


def quoted(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def assert_covers(text: str, ranges: list[tuple[int, int]]) -> None:
    assert all(0 <= start < end <= len(text) for start, end in ranges)
    assert all(end <= following for (_, end), (following, _) in pairwise(ranges))
    outside = list(text)
    for start, end in ranges:
        outside[start:end] = " " * (end - start)
    assert not "".join(outside).strip()


@given(TEXTS)
def test_sentences_are_in_order_and_cover_all_but_white_space(text: str) -> None:
    ranges = sentences(text)
    assert_covers(text, ranges)
    for start, end in ranges:
        assert text[start:end] == text[start:end].strip()
        assert end - start <= SENTENCE_CHARACTERS


def test_a_sentence_ends_at_its_mark_and_not_at_decimals_abbreviations_or_initials() -> None:
    assert quoted(
        "Dr. J. Smith paid 3.14 EUR, e.g. for U.S. guests, at 5 p.m. Then he left! Why? He was late… Yes."
    ) == [
        "Dr. J. Smith paid 3.14 EUR, e.g. for U.S. guests, at 5 p.m.",
        "Then he left!",
        "Why?",
        "He was late…",
        "Yes.",
    ]


def test_a_quotation_goes_with_its_sentence() -> None:
    assert quoted('She said: "Stop!" and left. "Why?" he asked. (It was late.) End.') == [
        'She said: "Stop!" and left.',
        '"Why?" he asked.',
        "(It was late.)",
        "End.",
    ]


def test_a_year_ends_a_sentence_and_a_german_ordinal_does_not() -> None:
    text = "Am 3. Mai kamen z. B. zwei Gäste. Der 2. Versuch gelang (vgl. Abs. 4). Das war 1990. Danach kam nichts."
    assert quoted(text) == [
        "Am 3. Mai kamen z. B. zwei Gäste.",
        "Der 2. Versuch gelang (vgl. Abs. 4).",
        "Das war 1990.",
        "Danach kam nichts.",
    ]


def test_russian_abbreviations_and_initials_do_not_end_a_sentence() -> None:
    assert quoted(
        "А. С. Пушкин, т. е. поэт, родился в 1799 г. Москве. Писал стихи, прозу и т.д. Умер в 1837 году."
    ) == [
        "А. С. Пушкин, т. е. поэт, родился в 1799 г. Москве.",
        "Писал стихи, прозу и т.д.",
        "Умер в 1837 году.",
    ]


def test_chinese_and_japanese_sentences_need_no_spaces() -> None:
    assert quoted("これは文です。次の文です！终") == ["これは文です。", "次の文です！", "终"]


def test_headings_list_items_and_table_rows_stand_alone() -> None:
    text = (
        "# Badges\nBadges expire.\n- milk\n- eggs and\n  bread\n1. First this. Then that.\n2. Last\nName\tAge\nBob\t12"
    )
    assert quoted(text) == [
        "# Badges",
        "Badges expire.",
        "- milk",
        "- eggs and\n  bread",
        "1. First this.",
        "Then that.",
        "2. Last",
        "Name\tAge",
        "Bob\t12",
    ]


def test_a_list_without_punctuation_is_a_sentence_a_line() -> None:
    assert quoted("Milk\nEggs\nBread with butter") == ["Milk", "Eggs", "Bread with butter"]


def test_lines_wrapped_by_a_page_are_one_sentence() -> None:
    wrapped = (
        "The badge of a guest expires after ninety\nDays, and a new one is made at the front\ndesk. It costs nothing."
    )
    assert quoted(wrapped) == [wrapped[: wrapped.index("It")].strip(), "It costs nothing."]


def test_a_heading_above_wrapped_lines_stands_alone() -> None:
    text = "Guests\nThe badge of a guest expires after ninety\ndays, and a new one is made."
    assert quoted(text)[0] == "Guests"


def test_blank_text_has_no_sentences() -> None:
    assert sentences("") == sentences(" \n\t ") == []


@pytest.mark.parametrize(
    "unit", ["a", "word ", ".", ". ", ").", "中", "x\n", " ", "\n", "a.b", "a. ", '"', "1. ", "\t"]
)
def test_a_huge_text_of_any_pattern_is_split(unit: str) -> None:
    # Anything but linear work would take minutes here, and linear work takes parts of a second.
    text = unit * (100_000 // len(unit))
    assert_covers(text, sentences(text))


def test_two_megabytes_on_one_line_with_a_number_in_every_sentence_are_split() -> None:
    # A look back to the line's start at each number would copy forty gigabytes.
    text = "The box left the house in the spring of 1990. " * 40_000
    assert len(sentences(text)) == 40_000
