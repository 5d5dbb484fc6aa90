"""The structure of a page without gaps: what its parser saw, and between that what plain text shows by itself.

Plain text is read conservatively, for a false heading is worse than none: headings as in Markdown, underlined, or
numbered and alone; lists of two items and more; tables by pipes or tabs; code that is fenced, or indented and looks
like it. Everything else is running text. One pass over the lines, each rule looking no further than what it takes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from appliance.types import Block, BlockKind

ITEM = re.compile(r"[ \t]*(?:[-*+•–—·▪◦‣●○►]|\(?\d{1,3}(?:\.\d{1,3})*[.)]|\(?[a-zа-я][.)])[ \t]")
TABLE_RULE = re.compile(r"[ \t]*+(?:\|[ \t]*+)?:?-{3,}+:?[ \t]*+(?:\|[ \t]*+:?-{3,}+:?[ \t]*+)*+(?:\|[ \t]*+)?")

_MARKED = re.compile(r"(#{1,6})[ \t]+\S")
_UNDERLINE = re.compile(r"(={3,}|-{3,})[ \t]*")
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3}){0,5})\.?[ \t]+[^\W\d_]")
_NAMED = re.compile(
    r"(?i:chapter|section|article|part|appendix|kapitel|abschnitt|artikel|teil|anhang|§|глава|раздел|статья|часть)"
    r"[ \t]*(?:\d{1,4}|[IVXLC]{1,6}|[A-Z])\b"
)
_FENCE = re.compile(r"[ \t]{0,3}(?P<mark>```|~~~)[^`]*")
_PIPES = re.compile(r"[ \t]*\|.*\|[ \t]*")
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*\S")
_LIKE_CODE = re.compile(r"[{};]$|[\w)\]][ \t]*[-+*/:=!]?=|\w\(|->|=>|^[ \t]*(?:#|//|<|\$|>>>)")
_CODE_CHARACTERS = 200  # of a line, that are looked at

_TITLE_CHARACTERS = 100
_SENTENCE_ENDS = (".", "!", "?", ":", ";", ",", "…", "。")

_Range = tuple[BlockKind, int, int, int]
"""Kind, first line, the line after the last one, level."""


def structure(text: str, page: int, given: Sequence[Block], titled: bool) -> Iterator[Block]:
    """Blocks of a page in order, together all of it but white space.

    given: those its parser saw, in order and without overlap. titled: it saw the headings, so none is read from text.
    """
    at = 0
    for block in given:
        yield from _between(text, page, at, block.start, titled)
        yield block
        at = block.end
    yield from _between(text, page, at, len(text), titled)


def _between(text: str, page: int, start: int, end: int, titled: bool) -> Iterator[Block]:
    """What plain text shows in [start, end)."""
    lines = text[start:end].split("\n")
    starts = [min(at, end) for at in accumulate((len(line) + 1 for line in lines), initial=start)]
    last = 0
    for kind, first, after, level in (*_Reader(lines, titled).read(), (BlockKind.PARAGRAPH, len(lines), 0, 0)):
        if text[starts[last] : starts[first]].strip():
            yield Block(BlockKind.PARAGRAPH, page, starts[last], starts[first])
        if after:
            yield Block(kind, page, starts[first], starts[after], level)
        last = after


class _Reader:
    """Finds blocks in lines. Each rule says the line after its block, or the line itself where it finds none."""

    def __init__(self, lines: Sequence[str], titled: bool) -> None:
        self._lines, self._titled = lines, titled
        self._open_fences: set[str] = set()  # marks that no later line closes

    def read(self) -> Iterator[_Range]:
        rules = ((BlockKind.CODE, self._fenced), (BlockKind.TABLE, self._table), (BlockKind.LIST, self._list))
        at = 0
        while at < len(self._lines):
            after = at
            if self._lines[at].strip():
                if not self._titled and (level := self._heading_level(at)):
                    after = at + (2 if self._underlined(at) else 1)
                    yield BlockKind.HEADING, at, after, level
                else:
                    for kind, rule in (*rules, (BlockKind.CODE, self._indented)):
                        after = rule(at)
                        if after > at:
                            yield kind, at, after, 0
                            break
            at = max(after, at + 1)

    def _line(self, at: int) -> str:
        return self._lines[at] if 0 <= at < len(self._lines) else ""

    def _blank(self, at: int) -> bool:
        return not self._line(at).strip()

    def _heading_level(self, at: int) -> int:
        """1 and up, 0 where the line is no heading."""
        line = self._lines[at].strip()
        if len(line) > _TITLE_CHARACTERS:
            return 0
        if marked := _MARKED.match(line):
            return 0 if self._in_comment(at, marked[1]) else len(marked[1])
        if not self._blank(at - 1) or line.endswith(_SENTENCE_ENDS):
            return 0
        if self._underlined(at):
            return 1 if self._lines[at + 1].startswith("=") else 2
        if not self._blank(at + 1):
            return 0
        if numbered := _NUMBERED.match(line):
            return 0 if self._in_numbered_list(at, numbered[1]) else 1 + numbered[1].count(".")
        return 1 if _NAMED.match(line) else 0

    def _in_comment(self, at: int, mark: str) -> bool:
        """Whether lines of the same mark stand together, as comments do and headings don't."""
        beside = (_MARKED.match(self._line(at - 1)), _MARKED.match(self._line(at + 1)))
        return any(match is not None and match[1] == mark for match in beside)

    def _underlined(self, at: int) -> bool:
        line, below = self._lines[at].strip(), self._line(at + 1)
        if not _UNDERLINE.fullmatch(below) or not self._blank(at - 1) or ITEM.match(line) or "|" in line:
            return False
        return below.startswith("=") or abs(len(below.strip()) - len(line)) <= 3

    def _in_numbered_list(self, at: int, number: str) -> bool:
        """Whether the paragraph before or after begins with a number of the same depth."""
        beside = (_NUMBERED.match(self._line(at - 2)), _NUMBERED.match(self._line(at + 2)))
        return any(match is not None and match[1].count(".") == number.count(".") for match in beside)

    def _fenced(self, at: int) -> int:
        fence = _FENCE.fullmatch(self._lines[at])
        if not fence or fence["mark"] in self._open_fences:
            return at
        for after in range(at + 1, len(self._lines)):
            if self._lines[after].strip() == fence["mark"]:
                return after + 1
        self._open_fences.add(fence["mark"])
        return at

    def _table(self, at: int) -> int:
        line = self._lines[at]
        if _PIPES.fullmatch(line):
            after = self._run(at, lambda row: _PIPES.fullmatch(row) is not None)
        elif "|" in line and "|" in self._line(at + 1) and TABLE_RULE.fullmatch(self._line(at + 1)):
            after = self._run(at, lambda row: "|" in row)
        elif "\t" in line.strip():
            after = self._run(at, lambda row: "\t" in row.strip())
        else:
            return at
        return after if after - at >= 2 else at

    def _run(self, at: int, belongs: Callable[[str], bool]) -> int:
        while at < len(self._lines) and belongs(self._lines[at]):
            at += 1
        return at

    def _list(self, at: int) -> int:
        if not ITEM.match(self._lines[at]):
            return at
        items, after = 0, at
        while after < len(self._lines):
            line = self._lines[after]
            if ITEM.match(line):
                items += 1
            elif self._blank(after):
                if not ITEM.match(self._line(after + 1)):
                    break
            elif not (line[0] in " \t" or line[0].islower()):
                break
            after += 1
        return after if items >= 2 else at

    def _indented(self, at: int) -> int:
        if not _INDENTED.match(self._lines[at]) or not self._blank(at - 1):
            return at
        after = self._run(at, lambda line: _INDENTED.match(line) is not None)
        likely = sum(_LIKE_CODE.search(line[:_CODE_CHARACTERS].rstrip()) is not None for line in self._lines[at:after])
        return after if after - at >= 2 and 2 * likely > after - at else at
