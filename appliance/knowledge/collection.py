"""One collection, open: documents added, replaced, deleted, shared with others, listed, found.

One writer at a time writes to the disk (`_writing`). What readers see is published in one instant after it is durable
(published.py); what takes long is done beside both (rewrite.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from threading import RLock

import structlog

from appliance import types
from appliance.errors import ApplianceError, DocumentRefused, Draining, EmbedderChanged, InvalidArgument, NotFound
from appliance.knowledge import intake, keyset
from appliance.knowledge.catalog import MEMTABLE, Catalog, Row
from appliance.knowledge.embedders import Embedders
from appliance.knowledge.memtable import Memtable
from appliance.knowledge.published import Snapshot
from appliance.knowledge.rewrite import Rewriter, opened
from appliance.knowledge.sealed import page_bytes
from appliance.knowledge.search import view
from appliance.knowledge.search.filter import Condition, parse
from appliance.knowledge.search.rank import Query, Unit, candidates
from appliance.knowledge.search.snippet import snippet
from appliance.knowledge.storage.pin import Pinned
from appliance.knowledge.storage.record import Deletion, Entry, ReadersChange, encode
from appliance.knowledge.storage.store import Store
from appliance.ports import Embedder, Progress
from appliance.types import (
    Bools,
    Document,
    Expand,
    NewDocument,
    Passage,
    Ranking,
    SearchOptions,
    Span,
)

log = structlog.get_logger()

_PLAIN = SearchOptions()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A document that is ready to be written. payload: what the log says of it."""

    entry: Entry
    payload: bytes


