"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from appliance.api.chat import MAX_CALLS, MAX_MESSAGES, MAX_TOOLS, Chat
from appliance.api.fields import Fields, parse
from appliance.api.http import Answer, Call, EventStream, event, json_answer
from appliance.api.openai import options
from appliance.api.openai.options import Stamp
from appliance.types import ChatCall, ChatPiece, Finish, Message, Speaker, Text, TokenChoice, Tool, ToolCall

DONE = b"data: [DONE]\n\n"
NAMES = {
    "repeat_penalty": "repetition_penalty",
    ".text": ".content",
    ".arguments": ".function.arguments",
    ".name": ".function.name",
    ".description": ".function.description",
    ".parameters": ".function.parameters",
}
SPEAKERS = {
    "system": Speaker.SYSTEM,
    "developer": Speaker.SYSTEM,
    "user": Speaker.USER,
    "assistant": Speaker.ASSISTANT,
    "tool": Speaker.TOOL,
}


@dataclass(frozen=True)
class ChatCompletions:
    """Chat completions over the one path of a prompt to a model."""

    chat: Chat

    async def __call__(self, call: Call) -> Answer:
        fields = parse(call.body)
        streamed = fields.flag("stream")
        with_usage = options.usage_wanted(fields)
        length = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        asked, parallel = chat_call(fields, call), fields.flag("parallel_tool_calls", True)
        fields.finish()
        call.names = NAMES | {"max_tokens": length} | options.named(asked.constraint)
        pieces = self.chat.stream(call.principal, asked)
        if not parallel:
            pieces = one_call(pieces)
        stamp = options.stamp("chatcmpl", asked.model)
        if streamed:
            return EventStream(_chunks(stamp, pieces, asked.top_logprobs is not None, with_usage))
        return json_answer(await _whole(stamp, pieces, asked.top_logprobs is not None))


def chat_call(fields: Fields, call: Call) -> ChatCall:
    """The request as our value. Raises InvalidArgument, Forbidden."""
    fields.ignore(*options.HARMLESS)
    fields.refuse("store", why=options.STATELESS)
    fields.refuse("functions", "function_call", why="is not taken: use tools and tool_choice.")
    fields.refuse("logit_bias", "audio", "web_search_options", "moderation", why="is not offered by this box.")
    fields.refuse("reasoning_effort", "verbosity", why="is not offered by this box: say it in the prompt.")
    if fields.whole("n", 1) != 1:
        raise fields.refusal("n", "must be 1: call again for another answer.")
    if fields.items("modalities") not in ([], ["text"]):
        raise fields.refusal("modalities", "must be text alone.")
    form, choice, wanted = options.form(fields), options.tool_choice(fields), fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0)
    if top and not wanted:
        raise fields.refusal("top_logprobs", "goes with logprobs: true only.")
    return ChatCall(
        model=call.require_model(fields.text("model", "")),
        messages=tuple(_message(item) for item in fields.objects("messages", MAX_MESSAGES)),
        sampling=options.sampling(fields, "max_tokens", "max_completion_tokens"),
        tools=tuple(_tool(item, options.binds(choice, form)) for item in fields.objects("tools", MAX_TOOLS)),
        tool_choice=choice,
        constraint=form,
        top_logprobs=top if wanted else None,
        deadline_seconds=call.deadline_seconds,
    )


def _message(fields: Fields) -> Message:
    speaker = SPEAKERS[fields.choice("role", SPEAKERS)]
    fields.ignore("name", "refusal", "annotations")
    fields.refuse("audio", "function_call", why="is not offered by this box.")
    calls = tuple(_tool_call(item) for item in fields.objects("tool_calls", MAX_CALLS))
    text = content(fields, required=not calls)
    answers = fields.text("tool_call_id", "")
    fields.finish()
    return Message(speaker, text, calls, answers)


