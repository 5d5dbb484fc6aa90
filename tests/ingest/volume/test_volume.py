"""Sound volumes and partition tables are read as they were written; damaged tables by their copies."""

import calendar
import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from appliance.ingest.volume import Refused, volumes
from tests import stick_images
from tests.ingest.volume.images import entries, only_volume, read, reader_of, reasons, whole
from tests.stick_images import SECTOR, Exfat, Fat16, exfat_set, long, short

needs_mtools = pytest.mark.skipif(
    not stick_images.has("mkfs.fat", "mcopy", "mmd"), reason="mtools and dosfstools are not installed"
)
needs_exfatprogs = pytest.mark.skipif(not stick_images.has("mkfs.exfat"), reason="exfatprogs is not installed")


# --- sound volumes ---------------------------------------------------------------------------------------------------


@needs_mtools
@pytest.mark.parametrize(("bits", "mib"), [(12, 4), (16, 20), (32, 40)])
def test_what_mtools_wrote_is_read_name_by_name_and_byte_by_byte(tmp_path: Path, bits: int, mib: int) -> None:
    data = stick_images.fat(tmp_path / "fat.img", stick_images.FILES, bits, mib << 20).read_bytes()
    volume = only_volume(data)
    assert (volume.filesystem, volume.id, volume.label) == (f"FAT{bits}", "1A2B-3C4D", "DROP")
    assert whole(data) == stick_images.FILES
    assert not any(reasons(data).values())
    assert [entry.path for entry in entries(data)][-2:] == ["folder/inner file.txt", "folder/deeper/and deeper/x.bin"]


@needs_mtools
def test_times_are_as_they_were_written(tmp_path: Path) -> None:
    data = stick_images.fat(tmp_path / "fat.img", {"a.txt": b"x"}).read_bytes()
    listed = subprocess.run(
        ["mdir", "-i", str(tmp_path / "fat.img"), "::a.txt"], capture_output=True, text=True, check=True
    ).stdout
    (entry,) = entries(data)
    year, month, day = (int(part) for part in next(word for word in listed.split() if word.count("-") == 2).split("-"))
    assert entry.modified_ns // 10**9 // 86400 == calendar.timegm((year, month, day, 0, 0, 0)) // 86400


def test_a_dos_time_is_read_as_utc_and_an_exfat_time_by_its_zone() -> None:
    stick = Fat16()
    stick.file(b"A       TXT", b"x", 2)
    (entry,) = entries(stick.data)  # 0x5A21, 0x6000: 2025-01-01 12:00:00
    assert entry.modified_ns == calendar.timegm((2025, 1, 1, 12, 0, 0)) * 10**9
    disk = Exfat()
    disk.file("a.txt", b"x", 6)
    (entry,) = entries(disk.data)  # an hour east, and half a second later
    assert entry.modified_ns == calendar.timegm((2025, 1, 1, 11, 0, 0)) * 10**9 + 5 * 10**8


@needs_exfatprogs
def test_a_volume_of_mkfs_exfat_is_read(tmp_path: Path) -> None:
    path = tmp_path / "exfat.img"
    path.write_bytes(b"")
    os.truncate(path, 8 << 20)
    subprocess.run(["mkfs.exfat", "-L", "Sammlung", str(path)], check=True, capture_output=True)
    volume = only_volume(path.read_bytes())
    assert (volume.filesystem, volume.label, volume.reason) == ("exFAT", "Sammlung", "")
    assert [entry.path for entry in entries(path.read_bytes())] == [""]


def test_exfat_files_are_read_by_chain_and_without_one() -> None:
    stick = Exfat()
    chained, straight = os.urandom(10_000), os.urandom(9_000)
    stick.file("in pieces.bin", chained, 20, 10, 30)
    stick.file("straight 日本 🙂.bin", straight, 40, contiguous=True)
    stick.file("empty.txt", b"")
    stick.file("n" * 255, b"long", 50)
    stick.root(*exfat_set("folder", 60, 4096, attributes=0x10))
    stick.link(60, 0xFFFFFFFF)
    stick.write(60, b"".join(exfat_set("inner.txt", 61, 5)))
    stick.write(61, b"below")
    stick.link(61, 0xFFFFFFFF)
    volume = only_volume(stick.data)
    assert (volume.filesystem, volume.id, volume.label) == ("exFAT", "BEEF-0002", "DROP")
    assert whole(stick.data) == {
        "in pieces.bin": chained,
        "straight 日本 🙂.bin": straight,
        "empty.txt": b"",
        "n" * 255: b"long",
        "folder/inner.txt": b"below",
    }


