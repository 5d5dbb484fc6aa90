"""`ports.Volumes` without its lock: the same reader, in this process."""

import fcntl
import hashlib
import os
from dataclasses import astuple

from appliance.errors import DocumentRefused
from appliance.ingest import volume as reader
from appliance.types import Entry, Volume

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class PlainVolumes:
    """Reads at most `reads` times from a device, which then is as one that was pulled."""

    def __init__(self, reads: int = 1 << 30) -> None:
        self.reads = reads

    async def list(self, fd: int) -> tuple[Entry, ...]:
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        try:
            found = [
                entry
                for volume in reader.volumes(self._read_at(fd), size_bytes)
                for entry in reader.walk(self._read_at(fd), volume)
            ]
        except reader.Refused as refused:
            raise DocumentRefused(refused.reason, refused.detail) from None
        return tuple(_entry(entry) for entry in found)

    async def read(self, fd: int, entry: Entry, target: int, max_bytes: int) -> tuple[str, int]:
        if entry.size_bytes > max_bytes:
            raise DocumentRefused("TOO_LARGE", "It is too large.")
        asked = reader.Entry(reader.Volume(*astuple(entry.volume)), *astuple(entry)[1:])
        digest = hashlib.sha256()
        try:
            for piece in reader.content(self._read_at(fd), asked):
                digest.update(piece)
                os.write(target, piece)
        except reader.Refused as refused:
            raise DocumentRefused(refused.reason, refused.detail) from None
        fcntl.fcntl(target, fcntl.F_ADD_SEALS, _SEALS)
        return digest.hexdigest(), entry.size_bytes

    def _read_at(self, fd: int) -> reader.ReadAt:
        def read_at(offset: int, size: int) -> bytes:
            self.reads -= 1
            if self.reads < 0:
                raise OSError(5, "Input/output error")
            return os.pread(fd, size, offset)

        return read_at


def _entry(entry: reader.Entry) -> Entry:
    return Entry(Volume(*astuple(entry.volume)), *astuple(entry)[1:])
