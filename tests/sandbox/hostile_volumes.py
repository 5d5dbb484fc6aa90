"""A reader of volumes in an attacker's hands: it does what the first bytes of the device say."""

import errno
import os
import struct
import time
from collections.abc import Iterator

from appliance.sandbox.services.volumes import ReadAt
from appliance.types import Entry, Volume

SIZE_BYTES = 3_000_000


class Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def volumes(read_at: ReadAt, size_bytes: int) -> Iterator[Volume]:
    said = read_at(0, 100).decode()
    if said == "refused":
        raise Refused("BAD_PARTITION_TABLE", "Its partition table makes no sense.")
    if said == "pulled":
        raise OSError(errno.ENXIO, "No such device or address")
    if said == "raw":
        raw = b'["volume", 0, "FAT32", 0, 1, "", "", "", ""]' * 2
        os.write(1, struct.pack(">I", len(raw)) + raw)
    if said == "nap":
        time.sleep(0.5)
    if said == "abort":
        os.abort()
    if said == "open":
        os.fork()
    yield Volume(0, "FAT32", 0, size_bytes, "1A2B-3C4D", "STICK")
    yield Volume(1, "", size_bytes, 512, reason="UNSUPPORTED_FILESYSTEM", detail="It is NTFS.")


def walk(read_at: ReadAt, volume: Volume) -> Iterator[Entry]:
    if volume.reason:
        yield Entry(volume, "")
        return
    yield Entry(volume, "a.txt", SIZE_BYTES, 1_700_000_000_000_000_000, 2, contiguous=True)
    yield Entry(volume, "folder/ü.pdf", 1, 0, 9, reason="CHAIN_LOOP", detail="Its chain never ends.")


def content(read_at: ReadAt, entry: Entry) -> Iterator[bytes]:
    said = read_at(0, 100).decode()
    if said == "crumbs":
        yield from (b"x" for _ in range(SIZE_BYTES))
        return
    yield b"x" * (SIZE_BYTES - 1)
    if said == "nap while read":
        time.sleep(0.5)
    if said == "pulled while read":
        raise OSError(errno.EIO, "Input/output error")
    if said == "changed":
        raise Refused("CHANGED", "The volume is another than it was when it was listed.")
    yield b"" if said == "short" else entry.path[:1].encode()
    if said == "long":
        yield b"x"
