"""Quote mode on small passages: the token vectors here are made by hand, one direction a word, so nothing is loaded."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

from appliance.knowledge.answer import quote, sentence_scores
from appliance.knowledge.answer.sentence_scores import Candidates, Integers, cue, lexical_scores, meaning_scores, stem
from appliance.knowledge.chunk import sentences
from appliance.types import Floats

DIMENSION = 512
SAME_MEANING = {"holiday": "vacation", "workers": "employees", "urlaubstage": "ferientage"}


@dataclass(frozen=True)
class WordTokens:
    ids: Integers
    vectors: Floats
    spans: Integers


def direction(word: str) -> Floats:
    known = SAME_MEANING.get(word, word)
    vector = np.random.default_rng(list(known.encode())).standard_normal(DIMENSION).astype(np.float32)
    unit: Floats = vector / np.linalg.norm(vector)
    return unit


def tokens(text: str) -> WordTokens:
    words = [(match[0].lower(), match.span()) for match in re.finditer(r"\w+|[^\w\s]", text)]
    return WordTokens(
        np.array([int.from_bytes(word.encode()[:3]) for word, _ in words], np.int32),
        np.array([direction(word) for word, _ in words], np.float32).reshape(-1, DIMENSION),
        np.array([span for _, span in words], np.int32).reshape(-1, 2),
    )


def candidates(*texts: str) -> list[Candidates]:
    return [Candidates(text, tuple(sentences(text)), tokens(text)) for text in texts]


def choose(question: str, *texts: str) -> quote.Choice:
    return quote.choose(question, tokens(question), candidates(*texts))


HANDBOOK = "Badges expire after 90 days. Employees get 25 vacation days a year. The canteen opens at noon."
PUMP = "The pump weighs 12 kg. Its battery lasts 14 hours. A red lamp means that it is too hot."


def test_the_sentence_that_shares_the_question_s_rare_words_comes_first() -> None:
    choice = choose("How many hours does the battery last?", HANDBOOK, PUMP)
    assert choice.order[0] == 4
    assert choice.shares[4] == choice.shares.max()


def test_a_sentence_with_other_words_of_the_same_meaning_comes_first() -> None:
    assert choose("How much holiday do workers get?", HANDBOOK, PUMP).order[0] == 1


def test_shares_sum_to_one_and_order_names_every_sentence_once() -> None:
    choice = choose("When do badges expire?", HANDBOOK, PUMP)
    assert choice.shares.sum() == pytest.approx(1.0)
    assert sorted(choice.order) == list(range(6))
    assert list(choice.scores[list(choice.order)]) == sorted(choice.scores, reverse=True)


def test_a_question_that_the_passages_answer_is_answered() -> None:
    choice = choose("When do badges expire after 90 days?", HANDBOOK, PUMP)
    assert not choice.abstain
    assert choice.answerable > 0.5


def test_a_question_about_something_else_is_refused() -> None:
    choice = choose("Who painted the ceiling of the chapel?", HANDBOOK, PUMP)
    assert choice.abstain
    assert choice.answerable < 0.2


def test_without_a_sentence_there_is_nothing_to_answer() -> None:
    for choice in (choose("When do badges expire?"), choose("When do badges expire?", "")):
        assert choice.abstain
        assert choice.order == ()


def test_an_empty_question_is_refused_without_a_fault() -> None:
    choice = choose("", HANDBOOK)
    assert choice.abstain
    assert np.isfinite(choice.scores).all()


def test_german_and_russian_questions_are_answered_from_their_words() -> None:
    german = "Ausweise gelten 90 Tage. Mitarbeiter haben 25 Ferientage im Jahr. Die Kantine öffnet mittags."
    russian = "Пропуск действует 90 дней. Столовая открывается в полдень. Насос весит 12 кг."
    assert choose("Wie viele Urlaubstage haben Mitarbeiter?", german).order[0] == 1
    assert choose("Сколько дней действует пропуск?", russian).order[0] == 0


def test_the_order_of_passages_changes_no_score() -> None:
    one = choose("When do badges expire?", HANDBOOK, PUMP)
    other = choose("When do badges expire?", PUMP, HANDBOOK)
    np.testing.assert_allclose(one.scores, np.r_[other.scores[3:], other.scores[:3]], rtol=1e-4, atol=1e-5)
    assert one.answerable == pytest.approx(other.answerable, rel=1e-4)


def test_a_sentence_after_a_matching_one_gains_from_it() -> None:
    (passage,) = candidates("The Falcon pump is old. It lasts 14 hours. The canteen opens at noon.")
    texts = [passage.sentence_texts()]
    lexical = lexical_scores("How long does the Falcon pump last?", texts)
    columns = quote.evidence("?", texts, lexical, meaning_scores(tokens("Falcon"), [passage]))
    assert columns[1, 1] == lexical.bm25[0] > 0
    assert columns[0, 1] == 0


def test_text_past_the_embedder_s_reach_is_ranked_by_its_words_alone() -> None:
    text = "Badges expire after 90 days. Employees get 25 vacation days."
    first = text.index("Employees")
    cut = Candidates(text, tuple(sentences(text)), tokens(text[:first]))
    scores = meaning_scores(tokens("vacation days"), [cut])
    assert scores.match[1] == 0


def test_bm25_prefers_the_rare_word_and_never_is_negative() -> None:
    scores = lexical_scores("the pump", [["The door is the door.", "The pump is on.", "The end."]]).bm25
    assert scores.argmax() == 1
    assert (scores >= 0).all()


def test_a_passage_is_covered_where_every_word_of_the_question_is_there() -> None:
    scores = lexical_scores("pump weighs", [["The pump weighs 12 kg.", "Nothing here."], ["A pump."]])
    assert scores.coverage_of_passage[0] == pytest.approx(1.0)
    assert 0 < scores.coverage_of_passage[1] < 1


@pytest.mark.parametrize(
    ("question", "with_it", "without_it"),
    [
        ("When was it built?", "It was built in 1889.", "It was built of iron."),
        ("How many people live there?", "Some 900 people live there.", "People live there."),
        ("Who built it?", "It was built by Eiffel.", "It was built by many."),
        ("Why is it red?", "It is red because of iron.", "It is red and tall."),
    ],
)
def test_a_cue_tells_the_kind_of_answer_from_its_absence(question: str, with_it: str, without_it: str) -> None:
    assert cue(question, with_it) == 1
    assert cue(question, without_it) == -1


def test_a_number_that_the_question_itself_names_is_no_cue() -> None:
    assert cue("When did the war of 1812 end?", "The war of 1812 ended.") == -1


def test_a_question_of_unknown_kind_has_no_cue() -> None:
    assert cue("Wie hoch ist der Turm?", "Er ist 300 m hoch.") == 0


def test_stems_join_the_forms_of_a_word_and_leave_short_words() -> None:
    assert stem("invaded") == stem("invades") == stem("invading")
    assert stem("is") == "is"
    assert sentence_scores.stems("Dörfer, Straße!") == ["dörf", "straß"]
