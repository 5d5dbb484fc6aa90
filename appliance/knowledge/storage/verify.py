"""Every byte of a collection read and checked, with the daemon running or without it, also where it does not open.

Everything that is wrong is found, not the first thing alone: each check is made for itself, and one that cannot be
made because of another's damage is left out.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import ApplianceError, Cancelled
from appliance.knowledge.soundness import problems
from appliance.knowledge.storage import durable, key, manifest, record
from appliance.knowledge.storage.key import CollectionKey
from appliance.knowledge.storage.manifest import Manifest, ManifestStore, SegmentEntry, WalEntry
from appliance.knowledge.storage.mark import Mark, MarkFile
from appliance.knowledge.storage.record import Entry, Record
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.segment import SegmentFile, SegmentId
from appliance.knowledge.storage.tenant import Tenant
from appliance.knowledge.storage.wal import WalId, WalReader
from appliance.ports import Cipher, Progress
from appliance.types import Fault

_PIECE_BYTES = 1 << 20
_NO_MEMORY_BYTES = 1 << 20


def verify(
    directory: Path, name: str, tenant: Tenant, data: Path, progress: Progress | None, live: bool
) -> tuple[Fault, ...]:
    """All that is wrong. data: what files are named from. live: the collection is open in this process.

    progress: in files; may raise. Raises nothing for damage.
    """
    faults = _Verification(directory, name, tenant, data, progress, live).run()
    if faults and live:  # a file may have been replaced while it was read, and that is no fault
        again = set(_Verification(directory, name, tenant, data, None, live).run())
        return tuple(fault for fault in faults if fault in again)
    return faults


@dataclass
class _Verification:
    directory: Path
    name: str
    tenant: Tenant
    data: Path
    progress: Progress | None
    live: bool
    faults: list[Fault] = field(default_factory=list)
    told: set[Path] = field(default_factory=set)
    total: int = 0

    def run(self) -> tuple[Fault, ...]:
        secret, found, digest = self._open()
        files = [path for path in sorted(self.directory.rglob("*")) if path.is_file()]
        self.total = len(files)
        if secret and found:
            with self._blaming(self.directory / "CURRENT"):
                self._check_mark(secret, found, digest)
            held: dict[str, Path] = {}
            for entry in found.segments:
                self._check_segment(secret, entry, found.dimension, held)
            self._check_logs(secret, found, held)
        self._check_names(files, secret, found)
        return tuple(dict.fromkeys(self.faults))

    def _open(self) -> tuple[CollectionKey | None, Manifest | None, bytes]:
        secret: CollectionKey | None = None
        found: tuple[Manifest, bytes] | None = None
        with self._blaming(self.directory / "CURRENT"):
            generation, _ = manifest.current(self.directory)
            with self._blaming(self.directory / "mf" / generation):
                epoch = manifest.key_epoch(self.directory)
                with self._blaming(key.path_of(self.directory, epoch)):
                    secret = key.load(self.directory, self.name, self.tenant, epoch)
                if secret:
                    found = ManifestStore(self.directory, self.tenant.keyring, secret).load()
        return secret, *(found or (None, b""))

    def _check_mark(self, secret: CollectionKey, found: Manifest, digest: bytes) -> None:
        marks = MarkFile(self.tenant.marks, secret.collection, self.tenant.keyring)
        with self._blaming(marks.path):
            mark = marks.read()
            if marks.is_torn:
                self._add(marks.path, "One of its two slots is not what was written; the other holds.")
            mark.check(self.directory / "CURRENT", Mark(found.generation, digest, found.next_seq))

    def _check_segment(self, secret: CollectionKey, entry: SegmentEntry, dimension: int, held: dict[str, Path]) -> None:
        path = self.directory / "seg" / entry.layout.file
        with self._blaming(path):
            cipher = self._cipher(secret, b"segment", entry)
            segment = SegmentId(secret.collection, entry.file_id)
            memory = Memory.of(_NO_MEMORY_BYTES, _NO_MEMORY_BYTES)
            file = SegmentFile(self.directory / "seg", entry.layout, segment, cipher, memory)
            damage = list(file.check())
            for problem in damage or problems(file, entry, dimension):
                self._add(path, problem)
            if not damage:
                ids = file.read("ids").hex()
                for at in range(0, len(ids), 32):
                    self._check_once(ids[at : at + 32], path, held)
        self._tell(path)

    def _check_logs(self, secret: CollectionKey, found: Manifest, held: dict[str, Path]) -> None:
        next_seq = found.next_seq
        for entry in found.wals:
            wal = WalId(secret.collection, entry.file_id)
            path = self.directory / "wal" / wal.name
            with self._blaming(path):
                reader = WalReader(path.parent, wal, self._cipher(secret, b"log", entry), entry.first_seq)
                for payload in reader.records(entry.end_bytes):
                    for said in record.decode(payload):
                        self._check_record(path, said, found.dimension, held)
                next_seq = reader.next_seq
            self._tell(path)
        with self._blaming(self.directory / "wal"):
            mark = MarkFile(self.tenant.marks, secret.collection, self.tenant.keyring).read()
            if next_seq < mark.next_seq and not self.faults:
                last = found.wals[-1].file_id.hex() if found.wals else ""
                missing = mark.next_seq - next_seq
                self._add(self.directory / "wal" / last, f"{missing} records that it held are missing at its end.")

    def _check_record(self, path: Path, said: Record, dimension: int, held: dict[str, Path]) -> None:
        if not isinstance(said, Entry):
            return
        self._check_once(said.document.id, path, held)
        spans = [(piece.span, len(said.pages[piece.span.page - 1])) for piece in said.pieces]
        if not all(0 <= span.start <= span.end <= length for span, length in spans):
            self._add(path, f"A passage of document {said.document.id} lies outside of its page.")
        if said.vectors.shape != (len(said.pieces), dimension):
            self._add(path, f"Document {said.document.id} has vectors of another shape.")

    def _check_once(self, document: str, path: Path, held: dict[str, Path]) -> None:
        if (other := held.setdefault(document, path)) != path:
            self._add(path, f"Document {document} is in {other.name}, too.")

    def _check_names(self, files: list[Path], secret: CollectionKey | None, found: Manifest | None) -> None:
        """What nothing names; and where nothing could be opened, whether segments are what their names say."""
        named = {self.directory / "CURRENT"}
        if found and secret:
            named |= {self.directory / "mf" / str(found.generation), key.path_of(self.directory, secret.epoch)}
            named |= {self.directory / "seg" / entry.layout.file for entry in found.segments}
            named |= {self.directory / "wal" / entry.file_id.hex() for entry in found.wals}
        for path in files:
            if found is None:
                if path.parent.name == "seg":
                    self._check_digest(path)
            elif path not in named and not self.live:
                self._add(path, "Nothing names it: it was left by a writer that died, and the next opening removes it.")
            self._tell(path)

    def _check_digest(self, path: Path) -> None:
        digest = hashlib.sha256()
        with self._blaming(path), durable.disk_errors(path), open(path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
            if digest.hexdigest() != path.name:
                self._add(path, "Its content is not what its name says.")

    def _cipher(self, secret: CollectionKey, purpose: bytes, entry: SegmentEntry | WalEntry) -> Cipher:
        context = purpose + b"\x00" + secret.collection + entry.file_id
        keyring = self.tenant.keyring
        return keyring.cipher(keyring.unwrap(entry.wrapped_key, context, under=secret.secret))

    @contextmanager
    def _blaming(self, path: Path) -> Iterator[None]:
        """Damage that is met becomes a fault of that file, and the work goes on behind it."""
        try:
            yield
        except Cancelled:
            raise
        except ApplianceError as error:
            self._add(path, str(error))
        except (ValueError, IndexError, KeyError, TypeError) as error:
            self._add(path, f"What it holds cannot be read: {type(error).__name__}.")

    def _add(self, path: Path, problem: str) -> None:
        named = path.relative_to(self.data) if path.is_relative_to(self.data) else path
        self.faults.append(Fault(self.name, str(named), problem))

    def _tell(self, path: Path) -> None:
        if self.progress and path not in self.told:
            self.told.add(path)
            self.progress.update(len(self.told), max(self.total, len(self.told)), path.name)