def content(fields: Fields, name: str = "content", required: bool = True) -> str:
    """The words of a message: text, or a list of parts that are all text."""
    value = fields.any(name)
    if isinstance(value, str):
        return value
    if value is None and not required:
        return ""
    if not isinstance(value, list):
        raise fields.refusal(name, "must be text or a list of text parts.")
    texts = []
    for index, item in enumerate(value):
        part = Fields(item, f"{fields.where}{name}[{index}].")
        if part.text("type") not in ("text", "input_text", "output_text"):
            raise part.refusal("type", "must be text: this box reads nothing else.")
        texts.append(part.text("text"))
        part.ignore("annotations", "logprobs")
        part.finish()
    return "".join(texts)


def _tool_call(fields: Fields) -> ToolCall:
    fields.choice("type", ("function",), "function")
    fields.ignore("index")
    id, inner = fields.text("id"), fields.object("function")
    if inner is None:
        raise fields.refusal("function", "is missing.")
    call = ToolCall(id, inner.text("name"), inner.text("arguments"))
    inner.finish()
    fields.finish()
    return call


def _tool(fields: Fields, bound: bool) -> Tool:
    fields.choice("type", ("function",))
    inner = fields.object("function")
    if inner is None:
        raise fields.refusal("function", "is missing.")
    fields.finish()
    return options.function(inner, bound)


async def one_call(pieces: AsyncIterator[ChatPiece]) -> AsyncIterator[ChatPiece]:
    """The answer with the first of its calls alone: parallel_tool_calls is false."""
    called = False
    async with aclosing(pieces) as answer:  # type: ignore[type-var]
        async for piece in answer:
            if not (isinstance(piece, ToolCall) and called):
                yield piece
            called = called or isinstance(piece, ToolCall)


async def _whole(stamp: Stamp, pieces: AsyncIterator[ChatPiece], with_logprobs: bool) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[ToolCall] = []
    choices: list[TokenChoice] = []
    finish = None
    async with aclosing(pieces) as answer:  # type: ignore[type-var]
        async for piece in answer:
            match piece:
                case Text():
                    texts.append(piece.text)
                    choices += piece.choices
                case ToolCall():
                    calls.append(piece)
                case Finish():
                    finish = piece
    assert finish is not None  # a stream ends with one or raises
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) or (None if calls else ""),
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = [_told_call(one) for one in calls]
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": finish.reason.value,
        "logprobs": {"content": options.logprobs(choices), "refusal": None} if with_logprobs else None,
    }
    return _head(stamp, "chat.completion") | {"choices": [choice], "usage": options.usage([finish])}


async def _chunks(
    stamp: Stamp, pieces: AsyncIterator[ChatPiece], with_logprobs: bool, with_usage: bool
) -> AsyncIterator[bytes]:
    head = _head(stamp, "chat.completion.chunk") | ({"usage": None} if with_usage else {})

    def chunk(delta: dict[str, Any], reason: str | None = None, choices: tuple[TokenChoice, ...] = ()) -> bytes:
        logprobs = {"content": options.logprobs(choices), "refusal": None} if with_logprobs and choices else None
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return event(head | {"choices": [choice]})

    first: dict[str, Any] = {"role": "assistant"}
    calls = 0
    async with aclosing(pieces) as answer:  # type: ignore[type-var]
        async for piece in answer:
            match piece:
                case Text():
                    yield chunk(first | {"content": piece.text}, choices=piece.choices)
                case ToolCall():
                    yield chunk(first | {"tool_calls": [{"index": calls} | _told_call(piece)]})
                    calls += 1
                case Finish():
                    yield chunk(first, piece.reason.value)
                    if with_usage:
                        yield event(head | {"choices": [], "usage": options.usage([piece])})
            first = {}
    yield DONE


def _told_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _head(stamp: Stamp, kind: str) -> dict[str, Any]:
    return {"id": stamp.id, "object": kind, "created": stamp.created, "model": stamp.model}
