"""The events of a streamed response, in the order that OpenAI's reference gives; the last holds the whole of it.

created → in_progress → (output_item.added → … → output_item.done) … → completed | incomplete
"""

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from appliance.api.openai import options
from appliance.types import ChatCall, ChatPiece, Finish, FinishReason, Text, Tool, ToolCall

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What a response says of its request. text: the request's own `text`."""

    stamp: options.Stamp
    call: ChatCall
    instructions: str
    text: Any
    parallel: bool
    metadata: Any


async def events(head: Head, pieces: AsyncIterator[ChatPiece]) -> AsyncIterator[Event]:
    """Raises what the pieces raise; the first piece is awaited before the first event."""
    output, number, finish = _Output(), 0, None
    begun = False
    async with aclosing(pieces) as answer:  # type: ignore[type-var]
        async for piece in answer:
            told: list[Event] = [] if begun else list(_begin(head))
            begun = True
            match piece:
                case Text():
                    told += output.say(piece)
                case ToolCall():
                    told += output.call(piece)
                case Finish():
                    finish = piece
                    cut = piece.reason is FinishReason.LENGTH
                    told += output.close("incomplete" if cut else "completed")
                    told.append(_end(head, output, piece))
            for one in told:
                yield one | {"sequence_number": number}
                number += 1
    assert finish is not None  # a stream ends with one or raises


def _begin(head: Head) -> Iterator[Event]:
    response = _response(head, "in_progress", [], None)
    yield {"type": "response.created", "response": response}
    yield {"type": "response.in_progress", "response": response}


def _end(head: Head, output: "_Output", finish: Finish) -> Event:
    status = "incomplete" if finish.reason is FinishReason.LENGTH else "completed"
    return {"type": f"response.{status}", "response": _response(head, status, output.items, finish)}


@dataclass(slots=True)
class _Output:
    """The items of a response so far; the last message may still be open."""

    items: list[Event] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[Event] = field(default_factory=list)
    _open: Event | None = None

    def say(self, piece: Text) -> Iterator[Event]:
        if not piece.text and self._open is None:
            return
        if self._open is None:
            self._open = _message("in_progress", [])
            yield self._at("response.output_item.added", item=self._open)
            yield self._part("response.content_part.added", part=_text_part("", []))
        logprobs = options.logprobs(piece.choices)
        self._texts.append(piece.text)
        self._logprobs += logprobs
        yield self._part("response.output_text.delta", delta=piece.text, logprobs=logprobs)

    def call(self, call: ToolCall) -> Iterator[Event]:
        yield from self.close("completed")
        item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": call.id, "name": call.name}
        where = {"item_id": item["id"], "output_index": len(self.items)}
        added = item | {"arguments": "", "status": "in_progress"}
        done = item | {"arguments": call.arguments, "status": "completed"}
        yield self._at("response.output_item.added", item=added)
        yield {"type": "response.function_call_arguments.delta", "delta": call.arguments} | where
        whole = {"name": call.name, "arguments": call.arguments}
        yield {"type": "response.function_call_arguments.done"} | whole | where
        yield self._at("response.output_item.done", item=done)
        self.items.append(done)

    def close(self, status: str) -> Iterator[Event]:
        """End the open message, where there is one."""
        if self._open is None:
            return
        text = "".join(self._texts)
        part = _text_part(text, self._logprobs)
        done = _message(status, [part], self._open["id"])
        yield self._part("response.output_text.done", text=text, logprobs=self._logprobs)
        yield self._part("response.content_part.done", part=part)
        yield self._at("response.output_item.done", item=done)
        self.items.append(done)
        self._open, self._texts, self._logprobs = None, [], []

    def _at(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "output_index": len(self.items)} | more

    def _part(self, kind: str, **more: Any) -> Event:
        assert self._open is not None
        return self._at(kind, item_id=self._open["id"], content_index=0, **more)


def _message(status: str, parts: list[Event], id: str = "") -> Event:
    id = id or f"msg_{secrets.token_hex(12)}"
    return {"type": "message", "id": id, "role": "assistant", "status": status, "content": parts}


def _text_part(text: str, logprobs: list[Event]) -> Event:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _response(head: Head, status: str, output: list[Event], finish: Finish | None) -> Event:
    call, cut = head.call, status == "incomplete"
    return {
        "id": head.stamp.id,
        "object": "response",
        "created_at": head.stamp.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": head.instructions or None,
        "max_output_tokens": call.sampling.max_tokens,
        "metadata": head.metadata,
        "model": head.stamp.model,
        "output": output,
        "parallel_tool_calls": head.parallel,
        "previous_response_id": None,
        "store": False,
        "temperature": call.sampling.temperature,
        "text": head.text or {"format": {"type": "text"}},
        "tool_choice": _choice(call),
        "tools": [_tool(tool, options.binds(call.tool_choice, call.constraint)) for tool in call.tools],
        "top_p": call.sampling.top_p,
        "truncation": "disabled",
        "usage": _usage(finish) if finish else None,
    }


def _choice(call: ChatCall) -> Any:
    name = call.tool_choice.name
    return {"type": "function", "name": name} if name else call.tool_choice.mode.value


def _tool(tool: Tool, strict: bool) -> Event:
    told = {"type": "function", "name": tool.name, "description": tool.description}
    return told | {"parameters": json.loads(tool.parameters), "strict": strict}


def _usage(finish: Finish) -> Event:
    used = finish.usage
    return {
        "input_tokens": used.input_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_input_tokens, "cache_write_tokens": 0},
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.input_tokens + used.output_tokens,
    }
