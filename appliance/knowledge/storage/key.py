"""A collection's key record, the file `key`: magic "AKCK", version u16, zeros u16, uid 16, created u64, wrapped 61.

`created` is in microseconds since 1970, UTC; integers are big-endian. The key is wrapped by the root key; its context
is the collection's name and everything before it in the record, so a record copied to another collection opens
nothing. Destroying a collection overwrites the record with zeros first: without it no other file of the collection
can be read. The zeros stay as long as the folder, and tell a start that a drop was begun.
"""

import os
import secrets
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.knowledge.storage.record import from_micros, to_micros
from appliance.ports import Keyring

NAME = "key"
_VERSION = 1
_HEAD = struct.Struct(">4sHH16sQ")
_RECORD_BYTES = _HEAD.size + 61


@dataclass(frozen=True, slots=True)
class CollectionKey:
    """collection: 16 random bytes that every file of the collection is bound to, so that no name is needed for it."""

    collection: bytes
    create_time: datetime
    secret: bytes = field(repr=False)


def create(directory: Path, name: str, keyring: Keyring) -> CollectionKey:
    """A new key, its record durable on return. Raises DiskFull."""
    key = CollectionKey(secrets.token_bytes(16), datetime.now(UTC), keyring.new_key())
    head = _HEAD.pack(b"AKCK", _VERSION, 0, key.collection, to_micros(key.create_time))
    durable.write_file(directory / NAME, head + keyring.wrap(key.secret, _context(name, head)))
    return key


def load(directory: Path, name: str, keyring: Keyring) -> CollectionKey:
    """Raises StoreDamaged, naming the file."""
    path = directory / NAME
    raw = durable.read_file(path)
    if len(raw) != _RECORD_BYTES or raw[:6] != _HEAD.pack(b"AKCK", _VERSION, 0, b"", 0)[:6]:
        raise StoreDamaged(f"{path} is damaged, or of a version that this release does not know.")
    head = raw[: _HEAD.size]
    try:
        secret = keyring.unwrap(raw[_HEAD.size :], _context(name, head))
    except StoreDamaged:
        raise StoreDamaged(f"{path} is damaged, or of another collection or box.") from None
    *_, collection, created = _HEAD.unpack(head)
    return CollectionKey(collection, from_micros(created), secret)


def destroy(directory: Path) -> None:
    """Overwrite the record in place; durable on return. Raises DiskFull, StoreDamaged."""
    path = directory / NAME
    with durable.disk_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            durable.write_at(descriptor, bytes(_RECORD_BYTES), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_destroyed(directory: Path) -> bool:
    """Whether `destroy` was here. A record that cannot be read is another matter: False."""
    try:
        return durable.read_file(directory / NAME) == bytes(_RECORD_BYTES)
    except StoreDamaged:
        return False


def _context(name: str, head: bytes) -> bytes:
    return b"collection key\x00" + name.encode() + b"\x00" + head
