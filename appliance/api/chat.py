"""One conversation turn, however it was asked for: gRPC and HTTP hand over a ChatCall and get the same pieces back."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from appliance.api import requests
from appliance.errors import Forbidden, InvalidArgument
from appliance.ports import Composer, Generator
from appliance.tenancy import calls
from appliance.tenancy.scaffolds import SCAFFOLDS, ToolStyle
from appliance.tenancy.tools import load
from appliance.types import (
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    ChatCall,
    ChatPiece,
    Constraint,
    ConstraintKind,
    Finish,
    FinishReason,
    Generation,
    Message,
    ModelFile,
    Origin,
    Principal,
    Priority,
    Role,
    Sampling,
    Segment,
    Text,
    TokenChoice,
    Tool,
    ToolChoice,
    ToolMode,
)

MAX_CHARACTERS = 4_000_000
MAX_MESSAGES = 10_000
MAX_CALLS = 128  # of one message
MAX_TOOLS = 64
MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 100
MAX_DESCRIPTION_CHARACTERS = 4096
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
ANY_JSON_OBJECT = Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "object"}')
MAY_GO_FIRST = frozenset({Role.ADMIN, Role.OPERATOR})


class Chat:
    """The one path of a prompt to a model. Belongs to one event loop."""

    def __init__(self, generator: Generator, composer: Composer, prefix_salt: Callable[[str], bytes]) -> None:
        """prefix_salt: a tenant's secret; prompts share their cached prefix within it only."""
        self._generator, self._composer, self._prefix_salt = generator, composer, prefix_salt

    def stream(self, principal: Principal, call: ChatCall) -> AsyncIterator[ChatPiece]:
        """Zero or more Text and ToolCall, then one Finish. Closing the iterator frees the sequence.

        With tools the log-probabilities come with the next Text, those of a call with an empty one after it. An answer
        that is cut off inside a call ends with that half call as Text and the reason LENGTH. A call is only asked for
        here: nothing is run.

        Raises at once InvalidArgument, which names the field, Forbidden, NotFound, NoChatModel; then, while it
        streams, as `Generator.generate`.
        """
        _require(principal, call)
        model = self._generator.chat_model(call.model)
        tools = _offered(call)
        prompt = self._composer.chat(model.scaffold, call.messages, tools)
        generation = replace(self._generation(principal, call), prompt=prompt)
        if not tools:
            return self._answer(model, generation, call.model)
        style = SCAFFOLDS[model.scaffold].tools
        constraint = _constraint(style, call, tools)
        stops = call.sampling.stop if constraint else (*call.sampling.stop, *style.stops)[:MAX_STOPS]
        sampling = replace(call.sampling, stop=stops)
        answer = self._answer(model, replace(generation, sampling=sampling, constraint=constraint), call.model)
        return _with_calls(answer, calls.CallReader(style, tools))

    def complete(
        self,
        principal: Principal,
        model: str,
        prompt: str,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        *,
        constraint: Constraint | None = None,
        top_logprobs: int | None = None,
        priority: Priority = Priority.NORMAL,
        deadline_seconds: float = 0.0,
    ) -> AsyncIterator[Text | Finish]:
        """A raw text that the model goes on with: no scaffold, and no control token can come out of it.

        Zero or more Text, then one Finish. Closing the iterator frees the sequence. Raises as `stream`.
        """
        call = ChatCall(
            model,
            (),
            sampling,
            constraint=constraint,
            top_logprobs=top_logprobs,
            priority=priority,
            deadline_seconds=deadline_seconds,
        )
        _require_text("prompt", requests.text(prompt, "prompt", MAX_CHARACTERS))
        _require_options(principal, call)
        file = self._generator.chat_model(model)
        generation = replace(self._generation(principal, call), prompt=(Segment(Origin.USER, prompt),))
        return self._answer(file, generation, model)

    def _generation(self, principal: Principal, call: ChatCall) -> Generation:
        return Generation(
            (),
            call.sampling,
            prefix_salt=self._prefix_salt(principal.tenant),
            tenant=principal.tenant,
            priority=call.priority,
            deadline_seconds=call.deadline_seconds,
            constraint=call.constraint,
            top_logprobs=call.top_logprobs,
        )

    async def _answer(self, model: ModelFile, generation: Generation, asked_for: str) -> AsyncIterator[Text | Finish]:
        answer = self._generator.generate(model.name, generation, alias=asked_for)
        async with aclosing(answer) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece


async def _with_calls(answer: AsyncIterator[Text | Finish], reader: calls.CallReader) -> AsyncIterator[ChatPiece]:
    """The answer with the calls in it read out."""
    choices: tuple[TokenChoice, ...] = ()
    called = False
    async with aclosing(answer) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            choices += piece.choices if isinstance(piece, Text) else ()
            for part in reader.feed(piece.text) if isinstance(piece, Text) else reader.end():
                if isinstance(part, str):
                    yield Text(part, choices)
                    choices = ()
                else:
                    called = True
                    yield part
            if isinstance(piece, Finish):
                if choices:
                    yield Text("", choices)
                stopped = piece.reason is FinishReason.STOP
                yield replace(piece, reason=FinishReason.TOOL_CALLS) if called and stopped else piece


def _offered(call: ChatCall) -> Sequence[Tool]:
    """The tools that the model is told of: those that it may call."""
    match call.tool_choice:
        case ToolChoice(ToolMode.NONE):
            return ()
        case ToolChoice(ToolMode.REQUIRED, name) if name:
            return [tool for tool in call.tools if tool.name == name]
        case _:
            return call.tools


