"""Images of sticks: sound ones by mtools and mkfs where they are installed, hostile ones by changed bytes."""

import itertools
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20

FILES: Mapping[str, bytes] = {
    "README.TXT": b"Plain 8.3 name.\n",
    "lower.txt": b"lower case 8.3\n",
    "empty.txt": b"",
    "A long name with spaces.and.dots.pdf": b"%PDF-" + bytes(range(256)) * 40,
    "Straße und Ärger.txt": "ä".encode() * 700,
    "Ελληνικά.txt": b"greek",
    "Кириллица.docx": b"cyrillic",
    "日本語の文書.txt": b"japanese",
    "עברית.txt": b"hebrew",
    "n" * 240 + ".txt": b"long",
    "folder/inner file.txt": b"below",
    "folder/deeper/and deeper/x.bin": os.urandom(70_000),
}
"""What `fat` and `exfat` are asked to hold in the tests: names in many scripts, sizes around a cluster."""


def has(*tools: str) -> bool:
    """Whether these programs are installed."""
    return all(shutil.which(tool) for tool in tools)


def fat(
    path: Path, files: Mapping[str, bytes], bits: int = 32, size_bytes: int = 40 * MIB, label: str = "DROP"
) -> Path:
    """A FAT volume without a partition table, made by mkfs.fat and filled by mtools, a file a cluster chain."""
    path.write_bytes(b"")
    os.truncate(path, size_bytes)
    _run("mkfs.fat", "-F", str(bits), "-n", label, "-i", "1A2B3C4D", str(path))
    scratch = path.with_name(path.name + ".files")
    made: set[str] = set()
    for name, content in files.items():
        source = scratch / name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(content)
        for depth in range(1, name.count("/") + 1):
            folder = "/".join(name.split("/")[:depth])
            if folder not in made:
                _run("mmd", "-i", str(path), f"::{folder}")
                made.add(folder)
        _run("mcopy", "-o", "-i", str(path), str(source), f"::{name}")
    shutil.rmtree(scratch, ignore_errors=True)
    return path


def _run(*command: str) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, stdin=subprocess.DEVNULL)


# --- FAT16 by hand: every byte is known ------------------------------------------------------------------------------

SECTOR = 512
FAT16_CLUSTERS = 5000
_FAT16_SECTORS = 20
_RESERVED = 1
_ROOT_SECTORS = 32
FIRST_SECTOR = _RESERVED + _FAT16_SECTORS + _ROOT_SECTORS


class Fat16:
    """A FAT16 volume of one table and clusters of one sector, written entry by entry: what it says may be a lie."""

    def __init__(self) -> None:
        self.data = bytearray((FIRST_SECTOR + FAT16_CLUSTERS) * SECTOR)
        boot = struct.pack(
            "<3s8sHBHBHHBHHHII",
            b"\xeb\x3c\x90",
            b"BYHAND  ",
            SECTOR,
            1,
            _RESERVED,
            1,
            512,
            0,
            0xF8,
            20,
            1,
            1,
            0,
            FIRST_SECTOR + FAT16_CLUSTERS,
        )
        boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0xCAFE0001, b"BYHAND     ", b"FAT16   ")
        self.data[: len(boot)] = boot
        self.data[510:512] = b"\x55\xaa"
        self._slots = 0

    def link(self, *chain: int) -> None:
        """Each cluster leads to the one after it; the last as it is given: 0xFFFF ends a chain."""
        for cluster, following in itertools.pairwise(chain):
            struct.pack_into("<H", self.data, _RESERVED * SECTOR + 2 * cluster, following)

    def write(self, cluster: int, content: bytes) -> None:
        """Content from the beginning of a cluster on."""
        start = (FIRST_SECTOR + cluster - 2) * SECTOR
        self.data[start : start + len(content)] = content

    def root(self, *slots: bytes) -> None:
        """Slots at the end of the root folder."""
        for slot in slots:
            start = (_RESERVED + _FAT16_SECTORS) * SECTOR + 32 * self._slots
            self.data[start : start + 32] = slot
            self._slots += 1

    def file(self, name: bytes, content: bytes, *chain: int) -> None:
        """A sound file in the root folder."""
        self.root(short(name, chain[0] if chain else 0, len(content)))
        for number, cluster in enumerate(chain):
            self.write(cluster, content[number * SECTOR : (number + 1) * SECTOR])
        self.link(*chain, 0xFFFF)


