"""The box's keys, unlocked from a file key slot.

The root key is rotated without touching data: what it wraps is wrapped anew under the next one, which lies in the slot
`next.key` meanwhile, and then the old one is destroyed and the next takes its name. A start that finds both opens what
either wrapped, and whoever composes the box calls `rotate` again.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.errors import KeyUnavailable, StoreDamaged
from appliance.ports import Cipher
from appliance.types import PassphraseCost
from appliance.vault import envelope, files
from appliance.vault.passphrase import stretch

SLOT = Path("slots") / "file.key"
NEXT_SLOT = Path("slots") / "next.key"
SIGNING = Path("signing.key")
_SIGNING_CONTEXT = b"ed25519 signing key of this box"


class FileKeyring:
    """`ports.Keyring` over a root key that lies in a file. Safe to use from many threads. Its repr shows no key."""

    __slots__ = ("_directory", "_roots", "_seed", "_signer", "_verifier")

    def __init__(self, root: bytes, signing_seed: bytes, directory: Path = Path(), *older_roots: bytes) -> None:
        self._roots = (root, *older_roots)  # the first wraps; all unwrap
        self._seed, self._directory = signing_seed, directory
        self._signer = Ed25519PrivateKey.from_private_bytes(signing_seed)
        self._verifier = self._signer.public_key()

    @classmethod
    def open(cls, directory: Path, protects: Path) -> Self:
        """Unlock the keys in `directory`; at the first start, while `protects` holds no data, make them.

        Raises KeyUnavailable where a key file is missing though there is data, damaged, foreign, or open to other
        users; DiskFull where a new one cannot be written.
        """
        slot, following, signing = directory / SLOT, directory / NEXT_SLOT, directory / SIGNING
        for path in (slot, following, signing):
            files.remove_leftover(path)
        if following.exists() and files.is_destroyed(slot):
            _take_over(slot, following)
        if not slot.exists():
            _refuse_new_keys(slot, protects, signing)
            files.write_key_file(slot, files.KIND_ROOT_IN_CLEAR, secrets.token_bytes(envelope.KEY_BYTES))
        roots = [_read_root(path) for path in (following, slot) if path == slot or path.exists()]
        if not signing.exists():
            _refuse_new_keys(signing, protects)
            wrapped = envelope.wrap(secrets.token_bytes(32), _SIGNING_CONTEXT, roots[0])
            files.write_key_file(signing, files.KIND_SIGNING, wrapped)
        try:
            seed = _unwrap(files.read_key_file(signing, files.KIND_SIGNING), _SIGNING_CONTEXT, roots)
        except StoreDamaged:
            raise KeyUnavailable(f"The root key in {slot} does not open {signing}: one is of another box.") from None
        return cls(roots[0], seed, directory, *roots[1:])

    @property
    def is_rotating(self) -> bool:
        """Whether a rotation of the root key was begun and is not finished."""
        return len(self._roots) > 1

    def rotate(self, rewrap: Sequence[Callable[[], None]]) -> None:
        """A new root key in place of the present one, which is destroyed; or the end of a rotation that was begun.

        rewrap: for everything else that the root key wraps, a call that wraps it anew, durable on return; it may be
        called again. Raises DiskFull, KeyUnavailable, and what they raise: both keys work until it is called again.
        """
        slot, following = self._directory / SLOT, self._directory / NEXT_SLOT
        if not self.is_rotating:
            if not following.exists():  # an attempt may have failed after it was there
                files.write_key_file(following, files.KIND_ROOT_IN_CLEAR, secrets.token_bytes(envelope.KEY_BYTES))
            self._roots = (_read_root(following), *self._roots)
        wrapped = envelope.wrap(self._seed, _SIGNING_CONTEXT, self._roots[0])
        files.replace_key_file(self._directory / SIGNING, files.KIND_SIGNING, wrapped)
        for wrap_anew in rewrap:
            wrap_anew()
        _take_over(slot, following)
        self._roots = self._roots[:1]

    def new_key(self) -> bytes:
        """32 random bytes."""
        return secrets.token_bytes(envelope.KEY_BYTES)

    def wrap(self, key: bytes, context: bytes, under: bytes | None = None) -> bytes:
        """`key` wrapped under `under`, by default the root key: 61 bytes, bound to `context`."""
        return envelope.wrap(key, context, self._roots[0] if under is None else under)

    def unwrap(self, wrapped: bytes, context: bytes, under: bytes | None = None) -> bytes:
        """Raises StoreDamaged where it is not what was wrapped, for that context, under that key."""
        return _unwrap(wrapped, context, self._roots if under is None else (under,))

    def cipher(self, key: bytes) -> Cipher:
        """AES-256-GCM under `key`."""
        return envelope.AesGcm(key)

    def stretch(self, passphrase: str, salt: bytes, cost: PassphraseCost) -> bytes:
        """64 bytes by argon2id. Raises InvalidArgument, Busy."""
        return stretch(passphrase, salt, cost)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 (RFC 8032), 64 bytes."""
        return self._signer.sign(message)

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises StoreDamaged where this box's key did not sign that message."""
        try:
            self._verifier.verify(signature, message)
        except InvalidSignature:
            raise StoreDamaged("A signature is not one that this box made over these bytes.") from None


def _read_root(slot: Path) -> bytes:
    root = files.read_key_file(slot, files.KIND_ROOT_IN_CLEAR)
    if len(root) != envelope.KEY_BYTES:
        raise KeyUnavailable(f"The key file {slot} is damaged, or is no key file.")
    return root


def _unwrap(wrapped: bytes, context: bytes, under: Sequence[bytes]) -> bytes:
    for key in under[:-1]:
        with suppress(StoreDamaged):
            return envelope.unwrap(wrapped, context, key)
    return envelope.unwrap(wrapped, context, under[-1])


def _take_over(slot: Path, following: Path) -> None:
    if following.exists():  # else an attempt failed after the rename
        files.destroy_key_file(slot)
        files.rename_key_file(following, slot)


def _refuse_new_keys(missing: Path, *data: Path) -> None:
    """A new key beside old data would hide that the data is lost."""
    for path in data:
        if (path.is_dir() and any(path.iterdir())) or path.is_file():
            raise KeyUnavailable(f"The key file {missing} is missing, and {path} holds data that only it can open.")