def test_short_names_are_in_code_page_437_with_the_case_that_windows_nt_notes() -> None:
    stick = Fat16()
    stick.file(b"\x05BC\x84    TXT", b"kanji lead byte", 2)
    stick.root(short(b"LOWER   TXT", 0, 0, case=0x18))
    stick.root(short(b"HALF    TXT", 0, 0, case=0x08))
    assert set(whole(stick.data)) == {"σBCä.TXT", "lower.txt", "half.TXT"}


def test_a_long_name_holds_every_character() -> None:
    stick = Fat16()
    stick.root(*long("emoji 🙂 日本.txt".encode("utf-16-le"), b"A       TXT"), short(b"A       TXT", 0, 0))
    stick.root(*long(("thirteen" + "x" * 5).encode("utf-16-le"), b"B       TXT"), short(b"B       TXT", 0, 0))
    assert set(whole(stick.data)) == {"emoji 🙂 日本.txt", "thirteenxxxxx"}


def test_a_long_name_of_another_file_counts_as_none() -> None:
    stick = Fat16()
    stick.root(*long("evil.exe".encode("utf-16-le"), b"OTHER   TXT"), short(b"SOUND   TXT", 0, 0))
    stick.root(*long("torn long name of two.txt".encode("utf-16-le"), b"TORN    TXT")[1:], short(b"TORN    TXT", 0, 0))
    assert set(whole(stick.data)) == {"SOUND.TXT", "TORN.TXT"}


def test_deleted_files_labels_and_dots_are_not_shown() -> None:
    stick = Fat16()
    stick.root(short(b"MY LABEL   ", 0, 0, 0x08), short(b"\xe5ONE    TXT", 7, 9), short(b"FOLDER     ", 9, 0, 0x10))
    stick.write(9, short(b".          ", 9, 0, 0x10) + short(b"..         ", 0, 0, 0x10) + short(b"IN      TXT", 0, 0))
    stick.link(9, 0xFFFF)
    assert [entry.path for entry in entries(stick.data)] == ["FOLDER/IN.TXT"]
    assert only_volume(stick.data).label == "MY LABEL"


def test_an_empty_volume_is_told_of() -> None:
    (entry,) = entries(Fat16().data)
    assert (entry.path, entry.volume.filesystem, entry.volume.label) == ("", "FAT16", "BYHAND")


# --- partitions ------------------------------------------------------------------------------------------------------


def sound() -> bytes:
    stick = Fat16()
    stick.file(b"A       TXT", b"a file", 2)
    return bytes(stick.data)


