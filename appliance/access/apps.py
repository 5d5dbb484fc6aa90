"""App keys: how an application without a certificate says who it is.

A key is `id.secret`. The secret is 256 random bits, told once, at creation; kept is BLAKE2b of it under a key that the
box's keyring wraps (RFC 7693). A slow hash such as argon2 is for secrets that can be guessed: 2^256 can't be, and this
one is computed at every call.

    <data>/access/apps.json   {"signature": hex, "hash_key": wrapped, base64; "keys": [{id, hash, tenant, user, …}]}

The file is signed by the box and replaced in one step: who can write it can still give no key another owner or right.
"""

import base64
import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from appliance.access.roles import identity_uri
from appliance.access.signed import SignedFile
from appliance.errors import InvalidArgument, KeyRefused, NotFound
from appliance.ports import Keyring
from appliance.types import AppKey, AppScope, Principal

DEFAULT_LIFETIME = timedelta(days=90)
SHORTEST_LIFETIME, LONGEST_LIFETIME = timedelta(minutes=1), timedelta(days=366)
USE_IS_COARSE = timedelta(hours=1)
CONTEXT = b"appliance app keys"
PURPOSE = b"app keys 1\n"
UNKNOWN = "The app key is not one of this box."
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, repr=False)
class _Stored:
    key: AppKey
    hash: bytes