def short(name: bytes, cluster: int, size: int, attributes: int = 0x20, case: int = 0) -> bytes:
    """A folder entry. name: 11 bytes."""
    return struct.pack(
        "<11sBBBHHHHHHHI", name, attributes, case, 0, 0, 0, 0, cluster >> 16, 0x6000, 0x5A21, cluster & 0xFFFF, size
    )


def checksum(name: bytes) -> int:
    """Of an 8.3 name, for its long name's parts."""
    total = 0
    for byte in name:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def long(text: bytes, name: bytes, *, check: int | None = None) -> list[bytes]:
    """The parts of a long name as they stand before its entry. text: UTF-16LE, any units."""
    units = text + b"\0\0" if len(text) % 26 else text
    units += b"\xff" * (-len(units) % 26)
    parts = [units[start : start + 26] for start in range(0, len(units), 26)]
    found = []
    for number, part in enumerate(parts, 1):
        order = number | (0x40 if number == len(parts) else 0)
        head = struct.pack("<B10sBBB", order, part[:10], 0x0F, 0, checksum(name) if check is None else check)
        found.append(head + part[10:22] + b"\0\0" + part[22:])
    return found[::-1]


# --- exFAT by hand ---------------------------------------------------------------------------------------------------

_EXFAT_FAT, _EXFAT_HEAP, EXFAT_CLUSTERS = 24, 64, 200


class Exfat:
    """An exFAT volume with clusters of 4 KiB, its root folder in cluster 5: no common tool writes files to one."""

    cluster_bytes = 4096

    def __init__(self) -> None:
        length = _EXFAT_HEAP + 8 * EXFAT_CLUSTERS
        self.data = bytearray(length * SECTOR)
        boot = bytearray(11 * SECTOR)
        boot[:11] = b"\xeb\x76\x90EXFAT   "
        struct.pack_into(
            "<QQIIIIIIHHBBBBB",
            boot,
            64,
            0,
            length,
            _EXFAT_FAT,
            8,
            _EXFAT_HEAP,
            EXFAT_CLUSTERS,
            5,
            0xBEEF0002,
            0x100,
            0,
            9,
            3,
            1,
            0x80,
            0,
        )
        boot[510:512] = b"\x55\xaa"
        self.boot(boot)
        self.link(5, 0xFFFFFFFF)
        self._root = 0
        self.root(struct.pack("<BB22s8x", 0x83, 4, "DROP".encode("utf-16-le")))

    def boot(self, boot: bytes | bytearray) -> None:
        """Write the boot region and its copy, with their checksum."""
        total = 0
        for index, byte in enumerate(boot):
            if index not in (106, 107, 112):
                total = ((total & 1) << 31) + (total >> 1) + byte & 0xFFFFFFFF
        region = bytes(boot) + struct.pack("<I", total) * 128
        self.data[: len(region)] = region
        self.data[len(region) : 2 * len(region)] = region

    def link(self, *chain: int) -> None:
        for cluster, following in itertools.pairwise(chain):
            struct.pack_into("<I", self.data, _EXFAT_FAT * SECTOR + 4 * cluster, following)

    def write(self, cluster: int, content: bytes | bytearray) -> None:
        start = _EXFAT_HEAP * SECTOR + (cluster - 2) * self.cluster_bytes
        self.data[start : start + len(content)] = content

    def root(self, *slots: bytes) -> None:
        for slot in slots:
            self.write(5, self.data[self._start() : self._start() + self._root] + slot)
            self._root += 32

    def file(self, name: str, content: bytes, *chain: int, contiguous: bool = False) -> None:
        """A sound file in the root folder. chain: its clusters, only the first where it is contiguous."""
        self.root(*exfat_set(name, chain[0] if chain else 0, len(content), contiguous=contiguous))
        if contiguous:
            self.write(chain[0], content)
            return
        for number, cluster in enumerate(chain):
            self.write(cluster, content[number * self.cluster_bytes : (number + 1) * self.cluster_bytes])
        self.link(*chain, 0xFFFFFFFF)

    def _start(self) -> int:
        return _EXFAT_HEAP * SECTOR + 3 * self.cluster_bytes


