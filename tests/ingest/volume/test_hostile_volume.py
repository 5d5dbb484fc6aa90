"""Hostile volumes end in a named refusal of the file or of the volume, within bounds."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.ingest.volume import Entry, ReadAt, Refused, Volume, content, model, reader, volumes, walk
from tests import stick_images
from tests.ingest.volume.images import entries, only_volume, read, reader_of, reasons, whole
from tests.stick_images import SECTOR, Exfat, Fat16, exfat_set, long, short

needs_mtools = pytest.mark.skipif(
    not stick_images.has("mkfs.fat", "mcopy", "mmd"), reason="mtools and dosfstools are not installed"
)


# --- lying boot sectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (11, "<H", 0),
        (11, "<H", 513),
        (11, "<H", 32768),
        (13, "<B", 0),
        (13, "<B", 3),
        (14, "<H", 0),
        (14, "<H", 0xFFFF),
        (16, "<B", 0),
        (16, "<B", 255),
        (17, "<H", 0),
        (22, "<H", 0xFFFF),
        (19, "<H", 1),
        (32, "<I", 0xFFFFFFFF),
    ],
)
def test_an_absurd_fat_boot_sector_is_refused(offset: int, form: str, value: int) -> None:
    stick = Fat16()
    if offset == 32:
        struct.pack_into("<H", stick.data, 19, 0)
    struct.pack_into(form, stick.data, offset, value)
    volume = only_volume(stick.data)
    assert volume.filesystem == ""
    assert volume.reason in {"BAD_BOOT_SECTOR", "TRUNCATED"}
    assert volume.detail


@needs_mtools
@pytest.mark.parametrize("value", [0, 1, 0x0FFFFFFF])
def test_a_fat32_root_out_of_the_volume_is_refused(tmp_path: Path, value: int) -> None:
    data = bytearray(stick_images.fat(tmp_path / "fat.img", {}).read_bytes())
    struct.pack_into("<I", data, 44, value)
    assert only_volume(data).reason == "BAD_CHAIN"


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (72, "<Q", 1 << 60),
        (80, "<I", 0),
        (80, "<I", 0xFFFFFFFF),
        (84, "<I", 1 << 31),
        (88, "<I", 1),
        (92, "<I", 0),
        (92, "<I", 0xFFFFFFF5),
        (96, "<I", 0),
        (96, "<I", 0xFFFFFFFF),
        (108, "<B", 0),
        (108, "<B", 255),
        (109, "<B", 255),
        (110, "<B", 0),
        (110, "<B", 200),
    ],
)
def test_an_absurd_exfat_boot_sector_is_refused_whatever_its_checksum(offset: int, form: str, value: int) -> None:
    stick = Exfat()
    boot = bytearray(stick.data[: 11 * SECTOR])
    struct.pack_into(form, boot, offset, value)
    stick.boot(boot)
    assert only_volume(stick.data).reason in {"BAD_BOOT_SECTOR", "TRUNCATED", "BAD_CHAIN"}


def test_an_exfat_boot_sector_is_read_by_its_copy_and_without_one_refused() -> None:
    stick = Exfat()
    stick.data[100] ^= 1
    assert only_volume(stick.data).filesystem == "exFAT"
    stick.data[12 * SECTOR + 100] ^= 1
    assert only_volume(stick.data).reason == "BAD_BOOT_SECTOR"


# --- chains ----------------------------------------------------------------------------------------------------------


def one(chain: list[int], size: int, first: int | None = None) -> str:
    """The reason of a FAT16 file with that chain and size."""
    stick = Fat16()
    stick.root(short(b"A       TXT", chain[0] if first is None else first, size))
    stick.link(*chain)
    return reasons(stick.data)["A.TXT"]


@pytest.mark.parametrize(
    ("chain", "size", "reason"),
    [
        ([2, 3, 0xFFFF], 1000, ""),
        ([2, 2], 4 * SECTOR, "CHAIN_LOOP"),
        ([2, 3, 4, 2], 3 * SECTOR, "CHAIN_LOOP"),
        ([2, 3, 4, 3], 3 * SECTOR, "CHAIN_LOOP"),
        ([2, 3, 0xFFFF], 0xFFFFFFFF, "TRUNCATED"),
        ([2, 3, 0xFFFF], 3 * SECTOR, "TRUNCATED"),
        ([2, 3, 4, 0xFFFF], SECTOR, "SIZE_MISMATCH"),
        ([2, 0xFFFF], 0, "SIZE_MISMATCH"),
        ([2, 0], SECTOR * 2, "BAD_CHAIN"),
        ([2, 1], SECTOR * 2, "BAD_CHAIN"),
        ([2, 0xFFF7], SECTOR * 2, "BAD_CHAIN"),
        ([2, 60000], SECTOR * 2, "BAD_CHAIN"),
        ([60000], 5, "BAD_CHAIN"),
        ([1], 5, "BAD_CHAIN"),
        ([0], 5, "TRUNCATED"),
    ],
)
def test_a_chain_that_is_not_the_files_is_refused_by_name(chain: list[int], size: int, reason: str) -> None:
    assert one(chain, size) == reason


def test_a_lying_entry_is_not_believed_when_it_is_read() -> None:
    stick = Fat16()
    stick.file(b"A       TXT", b"x" * 600, 2, 3)
    (entry,) = entries(stick.data)
    lies = [
        (Entry(entry.volume, "A.TXT", 0xFFFFFFFF, 0, 2), "TRUNCATED"),
        (Entry(entry.volume, "A.TXT", 600, 0, 60000), "BAD_CHAIN"),
        (Entry(entry.volume, "A.TXT", 600, 0, 4990, contiguous=True), ""),
        (Entry(entry.volume, "A.TXT", 512 * 20, 0, 4990, contiguous=True), "TRUNCATED"),
        (Entry(entry.volume, "", 600, 0, 2), "BAD_ENTRY"),
        (Entry(Volume(0, "exFAT", 0, len(stick.data)), "A.TXT", 600, 0, 2), "CHANGED"),
    ]
    for lie, reason in lies:
        try:
            assert len(read(stick.data, lie)) == lie.size_bytes
            said = ""
        except Refused as refused:
            said = refused.reason
        assert said == reason


def test_files_that_share_clusters_are_all_refused_and_no_other() -> None:
    stick = Fat16()
    stick.file(b"SOUND   TXT", b"s" * 2000, 10, 11, 12, 13)
    stick.file(b"FIRST   TXT", b"f" * 1500, 2, 3, 4)
    stick.root(short(b"SECOND  TXT", 7, 1500))
    stick.link(7, 3)
    assert reasons(stick.data) == {"FIRST.TXT": "CROSS_LINKED", "SECOND.TXT": "CROSS_LINKED", "SOUND.TXT": ""}


def test_exfat_files_that_overlap_are_refused() -> None:
    stick = Exfat()
    stick.file("a.bin", b"a" * 9000, 10, contiguous=True)
    stick.root(*exfat_set("b.bin", 12, 4096, contiguous=True), *exfat_set("c.bin", 190, 1 << 20, contiguous=True))
    assert reasons(stick.data) == {"a.bin": "CROSS_LINKED", "b.bin": "CROSS_LINKED", "c.bin": "TRUNCATED"}


def test_a_folder_that_is_its_own_parent_ends() -> None:
    stick = Fat16()
    stick.root(short(b"OUTER      ", 9, 0, 0x10))
    stick.write(9, short(b"INNER      ", 9, 0, 0x10) + short(b"A       TXT", 0, 0))
    stick.link(9, 0xFFFF)
    assert reasons(stick.data) == {"OUTER/A.TXT": "", "OUTER/INNER": "FOLDER_LOOP"}


def test_a_folder_whose_chain_comes_back_keeps_what_was_read_and_says_so() -> None:
    stick = Fat16()
    stick.root(short(b"FOLDER     ", 9, 0, 0x10))
    stick.write(9, b"".join(short(b"F%07dTXT" % number, 0, 0) for number in range(16)))
    stick.write(10, b"".join(short(b"G%07dTXT" % number, 0, 0) for number in range(16)))
    stick.link(9, 10, 9)
    found = reasons(stick.data)
    assert found.pop("FOLDER") == "CHAIN_LOOP"
    assert len(found) == 32
    assert set(found.values()) == {""}


def test_two_folders_share_no_cluster() -> None:
    stick = Fat16()
    stick.root(short(b"A          ", 9, 0, 0x10), short(b"B          ", 11, 0, 0x10))
    full = b"".join(short(b"\xe5%07dTXT" % number, 0, 0) for number in range(16))
    stick.write(9, full)
    stick.write(11, full)
    stick.link(9, 10, 0xFFFF)
    stick.link(11, 10)
    assert reasons(stick.data) == {"B": "CROSS_LINKED"}


def test_folders_are_followed_to_a_bounded_depth() -> None:
    stick = Fat16()
    stick.root(short(b"D          ", 2, 0, 0x10))
    for cluster in range(2, 200):
        stick.write(cluster, short(b"D          ", cluster + 1, 0, 0x10))
        stick.link(cluster, 0xFFFF)
    ((path, reason),) = reasons(stick.data).items()
    assert (path.count("/"), reason) == (model.MAX_DEPTH, "FOLDER_TOO_DEEP")


def test_a_volume_of_too_many_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_ENTRIES", 3)
    stick = Fat16()
    stick.root(*(short(b"F%07dTXT" % number, 0, 0) for number in range(5)))
    found = reasons(stick.data)
    assert found.pop("\\root") == "TOO_MANY_ENTRIES"
    assert len(found) == 3


def test_a_folder_without_a_cluster_is_refused() -> None:
    stick = Fat16()
    stick.root(short(b"FOLDER     ", 0, 0, 0x10))
    assert reasons(stick.data) == {"FOLDER": "BAD_CHAIN"}


# --- names -----------------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "..",
    ".",
    "a/b",
    "../../etc/passwd",
    "a\\b",
    "a\x01b",
    "tab\t",
    "c:",
    "in\u202evoice",
    "half\ud83d",
    "\udc00half",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_nobody_honest_wrote_is_refused_and_shown_escaped(name: str) -> None:
    raw = name.encode("utf-16-le", "surrogatepass")
    stick, disk = Fat16(), Exfat()
    stick.root(*long(raw, b"A       TXT"), short(b"A       TXT", 0, 0))
    disk.root(*exfat_set(name, 0, 0))
    for data in (stick.data, disk.data):
        (entry,) = entries(data)
        assert entry.reason == "BAD_NAME"
        assert entry.path.isprintable()
        assert "/" not in entry.path
        with pytest.raises(Refused):
            read(data, entry)


def test_a_nul_ends_a_long_name_and_spoils_an_exfat_name() -> None:
    stick, disk = Fat16(), Exfat()
    stick.root(*long("a\0evil.exe".encode("utf-16-le"), b"A       TXT"), short(b"A       TXT", 0, 0))
    disk.root(*exfat_set("a\0evil.exe", 0, 0))
    assert reasons(stick.data) == {"a": ""}
    assert reasons(disk.data) == {"a": "BAD_NAME"}


def test_dots_in_the_root_folder_and_empty_short_names_are_refused() -> None:
    stick = Fat16()
    stick.root(short(b"..         ", 0, 0, 0x10), short(b"           ", 0, 0), short(b"A/B     TXT", 0, 0))
    assert set(reasons(stick.data).values()) == {"BAD_NAME"}
    assert len(reasons(stick.data)) == 3


def test_of_two_files_of_one_name_the_second_is_refused_under_a_name_of_its_own() -> None:
    stick = Fat16()
    stick.file(b"A       TXT", b"first", 2)
    stick.file(b"A       TXT", b"second", 3)
    assert reasons(stick.data) == {"A.TXT": "", "A.TXT\\2": "NAME_TWICE"}
    assert whole(stick.data) == {"A.TXT": b"first"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"check": 1}, "BAD_ENTRY"),
        ({"units": 200}, "BAD_NAME"),
        ({"units": 2}, ""),
        ({"valid": 10}, "SIZE_MISMATCH"),
        ({"valid": 2}, "INCOMPLETE"),
    ],
)
def test_an_exfat_entry_that_contradicts_itself_is_refused(changes: dict[str, int], reason: str) -> None:
    stick = Exfat()
    stick.link(6, 0xFFFFFFFF)
    stick.root(*exfat_set("a.txt", 6, 5, **changes))  # type: ignore[arg-type]
    assert list(reasons(stick.data).values()) == [reason]


def test_an_exfat_file_of_more_bytes_than_there_are_is_refused() -> None:
    stick = Exfat()
    stick.root(*exfat_set("a.txt", 6, (1 << 64) - 1), *exfat_set("b.txt", 6, (1 << 64) - 1, contiguous=True))
    assert reasons(stick.data) == {"a.txt": "TRUNCATED", "b.txt": "TRUNCATED"}
    assert max(entry.size_bytes for entry in entries(stick.data)) < 1 << 63


def test_exfat_entries_that_are_cut_short_or_without_a_stream_are_refused() -> None:
    stick = Exfat()
    head, _, name = exfat_set("a.txt", 0, 0)
    stick.root(head, name, *exfat_set("sound.txt", 0, 0), head)
    assert sorted(reasons(stick.data).values()) == ["", "BAD_ENTRY", "BAD_ENTRY"]
    assert set(whole(stick.data)) == {"sound.txt"}


# --- pulled, and mutated ---------------------------------------------------------------------------------------------


def pulled_after(data: bytes | bytearray, reads: int) -> ReadAt:
    left = reads

    def read_at(offset: int, size: int) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(5, "Input/output error")
        return bytes(data[offset : offset + size])

    return read_at


def outcome(read_at: ReadAt, size: int) -> list[tuple[str, str, bytes]]:
    """Path, reason and bytes of everything that is found; the device's own reason without a path."""
    found = []
    try:
        for volume in volumes(read_at, size):
            found += [_read(read_at, entry) for entry in walk(read_at, volume)]
    except Refused as refused:
        return [("", refused.reason, b"")]
    return found


