"""Which conversations a model can go on with."""

import re
from collections.abc import Sequence

from appliance.errors import InvalidArgument
from appliance.tenancy.tools import load
from appliance.types import Message, Speaker

CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def require_turns(messages: Sequence[Message]) -> None:
    """Raises InvalidArgument where the order of speakers or an empty text leaves the model nothing sensible to do."""
    expected, open_calls = {Speaker.SYSTEM, Speaker.USER}, set[str]()
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if message.speaker not in expected:
            raise InvalidArgument.of(field, _out_of_turn(message.speaker, expected - {Speaker.SYSTEM}))
        _require_content(field, message)
        if message.speaker is Speaker.TOOL:
            if message.tool_call_id not in open_calls:
                raise InvalidArgument.of(f"{field}.tool_call_id", "answers no open call of the assistant.")
            open_calls.remove(message.tool_call_id)
        open_calls |= {call.id for call in message.tool_calls}
        expected = _next_speakers(message.speaker, bool(open_calls))
    if Speaker.ASSISTANT not in expected:
        waits = "the results of the assistant's calls." if open_calls else "a message of the user."
        raise InvalidArgument.of("messages", f"must end with {waits}")


def _next_speakers(speaker: Speaker, calls_are_open: bool) -> set[Speaker]:
    if calls_are_open:
        return {Speaker.TOOL}
    return {Speaker.ASSISTANT} if speaker in (Speaker.USER, Speaker.TOOL) else {Speaker.USER}


def _out_of_turn(speaker: Speaker, expected: set[Speaker]) -> str:
    (one,) = expected
    rule = "results follow calls" if Speaker.TOOL in (one, speaker) else "system first, then by turns"
    return f"is {speaker.value}; {one.value} must speak here ({rule})."


def _require_content(field: str, message: Message) -> None:
    if message.tool_calls and message.speaker is not Speaker.ASSISTANT:
        raise InvalidArgument.of(f"{field}.tool_calls", "only the assistant calls tools.")
    if message.tool_call_id and message.speaker is not Speaker.TOOL:
        raise InvalidArgument.of(f"{field}.tool_call_id", "only a tool answers a call.")
    ids = set[str]()
    for number, call in enumerate(message.tool_calls):
        if not CALL_ID.fullmatch(call.id) or call.id in ids:
            where = f"{field}.tool_calls[{number}].id"
            raise InvalidArgument.of(where, "must be 1 to 64 letters, digits, '-' or '_', and no other call's.")
        ids.add(call.id)
        if not _is_object(call.arguments):
            raise InvalidArgument.of(f"{field}.tool_calls[{number}].arguments", "must be a JSON object.")
    may_be_empty = message.tool_calls or message.speaker is Speaker.TOOL
    if not may_be_empty and not message.text.strip():
        raise InvalidArgument.of(field, "must not be empty.")


def _is_object(text: str) -> bool:
    try:
        return isinstance(load(text), dict)
    except ValueError:
        return False
