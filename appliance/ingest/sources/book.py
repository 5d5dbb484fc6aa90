"""What administrators said of sources: sticks that may come in, keys that are trusted, places that are watched.

    {"devices": [serial, …], "signers": {name: public key}, "watches": {tenant: {id: {"place", "share", …}}}}

Devices and signers are of the box, watches of a tenant. The file is signed by the box: who can write it can still let
no stick in.
"""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from appliance.errors import InvalidArgument, NotFound
from appliance.ingest.signing import PUBLIC_KEY
from appliance.ports import SignedJson
from appliance.types import Watch

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}", re.ASCII)
MAX_WATCHES, MAX_DEVICES, MAX_SIGNERS = 100, 10_000, 100


@dataclass(frozen=True, slots=True)
class Watched:
    """A place that is watched. place: an absolute path, or the name of a stick's source."""

    id: str
    place: str
    share: bool
    watch: Watch


@dataclass(frozen=True, slots=True)
class _Content:
    devices: frozenset[str] = frozenset()
    signers: Mapping[str, str] = field(default_factory=dict)
    watches: Mapping[str, Mapping[str, Watched]] = field(default_factory=dict)


class SourceBook:
    """Safe to use from many threads: what is asked comes from memory, a change is durable when it returns."""

    def __init__(self, file: SignedJson) -> None:
        """Raises StoreDamaged where the file is not what was written for this box."""
        self._file = file
        self._changing = threading.Lock()
        self._content = _read(file)  # replaced whole, never changed

    @property
    def devices(self) -> frozenset[str]:
        """Serial numbers of sticks that may come in."""
        return self._content.devices

    @property
    def signers(self) -> Mapping[str, str]:
        """Public keys, 64 hex digits, by the names that people gave them."""
        return self._content.signers

    def watches(self) -> Mapping[str, tuple[Watched, ...]]:
        """By tenant, in the order of their ids."""
        return {tenant: tuple(found[id_] for id_ in sorted(found)) for tenant, found in self._content.watches.items()}

    def allow(self, serial: str, allowed: bool) -> None:
        """Let sticks of that serial number in, or no longer. Raises InvalidArgument, DiskFull."""
        if not 0 < len(serial) <= 128 or not serial.isprintable():
            raise InvalidArgument.of("serial", "must be a serial number as `appliance ingest sources` shows it.")
        with self._changing:
            devices = self._content.devices | {serial} if allowed else self._content.devices - {serial}
            if len(devices) > MAX_DEVICES:
                raise InvalidArgument.of("serial", f"would be one too many: at most {MAX_DEVICES} are kept.")
            self._write(replace(self._content, devices=devices))

    def trust(self, signer: str, public_key: str) -> None:
        """Trust a key by a name; '' for a key: trust that name no more. Raises InvalidArgument, DiskFull."""
        if NAME.fullmatch(signer) is None:
            raise InvalidArgument.of("signer", "must have 1 to 64 letters, digits, spaces, '.', '_', '@', '-'.")
        if public_key and PUBLIC_KEY.fullmatch(public_key) is None:
            raise InvalidArgument.of("public_key", "must be an Ed25519 key of 64 hex digits, in small letters.")
        with self._changing:
            signers = {name: key for name, key in self._content.signers.items() if name != signer}
            if public_key:
                signers[signer] = public_key
            if len(signers) > MAX_SIGNERS:
                raise InvalidArgument.of("signer", f"would be one too many: at most {MAX_SIGNERS} are trusted.")
            self._write(replace(self._content, signers=signers))

    def watch(self, tenant: str, place: str, share: bool, watch: Watch) -> Watched:
        """Watch a place from now on, or with other settings. Raises InvalidArgument, DiskFull."""
        if not place.startswith(("/", "sources/usb-")) or "\0" in place or len(place) > 4096:
            raise InvalidArgument.of("path", "must be absolute, or the name of a stick's source.")
        kind = "share" if share else "folder"
        id_ = place.removeprefix("sources/")
        if place.startswith("/"):
            id_ = f"{kind}-{sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
        made = Watched(id_, place, share, watch)
        with self._changing:
            held = {key: old for key, old in self._content.watches.get(tenant, {}).items() if old.place != place}
            if len(held) >= MAX_WATCHES:
                raise InvalidArgument.of("path", f"would be one too many: a tenant watches at most {MAX_WATCHES}.")
            self._write(replace(self._content, watches={**self._content.watches, tenant: {**held, id_: made}}))
        return made

    def unwatch(self, tenant: str, id_: str) -> None:
        """Raises NotFound, DiskFull."""
        with self._changing:
            held = dict(self._content.watches.get(tenant, {}))
            if held.pop(id_, None) is None:
                raise NotFound(f"Nothing is watched as sources/{id_}.")
            self._write(replace(self._content, watches={**self._content.watches, tenant: held}))

    def _write(self, content: _Content) -> None:
        watches = {
            tenant: {id_: _record(watched) for id_, watched in held.items()} for tenant, held in content.watches.items()
        }
        signers = dict(content.signers)
        self._file.write({"devices": sorted(content.devices), "signers": signers, "watches": watches})
        self._content = content


def _record(watched: Watched) -> dict[str, Any]:
    watch = watched.watch
    return {
        "place": watched.place,
        "share": watched.share,
        "collection": watch.collection,
        "readers": sorted(watch.readers),
        "approve": watch.approve,
        "settle_polls": watch.settle_polls,
    }


def _watched(id_: str, record: dict[str, Any]) -> Watched:
    watch = Watch(record["collection"], frozenset(record["readers"]), record["approve"], record["settle_polls"])
    return Watched(id_, record["place"], record["share"], watch)


def _read(file: SignedJson) -> _Content:
    content = file.read()
    if content is None:
        return _Content()
    try:
        return _Content(
            devices=frozenset(content["devices"]),
            signers=dict(content["signers"]),
            watches={
                tenant: {id_: _watched(id_, record) for id_, record in held.items()}
                for tenant, held in content["watches"].items()
            },
        )
    except (KeyError, TypeError, AttributeError):
        raise file.damaged() from None
