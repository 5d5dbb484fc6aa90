"""A collection's key records, the files `key.<epoch>`: one, or two while the collection's key is rotated.

    head 40      magic "AKCK", version u16, zeros u16, uid 16, created u64, epoch u32, tenant's epoch u32
    wrapped 61   the key, wrapped under the tenant's key of that epoch; context = "collection key\\0" tenant "\\0" name
                 "\\0" head

`created` is in microseconds since 1970, UTC; integers are big-endian. A record copied to another collection or tenant
opens nothing. The manifest says under which epoch it is; the key of any other epoch is of a rotation that a crash cut
short, or of one that ended, and is destroyed: overwritten with zeros, synced, unlinked.
"""

import hashlib
import hmac
import os
import secrets
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.knowledge.storage.record import from_micros, to_micros
from appliance.knowledge.storage.tenant import Tenant

PREFIX = "key."
_VERSION = 2
_HEAD = struct.Struct(">4sHH16sQII")
_RECORD_BYTES = _HEAD.size + 61


@dataclass(frozen=True, slots=True)
class CollectionKey:
    """collection: 16 random bytes that every file of the collection is bound to, so that no name is needed for it."""

    collection: bytes
    create_time: datetime
    epoch: int
    secret: bytes = field(repr=False)

    def fingerprint(self) -> str:
        """Tells this key from any other, and nothing of it."""
        return hashlib.sha256(hmac.digest(self.secret, b"fingerprint of a destroyed key", "sha256")).hexdigest()


def create(directory: Path, name: str, tenant: Tenant) -> CollectionKey:
    """A new collection's key, its record durable on return. Raises DiskFull, KeyUnavailable."""
    key = CollectionKey(secrets.token_bytes(16), datetime.now(UTC), 1, tenant.keyring.new_key())
    write(directory, name, tenant, key)
    return key


def add(directory: Path, name: str, tenant: Tenant, present: CollectionKey) -> CollectionKey:
    """A key of the next epoch beside the present one, durable on return. Raises DiskFull, KeyUnavailable."""
    key = replace(present, epoch=max(epochs(directory)) + 1, secret=tenant.keyring.new_key())
    write(directory, name, tenant, key)
    return key


def write(directory: Path, name: str, tenant: Tenant, key: CollectionKey) -> None:
    """Its record under the tenant's newest key, durable on return. Raises DiskFull, KeyUnavailable."""
    under = tenant.epoch
    head = _HEAD.pack(b"AKCK", _VERSION, 0, key.collection, to_micros(key.create_time), key.epoch, under)
    wrapped = tenant.wrap(key.secret, _context(tenant, name, head), under)
    durable.write_file(path_of(directory, key.epoch), head + wrapped)


def load(directory: Path, name: str, tenant: Tenant, epoch: int) -> CollectionKey:
    """Raises StoreDamaged, naming the file; KeyUnavailable."""
    path = path_of(directory, epoch)
    raw = durable.read_file(path)
    if len(raw) != _RECORD_BYTES or raw[:4] != b"AKCK":
        raise StoreDamaged(f"{path} is damaged: it is no key record.")
    head = raw[: _HEAD.size]
    _, version, zeros, collection, created, own_epoch, under = _HEAD.unpack(head)
    if version != _VERSION or zeros or own_epoch != epoch:
        raise StoreDamaged(f"{path} is damaged, or of version {version}, which this release does not know.")
    try:
        secret = tenant.unwrap(raw[_HEAD.size :], _context(tenant, name, head), under)
    except StoreDamaged as error:
        raise StoreDamaged(f"{path} is damaged, or of another collection, tenant or box: {error}") from None
    return CollectionKey(collection, from_micros(created), epoch, secret)


def epochs(directory: Path) -> list[int]:
    """Of the records that are there, ascending, also of those that are damaged. Raises StoreDamaged."""
    with durable.disk_errors(directory):
        names = [path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*")]
    return sorted(int(name) for name in names if name.isdecimal())


def rewrap(directory: Path, name: str, tenant: Tenant) -> None:
    """Every record under the tenant's newest key, durable on return. Raises DiskFull, StoreDamaged, KeyUnavailable.

    The old record's bytes may live on in free blocks: the tenant's old key is destroyed next.
    """
    for epoch in epochs(directory):
        if not _is_zeros(path_of(directory, epoch)):
            write(directory, name, tenant, load(directory, name, tenant, epoch))


def destroy(directory: Path, epoch: int) -> None:
    """Overwrite the record, then unlink it; durable on return. Raises DiskFull, StoreDamaged."""
    path = path_of(directory, epoch)
    with durable.disk_errors(path):
        durable.overwrite(path, bytes(max(_RECORD_BYTES, path.stat().st_size)))
        os.unlink(path)
        durable.sync_directory(directory)


def destroy_all_but(directory: Path, keep: int | None) -> None:
    """Raises as destroy."""
    for epoch in epochs(directory):
        if epoch != keep:
            destroy(directory, epoch)


def uid_of(directory: Path) -> bytes:
    """What the newest record says, unproven; nothing where there is none."""
    for epoch in reversed(epochs(directory)):
        raw = durable.read_file(path_of(directory, epoch))
        if len(raw) == _RECORD_BYTES and raw[:4] == b"AKCK":
            return bytes(_HEAD.unpack_from(raw)[3])
    return b""


def path_of(directory: Path, epoch: int) -> Path:
    return directory / f"{PREFIX}{epoch}"


def _is_zeros(path: Path) -> bool:
    """Whether it was being destroyed when the process died."""
    return not any(durable.read_file(path))


def _context(tenant: Tenant, name: str, head: bytes) -> bytes:
    return b"collection key\x00" + tenant.name.encode() + b"\x00" + name.encode() + b"\x00" + head
