"""Keys of tenants and collections replaced and destroyed: rotation, and crypto-shredding with its proof.

A rotation of a tenant's key adds the next epoch, wraps every collection key anew, and destroys the epochs before. Any
step may be the last before a crash: two epochs are there then, each key record says under which it is, and `finish`
goes on. What a key record was before lives on in backups, and is of no use once its epoch is destroyed: so shredding a
collection is a rotation without it.

A collection's own key records are overwritten, and its files removed, before anything new is written: a full disk, or a
damaged record of another collection, keeps neither. What the proof is to state lies signed in its folder meanwhile.

A proof is a statement in JSON, signed: {"format": "appliance shred proof 1", "collection", "tenant", "uid", "time",
"key_fingerprint" (what `CollectionKey.fingerprint` was, "" where the key could not be read any more), "files_removed",
"bytes_removed", "tenant_epochs_destroyed"}. It is kept in <data>/keys/proofs/, with its signature in hexadecimal.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from appliance.errors import ApplianceError, KeyUnavailable, StoreDamaged
from appliance.knowledge.storage import durable, key, store
from appliance.knowledge.storage.mark import MarkFile
from appliance.knowledge.storage.tenant import Tenant
from appliance.types import ShredProof

FORMAT = "appliance shred proof 1"
_NOTE = "shredding"
_NOTE_FORMAT = b"appliance shredding begun 1\x00"
_SIGNATURE_BYTES = 64
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Shredded:
    """What a proof states. uid: hexadecimal, "" where it could not be read any more."""

    collection: str
    tenant: str
    uid: str
    key_fingerprint: str
    files_removed: int
    bytes_removed: int
    tenant_epochs_destroyed: tuple[int, ...]


def rotate(tenant: Tenant, homes: Mapping[Path, str]) -> tuple[int, ...]:
    """A new tenant key in place of all there are; the epochs that were destroyed.

    homes: every directory that holds a key record of the tenant's, and its collection's name. Raises StoreDamaged
    naming a record that cannot be wrapped anew, KeyUnavailable, DiskFull; the old keys stay then.
    """
    tenant.keys.add(tenant.name)
    return finish(tenant, homes)


def finish(tenant: Tenant, homes: Mapping[Path, str]) -> tuple[int, ...]:
    """The end of a rotation that was begun, if one was. Raises as `rotate`."""
    old = tenant.keys.epochs(tenant.name)[:-1]
    if old:
        for directory, name in homes.items():
            key.rewrap(directory, name, tenant)
        for epoch in old:
            tenant.keys.destroy(tenant.name, epoch)
    return old


def destroy(directory: Path, name: str, tenant: Tenant, others: Mapping[Path, str]) -> ShredProof:
    """Destroy the keys of the collection that lies in `directory`, then its files; the proof, which is kept, too.

    Nobody else uses the folder. others: as for `rotate`, without this one. Raises as `rotate`, and StoreDamaged where a
    file cannot be removed: called again, it goes on where it stopped, and states the same.
    """
    shredded = _read_note(directory, tenant)
    if not shredded:
        shredded = _survey(directory, name, tenant)
        with suppress(ApplianceError):  # where the disk is full, what is removed next makes room
            _write_note(directory, shredded, tenant)
    key.destroy_all_but(directory, None)
    _remove_files(directory)
    if not (directory / _NOTE).exists():
        _write_note(directory, shredded, tenant)
    epochs = tenant.keys.epochs(tenant.name)
    if epochs and epochs[-1] in shredded.tenant_epochs_destroyed:  # else an earlier attempt came so far
        tenant.keys.add(tenant.name)
    finish(tenant, others)
    uid = bytes.fromhex(shredded.uid)
    if uid and uid not in map(key.uid_of, others):
        MarkFile(tenant.marks, uid, tenant.keyring).remove()
    proof = _prove(shredded, tenant)
    path = _keep(proof, tenant.proofs / f"{tenant.name}{directory.name}.json")
    done = directory.with_name(f"{durable.TEMPORARY}{directory.name}")  # a start removes it, if this does not
    with durable.disk_errors(directory):
        directory.rename(done)
        durable.sync_directory(directory.parent)
    shutil.rmtree(done, ignore_errors=True)
    log.info("collection_shredded", tenant=tenant.name, collection=name, uid=shredded.uid, proof=str(path))
    return proof


def _survey(directory: Path, name: str, tenant: Tenant) -> Shredded:
    """What is about to be destroyed."""
    try:
        secret = store.load_key(directory, name, tenant)
    except (StoreDamaged, KeyUnavailable):
        uid, fingerprint = key.uid_of(directory), ""
    else:
        uid, fingerprint = secret.collection, secret.fingerprint()
    with durable.disk_errors(directory):
        records = {key.path_of(directory, epoch) for epoch in key.epochs(directory)}
        files = [path for path in directory.rglob("*") if path.is_file() and path not in records]
        size_bytes = sum(path.stat().st_size for path in files)
    epochs = tenant.keys.epochs(tenant.name)
    return Shredded(name, tenant.name, uid.hex(), fingerprint, len(files), size_bytes, epochs)


def _remove_files(directory: Path) -> None:
    """All but the note. Raises StoreDamaged, naming what cannot be removed."""
    with durable.disk_errors(directory):
        paths = [path for path in directory.iterdir() if path.name != _NOTE]
    for path in paths:
        with durable.disk_errors(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    with durable.disk_errors(directory):
        durable.sync_directory(directory)


def _write_note(directory: Path, shredded: Shredded, tenant: Tenant) -> None:
    raw = json.dumps(asdict(shredded)).encode()
    durable.write_file(directory / _NOTE, tenant.keyring.sign(_NOTE_FORMAT + raw) + raw)


def _read_note(directory: Path, tenant: Tenant) -> Shredded | None:
    """What an earlier attempt was about to destroy; None where there was none that came so far."""
    if not (directory / _NOTE).is_file():
        return None
    note = durable.read_file(directory / _NOTE)
    signature, raw = note[:_SIGNATURE_BYTES], note[_SIGNATURE_BYTES:]
    with suppress(StoreDamaged):
        tenant.keyring.verify(_NOTE_FORMAT + raw, signature)
        facts = json.loads(raw)
        return Shredded(**facts | {"tenant_epochs_destroyed": tuple(facts["tenant_epochs_destroyed"])})
    return None


def _prove(shredded: Shredded, tenant: Tenant) -> ShredProof:
    facts = {"format": FORMAT, "time": datetime.now(UTC).isoformat()} | asdict(shredded)
    statement = json.dumps(facts, sort_keys=True, indent=1)
    return ShredProof(statement, tenant.keyring.sign(statement.encode()))


def _keep(proof: ShredProof, path: Path) -> Path:
    """Where it was put."""
    with durable.disk_errors(path):
        durable.make_directory(path.parent)
    kept = {"statement": proof.statement, "signature": proof.signature.hex()}
    durable.write_file(path, json.dumps(kept, indent=1).encode())
    return path
