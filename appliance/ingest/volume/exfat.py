"""exFAT.

Source: Microsoft, "exFAT file system specification" (2019). Names are read as they were written: the up-case table
is for comparing, which a reader does not.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.ingest.volume.clusters import Clusters
from appliance.ingest.volume.model import MAX_CLUSTERS, ReadAt, Refused, Row, exact
from appliance.ingest.volume.names import long_text, number_text, time_ns

SIGNATURE = b"\xeb\x76\x90EXFAT   "
_FILE, _STREAM, _NAME, _LABEL = 0x85, 0xC0, 0xC1, 0x83
_MORE = 0xC0  # in use, and secondary: a part of the file before it
_FOLDER = 0x10
_NO_CHAIN = 0x02
_MAX_SECONDARY = 18  # of a file: one stream and 17 parts of a name


@dataclass(frozen=True)
class ExfatSystem:
    """One volume."""

    filesystem: str
    id: str
    clusters: Clusters
    root: int

    def rows(self, folder: Row | None) -> Iterator[Row]:
        """What is in a folder, None: the root; without what was deleted. Raises Refused."""
        slots = self._slots(folder)
        slot = next(slots, None)
        while slot is not None:
            if slot[0] != _FILE:
                slot = next(slots, None)
                continue
            head, parts = slot, list[bytes]()
            slot = next(slots, None)
            while slot is not None and len(parts) < head[1] and slot[0] & _MORE == _MORE:
                parts.append(slot)
                slot = next(slots, None)
            yield self._row(head, parts)

    def label(self) -> str:
        """The volume's name, '' for none. Raises Refused."""
        for slot in self._slots(None):
            if slot[0] == _LABEL:
                return long_text(slot[2 : 2 + 2 * min(slot[1], 11)])
        return ""

    def _slots(self, folder: Row | None) -> Iterator[bytes]:
        """Directory entries up to the end mark."""
        if folder is not None and folder.contiguous:
            areas = self.clusters.folder(self.clusters.run(folder.cluster, folder.size_bytes))
        else:
            areas = self.clusters.folder(self.clusters.links(folder.cluster if folder else self.root))
        for area in areas:
            for start in range(0, len(area) - 31, 32):
                if area[start] == 0:
                    return
                yield area[start : start + 32]

    def _row(self, head: bytes, parts: list[bytes]) -> Row:
        (attributes,) = struct.unpack_from("<H", head, 4)
        time, date = struct.unpack_from("<HH", head, 12)
        modified_ns = time_ns(date, time, head[21], _zone_minutes(head[23]))
        streams = [part for part in parts if part[0] == _STREAM]
        names = [part for part in parts if part[0] == _NAME]
        flags, units, valid, cluster, size = 0, 0, 0, 0, 0
        if streams:
            flags, _, units = struct.unpack_from("<BBB", streams[0], 1)
            valid, _, cluster, size = struct.unpack_from("<QIIQ", streams[0], 8)
        name = long_text(b"".join(part[2:] for part in names)[: 2 * units])
        fault = None
        if (
            len(parts) != head[1]
            or not 2 <= len(parts) <= _MAX_SECONDARY
            or parts[0][0] != _STREAM
            or len(streams) != 1
        ):
            fault = Refused("BAD_ENTRY", "Its folder entry is not whole.")
        elif struct.unpack_from("<H", head, 2)[0] != _checksum(head, parts):
            fault = Refused("BAD_ENTRY", "The checksum of its folder entry is wrong.")
        elif _units(name) != units or len(names) < -(-units // 15):
            fault = Refused("BAD_NAME", "Its name is not as long as its folder entry says.")
        elif valid > size:
            fault = Refused("SIZE_MISMATCH", "More of it was written than it is long, says its folder entry.")
        elif valid < size and not attributes & _FOLDER:
            fault = Refused("INCOMPLETE", "Its last part was never written: copying it onto the stick was cut short.")
        elif attributes & _FOLDER and not cluster:
            fault = Refused("BAD_CHAIN", "A folder that has no cluster of its own.")
        contiguous = bool(flags & _NO_CHAIN)
        return Row(name, bool(attributes & _FOLDER), size, modified_ns, cluster, contiguous, fault)


def _units(name: str) -> int:
    return len(name.encode("utf-16-le", "surrogatepass")) // 2


def mount(read_at: ReadAt, size_bytes: int) -> ExfatSystem:
    """The file system that begins at 0, by its backup boot region where the main one is damaged.

    Raises Refused: BAD_BOOT_SECTOR, TRUNCATED, UNREADABLE.
    """
    shift = exact(read_at, 0, 512)[108]
    if not 9 <= shift <= 12:
        raise _bad("a sector size that does not exist")
    sector = 1 << shift
    boot = exact(read_at, 0, 12 * sector)
    if not _sound(boot, sector):
        boot = exact(read_at, 12 * sector, 12 * sector)
        if not _sound(boot, sector):
            raise Refused("BAD_BOOT_SECTOR", "The checksum of its boot sectors is wrong, and that of their copy.")
    length, fat, fat_sectors, heap, count, root, serial = struct.unpack_from("<QIIIIII", boot, 72)
    cluster_shift, tables = boot[109], boot[110]
    if cluster_shift > 25 - shift or boot[108] != shift:
        raise _bad("a cluster size that does not exist")
    if tables not in (1, 2):
        raise _bad("an impossible number of tables")
    if length * sector > size_bytes:
        raise Refused("TRUNCATED", "Its file system is larger than the device or partition that it lies on.")
    if fat < 24 or fat + fat_sectors * tables > heap or heap + (count << cluster_shift) > length:
        raise _bad("tables and files that lie over one another")
    if not 0 < count <= MAX_CLUSTERS or (count + 2) * 4 > fat_sectors * sector:
        raise _bad("an impossible number of clusters")
    active = 1 if struct.unpack_from("<H", boot, 106)[0] & 1 and tables == 2 else 0
    start = (fat + active * fat_sectors) * sector
    clusters = Clusters(read_at, heap * sector, sector << cluster_shift, count, start, fat_sectors * sector, 32)
    clusters.require(root)
    return ExfatSystem("exFAT", number_text(serial), clusters, root)


def _sound(boot: bytes, sector: int) -> bool:
    """Whether a boot region has its signature and, in its last sector, the checksum of the others."""
    total = 0
    for index, byte in enumerate(boot[: 11 * sector]):
        if index not in (106, 107, 112):
            total = ((total & 1) << 31) + (total >> 1) + byte & 0xFFFFFFFF
    wanted = struct.pack("<I", total) * (sector // 4)
    return boot[:11] == SIGNATURE and boot[510:512] == b"\x55\xaa" and boot[11 * sector :] == wanted


def _checksum(head: bytes, parts: list[bytes]) -> int:
    total = 0
    for index, byte in enumerate(head + b"".join(parts)):
        if index not in (2, 3):
            total = ((total & 1) << 15) + (total >> 1) + byte & 0xFFFF
    return total


def _zone_minutes(offset: int) -> int:
    """Minutes east of UTC: quarters of an hour in 7 bits with a sign, where the eighth says that they hold."""
    if not offset & 0x80:
        return 0
    quarters = offset & 0x7F
    return 15 * (quarters - 128 if quarters >= 64 else quarters)


def _bad(what: str) -> Refused:
    return Refused("BAD_BOOT_SECTOR", f"Its boot sector names {what}.")
