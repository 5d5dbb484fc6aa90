"""What a segment's sections hold, and a segment opened for searching.

    ids       16 bytes a document, in the order of its ordinals
    rows      Parquet: a row a document, in the same order (catalog.py)
    text      UTF-8 of all pages, one after another
    owners    u32 a passage: the ordinal of its document, ascending
    passages  a record a passage (PASSAGE): its page, [start, end) in code points of the page and in bytes of `text`,
              the same of its section, and where in `strings` its heading and what is repeated before it lie
    strings   UTF-8 of headings and repeated texts, each once
    blocks    a record a block (BLOCK) that a parser saw: the ordinal of its document, ascending, and where on a page
    postings, positions      inverted_file.py
    vec_i8, vec_f16, graph   vectors.py

In place of owners, passages and strings a segment of an older release has `spans` (SPAN). Everything is little-endian.
A segment without `blocks` is of documents whose parser saw none, or of an older release.
Owners, postings, int8 vectors and graph are kept in memory while there is room; rows go to the catalogue; the rest is
read by range.
"""

import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.catalog import Row, to_parquet
from appliance.knowledge.chunk import Piece
from appliance.knowledge.index import inversion, postings, vectors
from appliance.knowledge.index.postings import Postings
from appliance.knowledge.storage.record import Entry
from appliance.knowledge.storage.segment import SegmentFile
from appliance.types import PLACE, Block, BlockKind, Bools, Floats, Span

_PLACES = ("page", "start", "end", "section_start", "section_end")
_STRINGS = ("heading_start", "heading_end", "repeated_start", "repeated_end")
_BYTES = ("text_start", "text_end", "section_text_start", "section_text_end")
PASSAGE = np.dtype([*((name, "<u4") for name in (*_PLACES, *_STRINGS)), *((name, "<u8") for name in _BYTES)])
SPAN = np.dtype(
    [("owner", "<u4"), ("page", "<u4"), ("start", "<u4"), ("end", "<u4"), ("text_start", "<u8"), ("text_end", "<u8")]
)
BLOCK = np.dtype([("owner", "<u4"), ("page", "<u4"), ("start", "<u4"), ("end", "<u4"), ("kind", "u1"), ("level", "u1")])
KINDS = (BlockKind.HEADING, BlockKind.PARAGRAPH, BlockKind.LIST, BlockKind.TABLE, BlockKind.CODE)
"""By the number that stands for each in BLOCK."""
_MOST_BYTES = 4  # of a code point in UTF-8
T = TypeVar("T")


def to_rows(entries: Sequence[Entry], segment: int) -> list[Row]:
    """The catalogue rows of the documents once they lie in that segment, in this order."""
    rows: list[Row] = []
    start = 0
    for ordinal, entry in enumerate(entries):
        row = Row(entry.document, segment, ordinal, start, page_bytes(entry))
        start += sum(row.page_bytes)
        rows.append(row)
    return rows


def page_bytes(entry: Entry) -> tuple[int, ...]:
    """The UTF-8 length of each page."""
    return tuple(len(page) if page.isascii() else len(page.encode()) for page in entry.pages)


def to_sections(entries: Sequence[Entry], rows: Sequence[Row]) -> dict[str, bytes]:
    """The sections of a segment of these documents; rows: of `to_rows`."""
    counts = [len(entry.pieces) for entry in entries]
    passages, strings = _to_passages(entries, rows)
    return {
        "ids": b"".join(bytes.fromhex(entry.document.id) for entry in entries),
        "rows": to_parquet(rows),
        "text": "".join(page for entry in entries for page in entry.pages).encode(),
        "owners": np.repeat(np.arange(len(entries), dtype="<u4"), counts).tobytes(),
        "passages": passages.tobytes(),
        "strings": strings,
        "blocks": _to_blocks(entries),
        **postings.to_sections([row for entry in entries for row in words(entry)]),
        **vectors.to_sections(np.concatenate([entry.vectors for entry in entries])),
    }


