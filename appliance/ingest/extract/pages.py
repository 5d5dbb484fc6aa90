"""Pages as a reader of structured documents writes them: block after block, an empty line between two."""

from collections.abc import Iterable, Sequence

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract.reading import Mark, Member, Read, Row
from appliance.ingest.extract.text import clean_marked

Cells = Sequence[str]
"""A row of a table."""

_Block = tuple[str, int, list[str]]
"""Kind, '' for running text; level of a heading, else 0; lines."""


class Pages:
    """Collects blocks into the page that is open; at first, page 1. Raises DocumentRefused: TOO_MANY_PAGES."""

    def __init__(self, caps: Caps) -> None:
        self._max_pages = caps.pages
        self._done: list[list[_Block]] = []
        self._open: list[_Block] = []

    def turn(self) -> None:
        """End the open page, though it may be empty, and open the next one."""
        self._done.append(self._open)
        self._open = []
        if len(self._done) >= self._max_pages:
            raise DocumentRefused("TOO_MANY_PAGES", f"It has more than the {self._max_pages} pages that are allowed.")

    def text(self, text: str) -> None:
        """Running text, a paragraph or more."""
        self._add("", text)

    def marked(self, text: str, marks: Sequence[Mark]) -> None:
        """Text with blocks in it."""
        at = 0
        for kind, level, start, end in marks:
            self._add("", text[at:start].strip("\n"))
            self._add(kind, text[start:end].strip("\n"), level)
            at = end
        self._add("", text[at:].strip("\n"))

    def heading(self, level: int, text: str) -> None:
        self._add("heading", " ".join(text.split()), level)

    def item(self, depth: int, label: str, text: str) -> None:
        """An item of a list; items one after the other are one list. depth: from 0."""
        line = f"{'  ' * depth}{label} {text.strip()}"
        if self._open and self._open[-1][0] == "list":
            self._open[-1][2].append(line)
        else:
            self._add("list", line)

    def table(self, rows: Iterable[Cells]) -> None:
        """Rows as lines, cells apart by tabs; the first row is the table's header. Rows without text are left out."""
        lines = ["\t".join(map(cell_text, row)).rstrip() for row in rows]
        if lines := [line for line in lines if line]:
            self._open.append(("table", 0, lines))

    def read(self, parser: str, members: tuple[Member, ...] = ()) -> Read:
        """All pages, with offsets into them."""
        texts: list[str] = []
        rows: list[Row] = []
        for number, blocks in enumerate((*self._done, self._open), 1):
            text, found = clean_marked(*_joined(blocks), number)
            texts.append(text)
            rows += found
        return Read(parser, tuple(texts), tuple(rows), members)

    def _add(self, kind: str, text: str, level: int = 0) -> None:
        if text.strip():
            self._open.append((kind, level, [text]))


def cell_text(text: str) -> str:
    """In one line, without tabs: a cell among others."""
    return " ".join(text.split()) if not text.isalnum() else text


def _joined(blocks: Sequence[_Block]) -> tuple[str, list[Mark]]:
    parts: list[str] = []
    marks: list[Mark] = []
    start = 0
    for kind, level, lines in blocks:
        part = "\n".join(lines) + "\n"
        if kind:
            marks.append((kind, level, start, start + len(part)))
        parts += (part, "\n")
        start += len(part) + 1
    return "".join(parts), marks
