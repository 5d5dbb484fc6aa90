"""What a spreadsheet's cell shows for a number (ECMA-376 part 1, 18.8.30 and 18.8.31).

Dates and times are shown in ISO 8601, whatever the format's order. Fractions and digits with signs among them are
shown as plain numbers.
"""

import re
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from math import isfinite
from typing import NamedTuple

GENERAL = "General"
BUILT_IN = (
    {1: "0", 2: "0.00", 9: "0%", 10: "0.00%", 11: "0.00E+00", 22: "yyyy-mm-dd hh:mm", 46: "[h]:mm:ss", 48: "##0.0E+0"}
    | dict.fromkeys((14, 15, 16, 17, *range(27, 32), 36, *range(50, 59)), "yyyy-mm-dd")
    | dict.fromkeys((18, 20, 32, 34), "hh:mm")
    | dict.fromkeys((19, 21, 33, 35, 45, 47), "hh:mm:ss")
    | dict.fromkeys((3, 37, 38, 41, 42), "#,##0")
    | dict.fromkeys((4, 39, 40, 43, 44), "#,##0.00")
)
"""Formats that files name by number alone; where they differ by country, the plainest."""

_MAX_CODE = 255
_THOUSANDTHS = re.compile(r",+$")
_MAX_DECIMALS = 12  # with 15 digits before them, what a decimal holds
_MAX_PLAIN = 1e15
_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"?|\\(?P<escaped>.)|[_*].|\[\$(?P<currency>[^\]-]*)[^\]]*\]|\[(?P<bracket>[^\]]*)\]'
    r"|(?P<half>AM/PM|A/P)|(?P<general>General)|(?P<exponent>E[+-])|(?P<letter>[ymdhsYMDHS])|(?P<sign>.)",
    re.IGNORECASE | re.DOTALL,
)
_SECTION = re.compile(r'(?P<code>(?:"[^"]*"?|\\.|[_*].|\[[^\]]*\]|[^;])*)(?:;|\Z)', re.DOTALL)
_MAX_SECTIONS = 4
_DAYS_1900, _DAYS_1904 = datetime(1899, 12, 30), datetime(1904, 1, 1)  # noqa: DTZ001 - cells know no zone
_LEAP_DAY_1900 = 60  # that never was, and that the system counts
_LAST_DAY = 2_958_465
_MAX_HOURS = 1e7


class _Pattern(NamedTuple):
    """Digits. factor: the number is shown times it; optional: decimals that are left out where they are 0; zeros: that
    stand before it if need be; fraction: shown as one, such as 1 1/2.
    """

    factor: float
    decimals: int
    quantum: Decimal
    optional: int
    zeros: int
    thousands: bool
    exponent: bool
    fraction: bool


class _Section(NamedTuple):
    """How one sign of numbers is shown: as digits between two texts, or as a moment with a date or a time in it."""

    before: str = ""
    pattern: _Pattern | None = None
    after: str = ""
    date: bool = False
    time: bool = False
    seconds: bool = False
    elapsed: bool = False
    general: bool = False


class NumberFormat:
    """One format, for many numbers."""

    def __init__(self, code: str, *, from_1904: bool = False) -> None:
        sections = [match["code"] for match in _SECTION.finditer(f"{code[:_MAX_CODE] or GENERAL};")][:-1] or [GENERAL]
        self._sections = [_read_section(section) for section in sections[:_MAX_SECTIONS]]
        self._from_1904 = from_1904

    def show(self, value: float) -> str:
        """'' for what is no number, and where the format hides it."""
        if not isfinite(value):
            return ""
        section = self._sections[0]
        if value < 0 and len(self._sections) > 1:
            section, value = self._sections[1], -value
        elif value == 0 and len(self._sections) > 2:
            section = self._sections[2]
        if section.date or section.time:
            return self._moment(value, section) or general(value)
        pattern = section.pattern
        if pattern is None and not section.general:
            return section.before
        if pattern is None or pattern.fraction or abs(value) >= _MAX_PLAIN:
            return f"{section.before}{general(value)}{section.after}"
        sign, value = ("-", -value) if value < 0 else ("", value)
        return f"{sign}{section.before}{_digits(value, pattern)}{section.after}"

    def _moment(self, value: float, section: _Section) -> str:
        """ISO 8601; '' for what is no date."""
        if section.elapsed and abs(value) < _MAX_HOURS:
            minutes, seconds = divmod(round(abs(value) * 86400), 60)
            return f"{'-' if value < 0 else ''}{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        if not 0 <= value < _LAST_DAY + 1:
            return ""
        early = not self._from_1904 and value < _LEAP_DAY_1900
        start = _DAYS_1904 if self._from_1904 else _DAYS_1900
        try:
            moment = start + timedelta(days=int(value) + early, seconds=round(value % 1 * 86400))
        except OverflowError:
            return ""
        time = f"{moment:%H:%M:%S}" if section.seconds else f"{moment:%H:%M}"
        if not section.date:
            return time
        day = moment.date().isoformat()
        return f"{day} {time}" if section.time else day


