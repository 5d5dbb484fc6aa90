"""FAT12, FAT16 and FAT32, with long names.

Source: Microsoft, "Microsoft Extensible Firmware Initiative FAT32 File System Specification", 1.03 (2000); the width of
the table as Linux takes it: 32 bits where the 16-bit length of the table is 0, else by the number of clusters.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.ingest.volume.clusters import Clusters
from appliance.ingest.volume.model import MAX_CLUSTERS, ReadAt, Refused, Row, exact
from appliance.ingest.volume.names import long_text, number_text, short_text, time_ns

BOOT_BYTES = 512
_FOLDER, _LABEL, _LONG = 0x10, 0x08, 0x0F
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10  # NTRes: how Windows NT keeps the case of an 8.3 name


@dataclass(frozen=True)
class FatSystem:
    """One volume. root: first cluster of the root folder, 0 where it lies before the clusters (FAT12, FAT16)."""

    filesystem: str
    id: str
    clusters: Clusters
    root: int
    root_offset: int
    root_bytes: int
    boot_label: str

    def rows(self, folder: Row | None) -> Iterator[Row]:
        """What is in a folder, None: the root; without '.', '..', labels and what was deleted. Raises Refused."""
        names = _LongName()
        for slot in self._slots(folder.cluster if folder else 0):
            if slot[0] == 0:
                return
            if slot[0] == 0xE5:
                names = _LongName()
            elif slot[11] & 0x3F == _LONG:
                names.add(slot)
            elif slot[11] & _LABEL:
                names = _LongName()
            else:
                name, names = names.of(slot), _LongName()
                if slot[:11] not in (b".          ", b"..         ") or folder is None:
                    yield self._row(slot, name)

    def label(self) -> str:
        """The volume's name: of the root folder, or of the boot sector. Raises Refused."""
        for slot in self._slots(0):
            if slot[0] == 0:
                break
            if slot[0] != 0xE5 and slot[11] & 0x3F != _LONG and slot[11] & _LABEL:
                return short_text(slot[:11])
        return "" if self.boot_label == "NO NAME" else self.boot_label

    def _slots(self, cluster: int) -> Iterator[bytes]:
        first = cluster or self.root
        areas = (
            self.clusters.folder(self.clusters.links(first))
            if first
            else iter([exact(self.clusters.read_at, self.root_offset, self.root_bytes)])
        )
        for area in areas:
            for start in range(0, len(area) - 31, 32):
                yield area[start : start + 32]

    def _row(self, slot: bytes, long_name: str) -> Row:
        high, time, date, low, size = struct.unpack_from("<HHHHI", slot, 20)
        cluster = (high << 16 if self.clusters.bits == 28 else 0) | low
        folder = bool(slot[11] & _FOLDER)
        fault = None
        if folder and not cluster:
            fault = Refused("BAD_CHAIN", "A folder that has no cluster of its own.")
        return Row(long_name or _short_name(slot), folder, size, time_ns(date, time), cluster, fault=fault)


class _LongName:
    """The parts of a long name as they come, last first; one that is torn or of another file counts as none."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._expected, self._checksum = 0, -1

    def add(self, slot: bytes) -> None:
        order, checksum = slot[0], slot[13]
        if order & 0x40:
            self._parts, self._expected, self._checksum = [], order & 0x3F, checksum
        if not self._expected or (order & 0x3F, checksum) != (self._expected, self._checksum):
            self._parts, self._expected, self._checksum = [], 0, -1
            return
        self._parts.insert(0, slot[1:11] + slot[14:26] + slot[28:32])
        self._expected -= 1

    def of(self, slot: bytes) -> str:
        """The long name, '' where the parts are not this file's."""
        if self._expected or not self._parts or self._checksum != _checksum(slot[:11]):
            return ""
        return long_text(b"".join(self._parts))


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def _short_name(slot: bytes) -> str:
    raw = b"\xe5" + slot[1:8] if slot[0] == 0x05 else slot[:8]
    base, extension = short_text(raw), short_text(slot[8:11])
    base = base.lower() if slot[12] & _LOWER_BASE else base
    extension = extension.lower() if slot[12] & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base


def is_fat(boot: bytes) -> bool:
    """Whether a first sector is a FAT volume's, however damaged, rather than a partition table."""
    sector, per_cluster, reserved, tables = struct.unpack_from("<HBHB", boot, 11)
    jump = boot[0] == 0xE9 or (boot[0] == 0xEB and boot[2] == 0x90)
    named = boot[54:59] in (b"FAT12", b"FAT16", b"FAT  ") or boot[82:87] == b"FAT32"
    return jump and (named or (_power_of_two(sector) and _power_of_two(per_cluster) and reserved > 0 and tables > 0))


def mount(read_at: ReadAt, size_bytes: int) -> FatSystem:
    """The file system that begins at 0. Raises Refused: BAD_BOOT_SECTOR, TRUNCATED, UNREADABLE."""
    boot = exact(read_at, 0, BOOT_BYTES)
    sector, per_cluster, reserved, tables, root_entries, total16, _, fat16 = struct.unpack_from("<HBHBHHBH", boot, 11)
    total32, fat32 = struct.unpack_from("<II", boot, 32)
    if sector not in (512, 1024, 2048, 4096):
        raise _bad("a sector size that does not exist")
    if not _power_of_two(per_cluster) or per_cluster * sector > 1 << 18:
        raise _bad("a cluster size that does not exist")
    if not reserved or not 1 <= tables <= 4:
        raise _bad("an impossible number of tables")
    wide = not fat16
    fat_bytes = (fat16 or fat32) * sector
    total_bytes = (total16 or total32) * sector
    root_offset = reserved * sector + tables * fat_bytes
    root_bytes = 0 if wide else -(-root_entries * 32 // sector) * sector
    first = root_offset + root_bytes
    if not fat_bytes or first >= total_bytes:
        raise _bad("tables that leave no room for files")
    if total_bytes > size_bytes:
        raise Refused("TRUNCATED", "Its file system is larger than the device or partition that it lies on.")
    if not wide and not root_entries:
        raise _bad("a root folder without room")
    count = (total_bytes - first) // (per_cluster * sector)
    bits = 28 if wide else 12 if count < 4085 else 16
    count = min(count, fat_bytes * 8 // (32 if wide else bits) - 2)
    if not 0 < count <= MAX_CLUSTERS:
        raise _bad("an impossible number of clusters")
    tail = 28 if wide else 0
    serial, boot_label = struct.unpack_from("<I11s", boot, 39 + tail)
    named = boot[38 + tail] in (0x28, 0x29)
    clusters = Clusters(read_at, first, per_cluster * sector, count, reserved * sector, fat_bytes, bits)
    root = struct.unpack_from("<I", boot, 44)[0] & 0x0FFFFFFF if wide else 0
    if wide:
        clusters.require(root)
    return FatSystem(
        filesystem=f"FAT{32 if wide else bits}",
        id=number_text(serial) if named else "",
        clusters=clusters,
        root=root,
        root_offset=root_offset,
        root_bytes=root_bytes,
        boot_label=short_text(boot_label) if boot[38 + tail] == 0x29 else "",
    )


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _bad(what: str) -> Refused:
    return Refused("BAD_BOOT_SECTOR", f"Its boot sector names {what}.")
