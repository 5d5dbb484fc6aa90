"""The files of one collection, and the order in which they become durable.

A record is acknowledged when it is in a log that the current manifest names. A segment exists when the current manifest
names it; the files that it replaces are unlinked after that. A commit that failed leaves open which manifest the disk
holds, so until another has succeeded nothing is acknowledged, and nothing that either may name is unlinked.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from appliance.errors import ApplianceError, DiskFull, DocumentRefused, RequestTooLarge, StoreDamaged
from appliance.knowledge.sealed import Sealed
from appliance.knowledge.storage import durable, key, manifest, record
from appliance.knowledge.storage.durable import Pace, unpaced
from appliance.knowledge.storage.key import CollectionKey
from appliance.knowledge.storage.manifest import Manifest, ManifestStore, SegmentEntry, WalEntry
from appliance.knowledge.storage.mark import Mark, MarkFile
from appliance.knowledge.storage.pin import Pinned
from appliance.knowledge.storage.record import Entry, Record
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.segment import SegmentFile, SegmentId, write_segment
from appliance.knowledge.storage.tenant import Tenant
from appliance.knowledge.storage.wal import HEADER_BYTES, LONGEST_PAYLOAD, WalId, WalReader, WalWriter
from appliance.ports import Buffer, Cipher, Embedder

E = TypeVar("E", SegmentEntry, WalEntry)
log = structlog.get_logger()


def create(directory: Path, name: str, tenant: Tenant, embedder: Embedder) -> None:
    """Make an empty collection's files in an empty directory, durable on return. Raises DiskFull, KeyUnavailable."""
    _make_folders(directory)
    secret = key.create(directory, name, tenant)
    first = Manifest(1, embedder.identity, embedder.dimension)
    digest = ManifestStore(directory, tenant.keyring, secret).commit(first)
    with durable.disk_errors(directory):
        durable.sync_directory(directory)
    mark = MarkFile(tenant.marks, secret.collection, tenant.keyring)
    try:
        mark.create(Mark(1, digest, first.next_seq))
    except ApplianceError:
        with suppress(ApplianceError):
            mark.remove()
        raise


def _make_folders(directory: Path) -> None:
    with durable.disk_errors(directory):
        for folder in ("seg", "wal", "mf"):
            (directory / folder).mkdir(mode=0o700, exist_ok=True)


def load_key(directory: Path, name: str, tenant: Tenant) -> CollectionKey:
    """The key that the current manifest is under. Raises StoreDamaged, naming the file; KeyUnavailable."""
    return key.load(directory, name, tenant, manifest.key_epoch(directory))


def accept_rollback(directory: Path, name: str, tenant: Tenant) -> None:
    """From now on the state that the directory holds is the newest: a backup was put back. Of a closed collection.

    Raises StoreDamaged, DiskFull, KeyUnavailable.
    """
    _branch_off(directory, load_key(directory, name, tenant), tenant)
    mark_as_newest(directory, name, tenant)


def adopt(directory: Path, name: str, backed_up_as: str, tenant: Tenant) -> None:
    """Files of a collection of that other name become this one's; `mark_as_newest` follows once they lie under it.

    Until then the mark tells nothing, so that what lies under the name opens, whichever state it is. Raises
    StoreDamaged, DiskFull, KeyUnavailable.
    """
    _make_folders(directory)
    secret = load_key(directory, backed_up_as, tenant)
    key.write(directory, name, tenant, secret)
    _branch_off(directory, secret, tenant)
    MarkFile(tenant.marks, secret.collection, tenant.keyring).create(Mark(0, bytes(32), 0))


def mark_as_newest(directory: Path, name: str, tenant: Tenant) -> None:
    """Raises StoreDamaged, DiskFull, KeyUnavailable."""
    secret = load_key(directory, name, tenant)
    found, digest = ManifestStore(directory, tenant.keyring, secret).load()
    mark = Mark(found.generation, digest, _first_seq(found))
    MarkFile(tenant.marks, secret.collection, tenant.keyring).create(mark)


