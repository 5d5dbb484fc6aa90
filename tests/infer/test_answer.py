import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidArgument
from appliance.infer import llama
from appliance.infer.answer import MOST_FORCED, Answer
from appliance.infer.pages import Tokens
from appliance.infer.sampling import logprobs
from appliance.types import (
    Constraint,
    ConstraintKind,
    FinishReason,
    Generation,
    Sampling,
    Text,
)
from tests.infer.scripted import Said, markov, run, saying

Models = Mapping[str, llama.Model]
PROMPT: Tokens = np.arange(300, 320, dtype=np.int32)
GREEDY = Sampling(temperature=0.0, max_tokens=50)
COLOURS = Constraint(ConstraintKind.GBNF, 'root ::= colour (", " colour)*\ncolour ::= "red" | "green" | "yellow"')
PERSON = Constraint(
    ConstraintKind.JSON_SCHEMA,
    json.dumps(
        {
            "type": "object",
            "properties": {"first name": {"enum": ["Ada", "Alan"]}, "age": {"type": "integer"}},
            "required": ["first name", "age"],
            "additionalProperties": False,
        }
    ),
)


def say(model: llama.Model, text: str, generation: Generation) -> Said:
    """The answer where the model is sure to say the text, and then to end."""
    vocabulary = model.vocabulary
    tokens = [*vocabulary.encode_more(text), vocabulary.end_ids[0]]
    return run(Answer(generation, vocabulary, PROMPT), saying(tokens, vocabulary.size, len(PROMPT)), PROMPT)


def generation(**options: object) -> Generation:
    return Generation((), **({"sampling": GREEDY} | options))  # type: ignore[arg-type]


def test_an_answer_is_the_tokens_that_the_model_is_sure_of_until_its_end(loaded: Models) -> None:
    said = say(loaded["qwen2"], " the badge expires", generation())
    assert said.text == " the badge expires"
    assert said.ended is FinishReason.STOP
    assert said.tokens[-1] in loaded["qwen2"].vocabulary.end_ids, "the end token belongs to the sequence"


def test_an_answer_has_no_more_tokens_than_allowed(loaded: Models) -> None:
    said = say(loaded["qwen2"], " the badge expires", generation(sampling=replace(GREEDY, max_tokens=2)))
    assert said.text == " the badge"
    assert said.ended is FinishReason.LENGTH
    assert len(said.tokens) == 2


def test_a_character_is_shown_when_its_last_byte_is_there(loaded: Models) -> None:
    said = say(loaded["qwen2"], "a€b", generation())
    assert said.text == "a€b"
    assert [piece.text for piece in said.pieces] == ["a", "€", "b"]
    assert len(said.tokens) == 6


def test_half_a_character_at_the_end_is_shown_as_what_cannot_be_read(loaded: Models) -> None:
    said = say(loaded["qwen2"], "€", generation(sampling=replace(GREEDY, max_tokens=2)))
    assert said.text == "\ufffd"


def test_a_stop_string_ends_the_answer_across_tokens(loaded: Models) -> None:
    said = say(loaded["qwen2"], "hello world hello", generation(sampling=replace(GREEDY, stop=("o wor",))))
    assert said.text == "hell"
    assert said.ended is FinishReason.STOP


def test_a_label_is_chosen_by_the_model_with_its_probability(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    logits = np.zeros(vocabulary.size, np.float32)
    logits[vocabulary.label("b")] = 2.0
    answer = Answer(generation(labels=("a", "b", "c"), top_logprobs=1), vocabulary, PROMPT)
    assert len(answer.draft(8)) == 0
    made = answer.advance([logits], np.empty(0, np.int32))
    assert made.tokens == (vocabulary.label("b"),)
    assert made.ended is FinishReason.STOP
    assert made.piece
    assert made.piece.text == "b"
    assert made.piece.choices[0].chosen.piece == b"b"
    assert np.exp(made.label_logprobs).sum() == pytest.approx(1.0)
    assert int(np.argmax(made.label_logprobs)) == 1


def test_an_answer_ends_where_the_model_gives_no_numbers(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    answer = Answer(generation(), vocabulary, PROMPT)
    made = answer.advance([np.full(vocabulary.size, np.nan, np.float32)], np.empty(0, np.int32))
    assert made.tokens == ()
    assert made.ended is FinishReason.LENGTH


@pytest.mark.parametrize("constraint", [COLOURS, PERSON])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_constrained_answer_keeps_to_its_constraint_and_ends(
    loaded: Models, constraint: Constraint, temperature: float
) -> None:
    vocabulary = loaded["llama"].vocabulary
    for seed in range(3):
        chosen = Sampling(temperature=temperature, top_k=0, min_p=0.0, seed=seed, max_tokens=80)
        answer = Answer(generation(sampling=chosen, constraint=constraint), vocabulary, PROMPT)
        said = run(answer, markov(vocabulary.size, seed), PROMPT)
        if constraint is PERSON and said.ended is FinishReason.STOP:
            assert json.loads(said.text)["first name"] in ("Ada", "Alan")
        elif constraint is COLOURS:
            assert all("yellow".startswith(w) or w in ("red", "green", "gr", "g", "re", "gre", "gree", "r")
                       for w in said.text.rstrip(", ").split(", "))  # fmt: skip
        assert not set(said.tokens[:-1]) & set(vocabulary.control_ids)


def test_an_answer_ends_when_its_grammar_does(loaded: Models) -> None:
    vocabulary = loaded["llama"].vocabulary
    constraint = Constraint(ConstraintKind.GBNF, 'root ::= "red" | "green"')
    said = run(Answer(generation(constraint=constraint), vocabulary, PROMPT), markov(vocabulary.size), PROMPT)
    assert said.text in ("red", "green")
    assert said.ended is FinishReason.STOP
    assert said.tokens[-1] not in vocabulary.end_ids


def test_what_a_grammar_forces_costs_no_step(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    text = "hello world the badge expires after ninety days"
    constraint = Constraint(ConstraintKind.GBNF, f'root ::= ("x" | "y") "{text}"')
    target = markov(vocabulary.size)
    said = run(Answer(generation(constraint=constraint), vocabulary, PROMPT), target, PROMPT)
    plain = run(Answer(generation(constraint=constraint), vocabulary, PROMPT, jumps=False), target, PROMPT)
    assert said.text == plain.text
    assert said.text[1:] == text
    assert said.steps == 1
    assert plain.steps == len(plain.tokens)


def test_a_step_takes_only_so_many_forced_tokens_and_the_next_ones_the_rest(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    constraint = Constraint(ConstraintKind.GBNF, f'root ::= ("x" | "y") {"a " * 200} ("x" | "y")\na ::= "q"')
    target = markov(vocabulary.size)
    chosen = replace(GREEDY, max_tokens=300)
    request = generation(constraint=constraint, sampling=chosen)
    plain = run(Answer(request, vocabulary, PROMPT, jumps=False), target, PROMPT)
    answer, known, sizes, ended = Answer(request, vocabulary, PROMPT), PROMPT.tolist(), list[int](), None
    while ended is None:
        assert not len(answer.draft(8)), "what is forced needs no row of logits"
        made = answer.advance([target(known)], np.empty(0, np.int32))
        known += made.tokens
        sizes.append(len(made.tokens))
        ended = made.ended
    assert known[len(PROMPT) :] == plain.tokens
    assert max(sizes) <= 1 + MOST_FORCED
    assert len(sizes) == 5, "200 in four steps, and the last choice"


def test_forced_tokens_stop_at_the_most_tokens_allowed(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    constraint = Constraint(ConstraintKind.GBNF, 'root ::= [xy] "hello world the badge expires"')
    chosen = replace(GREEDY, max_tokens=3)
    said = run(
        Answer(generation(constraint=constraint, sampling=chosen), vocabulary, PROMPT), markov(vocabulary.size), PROMPT
    )
    assert len(said.tokens) == 3
    assert said.ended is FinishReason.LENGTH


@pytest.mark.parametrize("constraint", [COLOURS, PERSON])
def test_log_probabilities_change_no_token_also_where_tokens_are_forced(loaded: Models, constraint: Constraint) -> None:
    vocabulary = loaded["llama"].vocabulary
    chosen = Sampling(temperature=1.0, seed=3, max_tokens=40)
    target = markov(vocabulary.size)
    plain = run(Answer(generation(sampling=chosen, constraint=constraint), vocabulary, PROMPT), target, PROMPT)
    for most in (0, 8):
        request = generation(sampling=chosen, constraint=constraint, top_logprobs=2)
        logged = run(Answer(request, vocabulary, PROMPT), target, PROMPT, most)
        assert logged.tokens == plain.tokens
        assert logged.text == plain.text
        known = PROMPT.tolist()
        for token, choice in zip(logged.tokens, logged.choices, strict=False):
            value, top = logprobs(target(known), token, 2)
            assert choice.chosen.token == token
            assert choice.chosen.logprob == value
            assert [(other.token, other.logprob) for other in choice.top] == top
            known.append(token)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text("ab€\n", min_size=1, max_size=20), stop=st.text("ab€", min_size=1, max_size=4), seed=st.integers(0, 9)
)
def test_every_token_of_the_shown_text_has_its_choice_with_the_piece_it_ends_in(
    loaded: Models, text: str, stop: str, seed: int
) -> None:
    chosen = replace(GREEDY, stop=(stop,), max_tokens=200)
    said = say(loaded["qwen2"], text, generation(sampling=chosen, top_logprobs=seed % 3))
    shown = text.partition(stop)[0]
    assert said.text == shown
    made = b"".join(choice.chosen.piece for choice in said.choices)
    assert made.startswith(shown.encode())
    cut = made[len(shown.encode()) :]
    assert len(cut) < max((len(choice.chosen.piece) for choice in said.choices), default=1)
    told = text_so_far = b""
    for piece in said.pieces[:-1]:
        told += b"".join(choice.chosen.piece for choice in piece.choices)
        text_so_far += piece.text.encode()
        assert text_so_far.startswith(told), "no choice comes before its text"


def test_choices_wait_for_text_that_a_stop_string_holds_back(loaded: Models) -> None:
    said = say(loaded["qwen2"], "xabxabz", generation(sampling=replace(GREEDY, stop=("abz", "xabq")), top_logprobs=0))
    assert said.text == "xabx"
    assert "".join(choice.chosen.piece.decode() for choice in said.choices) == "xabx"
    for piece in said.pieces:
        assert "".join(choice.chosen.piece.decode() for choice in piece.choices) == piece.text


def test_an_end_token_has_no_choice(loaded: Models) -> None:
    said = say(loaded["qwen2"], "ab", generation(top_logprobs=1))
    assert [choice.chosen.piece for choice in said.choices] == [b"a", b"b"]


def test_an_answer_goes_on_at_another_box_as_it_would_have_here(loaded: Models) -> None:
    vocabulary = loaded["llama"].vocabulary
    chosen = Sampling(temperature=1.0, seed=11, repeat_penalty=1.2, presence_penalty=0.5, max_tokens=40)
    target = markov(vocabulary.size, sharpness=1.0)
    whole = run(Answer(generation(sampling=chosen), vocabulary, PROMPT), target, PROMPT)
    for cut in (1, 7, 39):
        known = np.array([*PROMPT, *whole.tokens[:cut]], np.int32)
        rest = replace(chosen, max_tokens=40 - cut)
        assert (
            run(Answer(generation(sampling=rest), vocabulary, known), target, known.tolist()).tokens
            == (whole.tokens[cut:])
        )


def test_another_seed_is_another_answer(loaded: Models) -> None:
    vocabulary = loaded["llama"].vocabulary
    target = markov(vocabulary.size, sharpness=1.0)

    def tokens(seed: int) -> list[int]:
        chosen = Sampling(temperature=1.0, seed=seed, max_tokens=20)
        return run(Answer(generation(sampling=chosen), vocabulary, PROMPT), target, PROMPT).tokens

    assert tokens(1) == tokens(1) != tokens(2)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("temperature", {"sampling": Sampling(temperature=-1.0)}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("top_logprobs", {"top_logprobs": -1}),
        ("labels", {"labels": ("a",), "constraint": COLOURS}),
        ("labels", {"labels": ("hello hello",)}),
        ("constraint", {"constraint": Constraint(ConstraintKind.GBNF, "")}),
        ("response_format", {"constraint": Constraint(ConstraintKind.JSON_SCHEMA, "{")}),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_by_the_fields_name(
    loaded: Models, field: str, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        Answer(generation(**options), loaded["qwen2"].vocabulary, PROMPT)


def test_no_piece_is_empty(loaded: Models) -> None:
    said = say(loaded["qwen2"], "a€", generation())
    assert all(isinstance(piece, Text) and (piece.text or piece.choices) for piece in said.pieces)
