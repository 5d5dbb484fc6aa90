"""POST /v1/chat/completions by the real `openai` client."""

import asyncio
import json
from typing import Any

import openai
import pytest

from appliance.errors import NoChatModel, PromptTooLong, QueueFull, WorkerDied
from appliance.types import AppScope, ConstraintKind, Text, TokenChoice, TokenLogprob
from tests.api.http_box import CUT, STOP, HttpBox

HELLO: Any = [{"role": "user", "content": "Good morning."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
STRICT: Any = WEATHER | {"function": WEATHER["function"] | {"strict": True}}
PAST: Any = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALL = '{"name": "weather", "arguments": {"city": "Bonn"}}'


async def test_an_answer_comes_whole_with_its_usage(served: HttpBox) -> None:
    served.generator.say("Good ", "day.")
    answer = await served.openai().chat.completions.create(model="writer", messages=HELLO)
    assert answer.choices[0].message.content == "Good day."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    told = (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.prompt_tokens_details.cached_tokens,
    )
    assert told == (10, 3, 4)
    assert answer.model == "writer"


async def test_a_stream_comes_piece_by_piece_with_usage_where_it_is_asked_for(served: HttpBox) -> None:
    served.generator.say("Good ", "day.", finish=CUT)
    stream = await served.openai().chat.completions.create(
        model="writer", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert deltas == ["Good ", "day."]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 13
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_first_piece_arrives_before_the_last_is_made(served: HttpBox) -> None:
    go = asyncio.Event()
    served.generator.pieces.append([Text("first"), go, Text("second"), STOP])
    stream = await served.openai().chat.completions.create(model="writer", messages=HELLO, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "first"
    go.set()
    assert (await anext(stream)).choices[0].delta.content == "second"
    await stream.close()


async def test_sampling_reaches_the_engine_as_it_was_given(served: HttpBox) -> None:
    served.generator.say("x")
    await served.openai().chat.completions.create(
        model="writer",
        messages=HELLO,
        temperature=0,
        top_p=0.5,
        seed=7,
        max_completion_tokens=9,
        stop=["END"],
        presence_penalty=1,
        frequency_penalty=-1.5,
        user="ann",
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2},
    )
    sampling = served.generator.asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0.0, 0.5, 7, 9)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.stop) == (1.0, -1.5, ("END",))
    assert (sampling.top_k, sampling.min_p, sampling.repeat_penalty) == (3, 0.1, 1.2)


async def test_without_a_seed_each_answer_has_its_own(served: HttpBox) -> None:
    served.generator.say("x")
    served.generator.say("x")
    for _ in range(2):
        await served.openai().chat.completions.create(model="writer", messages=HELLO)
    first, second = (asked.sampling.seed for asked in served.generator.asked)
    assert first != second


async def test_a_tool_call_is_told_and_its_answer_taken(served: HttpBox) -> None:
    served.generator.say(CALL)
    answer = await served.openai().chat.completions.create(model="writer", messages=HELLO, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bonn"})
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None

    served.generator.say("It rains.")
    turns: Any = [
        *HELLO,
        answer.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "rain"}]},
    ]
    again = await served.openai().chat.completions.create(model="writer", messages=turns, tools=[WEATHER])
    assert again.choices[0].message.content == "It rains."


async def test_a_streamed_tool_call_has_its_index_and_a_single_one_where_asked(served: HttpBox) -> None:
    served.generator.say(f"[{CALL}, {CALL}]")
    stream = await served.openai().chat.completions.create(model="writer", messages=HELLO, tools=[WEATHER], stream=True)
    calls = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1]
    served.generator.say(f"[{CALL}, {CALL}]")
    answer = await served.openai().chat.completions.create(
        model="writer", messages=HELLO, tools=[WEATHER], parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls or []) == 1


async def test_a_required_tool_binds_the_answer(served: HttpBox) -> None:
    served.generator.say(CALL)
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    await served.openai().chat.completions.create(model="writer", messages=HELLO, tools=[WEATHER], tool_choice=choice)
    constraint = served.generator.asked[0].constraint
    assert constraint is not None
    assert "weather" in constraint.text


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"response_format": {"type": "text"}}, None, ""),
        ({"response_format": {"type": "json_object"}}, ConstraintKind.JSON_SCHEMA, '{"type": "object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}},
            ConstraintKind.JSON_SCHEMA,
            '{"type": "null"}',
        ),
        ({"extra_body": {"grammar": 'root ::= "a"'}}, ConstraintKind.GBNF, 'root ::= "a"'),
    ],
)
async def test_the_form_of_an_answer_becomes_its_constraint(
    served: HttpBox, given: Any, kind: ConstraintKind | None, text: str
) -> None:
    served.generator.say("{}")
    await served.openai().chat.completions.create(model="writer", messages=HELLO, **given)
    constraint = served.generator.asked[0].constraint
    assert (constraint.kind if constraint else None, constraint.text if constraint else "") == (kind, text)


