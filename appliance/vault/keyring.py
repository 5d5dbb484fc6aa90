"""The box's keys, unlocked from a file key slot."""

import secrets
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
SIGNING = Path("signing.key")
_SIGNING_CONTEXT = b"ed25519 signing key of this box"


class FileKeyring:
    """`ports.Keyring` over a root key that lies in a file. Safe to use from many threads. Its repr shows no key."""

    __slots__ = ("_root", "_signer", "_verifier")

    def __init__(self, root: bytes, signing_seed: bytes) -> None:
        self._root = root
        self._signer = Ed25519PrivateKey.from_private_bytes(signing_seed)
        self._verifier = self._signer.public_key()

    @classmethod
    def open(cls, directory: Path, protects: Path) -> Self:
        """Unlock the keys in `directory`; at the first start, while `protects` holds no data, make them.

        Raises KeyUnavailable where a key file is missing though there is data, damaged, foreign, or open to other
        users; DiskFull where a new one cannot be written.
        """
        slot, signing = directory / SLOT, directory / SIGNING
        for path in (slot, signing):
            files.remove_leftover(path)
        if not slot.exists():
            _refuse_new_keys(slot, protects, signing)
            files.write_key_file(slot, files.KIND_ROOT_IN_CLEAR, secrets.token_bytes(envelope.KEY_BYTES))
        root = files.read_key_file(slot, files.KIND_ROOT_IN_CLEAR)
        if len(root) != envelope.KEY_BYTES:
            raise KeyUnavailable(f"The key file {slot} is damaged, or is no key file.")
        if not signing.exists():
            _refuse_new_keys(signing, protects)
            wrapped = envelope.wrap(secrets.token_bytes(32), _SIGNING_CONTEXT, root)
            files.write_key_file(signing, files.KIND_SIGNING, wrapped)
        try:
            seed = envelope.unwrap(files.read_key_file(signing, files.KIND_SIGNING), _SIGNING_CONTEXT, root)
        except StoreDamaged:
            raise KeyUnavailable(f"The root key in {slot} does not open {signing}: one is of another box.") from None
        return cls(root, seed)

    def new_key(self) -> bytes:
        """32 random bytes."""
        return secrets.token_bytes(envelope.KEY_BYTES)

    def wrap(self, key: bytes, context: bytes, under: bytes | None = None) -> bytes:
        """`key` wrapped under `under`, by default the root key: 61 bytes, bound to `context`."""
        return envelope.wrap(key, context, self._root if under is None else under)

    def unwrap(self, wrapped: bytes, context: bytes, under: bytes | None = None) -> bytes:
        """Raises StoreDamaged where it is not what was wrapped, for that context, under that key."""
        return envelope.unwrap(wrapped, context, self._root if under is None else under)

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


def _refuse_new_keys(missing: Path, *data: Path) -> None:
    """A new key beside old data would hide that the data is lost."""
    for path in data:
        if (path.is_dir() and any(path.iterdir())) or path.is_file():
            raise KeyUnavailable(f"The key file {missing} is missing, and {path} holds data that only it can open.")
