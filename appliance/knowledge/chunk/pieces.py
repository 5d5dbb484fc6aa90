"""Documents to pieces: the passages that are embedded, indexed, found and cited.

A piece lies in one section of one page and is about as long as the embedder reads, by its own tokens. It begins and
ends where its kind of text allows: running text between sentences, a list between items, code between lines; a table
is whole where it fits, else cut between rows, and its header is read again before each part. Headings, and the line
that leads into a list, stay with what follows. Each piece is read under the path of its headings, which counts too.
Pages are tokenized once, and everything after that is linear in the text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.knowledge.chunk.blocks import structure
from appliance.knowledge.chunk.measure import CHARACTERS_A_TOKEN, Page
from appliance.knowledge.chunk.units import Unit, units
from appliance.ports import Embedder
from appliance.types import Block, BlockKind, Span

SEPARATOR = " › "

_HEADING_SHARE = 4  # titles may take a quarter of a piece
_FILL = 0.9  # of what the embedder reads; more finds worse on XQuAD
_PARAGRAPH_FILL = 0.5  # of the room, from which on a piece ends with a paragraph
_MARK = re.compile(r"#{1,6}[ \t]+")
_MARK_AFTER = re.compile(r"[ \t]#+$|\n[=-]+$")


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage in its surroundings.

    span: the stored range, exactly what is shown and cited. section: [start, end) of its section on the same page.
    heading: the titles above it, as "A › B". repeated: what must be read before it, such as a cut table's header.
    """

    span: Span
    section: tuple[int, int]
    heading: str
    repeated: str

    def read(self, page: str) -> str:
        """What is embedded, given the text of its page: heading, what is repeated, and its own text."""
        return "\n".join(part for part in (self.heading, self.repeated, page[self.span.start : self.span.end]) if part)


def pieces(pages: Sequence[str], blocks: Sequence[Block], embedder: Embedder, overlap_tokens: int = 0) -> list[Piece]:
    """The pieces of a document, in order; every character that is not white space lies in at least one of them.

    blocks: what its parser saw, in order and without overlap. overlap_tokens: so much of running text, in whole
    sentences, is at the start of the next piece as well.
    """
    on_page: list[list[Block]] = [[] for _ in pages]
    for block in blocks:
        on_page[block.page - 1].append(block)
    titled = any(block.kind is BlockKind.HEADING for block in blocks)
    path = _Path(embedder.max_tokens // _HEADING_SHARE)
    found: list[Piece] = []
    for number, ends in enumerate(embedder.token_ends(pages), 1):
        page = Page(pages[number - 1], ends)
        most = int(embedder.max_tokens * page.stretch())
        for section in _sections(structure(page.text, number, on_page[number - 1], titled)):
            path.enter(page, section)
            heading, cost = path.read()
            room = max(1, min(int(_FILL * most), most - cost))
            start, end = page.trim(section[0].start, section[-1].end)
            for first, last in _packed(units(page, section, room), page, room, overlap_tokens):
                repeated = page.text[slice(*first.repeated)]
                place = (min(start, first.start), max(end, last.end))  # code keeps the spaces that it begins with
                found.append(Piece(Span(number, first.start, last.end), place, heading, repeated))
    return found


def _sections(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Blocks from one heading to the next; headings with nothing between them begin one section together."""
    section: list[Block] = []
    for block in blocks:
        if block.kind is BlockKind.HEADING and section and section[-1].kind is not BlockKind.HEADING:
            yield section
            section = []
        section.append(block)
    if section:
        yield section


class _Path:
    """The titles above a place, outermost first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._titles: list[tuple[int, str, int]] = []  # level, title, tokens

    def enter(self, page: Page, section: Sequence[Block]) -> None:
        """Go on to a section, by the headings that it begins with."""
        for block in section:
            if block.kind is not BlockKind.HEADING:
                return
            while self._titles and self._titles[-1][0] >= block.level:
                self._titles.pop()
            start, end = page.trim(block.start, block.end)
            if mark := _MARK.match(page.text, start, end):
                start = mark.end()
            end = page.reach(start, end, self._room)
            title = " ".join(_MARK_AFTER.sub("", page.text[start:end]).split())
            if title:
                self._titles.append((block.level, title, page.cost(start, end)))

    def read(self) -> tuple[str, int]:
        """The innermost titles that there is room for, and their tokens."""
        titles: list[str] = []
        spent = 0
        for _, title, cost in reversed(self._titles):
            if spent + cost + bool(titles) > self._room:
                break
            spent += cost + bool(titles)
            titles.append(title)
        return SEPARATOR.join(reversed(titles)), spent


def _packed(found: Sequence[Unit], page: Page, room: int, overlap: int) -> Iterator[tuple[Unit, Unit]]:
    """First and last unit of each piece: as many as there is room for, about equally long within a section.

    Of a section that is more than one piece, a piece ends with a paragraph where it is full enough.
    """
    total = sum(unit.cost for unit in found)
    wanted = total / max(1, -(-total // room))
    enough = _PARAGRAPH_FILL * room if total > room else room
    first, size = 0, 0
    for at, unit in enumerate(found):
        parted = size >= enough and page.parted(found[at - 1].end, unit.start)
        full = size >= wanted or size + unit.cost > room or not _near(found[first], unit, room)
        if at > first and (parted or full):
            last = _without_leads(found, first, at, room)
            yield found[first], found[last - 1]
            first = _with_overlap(found, first, last, at, room, overlap)
            size = page.cost(*found[first].repeated) + sum(one.cost for one in found[first:at])
        size += unit.cost
    if found:
        yield found[first], found[-1]


def _near(first: Unit, last: Unit, room: int) -> bool:
    return last.end - first.start <= room * CHARACTERS_A_TOKEN


def _without_leads(found: Sequence[Unit], first: int, at: int, room: int) -> int:
    """Where a piece ends that has no room for unit `at`: before what leads to it, where both fit in the next piece."""
    last = at
    while last > first and found[last - 1].leads:
        last -= 1
    fits = sum(unit.cost for unit in found[last : at + 1]) <= room and _near(found[last], found[at], room)
    return last if last > first and fits else at


def _with_overlap(found: Sequence[Unit], first: int, last: int, at: int, room: int, overlap: int) -> int:
    """Where the next piece begins: as many sentences before `last` as overlap allows, and as leave room for `at`."""
    begin = last
    spare = min(overlap, room - sum(unit.cost for unit in found[last : at + 1]))
    while found[begin].flows and begin - 1 > first and found[begin - 1].flows and found[begin - 1].cost <= spare:
        begin -= 1
        spare -= found[begin].cost
    return begin if _near(found[begin], found[at], room) else last
