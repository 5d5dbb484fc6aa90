"""POST /v1/responses. Nothing is kept: an answer can't be fetched or gone on with by its id."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from appliance.api.chat import Chat
from appliance.api.fields import Fields, parse
from appliance.api.http import Answer, Call, EventStream, event, json_answer
from appliance.api.openai import options
from appliance.api.openai.chat import SPEAKERS, content, one_call
from appliance.api.openai.response_events import Event, Head, events
from appliance.types import ChatCall, Constraint, Message, Speaker, Tool, ToolCall

LOGPROBS = "message.output_text.logprobs"
INCLUDED = {LOGPROBS, "reasoning.encrypted_content"}  # of the latter there is none to include


@dataclass(frozen=True)
class Responses:
    chat: Chat

    async def __call__(self, call: Call) -> Answer:
        fields = parse(call.body)
        streamed, parallel = fields.flag("stream"), fields.flag("parallel_tool_calls", True)
        metadata, instructions, form = fields.any("metadata"), fields.text("instructions", ""), fields.any("text")
        asked = _call(fields, call, instructions, _form(form))
        fields.finish()
        pieces = self.chat.stream(call.principal, asked)
        pieces = pieces if parallel else one_call(pieces)
        head = Head(options.stamp("resp", asked.model), asked, instructions, form, parallel, metadata)
        told = events(head, pieces)
        return EventStream(_encoded(told)) if streamed else json_answer(await _last(told))


def _call(fields: Fields, call: Call, instructions: str, form: Constraint | None) -> ChatCall:
    """The request as our value. Raises InvalidArgument, Forbidden."""
    fields.ignore(*options.HARMLESS, "stream_options")
    fields.refuse("store", "previous_response_id", "conversation", "background", why=options.STATELESS)
    fields.refuse("prompt", "max_tool_calls", "context_management", "moderation", why="is not offered by this box.")
    fields.refuse("reasoning", why="is not offered by this box: say it in the prompt.")
    fields.choice("truncation", ("disabled",), "disabled")
    included = set(map(str, fields.items("include")))
    if unknown := included - INCLUDED:
        raise fields.refusal("include", f"{min(unknown)[:80]!r} is not offered by this box.")
    wanted = LOGPROBS in included or "top_logprobs" in fields
    return ChatCall(
        model=call.require_model(fields.text("model", "")),
        messages=tuple(_messages(fields, instructions)),
        sampling=options.sampling(fields, "max_output_tokens"),
        tools=tuple(_tool(item) for item in fields.objects("tools")),
        tool_choice=options.tool_choice(fields),
        constraint=form,
        top_logprobs=fields.whole("top_logprobs", 0) if wanted else None,
        deadline_seconds=call.deadline_seconds,
    )


def _form(value: Any) -> Constraint | None:
    if value is None:
        return None
    fields = Fields(value, "text.")
    form = options.constraint(fields, "format")
    fields.refuse("verbosity", why="is not offered by this box: say it in the prompt.")
    fields.finish()
    return form


def _messages(fields: Fields, instructions: str) -> Iterator[Message]:
    """The turns; calls that follow one another, or an assistant's words, are one turn."""
    if instructions:
        yield Message(Speaker.SYSTEM, instructions)
    value = fields.any("input")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise fields.refusal("input", "must be text or a list of items.")
    turn: Message | None = None
    for index, item in enumerate(items):
        read = _item(Fields(item, f"input[{index}]."))
        if turn and turn.speaker is Speaker.ASSISTANT and read.tool_calls:
            turn = replace(turn, tool_calls=turn.tool_calls + read.tool_calls)
            continue
        if turn:
            yield turn
        turn = read
    if turn:
        yield turn


def _item(fields: Fields) -> Message:
    kind = fields.choice("type", ("message", "function_call", "function_call_output"), "message")
    fields.ignore("id", "status", "phase")
    if kind == "message":
        message = Message(
            SPEAKERS[fields.choice("role", ("system", "developer", "user", "assistant"))], content(fields)
        )
    elif kind == "function_call":
        called = ToolCall(fields.text("call_id"), fields.text("name"), fields.text("arguments"))
        message = Message(Speaker.ASSISTANT, "", (called,))
    else:
        message = Message(Speaker.TOOL, content(fields, "output"), tool_call_id=fields.text("call_id"))
    fields.finish()
    return message


def _tool(fields: Fields) -> Tool:
    if fields.text("type") != "function":
        raise fields.refusal("type", "must be function: this box runs no tools of its own here.")
    return options.function(fields)


async def _encoded(told: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async with aclosing(told) as all_events:  # type: ignore[type-var]
        async for one in all_events:
            yield event(one, one["type"])


async def _last(told: AsyncIterator[Event]) -> Any:
    """The whole response, which the last event holds."""
    last: Event = {}
    async with aclosing(told) as all_events:  # type: ignore[type-var]
        async for one in all_events:
            last = one
    return last["response"]
