"""Which documents a call is about, as a small typed expression: `media_type = "application/pdf" AND year >= 2020`.

A subset of AIP-160 (google.aip.dev/160), with IN besides:

    expression  = term { "AND" term } | term { "OR" term }      both beside each other need parentheses
    term        = [ "NOT" ] ( comparison | "(" expression ")" )
    comparison  = name operator value | name "IN" "(" value { "," value } ")" | name ":" "*"
    operator    = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":"
    value       = string | number | "true" | "false"
    string      = in double or single quotes; a backslash takes the next character as it is

Names are the document's title, media_type, source, sha256, parser (strings), size_bytes, page_count (numbers) and
create_time (a string, RFC 3339 or a date in UTC); every other name is metadata, of the kind that its value has. Strings
compare by code points; `:` asks whether a string holds another, whatever their case, and `name:*` whether a document
has that metadata at all. Metadata that a document has not, or has as another kind, compares as false: so `year != 2020`
is true of documents with another year, and `NOT year = 2020` also of those without one. Who may read is no name.

No value and no name of metadata is ever part of the SQL: both are bound. The rest of it comes from the tables below.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import Enum

from appliance.errors import InvalidArgument
from appliance.knowledge.storage.record import to_micros
from appliance.types import Document, MetadataValue

MAX_CHARACTERS = 4000
MAX_DEPTH = 32
MAX_VALUES = 256
"""In all comparisons together."""


class Kind(Enum):
    """What a name stands for; the value says it as an error does."""

    TEXT = "a string in quotes"
    NUMBER = "a number"
    FLAG = "true or false"
    TIME = 'a time such as "2026-01-31T12:00:00Z" or "2026-01-31"'


_FIELDS = {
    "title": Kind.TEXT,
    "media_type": Kind.TEXT,
    "source": Kind.TEXT,
    "sha256": Kind.TEXT,
    "parser": Kind.TEXT,
    "size_bytes": Kind.NUMBER,
    "page_count": Kind.NUMBER,
    "create_time": Kind.TIME,
}
_NOT_ASKED = {field.name for field in fields(Document)} - _FIELDS.keys()
_MAPS = {Kind.TEXT: "texts", Kind.NUMBER: "numbers", Kind.FLAG: "flags"}
_ORDERED = ("=", "!=", "<", "<=", ">", ">=")
_OPERATORS = {Kind.TEXT: (*_ORDERED, ":"), Kind.NUMBER: _ORDERED, Kind.FLAG: ("=", "!="), Kind.TIME: _ORDERED}
_KEYWORDS = ("AND", "OR", "NOT", "IN", "true", "false")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d))?", re.ASCII)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<operator><=|>=|!=|[=<>:])
    |(?P<mark>[(),*]))""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Comparison:
    """operator: of the grammar, or IN; `:` with no values asks whether the metadata is there."""

    name: str
    kind: Kind
    operator: str
    values: tuple[MetadataValue, ...]


@dataclass(frozen=True, slots=True)
class Not:
    term: "Expression"


@dataclass(frozen=True, slots=True)
class Joined:
    """word: AND or OR."""

    word: str
    terms: tuple["Expression", ...]


Expression = Comparison | Not | Joined


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL over the catalogue's table `documents`, never NULL, with a `?` for each of `values`, in their order."""

    sql: str
    values: tuple[MetadataValue, ...]


def parse(text: str) -> Condition:
    """The condition that a filter states. Raises InvalidArgument for `filter`, with the place and what is missing."""
    return compiled(parsed(text))


def parsed(text: str) -> Expression:
    """The expression that a filter is. Raises as `parse`."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidArgument.of("filter", f"must have at most {MAX_CHARACTERS} characters.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgument.of("filter", "must be Unicode text.")
    parser = _Parser(_tokens(text))
    found = parser.expression(MAX_DEPTH)
    parser.take("AND, OR or the end", lambda token: token.kind == "end")
    return found


def compiled(expression: Expression) -> Condition:
    """The expression in DuckDB's SQL."""
    if isinstance(expression, Comparison):
        return _compared(expression)
    if isinstance(expression, Not):
        inner = compiled(expression.term)
        return Condition(f"(NOT {inner.sql})", inner.values)
    terms = [compiled(term) for term in expression.terms]
    joined = f" {expression.word} ".join(term.sql for term in terms)
    return Condition(f"({joined})", tuple(value for term in terms for value in term.values))


def _compared(asked: Comparison) -> Condition:
    known = asked.name in _FIELDS
    if not asked.values:
        held = " OR ".join(f"coalesce(map_contains({column}, ?), false)" for column in _MAPS.values())
        return Condition(f"({held})", (asked.name,) * len(_MAPS))
    column = asked.name if known else f"{_MAPS[asked.kind]}[?]"
    if asked.operator == "IN":
        test = f"{column} IN ({', '.join('?' * len(asked.values))})"
    elif asked.operator == ":":
        test = f"contains(lower({column}), lower(?))"
    else:
        test = f"{column} {asked.operator} ?"
    return Condition(f"coalesce({test}, false)", asked.values if known else (asked.name, *asked.values))


