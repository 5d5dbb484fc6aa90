"""AES-256-GCM: a cipher over one key, and keys wrapped under keys (NIST SP 800-38D; 96-bit nonces, 128-bit tags).

A wrapped key is 61 bytes: version 1, 12 random nonce bytes, the 32 encrypted bytes, the 16-byte tag. Its AAD names this
format and the caller's context, so a key wrapped for one purpose or place does not unwrap for another.
"""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.errors import StoreDamaged
from appliance.ports import Buffer

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
WRAP_VERSION = b"\x01"
WRAPPED_BYTES = len(WRAP_VERSION) + NONCE_BYTES + KEY_BYTES + TAG_BYTES


class AesGcm:
    """`ports.Cipher` over AES-256-GCM. Safe to use from many threads. Its repr shows no key."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"An AES-256 key has {KEY_BYTES} bytes, not {len(key)}.")
        self._aead = AESGCM(key)

    def seal(self, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes:
        return self._aead.encrypt(nonce, plaintext, aad)

    def open(self, nonce: bytes, ciphertext: Buffer, aad: bytes) -> bytes:
        """Raises StoreDamaged where ciphertext, nonce or aad is not what was sealed."""
        if len(ciphertext) < TAG_BYTES:
            raise StoreDamaged("Encrypted data is shorter than its tag.")
        try:
            return self._aead.decrypt(nonce, ciphertext, aad)
        except InvalidTag:
            raise StoreDamaged("Encrypted data is not what was written, or not where it was written.") from None


def wrap(key: bytes, context: bytes, under: bytes) -> bytes:
    """`key` encrypted under `under`, bound to `context`."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return WRAP_VERSION + nonce + AesGcm(under).seal(nonce, key, _aad(context))


def unwrap(wrapped: bytes, context: bytes, under: bytes) -> bytes:
    """Raises StoreDamaged where `wrapped` is not a key wrapped for `context` under `under`."""
    if len(wrapped) != WRAPPED_BYTES or wrapped[:1] != WRAP_VERSION:
        raise StoreDamaged("A wrapped key has the wrong length or an unknown version.")
    nonce = wrapped[1 : 1 + NONCE_BYTES]
    return AesGcm(under).open(nonce, wrapped[1 + NONCE_BYTES :], _aad(context))


def _aad(context: bytes) -> bytes:
    return b"appliance wrapped key\x00" + WRAP_VERSION + context
