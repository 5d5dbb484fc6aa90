"""What a segment's sections hold, and a segment opened for searching.

    rows      Parquet: a row a document, in the order of its ordinals (catalog.py)
    text      UTF-8 of all pages, one after another
    spans     a record a passage (SPAN): its document's ordinal, page, [start, end) in code points of the page, and the
              same range as bytes of `text`
    postings  lexical.Postings
    vec_i8, vec_f16, graph   vectors.VectorIndex

Postings, spans and vectors stay in memory while the segment is open; rows go to the catalogue; text is read by range.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.catalog import Row, to_parquet
from appliance.knowledge.lexical import Postings
from appliance.knowledge.memtable import passage_texts
from appliance.knowledge.record import Entry
from appliance.knowledge.segment import SegmentFile
from appliance.knowledge.vectors import VectorIndex
from appliance.types import Bools, Floats, Span

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
        "rows": to_parquet(rows),
        "text": "".join(page for entry in entries for page in entry.pages).encode(),
        "spans": _to_spans(entries, rows).tobytes(),
        "postings": Postings.build([text for entry in entries for text in passage_texts(entry)]).to_bytes(),
        **VectorIndex.build(vectors).sections(),
    }


def _to_spans(entries: Sequence[Entry], rows: Sequence[Row]) -> NDArray[np.void]:
    found = [
        (row.ordinal, span.page, span.start, span.end, *_text_range(entry, row, span))
        for entry, row in zip(entries, rows, strict=True)
        for span in entry.spans
    ]
    return np.array(found, SPAN)


def _text_range(entry: Entry, row: Row, span: Span) -> tuple[int, int]:
    page = entry.pages[span.page - 1]
    start = row.page_ends[span.page - 1] + len(page[: span.start].encode())
    return start, start + len(page[span.start : span.end].encode())


class Sealed:
    """A segment, searchable; a `search.Unit`. Immutable; safe to use from many threads."""

    first_ordinal = 0

    def __init__(self, number: int, documents: int, file: SegmentFile) -> None:
        """Raises StoreDamaged, naming the file."""
        self.number = number
        self.documents = documents
        self._file = file
        try:
            self._spans = np.frombuffer(file.read("spans"), SPAN)
            self.postings = Postings.from_bytes(file.read("postings"))
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
        return self._vectors.search(query, allowed, k)

    def passage(self, row: int) -> tuple[Span, str]:
        """A passage's place in its document, and its text. Raises StoreDamaged."""
        _, page, start, end, text_start, text_end = self._spans[row].tolist()
        return Span(page, start, end), self._file.read("text", text_start, text_end - text_start).decode()

    def pages(self, row: Row) -> tuple[str, ...]:
        """The text of a document by page. Raises StoreDamaged."""
        first = row.page_ends[0]
        text = self._file.read("text", first, row.page_ends[-1] - first)
        ends = [end - first for end in row.page_ends]
        return tuple(text[start:end].decode() for start, end in zip(ends, ends[1:], strict=False))

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
