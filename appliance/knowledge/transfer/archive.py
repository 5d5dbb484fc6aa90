"""An encrypted file that a passphrase opens: a stream of bytes in authenticated chunks. Integers are big-endian.

    head     128   magic "AKEX", version u16 (1), zeros u16
                   argon2id: memory KiB u32, passes u32, lanes u32, salt 16
                   check 32: the second half of what argon2id gave; the first half is the key
                   zeros to 96
                   SHA-256 of the 96 bytes before it
    chunk          1 MiB of content, in the last chunk 1 byte to 1 MiB, as AES-256-GCM ciphertext and tag 16
                   nonce = zeros 7, chunk number u32, 1 in the last chunk, else 0; AAD = head
    …

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, CRYPTO 2015): a chunk that is changed, moved, missing or taken from another file does not open, and
neither does a file that was cut after a whole chunk. The salt is random, so no key is used for two files. The check
commits the file to its key, which AES-GCM alone does not (Albertini et al.: How to Abuse and Fix Authenticated
Encryption Without Key Commitment, USENIX Security 2022), and tells a wrong passphrase from damage. The head's digest
tells damage from both; it protects no secret.
"""

import hashlib
import hmac
import os
import secrets
import stat
import struct
from pathlib import Path
from typing import Self

from appliance.errors import ArchiveRefused, InvalidArgument, NotFound, PassphraseWrong, StoreDamaged
from appliance.knowledge.storage import durable
from appliance.ports import Cipher, Keyring
from appliance.types import PassphraseCost

CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
HEAD_BYTES = 128
_SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
_MAGIC, _VERSION = b"AKEX", 1
_FIELDS = struct.Struct(">4sHHIII16s32s")
_FIELDS_BYTES = 96
_KEY_BYTES = 32
_SALT_BYTES = 16


class ArchiveWriter:
    """Writes content into a new file. What is written is the file's once `finish` was called."""

    def __init__(self, file: durable.NewFile, keyring: Keyring, passphrase: str, cost: PassphraseCost) -> None:
        """Raises InvalidArgument, Busy, DiskFull."""
        salt = secrets.token_bytes(_SALT_BYTES)
        stretched = keyring.stretch(passphrase, salt, cost)
        self._head = _to_head(salt, cost, stretched[_KEY_BYTES:])
        self._cipher = keyring.cipher(stretched[:_KEY_BYTES])
        self._file, self._buffer, self._number = file, bytearray(), 0
        file.write(self._head)

    def write(self, content: bytes) -> None:
        """Append. Raises DiskFull."""
        left = memoryview(content)
        while len(self._buffer) + len(left) > CHUNK_BYTES:  # a chunk that may be the last one waits for `finish`
            room = CHUNK_BYTES - len(self._buffer)
            self._buffer += left[:room]
            left = left[room:]
            self._seal(last=False)
        self._buffer += left

    def finish(self) -> None:
        """Nothing follows. Raises DiskFull."""
        self._seal(last=True)

    def _seal(self, *, last: bool) -> None:
        self._file.write(self._cipher.seal(_nonce(self._number, last), self._buffer, self._head))
        self._number += 1
        self._buffer = bytearray()