def general(value: float) -> str:
    """As a cell without a format shows it."""
    if abs(value) < _MAX_PLAIN and value == int(value):
        return str(int(value))
    return f"{value:.15g}"


def _read_section(code: str) -> _Section:
    before, pattern, after = "", "", ""
    letters: list[str] = []
    elapsed = half = has_general = False
    for match in _TOKEN.finditer(code):
        kind, text = match.lastgroup, match[0]
        literal = match[kind] if kind in ("quoted", "escaped", "currency") else ""
        if kind == "letter":
            letters += text.lower() if letters[-1:] != [text.lower()] else ""
        elif kind == "bracket":
            elapsed |= match["bracket"].lower() in ("h", "hh", "m", "mm", "s", "ss")
        elif kind == "half":
            half = True
        elif kind == "general":
            has_general = True
        elif kind == "exponent" or (kind == "sign" and text in "0#?.,%/"):
            pattern += text
            literal = "%" if text == "%" else ""
        elif kind == "sign":
            has_general |= text == "@"
            literal = text.replace("@", "")
        if pattern or has_general:
            after += literal or ""
        else:
            before += literal or ""
    date, time = _parts(letters)
    if date or time or half or elapsed:
        seconds = "s" in letters or elapsed
        return _Section(date=date, time=time or half or elapsed, seconds=seconds, elapsed=elapsed)
    has_pattern = bool(pattern) and not has_general
    return _Section(before, _read_pattern(pattern) if has_pattern else None, after.rstrip(), general=has_general)


def _parts(letters: list[str]) -> tuple[bool, bool]:
    """Whether there is a date, and a time; m is for minutes after h and before s."""
    time = any(letter in "hs" for letter in letters)
    date = any(letter in "yd" for letter in letters)
    for at, letter in enumerate(letters):
        if letter == "m":
            minutes = letters[at - 1 : at] == ["h"] or letters[at + 1 : at + 2] == ["s"]
            date |= not minutes
    return date, time


def _read_pattern(pattern: str) -> _Pattern:
    """Of one such as #,##0.00 or 0.0E+0, or 0% where the sign itself is shown elsewhere."""
    mantissa, exponent, _ = pattern.upper().partition("E")
    whole, _, rest = mantissa.partition(".")
    decimals = min(sum(sign in "0#?" for sign in rest), _MAX_DECIMALS)
    scaled = _THOUSANDTHS.search(rest or whole)
    factor = 100.0 ** min(pattern.count("%"), 2) / 1000.0 ** (min(len(scaled[0]), 4) if scaled else 0)
    optional = len(rest) - len(rest.rstrip("#,%")) if "#" in rest else 0
    thousands = "," in whole.strip(",%")
    zeros = 0 if thousands else min(whole.count("0"), _MAX_DECIMALS)
    quantum = Decimal(1).scaleb(-decimals)
    return _Pattern(factor, decimals, quantum, optional, zeros, thousands, bool(exponent), "/" in pattern)


def _digits(value: float, pattern: _Pattern) -> str:
    """Of a number that is not negative."""
    value *= pattern.factor
    if pattern.exponent:
        return f"{value:.{pattern.decimals}E}"
    exact = Decimal(f"{value:.15g}").quantize(pattern.quantum, ROUND_HALF_UP)
    text = f"{exact:,f}" if pattern.thousands else str(exact)
    if pattern.optional:
        kept = text.rstrip("0")
        text = text[: max(len(kept), len(text) - pattern.optional)].removesuffix(".")
    if pattern.zeros > 1 or not pattern.zeros:
        number, point, fraction = text.partition(".")
        text = f"{number.zfill(pattern.zeros)}{point}{fraction}"
    return text
