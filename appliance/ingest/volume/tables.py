"""Partition tables: MBR with its extended partitions, and GPT.

Source: UEFI specification 2.10, chapter 5 (GPT, protective MBR); for extended partitions the practice of all systems.
"""

import struct
from binascii import crc32
from collections.abc import Iterator

from appliance.ingest.volume.model import MAX_VOLUMES, ReadAt, Refused, exact

Extent = tuple[int, int]
"""Offset and size in bytes."""

_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MAX_TABLE_BYTES = 1 << 20
_SECTORS = (512, 4096)


def partitions(read_at: ReadAt, size_bytes: int) -> tuple[Extent, ...]:
    """Where the partitions lie, by the table that the device has; empty where it has none.

    Raises Refused: BAD_PARTITION_TABLE, UNREADABLE.
    """
    first = exact(read_at, 0, 512)
    if first[510:] != b"\x55\xaa":
        return ()
    rows = list(_rows(first))
    if any(kind == _PROTECTIVE for kind, _, _ in rows):
        return _gpt(read_at, size_bytes)
    if any(first[at] not in (0, 0x80) for at in range(446, 510, 16)):
        return ()
    found: list[Extent] = []
    for kind, start, count in rows:
        if kind in _EXTENDED:
            found += _logical(read_at, start)
        else:
            found.append((start * 512, count * 512))
    return _bounded(found, size_bytes)


def _rows(sector: bytes) -> Iterator[tuple[int, int, int]]:
    for at in range(446, 510, 16):
        kind = sector[at + 4]
        start, count = struct.unpack_from("<II", sector, at + 8)
        if kind and count:
            yield kind, start, count


def _logical(read_at: ReadAt, extended: int) -> Iterator[Extent]:
    """The partitions of an extended one: a chain of tables, each with one partition and the next table."""
    at, seen = extended, set[int]()
    while at not in seen and len(seen) < MAX_VOLUMES:
        seen.add(at)
        sector = exact(read_at, at * 512, 512)
        if sector[510:] != b"\x55\xaa":
            return
        following = 0
        for kind, start, count in _rows(sector):
            if kind in _EXTENDED:
                following = extended + start
            else:
                yield (at + start) * 512, count * 512
        if not following:
            return
        at = following


def _gpt(read_at: ReadAt, size_bytes: int) -> tuple[Extent, ...]:
    """By the first sound header: the main one, else its copy in the last sector."""
    for sector in _SECTORS:
        for at in (sector, (size_bytes // sector - 1) * sector):
            table = _gpt_table(read_at, at, sector) if at >= sector else None
            if table is not None:
                return _bounded(table, size_bytes)
    raise Refused("BAD_PARTITION_TABLE", "Its partition table (GPT) is damaged, and so is the copy at its end.")


def _gpt_table(read_at: ReadAt, at: int, sector: int) -> list[Extent] | None:
    try:
        header = exact(read_at, at, 512)
        size, crc = struct.unpack_from("<II", header, 12)
        table, count, width, table_crc = struct.unpack_from("<QIII", header, 72)
        if header[:8] != b"EFI PART" or not 92 <= size <= 512 or width < 128 or count * width > _MAX_TABLE_BYTES:
            return None
        if crc32(header[:16] + bytes(4) + header[20:size]) != crc:
            return None
        rows = exact(read_at, table * sector, count * width)
    except Refused:
        return None
    if crc32(rows) != table_crc:
        return None
    found = []
    for start in range(0, len(rows), width):
        first, last = struct.unpack_from("<QQ", rows, start + 32)
        if rows[start : start + 16] != bytes(16) and first <= last:
            found.append((first * sector, (last - first + 1) * sector))
    return found


def _bounded(found: list[Extent], size_bytes: int) -> tuple[Extent, ...]:
    if len(found) > MAX_VOLUMES:
        raise Refused("BAD_PARTITION_TABLE", f"It names more than {MAX_VOLUMES} partitions.")
    if any(start <= 0 or start >= size_bytes for start, _ in found):
        raise Refused("BAD_PARTITION_TABLE", "It names a partition that does not lie on the device.")
    return tuple(found)
