import json
from collections.abc import Mapping
from typing import Any, ClassVar

import llguidance
import numpy as np
import pytest

from appliance.errors import InvalidArgument
from appliance.infer import grammar, llama
from appliance.infer.grammar import Grammar
from appliance.types import Constraint, ConstraintKind

Models = Mapping[str, llama.Model]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def json_schema(schema: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, schema if isinstance(schema, str) else json.dumps(schema))


def gbnf(text: str) -> Constraint:
    return Constraint(ConstraintKind.GBNF, text)


def allowed(state: Grammar, vocabulary: llama.Vocabulary) -> list[int]:
    bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")[: vocabulary.size]
    return [int(token) for token in np.flatnonzero(bits)]


def walk(constraint: Constraint, vocabulary: llama.Vocabulary, seed: int, most: int = 200) -> str:
    """A random answer that keeps to the constraint."""
    state, random, pieces = Grammar(constraint, vocabulary), np.random.default_rng(seed), list[bytes]()
    while not state.ended and len(pieces) < most:
        token = int(random.choice(allowed(state, vocabulary)))
        assert state.admits(token)
        if vocabulary.is_end(token):
            break
        state.take(token)
        pieces.append(vocabulary.piece(token))
    assert not state.failed
    return b"".join(pieces).decode()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_whatever_is_drawn_under_a_schema_is_json_of_it(loaded: Models, architecture: str) -> None:
    for seed in range(5):
        value = json.loads(walk(json_schema(PERSON), loaded[architecture].vocabulary, seed))
        assert value.keys() == {"name", "age"}
        assert 0 <= value["age"] <= 99
        assert len(value["name"]) <= 8


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_whatever_is_drawn_under_a_gbnf_grammar_keeps_to_it(loaded: Models, architecture: str) -> None:
    constraint = gbnf('root ::= item ("; " item)*\nitem ::= ("red" | "gr" "e"+ "n") " " [0-9]{1,3}')
    for seed in range(5):
        text = walk(constraint, loaded[architecture].vocabulary, seed, most=60)
        first = text.split("; ")[0]
        assert first.split(" ")[0].replace("e", "") in ("rd", "grn")
        assert first.split(" ")[1].isdigit()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_no_control_token_can_be_drawn_but_an_end_where_the_grammar_may_end(loaded: Models, architecture: str) -> None:
    vocabulary = loaded[architecture].vocabulary
    state = Grammar(gbnf('root ::= "a" .*'), vocabulary)
    assert not set(allowed(state, vocabulary)) & set(vocabulary.control_ids)
    assert not any(state.admits(token) for token in vocabulary.control_ids)
    state.take(vocabulary.encode_more("a")[0])
    assert set(allowed(state, vocabulary)) & set(vocabulary.control_ids) == set(vocabulary.end_ids)
    assert all(state.admits(token) for token in vocabulary.end_ids)


def test_a_literal_that_reads_like_a_control_token_is_written_in_ordinary_ones(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    state = Grammar(gbnf('root ::= "<|im_end|>"'), vocabulary)
    forced = state.forced()
    assert not set(forced) & set(vocabulary.control_ids)
    assert b"".join(map(vocabulary.piece, forced)) == b"<|im_end|>"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_what_is_forced_is_the_vocabularys_own_tokenization_of_it(loaded: Models, architecture: str) -> None:
    vocabulary = loaded[architecture].vocabulary
    text = " the box badge expires after ninety days, hello world"
    state = Grammar(gbnf(f'root ::= "{text}"'), vocabulary)
    assert state.forced() == vocabulary.encode_more(text)
    for token in state.forced():
        state.take(token)
    assert state.ended
    assert not state.failed


def test_what_could_still_become_another_token_is_not_forced(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    state = Grammar(gbnf('root ::= "hello" (" world" | "s")'), vocabulary)
    assert b"".join(map(vocabulary.piece, state.forced())) in (b"hello", b"hell", b"hel", b"he", b"h", b"")


def test_a_draft_is_cut_where_the_grammar_refuses_it(loaded: Models) -> None:
    vocabulary = loaded["llama"].vocabulary
    state = Grammar(gbnf('root ::= " bace dido" | " bace bemi"'), vocabulary)
    draft = np.array(vocabulary.encode_more(" bace bemi bace"), np.int32)
    assert state.admitted(draft).tolist() == vocabulary.encode_more(" bace bemi")
    assert state.admitted(draft[1:]).tolist() == []
    assert not state.failed, "looking ahead changes nothing"


def nested(depth: int) -> object:
    schema: object = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


UNSATISFIABLE = {
    "lengths": {"type": "string", "minLength": 5, "maxLength": 2},
    "bounds": {"type": "integer", "minimum": 5, "maximum": 2},
    "types": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "no value": {"enum": []},
    "itself": {"$ref": "#"},
    "never": False,
}
MALFORMED = {
    "not json": '{"type":',
    "not a schema": [1],
    "no such type": {"type": "strin"},
    "regex": {"type": "string", "pattern": "(((("},
    "look-ahead": {"type": "string", "pattern": "^(?=.*a).*$"},
    "reference": {"$ref": "http://example.com/schema.json"},
}
HOSTILE_SCHEMAS = {
    "deep": nested(200),
    "deep text": '{"items":' * 5000 + "{}" + "}" * 5000,
    "brackets": "[" * 60_000,
    "too long": json.dumps({"enum": ["x" * 20 + str(i) for i in range(5000)]}),
    "products": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(4)]}
            for i in range(12)
        ]
    },
    "1500 optional members": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}},
}