def words(entry: Entry) -> list[inversion.Row]:
    """What is indexed of each passage: its text, and as its heading the document's title and its own heading."""
    title, pieces = entry.document.title, zip(entry.pieces, entry.passages(), strict=True)
    return [
        inversion.Row("\n".join(filter(None, (piece.repeated, text))), f"{title}\n{piece.heading}")
        for piece, text in pieces
    ]


def _to_passages(entries: Sequence[Entry], rows: Sequence[Row]) -> tuple[NDArray[np.void], bytes]:
    """The records of `passages`, and `strings`."""
    strings = bytearray()
    places: dict[str, tuple[int, int]] = {"": (0, 0)}

    def place(text: str) -> tuple[int, int]:
        if text not in places:
            start = len(strings)
            strings.extend(text.encode())
            places[text] = (start, len(strings))
        return places[text]

    found: list[tuple[int, ...]] = []
    for entry, row in zip(entries, rows, strict=True):
        at = row.text_start
        starts = [at, *(at := at + size for size in row.page_bytes)]
        number, offsets = 0, np.zeros(0, np.int64)
        for piece in entry.pieces:
            if piece.span.page != number:
                number = piece.span.page
                offsets = _byte_offsets(entry.pages[number - 1]) + starts[number - 1]
            range_ = (piece.span.start, piece.span.end, *piece.section)
            texts = (*place(piece.heading), *place(piece.repeated))
            found.append((number, *range_, *texts, *offsets[list(range_)].tolist()))
    return np.array(found, PASSAGE), bytes(strings)


def _to_blocks(entries: Sequence[Entry]) -> bytes:
    found = [
        (owner, block.page, block.start, block.end, KINDS.index(block.kind), block.level)
        for owner, entry in enumerate(entries)
        for block in entry.blocks
    ]
    return np.array(found, BLOCK).tobytes()


def _blocks(found: NDArray[np.void]) -> tuple[Block, ...]:
    places = found[["kind", "page", "start", "end", "level"]].tolist()
    return tuple(Block(KINDS[kind], *place) for kind, *place in places)


def _byte_offsets(page: str) -> NDArray[np.int64]:
    """Where each code point of a page starts in its UTF-8, and where the last one ends: int64 [len(page) + 1]."""
    if page.isascii():
        return np.arange(len(page) + 1)
    points = np.frombuffer(page.encode("utf-32-le"), "<u4")
    sizes = np.ones(len(points), np.int64) + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])


def _page_place(row: Row, page: int) -> tuple[int, int]:
    """Where a page of a document, from 1, starts and ends in the text section."""
    start = row.text_start + sum(row.page_bytes[: page - 1])
    return start, start + row.page_bytes[page - 1]


def _decoded(part: bytes) -> str:
    """A stretch of UTF-8, less the code points that are cut at its ends."""
    return part.decode(errors="ignore")


def _weakly(file: SegmentFile) -> Callable[[int, int], bytes]:
    """Reads positions for as long as somebody holds the file: what is kept in memory must not keep it open."""
    held = weakref.ref(file)

    def read(start: int, length: int) -> bytes:
        opened = held()
        assert opened is not None, "a segment is searched that nobody holds"
        return opened.read("positions", start, length)

    return read


