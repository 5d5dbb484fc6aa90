"""POST /v1/responses by the real `openai` client."""

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from appliance.errors import WorkerDied
from appliance.tenancy.compose import ScaffoldComposer
from appliance.types import Text, TokenChoice, TokenLogprob
from tests.api.http_box import CUT, STOP, HttpBox, eventually

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
USER: Any = {"role": "user", "content": "Weather?"}
PAST: Any = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
RESULT: Any = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
CALL = '{"name": "weather", "arguments": {"city": "Bonn"}}'


async def test_a_response_comes_whole_with_its_usage(served: HttpBox) -> None:
    served.generator.say("Good ", "day.")
    response = await served.openai().responses.create(model="writer", input="Hello.", instructions="Be kind.")
    assert (response.output_text, response.status, response.model) == ("Good day.", "completed", "writer")
    assert response.usage is not None
    assert (response.usage.total_tokens, response.usage.input_tokens_details.cached_tokens) == (13, 4)
    assert [segment.text for segment in served.generator.asked[0].prompt] == ["Be kind.", "Hello."]


async def test_a_cut_response_says_so(served: HttpBox) -> None:
    served.generator.say("Good", finish=CUT)
    response = await served.openai().responses.create(model="writer", input="Hello.", max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert served.generator.asked[0].sampling.max_tokens == 16


async def test_a_stream_has_the_events_in_their_order(served: HttpBox) -> None:
    served.generator.say("Good ", "day.")
    stream = await served.openai().responses.create(model="writer", input="Hello.", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    last: Any = events[-1]
    assert last.response.output_text == "Good day."
    assert last.response.id == events[0].response.id  # type: ignore[union-attr]


async def test_the_clients_own_stream_helper_follows_it(served: HttpBox) -> None:
    served.generator.say(CALL)
    async with served.openai().responses.stream(model="writer", input="Weather?", tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert [item.type for item in final.output] == ["function_call"]
    call: Any = final.output[0]
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Bonn"}, "completed")


async def test_a_conversation_with_calls_and_their_outputs_is_taken(served: HttpBox) -> None:
    served.generator.say("It rains.")
    turns: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}], "id": "m1"},
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "weather",
            "arguments": "{}",
            "id": "f",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    response = await served.openai().responses.create(model="writer", input=turns, tools=[WEATHER])
    assert response.output_text == "It rains."
    texts = [segment.text for segment in served.generator.asked[0].prompt]
    assert texts == ["Be brief.", "Weather?", "I look.", "rain", "sun"]


async def test_a_schema_binds_the_answer_and_the_client_parses_it(served: HttpBox) -> None:
    class City(BaseModel):
        name: str

    served.generator.say('{"name": "Bonn"}')
    response = await served.openai().responses.parse(model="writer", input="Where?", text_format=City)
    assert response.output_parsed == City(name="Bonn")
    constraint = served.generator.asked[0].constraint
    assert constraint is not None
    assert json.loads(constraint.text)["required"] == ["name"]


async def test_log_probabilities_come_where_they_are_included(served: HttpBox) -> None:
    choice = TokenChoice(TokenLogprob(1, b"day", -0.1), (TokenLogprob(1, b"day", -0.1),))
    served.generator.pieces.append([Text("day", (choice,)), STOP])
    response = await served.openai().responses.create(
        model="writer", input="x", include=["message.output_text.logprobs"], top_logprobs=1
    )
    part: Any = response.output[0].content[0]  # type: ignore[union-attr,index]
    assert (part.logprobs[0].token, part.logprobs[0].top_logprobs[0].logprob) == ("day", -0.1)


@pytest.mark.parametrize(
    "given",
    [
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"truncation": "auto"},
        {"reasoning": {"effort": "high"}},
        {"max_tool_calls": 1},
        {"include": ["file_search_call.results"]},
        {"tools": [{"type": "web_search"}]},
        {"input": 7},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"text": {"verbosity": "low"}},
        {"extra_body": {"magic": 1}},
        {"stream_options": {"bogus": 1}},
        {"tools": [WEATHER | {"strict": True}]},
        {"input": ["x"] * 10_001},
        {"metadata": {"a": "x" * 600}},
        {"metadata": {str(number): "x" for number in range(17)}},
        {"metadata": ["a"]},
        {"max_output_tokens": 0},
    ],
)
async def test_what_the_box_does_not_keep_or_do_is_refused_by_name(served: HttpBox, given: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await served.openai().responses.create(**({"model": "writer", "input": "x"} | given))
    assert refused.value.param is not None
    assert refused.value.param.split(".")[0].split("[")[0] in {*given, "magic"}


async def test_an_error_amid_a_response_reaches_the_client(served: HttpBox) -> None:
    served.generator.pieces.append([Text("Good "), WorkerDied("The worker died.")])
    stream = await served.openai().responses.create(model="writer", input="x", stream=True)
    with pytest.raises(openai.APIError, match="The worker died"):
        async for _ in stream:
            pass


async def test_a_client_gone_amid_a_response_frees_the_sequence(served: HttpBox) -> None:
    served.generator.pieces.append([Text("Good "), asyncio.Event()])
    stream = await served.openai().responses.create(model="writer", input="x", stream=True)
    await anext(stream)
    await stream.close()
    await eventually(lambda: served.generator.closed == 1)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"instructions": "Be kind.", "input": [{"role": "developer", "content": "x"}, USER]}, "input[0]"),
        ({"input": [USER, PAST, PAST, RESULT]}, "input[2].call_id"),
        ({"input": [USER, PAST | {"arguments": "[]"}, RESULT]}, "input[1].arguments"),
        ({"input": [USER, PAST, RESULT | {"call_id": "c9"}]}, "input[2].call_id"),
        ({"input": " "}, "input"),
        ({"input": []}, "input"),
    ],
)
async def test_what_is_wrong_is_named_as_the_caller_has_it(served: HttpBox, given: Any, param: str) -> None:
    served.chat._composer = ScaffoldComposer()
    with pytest.raises(openai.BadRequestError) as refused:
        await served.openai().responses.create(**({"model": "writer"} | given))
    assert refused.value.param == param


@pytest.mark.parametrize(("choice", "strict"), [("auto", False), ("required", True)])
async def test_strict_is_told_where_it_holds(served: HttpBox, choice: Any, strict: bool) -> None:
    served.generator.say(CALL)
    response = await served.openai().responses.create(
        model="writer", input="Weather?", tools=[WEATHER], tool_choice=choice, metadata={"a": "b"}
    )
    assert response.tools[0].strict is strict  # type: ignore[union-attr]
    assert response.metadata == {"a": "b"}


async def test_thousands_of_calls_are_refused_without_a_stall(served: HttpBox) -> None:
    turns = [USER, *(PAST | {"call_id": f"c{number}"} for number in range(9000))]
    with pytest.raises(openai.BadRequestError, match="at most 128"):
        await served.openai().responses.create(model="writer", input=turns)
