"""What readers see of a collection: its units and its catalogue, which change together and are taken together.

A search never waits for embedding, for the disk or for sealing, and never sees half a change: what is published is held
for milliseconds only, and whoever took a snapshot keeps seeing what was there.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from threading import Lock

from appliance.errors import NotFound
from appliance.knowledge.catalog import MEMTABLE, Catalog, Places, Row
from appliance.knowledge.memtable import Memtable
from appliance.knowledge.sealed import Sealed
from appliance.knowledge.search.filter import Condition
from appliance.knowledge.search.rank import Unit
from appliance.knowledge.storage.record import Entry
from appliance.types import Block, Document, FacetCount, Span

_REMEMBERED_BYTES = 16 << 20


@dataclass(frozen=True)
class Snapshot:
    """What a reader sees, and holds for as long as it likes. embedder: the identity of what made its vectors."""

    segments: tuple[Sealed, ...]
    memtable: Memtable
    embedder: str
    version: str

    @property
    def units(self) -> tuple[Unit, ...]:
        return (*self.segments, *self.memtable.blocks)

    def segment(self, number: int) -> Sealed:
        return next(segment for segment in self.segments if segment.number == number)

    def unit(self, segment: int, ordinal: int) -> Unit:
        """Where a document lies."""
        if segment != MEMTABLE:
            return self.segment(segment)
        return next(block for block in self.memtable.blocks if ordinal < block.first_ordinal + block.documents)

    def pages(self, row: Row) -> tuple[str, ...]:
        """The text of a document by page. Raises StoreDamaged."""
        if row.segment == MEMTABLE:
            return self.memtable.entry(row.ordinal).pages
        return self.segment(row.segment).pages(row)

    def blocks(self, row: Row) -> tuple[Block, ...]:
        """What its parser saw of a document. Raises StoreDamaged."""
        if row.segment == MEMTABLE:
            return self.memtable.entry(row.ordinal).blocks
        return self.segment(row.segment).blocks(row)

    def page(self, row: Row, page: int) -> str:
        """The text of one page, from 1. Raises NotFound where the document has no such page; StoreDamaged."""
        if not 1 <= page <= row.document.page_count:
            raise NotFound(f"Document {row.document.id} has no page {page}.")
        if row.segment == MEMTABLE:
            return self.memtable.entry(row.ordinal).pages[page - 1]
        return self.segment(row.segment).page(row, page)

    def text(self, row: Row, span: Span) -> str:
        """The text of a span. Raises NotFound where the document has no such page or range; StoreDamaged."""
        if 1 <= span.page <= row.document.page_count and 0 <= span.start <= span.end:
            if row.segment == MEMTABLE:
                page = self.memtable.entry(row.ordinal).pages[span.page - 1]
                found = page[span.start : span.end] if span.end <= len(page) else None
            else:
                found = self.segment(row.segment).text(row, span)
            if found is not None:
                return found
        where = f"Page {span.page} of document {row.document.id}"
        raise NotFound(f"{where} has no characters {span.start} to {span.end}.")

    def entries(self, rows: Iterable[Row]) -> Iterator[Entry]:
        """Documents whole, as their rows say; those of a segment one after another. Raises StoreDamaged."""
        for number, of_segment in groupby(rows, key=attrgetter("segment")):
            if number == MEMTABLE:
                entries = self.memtable.entries
                yield from (replace(entries[row.ordinal], document=row.document, replaces="") for row in of_segment)
            else:
                yield from self.segment(number).entries(tuple(of_segment))


class Published:
    """A collection's catalogue and snapshot. Safe to use from many threads."""

    def __init__(self, name: str, catalog: Catalog, snapshot: Snapshot) -> None:
        self._name, self._catalog, self._snapshot = name, catalog, snapshot
        self._lock = Lock()
        self._places: OrderedDict[tuple[frozenset[str], Condition | None], Places] = OrderedDict()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @contextmanager
    def catalog(self) -> Iterator[Catalog]:
        """For reading; hold it shortly."""
        with self._lock:
            yield self._catalog

    def stage(self, rows: Sequence[Row]) -> None:
        """Prepare `Catalog.move`. One writer at a time."""
        self._catalog.stage(rows)

    def publish(self, change: Callable[[Catalog], None], snapshot: Snapshot) -> None:
        """Change the catalogue and the snapshot in the same instant."""
        with self._lock:
            change(self._catalog)
            self._snapshot = snapshot
            self._places = OrderedDict()  # who computes places of the former snapshot keeps them with that

    def pin(
        self, groups: frozenset[str], condition: Condition | None = None, facets: Sequence[str] = ()
    ) -> tuple[Snapshot, Places, Mapping[str, tuple[FacetCount, ...]]]:
        """What there is, where in it lies what the groups may read, and the counts of some fields' values over that.

        Raises InvalidArgument where the condition or the facets take too long; nobody waits for them.
        """
        asked = groups, condition
        with self._lock:
            snapshot, remembered = self._snapshot, self._places
            places = remembered.get(asked)
            if places is not None and not facets:
                remembered.move_to_end(asked)
                return snapshot, places, {}
            instant = self._catalog.instant(groups, condition, facets)
        with instant:
            counts = instant.facets()
            places = places or instant.places()
        with self._lock:
            remembered[asked] = places
            while len(remembered) > 1 and sum(one.size_bytes for one in remembered.values()) > _REMEMBERED_BYTES:
                remembered.popitem(last=False)
        return snapshot, places, counts

    def documents(
        self, groups: frozenset[str] | None, condition: Condition | None, after: tuple[str, str] | None, limit: int
    ) -> tuple[Document, ...]:
        """See `Instant.documents`. Raises InvalidArgument."""
        with self._lock:
            instant = self._catalog.instant(groups, condition)
        with instant:
            return instant.documents(after, limit)

    def locate(self, document: str, groups: frozenset[str] | None) -> tuple[Row, Snapshot]:
        """groups None: whoever may read it. Raises NotFound."""
        with self._lock:
            row, snapshot = self._catalog.get(document, groups), self._snapshot
        if row is None:
            raise NotFound(f"Collection {self._name} has no document {document}.")
        return row, snapshot

    def held(self, numbers: Iterable[int] | None = None) -> tuple[Snapshot, list[Row]]:
        """The documents of some segments, by default of all and of the memtable, and the snapshot that they lie in."""
        with self._lock:
            snapshot, instant = self._snapshot, self._catalog.instant(None)
        with instant:
            if numbers is None:
                numbers = (*(segment.number for segment in snapshot.segments), MEMTABLE)
            return snapshot, [row for number in numbers for row in instant.of_segment(number)]
