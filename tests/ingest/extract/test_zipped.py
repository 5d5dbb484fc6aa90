"""ZIP archives: those that programs write, and those that attack."""

import stat
import struct
import zipfile
from typing import IO, cast

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from tests import container_files as made
from tests.reads import members, reason
from tests.zip_quine import quine


def problems(data: bytes) -> dict[str, str]:
    return {path: problem for path, content, problem in members(data, ".zip") if problem and not content}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_are_members_and_folders_are_not(compression: int) -> None:
    data = made.zip_of({"a.txt": b"one", "folder/": b"", "folder/b.txt": b"two", "./c.txt": b"three"}, compression)
    assert members(data, ".zip") == [("a.txt", b"one", ""), ("folder/b.txt", b"two", ""), ("c.txt", b"three", "")]


def test_names_are_read_in_both_of_the_formats_charsets() -> None:
    assert members(made.zip_of({"schlüssel.txt": b"x"}), ".zip") == [("schlüssel.txt", b"x", "")]
    assert members(made.raw_zip([(b"schl\x81ssel.txt", b"x")]), ".zip") == [("schlüssel.txt", b"x", "")]
    assert members(made.raw_zip([(b"\xff.txt", b"x")], flags=0x800), ".zip") == [("\udcff.txt", b"x", "")]


def test_a_member_that_is_a_container_is_just_a_member() -> None:
    inner = made.zip_of({"a.txt": b"x"})
    assert members(made.zip_of({"inner.zip": inner, "more.docx": inner}), ".zip") == [
        ("inner.zip", inner, ""),
        ("more.docx", inner, ""),
    ]


def test_an_archive_that_holds_itself_is_a_member_of_itself() -> None:
    assert members(quine(), ".zip") == [("r/r.zip", quine(), "")]


def test_an_archive_that_was_streamed_is_read() -> None:
    class Stream:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes) -> int:
            self.data += data
            return len(data)

        def flush(self) -> None:
            pass

    out = Stream()
    with zipfile.ZipFile(cast("IO[bytes]", out), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"one")
        with archive.open("b.txt", "w", force_zip64=True) as file:
            file.write(b"two")
    assert members(bytes(out.data), ".zip") == [("a.txt", b"one", ""), ("b.txt", b"two", "")]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (b"../up.txt", "MEMBER_OUTSIDE"),
        (b"a/../../up.txt", "MEMBER_OUTSIDE"),
        (b"/etc/passwd", "MEMBER_OUTSIDE"),
        (b"C:\\up.txt", "MEMBER_OUTSIDE"),
        (b"c:up.txt", "MEMBER_OUTSIDE"),
        (b"..\\up.txt", "MEMBER_OUTSIDE"),
        (b"\\\\host\\share.txt", "MEMBER_OUTSIDE"),
        (b"folder\\a.txt", "MEMBER_NAME"),
        (b"a\0.txt", "MEMBER_NAME"),
        (b"a\n.txt", "MEMBER_NAME"),
        (b"", "MEMBER_NAME"),
        (b"x" * 300 + b".txt", "MEMBER_NAME"),
        (b"x/" * 600 + b".txt", "MEMBER_NAME"),
    ],
)
def test_a_name_that_no_file_should_have_is_left_out_and_the_rest_is_read(name: bytes, problem: str) -> None:
    found = members(made.raw_zip([(b"good.txt", b"x"), (name, b"evil")]), ".zip")
    assert found[0] == ("good.txt", b"x", "")
    path, content, why = found[1]
    assert (content, why) == (b"", problem)
    assert 0 < len(path) <= 210


def test_links_devices_and_second_files_of_a_name_are_left_out() -> None:
    modes = {b"link": stat.S_IFLNK | 0o777, b"fifo": stat.S_IFIFO, b"device": stat.S_IFBLK, b"socket": stat.S_IFSOCK}
    entries = [(name, b"/etc/passwd") for name in modes] + [(b"a", b"1"), (b"./a", b"2")]
    assert problems(made.raw_zip(entries, modes=modes | {b"a": stat.S_IFREG})) == {
        "link": "MEMBER_LINK",
        "fifo": "MEMBER_DEVICE",
        "device": "MEMBER_DEVICE",
        "socket": "MEMBER_DEVICE",
        "./a": "MEMBER_DUPLICATE",
    }


def test_a_member_that_is_damaged_or_packed_otherwise_is_left_out() -> None:
    data = bytearray(made.raw_zip([(b"a.txt", b"hello"), (b"b.txt", b"fine")]))
    data[data.index(b"hello")] ^= 1
    assert members(bytes(data), ".zip") == [("a.txt", b"", "MEMBER_BROKEN"), ("b.txt", b"fine", "")]
    assert problems(made.zip_of({"a": b"x" * 99}, zipfile.ZIP_BZIP2)) == {"a": "MEMBER_METHOD"}


def test_passwords_are_named() -> None:
    assert reason(made.raw_zip([(b"a", b"x"), (b"b", b"y")], flags=1), ".zip") == "ARCHIVE_ENCRYPTED"
    data = made.raw_zip([(b"a", b"x"), (b"b", b"y")])
    data = made.patched(made.patched(data, b"PK\3\4", 6, b"\1"), b"PK\1\2", 8, b"\1")
    assert members(data, ".zip") == [("a", b"x", ""), ("b", b"", "MEMBER_ENCRYPTED")]


# --- bombs


@pytest.mark.parametrize(
    "data", [made.flat_bomb(), made.overlapping_bomb(), made.quoting_bomb()], ids=["flat", "overlapping", "quoting"]
)
def test_bombs_are_refused(data: bytes) -> None:
    assert reason(data, ".zip") == "ZIP_BOMB"