def _read(read_at: ReadAt, entry: Entry) -> tuple[str, str, bytes]:
    reason = entry.reason or entry.volume.reason
    try:
        return entry.path, reason, b"" if reason or not entry.path else b"".join(content(read_at, entry))
    except Refused as refused:
        return entry.path, refused.reason, b""


def test_a_stick_that_is_pulled_at_any_read_gives_no_wrong_byte_and_no_silence() -> None:
    stick = Fat16()
    files = {"A.TXT": os.urandom(1500), "FOLDER/B.TXT": os.urandom(700)}
    stick.file(b"A       TXT", files["A.TXT"], 2, 3, 4)
    stick.root(short(b"FOLDER     ", 9, 0, 0x10))
    stick.write(9, short(b"B       TXT", 20, 700))
    stick.write(20, files["FOLDER/B.TXT"])
    stick.link(9, 0xFFFF)
    stick.link(20, 21, 0xFFFF)
    for reads in range(100):
        found = outcome(pulled_after(stick.data, reads), len(stick.data))
        for path, reason, got in found:
            assert reason == "UNREADABLE" or got == files.get(path, b"")
        if {path for path, reason, _ in found if not reason} == set(files):
            break
        assert any(reason == "UNREADABLE" for _, reason, _ in found)
    assert 5 < reads < 99


