"""The recipe's text side: sentences, pseudo-questions and invented facts. No network is trained here."""

from random import Random

import pytest

from models.starter import corpus, facts, questions
from models.starter.wordnet import Instance

PROSE = questions.Prose(
    blocks=((("The old bridge was built in 1889 by Gustave Eiffel.", "It crosses the river near the station."),),),
    weights=(1.0,),
    rarity={},
    unseen_rarity=5.0,
    stand_ins={"built": ("erected",)},
)


def test_a_paragraph_is_cut_after_sentences_and_not_after_abbreviations() -> None:
    text = "Use a lock, e.g. A mutex.  It “waits”. Then it goes on."
    assert corpus.sentences(text) == ["Use a lock, e.g. A mutex.", 'It "waits".', "Then it goes on."]


def test_code_and_fragments_are_no_prose() -> None:
    assert corpus.is_prose("The server is restarted when the file of the user changes.")
    assert not corpus.is_prose("The function foo::bar(x) is restarted when {the} file changes.")
    assert not corpus.is_prose("See below.")


def test_every_source_names_its_licence_and_pins() -> None:
    for source in corpus.sources():
        assert source.licence
        assert len(source.deb_sha256) == len(source.copyright_sha256) == 64


def test_bytes_that_were_not_audited_are_refused() -> None:
    with pytest.raises(ValueError, match="pins"):
        corpus.check(b"other bytes", "0" * 64, "some.deb")


def test_a_pseudo_question_keeps_a_word_of_its_sentence_or_a_stand_in() -> None:
    rng = Random(1)
    sentence = PROSE.blocks[0][0][0]
    known = {questions.stem(w.lower()) for w in questions.WORD.findall(sentence)} | {"erected"}
    for _ in range(200):
        question = questions.pseudo_question(rng, sentence, (), PROSE)
        assert question is not None
        asked = questions.WORD.findall(question.lower())
        assert any(word.startswith(stem[:3]) for word in asked for stem in known if len(stem) > 2)


def test_the_year_of_a_sentence_may_be_asked_for() -> None:
    kinds = {span.kind for span in questions.spans(questions.WORD.findall("It was built in 1889 by Eiffel"))}
    assert {"year", "name", "how"} <= kinds


def test_invented_questions_point_at_a_sentence_of_their_context_or_at_none() -> None:
    rng = Random(2)
    for _ in range(50):
        context = _context(rng)
        count = sum(map(len, context.passages))
        assert all(-1 <= answer < count for _, answer in context.questions)
        assert len(context.questions) == 6


def _context(rng: Random) -> facts.Context:
    tower = Instance("Eiffel Tower", "a tower in Paris that was built for a fair", None, ("1889", "1999"))
    return facts.invented_context(rng, (tower,), questions=6)


def test_the_same_seed_gives_the_same_context() -> None:
    assert _context(Random(3)) == _context(Random(3))


def test_an_answer_s_number_counts_sentences_over_all_passages() -> None:
    tower = Instance("Eiffel Tower", "a tower that was built for a fair", "Paris", ("1889", "1999"))
    found = facts.biography(Random(0), tower)
    assert found.sentences[0].startswith("Eiffel Tower was a tower")
    assert found.sentences[1].endswith("born in Paris.")
    assert "1889" in found.sentences[2]
    assert len(found.questions) == len(found.sentences)
