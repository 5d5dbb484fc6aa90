import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from appliance.api.chat import ANY_JSON_OBJECT, MAX_SCHEMA_BYTES, MAX_TOOLS, Chat
from appliance.api.inference import chat_call
from appliance.errors import Forbidden, InvalidArgument, NotFound, QueueFull
from appliance.gen.v1 import inference_pb2 as pb
from appliance.tenancy.compose import ScaffoldComposer
from appliance.types import (
    ChatCall,
    ChatPiece,
    Constraint,
    ConstraintKind,
    Finish,
    FinishReason,
    Message,
    Origin,
    Principal,
    Priority,
    Role,
    Sampling,
    Speaker,
    Text,
    TokenChoice,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from tests.fakes import ScriptedGenerator

APP = Principal("acme", "bot", Role.APP)
HELLO = ChatCall("", (Message(Speaker.USER, "Hi"),))
WEATHER = Tool("weather", "Of a city.", '{"type": "object", "properties": {"city": {"type": "string"}}}')
OFFER = replace(HELLO, tools=(WEATHER, Tool("time")))
REQUIRED = ToolChoice(ToolMode.REQUIRED)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
SCHEMA = Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "array"}')
GRAMMAR = Constraint(ConstraintKind.GBNF, 'root ::= "yes"')
MANY_CALLS = Message(Speaker.ASSISTANT, "", tuple(ToolCall(f"c{number}", "time", "{}") for number in range(129)))
A, B = (TokenChoice(TokenLogprob(number, b"x", -0.5)) for number in (1, 2))


def speaking(*pieces: str | Text | Finish, scaffold: str = "chatml") -> tuple[Chat, ScriptedGenerator]:
    generator = ScriptedGenerator([pieces], scaffold=scaffold)
    return Chat(generator, ScaffoldComposer(), lambda tenant: tenant.encode()), generator


async def read(pieces: AsyncIterator[ChatPiece]) -> list[ChatPiece]:
    return [piece async for piece in pieces]


def calls(pieces: Sequence[ChatPiece]) -> list[tuple[str, Any]]:
    return [(piece.name, json.loads(piece.arguments)) for piece in pieces if isinstance(piece, ToolCall)]


def ending(pieces: Sequence[ChatPiece]) -> FinishReason:
    finish = pieces[-1]
    assert isinstance(finish, Finish)
    return finish.reason


