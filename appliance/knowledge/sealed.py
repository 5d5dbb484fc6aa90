"""What a segment's sections hold, and a segment opened for searching.

    ids       16 bytes a document, in the order of its ordinals
    rows      Parquet: a row a document, in the same order (catalog.py)
    text      UTF-8 of all pages, one after another
    spans     a record a passage (SPAN): its document's ordinal, page, [start, end) in code points of the page, and the
              same range as bytes of `text`
    postings, positions      inverted_file.py
    vec_i8, vec_f16, graph   vectors.VectorIndex

Postings, spans and vectors stay in memory while the segment is open; rows go to the catalogue; text is read by range.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.catalog import Row, to_parquet
from appliance.knowledge.index import inversion, postings
from appliance.knowledge.index.postings import Postings
from appliance.knowledge.index.vectors import VectorIndex
from appliance.knowledge.storage.record import Entry
from appliance.knowledge.storage.segment import SegmentFile
from appliance.types import PLACE, Bools, Floats, Span

SPAN = np.dtype(
    [("owner", "<u4"), ("page", "<u4"), ("start", "<u4"), ("end", "<u4"), ("text_start", "<u8"), ("text_end", "<u8")]
)
_VECTOR_SECTIONS = ("vec_i8", "vec_f16", "graph")


def to_rows(entries: Sequence[Entry], segment: int) -> list[Row]:
    """The catalogue rows of the documents once they lie in that segment, in this order."""
    rows: list[Row] = []
    end = 0
    for ordinal, entry in enumerate(entries):
        ends = [end := end + len(page.encode()) for page in entry.pages]
        start = ends[0] - len(entry.pages[0].encode()) if ends else end
        rows.append(Row(entry.document, segment, ordinal, (start, *ends)))
    return rows


def to_sections(entries: Sequence[Entry], rows: Sequence[Row]) -> dict[str, bytes]:
    """The sections of a segment of these documents; rows: of `to_rows`."""
    vectors = np.concatenate([entry.vectors for entry in entries])
    return {
        "ids": b"".join(bytes.fromhex(entry.document.id) for entry in entries),
        "rows": to_parquet(rows),
        "text": "".join(page for entry in entries for page in entry.pages).encode(),
        "spans": _to_spans(entries, rows).tobytes(),
        **postings.to_sections([inversion.Row(text) for entry in entries for text in entry.passages()]),
        **VectorIndex.build(vectors).sections(),
    }


def _to_spans(entries: Sequence[Entry], rows: Sequence[Row]) -> NDArray[np.void]:
    found = [
        (row.ordinal, span.page, span.start, span.end, page_start + start, page_start + end)
        for entry, row in zip(entries, rows, strict=True)
        for span, (start, end) in zip(entry.spans, _byte_ranges(entry), strict=True)
        for page_start in [row.page_ends[span.page - 1]]
    ]
    return np.array(found, SPAN)


def _byte_ranges(entry: Entry) -> Iterator[tuple[int, int]]:
    """Each span as UTF-8 bytes of its page; linear, because the spans of a page are in order."""
    page, at, at_bytes = 0, 0, 0
    for span in entry.spans:
        text = entry.pages[span.page - 1]
        if span.page != page or span.start < at:
            page, at, at_bytes = span.page, 0, 0
        start = at_bytes + len(text[at : span.start].encode())
        at, at_bytes = span.end, start + len(text[span.start : span.end].encode())
        yield start, at_bytes


class Sealed:
    """A segment, searchable; a `search.Unit`. Immutable; safe to use from many threads."""

    first_ordinal = 0

    def __init__(self, number: int, documents: int, file: SegmentFile) -> None:
        """Raises StoreDamaged, naming the file."""
        self.number = number
        self.documents = documents
        self._file = file
        try:
            self._ids = file.read("ids")
            self._spans = np.frombuffer(file.read("spans"), SPAN)
            self.postings = Postings(file.read("postings"), partial(file.read, "positions"))
            self._vectors = VectorIndex.from_sections(
                {name: file.read(name) for name in _VECTOR_SECTIONS if file.size(name)}
            )
        except (StoreDamaged, ValueError) as error:
            raise StoreDamaged(f"{file.path} is damaged: {error}") from None
        self.rows = len(self._spans)
        self.owners: NDArray[np.uint32] = np.ascontiguousarray(self._spans["owner"])

    def parquet(self) -> bytes:
        """The catalogue rows of its documents."""
        return self._file.read("rows")

    def nearest(self, query: Floats, allowed: Bools, k: int) -> tuple[NDArray[np.uint32], Floats]:
        """The k best allowed rows by cosine, best first."""
        # None spares the graph a call of Python for each row that it visits
        return self._vectors.search(query, None if allowed.all() else allowed, k)

    def vectors(self, rows: NDArray[np.uint32]) -> Floats:
        """Of some rows, float32 [len(rows), dimension]. Raises StoreDamaged."""
        size = self._file.size("vec_f16") // max(self.rows, 1)
        halves = b"".join(self._file.read("vec_f16", row * size, size) for row in rows.tolist())
        return np.frombuffer(halves, "<f2").reshape(len(rows), size // 2).astype(np.float32)

    def document_id(self, owner: int) -> str:
        return self._ids[16 * owner : 16 * owner + 16].hex()

    def places(self, rows: NDArray[np.uint32]) -> NDArray[np.void]:
        """Where some rows stand, as `search.Unit` says."""
        spans = self._spans[rows]
        found = np.zeros(len(rows), PLACE)
        found["document"] = np.frombuffer(self._ids, "V16")[spans["owner"]]
        for name in ("page", "start", "end"):
            found[name] = spans[name]
        return found

    def document_ids(self) -> frozenset[str]:
        """Of all its documents, with those that were deleted since."""
        return frozenset(map(self.document_id, range(self.documents)))

    def passage(self, row: int) -> tuple[Span, str]:
        """A passage's place in its document, and its text. Raises StoreDamaged."""
        _, page, start, end, text_start, text_end = self._spans[row].tolist()
        return Span(page, start, end), self._file.read("text", text_start, text_end - text_start).decode()

    def pages(self, row: Row) -> tuple[str, ...]:
        """The text of a document by page. Raises StoreDamaged."""
        first = row.page_ends[0]
        text = self._file.read("text", first, row.page_ends[-1] - first)
        ends = [end - first for end in row.page_ends]
        return tuple(text[start:end].decode() for start, end in pairwise(ends))

    def page(self, row: Row, page: int) -> str:
        """The text of one page, from 1. Raises StoreDamaged."""
        start, end = row.page_ends[page - 1], row.page_ends[page]
        return self._file.read("text", start, end - start).decode()

    def entries(self, rows: Sequence[Row]) -> Iterator[Entry]:
        """Some of its documents whole, as they were sealed, for the segment that follows. Raises StoreDamaged."""
        halves = np.frombuffer(self._file.read("vec_f16"), "<f2").reshape(self.rows, -1)
        for row in rows:
            first, last = np.searchsorted(self.owners, [row.ordinal, row.ordinal + 1])
            spans = tuple(Span(*span[1:4]) for span in self._spans[first:last].tolist())
            yield Entry(row.document, self.pages(row), spans, halves[first:last].astype(np.float32))