def _constraint(style: ToolStyle, call: ChatCall, tools: Sequence[Tool]) -> Constraint | None:
    """What the answer must be: a call where one is required; a call or the asked-for JSON where both may come."""
    if not (call.tool_choice.mode is ToolMode.REQUIRED or call.constraint):
        return None
    made = calls.constraint(style, tools, call.constraint)
    if len(made.text) > MAX_SCHEMA_BYTES:
        raise InvalidArgument.of("tools", f"have schemas that are larger than {MAX_SCHEMA_BYTES} bytes together.")
    return made


# --- what is refused --------------------------------------------------------------------------------------------------


def _require(principal: Principal, call: ChatCall) -> None:
    if not 0 < len(call.messages) <= MAX_MESSAGES:
        raise InvalidArgument.of("messages", f"takes 1 to {MAX_MESSAGES} messages, not {len(call.messages)}.")
    _require_message_texts(call.messages)
    _require_tools(call.tools)
    _require_tool_choice(call)
    _require_options(principal, call)


def _require_message_texts(messages: Sequence[Message]) -> None:
    characters = 0
    for number, message in enumerate(messages):
        _require_text(f"messages[{number}].text", message.text)
        characters += len(message.text)
        if len(message.tool_calls) > MAX_CALLS:
            problem = f"has {len(message.tool_calls)} calls; at most {MAX_CALLS} are taken."
            raise InvalidArgument.of(f"messages[{number}].tool_calls", problem)
        for call in message.tool_calls:
            _require_text(f"messages[{number}].tool_calls", call.name + call.arguments)
            characters += len(call.name) + len(call.arguments)
    if characters > MAX_CHARACTERS:
        raise InvalidArgument.of("messages", f"have {characters} characters; at most {MAX_CHARACTERS} are taken.")


def _require_text(field: str, text: str) -> None:
    requests.require_unicode(text, field)


def _require_tools(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidArgument.of("tools", f"has {len(tools)} tools; at most {MAX_TOOLS} are taken.")
    names = [tool.name for tool in tools]
    for number, tool in enumerate(tools):
        if not TOOL_NAME.fullmatch(tool.name) or names.count(tool.name) > 1:
            problem = "must be 1 to 64 letters, digits, '-' or '_', and no other tool's."
            raise InvalidArgument.of(f"tools[{number}].name", problem)
        if len(tool.description) > MAX_DESCRIPTION_CHARACTERS:
            problem = f"has {len(tool.description)} characters; at most {MAX_DESCRIPTION_CHARACTERS} are taken."
            raise InvalidArgument.of(f"tools[{number}].description", problem)
        _require_text(f"tools[{number}].description", tool.description)
        schema = _schema(f"tools[{number}].parameters", tool.parameters)
        if schema.get("type", "object") != "object":
            raise InvalidArgument.of(f"tools[{number}].parameters", "must be the JSON schema of an object.")


def _require_tool_choice(call: ChatCall) -> None:
    choice = call.tool_choice
    if choice.mode is ToolMode.REQUIRED and not call.tools:
        raise InvalidArgument.of("tool_choice", "requires a call, and there are no tools.")
    if choice.mode is ToolMode.REQUIRED and call.constraint:
        raise InvalidArgument.of("response_format", "cannot bind an answer that must be a call; leave out one of them.")
    if choice.name and choice.mode is not ToolMode.REQUIRED:
        raise InvalidArgument.of("tool_choice", "a named tool goes with the mode 'required' only.")
    if choice.name and choice.name not in {tool.name for tool in call.tools}:
        raise InvalidArgument.of("tool_choice", f"names {choice.name!r}, which is not among the tools.")
    free = choice.mode is ToolMode.AUTO and call.tools
    if free and call.constraint and call.constraint.kind is ConstraintKind.GBNF:
        raise InvalidArgument.of("response_format", "a grammar cannot go with tools; set tool_choice to 'none'.")


def _require_options(principal: Principal, call: ChatCall) -> None:
    requests.require_sampling(call.sampling)
    _require_constraint(call.constraint)
    if call.top_logprobs is not None and not 0 <= call.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidArgument.of("top_logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}.")
    if not 0 <= call.deadline_seconds <= requests.MAX_DEADLINE_SECONDS:
        raise InvalidArgument.of("deadline_seconds", f"must be between 0 and {requests.MAX_DEADLINE_SECONDS:.0f}.")
    if call.priority is Priority.HIGH and principal.role not in MAY_GO_FIRST:
        raise Forbidden(f"The role {principal.role.value} may not ask with the priority 'high'.")


def _require_constraint(constraint: Constraint | None) -> None:
    if constraint is None:
        return
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        _schema("response_format", constraint.text)
        return
    if not constraint.text.strip():
        raise InvalidArgument.of("response_format", "the grammar must not be empty.")
    if len(constraint.text.encode(errors="replace")) > MAX_SCHEMA_BYTES:
        raise InvalidArgument.of("response_format", f"the grammar is larger than {MAX_SCHEMA_BYTES} bytes.")
    _require_text("response_format", constraint.text)


def _schema(field: str, text: str) -> dict[str, Any]:
    """A JSON schema that is a JSON object of bounded size. Raises InvalidArgument."""
    if len(text.encode(errors="replace")) > MAX_SCHEMA_BYTES:
        raise InvalidArgument.of(field, f"the schema is larger than {MAX_SCHEMA_BYTES} bytes.")
    try:
        schema = load(text)
    except ValueError:
        raise InvalidArgument.of(field, "is not valid JSON.") from None
    if not isinstance(schema, dict):
        raise InvalidArgument.of(field, "must be a JSON object: a JSON schema.")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise InvalidArgument.of(field, f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep.")
    return schema


def _depth(value: Any) -> int:
    """How many objects and lists stand in one another."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth
