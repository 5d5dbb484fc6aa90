"""A JSON request, read field by field; what nobody has read is refused, so that nothing is silently ignored."""

import json
import math
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from appliance.api import requests
from appliance.errors import InvalidArgument

T = TypeVar("T")
MAX_VALUES = 200_000  # tens of milliseconds to parse: it stops all else, and no thread helps while the GIL is held


def parse(body: bytes) -> "Fields":
    """Raises InvalidArgument where the body is no JSON object, has too many values, or text that is no Unicode."""
    if _count(body) > MAX_VALUES:
        raise InvalidArgument(f"The request has more than {MAX_VALUES} values.")
    try:
        value = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)  # UTF-8 alone: RFC 8259
        _require_unicode(value)
    except (ValueError, RecursionError):
        raise InvalidArgument("The request is not valid JSON.") from None
    return Fields(value)


def _count(body: bytes) -> int:
    """At least as many values as the JSON has, without building them: commas and brackets outside its strings."""
    if len(body) <= MAX_VALUES:
        return 0
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:
        return MAX_VALUES + 1
    outside = b"".join(unescaped.split(b'"')[::2])
    return sum(map(outside.count, (b",", b"[", b"{")))


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON (RFC 8259)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("too large for a number")
    return number


def _require_unicode(value: Any) -> None:
    """Raises InvalidArgument, naming the place, for half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        left = [("", value)]
        while left:
            where, item = left.pop()
            if isinstance(item, str):
                requests.require_unicode(item, where)
            elif isinstance(item, dict):
                requests.require_unicode("".join(item), where or "body")
                left += [(f"{where}.{name}" if where else name, part) for name, part in item.items()]
            elif isinstance(item, list):
                left += [(f"{where}[{index}]", part) for index, part in enumerate(item)]


class Fields:
    """The fields of one object. null counts as absent. Every method raises InvalidArgument, naming the field."""

    def __init__(self, value: Any, where: str = "") -> None:
        """where: the object's own place in the request, such as `messages[2].`"""
        self.where = where
        if not isinstance(value, dict):
            raise InvalidArgument.of(where.rstrip(".") or "body", "must be a JSON object.")
        self._left: dict[str, Any] = {name: item for name, item in value.items() if item is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def any(self, name: str) -> Any:
        """Whatever it is; None where it is absent."""
        return self._left.pop(name, None)

    def text(self, name: str, default: str | None = None) -> str:
        return self._take(name, str, "text", default)

    def flag(self, name: str, default: bool = False) -> bool:
        return self._take(name, bool, "true or false", default)

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._take(name, int, "a whole number", default)
        if isinstance(value, bool):
            raise self.refusal(name, "must be a whole number.")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._left.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
            self._left[name] = float(value)
        return self._take(name, float, "a number", default)

    def object(self, name: str) -> "Fields | None":
        return Fields(self._left.pop(name), f"{self.where}{name}.") if name in self._left else None

    def items(self, name: str, most: int = MAX_VALUES) -> list[Any]:
        found: list[Any] = self._take(name, list, "a list", [])
        if len(found) > most:
            raise self.refusal(name, f"has {len(found)} items; at most {most} are taken.")
        return found

    def objects(self, name: str, most: int = MAX_VALUES) -> Iterator["Fields"]:
        for index, item in enumerate(self.items(name, most)):
            yield Fields(item, f"{self.where}{name}[{index}].")

    def choice(self, name: str, choices: Collection[str], default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise self.refusal(name, f"must be one of {', '.join(choices)}.")
        return value

    def refuse(self, *names: str, why: str) -> None:
        """Say why these fields are not taken, unless they are empty or false."""
        for name in names:
            if self._left.pop(name, None):
                raise self.refusal(name, why)

    def ignore(self, *names: str) -> None:
        """Leave out what changes nothing in the answer."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse what has not been read."""
        for name in self._left:
            raise self.refusal(str(name)[:80], "is not known to this box.")

    def refusal(self, name: str, problem: str) -> InvalidArgument:
        return InvalidArgument.of(f"{self.where}{name}", problem)

    def _take(self, name: str, kind: type[T], called: str, default: T | None) -> T:
        value = self._left.pop(name, default)
        if value is None:
            raise self.refusal(name, "is missing.")
        if not isinstance(value, kind):
            raise self.refusal(name, f"must be {called}.")
        return value
