"""DOCX (ECMA-376 part 1, WordprocessingML) as a reader of the printed pages sees it.

Pages turn where the file breaks them, and where the program that stored it last saw them turn. Insertions that are
tracked are there, deletions are not; fields show their last results. A footnote stands at the end of its page as
`[^1]: text`; endnotes, comments, headers and footers, each marked, at the end of the last one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from xml.etree.ElementTree import Element

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract.docx_styles import BULLET, Numbering, Styles, W, integer, is_on, value
from appliance.ingest.extract.package import ALTERNATIVES, FALLBACK, XML_PARSER, Package, chosen, warm_package
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Read
from appliance.ingest.extract.symbols import symbol

PARSER = f"docx 1/{XML_PARSER}"

_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
# Marks in a paragraph's text; no XML can hold these characters, so no document forges them.
_PAGE, _RENDERED_PAGE, _OBJECT, _NOTE = "\f", "\v", "\x01", "\x02"
_BREAKS = re.compile(f"([{_PAGE}{_RENDERED_PAGE}])")
_ANY_BREAK = re.compile(f"[{_PAGE}{_RENDERED_PAGE}{_OBJECT}]")
_FOOTNOTE = re.compile(_NOTE + r"(\[\^\d+\])")
_MAX_SPAN = 63  # columns of a table in Word
_MAX_FIELDS = 50  # that are open inside one another

_TEXT = frozenset({f"{W}t", f"{_MATH}t"})
_CHARACTERS = {
    f"{W}tab": "\t",
    f"{W}ptab": "\t",
    f"{W}cr": "\n",
    f"{W}noBreakHyphen": "-",
    f"{W}lastRenderedPageBreak": _RENDERED_PAGE,
}
_DRAWN = frozenset(f"{W}{name}" for name in ("drawing", "pict", "object"))
_UNSEEN = frozenset(
    {
        FALLBACK,
        f"{_MATH}ctrlPr",
        *(f"{W}{name}" for name in ("pPr", "rPr", "sdtPr", "sdtEndPr", "tblPr", "tblGrid", "trPr", "tcPr", "rubyPr")),
        *(f"{W}{name}" for name in ("del", "moveFrom", "delText", "instrText", "delInstrText", "rt", "fldData")),
    }
)
_WRAPPERS = frozenset(f"{W}{name}" for name in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag"))


def read(data: bytes, caps: Caps) -> Read:
    """Pages, headings, lists and tables.

    Raises DocumentRefused: TOO_DEEP, TOO_MANY_PAGES, and as `package.Package`.
    """
    try:
        return _Document(Package(data, caps), caps).read()
    except RecursionError:
        raise DocumentRefused("TOO_DEEP", "Its parts are nested deeper than any document's are.") from None


class _Document:
    def __init__(self, package: Package, caps: Caps) -> None:
        self._package = package
        self._main = package.main_part("wordprocessingml", "ms-word")
        self._styles = Styles(self._related("styles"))
        self._numbering = Numbering(self._related("numbering"))
        self._pages = Pages(caps)
        self._touched = False  # something stands on the open page
        self._fields: list[bool] = []  # of each field that is open, whether its result has begun
        self._notes = _Notes({kind: self._related(f"{kind}s") for kind in ("footnote", "endnote")})
        self._due: list[str] = []  # marks of the open page's footnotes

    def read(self) -> Read:
        body = self._package.tree(self._main).find(f"{W}body")
        if body is None:
            return self._pages.read(PARSER)
        sections = [section for holder in (*body.iter(f"{W}pPr"), body) for section in holder.findall(f"{W}sectPr")]
        starts = [value(section, "type") or "nextPage" for section in sections]
        self._starts = iter(starts[1:])  # how each section but the first one starts
        self._add_blocks(body)
        self._add_notes(self._due)
        self._add_notes(self._notes.endnotes)
        self._add_margins()
        return self._pages.read(PARSER)

    def _related(self, kind: str) -> Element | None:
        part = next(self._package.related(self._main, kind), None)
        return self._package.tree(part) if part else None

    # --- blocks

    def _add_blocks(self, parent: Element) -> None:
        for block in _blocks(parent):
            if block.tag == f"{W}tbl":
                self._add_table(block)
            else:
                self._add_paragraph(block)

    def _add_paragraph(self, paragraph: Element) -> None:
        properties = paragraph.find(f"{W}pPr")
        text, boxes = self._inline(paragraph)
        if self._styles.breaks(properties):
            text = _RENDERED_PAGE + text
        level = self._styles.level(properties)
        place = self._styles.place(properties)
        label = self._numbering.label(place) if place and _visible(text) else ""
        for piece in _BREAKS.split(text):
            if piece in (_PAGE, _RENDERED_PAGE):
                self._turn(asked=piece == _PAGE)
                continue
            self._touched |= bool(piece.strip())
            shown = piece.replace(_OBJECT, "")
            if not _visible(shown):
                continue
            self._due += _FOOTNOTE.findall(shown)
            if level:
                self._pages.heading(level, f"{'' if label == BULLET else label} {shown}")
            elif place and label:
                self._pages.item(place.depth, label, shown)
            else:
                self._pages.text(shown)
            level, label = 0, ""
        for box in boxes:
            self._add_blocks(box)
        if properties is not None and properties.find(f"{W}sectPr") is not None:
            self._turn(asked=False, really=next(self._starts, "continuous") not in ("continuous", "nextColumn"))

    def _turn(self, *, asked: bool, really: bool = True) -> None:
        """Turn the page; what the program saw turn was asked for already where nothing stands on the page yet."""
        if really and (asked or self._touched):
            self._add_notes(self._due)
            self._due = []
            self._pages.turn()
            self._touched = False

    def _add_table(self, table: Element) -> None:
        rows = list(_unwrapped(table, f"{W}tr"))
        cells = [list(_unwrapped(row, f"{W}tc")) for row in rows]
        if all(len(row) < 2 for row in cells) or any(_nests(cell) for row in cells for cell in row):
            for cell in (cell for row in cells for cell in row):  # it is there for the layout
                self._add_blocks(cell)
            return
        header: list[list[str]] = []
        lines: list[list[str]] = []
        for row, row_cells in zip(rows, cells, strict=True):
            properties = row.find(f"{W}trPr")
            if properties is not None and properties.find(f"{W}del") is not None:
                continue
            before = integer(value(properties, "gridBefore")) or 0
            line = [*[""] * min(before, _MAX_SPAN), *(text for cell in row_cells for text in self._cell(cell))]
            if any(_BREAKS.search(text) for text in line):
                self._end_rows(lines)
                self._turn(asked=False)
                lines = [*header]
            if is_on(properties, "tblHeader") and len(lines) == len(header):
                header.append([_ANY_BREAK.sub("", text) for text in line])
            self._touched |= any(text.strip() for text in line)
            lines.append(line)
        self._end_rows(lines)

    def _cell(self, cell: Element) -> list[str]:
        """What it shows, and as much nothing as it spans columns beyond its first."""
        properties = cell.find(f"{W}tcPr")
        merged = value(properties, "vMerge")
        text = self._flat(cell) if merged in (None, "restart") else ""
        span = integer(value(properties, "gridSpan")) or 1
        return [text, *[""] * (min(span, _MAX_SPAN) - 1)]

    def _end_rows(self, lines: Iterable[list[str]]) -> None:
        rows = [[_ANY_BREAK.sub(" ", text) for text in line] for line in lines]
        self._due += (mark for row in rows for text in row for mark in _FOOTNOTE.findall(text))
        self._touched |= any(text.strip() for row in rows for text in row)
        self._pages.table(rows)

    def _flat(self, parent: Element) -> str:
        """All that a cell, a note or a header shows, as one paragraph, with the marks in it."""
        parts: list[str] = []
        for block in _blocks(parent):
            if block.tag == f"{W}tbl":
                parts += (self._flat(cell) for row in _unwrapped(block, f"{W}tr") for cell in _unwrapped(row, f"{W}tc"))
                continue
            text, boxes = self._inline(block)
            place = self._styles.place(block.find(f"{W}pPr"))
            label = self._numbering.label(place) if place and _visible(text) else ""
            parts += (f"{label} {text}".strip(" "), *map(self._flat, boxes))
        return " ".join(part for part in parts if part)

    # --- what stands inside a paragraph

    def _inline(self, paragraph: Element) -> tuple[str, list[Element]]:
        """Its text with marks, and the text boxes that hang on it."""
        out: list[str] = []
        boxes: list[Element] = []
        self._walk(paragraph, out, boxes)
        self._fields = [True] * len(self._fields)  # no instruction goes on in another paragraph
        return "".join(out), boxes

    def _walk(self, parent: Element, out: list[str], boxes: list[Element]) -> None:
        for node in parent:
            tag = node.tag
            if tag == f"{W}fldChar":
                self._turn_field(node.get(f"{W}fldCharType", ""))
            elif tag in _TEXT:
                out.append((node.text or "") if all(self._fields) else "")
            elif tag in _DRAWN:
                out.append(_OBJECT)
                boxes += _text_boxes(node)
            elif tag == ALTERNATIVES:
                if (choice := chosen(node)) is not None:
                    self._walk(choice, out, boxes)
            elif tag == f"{W}r":
                properties = node.find(f"{W}rPr")
                if properties is None or not is_on(properties, "vanish"):
                    self._walk(node, out, boxes)
            elif tag not in _UNSEEN:
                out.append(self._character(node))
                self._walk(node, out, boxes)

    def _character(self, node: Element) -> str:
        match node.tag.removeprefix(W):
            case "br":
                return {"page": _PAGE}.get(node.get(f"{W}type", ""), "\n")
            case "sym":
                return symbol(node.get(f"{W}font", ""), node.get(f"{W}char", ""))
            case "footnoteReference" | "endnoteReference" as reference:
                mark = self._notes.mark(reference.removesuffix("Reference"), node.get(f"{W}id", ""))
                return mark and _NOTE + mark
        return _CHARACTERS.get(node.tag, "")

    def _turn_field(self, kind: str) -> None:
        if kind == "begin" and len(self._fields) < _MAX_FIELDS:
            self._fields.append(False)
        elif kind == "separate" and self._fields:
            self._fields[-1] = True
        elif kind == "end" and self._fields:
            self._fields.pop()

    # --- notes and what else stands beside the text

    def _add_notes(self, marks: Iterable[str]) -> None:
        """The notes of these marks, each where it is due first."""
        for mark in marks:
            if (note := self._notes.take(mark)) is not None:
                self._pages.text(f"{mark}: {self._plain(note)}")

    def _add_margins(self) -> None:
        """Comments, headers and footers."""
        comments = self._related("comments")
        for comment in comments.iter(f"{W}comment") if comments is not None else ():
            self._pages.text(f"Comment by {comment.get(f'{W}author', 'someone')}: {self._plain(comment)}")
        for kind in ("header", "footer"):
            texts = (self._plain(self._package.tree(part)) for part in self._package.related(self._main, kind))
            for text in dict.fromkeys(texts):
                if text:
                    self._pages.text(f"{kind.capitalize()}: {text}")

    def _plain(self, parent: Element) -> str:
        return _visible(_ANY_BREAK.sub(" ", self._flat(parent)))


class _Notes:
    """Footnotes and endnotes, by the marks that they get where the text refers to them."""

    def __init__(self, parts: Mapping[str, Element | None]) -> None:
        self._texts = {
            (kind, note.get(f"{W}id", "")): note
            for kind, part in parts.items()
            if part is not None
            for note in part.iter(f"{W}{kind}")
            if note.get(f"{W}type", "normal") == "normal"
        }
        self._marks: dict[tuple[str, str], str] = {}
        self._untaken: dict[str, Element] = {}
        self._counts: Counter[str] = Counter()

    def mark(self, kind: str, number: str) -> str:
        """Of a note by its number in the file, '' where there is none. Marks count in the order of the text."""
        note = kind, number
        if note in self._texts and note not in self._marks:
            self._counts[kind] += 1
            self._marks[note] = f"[^{'e' if kind == 'endnote' else ''}{self._counts[kind]}]"
            self._untaken[self._marks[note]] = self._texts[note]
        return self._marks.get(note, "")

    def take(self, mark: str) -> Element | None:
        """A note, once."""
        return self._untaken.pop(mark, None)

    @property
    def endnotes(self) -> list[str]:
        """Their marks."""
        return [mark for (kind, _), mark in self._marks.items() if kind == "endnote"]


def _blocks(parent: Element) -> Iterator[Element]:
    """Paragraphs and tables, out of what is wrapped around them."""
    return _unwrapped(parent, f"{W}p", f"{W}tbl")


def _unwrapped(parent: Element, *tags: str) -> Iterator[Element]:
    for node in parent:
        if node.tag in tags:
            yield node
        elif node.tag in _WRAPPERS:
            yield from _unwrapped(node, *tags)
        elif node.tag == ALTERNATIVES and (choice := chosen(node)) is not None:
            yield from _unwrapped(choice, *tags)


def _text_boxes(parent: Element) -> Iterator[Element]:
    for node in parent:
        if node.tag == f"{W}txbxContent":
            yield node
        elif node.tag == ALTERNATIVES:
            if (choice := chosen(node)) is not None:
                yield from _text_boxes(choice)
        else:
            yield from _text_boxes(node)


def _nests(cell: Element) -> bool:
    return next(cell.iter(f"{W}tbl"), None) is not None


def _visible(text: str) -> str:
    """Without marks that show nothing, '' where nothing is left."""
    return text.replace(_OBJECT, "").strip()


WARM_DOCUMENTS = (
    warm_package(
        "wordprocessingml.document.main+xml",
        "word/document.xml",
        f'<w:document xmlns:w="{W[1:-1]}"><w:body><w:p><w:r><w:t>Warm.</w:t></w:r></w:p></w:body></w:document>',
    ),
)