def _mutants() -> dict[str, tuple[bytes, dict[str, bytes]]]:
    """Small sound images and what is in them."""
    stick, disk = Fat16(), Exfat()
    for number in range(8):
        stick.file(b"F%07dTXT" % number, bytes([number]) * 1200, *range(10 * number + 2, 10 * number + 5))
        disk.file(f"file {number}.txt", bytes([number]) * 5000, 10 * number + 20, 10 * number + 25)
    stick.root(*long("Ein langer Name.txt".encode("utf-16-le"), b"EINLAN~1TXT"), short(b"EINLAN~1TXT", 0, 0))
    return {"fat": (bytes(stick.data), whole(stick.data)), "exfat": (bytes(disk.data), whole(disk.data))}


MUTANTS = _mutants()
INTERESTING = {
    "fat": [(0, 64), (SECTOR, 300), ((1 + 20) * SECTOR, 400)],
    "exfat": [(64, 60), (24 * SECTOR, 500), (64 * SECTOR + 3 * 4096, 1200)],
}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["fat", "exfat"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(draw=st.data())
def test_whatever_bytes_change_the_reader_ends_and_no_name_is_twice(kind: str, draw: st.DataObject) -> None:
    data, files = bytearray(MUTANTS[kind][0]), MUTANTS[kind][1]
    for _ in range(draw.draw(st.integers(1, 6))):
        start, length = draw.draw(st.sampled_from(INTERESTING[kind]))
        at = start + draw.draw(st.integers(0, length - 1))
        data[at] = draw.draw(st.sampled_from([0, 1, 2, 0x10, 0x40, 0x7F, 0x80, 0xE5, 0xF7, 0xFF]))
    if kind == "exfat":
        Exfat.boot(_of(data), data[: 11 * SECTOR])  # or every mutant of the boot sector ends at its checksum
    found = outcome(reader_of(data), len(data))
    assert len({path for path, _, _ in found}) == len(found)
    assert sum(len(got) for _, _, got in found) <= len(data)
    if data == MUTANTS[kind][0]:
        assert {path: got for path, _, got in found} == files


def _of(data: bytearray) -> Exfat:
    stick = Exfat.__new__(Exfat)
    stick.data = data
    return stick


@settings(max_examples=60, deadline=None, derandomize=True)
@given(noise=st.binary(min_size=512, max_size=4096))
def test_noise_is_refused(noise: bytes) -> None:
    assert all(reason for _, reason, _ in outcome(reader_of(noise), len(noise)))


def test_a_huge_lying_volume_takes_neither_time_nor_memory() -> None:
    """Ten thousand files that all claim 2 GiB of a volume of 256 GiB, and chains that go in circles."""
    stick = Fat16()
    boot = bytearray(stick.data[:SECTOR])
    fat_sectors = 1 << 19
    struct.pack_into("<H", boot, 14, 32)
    boot[16] = 1
    struct.pack_into("<HH", boot, 17, 0, 0)
    struct.pack_into("<H", boot, 22, 0)
    struct.pack_into("<II", boot, 32, 0xFFFFFFFF, fat_sectors)
    struct.pack_into("<I", boot, 44, 2)
    boot[66] = 0x29
    boot[82:90] = b"FAT32   "
    heap = (32 + fat_sectors) * SECTOR
    root = b"".join(short(b"F%07dTXT" % number, 5, 0x7FFFFFFF) for number in range(16))

    def read_at(offset: int, size: int) -> bytes:
        if offset == 0:
            return bytes(boot[:size]).ljust(size, b"\0")
        if offset < heap:  # every cluster leads to the next, the last back
            first = (offset - 32 * SECTOR) // 4
            return b"".join(struct.pack("<I", 5 + (first + step - 4) % 4000) for step in range(size // 4))
        return root[:size].ljust(size, b"\0") if offset == heap else bytes(size)

    total = 0xFFFFFFFF * SECTOR
    (volume,) = volumes(read_at, total)
    assert volume.filesystem == "FAT32"
    found = list(walk(read_at, volume))
    assert 0 < len(found) <= 17
    assert {entry.reason for entry in found} <= {"", "CHAIN_LOOP", "SIZE_MISMATCH", "NAME_TWICE", "TRUNCATED"}


class Looked(set[str]):
    """How often somebody looked whether something is in it."""

    times = 0

    def __contains__(self, name: object) -> bool:
        self.times += 1
        return super().__contains__(name)


def test_a_name_that_a_thousand_files_have_costs_no_more_than_a_thousand_names() -> None:
    volume = only_volume(Fat16().data)
    walk = reader._Walk(reader._mount(reader_of(Fat16().data), volume), volume)
    walk._seen = Looked()
    for _ in range(1000):
        walk._note(Entry(volume, "A.TXT"))
    assert len({entry.path for entry in walk._entries}) == 1000
    assert walk._seen.times < 3000