class AppKeys:
    """The app keys of a box. Safe to use from many threads."""

    def __init__(self, path: Path, keyring: Keyring, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises StoreDamaged where the file is not what was written for this box."""
        self._file, self._keyring, self._clock = SignedFile(path, keyring, PURPOSE), keyring, clock
        self._lock = threading.Lock()  # of what is in memory; never held while the disk is waited for
        self._writing = threading.Lock()  # taken before the other
        self._unsaved = False
        found = _read(self._file)
        self._wrapped, self._stored = found or (keyring.wrap(keyring.new_key(), CONTEXT), {})
        if not found:
            self._write(self._stored)
        self._hash_key = keyring.unwrap(self._wrapped, CONTEXT)

    def create(
        self,
        owner: Principal,
        scopes: Collection[AppScope],
        collections: Collection[str] = (),
        models: Collection[str] = (),
        lifetime: timedelta = DEFAULT_LIFETIME,
    ) -> tuple[AppKey, str]:
        """A new key and its token `id.secret`, which is kept nowhere. Raises InvalidArgument, DiskFull."""
        if not scopes:
            raise InvalidArgument.of("scopes", "must name at least one: inference, knowledge or metrics.")
        if not SHORTEST_LIFETIME <= lifetime <= LONGEST_LIFETIME:
            raise InvalidArgument.of("lifetime", "must be between a minute and 366 days.")
        try:
            identity_uri(owner)
        except ValueError:
            problem = "must be plain names: letters, digits, '-', and in a user also '.' and '_'."
            raise InvalidArgument.of("user, tenant", problem) from None
        now, secret = self._clock(), secrets.token_urlsafe(32)
        key = AppKey(
            id=secrets.token_hex(6),
            tenant=owner.tenant,
            user=owner.user,
            scopes=frozenset(scopes),
            create_time=now,
            expire_time=now + lifetime,
            collections=frozenset(collections),
            models=frozenset(models),
        )
        stored = _Stored(key, self._hash(secret))
        with self._writing:
            self._write(self._snapshot() | {key.id: stored})
            with self._lock:
                self._stored[key.id] = stored
        log.info("access.app_key_made", key=key.id, user=key.user, tenant=key.tenant)
        return key, f"{key.id}.{secret}"

    def list(self) -> tuple[AppKey, ...]:
        """Newest first."""
        with self._lock:
            found = [stored.key for stored in self._stored.values()]
        return tuple(sorted(found, key=lambda key: (key.create_time, key.id), reverse=True))

    def revoke(self, id: str) -> AppKey:
        """Refuse the key from here on; durable when this returns. Doing so again changes nothing.

        Raises NotFound; DiskFull, and then the key is refused for as long as this process lives, which tries again.
        """
        with self._lock:
            stored = self._stored.get(id)
            if stored is None:
                raise NotFound(f"There is no app key {id}.")
            if stored.key.revoke_time is None:
                stored = replace(stored, key=replace(stored.key, revoke_time=self._clock()))
                self._stored[id] = stored
                self._unsaved = True
                log.info("access.app_key_revoked", key=id)
        self.save()
        return stored.key

    def authenticate(self, token: str) -> AppKey:
        """The key that a token proves to hold. Microseconds; never touches the disk. Raises KeyRefused."""
        id, _, secret = token.partition(".")
        given = self._hash(secret)
        with self._lock:
            stored = self._stored.get(id)
            if stored is None or not hmac.compare_digest(stored.hash, given):
                raise KeyRefused(UNKNOWN)
            key, now = stored.key, self._clock()
            if key.revoke_time is not None:
                raise KeyRefused(f"The app key {id} was revoked.")
            if now >= key.expire_time:
                raise KeyRefused(f"The app key {id} expired on {key.expire_time:%Y-%m-%d}.")
            if key.last_use_time is None or now - key.last_use_time >= USE_IS_COARSE:
                key = replace(key, last_use_time=now)
                self._stored[id] = replace(stored, key=key)
                self._unsaved = True
        return key

    def save(self) -> None:
        """Write what is not on disk yet: times of last use, a revocation that found no room. Raises DiskFull."""
        with self._writing:
            with self._lock:
                unsaved, self._unsaved = self._unsaved, False
            try:
                if unsaved:
                    self._write(self._snapshot())
            except BaseException:
                self._unsaved = True
                raise

    def rewrap(self) -> None:
        """Wrap the hash key anew, after the root key was changed; durable on return. Raises DiskFull."""
        with self._writing:
            self._wrapped = self._keyring.wrap(self._hash_key, CONTEXT)
            self._write(self._snapshot())

    def _hash(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode("utf-8", "replace"), key=self._hash_key, digest_size=32).digest()

    def _snapshot(self) -> dict[str, _Stored]:
        with self._lock:
            return dict(self._stored)

    def _write(self, stored: Mapping[str, _Stored]) -> None:
        keys = [_record(one) for one in stored.values()]
        self._file.write({"hash_key": base64.b64encode(self._wrapped).decode(), "keys": keys})


def _record(stored: _Stored) -> dict[str, Any]:
    key = stored.key
    return {
        "id": key.id,
        "hash": stored.hash.hex(),
        "tenant": key.tenant,
        "user": key.user,
        "scopes": sorted(scope.value for scope in key.scopes),
        "collections": sorted(key.collections),
        "models": sorted(key.models),
        "create_time": key.create_time.isoformat(),
        "expire_time": key.expire_time.isoformat(),
        "last_use_time": key.last_use_time.isoformat() if key.last_use_time else None,
        "revoke_time": key.revoke_time.isoformat() if key.revoke_time else None,
    }


def _read(file: SignedFile) -> tuple[bytes, dict[str, _Stored]] | None:
    """The wrapped hash key, and the keys by id; None where nothing was written yet. Raises StoreDamaged."""
    content = file.read()
    if content is None:
        return None
    try:
        stored = [_restore(record) for record in content["keys"]]
        return base64.b64decode(content["hash_key"], validate=True), {one.key.id: one for one in stored}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise file.damaged() from None


def _restore(record: dict[str, Any]) -> _Stored:
    def moment(name: str) -> datetime | None:
        return datetime.fromisoformat(record[name]) if record[name] else None

    key = AppKey(
        id=record["id"],
        tenant=record["tenant"],
        user=record["user"],
        scopes=frozenset(map(AppScope, record["scopes"])),
        create_time=datetime.fromisoformat(record["create_time"]),
        expire_time=datetime.fromisoformat(record["expire_time"]),
        collections=frozenset(record["collections"]),
        models=frozenset(record["models"]),
        last_use_time=moment("last_use_time"),
        revoke_time=moment("revoke_time"),
    )
    return _Stored(key, bytes.fromhex(record["hash"]))
