"""BM25 by the compressed postings equals BM25 by its definition, and damage is refused."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import StoreDamaged
from appliance.knowledge.index.lexical import K1, B, Postings, Statistics, terms

WORDS = st.lists(st.sampled_from([f"w{number}" for number in range(30)]), max_size=40).map(" ".join)


def statistics(postings: Postings, query: list[str]) -> Statistics:
    every = np.ones(postings.rows, np.bool_)
    frequencies = {term: postings.frequency(term, every) for term in query}
    return Statistics(postings.rows, postings.total_terms(every), frequencies)


def by_definition(documents: list[str], query: list[str]) -> list[float]:
    held = [Counter(terms(document)) for document in documents]
    mean = max(sum(sum(count.values()) for count in held), 1) / max(len(documents), 1)
    scores = []
    for count in held:
        score = 0.0
        for term in query:
            holding = sum(term in other for other in held)
            weight = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            frequency = min(count[term], 255)
            score += weight * frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * sum(count.values()) / mean))
        scores.append(score)
    return scores


@given(st.lists(WORDS, min_size=1, max_size=60), WORDS)
def test_scores_are_bm25_by_its_definition_also_after_a_round_trip(documents: list[str], question: str) -> None:
    query = terms(question)
    built = Postings.build(documents)
    read = Postings.from_bytes(built.to_bytes())
    expected = by_definition(documents, query)
    np.testing.assert_allclose(built.score(query, statistics(built, query)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        built.score(query, statistics(built, query)), read.score(query, statistics(read, query))
    )


def test_every_width_of_gap_and_the_dense_form_are_scored() -> None:
    documents = ["common"] * 70_000
    documents[65_999] += " far"
    for row in range(0, 70_000, 1000):
        documents[row] += " middle"
    for row in range(0, 70_000, 100):
        documents[row] += " near"
    postings = Postings.from_bytes(Postings.build(documents).to_bytes())
    for word, step in {"middle": 1000, "near": 100}.items():
        query = terms(word)
        np.testing.assert_array_equal(np.flatnonzero(postings.score(query, statistics(postings, query)))[1], step)
        assert statistics(postings, query).frequencies[query[0]] == 70_000 // step
    assert np.flatnonzero(postings.score(["far"], statistics(postings, ["far"]))).tolist() == [65_999]
    assert np.count_nonzero(postings.score(["common"], statistics(postings, ["common"]))) == 70_000


def test_a_word_said_more_often_than_a_byte_counts_still_scores() -> None:
    postings = Postings.build(["spam " * 1000, "ham", "eggs", "tea"])
    assert postings.score(["spam"], statistics(postings, ["spam"]))[0] > 0


def test_scores_of_two_segments_compare_by_the_statistics_of_the_whole() -> None:
    whole = Postings.build(["red apple", "green apple", "red car", "blue sky"])
    parts = [Postings.build(["red apple", "green apple"]), Postings.build(["red car", "blue sky"])]
    query = terms("red sky")
    every = statistics(whole, query)
    joined = np.concatenate([part.score(query, every) for part in parts])
    np.testing.assert_allclose(joined, whole.score(query, every), rtol=1e-6)


def test_rows_that_are_not_allowed_do_not_count() -> None:
    documents = ["red apple", "green apple pie", *["red"] * 600, "green pear"]
    every, few = Postings.build(documents), Postings.build([documents[0], documents[1]])
    allowed = np.zeros(len(documents), np.bool_)
    allowed[:2] = True
    for term in ("red", "appl", "apple", "green", "pear", "none"):
        assert every.frequency(term, allowed) == statistics(few, [term]).frequencies[term]
    assert every.total_terms(allowed) == 5


def test_an_index_without_rows_or_words_is_an_index() -> None:
    for documents in ([], [""], ["", "  "]):
        postings = Postings.from_bytes(Postings.build(documents).to_bytes())
        assert postings.rows == len(documents)
        assert statistics(postings, []).total_terms == 0
        assert postings.score(["word"], Statistics(0, 0, {})).tolist() == [0.0] * len(documents)


def test_the_same_documents_give_the_same_bytes() -> None:
    documents = ["b a", "c b", "Ä ß 中文"]
    assert Postings.build(documents).to_bytes() == Postings.build(documents).to_bytes()


def test_terms_meet_across_case_plural_and_composed_letters() -> None:
    assert terms("Badges EXPIRE") == terms("badge expires")
    assert terms("policies") == terms("policy")
    assert terms("STRASSE Muße") == terms("straße MUSSE")
    assert terms("cafe\u0301") == terms("café")
    assert terms("don't stop") == ["don", "t", "stop"]
    assert terms("class bus") == ["class", "bus"]


def test_terms_meet_across_german_and_russian_endings() -> None:
    assert terms("Mitarbeiterinnen") == terms("Mitarbeiter")
    assert terms("документами") == terms("документы")


def test_terms_with_digits_are_kept_whole() -> None:
    assert terms("ISO27001-A12345678 v2") == ["iso27001", "a12345678", "v2"]


def test_words_without_spaces_are_pairs_of_characters() -> None:
    assert terms("東京都 x") == ["東京", "京都", "x"]
    assert terms("中") == ["中"]
    assert terms("GPU内存") == ["gpu", "内存"]


def test_a_term_is_never_longer_than_the_format_holds() -> None:
    postings = Postings.build(["1" + "𝟘a" * 100_000])
    assert postings.rows == Postings.from_bytes(postings.to_bytes()).rows == 1


@given(st.lists(WORDS, min_size=1, max_size=10), st.data())
def test_bytes_cut_anywhere_are_refused(documents: list[str], data: st.DataObject) -> None:
    whole = Postings.build(documents).to_bytes()
    with pytest.raises(StoreDamaged):
        Postings.from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(StoreDamaged):
        Postings.from_bytes(whole + b"x")


@given(st.lists(WORDS, min_size=1, max_size=10), WORDS, st.data())
def test_a_changed_byte_is_refused_or_harmless(documents: list[str], question: str, data: st.DataObject) -> None:
    changed = bytearray(Postings.build(documents).to_bytes())
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    query = terms(question)
    try:
        postings = Postings.from_bytes(bytes(changed))
        scores = postings.score(query, statistics(postings, query))
    except StoreDamaged:
        return
    assert scores.shape == (postings.rows,)