def exfat_set(
    name: str,
    cluster: int,
    size: int,
    *,
    contiguous: bool = False,
    attributes: int = 0x20,
    valid: int | None = None,
    units: int | None = None,
    check: int | None = None,
    zone: int = 0x84,
) -> list[bytes]:
    """The entries of one file: head, stream, name. zone: of its time, 0x84 is an hour east of UTC."""
    raw = name.encode("utf-16-le", "surrogatepass")
    padded = raw + bytes(-len(raw) % 30)
    names = [b"\xc1\0" + padded[start : start + 30] for start in range(0, len(padded), 30)]
    flags = 1 | (2 if contiguous else 0)
    stream = struct.pack(
        "<BBBBHHQIIQ",
        0xC0,
        flags,
        0,
        len(raw) // 2 if units is None else units,
        0,
        0,
        size if valid is None else valid,
        0,
        cluster,
        size,
    )
    head = bytearray(32)
    struct.pack_into(
        "<BBHHHHHHHHHBBBB",
        head,
        0,
        0x85,
        1 + len(names),
        0,
        attributes,
        0,
        0,
        0,
        0x6000,
        0x5A21,
        0,
        0,
        0,
        50,
        zone,
        zone,
    )
    total = 0
    for index, byte in enumerate(bytes(head) + stream + b"".join(names)):
        if index not in (2, 3):
            total = ((total & 1) << 15) + (total >> 1) + byte & 0xFFFF
    struct.pack_into("<H", head, 2, total if check is None else check)
    return [bytes(head), stream, *names]


# --- partition tables ------------------------------------------------------------------------------------------------


def mbr(*rows: tuple[int, int, int]) -> bytes:
    """One sector. rows: type, first sector, sectors."""
    table = b"".join(struct.pack("<B3xB3xII", 0, *row) for row in rows)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt(volumes: list[bytes], sector: int = SECTOR) -> bytearray:
    """A device with a protective MBR, a GPT and its copy, and these volumes."""
    first = 64 * 512 // sector * 8
    starts, at = [], first
    for volume in volumes:
        starts.append(at)
        at += -(-len(volume) // sector)
    table_sectors = 128 * 128 // sector
    total = at + table_sectors + 1
    rows = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            b"\xa2\xa0\xd0\xeb\xe5\xb9\x33\x44\x87\xc0\x68\xb6\xb7\x26\x99\xc7",
            bytes([number + 1] * 16),
            start,
            start + -(-len(volume) // sector) - 1,
            0,
            b"",
        )
        for number, (start, volume) in enumerate(zip(starts, volumes, strict=True))
    ).ljust(128 * 128, b"\0")
    data = bytearray(total * sector)
    data[:512] = mbr((0xEE, 1, total - 1))

    def header(mine: int, other: int, table: int) -> bytes:
        packed = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x10000,
            92,
            0,
            0,
            mine,
            other,
            first,
            at - 1,
            bytes(16),
            table,
            128,
            128,
            zlib.crc32(rows),
        )
        return packed[:16] + struct.pack("<I", zlib.crc32(packed)) + packed[20:]

    data[sector : sector + 92] = header(1, total - 1, 2)
    data[2 * sector : 2 * sector + len(rows)] = rows
    data[at * sector : at * sector + len(rows)] = rows
    data[(total - 1) * sector : (total - 1) * sector + 92] = header(total - 1, 1, at)
    for start, volume in zip(starts, volumes, strict=True):
        data[start * sector : start * sector + len(volume)] = volume
    return data
