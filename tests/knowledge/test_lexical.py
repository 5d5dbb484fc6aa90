"""What a text asks for: its words, each once, and its phrases; bounded, whatever is asked."""

import math

import pytest

from appliance.knowledge.index.lexical import (
    MAX_PHRASE_TERMS,
    MAX_PHRASES,
    MAX_QUERY_TERMS,
    Statistics,
    Term,
    parse,
    to_statistics,
)


def words(terms: tuple[Term, ...]) -> list[str]:
    return [term.word for term in terms]


def test_a_query_asks_for_each_of_its_words_once() -> None:
    assert words(parse("The badge, the BADGE of a visitor").terms) == ["the", "badge", "of", "a", "visitor"]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ('who said "badges expire" and "at the gate"?', [["badges", "expire"], ["at", "the", "gate"]]),
        ("wer sagte „Ausweise gelten“ oder «am Tor»", [["ausweise", "gelten"], ["am", "tor"]]),
        ("he said “one day”", [["one", "day"]]),
        ("谁说“东京都”", [["东京", "京都"]]),
        ('"one"', [["one"]]),
        ('an open "quote', []),
        ('a 5" pipe and a 6" pipe', []),
        ('"" and "  " and "?!"', []),
        ("it's 'not' a phrase", []),
    ],
)
def test_what_stands_in_quotation_marks_is_a_phrase(text: str, phrases: list[list[str]]) -> None:
    assert [words(phrase) for phrase in parse(text).phrases] == phrases


def test_the_words_of_a_phrase_are_asked_for_too() -> None:
    assert words(parse('"badges expire" soon').terms) == ["badges", "expire", "soon"]


def test_a_query_without_words_asks_for_nothing() -> None:
    for text in ("", "   ", "?!", "\u0000\u200b", '"'):
        assert not parse(text).terms
        assert not parse(text).phrases


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        " ".join(f"w{number}" for number in range(20_000)),
        '"' * 100_000,
        "“" * 100_000,
        "„«“" * 33_000,
        '"a b" ' * 16_000,
        f'"{"a b " * 25_000}"',
        "\u0300\u0327" * 50_000,
        "中" * 100_000,
    ],
    ids=["letters", "words", "quotes", "openings", "mixed", "phrases", "phrase", "marks", "characters"],
)
def test_a_query_of_100k_characters_asks_for_a_bounded_number_of_terms(text: str) -> None:
    parsed = parse(text)
    assert len(parsed.terms) <= MAX_QUERY_TERMS
    assert len(parsed.phrases) <= MAX_PHRASES
    assert all(len(phrase) <= MAX_PHRASE_TERMS for phrase in parsed.phrases)


def test_terms_are_equal_when_their_words_are() -> None:
    assert Term("badge", (b"\x02badg",)) == Term("badge", ())
    assert len({Term("badge", (b"\x02badg",)), Term("badge", ())}) == 1


def test_rarity_is_never_negative_and_falls_with_frequency() -> None:
    common, rare, none = Term("common", ()), Term("rare", ()), Term("none", ())
    statistics = Statistics(100, 1000, {common: 100, rare: 1, none: 0})
    assert 0 < statistics.rarity(common) < statistics.rarity(rare) < statistics.rarity(none)
    assert statistics.rarity(rare) == pytest.approx(math.log(1 + 99.5 / 1.5))


def test_statistics_of_units_are_added() -> None:
    badge = Term("badge", ())
    assert to_statistics([Statistics(3, 10, {badge: 2}), Statistics(4, 20, {badge: 1})]) == Statistics(
        7, 30, {badge: 3}
    )
    assert to_statistics([]) == Statistics(0, 0, {})
