"""Where pages of prefixes stay warm when the device has no room for them: host memory, then encrypted files.

    device ─put─► host memory, least recently used first ─► dropped
                     └─ written through in the background ─► a file a page ─► dropped, least recently used first

A page is what llama.cpp gives for 64 tokens of one sequence, under the key that `pages.chain` made of tenant, model,
adapter and tokens. A file is magic(8) version(2) nonce(12) AES-256-GCM ciphertext; its AAD is magic, version, the
model's identity and the page's key, so that no file is taken for another page's or model's. This is a cache: damage, a
full disk or a lost key drops entries and is logged, and never stops serving.
"""

import contextlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import structlog

from appliance.errors import StoreDamaged
from appliance.ports import Buffer, Cipher

MAGIC, VERSION = b"APPLKVP\n", (1).to_bytes(2, "big")
NONCE_BYTES = 12
OVERHEAD_BYTES = len(MAGIC) + len(VERSION) + NONCE_BYTES + 16
SUFFIX, TEMPORARY = ".page", ".part"
LEAST_UNWRITTEN_BYTES = 64 << 20
LEAST_FREE_BYTES = 512 << 20
log = structlog.get_logger()


class DiskTier:
    """Encrypted pages in one directory, bounded in bytes. Safe to use from many threads; no call raises."""

    def __init__(self, directory: Path, cipher: Cipher, identity: bytes, most_bytes: int) -> None:
        """identity: of the model and the form of its cache; pages of another are never read. Finds what is there."""
        self._directory, self._cipher, self._most_bytes = directory, cipher, most_bytes
        self._aad = MAGIC + VERSION + len(identity).to_bytes(4, "big") + identity
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # of files, least recently used first
        self._bytes = 0
        self.fault = ""  # why the last page that should have been kept was not
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._find()
        except OSError as error:
            self.fault = f"The folder cannot be used: {error.strerror}."
            log.warning("kv_disk.unusable", error=error.strerror)

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def write(self, key: bytes, data: Buffer) -> None:
        """Keep a page, durably, at the cost of those least recently used."""
        size = len(data) + OVERHEAD_BYTES
        if key in self._sizes or size > self._most_bytes:
            return
        if not self._has_room(size):
            self.fault = f"The disk has less than {LEAST_FREE_BYTES >> 20} MiB free."
            return
        temporary = self._directory / f"{key.hex()}{TEMPORARY}"
        try:
            self._make_room(size)
            self._write_file(temporary, key, data)
        except Exception as error:  # noqa: BLE001  whatever it was, the thread that writes must go on
            why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            self.fault = f"A file cannot be written: {why}."
            log.warning("kv_disk.not_written", error=why)
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self.fault = ""
        with self._lock:
            self._sizes[key] = size
            self._bytes += size

    def read(self, key: bytes) -> bytes | None:
        """The page, or None where it is not there or not what was written."""
        with self._lock:
            size = self._sizes.get(key)
            if size is None:
                return None
            self._sizes.move_to_end(key)
        try:
            raw = memoryview(self._read_file(key, size))
            head = len(MAGIC) + len(VERSION)
            if len(raw) != size or raw[:head] != MAGIC + VERSION:
                raise StoreDamaged("A page's file has the wrong length or an unknown version.")
            return self._cipher.open(bytes(raw[head : head + NONCE_BYTES]), raw[head + NONCE_BYTES :], self._aad + key)
        except (StoreDamaged, OSError) as error:
            log.warning("kv_disk.dropped", error=type(error).__name__)
            self._drop(key)
            return None

    def touch(self, keys: Iterable[bytes]) -> None:
        """These were used now, in this order."""
        with self._lock:
            for key in keys:
                if key in self._sizes:
                    self._sizes.move_to_end(key)

    def _find(self) -> None:
        found = []
        for entry in os.scandir(self._directory):
            name, dot, suffix = entry.name.partition(".")
            if dot + suffix == TEMPORARY:
                os.unlink(entry.path)
            elif dot + suffix == SUFFIX and len(name) == 64 and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(ValueError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime_ns, bytes.fromhex(name), status.st_size))
        for _, key, size in sorted(found):
            self._sizes[key] = size
            self._bytes += size
        self._make_room(0)

    def _write_file(self, temporary: Path, key: bytes, data: Buffer) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._cipher.seal(nonce, data, self._aad + key)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(MAGIC + VERSION + nonce)
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path(key))

    def _read_file(self, key: bytes, size: int) -> bytes:
        descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            os.utime(descriptor)  # what is used last goes last, also after a restart
            return file.read(size + 1)

    def _make_room(self, size: int) -> None:
        while oldest := self._oldest_beyond(self._most_bytes - size):
            self._unlink(oldest)

    def _oldest_beyond(self, most_bytes: int) -> bytes | None:
        """What was used least recently, known no longer; None where there is no more than so much."""
        with self._lock:  # readers move what they use
            if self._bytes <= most_bytes or not self._sizes:
                return None
            key, size = self._sizes.popitem(last=False)
            self._bytes -= size
            return key

    def _has_room(self, size: int) -> bool:
        """A cache never takes the last of a disk that others keep data on."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._directory)
            return disk.f_bavail * disk.f_frsize - size >= LEAST_FREE_BYTES
        return True

    def _drop(self, key: bytes) -> None:
        with self._lock:
            self._bytes -= self._sizes.pop(key, 0)
        self._unlink(key)

    def _unlink(self, key: bytes) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: bytes) -> Path:
        return self._directory / f"{key.hex()}{SUFFIX}"


class Tiers:
    """Pages by key in host memory and, where there is a disk tier, in files. Safe to use from many threads.

    Memory for both, what stays and what is only to be written, is `host_bytes`, or LEAST_UNWRITTEN_BYTES where that is
    less and there is a disk.
    """

    def __init__(self, host_bytes: int, disk: DiskTier | None = None) -> None:
        self._most_bytes, self._disk = host_bytes, disk
        self._most_held = max(host_bytes, LEAST_UNWRITTEN_BYTES)
        self._host: OrderedDict[bytes, Buffer] = OrderedDict()  # least recently used first
        self._unwritten: OrderedDict[bytes, None] = OrderedDict()  # oldest first; each is in one of the two beside it
        self._leaving: OrderedDict[bytes, Buffer] = OrderedDict()  # here no longer once they are written
        self._host_bytes = self._leaving_bytes = 0
        self._change = threading.Condition()
        self._closing = False
        self._writer = threading.Thread(target=self._write, name="kv-disk", daemon=True)
        if disk is not None:
            self._writer.start()

    @property
    def host_pages(self) -> int:
        return len(self._host)

    @property
    def disk_pages(self) -> int:
        return len(self._disk) if self._disk is not None else 0

    @property
    def disk_fault(self) -> str:
        return self._disk.fault if self._disk is not None else ""

    def holds(self, key: bytes) -> bool:
        """Is the page here? Cheap. It may be found damaged, or be dropped, before it is got."""
        return key in self._host or key in self._leaving or (self._disk is not None and key in self._disk)

    def put(self, key: bytes, data: Buffer) -> None:
        """Keep a page; `data` must not change any more."""
        with self._change:
            if self._disk is not None:
                self._unwritten[key] = None
                self._change.notify_all()
            self._keep(key, data)

    def get(self, key: bytes) -> Buffer | None:
        """The page from wherever it is, None where it is not; may read a file."""
        with self._change:
            data = self._host.get(key, self._leaving.get(key))
            if data is not None:
                if key in self._host:
                    self._host.move_to_end(key)
                return data
        data = self._disk.read(key) if self._disk is not None else None
        if data is not None:
            with self._change:
                self._keep(key, data)
        return data

    def warm(self, keys: Iterable[bytes]) -> None:
        """Bring what leads `keys` from files to memory, as far as half of it goes, so that `get` need not wait.

        All of it counts as used now, the first page last: what makes room for others is then a prefix's end.
        """
        leading = list(takewhile(self.holds, keys))
        size = 0
        for key in leading:
            data = self.get(key)
            size += len(data) if data is not None else 0
            if data is None or size > self._most_bytes // 2:
                break
        with self._change:
            for key in reversed(leading):
                if key in self._host:
                    self._host.move_to_end(key)
        if self._disk is not None:
            self._disk.touch(reversed(leading))

    def close(self) -> None:
        """Returns when all that was put is written, or could not be."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._writer.is_alive():
            self._writer.join()

    def _keep(self, key: bytes, data: Buffer) -> None:
        """This one was used last. Others leave for it, or it does itself where it is larger than all that may stay."""
        self._leaving_bytes -= len(self._leaving.pop(key, b""))
        self._host_bytes += len(data) - len(self._host.pop(key, b""))
        self._host[key] = data
        if len(data) > self._most_bytes:
            self._host.move_to_end(key, last=False)
        while self._host_bytes > self._most_bytes:
            old, page = self._host.popitem(last=False)
            self._host_bytes -= len(page)
            if old in self._unwritten:
                self._leaving[old] = page
                self._leaving_bytes += len(page)
        while self._leaving and self._host_bytes + self._leaving_bytes > self._most_held:
            old, page = self._leaving.popitem(last=False)  # the disk is too slow: what left first stays unwritten
            self._leaving_bytes -= len(page)
            del self._unwritten[old]

    def _write(self) -> None:
        assert self._disk is not None
        while True:
            with self._change:
                self._change.wait_for(lambda: self._unwritten or self._closing)
                if not self._unwritten:
                    return
                key = next(iter(self._unwritten))
                data = self._host[key] if key in self._host else self._leaving[key]
            self._disk.write(key, data)
            with self._change:
                self._unwritten.pop(key, None)
                self._leaving_bytes -= len(self._leaving.pop(key, b""))
                self._change.notify_all()