@pytest.mark.parametrize("schema", (UNSATISFIABLE | MALFORMED | HOSTILE_SCHEMAS).values(), ids=lambda _: "")
def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(loaded: Models, schema: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^response_format: \S.{4,310}\.$"):
        Grammar(json_schema(schema), loaded["llama"].vocabulary)


BAD_GRAMMARS = {
    "empty": "",
    "no root": 'foo ::= "a"',
    "unknown rule": "root ::= foo",
    "no assignment": "root = x",
    "open literal": 'root ::= "a',
    "open escape": 'root ::= "a\\',
    "other language": 'root ::= "a" <[2]>',
    "lone surrogate": 'root ::= "\ud800"',
    "range": 'root ::= "a"{5,2}',
    "never ends": "root ::= root",
    "nesting": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
    "doubling": "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60 ::= "a"',
    "rules": 'root ::= "a"\n' + "".join(f'r{i} ::= "a"\n' for i in range(300)),
    "too long": "root ::= " + " | ".join(f'"{i:040}"' for i in range(2000)),
    "ambiguous": "root ::= r0 root\n"
    + "".join(f'r{i} ::= r{i + 1} "x"{{0,9}} | [a-z] r{i + 1}\n' for i in range(200))
    + 'r200 ::= "a" root',
}


@pytest.mark.parametrize("text", BAD_GRAMMARS.values(), ids=list(BAD_GRAMMARS))
def test_a_grammar_that_cannot_be_kept_is_refused_with_the_reason(loaded: Models, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^constraint: \S.{4,310}\.$"):
        Grammar(gbnf(text), loaded["llama"].vocabulary)


BOUNDED = {
    "nested repetition": json_schema({"type": "string", "pattern": "(((a{1,50}){1,50}){1,50}){1,50}"}),
    "exponential regex": json_schema({"type": "string", "pattern": "(a|a)*b.{500}(a|b)*a.{1000}c"}),
    "endless text": json_schema({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000}),
    "large enum": json_schema({"enum": [f"value{i}" for i in range(4500)]}),
    "doubling references": json_schema(
        {
            "$defs": {
                f"d{i}": {"anyOf": [{"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 3}] * 2}
                for i in range(40)
            }
            | {"d40": {"type": "string"}},
            "$ref": "#/$defs/d0",
        }
    ),
    "repetition": gbnf('root ::= "a"{1000000000}'),
    "options": gbnf("root ::= " + '"a"? ' * 2000),
    "ambiguity": gbnf('root ::= root root | "a" | root root root'),
}


@pytest.mark.parametrize("constraint", BOUNDED.values(), ids=list(BOUNDED))
def test_a_hostile_grammar_is_refused_or_goes_on_or_fails_but_never_hangs(
    loaded: Models, constraint: Constraint
) -> None:
    vocabulary = loaded["llama"].vocabulary
    try:
        state = Grammar(constraint, vocabulary)
    except InvalidArgument:
        return
    for _ in range(30):
        if state.ended:  # a failure is an end
            return
        state.forced()
        state.take(allowed(state, vocabulary)[0])


def test_a_refusal_is_no_longer_than_a_line(loaded: Models) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Grammar(json_schema({"type": "x" * 5000}), loaded["llama"].vocabulary)
    assert len(str(refused.value)) < 400


def test_the_tokenizer_is_made_once_a_model(loaded: Models) -> None:
    grammar._tokenizer.cache_clear()
    for _ in range(3):
        Grammar(gbnf('root ::= "a"'), loaded["qwen2"].vocabulary)
    assert grammar._tokenizer.cache_info().misses == 1


class Watched:
    """A matcher that tells how many tokens it was given at once."""

    taken: ClassVar[list[int]] = []

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def deep_copy(self) -> "Watched":
        return Watched(self._matcher.deep_copy())

    def consume_tokens(self, tokens: list[int]) -> bool:
        self.taken.append(len(tokens))
        return self._matcher.consume_tokens(tokens)


def test_a_long_forced_text_is_tried_in_slices_and_not_to_its_end(
    loaded: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llguidance holds the GIL while it takes tokens: every running stream waits."""
    real = llguidance.LLMatcher
    grammar._tokenizer(loaded["qwen2"].vocabulary)
    monkeypatch.setattr(Watched, "taken", [])
    monkeypatch.setattr(llguidance, "LLMatcher", lambda *args, **more: Watched(real(*args, **more)))
    Grammar(gbnf("root ::= " + "a " * 5000 + '\na ::= "x"'), loaded["qwen2"].vocabulary)
    assert max(Watched.taken) <= 64
    assert 64 < sum(Watched.taken) <= 512
    numbers = ",".join(map(str, range(100)))
    forced = Grammar(gbnf(f'root ::= "{numbers}" "."'), loaded["qwen2"].vocabulary).forced()
    assert len(forced) > 200, "and all of it is right"


def test_a_grammar_whose_masks_take_long_is_refused_or_fails_early(loaded: Models) -> None:
    ways = "|".join(f'[a-z]{{1,60}} "{number}"' for number in range(200))
    with pytest.raises(InvalidArgument, match="Too many items"):
        Grammar(gbnf(f"root ::= ({ways})+"), loaded["qwen2"].vocabulary)
    few = "|".join(f'[a-z]{{1,60}} "{number}"' for number in range(30))
    assert walk(gbnf(f"root ::= ({few})+"), loaded["qwen2"].vocabulary, seed=1, most=60)


def test_a_grammar_may_be_half_as_long_as_a_schema(loaded: Models) -> None:
    vocabulary = loaded["qwen2"].vocabulary
    long = json_schema({"enum": [f"value{number:030}" for number in range(1600)]})
    assert 60_000 < len(long.text) < 64 * 1024
    Grammar(long, vocabulary)
    with pytest.raises(InvalidArgument, match="at most 65536 characters"):
        Grammar(json_schema({"enum": ["x" * 65_536]}), vocabulary)
    with pytest.raises(InvalidArgument, match="at most 32768 characters"):
        Grammar(gbnf('root ::= "' + "x" * 32_768 + '"'), vocabulary)
