"""Calls in an answer: read out of it as it streams, and the schema that makes it one.

A call is JSON: `{"name": NAME, "arguments": {…}}` (or "parameters"), or a list of such. It begins behind a mark of the
family (`<tool_call>`), or bare where nothing but calls was said yet. Only a call of a tool that was offered, with
arguments that are a JSON object, is a call; everything else is text, as the model wrote it. Blanks beside a call are
dropped. What may still become a call is held back, so that the outcome is the same however the answer is cut.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

from appliance.tenancy.scaffolds import ToolStyle
from appliance.tenancy.tools import dump, load
from appliance.types import Constraint, ConstraintKind, Tool, ToolCall

MAX_CALL_CHARACTERS = 1 << 18  # more is text
ID_CHARACTERS = 9  # what Mistral's models are trained on; to the others an id is an id
BARE = ('{"name":', '[{"name":')
_BARE_CHARACTERS = 80  # in which the beginning of a bare call must stand, blanks included
_NOT_JSON = -1
_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES = frozenset({"const", "enum", "default", "examples"})


def draw_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_CHARACTERS))


def constraint(style: ToolStyle, tools: Sequence[Tool], answer: Constraint | None = None) -> Constraint:
    """The JSON schema of one call of one of the tools; or, with an `answer` of JSON, of that."""
    forms = [] if answer is None else [_moved(json.loads(answer.text), "#/anyOf/0")]
    for number, tool in enumerate(tools, len(forms)):
        arguments = _moved(json.loads(tool.parameters), f"#/anyOf/{number}/properties/{style.arguments}")
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, style.arguments: {"type": "object"} | arguments},
                "required": ["name", style.arguments],
                "additionalProperties": False,
            }
        )
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps({"anyOf": forms}))


def _moved(schema: Any, to: str) -> Any:
    """A schema whose references into itself still hold where it stands at `to` in a larger one."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _moved_part(key, value, to) for key, value in schema.items() if key not in ("$schema", "$id")}


def _moved_part(key: str, value: Any, to: str) -> Any:
    """What stands under a keyword of a schema: schemas by names of the caller's own, plain values, or schemas."""
    if key in _VALUES:
        return value
    if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: _moved(schema, to) for name, schema in value.items()}
    if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
        return to + value[1:]
    return _moved(value, to)


class CallReader:
    """Turns the text of one answer into text and calls. Not safe for threads."""

    def __init__(self, style: ToolStyle, tools: Sequence[Tool], draw: Callable[[], str] = draw_id) -> None:
        """draw: makes the id of a call."""
        self._style, self._draw = style, draw
        self._offered = {tool.name for tool in tools}
        self._opening = re.compile("|".join(map(re.escape, style.opens)))
        self._held = ""
        self._value: _Extent | None = None  # the JSON that is being read; None: reading text
        self._bare = True  # JSON without a mark may be a call
        self._called = False  # the last thing was a call
        self._close = ""  # the mark that may end it

    def feed(self, text: str) -> list[str | ToolCall]:
        """What is certain by now, in order; adjoining text may come in several pieces."""
        self._held += text
        return self._read(last=False)

    def end(self) -> list[str | ToolCall]:
        """What was held back; a call that is not whole is text."""
        return self._read(last=True)

    def _read(self, last: bool) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        while self._read_text(found, last) if self._value is None else self._read_value(found, self._value, last):
            pass
        return found

    def _read_text(self, found: list[str | ToolCall], last: bool) -> bool:
        """Say what cannot be a call's beginning; True where one was found and its JSON is to be read."""
        if self._called and not self._drop_close(last):
            return False
        if (opening := self._next_opening()) is not None:
            start, value_start = opening
            said = self._held[:start].rstrip()
            self._say(found, said)
            self._value = _Extent(value_start - len(said))
            return True
        said = self._held if last else self._held[: len(self._held) - self._undecided()].rstrip()
        self._say(found, said)
        return False

    def _read_value(self, found: list[str | ToolCall], value: "_Extent", last: bool) -> bool:
        """Read JSON to its end; False where more of it must come."""
        end = value.read(self._held)
        if end is None and len(self._held) <= MAX_CALL_CHARACTERS:
            if last:
                self._say(found, self._held)
            return False
        self._value = None
        if end == _NOT_JSON:
            self._say(found, self._held[: value.position])
        elif end is None or end > MAX_CALL_CHARACTERS:
            self._say(found, self._held[:MAX_CALL_CHARACTERS])
        elif calls := self._calls(self._held[value.start : end]):
            found += calls
            self._held = self._held[end:]
            self._bare, self._called, self._close = True, True, self._style.close
        else:
            self._say(found, self._held[:end])
        return True

    def _say(self, found: list[str | ToolCall], text: str) -> None:
        """`text` is what the held text begins with."""
        if text:
            found.append(text)
            self._held = self._held[len(text) :]
            self._bare = self._called = False

    def _drop_close(self, last: bool) -> bool:
        """Drop blanks and the closing mark behind a call; False where they may still come."""
        self._held = self._held.lstrip()
        if self._close and self._held.startswith(self._close):
            self._held, self._close = self._held[len(self._close) :].lstrip(), ""
        if self._close.startswith(self._held):
            if last:
                self._held = ""
            return False
        return True

    def _next_opening(self) -> tuple[int, int] | None:
        """Where the first call seems to begin, and where its JSON does."""
        start, beginning = self._beginning()
        if self._bare and beginning.startswith(BARE):
            return start, start
        mark = self._opening.search(self._held)
        if mark is None:
            return None
        return mark.start(), mark.start() if mark[0].endswith(":") else mark.end()

    def _undecided(self) -> int:
        """Characters at the end of the held text that may become a call's beginning."""
        start, beginning = self._beginning()
        if (
            self._bare
            and len(self._held) - start < _BARE_CHARACTERS
            and any(form.startswith(beginning) for form in BARE)
        ):
            return len(self._held)
        longest = max(map(len, self._style.opens))
        ends = (self._held[-size:] for size in range(min(longest, len(self._held)), 0, -1))
        return next((len(end) for end in ends if any(mark.startswith(end) for mark in self._style.opens)), 0)

    def _beginning(self) -> tuple[int, str]:
        """Where the held text's first word stands, and what begins there, without blanks."""
        start = len(self._held) - len(self._held.lstrip())
        return start, "".join(self._held[start : start + _BARE_CHARACTERS].split())

    def _calls(self, text: str) -> list[ToolCall]:
        """The calls that a JSON text holds; none where any of it is no call."""
        try:
            value = load(text)
        except ValueError:
            return []
        calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        return [call for call in calls if call] if all(calls) else []

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
            return None
        arguments = value.get("arguments", value.get("parameters"))
        if name not in self._offered or not isinstance(arguments, dict):
            return None
        return ToolCall(self._draw(), name, dump(arguments))


class _Extent:
    """Finds the end of a JSON object or list, also where it comes in pieces."""

    def __init__(self, start: int) -> None:
        """start: where it begins, or blanks before it."""
        self.start = self.position = start
        self._depth = 0
        self._in_string = self._escaped = False

    def read(self, text: str) -> int | None:
        """Where it ends in `text`, which may only have grown; None: not yet; _NOT_JSON: none begins at `position`."""
        for at in range(self.position, len(text)):
            self.position, character = at, text[at]
            if self._in_string:
                self._read_string(character)
            elif character == '"' and self._depth:
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]" and self._depth:
                self._depth -= 1
                if not self._depth:
                    return at + 1
            elif not self._depth and not character.isspace():
                return _NOT_JSON
        self.position = len(text)
        return None

    def _read_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
