"""Pages of pieces to their text and its structure, which only the whole document shows.

What is set larger than most text is a heading, and so is what the outline names; its level is the outline's where there
is one, else the rank of its size. Lines that come again at one height on many pages are headers and footers: they are
kept, apart from the text that they interrupt.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from appliance.ingest.extract.layout.shapes import Line, Piece
from appliance.ingest.extract.reading import Mark

ITEM = re.compile(r"(?:[-*+•–—·▪◦‣●○►]|\(?\d{1,3}(?:\.\d{1,3})*[.)]|\(?[a-z][.)])[ \t]")

_LEADERS = re.compile(r"(?:\. ?){4}")  # of a table of contents
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b")
_NUMBERING = re.compile(r"(?:\d{1,3}(?:\.\d{1,3})*|[A-Z])\.?[ \t]+")
_HEADING_SCALE = 1.15  # times as tall as most of the text
_HEADING_CHARACTERS = 120
_HEADING_LINES = 3
_MAX_LEVEL = 6
_EDGE_LINES = 2  # of a page's top and bottom, that may come again on others
_RUNNING_PAGES, _RUNNING_SHARE = 3, 0.3


class Page(NamedTuple):
    """pieces: in reading order. more: paragraphs that stand on no line of it: fields, notes, links."""

    pieces: Sequence[Piece] = ()
    more: Sequence[str] = ()


class Entry(NamedTuple):
    """Of the document's outline. level: from 1."""

    level: int
    title: str


def assemble(pages: Sequence[Page], outline: Sequence[Entry] = ()) -> Iterator[tuple[str, list[Mark]]]:
    """Raw text of each page and the blocks in it."""
    running = _running_lines(pages)
    titles = {_title(entry.title): min(entry.level, _MAX_LEVEL) for entry in reversed(outline)}
    bodies = [_split_titles(_set_apart(page.pieces, running), titles) for page in pages]
    sizes = _heading_sizes(list(chain.from_iterable(bodies)), titles)
    for page, body in zip(pages, bodies, strict=True):
        yield _written(body, page.more, titles, sizes)


def _title(text: str) -> str:
    """As titles are compared: without numbering, case and spaces."""
    text = unicodedata.normalize("NFKC", text).strip()
    return "".join(_NUMBERING.sub("", text, count=1).casefold().split())


def _running_lines(pages: Sequence[Page]) -> frozenset[tuple[str, int]]:
    """What comes again on many pages, without its numbers, and where."""
    seen = Counter(chain.from_iterable({_key(line) for line in _edges(page)} for page in pages))
    least = max(_RUNNING_PAGES, _RUNNING_SHARE * len(pages))
    return frozenset(key for key, count in seen.items() if count >= least)


def _edges(page: Page) -> list[Line]:
    lines = sorted(
        (line for piece in page.pieces if not piece.table for line in piece.lines), key=lambda line: line.top
    )
    return [*lines[:_EDGE_LINES], *lines[-_EDGE_LINES:]]


def _key(line: Line) -> tuple[str, int]:
    return _NUMBER.sub("#", line.text), round(line.top / (line.size or 1.0))


def _set_apart(pieces: Sequence[Piece], running: frozenset[tuple[str, int]]) -> list[Piece]:
    """Headers first and footers last, each line for itself."""
    if not running:
        return list(pieces)
    lines = [line for piece in pieces for line in piece.lines]
    middle = (min(line.top for line in lines) + max(line.bottom for line in lines)) / 2 if lines else 0.0
    headers, body, footers = list[Piece](), list[Piece](), list[Piece]()
    for piece in pieces:
        kept = piece.lines if piece.table else tuple(line for line in piece.lines if _key(line) not in running)
        for line in () if piece.table else piece.lines:
            if _key(line) in running:
                (headers if line.top < middle else footers).append(Piece((line._replace(size=0.0),)))
        if kept:
            body.append(piece._replace(lines=kept))
    return [*headers, *body, *footers]


def _split_titles(pieces: Sequence[Piece], titles: Mapping[str, int]) -> list[Piece]:
    """Lines that the outline names stand for themselves."""
    if not titles:
        return list(pieces)
    out: list[Piece] = []
    for piece in pieces:
        part: list[Line] = []
        for line in piece.lines if not piece.table else ():
            if _title(line.text) in titles:
                out += [Piece(tuple(part))] if part else []
                out.append(Piece((line,)))
                part = []
            else:
                part.append(line)
        out += [Piece(tuple(part))] if part else []
        out += [piece] if piece.table else []
    return out


def _heading_sizes(pieces: Sequence[Piece], titles: Mapping[str, int]) -> dict[float, int]:
    """Levels by size, of sizes larger than most text."""
    characters: Counter[float] = Counter()
    for piece in pieces:
        for line in () if piece.table else piece.lines:
            characters[_rounded(line)] += len(line.text)
    usual = max(characters, key=lambda size: (characters[size], size), default=0.0)
    larger = sorted((size for size in characters if size > _HEADING_SCALE * usual), reverse=True)
    levels = {size: min(rank, _MAX_LEVEL) for rank, size in enumerate(larger, 1)}
    for piece in pieces:
        size = _rounded(piece.lines[0])
        if size in levels and (level := titles.get(_title(piece.text))):
            levels[size] = level
    return levels


def _rounded(line: Line) -> float:
    return round(2 * line.size) / 2


def _heading_level(piece: Piece, titles: Mapping[str, int], sizes: Mapping[float, int]) -> int:
    """From 1; 0 where it is none."""
    text = piece.text
    if piece.table or len(text) > _HEADING_CHARACTERS or len(piece.lines) > _HEADING_LINES:
        return 0
    if not any(map(str.isalpha, text)) or _LEADERS.search(text) or not piece.lines[0].size:
        return 0
    return titles.get(_title(text)) or sizes.get(_rounded(piece.lines[0]), 0)


def _written(
    pieces: Sequence[Piece], more: Sequence[str], titles: Mapping[str, int], sizes: Mapping[float, int]
) -> tuple[str, list[Mark]]:
    out, length, marks = list[str](), 0, list[Mark]()
    for piece in pieces:
        text = piece.text
        level = _heading_level(piece, titles, sizes)
        kind = "heading" if level else "table" if piece.table else "list" if _is_list(text) else ""
        if kind:
            before = 0 if kind != "list" else _first_item(text)
            marks.append((kind, level, length + before, length + len(text) + 1))
        out.append(f"{text}\n\n")
        length += len(out[-1])
    out += [f"{text}\n\n" for text in more]
    return "".join(out), _joined(marks)


def _is_list(text: str) -> bool:
    return ITEM.match(text) is not None or sum(ITEM.match(line) is not None for line in text.split("\n")) > 1


def _first_item(text: str) -> int:
    at = 0
    for line in text.split("\n"):
        if ITEM.match(line):
            break
        at += len(line) + 1
    return at


def _joined(marks: Sequence[Mark]) -> list[Mark]:
    """Items that are paragraphs of their own are one list."""
    out: list[Mark] = []
    for kind, level, start, end in marks:
        if out and kind == out[-1][0] == "list" and start == out[-1][3] + 1:
            out[-1] = kind, level, out[-1][2], end
        else:
            out.append((kind, level, start, end))
    return out
