"""A collection's documents written anew: the memtable into a segment, segments into fewer, all with other vectors.

Whatever is written lies on the disk under no name that the manifest knows, until one commit puts it in the place of
what it was made from. What is deleted meanwhile stays deleted, and readers that change meanwhile stay changed: both
are amendments to what segments say, by document, and a rewrite ends only those that it took into account.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Lock, RLock

import structlog

from appliance.knowledge import compact
from appliance.knowledge.catalog import MEMTABLE, Catalog, Row, Weight
from appliance.knowledge.compact import Groups, Shape
from appliance.knowledge.intake import embedded
from appliance.knowledge.memtable import Memtable
from appliance.knowledge.published import Published, Snapshot
from appliance.knowledge.sealed import Sealed, page_bytes, to_rows, to_sections
from appliance.knowledge.storage.manifest import SegmentEntry
from appliance.knowledge.storage.record import Deletion, Entry, ReadersChange
from appliance.knowledge.storage.store import Store
from appliance.ports import Embedder, Progress

log = structlog.get_logger()

_BATCH_TEXTS = 64
_LAST_PASSAGES = 256
"""So few may be embedded while writers wait."""

_ROUNDS = 8


@dataclass
class Amendments:
    """What is no longer as a segment or a log says it. deleted: documents; readers: who may read a document now."""

    deleted: set[str] = field(default_factory=set)
    readers: dict[str, frozenset[str]] = field(default_factory=dict)

    def delete(self, document: str) -> None:
        self.deleted.add(document)
        self.readers.pop(document, None)

    def folded(self, held: frozenset[str], written: Mapping[str, frozenset[str]]) -> "Amendments":
        """What is left once documents lie elsewhere or nowhere.

        held: all that lay where they are taken from; written: those that were written, with their readers then.
        """
        readers = {document: now for document, now in self.readers.items() if written.get(document) != now}
        return Amendments(self.deleted - (held - written.keys()), readers)


@dataclass(frozen=True)
class Written:
    """A segment on the disk that no manifest names yet."""

    entry: SegmentEntry
    sealed: Sealed
    rows: Sequence[Row]


def opened(name: str, store: Store) -> tuple[Published, Amendments]:
    """What segments and logs say, and what they no longer say. Raises StoreDamaged."""
    amendments = Amendments(set(store.manifest.deleted), dict(store.manifest.readers))
    segments = tuple(map(store.open_segment, store.manifest.segments))
    entries: list[Entry] = []
    for record in store.replay():
        if isinstance(record, Deletion):
            amendments.delete(record.document)
        elif isinstance(record, ReadersChange):
            amendments.readers[record.document] = record.readers
        else:
            entries.append(record)
            if record.replaces:
                amendments.delete(record.replaces)
    catalog = Catalog(name, {segment.number: segment.parquet() for segment in segments})
    catalog.add([Row(one.document, MEMTABLE, ordinal, 0, page_bytes(one)) for ordinal, one in enumerate(entries)])
    catalog.remove(sorted(amendments.deleted))
    catalog.set_readers(amendments.readers)
    snapshot = Snapshot(segments, Memtable.of(entries), store.manifest.embedder, store.version)
    return Published(name, catalog, snapshot), amendments


class Rewriter:
    """Whoever calls `seal` holds `writing`; the others take it themselves, and for as short as they can."""

    def __init__(
        self,
        name: str,
        store: Store,
        published: Published,
        amendments: Amendments,
        writing: RLock,
        check_alive: Callable[[], None],
    ) -> None:
        self.amendments = amendments
        self._name, self._store, self._published = name, store, published
        self._writing, self._check_alive = writing, check_alive
        self._rewriting = Lock()
        self._numbers = count(1 + max((entry.number for entry in store.manifest.segments), default=MEMTABLE))

    def seal(self) -> None:
        """The memtable becomes a segment, and the logs are dropped. Raises DiskFull."""
        snapshot, rows = self._published.held([MEMTABLE])
        if snapshot.memtable.blocks or self._store.manifest.wals:
            held = frozenset(entry.document.id for entry in snapshot.memtable.entries)
            self._replace(frozenset([MEMTABLE]), held, self._write(list(snapshot.entries(rows)), background=False))

    def compact(self) -> None:
        """All that is worth anything. Raises DiskFull, StoreDamaged; the collection is then as it was."""
        with self._rewriting:
            with self._writing:
                self._check_alive()
                self.seal()
            self._merge(compact.asked(self._shapes()), background=False)

    def compact_if_due(self) -> None:
        """What has become worth it; where somebody rewrites already, nothing. Raises as compact."""
        if self._rewriting.acquire(blocking=False):
            try:
                self._merge(compact.due(self._shapes()), background=True)
            finally:
                self._rewriting.release()

    def reembed(self, name: str, embedder: Embedder, report: Progress) -> None:
        """See `Collection.reembed`."""
        made: dict[int, list[Written]] = {}
        try:
            with self._rewriting:
                for _ in range(_ROUNDS):
                    self._seal_now()
                    left = self._reembed_missing(made, embedder, report)
                    if left <= _LAST_PASSAGES:
                        break
                with self._writing:
                    self._seal_now()
                    self._reembed_missing(made, embedder, report)
                    self._switch(made, name, embedder)
        except BaseException:
            self._store.discard(written.entry for segments in made.values() for written in segments)
            raise
        log.info("collection_reembedded", collection=self._name, embedder=embedder.identity)

    def _seal_now(self) -> None:
        with self._writing:
            self._check_alive()
            self.seal()

    def _reembed_missing(self, made: dict[int, list[Written]], embedder: Embedder, report: Progress) -> int:
        """Segments beside those that are not in `made` yet; how many passages came to be unmade meanwhile."""
        segments = self._published.snapshot.segments
        done, total = 0, sum(segment.rows for segment in segments)
        for segment in segments:
            if segment.number not in made:
                made[segment.number] = self._reembedded(segment, embedder, partial(_report, report, done, total))
            done += segment.rows
        report.update(done, total)
        snapshot = self._published.snapshot
        new = sum(segment.rows for segment in snapshot.segments if segment.number not in made)
        return new + snapshot.memtable.passages

    def _reembedded(self, segment: Sealed, embedder: Embedder, told: Callable[[int], None]) -> list[Written]:
        snapshot, rows = self._published.held([segment.number])
        entries: list[Entry] = []
        for batch in _batches(snapshot.entries(rows)):
            told(sum(len(entry.pieces) for entry in entries))
            vectors = embedded([text for entry in batch for text in entry.searched()], embedder)
            at = 0
            for entry in batch:
                entries.append(Entry(entry.document, entry.pages, entry.pieces, vectors[at : at + len(entry.pieces)]))
                at += len(entry.pieces)
        return self._write(entries, background=True)

    def _switch(self, made: Mapping[int, list[Written]], name: str, embedder: Embedder) -> None:
        segments = self._published.snapshot.segments
        held = frozenset[str]().union(*(segment.document_ids() for segment in segments))
        written = [one for segment in segments for one in made[segment.number]]
        self._replace(frozenset(made), held, written, (name, embedder))

    def _shapes(self) -> list[Shape]:
        with self._published.catalog() as catalog:
            weights = catalog.weights(list(self.amendments.readers))
            segments = self._published.snapshot.segments
        found = ((segment, weights.get(segment.number, Weight(0, 0))) for segment in segments)
        return [Shape(segment.number, segment.rows, weight.live, weight.changed) for segment, weight in found]

    def _merge(self, groups: Groups, *, background: bool) -> None:
        for group in groups:
            snapshot, rows = self._published.held(group)
            held = frozenset[str]().union(*(snapshot.segment(number).document_ids() for number in group))
            written = self._write(list(snapshot.entries(rows)), background=background)
            with self._writing:
                self._check_alive()
                self._replace(frozenset(group), held, written)

    def _write(self, entries: list[Entry], *, background: bool) -> list[Written]:
        """A segment of these documents that is not part of the collection yet; none for no documents."""
        if not entries:
            return []
        number = next(self._numbers)
        rows = to_rows(entries, number)
        entry = self._store.write_segment(to_sections(entries, rows), number, entries, background=background)
        return [Written(entry, self._store.open_segment(entry), rows)]

    def _replace(
        self,
        old: frozenset[int],
        held: frozenset[str],
        written: Sequence[Written],
        embedder: tuple[str, Embedder] | None = None,
    ) -> None:
        """Commit segments in place of old ones, or of the memtable. held: every document that lay there.

        embedder: by name, of all vectors from now on.
        """
        snapshot, manifest = self._published.snapshot, self._store.manifest
        rows = [row for one in written for row in one.rows]
        amendments = self.amendments.folded(held, {row.document.id: row.document.readers for row in rows})
        entries = [entry for entry in manifest.segments if entry.number not in old] + [one.entry for one in written]
        segments = [one for one in snapshot.segments if one.number not in old] + [one.sealed for one in written]
        self._published.stage(rows)
        self._store.commit(
            tuple(entries),
            frozenset(amendments.deleted),
            drop_logs=MEMTABLE in old,
            readers=amendments.readers,
            embedder=embedder and (embedder[0], embedder[1].identity, embedder[1].dimension),
        )
        self.amendments = amendments
        memtable = Memtable() if MEMTABLE in old else snapshot.memtable
        shown = Snapshot(tuple(segments), memtable, self._store.manifest.embedder, self._store.version)
        self._published.publish(lambda catalog: catalog.move(), shown)


def _report(report: Progress, done: int, total: int, more: int) -> None:
    report.update(done + more, total)


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Some documents at a time, of about _BATCH_TEXTS passages together."""
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if sum(len(one.pieces) for one in batch) >= _BATCH_TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch
