"""The files of one collection, and the order in which they become durable.

A record is acknowledged when it is in a log that the current manifest names. A segment exists when the current manifest
names it; the files that it replaces are unlinked after that. A commit that failed leaves open which manifest the disk
holds, so until another has succeeded nothing is acknowledged, and nothing that either may name is unlinked.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from appliance.errors import DocumentRefused, StoreDamaged
from appliance.knowledge.sealed import Sealed
from appliance.knowledge.storage import durable, key, record
from appliance.knowledge.storage.key import CollectionKey
from appliance.knowledge.storage.manifest import Manifest, ManifestStore, SegmentEntry, WalEntry
from appliance.knowledge.storage.record import Deletion, Entry
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.segment import SegmentFile, SegmentId, write_segment
from appliance.knowledge.storage.wal import HEADER_BYTES, LONGEST_PAYLOAD, WalId, WalReader, WalWriter
from appliance.ports import Buffer, Cipher, Embedder, Keyring

log = structlog.get_logger()


def create(directory: Path, name: str, keyring: Keyring, embedder: Embedder) -> None:
    """Make an empty collection's files in an empty directory, durable on return. Raises DiskFull."""
    with durable.disk_errors(directory):
        for folder in ("seg", "wal", "mf"):
            (directory / folder).mkdir(mode=0o700)
    secret = key.create(directory, name, keyring)
    ManifestStore(directory, keyring, secret).commit(Manifest(1, embedder.identity, embedder.dimension))
    with durable.disk_errors(directory):
        durable.sync_directory(directory)