def test_more_than_the_caps_allow_is_refused() -> None:
    noise = bytes(range(256)) * 40
    data = made.zip_of({f"{n}": noise + bytes([n]) for n in range(20)}, zipfile.ZIP_STORED)
    assert reason(data, ".zip", Caps(members=19)) == "TOO_MANY_MEMBERS"
    assert reason(data, ".zip", Caps(member_bytes=100_000)) == "ARCHIVE_TOO_LARGE"
    assert len(members(data, ".zip", Caps(members=20, member_bytes=20 * len(noise) + 20))) == 20


def test_a_million_entries_are_refused_before_they_are_looked_at() -> None:
    assert reason(made.million_entries(), ".zip") == "TOO_MANY_MEMBERS"


def test_what_is_small_is_no_bomb_however_well_it_packs() -> None:
    assert members(made.zip_of({"zeros": bytes(900_000)}), ".zip") == [("zeros", bytes(900_000), "")]


@pytest.mark.parametrize(("claimed", "expected"), [(2, "MEMBER_BROKEN"), (6000, "MEMBER_BROKEN")])
def test_a_size_that_lies_gives_no_bytes(claimed: int, expected: str) -> None:
    size = struct.pack("<L", claimed)
    data = made.zip_of({"a.txt": b"hello" * 100})
    data = made.patched(made.patched(data, b"PK\3\4", 22, size), b"PK\1\2", 24, size)
    assert members(data, ".zip") == [("a.txt", b"", expected)]
    huge = struct.pack("<L", 0xFFFFFFF0)
    assert reason(made.patched(made.patched(data, b"PK\3\4", 22, huge), b"PK\1\2", 24, huge), ".zip") == "ZIP_BOMB"


# --- archives that readers would differ about

LEFT_OUT = ("MEMBER_BROKEN", "MEMBER_ENCRYPTED", "MEMBER_NAME", "MEMBER_LINK", "MEMBER_DEVICE", "MEMBER_METHOD")
PLAIN = made.raw_zip([(b"a.txt", b"one"), (b"b.txt", b"two")])


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        PLAIN[: len(PLAIN) // 2],
        PLAIN + b"trailing",
        PLAIN + PLAIN,
        made.patched(PLAIN, b"PK\5\6", 8, b"\1\0\1\0"),
        made.patched(PLAIN, b"PK\5\6", 8, b"\3\0\3\0"),
        made.patched(PLAIN, b"PK\5\6", 4, b"\1"),
        made.patched(PLAIN, b"PK\5\6", 16, b"\0\0\0\0"),
        made.patched(PLAIN, b"PK\5\6", 12, b"\xff\xff\xff\xff"),
        made.patched(PLAIN, b"PK\1\2", 46, b"c.txt"),
        made.patched(PLAIN, b"PK\1\2", 42, b"\x01"),
        made.patched(PLAIN, b"PK\1\2", 28, b"\xff\xff"),
        made.patched(PLAIN, b"PK\1\2", 10, b"\x08"),
        made.patched(PLAIN, b"PK\3\4", 22, b"\x04"),
        made.patched(PLAIN, b"PK\3\4", 28, b"\xff\xff"),
        made.raw_zip([(b"a.txt", PLAIN[:38])])[:-22],
    ],
)
def test_an_archive_that_is_cut_or_contradicts_itself_is_refused(data: bytes) -> None:
    assert reason(data, ".zip") in ("ARCHIVE_BROKEN", "ZIP_BOMB")


def test_files_that_the_directory_does_not_name_are_refused() -> None:
    second = PLAIN.index(b"PK\3\4", 4)
    hidden = PLAIN[second : PLAIN.index(b"PK\1\2")]
    directory = PLAIN[PLAIN.index(b"PK\1\2") : PLAIN.rindex(b"PK\1\2")]
    end = made.END.pack(b"PK\5\6", 0, 0, 1, 1, len(directory), second + len(hidden), 0)
    assert reason(PLAIN[:second] + hidden + directory + end, ".zip") == "ARCHIVE_BROKEN"


@pytest.mark.parametrize("at", range(0, len(PLAIN), 3))
def test_a_flipped_byte_never_does_worse_than_a_refusal(at: int) -> None:
    data = PLAIN[:at] + bytes([PLAIN[at] ^ 0xFF]) + PLAIN[at + 1 :]
    refused = ("ARCHIVE_BROKEN", "ARCHIVE_ENCRYPTED", "ARCHIVE_TOO_LARGE", "TYPE_MISMATCH", "ZIP_BOMB")
    try:
        found = members(data, ".zip")
    except DocumentRefused as refusal:
        found = [("", b"", refusal.file_reason)]
    assert all(content in (b"one", b"two") or problem in (*refused, *LEFT_OUT) for _, content, problem in found)


def test_a_zip_with_a_pdf_before_it_is_neither() -> None:
    assert reason(b"%PDF-1.4\n" + PLAIN, ".zip") == "TYPE_MISMATCH"
    assert reason(b"%PDF-1.4\n" + PLAIN, ".pdf") == "POLYGLOT"


def test_a_pdf_that_is_stored_in_an_archive_makes_it_no_polyglot() -> None:
    body = b"%PDF-1.4\n%%EOF"
    assert members(made.raw_zip([(b"a.pdf", body)]), ".zip") == [("a.pdf", body, "")]


def test_an_empty_archive_is_empty() -> None:
    assert reason(made.END.pack(b"PK\5\6", 0, 0, 0, 0, 0, 0, 0), ".zip") == "EMPTY"
