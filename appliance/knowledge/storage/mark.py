"""The high-water mark of a collection: how far it had come, kept outside its directory, so that an older state of the
directory that somebody puts back is told from the present one.

    <data>/keys/marks/<uid>   two slots of 4 KiB, written by turns in place; the sound one with the higher count
                              holds. A slot: magic "AKHW", version u16, zeros u16, uid 16, count u64, generation u64,
                              next seq u64, sha256 of the manifest 32, Ed25519 signature 64 over all before, zeros

Big-endian. It is written after CURRENT, with one fdatasync and no rename; a write that a crash tears leaves the other
slot. So a directory is at most ahead of its mark, never behind. Between commits the mark follows the log from time to
time; records since then can be cut off without this being noticed, as can be the directory and the mark put back
together: on one box alone nothing would know.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.ports import Keyring

SLOT_BYTES = 4096  # what a disk writes, or tears, as one
_VERSION = 1
_BODY = struct.Struct(">4sHH16sQQQ32s")
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """generation, digest: of the newest manifest; next_seq: the records before it were acknowledged."""

    generation: int
    digest: bytes
    next_seq: int

    def check(self, current: Path, found: "Mark") -> None:
        """Raises StoreDamaged where what the directory holds is older, or another. current: the file CURRENT."""
        if found.generation < self.generation:
            states = f"generation {found.generation} of {self.generation}"
            raise StoreDamaged(f"{current} is damaged: an older state was put back, {states}.")
        if found.generation == self.generation and found.digest != self.digest:
            raise StoreDamaged(f"{current} is damaged: another state of generation {found.generation} was put there.")


class MarkFile:
    """One collection's. Safe to use from many threads."""

    def __init__(self, directory: Path, uid: bytes, keyring: Keyring) -> None:
        self.path = directory / uid.hex()
        self._uid, self._keyring = uid, keyring
        self._count = 0
        self._lock = Lock()
        self.is_torn = False

    def create(self, mark: Mark) -> None:
        """Durable on return, in place of one that is there. Raises DiskFull."""
        with self._lock, durable.disk_errors(self.path):
            durable.make_directory(self.path.parent)
            durable.write_file(self.path, bytes(SLOT_BYTES) + self._seal(mark, 1))
            self._count = 1

    def read(self) -> Mark:
        """Raises StoreDamaged, naming the file, where it is missing or both slots are damaged."""
        with self._lock:
            raw = durable.read_file(self.path)
            found = [sound for at in (0, SLOT_BYTES) if (sound := self._open(raw[at : at + SLOT_BYTES]))]
            if not found:
                raise StoreDamaged(f"{self.path} is damaged: it is not what this box wrote for that collection.")
            self.is_torn = len(found) < 2 and any(raw[:SLOT_BYTES])  # the first is empty before the second commit
            self._count, mark = max(found, key=lambda sound: sound[0])
            return mark

    def write(self, mark: Mark) -> None:
        """Durable on return. After `create` or `read`. Raises DiskFull, StoreDamaged."""
        with self._lock, durable.disk_errors(self.path):
            count = self._count + 1
            durable.overwrite(self.path, self._seal(mark, count), count % 2 * SLOT_BYTES)
            self._count = count  # not before: a write that is tried again must not go to the slot that holds

    def remove(self) -> None:
        """Durable on return. Raises DiskFull, StoreDamaged."""
        with self._lock, durable.disk_errors(self.path):
            if self.path.exists():
                os.unlink(self.path)
                durable.sync_directory(self.path.parent)

    def _seal(self, mark: Mark, count: int) -> bytes:
        counts = (count, mark.generation, mark.next_seq)
        body = _BODY.pack(b"AKHW", _VERSION, 0, self._uid, *counts, mark.digest)
        return (body + self._keyring.sign(body)).ljust(SLOT_BYTES, b"\0")

    def _open(self, slot: bytes) -> tuple[int, Mark] | None:
        """Its count and mark; None where it is not one that was written."""
        body, signature = slot[: _BODY.size], slot[_BODY.size : _BODY.size + _SIGNATURE_BYTES]
        if body[:24] != _BODY.pack(b"AKHW", _VERSION, 0, self._uid, 0, 0, 0, b"")[:24]:
            return None
        try:
            self._keyring.verify(body, signature)
        except StoreDamaged:
            return None
        if any(slot[_BODY.size + _SIGNATURE_BYTES :]) or len(slot) < SLOT_BYTES:
            return None
        *_, count, generation, next_seq, digest = _BODY.unpack(body)
        return count, Mark(generation, digest, next_seq)
