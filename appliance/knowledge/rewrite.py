"""A collection's documents written anew: the memtable into a segment, segments into fewer, all with other vectors.

Whatever is written lies on the disk under no name that the manifest knows, until one commit puts it in the place of
what it was made from. What is deleted meanwhile stays deleted, and readers that change meanwhile stay changed: both
are amendments to what segments say, by document, and a rewrite ends only those that it took into account.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from threading import Lock, RLock
from types import MappingProxyType

import numpy as np
import structlog

from appliance.errors import Busy, StoreDamaged
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
from appliance.types import Floats

log = structlog.get_logger()

_BATCH_TEXTS = 64
_LAST_PASSAGES = 256
"""So few may be embedded while writers wait."""

_ROUNDS = 8
"""So often another pass over what was written meanwhile may leave no less than the passes before."""

_REWRITING_SECONDS = 60.0


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

    def of_those(self, held: frozenset[str]) -> "Amendments":
        """Without documents that lie nowhere any more: a rewrite may come before the log goes that tells of them."""
        readers = {document: now for document, now in self.readers.items() if document in held}
        return Amendments(self.deleted & held, readers)


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
    if amendments.deleted or amendments.readers:
        in_log = frozenset(entry.document.id for entry in entries)
        amendments = amendments.of_those(in_log.union(*(segment.document_ids() for segment in segments)))
    catalog = _catalog(name, segments)
    catalog.add([Row(one.document, MEMTABLE, ordinal, 0, page_bytes(one)) for ordinal, one in enumerate(entries)])
    catalog.remove(sorted(amendments.deleted))
    catalog.set_readers(amendments.readers)
    snapshot = Snapshot(segments, Memtable.of(entries), store.manifest.embedder, store.version)
    return Published(name, catalog, snapshot), amendments


def _catalog(name: str, segments: Sequence[Sealed]) -> Catalog:
    try:
        return Catalog(name, {segment.number: segment.parquet() for segment in segments})
    except StoreDamaged:
        for segment in segments:
            try:
                Catalog(name, {segment.number: segment.parquet()})
            except StoreDamaged as error:
                raise StoreDamaged(f"{segment.path} is damaged: {error}") from None
        raise


class Rewriter:
    """Takes `writing` itself, for as short as it can; who holds it must call nothing here.

    Of its own locks `_rewriting` comes first, then `_sealing`, then `writing`.
    """

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
        self._rewriting, self._sealing = Lock(), Lock()
        self._numbers = count(1 + max((entry.number for entry in store.manifest.segments), default=MEMTABLE))

    def seal(self, least_passages: int = 0) -> None:
        """The memtable becomes a segment, and the logs of it are dropped; waits for a seal that is under way.

        Searches, deletions and additions go on meanwhile: the log and the part of the memtable that they go to are
        others from the first instant on. least_passages: nothing is done where fewer are in that part. Raises DiskFull,
        NotFound; nothing is changed then.
        """
        with self._sealing:
            self._seal(least_passages)

    def _seal(self, least_passages: int = 0) -> None:
        with self._writing:
            self._check_alive()
            snapshot = self._published.snapshot
            if snapshot.memtable.open_passages < least_passages:
                return
            if not (snapshot.memtable.blocks or self._store.manifest.wals):
                return
            logs, frozen = self._store.freeze_logs(), snapshot.memtable.freeze()
            self._published.publish(lambda catalog: None, replace(snapshot, memtable=frozen))
        written: list[Written] = []
        try:
            held = frozenset(entry.document.id for entry in frozen.entries.values())
            seen, rows = self._published.held([MEMTABLE])
            written = self._write(list(seen.entries(row for row in rows if row.ordinal < frozen.end)), background=False)
            with self._writing:
                self._check_alive()
                self._replace(frozenset(), held, written, sealed_logs=logs)
        except BaseException:
            self._store.discard(one.entry for one in written)
            with self._writing:
                snapshot = self._published.snapshot
                self._published.publish(lambda catalog: None, replace(snapshot, memtable=snapshot.memtable.thaw()))
            raise

    def compact(self) -> None:
        """All that is worth anything. Raises DiskFull, StoreDamaged; the collection is then as it was. Raises Busy
        where somebody rewrites already, which may take hours.
        """
        if not self._rewriting.acquire(blocking=False):
            raise Busy(f"Collection {self._name} is being rewritten already.", _REWRITING_SECONDS)
        try:
            self.seal()
            self._merge(compact.asked(self._shapes()), background=False)
        finally:
            self._rewriting.release()

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
                least, rounds = self._left(made), 0
                while rounds < _ROUNDS:
                    self.seal()
                    self._reembed_missing(made, embedder, report)
                    left = self._left(made)
                    if left <= _LAST_PASSAGES and self._switched(made, name, embedder, report):
                        break
                    least, rounds = (left, 0) if left < least else (least, rounds + 1)
                else:
                    problem = f"Collection {self._name} is written to faster than it can be embedded anew."
                    raise Busy(problem, _REWRITING_SECONDS)
        except BaseException:
            self._store.discard(written.entry for segments in made.values() for written in segments)
            raise
        log.info("collection_reembedded", collection=self._name, embedder=embedder.identity)

    def _switched(self, made: dict[int, list[Written]], name: str, embedder: Embedder, report: Progress) -> bool:
        """Embed what is left, and switch; not where it has become much. Nobody writes meanwhile, but what was there
        before that is embedded by then."""
        ahead = _vectors(list(self._published.snapshot.memtable.entries.values()), embedder)
        with self._sealing, self._writing:
            self._check_alive()
            if self._left(made) > _LAST_PASSAGES:
                return False
            self._seal()
            self._reembed_missing(made, embedder, report, ahead, background=False)
            self._switch(made, name, embedder)
            return True

    def _left(self, made: Mapping[int, list[Written]]) -> int:
        """How many passages are in no segment that was embedded anew."""
        snapshot = self._published.snapshot
        return snapshot.memtable.passages + sum(one.rows for one in snapshot.segments if one.number not in made)

    def _reembed_missing(
        self,
        made: dict[int, list[Written]],
        embedder: Embedder,
        report: Progress,
        known: Mapping[str, Floats] = MappingProxyType({}),
        *,
        background: bool = True,
    ) -> None:
        """Segments beside those that are not in `made` yet. known: vectors by document."""
        segments = self._published.snapshot.segments
        done, total = 0, sum(segment.rows for segment in segments)
        for segment in segments:
            if segment.number not in made:
                told = partial(_report, report, done, total)
                entries = self._reembedded(segment, embedder, told, known)
                made[segment.number] = self._write(entries, background=background)
            done += segment.rows
        report.update(done, total)

    def _reembedded(
        self, segment: Sealed, embedder: Embedder, told: Callable[[int], None], known: Mapping[str, Floats]
    ) -> list[Entry]:
        snapshot, rows = self._published.held([segment.number])
        entries: list[Entry] = []
        for batch in _batches(snapshot.entries(rows)):
            told(sum(len(entry.pieces) for entry in entries))
            found = {**known, **_vectors([entry for entry in batch if entry.document.id not in known], embedder)}
            entries += [replace(entry, vectors=found[entry.document.id]) for entry in batch]
        return entries

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
            try:
                with self._writing:
                    self._check_alive()
                    self._replace(frozenset(group), held, written)
            except BaseException:  # another collection may have the name by now, and its folder this one's file
                self._store.discard(one.entry for one in written)
                raise

    def _write(self, entries: list[Entry], *, background: bool) -> list[Written]:
        """A segment of these documents that is not part of the collection yet; none for no documents."""
        if not entries:
            return []
        number, made = next(self._numbers), list[SegmentEntry]()
        rows = to_rows(entries, number)
        try:
            made.append(self._store.write_segment(to_sections(entries, rows), number, entries, background=background))
            return [Written(made[0], self._store.open_segment(made[0]), rows)]
        except BaseException:
            self._store.discard(made)
            with self._writing:
                self._check_alive()  # that its folder is gone is no damage to another that has its name by now
            raise

    def _replace(
        self,
        old: frozenset[int],
        held: frozenset[str],
        written: Sequence[Written],
        embedder: tuple[str, Embedder] | None = None,
        *,
        sealed_logs: frozenset[bytes] | None = None,
    ) -> None:
        """Commit segments in place of old ones. held: every document that lay there.

        embedder: by name, of all vectors from now on. sealed_logs: in place of what is frozen of the memtable, too, and
        of these logs.
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
            drop_logs=sealed_logs or frozenset(),
            readers=amendments.readers,
            embedder=embedder and (embedder[0], embedder[1].identity, embedder[1].dimension),
        )
        self.amendments = amendments
        memtable = snapshot.memtable if sealed_logs is None else snapshot.memtable.rest()
        shown = Snapshot(tuple(segments), memtable, self._store.manifest.embedder, self._store.version)
        self._published.publish(lambda catalog: catalog.move(), shown)


def _vectors(entries: Sequence[Entry], embedder: Embedder) -> dict[str, Floats]:
    """Of all their passages, by document."""
    vectors = embedded([text for entry in entries for text in entry.searched()], embedder)
    borders = pairwise(np.cumsum([0, *(len(entry.pieces) for entry in entries)]))
    return {entry.document.id: vectors[start:end] for entry, (start, end) in zip(entries, borders, strict=True)}


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