def test_each_partition_of_an_mbr_is_a_volume_logical_ones_too() -> None:
    size = len(sound()) // SECTOR
    extended = 100 + size
    data = bytearray(stick_images.mbr((0x06, 100, size), (0x05, extended, 2 * size + 200)).ljust(100 * SECTOR, b"\0"))
    data += sound()
    logical = stick_images.mbr((0x07, 50, len(Exfat().data) // SECTOR), (0x05, 50 + size, size + 50))
    data += logical.ljust(50 * SECTOR, b"\0") + bytes(Exfat().data).ljust(size * SECTOR, b"\0")
    data += stick_images.mbr((0x06, 50, size)).ljust(50 * SECTOR, b"\0") + sound()
    found = volumes(reader_of(data), len(data))
    assert [(volume.number, volume.filesystem) for volume in found] == [(0, "FAT16"), (1, "exFAT"), (2, "FAT16")]
    assert [entry.path for entry in entries(data)] == ["A.TXT", "", "A.TXT"]
    assert read(data, entries(data)[2]) == b"a file"


@pytest.mark.parametrize("sector", [512, 4096])
def test_each_partition_of_a_gpt_is_a_volume(sector: int) -> None:
    data = stick_images.gpt([sound(), bytes(Exfat().data)], sector)
    assert [volume.filesystem for volume in volumes(reader_of(data), len(data))] == ["FAT16", "exFAT"]


@pytest.mark.parametrize("at", [0, 20, 80], ids=["signature", "header", "count"])
def test_a_damaged_gpt_is_read_by_its_copy_and_two_damaged_ones_are_refused(at: int) -> None:
    data = stick_images.gpt([sound()])
    data[512 + at] ^= 0xFF
    assert [volume.filesystem for volume in volumes(reader_of(data), len(data))] == ["FAT16"]
    data[len(data) - 512 + at] ^= 0xFF
    with pytest.raises(Refused) as refused:
        volumes(reader_of(data), len(data))
    assert refused.value.reason == "BAD_PARTITION_TABLE"


def test_a_damaged_row_of_a_gpt_is_seen_by_its_checksum() -> None:
    data = stick_images.gpt([sound()])
    data[2 * 512 + 33] ^= 1
    assert [volume.filesystem for volume in volumes(reader_of(data), len(data))] == ["FAT16"]
    data[-33 * 512 + 33] ^= 1
    with pytest.raises(Refused, match="so is the copy"):
        volumes(reader_of(data), len(data))


def test_a_gpt_that_points_past_all_devices_is_refused() -> None:
    data = stick_images.gpt([sound()])
    for at in (512, len(data) - 512):
        struct.pack_into("<Q", data, at + 72, (1 << 64) - 1)
        struct.pack_into("<I", data, at + 16, 0)
        struct.pack_into("<I", data, at + 16, zlib.crc32(data[at : at + 92]))
    offsets: list[int] = []

    def read_at(offset: int, size: int) -> bytes:
        offsets.append(offset)
        return bytes(data[offset : offset + size])

    with pytest.raises(Refused, match="damaged"):
        volumes(read_at, len(data))
    assert max(offsets) < 1 << 62


def test_a_chain_of_extended_partitions_that_comes_back_ends() -> None:
    data = bytearray(stick_images.mbr((0x05, 10, 100))).ljust(200 * SECTOR, b"\0")
    data[10 * SECTOR : 11 * SECTOR] = stick_images.mbr((0x06, 5, 10), (0x05, 0, 100))
    assert [volume.reason for volume in volumes(reader_of(data), len(data))] == ["UNSUPPORTED_FILESYSTEM"]


def test_partitions_that_are_not_on_the_device_are_refused() -> None:
    past = stick_images.mbr((0x06, 1 << 20, 100)).ljust(100 * SECTOR, b"\0")
    with pytest.raises(Refused) as refused:
        volumes(reader_of(past), len(past))
    assert refused.value.reason == "BAD_PARTITION_TABLE"
    long_one = stick_images.mbr((0x06, 10, 1 << 30)).ljust(100 * SECTOR, b"\0")
    assert only_volume(long_one).reason == "TRUNCATED"


@pytest.mark.parametrize(
    ("at", "magic", "name"),
    [
        (3, b"NTFS    ", "NTFS"),
        (3, b"-FVE-FS-", "BitLocker"),
        (1080, b"\x53\xef", "ext4"),
        (0, b"LUKS\xba\xbe", "LUKS"),
    ],
)
def test_a_file_system_that_is_not_read_is_named(at: int, magic: bytes, name: str) -> None:
    data = bytearray(1 << 17)
    data[at : at + len(magic)] = magic
    volume = only_volume(data)
    assert (volume.filesystem, volume.reason) == ("", "UNSUPPORTED_FILESYSTEM")
    assert name in volume.detail
    assert reasons(data) == {"": "UNSUPPORTED_FILESYSTEM"}


@pytest.mark.parametrize("size", [0, 1, 511])
def test_a_device_of_no_size_is_refused(size: int) -> None:
    with pytest.raises(Refused) as refused:
        volumes(reader_of(bytes(size)), size)
    assert refused.value.reason == ("TRUNCATED" if size else "EMPTY")
