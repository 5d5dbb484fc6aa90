"""POST /v1/responses. Nothing is kept: an answer can't be fetched or gone on with by its id."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from appliance.api.chat import MAX_MESSAGES, MAX_TOOLS, Chat
from appliance.api.fields import Fields, parse
from appliance.api.http import Answer, Call, EventStream, event, json_answer
from appliance.api.openai import options
from appliance.api.openai.chat import SPEAKERS, content, one_call
from appliance.api.openai.response_events import Event, Head, events
from appliance.types import ChatCall, Constraint, Message, Speaker, Tool, ToolCall

MAX_METADATA, MAX_METADATUM = 16, 576
NAMES = {
    "max_tokens": "max_output_tokens",
    "repeat_penalty": "repetition_penalty",
    "response_format": "text.format",
    "messages": "input",
    ".text": ".content",
    ".id": ".call_id",
    ".tool_call_id": ".call_id",
}
LOGPROBS = "message.output_text.logprobs"
INCLUDED = {LOGPROBS, "reasoning.encrypted_content"}  # of the latter there is none to include


@dataclass(frozen=True)
class Responses:
    chat: Chat

    async def __call__(self, call: Call) -> Answer:
        fields = parse(call.body)
        streamed, parallel = fields.flag("stream"), fields.flag("parallel_tool_calls", True)
        metadata, instructions, form = _metadata(fields), fields.text("instructions", ""), fields.any("text")
        options.usage_wanted(fields)  # a response always says it
        turns = tuple(_turns(fields, instructions))
        asked = _call(fields, call, turns, _form(form))
        fields.finish()
        call.names = NAMES | {name: told for number, turn in enumerate(turns) for name, told in turn.names(number)}
        pieces = self.chat.stream(call.principal, asked)
        pieces = pieces if parallel else one_call(pieces)
        head = Head(options.stamp("resp", asked.model), asked, instructions, form, parallel, metadata)
        told = events(head, pieces)
        return EventStream(_encoded(told)) if streamed else json_answer(await _last(told))


def _call(fields: Fields, call: Call, turns: Sequence["_Turn"], form: Constraint | None) -> ChatCall:
    """The request as our value. Raises InvalidArgument, Forbidden."""
    fields.ignore(*options.HARMLESS)
    fields.refuse("store", "previous_response_id", "conversation", "background", why=options.STATELESS)
    fields.refuse("prompt", "max_tool_calls", "context_management", "moderation", why="is not offered by this box.")
    fields.refuse("reasoning", why="is not offered by this box: say it in the prompt.")
    fields.choice("truncation", ("disabled",), "disabled")
    included = set(map(str, fields.items("include")))
    if unknown := included - INCLUDED:
        raise fields.refusal("include", f"{min(unknown)[:80]!r} is not offered by this box.")
    wanted = LOGPROBS in included or "top_logprobs" in fields
    choice = options.tool_choice(fields)
    return ChatCall(
        model=call.require_model(fields.text("model", "")),
        messages=tuple(turn.message() for turn in turns),
        sampling=options.sampling(fields, "max_output_tokens"),
        tools=tuple(_tool(item, options.binds(choice, form)) for item in fields.objects("tools", MAX_TOOLS)),
        tool_choice=choice,
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


def _metadata(fields: Fields) -> dict[str, str]:
    """What the caller wants told back: at most 16 short texts."""
    value = fields.any("metadata") or {}
    fit = isinstance(value, dict) and len(value) <= MAX_METADATA
    if not fit or not all(isinstance(text, str) and len(name + text) <= MAX_METADATUM for name, text in value.items()):
        problem = f"must be at most {MAX_METADATA} texts by name, none with its name longer than {MAX_METADATUM}."
        raise fields.refusal("metadata", problem)
    return dict(value)


@dataclass
class _Turn:
    """One message and the items that it was made of. words: the place of its first."""

    first: Message
    words: str
    calls: list[ToolCall] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def take(self, calls: Sequence[ToolCall], place: str) -> None:
        self.calls += calls
        self.places += [place] * len(calls)

    def message(self) -> Message:
        return replace(self.first, tool_calls=tuple(self.calls))

    def names(self, number: int) -> Iterator[tuple[str, str]]:
        """What the caller calls the parts of message `number`."""
        yield f"messages[{number}]", self.words
        for index, place in enumerate(self.places):
            yield f"messages[{number}].tool_calls[{index}]", place


def _turns(fields: Fields, instructions: str) -> Iterator[_Turn]:
    """Calls that follow one another, or an assistant's words, are one turn."""
    if instructions:
        yield _Turn(Message(Speaker.SYSTEM, instructions), "instructions")
    value = fields.any("input")
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise fields.refusal("input", "must be text or a list of items.")
    if len(items) > MAX_MESSAGES:
        raise fields.refusal("input", f"has {len(items)} items; at most {MAX_MESSAGES} are taken.")
    turn: _Turn | None = None
    for index, item in enumerate(items):
        place = f"input[{index}]"
        read = _item(Fields(item, f"{place}."))
        if not (turn and turn.first.speaker is Speaker.ASSISTANT and read.tool_calls):
            if turn:
                yield turn
            turn = _Turn(read, "input" if isinstance(value, str) else place)
        turn.take(read.tool_calls, place)
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


def _tool(fields: Fields, bound: bool) -> Tool:
    if fields.text("type") != "function":
        raise fields.refusal("type", "must be function: this box runs no tools of its own here.")
    return options.function(fields, bound)


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
