"""One collection, open: documents added, deleted, sealed, compacted, found.

One writer at a time writes to the disk (`_writing`). What readers see changes only under `_publishing`, which is held
for milliseconds: the catalogue and the snapshot change together, and a reader takes both together, so that a search
never waits for embedding, for the disk or for sealing, and never sees half a change.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from threading import Lock, RLock

import numpy as np
import structlog

from appliance import types
from appliance.errors import ApplianceError, Broken, DocumentRefused, EmbedderChanged, NotFound
from appliance.knowledge import chunk
from appliance.knowledge.catalog import MEMTABLE, Catalog, Places, Row
from appliance.knowledge.compact import Shape, due, plan
from appliance.knowledge.memtable import Memtable
from appliance.knowledge.sealed import Sealed, to_rows, to_sections
from appliance.knowledge.search import view
from appliance.knowledge.search.filter import Condition
from appliance.knowledge.search.rank import Query, Unit, candidates
from appliance.knowledge.search.snippet import snippet
from appliance.knowledge.storage.manifest import SegmentEntry
from appliance.knowledge.storage.pin import Pinned
from appliance.knowledge.storage.record import Deletion, Entry, to_stored_precision
from appliance.knowledge.storage.store import Store
from appliance.ports import Embedder
from appliance.types import Bools, Document, Expand, Found, NewDocument, Passage, Ranking, SearchOptions, Span

log = structlog.get_logger()

FULL_SEGMENT_SEALS = 4
"""Compaction puts as many sealed memtables together into one segment."""

_REMEMBERED_GROUPS = 64
_PLAIN = SearchOptions()
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Snapshot:
    """What a reader sees, and holds for as long as it likes."""

    segments: tuple[Sealed, ...]
    memtable: Memtable

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


@dataclass(frozen=True)
class _Written:
    """A segment on the disk that no manifest names yet."""

    entry: SegmentEntry
    sealed: Sealed
    rows: Sequence[Row]


class Collection:
    """Safe to use from many threads. `groups`: documents whose readers share none with them do not exist."""

    def __init__(self, name: str, store: Store, embedder: Embedder, seal_passages: int) -> None:
        """Raises StoreDamaged, naming the file."""
        self.name = name
        self._store, self._embedder, self._seal_passages = store, embedder, seal_passages
        self._writing, self._publishing, self._compacting = RLock(), Lock(), Lock()
        self._dropped = False
        self._numbers = count(1 + max((entry.number for entry in store.manifest.segments), default=MEMTABLE))
        self._readable: dict[frozenset[str], Places] = {}
        self._deleted = store.manifest.deleted
        segments = tuple(map(store.open_segment, store.manifest.segments))
        parquets = {segment.number: segment.parquet() for segment in segments}
        self._catalog = Catalog(name, parquets, self._deleted)
        self._snapshot = Snapshot(segments, self._replay())

    def _replay(self) -> Memtable:
        entries: list[Entry] = []
        deleted: set[str] = set()
        for record in self._store.replay():
            if isinstance(record, Deletion):
                deleted.add(record.document)
            else:
                entries.append(record)
        self._deleted |= deleted
        self._catalog.add([Row(entry.document, MEMTABLE, ordinal) for ordinal, entry in enumerate(entries)])
        self._catalog.remove(sorted(deleted))
        return Memtable.of(entries)

    def describe(self) -> types.Collection:
        with self._publishing:
            documents, passages = self._catalog.counts()
        return types.Collection(self.name, documents, passages, self._store.size_bytes, self._store.create_time)

    # --- reading

    def find(self, sha256: str, pipeline: str) -> Document | None:
        with self._publishing:
            row = self._catalog.find(sha256, pipeline)
        return row.document if row else None

    def documents(self, groups: frozenset[str]) -> tuple[Document, ...]:
        with self._publishing:
            return self._catalog.list(groups)

    def get(self, document: str, groups: frozenset[str]) -> Document:
        """Raises NotFound."""
        return self._locate(document, groups)[0].document

    def pages(self, document: str, groups: frozenset[str]) -> tuple[str, ...]:
        """Raises NotFound, StoreDamaged."""
        row, snapshot = self._locate(document, groups)
        if row.segment == MEMTABLE:
            return snapshot.memtable.entry(row.ordinal).pages
        return snapshot.segment(row.segment).pages(row)

    def page(self, document: str, page: int, groups: frozenset[str]) -> str:
        """Raises NotFound, also where the document has no such page; StoreDamaged."""
        row, snapshot = self._locate(document, groups)
        if not 1 <= page <= row.document.page_count:
            raise NotFound(f"Document {document} has no page {page}.")
        if row.segment == MEMTABLE:
            return snapshot.memtable.entry(row.ordinal).pages[page - 1]
        return snapshot.segment(row.segment).page(row, page)

    def text(self, document: str, span: Span, groups: frozenset[str]) -> str:
        """Raises NotFound, also where the document has no such page or range; StoreDamaged."""
        page = self.page(document, span.page, groups)
        if not 0 <= span.start <= span.end <= len(page):
            raise NotFound(f"Page {span.page} of document {document} has no characters {span.start} to {span.end}.")
        return page[span.start : span.end]

    def search(self, query: str, groups: frozenset[str], limit: int, options: SearchOptions = _PLAIN) -> Found:
        """Raises InvalidArgument, EmbedderChanged, StoreDamaged."""
        ranking = self.rank(query, groups, limit, options)
        return Found(self.show(query, groups, ranking, options), ranking.facets)

    def rank(self, query: str, groups: frozenset[str], limit: int, options: SearchOptions = _PLAIN) -> Ranking:
        """Raises InvalidArgument, EmbedderChanged, StoreDamaged."""
        condition = view.condition_of(limit, options)
        self._check_embedder()
        asked = Query.asked(query, options.legs, self._embedder)
        snapshot, places = self._pin(groups, condition)

        def readable(unit: Unit) -> Bools:
            return places.mask(unit.number, unit.first_ordinal, unit.documents)

        return view.to_ranking(candidates(snapshot.units, readable, asked, limit), options, {})

    def show(
        self, query: str, groups: frozenset[str], ranking: Ranking, options: SearchOptions = _PLAIN
    ) -> tuple[Passage, ...]:
        """Raises StoreDamaged."""
        owners = [bytes(document).hex() for document in ranking.candidates["document"]]
        with self._publishing:
            present, snapshot = self._catalog.places(owners, groups), self._snapshot
        marked = view.query_terms(query)
        shown: list[Passage] = []
        for candidate, owner in zip(ranking.candidates, owners, strict=True):
            if owner not in present:  # deleted since it was ranked, or no longer for these groups
                continue
            title, segment, ordinal = present[owner]
            span, unit = view.span(candidate), snapshot.unit(segment, ordinal)
            with suppress(NotFound):
                text = view.stored(unit, ordinal, span) or self.text(owner, span, groups)
                page = "" if options.expand is Expand.NONE else self.page(owner, span.page, groups)
                passage = Passage(
                    f"collections/{self.name}/documents/{owner}",
                    title,
                    span,
                    text,
                    float(candidate["fused"]),
                    snippet(text, marked),
                    view.context(page, candidate, options.expand),
                    view.explanation(candidate, ranking.meaning_weight) if options.explain else None,
                )
                shown.append(passage)
        return tuple(shown)

    def export(self) -> tuple[types.Collection, Iterator[NewDocument]]:
        """What it is, and all its documents as of this call, whoever may read them; one at a time in memory.

        Iterating raises StoreDamaged, and NotFound once the collection was dropped.
        """
        with self._publishing:
            snapshot, (documents, passages) = self._snapshot, self._catalog.counts()
            numbers = (*(segment.number for segment in snapshot.segments), MEMTABLE)
            rows = [row for number in numbers for row in self._catalog.of_segment(number)]
        whole = types.Collection(self.name, documents, passages, self._store.size_bytes, self._store.create_time)
        return whole, (self._to_new(row, snapshot) for row in rows)

    def _to_new(self, row: Row, snapshot: Snapshot) -> NewDocument:
        self._check_alive()
        if row.segment == MEMTABLE:
            pages = snapshot.memtable.entry(row.ordinal).pages
        else:
            pages = snapshot.segment(row.segment).pages(row)
        same = NewDocument.__dataclass_fields__.keys() & Document.__dataclass_fields__.keys()
        return NewDocument(**{name: getattr(row.document, name) for name in same}, pages=pages)

    def pin_files(self) -> Pinned:
        """The files that the collection consists of as of this call, open. Raises NotFound, DiskFull, StoreDamaged."""
        with self._writing:
            self._check_alive()
            return self._store.pin()

    def _locate(self, document: str, groups: frozenset[str]) -> tuple[Row, Snapshot]:
        with self._publishing:
            row, snapshot = self._catalog.get(document, groups), self._snapshot
        if row is None:
            raise NotFound(f"Collection {self.name} has no document {document}.")
        return row, snapshot

    def _pin(self, groups: frozenset[str], condition: Condition | None = None) -> tuple[Snapshot, Places]:
        with self._publishing:
            if condition:
                return self._snapshot, self._catalog.readable(groups, condition)
            places = self._readable.get(groups)
            if places is None:
                if len(self._readable) >= _REMEMBERED_GROUPS:
                    self._readable.clear()
                places = self._readable[groups] = self._catalog.readable(groups)
            return self._snapshot, places

    # --- writing

    def add(self, new: NewDocument) -> Document:
        """Raises DocumentRefused, EmbedderChanged, DiskFull. The present document where the same was added before."""
        self._check_embedder()
        if present := self.find(new.sha256, new.pipeline):
            return present
        entry = self._to_entry(new)
        with self._writing:
            self._check_alive()
            if present := self.find(new.sha256, new.pipeline):
                return present
            self._store.append(entry)
            self._publish(
                lambda: self._catalog.add([Row(entry.document, MEMTABLE, self._snapshot.memtable.documents)]),
                replace(self._snapshot, memtable=self._snapshot.memtable.with_entry(entry)),
            )
            self._seal_if_full()
        return entry.document

    def delete(self, document: str, groups: frozenset[str]) -> None:
        """Raises NotFound, DiskFull."""
        with self._writing:
            self._check_alive()
            self._locate(document, groups)
            self._store.append(Deletion(document))
            self._deleted |= {document}
            self._publish(lambda: self._catalog.remove([document]), self._snapshot)

    def compact(self) -> None:
        """Raises DiskFull, StoreDamaged; the collection is then as it was."""
        with self._compacting:
            with self._writing:
                self._check_alive()
                self._seal()
            for group in plan(self._shapes(), self._full_passages):
                self._rewrite(frozenset(group))

    def compact_if_due(self) -> None:
        """Rewrite the segments for which it is worth it by now; a compaction that runs already is enough.

        Raises as compact.
        """
        if not self._compacting.acquire(blocking=False):
            return
        try:
            for group in plan(self._shapes(), self._full_passages, due):
                self._rewrite(frozenset(group))
        finally:
            self._compacting.release()

    @property
    def _full_passages(self) -> int:
        return FULL_SEGMENT_SEALS * self._seal_passages

    def drop(self, destroy: Callable[[], None]) -> None:
        """Let nobody write any more, then run `destroy`; whether or not it succeeds."""
        with self._writing:
            self._dropped = True
            self.close()
            destroy()

    def close(self) -> None:
        with self._writing:
            self._store.close()

    def _to_entry(self, new: NewDocument) -> Entry:
        if any(_SURROGATE.search(text) for text in (new.title, new.source, *new.pages)):
            raise DocumentRefused("NOT_UNICODE", f"{new.title!a} holds characters that are not Unicode text.")
        spans = tuple(chunk.passages(new.pages))
        if not spans:
            raise DocumentRefused("NO_TEXT", f"{new.title} holds no text.")
        vectors = to_stored_precision(
            self._embedder.embed([new.pages[span.page - 1][span.start : span.end] for span in spans])
        )
        if not np.isfinite(vectors).all():
            raise Broken("The embedder gave a vector with a value that is no number.")
        document = Document(
            id=secrets.token_hex(16),
            collection=self.name,
            title=new.title,
            media_type=new.media_type,
            sha256=new.sha256,
            size_bytes=new.size_bytes,
            source=new.source,
            parser=new.parser,
            pipeline=new.pipeline,
            page_count=len(new.pages),
            passage_count=len(spans),
            readers=new.readers,
            create_time=new.create_time or datetime.now(UTC),
        )
        return Entry(document, new.pages, spans, vectors)

    def _seal_if_full(self) -> None:
        if self._snapshot.memtable.passages >= self._seal_passages:
            try:
                self._seal()
            except ApplianceError as error:  # what was added is safe in the log; the next document tries again
                log.warning("seal_failed", collection=self.name, reason=error.reason, error=str(error))

    def _seal(self) -> None:
        """The memtable becomes a segment."""
        memtable = self._snapshot.memtable
        if not memtable.blocks and not self._store.manifest.wals:
            return
        entries = [entry for entry in memtable.entries if entry.document.id not in self._deleted]
        written = self._write(entries)
        self._install(frozenset(), written, {entry.document.id for entry in memtable.entries}, drop_logs=True)

    def _shapes(self) -> list[Shape]:
        with self._publishing:
            live, segments = self._catalog.passages_of_segments(), self._snapshot.segments
        return [Shape(segment.number, segment.rows, live.get(segment.number, 0)) for segment in segments]

    def _rewrite(self, group: frozenset[int]) -> None:
        """One segment, or none, in place of those. What is deleted meanwhile stays deleted."""
        with self._publishing:
            old = [segment for segment in self._snapshot.segments if segment.number in group]
            rows = {segment.number: self._catalog.of_segment(segment.number) for segment in old}
        entries = [entry for segment in old for entry in segment.entries(rows[segment.number])]
        held = {document for segment in old for document in segment.document_ids()}
        written = self._write(entries)
        with self._writing:
            self._check_alive()
            self._install(group, written, held - {entry.document.id for entry in entries}, drop_logs=False)

    def _write(self, entries: list[Entry]) -> _Written | None:
        """A segment of these documents that is not part of the collection yet; None for no documents."""
        if not entries:
            return None
        number = next(self._numbers)
        rows = to_rows(entries, number)
        written = self._store.write_segment(to_sections(entries, rows), number, entries)
        return _Written(written, self._store.open_segment(written), rows)

    def _install(self, old: frozenset[int], written: _Written | None, gone: set[str], *, drop_logs: bool) -> None:
        """Commit a segment in place of old ones or of the memtable. gone: documents that then lie nowhere."""
        entries = [entry for entry in self._store.manifest.segments if entry.number not in old]
        segments = [segment for segment in self._snapshot.segments if segment.number not in old]
        if written:
            entries.append(written.entry)
            segments.append(written.sealed)
        deleted = self._deleted - gone
        self._store.commit(tuple(entries), deleted, drop_logs=drop_logs)
        self._deleted = deleted
        memtable = Memtable() if drop_logs else self._snapshot.memtable
        self._publish(lambda: self._catalog.move(written.rows if written else ()), Snapshot(tuple(segments), memtable))

    def _publish(self, change: Callable[[], None], snapshot: Snapshot) -> None:
        with self._publishing:
            change()
            self._snapshot = snapshot
            self._readable.clear()

    def _check_embedder(self) -> None:
        pinned, present = self._store.manifest, self._embedder
        if (pinned.embedder, pinned.dimension) != (present.identity, present.dimension):
            raise EmbedderChanged(
                f"Collection {self.name} was made with embedder {pinned.embedder[:16]} ({pinned.dimension} dimensions);"
                f" the box now has {present.identity[:16]} ({present.dimension} dimensions)."
            )

    def _check_alive(self) -> None:
        if self._dropped:
            raise NotFound(f"There is no collection {self.name}.")
