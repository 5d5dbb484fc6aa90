"""From format version 1 to 2, at the first start of a release that knows tenants.

Version 1 had <directory>/<collection>/ with one key record `key` under the root key, no high-water marks, and manifests
without the epoch of a key. A collection of it is taken out of the way as .v1-<collection>/, given a key record under
the default tenant's key, a manifest of version 2 and a mark, and then its place, default/<collection>/, by a rename.
No segment and no log is touched. Every step can be the last before a crash: the next start goes on, and what is done
already is done again to the same end.

Copies of the files of version 1 open with the root key alone until that is rotated, whatever is shredded here.
"""

import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable, key, manifest
from appliance.knowledge.storage.key import CollectionKey
from appliance.knowledge.storage.manifest import Manifest, ManifestStore
from appliance.knowledge.storage.mark import Mark, MarkFile
from appliance.knowledge.storage.record import from_micros
from appliance.knowledge.storage.tenant import Tenant
from appliance.ports import Keyring

TENANT = "default"
"""Whose the collections of a release without tenants are."""

_UNDER_WAY = ".v1-"
_KEY = "key"
_KEY_HEAD = struct.Struct(">4sHH16sQ")
_MANIFEST_HEAD = struct.Struct(">4sHH16sQ")
_WRAPPED_BYTES, _SIGNATURE_BYTES = 61, 64
log = structlog.get_logger()


def bring_up_to_date(directory: Path, tenant: Tenant) -> None:
    """Move every collection of version 1 below the tenant. One that is damaged is logged and left as it is.

    tenant: `TENANT`. Raises DiskFull, KeyUnavailable.
    """
    with durable.disk_errors(directory):
        for path in sorted(directory.iterdir()):
            if (path / _KEY).is_file() and not path.name.startswith("."):
                os.rename(path, directory / f"{_UNDER_WAY}{path.name}")
        durable.sync_directory(directory)
    for path in _under_way(directory):
        name = path.name.removeprefix(_UNDER_WAY)
        target = directory / TENANT / name
        try:
            if target.exists():
                raise StoreDamaged(f"{path} cannot become {target}, which is there already.")
            _upgrade(path, name, tenant)
            _move(path, target)
        except StoreDamaged as error:
            log.error("upgrade_failed", collection=name, error=str(error))
        else:
            log.info("collection_upgraded", collection=name, tenant=TENANT)


def left_over(directory: Path) -> Mapping[str, str]:
    """Collections of version 1 that could not be upgraded, by name; why is in the log of the start."""
    problem = "It is of format version 1 and damaged; restore it from a backup and start again."
    return {f"{TENANT}/{path.name.removeprefix(_UNDER_WAY)}": f"{path}: {problem}" for path in _under_way(directory)}


def _under_way(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in directory.iterdir() if path.name.startswith(_UNDER_WAY))
    return []


def _upgrade(path: Path, name: str, tenant: Tenant) -> None:
    """Raises StoreDamaged, DiskFull, KeyUnavailable."""
    if (path / _KEY).is_file() and any(durable.read_file(path / _KEY)):  # anew: keys may have been rotated since
        if not tenant.keys.epochs(tenant.name):
            tenant.keys.add(tenant.name)
        key.write(path, name, tenant, _read_key(path / _KEY, name, tenant.keyring))
    secret = key.load(path, name, tenant, 1)
    with suppress(StoreDamaged):  # of version 2 already
        old = _read_manifest(path, secret, tenant.keyring)
        ManifestStore(path, tenant.keyring, secret).commit(replace(old, generation=old.generation + 1))
    committed, digest = ManifestStore(path, tenant.keyring, secret).load()
    first_seq = committed.wals[0].first_seq if committed.wals else committed.next_seq
    mark = Mark(committed.generation, digest, first_seq)
    MarkFile(tenant.marks, secret.collection, tenant.keyring).create(mark)
    with durable.disk_errors(path / _KEY), suppress(FileNotFoundError):
        durable.overwrite(path / _KEY, bytes(_KEY_HEAD.size + _WRAPPED_BYTES))
        os.unlink(path / _KEY)
        durable.sync_directory(path)


def _move(path: Path, target: Path) -> None:
    with durable.disk_errors(target):
        durable.make_directory(target.parent)
        os.rename(path, target)
        durable.sync_directory(target.parent)
        durable.sync_directory(path.parent)


def _read_key(path: Path, name: str, keyring: Keyring) -> CollectionKey:
    raw = durable.read_file(path)
    head, wrapped = raw[: _KEY_HEAD.size], raw[_KEY_HEAD.size :]
    if head[:8] != _KEY_HEAD.pack(b"AKCK", 1, 0, b"", 0)[:8] or len(wrapped) != _WRAPPED_BYTES:
        raise StoreDamaged(f"{path} is damaged: it is no key record of version 1.")
    try:
        secret = keyring.unwrap(wrapped, b"collection key\x00" + name.encode() + b"\x00" + head)
    except StoreDamaged:
        raise StoreDamaged(f"{path} is damaged, or of another collection or box.") from None
    *_, uid, created = _KEY_HEAD.unpack(head)
    return CollectionKey(uid, from_micros(created), 1, secret)


def _read_manifest(directory: Path, secret: CollectionKey, keyring: Keyring) -> Manifest:
    path, raw, _ = manifest.read_current(directory)
    body, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
    header = _MANIFEST_HEAD.pack(b"AKMF", 1, 0, secret.collection, int(path.name))
    if body[: len(header)] != header:
        raise StoreDamaged(f"{path} is no manifest of version 1 of that collection.")
    try:
        keyring.verify(body, signature)
        wrapped, sealed = body[len(header) :][:_WRAPPED_BYTES], body[len(header) + _WRAPPED_BYTES :]
        plain = keyring.cipher(keyring.unwrap(wrapped, header, under=secret.secret)).open(bytes(12), sealed, header)
    except StoreDamaged as error:
        raise StoreDamaged(f"{path} is damaged: {error}") from None
    return manifest.from_json(json.loads(plain))