async def test_log_probabilities_name_each_token_and_its_rivals(served: HttpBox) -> None:
    chosen, other = TokenLogprob(1, b"day", -0.1), TokenLogprob(2, b"\xc3", -2.5)
    for _ in range(2):
        served.generator.pieces.append([Text("day", (TokenChoice(chosen, (chosen, other)),)), STOP])
    client = served.openai()
    whole = await client.chat.completions.create(model="writer", messages=HELLO, logprobs=True, top_logprobs=2)
    assert served.generator.asked[0].top_logprobs == 2
    assert whole.choices[0].logprobs is not None
    (token,) = whole.choices[0].logprobs.content or []
    assert (token.token, token.logprob, token.bytes) == ("day", -0.1, [100, 97, 121])
    assert [rival.bytes for rival in token.top_logprobs] == [[100, 97, 121], [0xC3]]
    stream = await client.chat.completions.create(
        model="writer", messages=HELLO, logprobs=True, top_logprobs=2, stream=True
    )
    first = (await anext(stream)).choices[0].logprobs
    assert first is not None
    assert first.content == whole.choices[0].logprobs.content
    await stream.close()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"temperature": 9}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"extra_body": {"stop": 7}}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"extra_body": {"repetition_penalty": 99}}, "repetition_penalty"),
        ({"extra_body": {"grammar": " "}}, "grammar"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"stream": True, "stream_options": {"bogus": 1}}, "stream_options.bogus"),
        ({"tools": [STRICT]}, "tools[0].function.strict"),
        ({"tools": [WEATHER] * 65}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "required", "extra_body": {"grammar": 'root ::= "a"'}}, "grammar"),
        ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [PAST] * 129}]}, "messages[1].tool_calls"),
        ({"model": "m" * 129}, "model"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_its_name(
    served: HttpBox, given: Any, param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await served.openai().chat.completions.create(**({"model": "writer", "messages": HELLO} | given))
    assert refused.value.type == "invalid_request_error"
    if param:
        assert refused.value.param == param
    assert served.generator.asked == []


async def test_what_changes_nothing_is_taken(served: HttpBox) -> None:
    served.generator.say("x")
    await served.openai().chat.completions.create(
        model="writer",
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi", "name": "ann"}],
        metadata={"a": "b"},
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        store=False,
        n=1,
        logit_bias={},
    )
    assert len(served.generator.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', '{"a": 1}'.encode("utf-16")),
        *(b"[" * 100_000, b"1" * 10_000, b'{"a": [' + b"[]," * 500_000 + b"[]]}", b'{"a": [' + b'"",' * 900_000),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_bad_request(served: HttpBox, body: bytes) -> None:
    async with served.http() as client:
        answer = await client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_argument"


async def test_a_text_may_hold_any_number_of_commas_and_brackets(served: HttpBox) -> None:
    served.generator.say("x")
    text = '[,{\\"' * 60_000
    await served.openai().chat.completions.create(model="writer", messages=[{"role": "user", "content": text}])
    assert served.generator.asked[0].prompt[0].text == text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ("chat/completions", {"model": "\udfff"}, "model"),
        ("chat/completions", {"\ud800": 1}, "body"),
        ("chat/completions", {"stop": ["a", "\ud800"]}, "stop[1]"),
        ("responses", {"input": "x", "metadata": {"a": "\ud800"}}, "metadata.a"),
        ("responses", {"input": "x", "text": {"format": {"name": "\ud800"}}}, "text.format.name"),
        ("embeddings", {"input": ["\ud800"]}, "input[0]"),
    ],
)
async def test_half_a_surrogate_pair_is_a_bad_request(
    served: HttpBox, path: str, body: dict[str, Any], param: str
) -> None:
    async with served.http() as client:
        answer = await client.post(f"/v1/{path}", content=json.dumps(body))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert served.generator.asked == []


@pytest.mark.parametrize(
    ("error", "kind", "status", "retry"),
    [
        (QueueFull("64 wait.", retry_after_seconds=2.4), openai.RateLimitError, 429, "true"),
        (PromptTooLong("9000 tokens; the context holds 8192."), openai.BadRequestError, 400, "false"),
        (NoChatModel("No chat model is imported."), openai.BadRequestError, 400, "false"),
        (WorkerDied("It died."), openai.InternalServerError, 503, "true"),
        (ValueError("secret words"), openai.InternalServerError, 500, "false"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_piece_is_a_status(
    served: HttpBox, error: Exception, kind: type[openai.APIStatusError], status: int, retry: str, stream: bool
) -> None:
    served.generator.pieces.append([error])
    with pytest.raises(kind) as failed:
        await served.openai().chat.completions.create(model="writer", messages=HELLO, stream=stream)
    assert failed.value.status_code == status
    assert failed.value.response.headers["x-should-retry"] == retry
    assert failed.value.response.headers.get("retry-after") == ("2" if status == 429 else None)
    assert "secret words" not in failed.value.response.text


async def test_an_error_amid_a_stream_is_its_last_event(served: HttpBox) -> None:
    served.generator.pieces.append([Text("Good "), WorkerDied("The worker died.")])
    stream = await served.openai().chat.completions.create(model="writer", messages=HELLO, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "Good "
    with pytest.raises(openai.APIError, match="The worker died") as failed:
        await anext(stream)
    assert failed.value.code == "worker_died"
    assert served.generator.closed == 1


async def test_a_model_that_is_not_there_is_not_found(served: HttpBox) -> None:
    with pytest.raises(openai.NotFoundError):
        await served.openai().chat.completions.create(model="gpt-4o", messages=HELLO)


async def test_a_key_for_one_model_opens_no_other_and_is_asked_by_default(served: HttpBox) -> None:
    client = served.openai(served.key(AppScope.INFERENCE, models=["writer"]))
    with pytest.raises(openai.PermissionDeniedError):
        await client.chat.completions.create(model="other", messages=HELLO)
    served.generator.say("x")
    assert (await client.chat.completions.create(model="", messages=HELLO)).model == "writer"