def _branch_off(directory: Path, secret: CollectionKey, tenant: Tenant) -> None:
    """What is written from now on is told from what was written after the same state before."""
    manifests = ManifestStore(directory, tenant.keyring, secret)
    older, _ = manifests.load()
    manifests.commit(replace(older, generation=older.generation + 1, branch=secrets.token_hex(8)))


class Store:
    """One collection's files, opened. One writer at a time; segments may be read from many threads."""

    def __init__(self, directory: Path, name: str, tenant: Tenant, memory: Memory, pace: Pace = unpaced) -> None:
        """pace: of what is written in the background.

        Raises StoreDamaged, naming the file; KeyUnavailable.
        """
        self._directory, self._name, self._tenant, self._keyring = directory, name, tenant, tenant.keyring
        self._memory, self._pace = memory, pace
        self._key = load_key(directory, name, tenant)
        self._manifests = ManifestStore(directory, self._keyring, self._key)
        self.manifest, self._digest = self._manifests.load()
        self._marks = MarkFile(tenant.marks, self._key.collection, self._keyring)
        self._mark = self._marks.read()
        found = Mark(self.manifest.generation, self._digest, max(self._mark.next_seq, _first_seq(self.manifest)))
        self._mark.check(directory / "CURRENT", found)
        self.create_time = self._key.create_time
        self._generation = self.manifest.generation
        self._uncertain: set[str] = set()  # files that failed commits named, relative to the directory
        self._spare_keys = False  # whether the record of a key may lie there that no manifest is under
        self._commit_failed = False
        self._written: dict[bytes, bytes] = {}  # secrets of segments that no manifest names yet, by file id
        self._closed: tuple[WalEntry, ...] = ()
        self._open: tuple[WalEntry, WalWriter] | None = None
        self._next_seq = self.manifest.next_seq
        self._begun: dict[bytes, float] = {}  # when logs got their first record, by file id
        self._make_certain(found)
        self._remove_strays()

    def _make_certain(self, found: Mark) -> None:
        """What a writer may have left undone that died between a rename, its sync and the mark.

        On a full disk it may be read all the same; nothing is acknowledged before a commit has succeeded.
        """
        try:
            with durable.disk_errors(self._directory):
                durable.sync_directory(self._directory)
            if found != self._mark or self._marks.is_torn:
                self._write_mark(found)
        except DiskFull as error:
            log.warning("opened_on_a_full_disk", file=str(self._directory), error=str(error))
            self._commit_failed = True

    @property
    def uid(self) -> bytes:
        """16 bytes that no other collection has, whatever its name."""
        return self._key.collection

    @property
    def version(self) -> str:
        """Another one after each record, once the vectors are of another embedder, and after a rollback."""
        return f"{self.uid.hex()}-{self.manifest.branch}-{self._next_seq}-{self.manifest.embedder[:16]}"

    @property
    def size_bytes(self) -> int:
        """Of segments and logs, on disk."""
        names = _files(self.manifest)
        total = 0
        for name in names:
            with suppress(FileNotFoundError):
                total += (self._directory / name).stat().st_size
        return total

    @property
    def unsealed_seconds(self) -> float:
        """How long the oldest record has been in a log; 0 where there is none. No clock's time of day goes in."""
        return time.monotonic() - min(self._begun.values()) if self._begun else 0.0

    def replay(self) -> Iterator[Record]:
        """Every record in the logs, in order; once, before anything is appended. Raises StoreDamaged."""
        for entry in self.manifest.wals:
            cipher = self._cipher(b"log", entry.file_id, entry.wrapped_key)
            reader = WalReader(self._directory / "wal", self._wal_id(entry), cipher, entry.first_seq)
            for payload in reader.records(entry.end_bytes):
                yield from record.decode(payload)
            if reader.next_seq < self._mark.next_seq and entry is self.manifest.wals[-1]:
                missing = self._mark.next_seq - reader.next_seq
                raise StoreDamaged(f"{reader.path} is damaged: {missing} records that it held are missing at its end.")
            if reader.cut_bytes:
                log.warning("torn_write_cut", file=str(reader.path), cut_bytes=reader.cut_bytes)
            self._keep_closed(entry, reader.end_bytes)
            self._next_seq = reader.next_seq
        self._begun = dict.fromkeys((entry.file_id for entry in self._closed), time.monotonic())

    def encoded(self, entry: Entry) -> bytes:
        """A document for `append`; no lock is needed. Raises DocumentRefused where a log cannot hold it."""
        payload = record.encode(entry)
        if len(payload) > LONGEST_PAYLOAD:
            raise DocumentRefused("TOO_LARGE", f"The document is longer than a log's record, {LONGEST_PAYLOAD} bytes.")
        return payload

    def append(self, payloads: Sequence[bytes]) -> None:
        """Records of `record.encode`, one at least, all in one write. They survive power loss when it returns; a crash
        leaves all of them or none, and so does what it raises: DiskFull, RequestTooLarge.
        """
        payload = record.together(payloads)
        if len(payload) > LONGEST_PAYLOAD:
            raise RequestTooLarge(f"The documents together are longer than a log's record, {LONGEST_PAYLOAD} bytes.")
        writer = self._log()
        try:
            writer.append(payload)
        except BaseException:
            self._close_log()
            raise
        self._next_seq = writer.next_seq
        self._begun.setdefault(writer.file_id, time.monotonic())

    def freeze_logs(self) -> frozenset[bytes]:
        """What is appended from now on goes to another log; the file ids of those that hold all before it."""
        self._close_log()
        return frozenset(entry.file_id for entry in self._closed)

    def write_segment(
        self, sections: Mapping[str, Buffer], number: int, entries: list[Entry], *, background: bool = False
    ) -> SegmentEntry:
        """A segment of the entries, durable, that is not part of the collection before `commit`.

        background: nobody waits for it, so it is written no faster than may be. Raises DiskFull.
        """
        file_id, secret = secrets.token_bytes(16), self._keyring.new_key()
        segment = SegmentId(self._key.collection, file_id)
        pace = self._pace if background else unpaced
        layout = write_segment(self._directory / "seg", segment, self._keyring.cipher(secret), sections, pace)
        self._written[file_id] = secret
        passages = sum(len(entry.pieces) for entry in entries)
        return SegmentEntry(number, file_id, self._wrap(b"segment", file_id, secret), len(entries), passages, layout)

    def open_segment(self, entry: SegmentEntry) -> Sealed:
        """Raises StoreDamaged, naming the file."""
        written = self._written.get(entry.file_id)
        cipher = (
            self._keyring.cipher(written) if written else self._cipher(b"segment", entry.file_id, entry.wrapped_key)
        )
        segment = SegmentId(self._key.collection, entry.file_id)
        file = SegmentFile(self._directory / "seg", entry.layout, segment, cipher, self._memory)
        sealed = Sealed(entry.number, entry.documents, file)
        if sealed.rows != entry.passages:
            raise StoreDamaged(f"{file.path} is damaged: it holds {sealed.rows} of {entry.passages} passages.")
        return sealed

    def commit(
        self,
        segments: tuple[SegmentEntry, ...],
        deleted: frozenset[str],
        *,
        drop_logs: frozenset[bytes] = frozenset(),
        readers: Mapping[str, frozenset[str]] | None = None,
        embedder: tuple[str, str, int] | None = None,
    ) -> None:
        """The collection consists of these from now on. drop_logs: by file id, closed logs of which the segments,
        `deleted` and `readers` hold all that they said.

        readers, embedder (name, identity, dimension): in place of the manifest's, None for as they are. Raises
        DiskFull, and then the collection consists of what it did before.
        """
        changed = replace(
            self.manifest,
            segments=tuple(map(self._rewrapped, segments)),
            deleted=deleted,
            wals=tuple(entry for entry in self._logs() if entry.file_id not in drop_logs),
            readers=self.manifest.readers if readers is None else dict(readers),
        )
        if embedder:
            name, identity, dimension = embedder
            changed = replace(changed, embedder_name=name, embedder=identity, dimension=dimension)
        self._commit(changed)
        for entry in segments:
            self._written.pop(entry.file_id, None)
        self._closed = tuple(entry for entry in self._closed if entry.file_id not in drop_logs)
        for dropped in drop_logs:
            self._begun.pop(dropped, None)
        with suppress(ApplianceError):  # opening does it, too
            self._destroy_spare_keys()

    def discard(self, segments: Iterable[SegmentEntry]) -> None:
        """Unlink segments that were written and are not to be part of the collection.

        The next commit unlinks those that a failed one named: the disk may hold that one's manifest.
        """
        kept = _files(self.manifest) | self._uncertain
        for entry in segments:
            self._written.pop(entry.file_id, None)
            if (name := f"seg/{entry.layout.file}") not in kept:
                with suppress(OSError):
                    (self._directory / name).unlink()

    def rotate(self) -> None:
        """A new collection key in place of the present one, which is destroyed: file keys are wrapped anew, no data is.

        Raises DiskFull, KeyUnavailable, StoreDamaged; both keys are kept then, and the next commit decides.
        """
        old = self._key
        new = key.add(self._directory, self._name, self._tenant, old)
        self._spare_keys = True
        segments = tuple(self._moved(b"segment", entry, new) for entry in self.manifest.segments)
        closed = tuple(self._moved(b"log", entry, new) for entry in self._closed)
        opened = (self._moved(b"log", self._open[0], new), self._open[1]) if self._open else None
        logs = (*closed, opened[0]) if opened else closed
        self._manifests = ManifestStore(self._directory, self._keyring, new)
        try:
            self._commit(replace(self.manifest, segments=segments, wals=logs))
        except BaseException:
            self._manifests = ManifestStore(self._directory, self._keyring, old)
            raise
        self._key, self._closed, self._open = new, closed, opened
        self._destroy_spare_keys()

    def note_progress(self) -> None:
        """Let the mark outside the directory follow the log. Raises DiskFull, StoreDamaged."""
        if self._next_seq > self._mark.next_seq and not self._commit_failed:
            self._write_mark(replace(self._mark, next_seq=self._next_seq))

    def pin(self) -> Pinned:
        """All files that the collection consists of now, open for reading, the open log up to its last record.

        Raises DiskFull, StoreDamaged.
        """
        if self._commit_failed:  # else which manifest the disk holds is left open
            self._commit(replace(self.manifest, wals=self._logs()))
        ends = {f"wal/{entry.file_id.hex()}": entry.end_bytes for entry in self._closed}
        if self._open:
            ends[f"wal/{self._open[0].file_id.hex()}"] = self._open[1].end_bytes
        own = (key.path_of(Path(), self._key.epoch).name, "CURRENT", f"mf/{self.manifest.generation}")
        sizes = {name: ends.get(name) for name in (*own, *sorted(_files(self.manifest)))}
        return Pinned(self._directory, self.uid, self.manifest.generation, sizes)

    def close(self) -> None:
        """What was acknowledged is on the disk without it; the mark follows to the end of the log."""
        with suppress(ApplianceError):
            self.note_progress()
        self._close_log()

    def _log(self) -> WalWriter:
        """The open log, once a manifest that names it is on the disk for certain."""
        if not self._open:
            self._open = self._new_log()
        entry, writer = self._open
        if self._commit_failed or entry not in self.manifest.wals:
            self._commit(replace(self.manifest, wals=self._logs()))
        return writer

    def _logs(self) -> tuple[WalEntry, ...]:
        return (*self._closed, self._open[0]) if self._open else self._closed

    def _new_log(self) -> tuple[WalEntry, WalWriter]:
        file_id, secret = secrets.token_bytes(16), self._keyring.new_key()
        entry = WalEntry(file_id, self._wrap(b"log", file_id, secret), self._next_seq)
        cipher = self._keyring.cipher(secret)
        return entry, WalWriter(self._directory / "wal", self._wal_id(entry), cipher, self._next_seq)

    def _close_log(self) -> None:
        if self._open:
            entry, writer = self._open
            self._keep_closed(entry, writer.end_bytes)
            self._open = None
            writer.close()

    def _keep_closed(self, entry: WalEntry, end_bytes: int) -> None:
        """A log without records is not named again: the next commit unlinks it."""
        if end_bytes > HEADER_BYTES:
            self._closed += (replace(entry, end_bytes=end_bytes),)

    def _commit(self, changed: Manifest) -> None:
        # a generation is never used twice: the disk may hold one whose commit failed at its very end
        self._generation += 1
        changed = replace(changed, generation=self._generation, next_seq=self._next_seq)
        try:
            self._digest = self._manifests.commit(changed)
            self._write_mark(Mark(changed.generation, self._digest, self._next_seq))
        except BaseException:
            self._commit_failed = True
            self._uncertain |= _files(changed)
            raise
        dropped = (_files(self.manifest) | self._uncertain) - _files(changed)
        self.manifest, self._commit_failed = changed, False
        self._uncertain.clear()
        for name in dropped:
            with suppress(OSError):
                (self._directory / name).unlink()

    def _destroy_spare_keys(self) -> None:
        """After a commit that succeeded. Raises DiskFull, StoreDamaged."""
        if self._spare_keys:
            key.destroy_all_but(self._directory, self._key.epoch)
            self._spare_keys = False

    def _write_mark(self, mark: Mark) -> None:
        self._marks.write(mark)
        self._mark = mark

    def _moved(self, purpose: bytes, entry: E, new: CollectionKey) -> E:
        """The entry with its file's key wrapped under another collection key."""
        context = self._context(purpose, entry.file_id)
        secret = self._keyring.unwrap(entry.wrapped_key, context, under=self._key.secret)
        return replace(entry, wrapped_key=self._keyring.wrap(secret, context, under=new.secret))

    def _rewrapped(self, entry: SegmentEntry) -> SegmentEntry:
        """A segment that was written before the collection's key was rotated is committed under the new one."""
        if secret := self._written.get(entry.file_id):
            return replace(entry, wrapped_key=self._wrap(b"segment", entry.file_id, secret))
        return entry

    def _wrap(self, purpose: bytes, file_id: bytes, secret: bytes) -> bytes:
        return self._keyring.wrap(secret, self._context(purpose, file_id), under=self._key.secret)

    def _cipher(self, purpose: bytes, file_id: bytes, wrapped_key: bytes) -> Cipher:
        context = self._context(purpose, file_id)
        return self._keyring.cipher(self._keyring.unwrap(wrapped_key, context, under=self._key.secret))

    def _context(self, purpose: bytes, file_id: bytes) -> bytes:
        return purpose + b"\x00" + self._key.collection + file_id

    def _wal_id(self, entry: WalEntry) -> WalId:
        return WalId(self._key.collection, entry.file_id)

    def _remove_strays(self) -> None:
        """What writers left that died before their commit, and keys of rotations that did."""
        named = _files(self.manifest) | {f"mf/{self.manifest.generation}"}
        for folder in ("seg", "wal", "mf"):
            keep = frozenset(Path(name).name for name in named if Path(name).parent.name == folder)
            durable.remove_all_but(self._directory / folder, keep)
        for path in self._directory.glob(f"{durable.TEMPORARY}*"):
            with suppress(OSError):
                path.unlink()
        key.destroy_all_but(self._directory, self._key.epoch)


def _first_seq(named: Manifest) -> int:
    """Of the first record that its segments do not hold, whether or not it was written."""
    return named.wals[0].first_seq if named.wals else named.next_seq


def _files(named: Manifest) -> frozenset[str]:
    """Segments and logs, relative to the collection's directory."""
    segments = {f"seg/{entry.layout.file}" for entry in named.segments}
    return frozenset(segments | {f"wal/{entry.file_id.hex()}" for entry in named.wals})
