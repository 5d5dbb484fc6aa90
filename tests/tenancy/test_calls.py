import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.tenancy.calls import ID_CHARACTERS, MAX_CALL_CHARACTERS, CallReader, constraint, draw_id
from appliance.tenancy.scaffolds import HERMES, LLAMA3, MISTRAL_V3, OWN_WORDS, ToolStyle
from appliance.types import Constraint, ConstraintKind, Tool, ToolCall

TOOLS = (Tool("weather"), Tool("time"))
WEATHER = '{"name": "weather", "arguments": {"city": "Bern"}}'
ONE = ToolCall("id", "weather", '{"city": "Bern"}')
NOW = ToolCall("id", "time", "{}")


def read(pieces: Iterable[str], style: ToolStyle = HERMES) -> list[str | ToolCall]:
    """What a reader makes of an answer in those pieces, adjoining text put together."""
    reader = CallReader(style, TOOLS, lambda: "id")
    found = [part for piece in pieces for part in reader.feed(piece)] + reader.end()
    joined: list[str | ToolCall] = []
    for part in found:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


@pytest.mark.parametrize(
    ("style", "answer", "expected"),
    [
        (HERMES, "Hello there.\n", ["Hello there.\n"]),
        (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", [ONE]),
        (HERMES, f"I look.\n\n<tool_call>{WEATHER}</tool_call>\nDone.", ["I look.", ONE, "Done."]),
        (
            HERMES,
            f'<tool_call>{WEATHER}</tool_call>\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>\n',
            [ONE, NOW],
        ),
        (HERMES, WEATHER, [ONE]),
        (HERMES, f" \n{WEATHER} ", [ONE]),
        (HERMES, f"<tool_call>[{WEATHER}, {WEATHER}]</tool_call>", [ONE, ONE]),
        (OWN_WORDS, f"<think>\nhm\n</think>\n<tool_call>{WEATHER}</tool_call>", ["<think>\nhm\n</think>", ONE]),
        (LLAMA3, '{"name": "weather", "parameters": {"city": "Bern"}}', [ONE]),
        (
            LLAMA3,
            '{"name": "weather", "parameters": {"city": "Bern"}}; {"name": "time", "parameters": {}}',
            [ONE, NOW],
        ),
        (LLAMA3, '<|python_tag|>{"name": "time", "parameters": {}}', [NOW]),
        (MISTRAL_V3, f"[TOOL_CALLS] [{WEATHER}]", [ONE]),
        (MISTRAL_V3, f" [{WEATHER}]", [ONE]),  # the mark is a control token, which shows as no text
        (MISTRAL_V3, f"I look.[{WEATHER}]", ["I look.", ONE]),
        (
            HERMES,
            '{"name": "weather", "arguments": {"city": "a\\"}{b"}}',
            [ToolCall("id", "weather", '{"city": "a\\"}{b"}')],
        ),
    ],
)
def test_calls_are_read_out_of_an_answer(style: ToolStyle, answer: str, expected: list[str | ToolCall]) -> None:
    assert read([answer], style) == expected
    assert read(answer, style) == expected


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>{"name": "shell", "arguments": {}}</tool_call>',  # not offered
        '<tool_call>{"name": "weather", "arguments": "Bern"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather"}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"a": NaN}}</tool_call>',
        "<tool_call>{'name': 'weather'}</tool_call>",
        "<tool_call>weather(Bern)</tool_call>",
        "<tool_call> <tool_call",
        f'[{WEATHER}, {{"name": "shell", "arguments": {{}}}}]',  # one of them is none
        f"<tool_call>\n{WEATHER[:-1]}",  # cut off
        '{"name": "Bern", "inhabitants": 134000}',
        '{"city": "Bern"}',
        f"Such as {WEATHER}.",  # bare JSON in the midst of text
        "[]",
        '<tool_call>{"name":' + '{"a":' * 5000 + "1" + "}" * 5001,
        " ",
    ],
)
def test_what_is_no_call_comes_out_as_the_model_wrote_it(answer: str) -> None:
    assert read([answer]) == [answer]
    assert read(answer) == [answer]


