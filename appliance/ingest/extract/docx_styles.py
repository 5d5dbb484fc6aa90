"""What DOCX keeps away from the text: which styles are headings, which number a list's paragraph shows.

Source: ECMA-376 part 1, 17.7 (styles) and 17.9 (numbering).
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple
from xml.etree.ElementTree import Element

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"

MAX_LEVEL = 9
BULLET = "-"
_MAX_ANCESTORS = 20
_MAX_LABEL = 40
_HEADING = re.compile(r"heading ([1-9])")
_PLACE = re.compile(r"%([1-9])")
_OFF = ("0", "false", "off", "none")
_ROMAN = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x")),
    *((9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)


class ListPlace(NamedTuple):
    """number: of the list's definition. depth: from 0 to 8."""

    number: str
    depth: int


def value(parent: Element | None, name: str) -> str | None:
    """The `val` of a property, '' where it has none, None where it is not there."""
    found = parent.find(W + name) if parent is not None else None
    return None if found is None else found.get(f"{W}val", "")


def is_on(parent: Element | None, name: str) -> bool:
    """Whether a switch is there and not off."""
    found = value(parent, name)
    return found is not None and found not in _OFF


def integer(text: str | None) -> int | None:
    """A small number from 0, None where it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


class Styles:
    """Paragraph styles by id. Names differ by language, ids too; what a built-in style is called inside does not."""

    def __init__(self, root: Element | None) -> None:
        found = [] if root is None else [one for one in root.iter(f"{W}style") if one.get(f"{W}type") == "paragraph"]
        self._styles = {one.get(f"{W}styleId", ""): one for one in found}
        self._default = next((one.get(f"{W}styleId", "") for one in found if one.get(f"{W}default") == "1"), "")
        self._level_of_style = cache(self._style_level)
        self._list_of_style = cache(self._style_list)
        self._break_of_style = cache(self._style_break)

    def level(self, properties: Element | None) -> int:
        """Of a paragraph: 1 and up for a heading, else 0."""
        own = integer(value(properties, "outlineLvl"))
        return _level(own) if own is not None else self._level_of_style(self._style(properties))

    def place(self, properties: Element | None) -> ListPlace | None:
        """Which list a paragraph belongs to."""
        own = properties.find(f"{W}numPr") if properties is not None else None
        inherited = self._list_of_style(self._style(properties))
        if own is None:
            return inherited
        number, depth = value(own, "numId"), integer(value(own, "ilvl"))
        if number is None:
            return inherited and ListPlace(inherited.number, min(depth or 0, MAX_LEVEL - 1))
        return _place(number, depth)

    def breaks(self, properties: Element | None) -> bool:
        """Whether a paragraph starts a page."""
        if value(properties, "pageBreakBefore") is not None:
            return is_on(properties, "pageBreakBefore")
        return self._break_of_style(self._style(properties))

    def _style(self, properties: Element | None) -> str:
        return value(properties, "pStyle") or self._default

    def _line(self, style: str) -> Iterator[tuple[Element, Element | None]]:
        """A style and those that it is based on, with their properties."""
        for _ in range(_MAX_ANCESTORS):
            found = self._styles.get(style)
            if found is None:
                return
            yield found, found.find(f"{W}pPr")
            style = value(found, "basedOn") or ""

    def _style_level(self, style: str) -> int:
        for found, properties in self._line(style):
            name = (value(found, "name") or "").lower()
            if heading := _HEADING.fullmatch(name):
                return int(heading[1])
            if name == "title":
                return 1
            if (outline := integer(value(properties, "outlineLvl"))) is not None:
                return _level(outline)
        return 0

    def _style_list(self, style: str) -> ListPlace | None:
        for _, properties in self._line(style):
            own = properties.find(f"{W}numPr") if properties is not None else None
            if (number := value(own, "numId")) is not None:
                return _place(number, integer(value(own, "ilvl")))
        return None

    def _style_break(self, style: str) -> bool:
        return any(is_on(properties, "pageBreakBefore") for _, properties in self._line(style))


class _Level(NamedTuple):
    """How one depth of a list is labelled: `text` has %1 to %9 for the numbers of this depth and those above it."""

    form: str
    text: str
    start: int


_PLAIN = _Level("decimal", "", 1)


class Numbering:
    """The labels that lists show, counted as they are asked for in the document's order."""

    def __init__(self, root: Element | None) -> None:
        self._abstract: dict[str, dict[int, _Level]] = {}
        self._lists: dict[str, str] = {}  # its abstract definition, by number
        self._starts: dict[str, dict[int, int]] = {}  # what a list counts anew, by number
        self._counts: dict[str, dict[int, int]] = {}  # by abstract definition: lists of one kind count on
        linked: dict[str, str] = {}
        for one in root.iter(f"{W}abstractNum") if root is not None else ():
            key = one.get(f"{W}abstractNumId", "")
            self._abstract[key] = dict(map(_read_level, one.iter(f"{W}lvl")))
            if name := value(one, "styleLink"):
                linked[name] = key
        for one in root.iter(f"{W}abstractNum") if root is not None else ():
            if name := value(one, "numStyleLink"):
                self._abstract[one.get(f"{W}abstractNumId", "")] = self._abstract.get(linked.get(name, ""), {})
        for one in root.iter(f"{W}num") if root is not None else ():
            self._read_list(one)

    def label(self, place: ListPlace) -> str:
        """What stands before the next paragraph there; '-' for all bullets, '' for what shows nothing."""
        if place.number not in self._lists:
            return BULLET
        kind = self._lists[place.number]
        levels, counts = self._abstract.get(kind, {}), self._counts.setdefault(kind, {})
        for depth, start in self._starts.pop(place.number, {}).items():
            counts[depth] = start - 1
        level = levels.get(place.depth, _PLAIN)
        counts[place.depth] = counts.get(place.depth, level.start - 1) + 1
        for deeper in range(place.depth + 1, MAX_LEVEL):
            counts.pop(deeper, None)
        if level.form in ("bullet", "none"):
            return BULLET if level.form == "bullet" else ""

        def shown(match: re.Match[str]) -> str:
            depth = int(match[1]) - 1
            other = levels.get(depth, _PLAIN)
            return _number(counts.setdefault(depth, other.start), other.form)

        return _PLACE.sub(shown, level.text).strip()

    def _read_list(self, one: Element) -> None:
        number, kind = one.get(f"{W}numId", ""), value(one, "abstractNumId") or ""
        own = dict(map(_read_level, one.iter(f"{W}lvl")))
        if own:  # a list with levels of its own is a kind of its own
            self._abstract[f"{kind} {number}"] = self._abstract.get(kind, {}) | own
            kind = f"{kind} {number}"
        self._lists[number] = kind
        for override in one.iter(f"{W}lvlOverride"):
            start, depth = integer(value(override, "startOverride")), integer(override.get(f"{W}ilvl"))
            if start is not None and depth is not None:
                self._starts.setdefault(number, {})[depth] = start


def _read_level(level: Element) -> tuple[int, _Level]:
    start = integer(value(level, "start"))
    text = (value(level, "lvlText") or "")[:_MAX_LABEL]
    depth = integer(level.get(f"{W}ilvl"))
    return depth or 0, _Level(value(level, "numFmt") or "decimal", text, 1 if start is None else start)


def _level(outline: int) -> int:
    return outline + 1 if outline < MAX_LEVEL else 0


def _place(number: str, depth: int | None) -> ListPlace | None:
    return None if number in ("", "0") else ListPlace(number, min(depth or 0, MAX_LEVEL - 1))


def _number(count: int, form: str) -> str:
    if "Letter" in form and 0 < count <= 26 * 8:
        text = chr(ord("a") + (count - 1) % 26) * ((count - 1) // 26 + 1)
    elif "Roman" in form and 0 < count < 4000:
        text = _roman(count)
    else:
        return f"{count:02}" if form == "decimalZero" else str(count)
    return text.upper() if form.startswith("upper") else text


def _roman(count: int) -> str:
    out = ""
    for size, letters in _ROMAN:
        out += letters * (count // size)
        count %= size
    return out