class Collection:
    """Safe to use from many threads. `groups`: documents whose readers share none with them do not exist.

    None, where it may be: all exist.
    """

    def __init__(
        self, name: str, store: Store, embedders: Embedders, seal_passages: int, overlap_tokens: int = 0
    ) -> None:
        """overlap_tokens: of running text, see `chunk.pieces`. Raises StoreDamaged, naming the file."""
        self.name = name
        self._store, self._embedders, self._seal_passages = store, embedders, seal_passages
        self._overlap_tokens = overlap_tokens
        self._writing = RLock()
        self._dropped = self._closed = False
        self._published, amendments = opened(name, store)
        self._rewriter = Rewriter(name, store, self._published, amendments, self._writing, self._check_alive)

    # --- reading

    def describe(self, groups: frozenset[str] | None = None) -> types.Collection:
        """Its counts are of what the groups may read; None: of all there is."""
        with self._published.catalog() as catalog:
            documents, passages = catalog.counts(groups)
        return self._described(documents, passages)

    def _described(self, documents: int, passages: int) -> types.Collection:
        store = self._store
        embedder = store.manifest.embedder_name
        return types.Collection(self.name, documents, passages, store.size_bytes, store.create_time, embedder)

    def version(self) -> str:
        """Changes with every acknowledged write that may change an answer; never the same for another content."""
        return self._published.snapshot.version

    def find(self, sha256: str, pipeline: str) -> Document | None:
        with self._published.catalog() as catalog:
            row = catalog.find(sha256, pipeline)
        return row.document if row else None

    def find_file(self, source: str, title: str) -> Document | None:
        with self._published.catalog() as catalog:
            row = catalog.find_file(source, title)
        return row.document if row else None

    def documents(
        self, groups: frozenset[str] | None, condition: str = "", after: str = "", limit: int = 0
    ) -> tuple[tuple[Document, ...], str]:
        """See `ports.Library`. Raises InvalidArgument."""
        if limit < 0:
            raise InvalidArgument.of("limit", "must not be negative.")
        parsed, asked = _condition(condition), (self.name, condition)
        place = keyset.place(after, asked) if after else None
        found = self._published.documents(groups, parsed, place, limit and limit + 1)
        if not limit or len(found) <= limit:
            return found, ""
        return found[:limit], keyset.token(found[limit - 1].title, found[limit - 1].id, asked)

    def get(self, document: str, groups: frozenset[str] | None) -> Document:
        """Raises NotFound."""
        return self._published.locate(document, groups)[0].document

    def pages(self, document: str, groups: frozenset[str]) -> tuple[str, ...]:
        """Raises NotFound, StoreDamaged."""
        row, snapshot = self._published.locate(document, groups)
        return snapshot.pages(row)

    def page(self, document: str, page: int, groups: frozenset[str]) -> str:
        """Raises NotFound, also where the document has no such page; StoreDamaged."""
        row, snapshot = self._published.locate(document, groups)
        return snapshot.page(row, page)

    def text(self, document: str, span: Span, groups: frozenset[str]) -> str:
        """Raises NotFound, also where the document has no such page or range; StoreDamaged."""
        row, snapshot = self._published.locate(document, groups)
        return snapshot.text(row, span)

    def rank(self, query: str, groups: frozenset[str], limit: int, options: SearchOptions = _PLAIN) -> Ranking:
        """Raises InvalidArgument, EmbedderChanged, StoreDamaged."""
        condition = view.condition_of(limit, options)
        while True:
            embedder = self._embedder()
            asked = Query.asked(query, options.legs, embedder)
            snapshot, places, facets = self._published.pin(groups, condition, options.facets)
            if snapshot.embedder == embedder.identity:
                break  # else all was embedded anew since the query was

        def readable(unit: Unit) -> Bools:
            return places.mask(unit.number, unit.first_ordinal, unit.documents)

        found = candidates(snapshot.units, readable, asked, view.candidates_for(limit, options))
        return view.to_ranking(found, limit, options, facets)

    def show(
        self, query: str, groups: frozenset[str], ranking: Ranking, options: SearchOptions = _PLAIN
    ) -> tuple[Passage, ...]:
        """Raises StoreDamaged."""
        owners = [bytes(document).hex() for document in ranking.candidates["document"]]
        with self._published.catalog() as catalog:
            present, snapshot = catalog.places(owners, groups), self._published.snapshot
        located = cache(lambda owner: self._published.locate(owner, groups))
        page = cache(lambda owner, number: self.page(owner, number, groups))
        shown: list[Passage] = []
        marked = view.query_words(query)
        for candidate, owner in zip(ranking.candidates, owners, strict=True):
            if owner not in present:  # deleted since it was ranked, or no longer for these groups
                continue
            title, segment, ordinal = present[owner]
            at_page = partial(page, owner, int(candidate["page"]))
            with suppress(NotFound):  # it went after that
                if options.expand is Expand.PAGE:
                    row, seen = located(owner)
                    place = seen.unit(row.segment, row.ordinal), row.ordinal
                else:
                    row, place = None, (snapshot.unit(segment, ordinal), ordinal)
                found = view.read(candidate, *place, options.expand, row, at_page)
                passage = Passage(
                    f"collections/{self.name}/documents/{owner}",
                    title,
                    view.span(candidate),
                    found.text,
                    view.score(candidate),
                    snippet(found.text, marked),
                    found.context,
                    view.explanation(candidate, ranking.meaning_weight) if options.explain else None,
                    found.heading,
                )
                shown.append(passage)
        return tuple(shown)

    def export(self) -> tuple[types.Collection, Iterator[NewDocument]]:
        """What it is, and all its documents as of this call, whoever may read them; one at a time in memory.

        Iterating raises StoreDamaged, and NotFound once the collection was dropped.
        """
        snapshot, rows = self._published.held()
        passages = sum(row.document.passage_count for row in rows)
        return self._described(len(rows), passages), (self._to_new(row, snapshot) for row in rows)

    def _to_new(self, row: Row, snapshot: Snapshot) -> NewDocument:
        self._check_alive()
        same = NewDocument.__dataclass_fields__.keys() & Document.__dataclass_fields__.keys()
        facts = {name: getattr(row.document, name) for name in same}
        return NewDocument(**facts, pages=snapshot.pages(row), blocks=snapshot.blocks(row))

    def pin_files(self) -> Pinned:
        """The files that the collection consists of as of this call, open. Raises NotFound, DiskFull, StoreDamaged."""
        with self._writing:
            self._check_alive()
            return self._store.pin()

    # --- writing

    def add(self, new: NewDocument) -> Document:
        """As `add_all`, and raises DocumentRefused, too."""
        (added,) = self.add_all([new])
        if isinstance(added, DocumentRefused):
            raise added
        return added

    def add_all(
        self, new: Sequence[NewDocument], stop: intake.Stop = intake.never
    ) -> tuple[Document | DocumentRefused, ...]:
        """In the same instant, embedded together and written at once. In the place of a document of which a like one
        was there before stands that one; what a document replaces is gone in the same instant.

        Raises InvalidArgument, NotFound (of what is replaced), EmbedderChanged, Broken, DiskFull, RequestTooLarge;
        Cancelled once `stop` says so.
        """
        for one in new:
            self._check_replaced(one.replaces)
        if all(not one.replaces for one in new):
            present = [self.find(one.sha256, one.pipeline) for one in new]
            if all(present):
                return tuple(filter(None, present))
        while True:
            embedder = self._embedder(background=True)
            entries = intake.to_entries(self.name, new, embedder, self._overlap_tokens, stop)
            prepared = [self._encoded(one) for one in entries]
            with self._writing:
                intake.check_wanted(stop)
                self._check_alive()
                if self._store.manifest.embedder != embedder.identity:
                    continue
                added = self._add_all(prepared)
            self._seal_if_full()
            return added

    def _encoded(self, entry: Entry | DocumentRefused) -> "_Prepared | DocumentRefused":
        if isinstance(entry, DocumentRefused):
            return entry
        try:
            return _Prepared(entry, self._store.encoded(entry))
        except DocumentRefused as refusal:
            return refusal

    def _add_all(self, prepared: Sequence["_Prepared | DocumentRefused"]) -> tuple[Document | DocumentRefused, ...]:
        results: list[Document | DocumentRefused] = []
        added: list[Entry] = []
        payloads: list[bytes] = []
        gone: list[str] = []
        for one in prepared:
            if isinstance(one, DocumentRefused):
                results.append(one)
                continue
            document, replaces = one.entry.document, one.entry.replaces
            if replaces in gone:
                raise NotFound(f"Collection {self.name} has no document {replaces} to replace any more.")
            self._check_replaced(replaces)
            present = self.find(document.sha256, document.pipeline)
            if present and present.id not in (replaces, *gone):
                if replaces:
                    payloads.append(encode(Deletion(replaces)))
                results.append(present)
            else:
                payloads.append(one.payload)
                added.append(one.entry)
                results.append(document)
            gone += [replaces] if replaces else []
        if payloads:
            self._store.append(payloads)
            self._publish_added(added, gone)
        return tuple(results)

    def _publish_added(self, added: Sequence[Entry], gone: Sequence[str]) -> None:
        for replaced in gone:
            self._rewriter.amendments.delete(replaced)
        memtable = self._published.snapshot.memtable
        rows = [Row(one.document, MEMTABLE, at, 0, page_bytes(one)) for at, one in enumerate(added, memtable.end)]

        def change(catalog: Catalog) -> None:
            catalog.remove(gone)
            catalog.add(rows)

        self._publish(change, memtable.with_entries(added))

    def delete(self, document: str, groups: frozenset[str] | None) -> None:
        """Raises NotFound, DiskFull."""
        with self._writing:
            self._check_alive()
            self._published.locate(document, groups)
            self._delete(document)

    def _delete(self, document: str) -> None:
        self._store.append([encode(Deletion(document))])
        self._rewriter.amendments.delete(document)
        self._publish(lambda catalog: catalog.remove([document]), self._published.snapshot.memtable)

    def set_readers(self, document: str, readers: frozenset[str], groups: frozenset[str] | None) -> Document:
        """Who may read it, from the next call on. Raises NotFound, InvalidArgument, DiskFull."""
        readers = intake.checked_readers(readers)
        with self._writing:
            self._check_alive()
            row, snapshot = self._published.locate(document, groups)
            if row.document.readers != readers:
                self._store.append([encode(ReadersChange(document, readers))])
                self._rewriter.amendments.readers[document] = readers
                self._publish(lambda catalog: catalog.set_readers({document: readers}), snapshot.memtable)
            return replace(row.document, readers=readers)

    def compact(self) -> None:
        """Seal, and rewrite all that gains by it. Raises DiskFull, StoreDamaged; the collection is then as it was."""
        self._rewriter.compact()

    def compact_if_due(self) -> None:
        """Rewrite the segments for which it is worth it by now, at a pace that leaves the disk to others.

        Raises as compact.
        """
        self._rewriter.compact_if_due()

    def seal_if_old(self, max_age_seconds: float) -> None:
        """Seal what has been in the log for longer than that; the mark follows the log. Raises DiskFull."""
        with self._writing:
            is_old = self._store.unsealed_seconds > max_age_seconds
        if is_old:
            self._rewriter.seal()
        with self._writing:
            self._check_alive()
            self._store.note_progress()

    def rotate(self) -> None:
        """Another key of the collection in place of its present one. Raises DiskFull, KeyUnavailable, StoreDamaged."""
        with self._writing:
            self._check_alive()
            self._store.rotate()

    def reembed(self, name: str, embedder: Embedder, report: Progress) -> None:
        """Vectors by another embedder for all passages, then in the same instant for all searches and writes.

        name: its model's, '' for the built-in one. Searches and writes go on meanwhile. report: of passages; what it
        raises leaves everything as it was. Raises Broken, DiskFull, StoreDamaged, NotFound, likewise.
        """
        self._rewriter.reembed(name, embedder, report)

    def drop(self, destroy: Callable[[], None]) -> None:
        """Let nobody write any more, then run `destroy`; whether or not it succeeds."""
        with self._writing:
            self._dropped = True
            self.close()
            destroy()

    def close(self) -> None:
        """Nothing is written any more, nor by a seal that is under way: who opens the files next is alone with them."""
        with self._writing:
            self._closed = True
            self._store.close()

    def _publish(self, change: Callable[[Catalog], None], memtable: Memtable) -> None:
        snapshot = replace(self._published.snapshot, memtable=memtable, version=self._store.version)
        self._published.publish(change, snapshot)

    def _seal_if_full(self) -> None:
        """Whoever filled it waits for the seal, and for one that is under way: so much and no more is in memory."""
        if self._published.snapshot.memtable.open_passages >= self._seal_passages:
            try:
                self._rewriter.seal(self._seal_passages)
            except ApplianceError as error:  # what was added is safe in the log; the next document tries again
                log.warning("seal_failed", collection=self.name, reason=error.reason, error=str(error))

    def _embedder(self, *, background: bool = False) -> Embedder:
        """Of the vectors that there are. Raises EmbedderChanged."""
        pinned = self._store.manifest
        embedder = self._embedders(pinned.embedder_name, pinned.embedder, background=background)
        if (embedder.identity, embedder.dimension) != (pinned.embedder, pinned.dimension):
            raise EmbedderChanged(
                f"Collection {self.name} was made with embedder {pinned.embedder[:16]} ({pinned.dimension} dimensions);"
                f" the box now has {embedder.identity[:16]} ({embedder.dimension} dimensions)."
            )
        return embedder

    def _check_replaced(self, document: str) -> None:
        if document:
            with self._published.catalog() as catalog:
                exists = catalog.exists(document)
            if not exists:
                raise NotFound(f"Collection {self.name} has no document {document} to replace.")

    def _check_alive(self) -> None:
        if self._dropped:
            raise NotFound(f"There is no collection {self.name}.")
        if self._closed:
            raise Draining(f"Collection {self.name} is closed.")


def _condition(text: str) -> Condition | None:
    return parse(text) if text.strip() else None
