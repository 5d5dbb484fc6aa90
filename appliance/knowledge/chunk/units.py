"""A section as the units that its pieces are made of: what is not cut, what stays together, what is read again."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from appliance.knowledge.chunk.blocks import ITEM, TABLE_RULE
from appliance.knowledge.chunk.measure import CHARACTERS_A_TOKEN, Page, Range
from appliance.knowledge.chunk.sentences import sentences
from appliance.types import Block, BlockKind

_NOTHING = (0, 0)
_REPEATED_SHARE = 4  # what is read again may take a quarter of a piece


class Unit(NamedTuple):
    """[start, end) of a page, and its tokens.

    flows: it may be read again at the start of the next piece. leads: it stays with what follows. repeated: what must
    be read before it where a piece begins with it.
    """

    start: int
    end: int
    cost: int
    flows: bool = False
    leads: bool = False
    repeated: Range = _NOTHING


def units(page: Page, section: Sequence[Block], room: int) -> list[Unit]:
    """The units of a section's blocks in order, each of at most `room` tokens with what leads to it or is repeated."""
    made = _Units(page, room)
    for block, following in zip_longest(section, section[1:]):
        made.add_block(block, following)
    return made.found


class _Units:
    def __init__(self, page: Page, room: int) -> None:
        self.found: list[Unit] = []
        self._page, self._room = page, room
        self._leading = 0  # tokens at the end of what was found that stay with what follows

    def add_block(self, block: Block, following: Block | None) -> None:
        start, end = block.start, block.end
        match block.kind:
            case BlockKind.HEADING:
                start, end = self._page.trim(start, end)
                self._add(start, end, leads=True)
            case BlockKind.PARAGRAPH:
                self._add_paragraph(start, end, following)
            case BlockKind.LIST:
                self._add_list(start, end)
            case BlockKind.TABLE:
                self._add_lines(start, end, header=True)
            case BlockKind.CODE:
                self._add_lines(start, end, header=False)

    def _add(
        self, start: int, end: int, *, flows: bool = False, leads: bool = False, repeated: Range = _NOTHING
    ) -> None:
        """One unit, or several where it alone is too long for a piece."""
        taken = max(self._leading, self._page.cost(*repeated))
        room = max(self._room - taken, self._room // 2)
        whole = self._page.cost(start, end) <= room and end - start <= room * CHARACTERS_A_TOKEN
        for part in ((start, end),) if whole else self._page.cut(start, end, room):
            cost = self._page.cost(*part)
            self.found.append(Unit(*part, cost, flows, leads, repeated))
            self._leading = self._leading + cost if leads else 0

    def _fits(self, start: int, end: int) -> bool:
        room = self._room - self._leading
        return self._page.cost(start, end) <= room and end - start <= room * CHARACTERS_A_TOKEN

    def _add_paragraph(self, start: int, end: int, following: Block | None) -> None:
        found = [(start + first, start + last) for first, last in sentences(self._page.text[start:end])]
        introduces = following is not None and following.kind not in (BlockKind.PARAGRAPH, BlockKind.HEADING)
        for first, last in found:
            leads = introduces and (first, last) == found[-1] and self._page.text[last - 1] in ":："
            self._add(first, last, flows=not leads, leads=leads)

    def _add_list(self, start: int, end: int) -> None:
        lead_in = self._lead_in()
        for number, (first, last) in enumerate(self._items(start, end)):
            repeated = lead_in if number else _NOTHING
            if self._fits(first, last):
                self._add(first, last, repeated=repeated)
                continue
            for sentence in sentences(self._page.text[first:last]):
                self._add(first + sentence[0], first + sentence[1], repeated=repeated)

    def _lead_in(self) -> Range:
        """The line before a list that leads into it, if it is short enough to be read again."""
        last = self.found[-1] if self.found else None
        if (
            last
            and last.leads
            and self._page.text[last.end - 1] in ":："
            and last.cost <= self._room // _REPEATED_SHARE
        ):
            return last.start, last.end
        return _NOTHING

    def _items(self, start: int, end: int) -> Iterator[Range]:
        first = last = start
        for line in self._page.lines(start, end):
            if ITEM.match(self._page.text, line[0], line[1] + 1) and last > first:
                yield self._page.trim(first, last)
                first = line[0]
            last = line[1]
        if last > first:
            yield self._page.trim(first, last)

    def _add_lines(self, start: int, end: int, *, header: bool) -> None:
        """A table or code: whole where it fits, else by lines; a table's first row is read again before each part."""
        lines = list(self._page.lines(start, end))
        if not lines:
            return
        if self._fits(lines[0][0], lines[-1][1]):
            self._add(lines[0][0], lines[-1][1])
            return
        rows = self._header_rows(lines) if header else 0
        repeated = (lines[0][0], lines[rows - 1][1]) if rows else _NOTHING
        if self._page.cost(*repeated) > self._room // _REPEATED_SHARE:
            repeated = _NOTHING
        for number, line in enumerate(lines):
            in_header = number < rows
            self._add(*line, leads=in_header, repeated=_NOTHING if in_header else repeated)

    def _header_rows(self, lines: Sequence[Range]) -> int:
        ruled = len(lines) > 1 and TABLE_RULE.fullmatch(self._page.text, *lines[1]) is not None
        return 2 if ruled else 1