def text(pieces: Sequence[ChatPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


async def test_an_answer_streams_through_with_all_that_was_asked_for() -> None:
    chat, generator = speaking("Hel", "lo")
    asked = replace(
        HELLO,
        model="writer",
        sampling=Sampling(seed=7),
        constraint=SCHEMA,
        top_logprobs=3,
        priority=Priority.LOW,
        deadline_seconds=5.0,
    )
    found = await read(chat.stream(APP, asked))
    assert found[:2] == [Text("Hel"), Text("lo")]
    assert ending(found) is FinishReason.STOP
    (generation,) = generator.asked
    assert (generation.tenant, generation.prefix_salt, generation.sampling.seed) == ("acme", b"acme", 7)
    assert (generation.constraint, generation.top_logprobs) == (SCHEMA, 3)
    assert (generation.priority, generation.deadline_seconds) == (Priority.LOW, 5.0)
    assert generator.aliases == ["writer"]


async def test_calls_are_pieces_of_their_own_and_say_so_at_the_end() -> None:
    chat, generator = speaking("I look.\n<tool", CALL[5:], "\n")
    found = await read(chat.stream(APP, OFFER))
    assert calls(found) == [("weather", {"city": "Bern"})]
    assert text(found) == "I look."
    assert ending(found) is FinishReason.TOOL_CALLS
    prompt = "".join(segment.text for segment in generator.asked[0].prompt)
    assert "Of a city." in prompt
    assert generator.asked[0].constraint is None


async def test_an_answer_ends_where_it_would_invent_a_result() -> None:
    chat, generator = speaking()
    await read(chat.stream(APP, replace(OFFER, sampling=Sampling(stop=("x",)))))
    assert generator.asked[0].sampling.stop == ("x", "<tool_response>")
    chat, generator = speaking()
    await read(chat.stream(APP, replace(OFFER, sampling=Sampling(stop=tuple("abcdefgh")))))
    assert generator.asked[0].sampling.stop == tuple("abcdefgh")
    chat, generator = speaking()
    await read(chat.stream(APP, replace(OFFER, tool_choice=REQUIRED)))
    assert generator.asked[0].sampling.stop == ()


async def test_a_call_that_is_cut_off_is_text_and_the_end_says_length() -> None:
    chat, _ = speaking(CALL[:40], Finish(FinishReason.LENGTH))
    found = await read(chat.stream(APP, OFFER))
    assert found == [Text(CALL[:40]), Finish(FinishReason.LENGTH)]


async def test_whole_calls_before_the_cut_are_calls_and_the_end_says_length() -> None:
    chat, _ = speaking(CALL, "<tool_call>{", Finish(FinishReason.LENGTH))
    found = await read(chat.stream(APP, OFFER))
    assert calls(found) == [("weather", {"city": "Bern"})]
    assert ending(found) is FinishReason.LENGTH


async def test_a_call_of_a_tool_that_was_not_offered_is_text() -> None:
    chat, _ = speaking(CALL)
    found = await read(chat.stream(APP, replace(HELLO, tools=(Tool("time"),))))
    assert text(found) == CALL
    assert ending(found) is FinishReason.STOP


async def test_without_tools_nothing_is_read_as_a_call_or_held_back() -> None:
    chat, generator = speaking(CALL)
    found = await read(chat.stream(APP, replace(OFFER, tool_choice=ToolChoice(ToolMode.NONE))))
    assert found[0] == Text(CALL)
    assert "Of a city." not in "".join(segment.text for segment in generator.asked[0].prompt)


async def test_a_required_call_is_forced_by_the_schemas_of_the_tools() -> None:
    chat, generator = speaking('{"name": "weather", "arguments": {"city": "Bern"}}')
    found = await read(chat.stream(APP, replace(OFFER, tool_choice=REQUIRED)))
    assert calls(found) == [("weather", {"city": "Bern"})]
    assert generator.asked[0].constraint is not None
    forms = json.loads(generator.asked[0].constraint.text)["anyOf"]
    assert [form["properties"]["name"]["const"] for form in forms] == ["weather", "time"]


async def test_a_named_tool_is_the_only_one_that_the_model_is_told_of() -> None:
    chat, generator = speaking('{"name": "weather", "arguments": {}}')
    found = await read(chat.stream(APP, replace(OFFER, tool_choice=ToolChoice(ToolMode.REQUIRED, "time"))))
    assert calls(found) == []
    assert generator.asked[0].constraint is not None
    (form,) = json.loads(generator.asked[0].constraint.text)["anyOf"]
    assert form["properties"]["name"] == {"const": "time"}
    assert "weather" not in "".join(segment.text for segment in generator.asked[0].prompt)


async def test_tools_beside_a_schema_leave_the_choice_between_a_call_and_the_answer() -> None:
    chat, generator = speaking("[1]")
    assert (await read(chat.stream(APP, replace(OFFER, constraint=SCHEMA))))[0] == Text("[1]")
    assert generator.asked[0].constraint is not None
    assert json.loads(generator.asked[0].constraint.text)["anyOf"][0] == {"type": "array"}


async def test_log_probabilities_keep_their_order_where_text_is_held_back() -> None:
    chat, _ = speaking(Text("<", (A,)), Text("b>", (B,)), Text(CALL, (A,)))
    found = await read(chat.stream(APP, OFFER))
    assert found[0] == Text("<b>", (A, B))
    assert isinstance(found[1], ToolCall)
    assert found[2] == Text("", (A,))


async def test_closing_the_answer_frees_the_sequence() -> None:
    for asked in (HELLO, OFFER):
        chat, generator = speaking("Hel", "lo")
        stream = chat.stream(APP, asked)
        assert await anext(stream) == Text("Hel")
        await stream.aclose()  # type: ignore[attr-defined]
        assert generator.closed == 1


async def test_an_error_of_the_engine_comes_through() -> None:
    chat = Chat(ScriptedGenerator([QueueFull("Full.")]), ScaffoldComposer(), str.encode)
    with pytest.raises(QueueFull):
        await read(chat.stream(APP, OFFER))


async def test_a_raw_text_is_continued_without_a_scaffold() -> None:
    chat, generator = speaking("time")
    found = [piece async for piece in chat.complete(APP, "writer", " Once upon a ", Sampling(seed=1), top_logprobs=0)]
    assert found[0] == Text("time")
    (segment,) = generator.asked[0].prompt
    assert (segment.origin, segment.text) == (Origin.USER, " Once upon a ")
    assert (generator.asked[0].tenant, generator.asked[0].top_logprobs) == ("acme", 0)


def test_only_those_who_run_the_box_may_go_first() -> None:
    chat, _ = speaking()
    for role in (Role.APP, Role.AUDITOR):
        with pytest.raises(Forbidden, match="priority"):
            chat.stream(Principal("acme", "x", role), replace(HELLO, priority=Priority.HIGH))
    for role in (Role.ADMIN, Role.OPERATOR):
        chat.stream(Principal("acme", "x", role), replace(HELLO, priority=Priority.HIGH))


def schema_of(text: str) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": ()}, "messages: takes 1 to"),
        ({"messages": (Message(Speaker.USER, " "),)}, r"messages\[0\]: must not be empty"),
        ({"messages": (Message(Speaker.USER, "\ud800"),)}, r"messages\[0\].text: is not valid Unicode"),
        ({"messages": (Message(Speaker.USER, "x" * 4_000_001),)}, "messages: have 4000001 characters"),
        ({"sampling": Sampling(presence_penalty=2.5)}, "sampling.presence_penalty"),
        ({"sampling": Sampling(stop=("\udfff",))}, "sampling.stop: is not valid Unicode"),
        ({"top_logprobs": 21}, "top_logprobs: must be between 0 and 20"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"deadline_seconds": -1.0}, "deadline_seconds"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds"),
        ({"constraint": schema_of("{")}, "response_format: is not valid JSON"),
        ({"constraint": schema_of("[]")}, "response_format: must be a JSON object"),
        ({"constraint": schema_of('{"x": "' + "x" * MAX_SCHEMA_BYTES + '"}')}, "response_format: the schema is larger"),
        ({"constraint": schema_of('{"not":' * 101 + "{}" + "}" * 101)}, "nested more than 100 deep"),
        ({"constraint": schema_of('{"not":' * 9000 + "{}" + "}" * 9000)}, "response_format"),
        ({"constraint": Constraint(ConstraintKind.GBNF, " ")}, "response_format: the grammar must not be empty"),
        ({"constraint": Constraint(ConstraintKind.GBNF, "x" * (MAX_SCHEMA_BYTES + 1))}, "the grammar is larger"),
        ({"tools": tuple(Tool(f"t{number}") for number in range(MAX_TOOLS + 1))}, "tools: has 65 tools"),
        ({"tools": (Tool("a b"),)}, r"tools\[0\].name"),
        ({"tools": (Tool("a"), Tool("a"))}, r"tools\[0\].name: .* no other tool's"),
        ({"tools": (Tool("a", "x" * 5000),)}, r"tools\[0\].description"),
        ({"tools": (Tool("a", "\ud800"),)}, r"tools\[0\].description: is not valid Unicode"),
        ({"tools": (Tool("a", "", "nothing"),)}, r"tools\[0\].parameters: is not valid JSON"),
        ({"tools": (Tool("a", "", '{"type": "string"}'),)}, r"tools\[0\].parameters: must be the JSON schema of an"),
        ({"tools": (Tool("a", "", " " * MAX_SCHEMA_BYTES + "{}"),)}, r"tools\[0\].parameters: the schema is larger"),
        ({"tool_choice": REQUIRED}, "tool_choice: requires a call, and there are no tools"),
        ({"tools": (WEATHER,), "tool_choice": ToolChoice(ToolMode.REQUIRED, "x")}, "tool_choice: names 'x'"),
        ({"tools": (WEATHER,), "tool_choice": ToolChoice(name="weather")}, "tool_choice: a named tool"),
        (
            {
                "tools": tuple(Tool(f"t{n}", "", '{"x": "' + "x" * 3000 + '"}') for n in range(30)),
                "tool_choice": REQUIRED,
            },
            "tools: have schemas that are larger",
        ),
        ({"tools": (WEATHER,), "tool_choice": REQUIRED, "constraint": SCHEMA}, "response_format: cannot bind"),
        ({"messages": (*HELLO.messages, MANY_CALLS)}, r"messages\[1\].tool_calls: has 129 calls"),
        ({"tools": (WEATHER,), "constraint": GRAMMAR}, "response_format: a grammar cannot go with tools"),
    ],
)
def test_a_call_that_is_wrong_is_refused_by_the_name_of_the_field(change: dict[str, Any], named: str) -> None:
    chat, generator = speaking()
    with pytest.raises(InvalidArgument, match=named):
        chat.stream(APP, replace(HELLO, **change))
    assert generator.asked == []