MARKS = ("<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", '{"name":', WEATHER, WEATHER[:20])
PARTS = st.sampled_from([*MARKS, *'[]{}"\\ \n;é', "Hi"])


@given(
    st.lists(PARTS, max_size=12),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([HERMES, LLAMA3, MISTRAL_V3]),
)
def test_streamed_is_as_whole_however_it_is_cut(parts: list[str], cuts: list[int], style: ToolStyle) -> None:
    answer = "".join(parts)
    ends = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    whole = read([answer], style)
    assert read((answer[start:end] for start, end in itertools.pairwise(ends)), style) == whole
    assert read(answer, style) == whole


@given(st.lists(PARTS, max_size=12))
def test_no_word_of_an_answer_is_lost(parts: list[str]) -> None:
    answer = "".join(parts)
    found = read([answer])
    if not any(isinstance(part, ToolCall) for part in found):
        assert "".join(map(str, found)) == answer


def test_text_is_held_back_only_where_it_may_become_a_call() -> None:
    reader = CallReader(HERMES, TOOLS)
    assert reader.feed("Hello") == ["Hello"]
    assert reader.feed(" you ") == [" you"]
    assert reader.feed("<") == []
    assert reader.feed("b> <tool") == [" <b>"]
    assert reader.feed("s>") == [" <tools>"]
    assert CallReader(HERMES, TOOLS).feed('{"city"') == ['{"city"']


def test_a_value_without_end_is_text_at_last() -> None:
    endless = '<tool_call>{"name": "weather", "arguments": {"a": "' + "x" * MAX_CALL_CHARACTERS
    reader = CallReader(HERMES, TOOLS)
    assert sum(len(part) for part in reader.feed(endless) if isinstance(part, str)) >= MAX_CALL_CHARACTERS
    assert read([endless]) == [endless]


def test_ids_are_drawn_and_fit_every_family() -> None:
    drawn = {draw_id() for _ in range(50)}
    assert len(drawn) == 50
    assert all(len(one) == ID_CHARACTERS and one.isalnum() for one in drawn)


def test_the_schema_of_a_call_keeps_references_and_names_the_tools() -> None:
    parameters = '{"$schema": "x", "$defs": {"C": {"type": "string"}}, "properties": {"c": {"$ref": "#/$defs/C"}}}'
    made = constraint(LLAMA3, [Tool("time"), Tool("weather", "", parameters)])
    time, weather = json.loads(made.text)["anyOf"]
    assert made.kind is ConstraintKind.JSON_SCHEMA
    assert time["properties"] == {"name": {"const": "time"}, "parameters": {"type": "object"}}
    assert weather["properties"]["parameters"]["properties"]["c"] == {"$ref": "#/anyOf/1/properties/parameters/$defs/C"}
    assert "$schema" not in weather["properties"]["parameters"]
    assert weather["required"] == ["name", "parameters"]


def test_names_and_values_of_the_callers_own_are_left_as_they_are() -> None:
    parameters: dict[str, Any] = {
        "properties": {"$id": {"type": "string"}, "$ref": {"$ref": "#"}, "x": {"const": {"$ref": "#/a", "$id": 1}}},
        "required": ["$id"],
    }
    (form,) = json.loads(constraint(LLAMA3, [Tool("f", "", json.dumps(parameters))]).text)["anyOf"]
    made = form["properties"]["parameters"]
    assert made["properties"] == parameters["properties"] | {"$ref": {"$ref": "#/anyOf/0/properties/parameters"}}


def test_a_call_or_an_answer_is_either_schema() -> None:
    answer = Constraint(ConstraintKind.JSON_SCHEMA, '{"items": {"$ref": "#"}, "type": "array"}')
    forms = json.loads(constraint(HERMES, TOOLS, answer).text)["anyOf"]
    assert forms[0] == {"items": {"$ref": "#/anyOf/0"}, "type": "array"}
    assert [form["properties"]["name"]["const"] for form in forms[1:]] == ["weather", "time"]
