"""BM25 by the postings is BM25 by its definition, what may not be seen counts in nothing, and damage is refused."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import StoreDamaged
from appliance.knowledge.index import analysis, inversion
from appliance.knowledge.index.inversion import HEADING_WEIGHT, MAX_COUNT, Row
from appliance.knowledge.index.lexical import K1, B, Phrase, Statistics, Term, parse, to_statistics
from appliance.knowledge.index.postings import Postings, to_sections
from appliance.types import Bools, Floats

SAID = st.lists(st.sampled_from([f"w{number}" for number in range(20)]), max_size=30).map(" ".join)
ROWS = st.lists(st.builds(Row, SAID, st.just("") | SAID), min_size=1, max_size=40)
MIXED = st.lists(
    st.sampled_from(
        [
            "the badge of the visitor and the gate",
            "der Ausweis und die Tore des Hauses",
            "пропуск и ворота для гостя это все",
            "東京都の入口",
            "gate badge",
            "",
        ]
    ),
    max_size=4,
).map(" ".join)


def every(postings: Postings) -> Bools:
    return np.ones(postings.rows, np.bool_)


def score(postings: Postings, query: str, allowed: Bools | None = None) -> Floats:
    matches = postings.match(parse(query).terms, every(postings) if allowed is None else allowed)
    return matches.score(to_statistics([matches]))


def reopened(rows: list[Row]) -> Postings:
    sections = to_sections(rows)
    positions = sections["positions"]

    def read(start: int, length: int) -> bytes:
        assert 0 <= start <= start + length <= len(positions)
        return positions[start : start + length]

    return Postings(sections["postings"], read)


def held(row: Row) -> Counter[bytes]:
    text, heading = analysis.words(row.text), analysis.words(row.heading)
    return Counter(analysis.index_terms(text + heading * HEADING_WEIGHT, analysis.language_of(text + heading)))


def by_definition(rows: list[Row], query: str) -> list[float]:
    counts = [held(row) for row in rows]
    mean = max(sum(count.total() for count in counts), 1) / max(len(rows), 1)
    scores = [0.0] * len(rows)
    for term in parse(query).terms:
        frequencies = [min(sum(count[form] for form in term.forms), MAX_COUNT) for count in counts]
        holding = sum(frequency > 0 for frequency in frequencies)
        weight = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
        for row, frequency in enumerate(frequencies):
            norm = K1 * (1 - B + B * counts[row].total() / mean)
            scores[row] += weight * frequency * (K1 + 1) / (frequency + norm)
    return scores


def holds_in_order(row: Row, phrase: Phrase) -> bool:
    language = analysis.language_of(analysis.words(row.text) + analysis.words(row.heading))
    for field in (row.text, row.heading):
        terms = analysis.index_terms(analysis.words(field), language)
        for start in range(len(terms) - len(phrase) + 1):
            if all(term in asked.forms for term, asked in zip(terms[start:], phrase, strict=False)):
                return True
    return False


@given(ROWS, SAID)
def test_scores_are_bm25_by_its_definition_also_after_a_round_trip(rows: list[Row], query: str) -> None:
    built = Postings.build(rows)
    np.testing.assert_allclose(score(built, query), by_definition(rows, query), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(score(built, query), score(reopened(rows), query))


@given(st.lists(st.builds(Row, MIXED, MIXED), min_size=1, max_size=12), MIXED)
def test_scores_are_bm25_where_languages_are_mixed(rows: list[Row], query: str) -> None:
    np.testing.assert_allclose(score(Postings.build(rows), query), by_definition(rows, query), rtol=1e-4, atol=1e-5)


@given(ROWS, SAID, st.data())
def test_a_search_of_allowed_rows_equals_a_search_of_an_index_that_has_no_others(
    rows: list[Row], query: str, data: st.DataObject
) -> None:
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    few = [row for row, one in zip(rows, allowed, strict=True) if one]
    postings, alone = Postings.build(rows), Postings.build(few)
    scores = score(postings, query, allowed)
    np.testing.assert_allclose(scores[allowed], score(alone, query), rtol=1e-6)
    assert not scores[~allowed].any()
    terms = parse(query).terms
    found, expected = postings.match(terms, allowed), alone.match(terms, every(alone))
    assert (found.rows, found.total_terms) == (expected.rows, expected.total_terms)
    assert found.frequencies == expected.frequencies


@pytest.mark.parametrize("share", [1, 3, 40])
def test_lists_of_every_kind_are_masked_alike(share: int) -> None:
    rng = np.random.default_rng(1)
    count = 3000
    words = {"often": 0.9, "half": 0.5, "some": 0.1, "rare": 0.01}
    said = {word: rng.random(count) < frequency for word, frequency in words.items()}
    rows = [Row(" ".join(word for word in words if said[word][row])) for row in range(count)]
    allowed = np.arange(count) % share == 0
    alone = Postings.build([rows[row] for row in np.flatnonzero(allowed)])
    expected = score(alone, " ".join(words))
    np.testing.assert_allclose(score(Postings.build(rows), " ".join(words), allowed)[allowed], expected, rtol=1e-6)


def test_every_width_of_gap_and_the_dense_form_are_scored() -> None:
    said = [["common"] for _ in range(70_000)]
    for word, step in {"near": 100, "middle": 1000}.items():
        for row in range(0, 70_000, step):
            said[row].append(word)
    said[65_999] += ["far", "far"]
    postings = reopened([Row(" ".join(words)) for words in said])
    for word, expected in {"near": range(0, 70_000, 100), "middle": range(0, 70_000, 1000), "far": [65_999]}.items():
        assert np.flatnonzero(score(postings, word)).tolist() == list(expected)
    assert np.count_nonzero(score(postings, "common")) == 70_000
    assert np.flatnonzero(postings.holding(parse('"middle far" "common near"').phrases, every(postings))).size == 0
    assert np.flatnonzero(postings.holding(parse('"common far far"').phrases, every(postings))).tolist() == [65_999]


def test_scores_of_two_segments_compare_by_the_statistics_of_the_whole() -> None:
    rows = [Row("red apple"), Row("green apple"), Row("red car"), Row("blue sky")]
    whole = score(Postings.build(rows), "red sky")
    parts = [Postings.build(rows[:2]), Postings.build(rows[2:])]
    matches = [part.match(parse("red sky").terms, every(part)) for part in parts]
    statistics = to_statistics(matches)
    np.testing.assert_allclose(np.concatenate([one.score(statistics) for one in matches]), whole, rtol=1e-6)


def test_a_word_of_the_heading_counts_more_than_one_of_the_text() -> None:
    rows = [
        Row("The badge is blue and new.", "Visitors"),
        Row("The visitor is new here.", "Badges"),
        Row("x"),
        Row("y"),
    ]
    scores = score(Postings.build(rows), "badge")
    assert scores[1] > scores[0] > 0


def test_a_word_said_more_often_than_a_byte_counts_still_scores_and_is_found_in_phrases() -> None:
    postings = reopened([Row("spam " * 1000 + "ham"), Row("ham"), Row("eggs"), Row("tea")])
    assert score(postings, "spam")[0] > 0
    assert postings.holding(parse('"spam spam"').phrases, every(postings)).tolist() == [True, False, False, False]


@given(ROWS, st.lists(st.sampled_from(["w0", "w1", "w2"]), min_size=1, max_size=3), st.data())
def test_a_phrase_is_found_where_its_words_stand_in_order(
    rows: list[Row], said: list[str], data: st.DataObject
) -> None:
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    phrases = parse(f'"{" ".join(said)}"').phrases
    expected = [bool(one) and holds_in_order(row, phrases[0]) for row, one in zip(rows, allowed, strict=True)]
    assert reopened(rows).holding(phrases, allowed).tolist() == expected


@given(st.lists(st.builds(Row, MIXED, MIXED), min_size=1, max_size=8), MIXED.filter(str.strip))
def test_a_phrase_is_found_in_the_language_of_each_row(rows: list[Row], said: str) -> None:
    postings = reopened(rows)
    for phrase in parse(f'"{said}"').phrases:
        expected = [holds_in_order(row, phrase) for row in rows]
        assert postings.holding([phrase], every(postings)).tolist() == expected


def test_no_phrase_reaches_from_the_heading_into_the_text_or_into_itself() -> None:
    postings = Postings.build([Row("badges expire", "visitor badges")])
    for phrase, found in {"visitor badges": True, "badges expire": True, "badges badges": False}.items():
        assert postings.holding(parse(f'"{phrase}"').phrases, every(postings)).tolist() == [found]
    for phrase in ("expire visitor", "badges visitor"):
        assert not postings.holding(parse(f'"{phrase}"').phrases, every(postings)).any()


def test_no_phrase_at_all_leaves_out_nothing() -> None:
    postings = Postings.build([Row("a"), Row("b")])
    assert postings.holding((), np.array([True, False])).tolist() == [True, False]


def test_an_inflection_is_found_in_the_language_of_the_passage_only() -> None:
    rows = [
        Row("Die Verträge werden von dem Haus für das Jahr gezählt."),
        Row("The contracts of the house are counted for the year."),
        Row("Договоры дома на этот год и все что в них есть."),
    ]
    postings = Postings.build(rows)
    for query, row in {"Vertrag": 0, "Häuser": 0, "contract": 1, "counting": 1, "договорами": 2}.items():
        assert np.flatnonzero(score(postings, query)).tolist() == [row], query


def test_a_part_number_is_found_in_any_language() -> None:
    rows = [Row("Die Pumpe P4711 ist in der Halle."), Row("The pump P4711 is in the hall."), Row("P4711")]
    assert np.flatnonzero(score(Postings.build(rows), "p4711")).tolist() == [0, 1, 2]


def test_an_index_without_rows_or_words_is_an_index() -> None:
    for rows in ([], [Row("")], [Row(""), Row("  ", " ")]):
        postings = reopened(rows)
        assert postings.rows == len(rows)
        assert score(postings, "word").tolist() == [0.0] * len(rows)
        assert not postings.holding(parse('"a word"').phrases, every(postings)).any()
        assert postings.match((), every(postings)).score(Statistics(0, 0, {})).tolist() == [0.0] * len(rows)


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [Row("b a", "x"), Row("c b"), Row("Ä ß 中文")]
    assert to_sections(rows) == to_sections(rows)


def test_what_is_built_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(f"the badge {row % 7} of visitor {row}" * (row % 5), "gate") for row in range(300)]
    whole = to_sections(rows)
    monkeypatch.setattr(inversion, "_PART_WORDS", 50)
    assert to_sections(rows) == whole


@given(ROWS, st.data())
def test_postings_cut_anywhere_are_refused(rows: list[Row], data: st.DataObject) -> None:
    whole = to_sections(rows)["postings"]
    with pytest.raises(StoreDamaged):
        Postings(whole[: data.draw(st.integers(0, len(whole) - 1))], lambda start, length: b"")
    with pytest.raises(StoreDamaged):
        Postings(whole + b"x", lambda start, length: b"")


@given(ROWS, SAID, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3))
def test_changed_bytes_are_refused_or_harmless(rows: list[Row], query: str, changes: list[tuple[float, int]]) -> None:
    sections = {name: bytearray(data) for name, data in to_sections(rows).items()}
    for place, change in changes:
        for data in filter(None, sections.values()):
            data[int(place * len(data))] ^= change
    positions = bytes(sections["positions"])

    def read(start: int, length: int) -> bytes:
        if not 0 <= start <= start + length <= len(positions):
            raise StoreDamaged("outside")
        return positions[start : start + length]

    try:
        postings = Postings(bytes(sections["postings"]), read)
        scores = score(postings, query)
        found = postings.holding(parse(f'"{query}"').phrases, every(postings))
    except StoreDamaged:
        return
    assert scores.shape == found.shape == (postings.rows,)
    assert np.isfinite(scores).all()


def test_positions_that_are_too_high_lead_into_no_other_row() -> None:
    sections = to_sections([Row("w0 w1"), Row("x " * 70_000 + "w0 w1")])
    positions = bytearray(sections["positions"])
    # behind the ends of three terms stand those of w0 and w1, a u32 for each row
    positions[24:40] = np.array([9, 2**32 - 2, 9, 2**32 - 1], "<u4").tobytes()
    postings = Postings(sections["postings"], lambda start, length: positions[start : start + length])
    assert postings.holding(parse('"w0 w1"').phrases, every(postings)).tolist() == [False, True]


@given(ROWS, st.data())
def test_positions_cut_short_are_refused(rows: list[Row], data: st.DataObject) -> None:
    sections = to_sections([*rows, Row("w0 w1")])
    cut = sections["positions"][: data.draw(st.integers(0, len(sections["positions"]) - 1))]
    postings = Postings(sections["postings"], lambda start, length: cut[start : start + length])
    try:
        found = postings.holding(parse('"w0 w1"').phrases, every(postings))
    except StoreDamaged:
        return
    assert found[-1]


def test_a_term_with_no_form_of_a_language_here_is_not_found() -> None:
    postings = Postings.build([Row("der Hund und die Katze")])
    assert not score(postings, "dog").any()
    assert postings.match([Term("dog", ())], every(postings)).frequencies == {Term("dog", ()): 0}
