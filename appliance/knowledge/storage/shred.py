"""Keys of tenants and collections replaced and destroyed: rotation, and crypto-shredding with its proof.

A rotation of a tenant's key adds the next epoch, wraps every collection key anew, and destroys the epochs before. Any
step may be the last before a crash: two epochs are there then, each key record says under which it is, and `finish`
goes on. What a key record was before lives on in backups, and is of no use once its epoch is destroyed: so shredding a
collection is a rotation without it.

A proof is a statement in JSON, signed: {"format": "appliance shred proof 1", "collection", "tenant", "uid", "time",
"key_fingerprint" (what `CollectionKey.fingerprint` was, "" where the key could not be read any more), "files_removed",
"bytes_removed", "tenant_epochs_destroyed"}.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import KeyUnavailable, StoreDamaged
from appliance.knowledge.storage import durable, key, store
from appliance.knowledge.storage.mark import MarkFile
from appliance.knowledge.storage.tenant import Tenant
from appliance.types import ShredProof

FORMAT = "appliance shred proof 1"


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


def destroy(directory: Path, name: str, tenant: Tenant, others: Mapping[Path, str]) -> Shredded:
    """Destroy the keys of the collection that lies in `directory`, then its files; it may be called again.

    others: as for `rotate`, without this one. Raises as `rotate`.
    """
    try:
        secret = store.load_key(directory, name, tenant)
    except (StoreDamaged, KeyUnavailable):  # damaged, or an earlier attempt came so far
        uid = key.uid_of(directory)
        fingerprint = ""
    else:
        uid, fingerprint = secret.collection, secret.fingerprint()
    destroyed = rotate(tenant, others)
    key.destroy_all_but(directory, None)
    if uid:
        MarkFile(tenant.marks, uid, tenant.keyring).remove()
    files = [path for path in directory.rglob("*") if path.is_file()]
    size_bytes = sum(path.stat().st_size for path in files)
    shutil.rmtree(directory, ignore_errors=True)
    with durable.disk_errors(directory.parent):
        durable.sync_directory(directory.parent)
    return Shredded(name, tenant.name, uid.hex(), fingerprint, len(files), size_bytes, destroyed)


def prove(shredded: Shredded, tenant: Tenant) -> ShredProof:
    facts = {"format": FORMAT, "time": datetime.now(UTC).isoformat()} | asdict(shredded)
    statement = json.dumps(facts, sort_keys=True, indent=1)
    return ShredProof(statement, tenant.keyring.sign(statement.encode()))
