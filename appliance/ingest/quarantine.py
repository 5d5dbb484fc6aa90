"""Bytes of files on their way, and of refused ones: encrypted, each under a key of its own, until they are destroyed.

<directory>/<tenant>/<ingestion>/held/<number of the file>:

    header   80   magic "AIGH", version u16, zeros u16, size u64 of the file, the file's key wrapped by the tenant's
                  ingest key (61), zeros
    chunk     n   AES-256-GCM ciphertext of 1 MiB, the last one of what is left, and tag 16
    …

Nonce = number of the chunk. AAD: header's first 16 bytes, tenant, ingestion and number of the file, number of the
chunk, and how many there are. Integers are big-endian. To destroy a file its header, and so its key, is overwritten.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from appliance.errors import NotFound, StoreDamaged
from appliance.ingest import durable
from appliance.ingest.keys import WRAPPED_BYTES, IngestKeys
from appliance.ingest.memfd import new_memfd, seal
from appliance.ports import Cipher

CHUNK_BYTES = 1 << 20
HEADER_BYTES = 80
_HEADER = struct.Struct(">4sHHQ")
_TAG_BYTES = 16


class Quarantine:
    """Blocking; safe to use from many threads on different files. No byte of a file is ever on disk in the clear."""

    def __init__(self, directory: Path, keys: IngestKeys) -> None:
        self._directory, self._keys = directory, keys

    def hold(self, tenant: str, ingestion: str, number: int, memfd: int) -> None:
        """Keep what a memfd holds; its bytes are durable on return, its name after `settle`.

        Raises DiskFull, KeyUnavailable, StoreDamaged; nothing of it stays then.
        """
        path, context = self._path(tenant, ingestion, number), _context(tenant, ingestion, number)
        with durable.disk_errors(path):
            durable.make_directory(path.parent)
        cipher, wrapped = self._keys.new(tenant, context)
        durable.write_file(path, _sealed(memfd, cipher, wrapped, context))

    def settle(self, tenant: str, ingestion: str) -> None:
        """What is held of an ingestion, and nothing that was destroyed, will be found after a power cut. Raises
        StoreDamaged.
        """
        folder = self._folder(tenant, ingestion)
        if folder.is_dir():
            with durable.disk_errors(folder):
                durable.sync_directory(folder)

    def open(self, tenant: str, ingestion: str, number: int) -> int:
        """A sealed memfd of what is held; the caller closes it. Raises NotFound, StoreDamaged, KeyUnavailable."""
        path, context = self._path(tenant, ingestion, number), _context(tenant, ingestion, number)
        if not path.exists():
            raise NotFound("Its bytes are not kept.")
        memfd = new_memfd()
        try:
            with durable.disk_errors(path), path.open("rb", buffering=0) as file:
                header = file.read(HEADER_BYTES)
                size = _size(path, header)
                wrapped = header[_HEADER.size : _HEADER.size + WRAPPED_BYTES]
                cipher, count = self._keys.open(tenant, wrapped, context), _chunks(size)
                for chunk in range(count):
                    sealed = file.read(CHUNK_BYTES + _TAG_BYTES)
                    aad = _aad(header, context, chunk, count)
                    durable.write_at(memfd, cipher.open(_nonce(chunk), sealed, aad), chunk * CHUNK_BYTES)
            if os.fstat(memfd).st_size != size:
                raise StoreDamaged(f"{path} is damaged: it does not hold what was written.")
            seal(memfd)
        except BaseException:
            os.close(memfd)
            raise
        return memfd

    def sizes(self, tenant: str, ingestion: str) -> dict[int, int]:
        """Bytes on disk, by number, of the files of an ingestion that are held."""
        folder = self._folder(tenant, ingestion)
        if not folder.is_dir():
            return {}
        found: dict[int, int] = {}
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it was destroyed in this moment
                    if entry.name.isdecimal():
                        found[int(entry.name)] = entry.stat().st_size
        return found

    def destroy(self, tenant: str, ingestion: str, numbers: Iterable[int]) -> int:
        """Keys first; how many were there. Raises StoreDamaged."""
        paths = [self._path(tenant, ingestion, number) for number in numbers]
        return sum(durable.destroy(path, HEADER_BYTES) for path in paths)

    def _path(self, tenant: str, ingestion: str, number: int) -> Path:
        return self._folder(tenant, ingestion) / str(number)

    def _folder(self, tenant: str, ingestion: str) -> Path:
        return self._directory / tenant / ingestion / "held"


def _sealed(memfd: int, cipher: Cipher, wrapped: bytes, context: bytes) -> Iterator[bytes]:
    size = os.fstat(memfd).st_size
    header = (_HEADER.pack(b"AIGH", 1, 0, size) + wrapped).ljust(HEADER_BYTES, b"\0")
    yield header
    count = _chunks(size)
    for chunk in range(count):
        plain = os.pread(memfd, CHUNK_BYTES, chunk * CHUNK_BYTES)
        yield cipher.seal(_nonce(chunk), plain, _aad(header, context, chunk, count))


def _size(path: Path, header: bytes) -> int:
    if len(header) < HEADER_BYTES or header[:8] != _HEADER.pack(b"AIGH", 1, 0, 0)[:8]:
        raise StoreDamaged(f"{path} is damaged: its header is not the one that was written.")
    return int(_HEADER.unpack_from(header)[3])


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK_BYTES))


def _aad(header: bytes, context: bytes, chunk: int, count: int) -> bytes:
    return header[: _HEADER.size] + context + struct.pack(">II", chunk, count)


def _nonce(chunk: int) -> bytes:
    return chunk.to_bytes(12, "big")


def _context(tenant: str, ingestion: str, number: int) -> bytes:
    return b"held file\x00" + f"{tenant}\x00{ingestion}\x00{number}".encode()