@dataclass(frozen=True, slots=True)
class _Token:
    """kind: a group of _TOKEN, `end`, or `unknown`; at: its first character, from 0."""

    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    """What the text consists of, and its end; nothing after what is unknown."""
    found: list[_Token] = []
    at = 0
    while match := _TOKEN.match(text, at):
        kind = match.lastgroup or ""
        found.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    at = len(_SPACE.match(text, at)[0]) + at  # type: ignore[index]  # it matches everywhere
    return [*found, _Token("end" if at == len(text) else "unknown", "", at)]


class _Parser:
    """Recursive descent over the tokens, a method for each rule of the grammar."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._values = 0

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def take(self, expected: str, fits: Callable[[_Token], bool]) -> _Token:
        """The next token. Raises InvalidArgument where it does not fit."""
        token = self._token
        if not fits(token):
            raise _wrong(token, f"expected {expected}")
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _takes(self, text: str) -> bool:
        """Whether the next token is that word or mark, which is then taken."""
        if self._token.text != text or self._token.kind == "string":
            return False
        self._next += 1
        return True

    def _mark(self, text: str) -> None:
        self.take(f"{text!r}", lambda token: token.text == text and token.kind == "mark")

    def expression(self, depth: int) -> Expression:
        terms = [self._term(depth)]
        word = next((word for word in ("AND", "OR") if self._takes(word)), "")
        if not word:
            return terms[0]
        terms.append(self._term(depth))
        while self._takes(word):
            terms.append(self._term(depth))
        if self._token.kind == "word" and self._token.text in ("AND", "OR"):
            raise _wrong(self._token, "AND and OR beside each other need parentheses")
        return Joined(word, tuple(terms))

    def _term(self, depth: int) -> Expression:
        if depth == 0:
            raise _wrong(self._token, f"nested more than {MAX_DEPTH} deep")
        if self._takes("NOT"):
            return Not(self._term(depth - 1))
        if self._takes("("):
            found = self.expression(depth - 1)
            self._mark(")")
            return found
        return self._comparison()

    def _comparison(self) -> Comparison:
        named = self.take(
            "a name, NOT or '('",
            lambda token: token.kind == "word" and bool(_NAME.fullmatch(token.text)) and token.text not in _KEYWORDS,
        )
        if named.text in _NOT_ASKED:
            raise _wrong(named, f"{named.text} cannot be filtered by")
        if self._takes("IN"):
            return self._listed(named.text)
        operator = self.take("an operator (=, !=, <, <=, >, >=, :) or IN", lambda token: token.kind == "operator")
        if operator.text == ":" and named.text not in _FIELDS and self._takes("*"):
            return Comparison(named.text, Kind.TEXT, ":", ())
        kind, value = self._value(_FIELDS.get(named.text))
        if operator.text not in _OPERATORS[kind]:
            raise _wrong(operator, f"expected one of {', '.join(_OPERATORS[kind])}")
        return Comparison(named.text, kind, operator.text, (value,))

    def _listed(self, name: str) -> Comparison:
        self._mark("(")
        kind, first = self._value(_FIELDS.get(name))
        values = [first]
        while self._takes(","):
            values.append(self._value(kind)[1])
        self._mark(")")
        return Comparison(name, kind, "IN", tuple(values))

    def _value(self, wanted: Kind | None) -> tuple[Kind, MetadataValue]:
        """A value of the wanted kind, None for any, as the catalogue compares it."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise _wrong(self._token, f"more than {MAX_VALUES} values")
        token, expected = self._token, wanted.value if wanted else "a string in quotes, a number, true or false"
        given = _given(token)
        if given is None:
            raise _wrong(token, f"expected {expected}")
        kind, value = given
        if wanted is Kind.TIME and isinstance(value, str) and (micros := _micros(value)) is not None:
            kind, value = Kind.TIME, micros
        if wanted not in (None, kind):
            raise _wrong(token, f"expected {expected}")
        self._next += 1
        return kind, value


def _given(token: _Token) -> tuple[Kind, MetadataValue] | None:
    """The value that a token is by itself; None for one that is none."""
    if token.kind == "string":
        return Kind.TEXT, re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
    if token.kind == "number" and math.isfinite(float(token.text)):
        return Kind.NUMBER, float(token.text)
    if token.kind == "word" and token.text in ("true", "false"):
        return Kind.FLAG, token.text == "true"
    return None


def _micros(text: str) -> int | None:
    """Microseconds since 1970, UTC; None where the text is no time."""
    try:
        time = datetime.fromisoformat(text.upper()) if _TIME.fullmatch(text) else None
    except ValueError:  # such as month 13
        return None
    return to_micros(time if time.tzinfo else time.replace(tzinfo=UTC)) if time else None


def _wrong(token: _Token, problem: str) -> InvalidArgument:
    return InvalidArgument.of("filter", f"at character {token.at + 1}: {problem}.")