class ArchiveReader:
    """Reads content, each byte authenticated before it is given out. Use as a context, or `close`."""

    def __init__(self, path: Path, keyring: Keyring, passphrase: str) -> None:
        """Raises NotFound, InvalidArgument, ArchiveRefused, PassphraseWrong, Busy."""
        self.path = path
        self._descriptor = _open_regular(path)
        try:
            self._size_bytes = os.fstat(self._descriptor).st_size
            self._head = self._read(HEAD_BYTES, 0)
            self._cipher = self._unlock(keyring, passphrase)
        except BaseException:
            self.close()
            raise
        self._chunks = -(-(self._size_bytes - HEAD_BYTES) // _SEALED_BYTES)
        self._number, self._chunk, self._at = 0, memoryview(b""), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, size: int) -> bytes:
        """Exactly the next `size` bytes, in memory as they arrive. Raises ArchiveRefused, also for too few."""
        found = bytearray()
        while len(found) < size:
            if self._at == len(self._chunk):
                self._chunk, self._at = memoryview(self._next_chunk()), 0
            piece = self._chunk[self._at : self._at + size - len(found)]
            found += piece
            self._at += len(piece)
        return bytes(found)

    def finish(self) -> None:
        """Raises ArchiveRefused where content follows."""
        if self._number < self._chunks or self._at < len(self._chunk):
            raise self._refused("holds more than it says")

    def _next_chunk(self) -> bytes:
        if self._number >= self._chunks:
            raise self._refused("ends too early: it is cut short, or holds less than it says")
        number, last = self._number, self._number == self._chunks - 1
        offset = HEAD_BYTES + number * _SEALED_BYTES
        sealed = self._read(min(_SEALED_BYTES, self._size_bytes - offset), offset)
        try:
            chunk = self._cipher.open(_nonce(number, last), sealed, self._head)
        except StoreDamaged:
            if last and self._opens(sealed, number):
                raise self._refused(f"is cut short: chunk {number} is not its last one") from None
            place = f"chunk {number}, bytes {offset} to {offset + len(sealed)}"
            problem = "is damaged or cut short" if last else "is damaged, or its chunks were reordered,"
            raise self._refused(f"{problem} in {place}") from None
        if not chunk:
            raise self._refused(f"is damaged: chunk {number} is empty")
        self._number += 1
        return chunk

    def _opens(self, sealed: bytes, number: int) -> bool:
        """Whether it is a whole chunk that others followed."""
        try:
            self._cipher.open(_nonce(number, False), sealed, self._head)
        except StoreDamaged:
            return False
        return True

    def _unlock(self, keyring: Keyring, passphrase: str) -> Cipher:
        fields, digest = self._head[:_FIELDS_BYTES], self._head[_FIELDS_BYTES:]
        if fields[:4] != _MAGIC:
            raise self._refused("is no exported collection")
        if hashlib.sha256(fields).digest() != digest:
            raise self._refused("is damaged in its first 128 bytes")
        _, version, zeros, memory_kib, passes, lanes, salt, check = _FIELDS.unpack_from(fields)
        if version != _VERSION or zeros or any(fields[_FIELDS.size :]):
            raise self._refused(f"is of version {version}, which this release does not know")
        try:
            stretched = keyring.stretch(passphrase, salt, PassphraseCost(memory_kib, passes, lanes))
        except InvalidArgument as error:
            if error.field != "cost":
                raise
            raise self._refused("asks for more work on its passphrase than this box does") from None
        if not hmac.compare_digest(stretched[_KEY_BYTES:], check):
            raise PassphraseWrong(f"The passphrase does not open {self.path}.")
        return keyring.cipher(stretched[:_KEY_BYTES])

    def _read(self, size: int, offset: int) -> bytes:
        try:
            found = durable.read_at(self._descriptor, size, offset)
        except OSError as error:
            raise self._refused(f"cannot be read: {error.strerror}") from None
        if len(found) < size:
            raise self._refused("is cut short")
        return found

    def _refused(self, problem: str) -> ArchiveRefused:
        return ArchiveRefused(f"{self.path} {problem}.")


def _to_head(salt: bytes, cost: PassphraseCost, check: bytes) -> bytes:
    fields = _FIELDS.pack(_MAGIC, _VERSION, 0, cost.memory_kib, cost.passes, cost.lanes, salt, check)
    fields = fields.ljust(_FIELDS_BYTES, b"\0")
    return fields + hashlib.sha256(fields).digest()


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file that is no link. Raises NotFound, InvalidArgument."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path} on this box.") from None
    except OSError as error:
        raise InvalidArgument.of("path", f"{path} cannot be opened: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument.of("path", f"{path} is no regular file.")
    return descriptor


def _nonce(number: int, last: bool) -> bytes:
    return bytes(7) + number.to_bytes(4, "big") + bytes([last])
