"""The manifest: the one file that says what a collection consists of. Each change of segments or logs writes the next.

    mf/<generation>   header 36: magic "AKMF", version u16, zeros u16, collection 16, generation u64, epoch u32 of the
                      collection's key; big-endian
                      wrapped key 61: a key of this file alone, wrapped by the collection's key, context = header
                      AES-256-GCM ciphertext and tag of JSON; nonce zero, AAD = header
                      Ed25519 signature 64 over all before it
    CURRENT           "<generation> <sha256 of mf/<generation>>\\n"

CURRENT is the commit: it is replaced after everything that the manifest names is durable, and before anything is
acknowledged that depends on it. So the manifest that CURRENT names is the newest one, whole, or something is damaged;
there is no falling back to an older one, which would lose what was acknowledged. That nobody puts an older CURRENT back
is the high-water mark's to tell (mark.py).
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, StoreDamaged
from appliance.knowledge.storage import durable
from appliance.knowledge.storage.key import CollectionKey
from appliance.knowledge.storage.segment import Layout
from appliance.ports import Keyring

VERSION = 2
_HEADER = struct.Struct(">4sHH16sQI")
_VERSION_AT, _EPOCH_AT = 4, 32
_WRAPPED_BYTES = 61
_SIGNATURE_BYTES = 64
_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment of the collection. number: its name in the catalogue."""

    number: int
    file_id: bytes
    wrapped_key: bytes
    documents: int
    passages: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class WalEntry:
    """A log to replay. end_bytes: where it ends; None for the last one, which may still grow."""

    file_id: bytes
    wrapped_key: bytes
    first_seq: int
    end_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a collection consists of. deleted: documents that are still in a segment and no longer exist.

    next_seq: of the first record in a log that is not named here. embedder, dimension, embedder_name: of every vector
    in the collection; the name is its model's, '' for the built-in one. readers: of the documents in segments whose
    readers are no longer those that their segment says. branch: another one after each rollback that was accepted: what
    is written then has numbers that something else had before.
    """

    generation: int
    embedder: str
    dimension: int
    next_seq: int = 1
    segments: tuple[SegmentEntry, ...] = ()
    wals: tuple[WalEntry, ...] = ()
    deleted: frozenset[str] = frozenset()
    readers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    embedder_name: str = ""
    branch: str = ""


@dataclass(frozen=True, slots=True)
class ManifestStore:
    """The manifests of one collection. One writer at a time. Its repr shows no key."""

    directory: Path
    keyring: Keyring
    key: CollectionKey

    def commit(self, manifest: Manifest) -> bytes:
        """Make it the current one, durable on return; its sha256. The others are unlinked then.

        Raises DiskFull. Which is the current one is left open then, and every one that may be is kept.
        """
        folder, name = self.directory / "mf", str(manifest.generation)
        self._settle()
        raw = self._seal(manifest)
        digest = hashlib.sha256(raw)
        durable.write_file(folder / name, raw)
        try:
            durable.write_file(self.directory / "CURRENT", f"{name} {digest.hexdigest()}\n".encode())
        except BaseException:
            with suppress(ApplianceError, OSError):
                if current(self.directory)[0] != name:
                    (folder / name).unlink()
            raise
        with suppress(ApplianceError):  # opening does it, too
            durable.remove_all_but(folder, frozenset({name}))
        return digest.digest()

    def _settle(self) -> None:
        """A commit that failed left open which manifest is current: from here on it is the one that CURRENT names."""
        with durable.disk_errors(self.directory):
            several = len(os.listdir(self.directory / "mf")) > 1
            if several:
                durable.sync_directory(self.directory)
        if several:
            durable.remove_all_but(self.directory / "mf", frozenset({current(self.directory)[0]}))

    def load(self) -> tuple[Manifest, bytes]:
        """The current one, and its sha256. Raises StoreDamaged, naming the file."""
        path, raw, digest = read_current(self.directory)
        try:
            return self._open(raw, int(path.name)), digest
        except StoreDamaged as error:
            raise StoreDamaged(f"{path} is damaged: {error}") from None

    def _seal(self, manifest: Manifest) -> bytes:
        header = _HEADER.pack(b"AKMF", VERSION, 0, self.key.collection, manifest.generation, self.key.epoch)
        key = self.keyring.new_key()
        wrapped = self.keyring.wrap(key, header, under=self.key.secret)
        plaintext = json.dumps(_to_json(manifest), separators=(",", ":")).encode()
        body = header + wrapped + self.keyring.cipher(key).seal(_NONCE, plaintext, header)
        return body + self.keyring.sign(body)

    def _open(self, raw: bytes, generation: int) -> Manifest:
        body, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
        self.keyring.verify(body, signature)
        header = _HEADER.pack(b"AKMF", VERSION, 0, self.key.collection, generation, self.key.epoch)
        if body[: _HEADER.size] != header:
            raise StoreDamaged("It is of another collection, generation or epoch.")
        wrapped, sealed = body[_HEADER.size :][:_WRAPPED_BYTES], body[_HEADER.size + _WRAPPED_BYTES :]
        key = self.keyring.unwrap(wrapped, header, under=self.key.secret)
        manifest = from_json(json.loads(self.keyring.cipher(key).open(_NONCE, sealed, header)))
        if manifest.generation != generation:
            raise StoreDamaged("It is of another generation.")
        return manifest


def current(directory: Path) -> tuple[str, str]:
    """The generation that CURRENT names, and the sha256 of its manifest. Raises StoreDamaged."""
    path = directory / "CURRENT"
    named = re.fullmatch(rb"(\d{1,19}) ([0-9a-f]{64})\n", durable.read_file(path))
    if not named:
        raise StoreDamaged(f"{path} is damaged.")
    return named[1].decode(), named[2].decode()


def key_epoch(directory: Path) -> int:
    """The epoch of the key that the current manifest says it is under, which opening it proves.

    Raises StoreDamaged, naming the file, also for a version that this release does not know.
    """
    path, raw, _ = read_current(directory)
    head = raw[: _HEADER.size]
    if len(head) < _HEADER.size or head[:4] != b"AKMF":
        raise StoreDamaged(f"{path} is damaged: it is no manifest.")
    (version,) = struct.unpack_from(">H", head, _VERSION_AT)
    if version != VERSION:
        raise StoreDamaged(f"{path} is damaged, or of version {version}; this release reads version {VERSION}.")
    (epoch,) = struct.unpack_from(">I", head, _EPOCH_AT)
    return int(epoch)


def read_current(directory: Path) -> tuple[Path, bytes, bytes]:
    """The manifest that CURRENT names: its path, its bytes, their sha256. Raises StoreDamaged, naming both files."""
    generation, digest = current(directory)
    path = directory / "mf" / generation
    try:
        raw = durable.read_file(path)
    except StoreDamaged as error:
        raise StoreDamaged(f"{error} {directory / 'CURRENT'} names it.") from error
    if hashlib.sha256(raw).hexdigest() != digest:
        raise StoreDamaged(f"{path} is damaged: it is not the manifest that {directory / 'CURRENT'} names.")
    return path, raw, bytes.fromhex(digest)


def _to_json(manifest: Manifest) -> dict[str, Any]:
    readers = {document: sorted(groups) for document, groups in sorted(manifest.readers.items())}
    facts = asdict(manifest) | {"deleted": sorted(manifest.deleted), "readers": readers}
    for entry in (*facts["segments"], *facts["wals"]):
        entry["file_id"], entry["wrapped_key"] = entry["file_id"].hex(), entry["wrapped_key"].hex()
    return facts


def from_json(facts: dict[str, Any]) -> Manifest:
    """The manifest of those facts; what they do not name is as its default says."""
    for entry in (*facts["segments"], *facts["wals"]):
        entry["file_id"], entry["wrapped_key"] = bytes.fromhex(entry["file_id"]), bytes.fromhex(entry["wrapped_key"])
    for entry in facts["segments"]:
        places = {name: (start, length) for name, (start, length) in entry["layout"]["sections"].items()}
        entry["layout"] = Layout(**entry["layout"] | {"sections": places})
    return Manifest(
        **facts
        | {
            "segments": tuple(SegmentEntry(**entry) for entry in facts["segments"]),
            "wals": tuple(WalEntry(**entry) for entry in facts["wals"]),
            "deleted": frozenset(facts["deleted"]),
            "readers": {document: frozenset(groups) for document, groups in facts.get("readers", {}).items()},
        }
    )