def test_a_model_that_is_not_there_is_refused_at_once() -> None:
    chat, _ = speaking()
    with pytest.raises(NotFound):
        chat.stream(APP, replace(HELLO, model="other"))
    with pytest.raises(InvalidArgument, match="prompt: must not be empty"):
        chat.complete(APP, "", " ")


# --- the request as gRPC has it ---------------------------------------------------------------------------------------


def test_a_request_becomes_a_call_with_its_deadline() -> None:
    request = pb.ChatRequest(
        model="models/writer",
        messages=[
            pb.Message(role=pb.Message.ROLE_USER, text="Hi"),
            pb.Message(role=pb.Message.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="1", name="time", arguments="{}")]),
            pb.Message(role=pb.Message.ROLE_TOOL, text="noon", tool_call_id="1"),
        ],
        sampling=pb.Sampling(presence_penalty=1, frequency_penalty=-1),
        tools=[pb.Tool(name="time")],
        tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name="time"),
        response_format=pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject()),
        top_logprobs=0,
        priority=pb.PRIORITY_LOW,
    )
    assert chat_call(request, 3.5) == ChatCall(
        "writer",
        (
            Message(Speaker.USER, "Hi"),
            Message(Speaker.ASSISTANT, "", (ToolCall("1", "time", "{}"),)),
            Message(Speaker.TOOL, "noon", tool_call_id="1"),
        ),
        Sampling(presence_penalty=1, frequency_penalty=-1),
        (Tool("time"),),
        ToolChoice(ToolMode.REQUIRED, "time"),
        ANY_JSON_OBJECT,
        0,
        Priority.LOW,
        3.5,
    )


def test_a_request_that_is_silent_takes_the_defaults() -> None:
    assert chat_call(pb.ChatRequest(), 0.0) == ChatCall("", ())
    assert chat_call(pb.ChatRequest(), 1e9).deadline_seconds == 86_400.0


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (pb.ChatRequest(messages=[pb.Message(text="Hi")]), r"messages\[0\].role"),
        (pb.ChatRequest(tool_choice=pb.ToolChoice(mode=9)), "tool_choice.mode"),  # type: ignore[arg-type]
        (pb.ChatRequest(priority=9), "priority"),  # type: ignore[arg-type]
        (pb.ChatRequest(model="writer"), "model"),
    ],
)
def test_a_request_with_an_unknown_value_is_refused_by_its_field(request_: pb.ChatRequest, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        chat_call(request_, 1.0)