class Store:
    """One collection's files, opened. One writer at a time; segments may be read from many threads."""

    def __init__(self, directory: Path, name: str, keyring: Keyring, cache_bytes: int) -> None:
        """Raises StoreDamaged, naming the file."""
        self._directory, self._keyring = directory, keyring
        self._key: CollectionKey = key.load(directory, name, keyring)
        self._memory = Memory.of(4 << 30, cache_bytes)
        self._manifests = ManifestStore(directory, keyring, self._key)
        self.manifest = self._manifests.load()
        self.create_time = self._key.create_time
        self._generation = self.manifest.generation
        self._uncertain: set[str] = set()  # files that failed commits named, relative to the directory
        self._commit_failed = False
        self._closed: tuple[WalEntry, ...] = ()
        self._open: tuple[WalEntry, WalWriter] | None = None
        self._next_seq = self.manifest.next_seq
        self._remove_strays()

    @property
    def size_bytes(self) -> int:
        """Of segments and logs, on disk."""
        names = _files(self.manifest)
        total = 0
        for name in names:
            with suppress(FileNotFoundError):
                total += (self._directory / name).stat().st_size
        return total

    def replay(self) -> Iterator[Entry | Deletion]:
        """Every record in the logs, in order; once, before anything is appended. Raises StoreDamaged."""
        for entry in self.manifest.wals:
            cipher = self._cipher(b"log", entry.file_id, entry.wrapped_key)
            reader = WalReader(self._directory / "wal", self._wal_id(entry), cipher, entry.first_seq)
            for payload in reader.records(entry.end_bytes):
                yield record.decode(payload)
            if reader.cut_bytes:
                log.warning("torn_write_cut", file=str(reader.path), cut_bytes=reader.cut_bytes)
            self._keep_closed(entry, reader.end_bytes)
            self._next_seq = reader.next_seq

    def append(self, entry: Entry | Deletion) -> None:
        """Survives power loss when it returns; when it raises nothing of it stays. Raises DiskFull, DocumentRefused."""
        payload = record.encode(entry)
        if len(payload) > LONGEST_PAYLOAD:
            raise DocumentRefused("TOO_LARGE", f"The document is longer than a log's record, {LONGEST_PAYLOAD} bytes.")
        writer = self._log()
        try:
            writer.append(payload)
        except BaseException:
            self._close_log()
            raise
        self._next_seq = writer.next_seq

    def write_segment(self, sections: Mapping[str, Buffer], number: int, entries: list[Entry]) -> SegmentEntry:
        """A segment of the entries, durable and verified, that is not part of the collection before `commit`.

        Raises DiskFull.
        """
        file_id, secret = secrets.token_bytes(16), self._keyring.new_key()
        segment = SegmentId(self._key.collection, file_id)
        layout = write_segment(self._directory / "seg", segment, self._keyring.cipher(secret), sections)
        wrapped = self._keyring.wrap(secret, self._context(b"segment", file_id), under=self._key.secret)
        passages = sum(len(entry.spans) for entry in entries)
        return SegmentEntry(number, file_id, wrapped, len(entries), passages, layout)

    def open_segment(self, entry: SegmentEntry) -> Sealed:
        """Raises StoreDamaged, naming the file."""
        cipher = self._cipher(b"segment", entry.file_id, entry.wrapped_key)
        segment = SegmentId(self._key.collection, entry.file_id)
        file = SegmentFile(self._directory / "seg", entry.layout, segment, cipher, self._memory)
        sealed = Sealed(entry.number, entry.documents, file)
        if sealed.rows != entry.passages:
            raise StoreDamaged(f"{file.path} is damaged: it holds {sealed.rows} of {entry.passages} passages.")
        return sealed

    def commit(self, segments: tuple[SegmentEntry, ...], deleted: frozenset[str], *, drop_logs: bool) -> None:
        """The collection consists of these from now on. drop_logs: the segments hold all that the logs said.

        Raises DiskFull, and then the collection consists of what it did before.
        """
        logs = () if drop_logs else self._logs()
        self._commit(replace(self.manifest, segments=segments, deleted=deleted, wals=logs))
        if drop_logs:
            self._close_log()
            self._closed = ()

    def close(self) -> None:
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
        wrapped = self._keyring.wrap(secret, self._context(b"log", file_id), under=self._key.secret)
        entry = WalEntry(file_id, wrapped, self._next_seq)
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

    def _commit(self, manifest: Manifest) -> None:
        # a generation is never used twice: the disk may hold one whose commit failed at its very end
        self._generation += 1
        manifest = replace(manifest, generation=self._generation, next_seq=self._next_seq)
        try:
            self._manifests.commit(manifest)
        except BaseException:
            self._commit_failed = True
            self._uncertain |= _files(manifest)
            raise
        dropped = (_files(self.manifest) | self._uncertain) - _files(manifest)
        self.manifest, self._commit_failed = manifest, False
        self._uncertain.clear()
        for name in dropped:
            with suppress(OSError):
                (self._directory / name).unlink()

    def _cipher(self, purpose: bytes, file_id: bytes, wrapped_key: bytes) -> Cipher:
        context = self._context(purpose, file_id)
        return self._keyring.cipher(self._keyring.unwrap(wrapped_key, context, under=self._key.secret))

    def _context(self, purpose: bytes, file_id: bytes) -> bytes:
        return purpose + b"\x00" + self._key.collection + file_id

    def _wal_id(self, entry: WalEntry) -> WalId:
        return WalId(self._key.collection, entry.file_id)

    def _remove_strays(self) -> None:
        """What writers left that died before their commit."""
        named = _files(self.manifest) | {f"mf/{self.manifest.generation}"}
        for folder in ("seg", "wal", "mf"):
            keep = frozenset(Path(name).name for name in named if Path(name).parent.name == folder)
            durable.remove_all_but(self._directory / folder, keep)
        for path in self._directory.glob(f"{durable.TEMPORARY}*"):
            with suppress(OSError):
                path.unlink()


def _files(manifest: Manifest) -> frozenset[str]:
    """Segments and logs, relative to the collection's directory."""
    segments = {f"seg/{entry.layout.file}" for entry in manifest.segments}
    return frozenset(segments | {f"wal/{entry.file_id.hex()}" for entry in manifest.wals})