class Sealed:
    """A segment, searchable; a `search.Unit`. Immutable; safe to use from many threads."""

    first_ordinal = 0

    def __init__(self, number: int, documents: int, file: SegmentFile) -> None:
        """Reads nothing yet."""
        self.number = number
        self.documents = documents
        self._file = file
        self._is_old = not file.size("passages")
        self.rows = file.size("spans") // SPAN.itemsize if self._is_old else file.size("passages") // PASSAGE.itemsize

    @property
    def owners(self) -> NDArray[np.uint32]:
        """uint32 [rows]. Raises StoreDamaged, as all that reads."""

        def load() -> NDArray[np.uint32]:
            if self._is_old:
                return np.ascontiguousarray(np.frombuffer(self._file.read("spans"), SPAN)["owner"])
            return np.frombuffer(self._file.read("owners"), "<u4", self.rows)

        return self._hot("owners", 4 * self.rows, load)

    @property
    def postings(self) -> Postings:
        read = _weakly(self._file)

        def load() -> Postings:
            if self._is_old:  # of another format; what it lacks of headings and titles compaction adds
                return Postings.build([inversion.Row(self.passage(row)[1], "") for row in range(self.rows)])
            return Postings(self._file.read("postings"), read)

        return self._hot("postings", self._file.size("postings"), load)

    @property
    def _codes(self) -> vectors.Codes:
        def load() -> vectors.Codes:
            graph = b"" if self._is_old else self._file.read("graph")  # an older one is of another format
            codes = vectors.Codes.from_sections(self._file.read("vec_i8"), graph)
            if codes.rows != self.rows or self._file.size("vec_f16") != 2 * codes.rows * codes.dim:
                raise StoreDamaged("Its vectors do not fit its passages.")
            return codes

        return self._hot("vectors", self._file.size("vec_i8") + self._file.size("graph"), load)

    def _hot(self, part: str, size_bytes: int, load: Callable[[], T]) -> T:
        try:
            return self._file.hot(part, size_bytes, load)
        except (StoreDamaged, ValueError) as error:
            raise StoreDamaged(f"{self._file.path} is damaged: {error}") from None

    @property
    def path(self) -> Path:
        return self._file.path

    def parquet(self) -> bytes:
        """The catalogue rows of its documents."""
        return self._file.read("rows")

    def nearest(self, query: Floats, allowed: Bools, k: int) -> tuple[NDArray[np.uint32], Floats]:
        """The k best allowed rows by cosine, best first."""
        halves = partial(self._file.rows_joined, "vec_f16", self._half_bytes)
        return vectors.SegmentVectors(self._codes, halves).search(query, None if allowed.all() else allowed, k)

    def vectors(self, rows: NDArray[np.uint32]) -> Floats:
        """Of some rows, float32 [len(rows), dimension]. Raises StoreDamaged."""
        return self._file.rows("vec_f16", self._half_bytes, rows).view("<f2").astype(np.float32)

    @property
    def _half_bytes(self) -> int:
        return self._file.size("vec_f16") // max(self.rows, 1)

    def places(self, rows: NDArray[np.uint32]) -> NDArray[np.void]:
        """Where some rows stand, as `search.Unit` says. Raises StoreDamaged."""
        passages = self._passages(rows)
        found = np.zeros(len(rows), PLACE)
        found["document"] = self._file.rows("ids", 16, self.owners[rows]).view("V16")[:, 0]
        for name in ("page", "start", "end", "section_start", "section_end"):
            found[name] = passages[name]
        return found

    def document_id(self, owner: int) -> str:
        return self._file.read("ids", 16 * owner, 16).hex()

    def document_ids(self) -> frozenset[str]:
        """Of all its documents, with those that were deleted since."""
        ids = self._file.read("ids").hex()
        return frozenset(ids[at : at + 32] for at in range(0, len(ids), 32))

    def piece(self, row: int) -> Piece:
        """Raises StoreDamaged."""
        return self._piece(self._passages(np.array([row], np.uint32))[0])

    def passage(self, row: int) -> tuple[Span, str]:
        """A passage's place in its document, and its text. Raises StoreDamaged."""
        found = self._passages(np.array([row], np.uint32))[0]
        text = self._text(int(found["text_start"]), int(found["text_end"]))
        return Span(int(found["page"]), int(found["start"]), int(found["end"])), text

    def around(self, row: int, document: Row | None, characters: int) -> tuple[str, int]:
        """What a passage stands in, as `search.Unit` says. Raises StoreDamaged."""
        found = self._passages(np.array([row], np.uint32))[0]
        first, last = int(found["section_text_start"]), int(found["section_text_end"])
        if document:
            first, last = _page_place(document, int(found["page"]))
        at, margin = int(found["text_start"]), _MOST_BYTES * characters
        start = max(first, at - margin)
        read = self._file.read("text", start, min(last, int(found["text_end"]) + margin) - start)
        return _decoded(read), len(_decoded(read[: at - start]))

    def pages(self, row: Row) -> tuple[str, ...]:
        """The text of a document by page. Raises StoreDamaged."""
        ends = np.cumsum([0, *row.page_bytes]).tolist()
        text = self._file.read("text", row.text_start, ends[-1])
        return tuple(text[start:end].decode() for start, end in pairwise(ends))

    def blocks(self, row: Row) -> tuple[Block, ...]:
        """What its parser saw of a document. Raises StoreDamaged."""
        size = BLOCK.itemsize

        def owner(at: int) -> int:
            return int.from_bytes(self._file.read("blocks", at * size, 4), "little")

        numbers = range(self._file.size("blocks") // size)
        first, last = (bisect_left(numbers, ordinal, key=owner) for ordinal in (row.ordinal, row.ordinal + 1))
        return _blocks(np.frombuffer(self._file.read("blocks", first * size, (last - first) * size), BLOCK))

    def page(self, row: Row, page: int) -> str:
        """The text of one page, from 1. Raises StoreDamaged."""
        return self._text(*_page_place(row, page))

    def text(self, row: Row, span: Span) -> str | None:
        """The text of a document's span, None where its page ends before; read from the passage before it on.

        Raises StoreDamaged.
        """
        at, end = _page_place(row, span.page)
        start = 0
        rows = range(*np.searchsorted(self.owners, np.array([row.ordinal, row.ordinal + 1], np.uint32)).tolist())
        behind = bisect_right(rows, (span.page, span.start), key=lambda row: self._passage_at(row)[:2])
        page, known, byte = self._passage_at(rows[behind - 1]) if behind else (0, 0, 0)
        if page == span.page and known <= span.start:
            start, at = known, byte
        text = _decoded(self._file.read("text", at, min(_MOST_BYTES * (span.end - start), end - at)))
        return text[span.start - start : span.end - start] if len(text) >= span.end - start else None

    def _passage_at(self, row: int) -> tuple[int, int, int]:
        """The page of a passage, and its start there and in the text section."""
        found = self._passages(np.array([row], np.uint32))[0]
        return int(found["page"]), int(found["start"]), int(found["text_start"])

    def entries(self, rows: Sequence[Row]) -> Iterator[Entry]:
        """Some of its documents whole, for the segment that follows. Raises StoreDamaged."""
        halves = np.frombuffer(self._file.read("vec_f16"), "<f2").reshape(self.rows, -1)
        passages = self._passages(np.arange(self.rows, dtype=np.uint32))
        owners, blocks = self.owners, np.frombuffer(self._file.read("blocks"), BLOCK)
        for row in rows:
            first, last = np.searchsorted(owners, [row.ordinal, row.ordinal + 1])
            pages = self.pages(row)
            pieces = tuple(self._piece(one) for one in passages[first:last])
            seen = slice(*np.searchsorted(blocks["owner"], [row.ordinal, row.ordinal + 1]))
            vectors_ = halves[first:last].astype(np.float32)
            yield Entry(row.document, pages, pieces, vectors_, blocks=_blocks(blocks[seen]))

    def _passages(self, rows: NDArray[np.uint32]) -> NDArray[np.void]:
        """Their records; a passage of an older segment is its own section."""
        if not self._is_old:
            return self._file.rows("passages", PASSAGE.itemsize, rows).view(PASSAGE)[:, 0]
        spans = self._file.rows("spans", SPAN.itemsize, rows).view(SPAN)[:, 0]
        found = np.zeros(len(spans), PASSAGE)
        for name in ("page", "start", "end", "text_start", "text_end"):
            found[name] = spans[name]
        for name in ("start", "end", "text_start", "text_end"):
            found[f"section_{name}"] = spans[name]
        return found

    def _piece(self, found: np.void) -> Piece:
        page, start, end, section_start, section_end, *texts = (int(value) for value in found.tolist()[:9])
        heading, repeated = (self._string(*place) for place in (texts[:2], texts[2:]))
        return Piece(Span(page, start, end), (section_start, section_end), heading, repeated)

    def _string(self, start: int, end: int) -> str:
        return self._file.read("strings", start, end - start).decode() if end > start else ""

    def _text(self, start: int, end: int) -> str:
        return self._file.read("text", start, end - start).decode()
