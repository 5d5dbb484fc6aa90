"""TAR archives, packed or not, and single files that gzip packed."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable

import pytest

from appliance.ingest.caps import Caps
from tests.container_files import tar_of
from tests.reads import members, reason

FILES = [("a.txt", b"one"), ("./folder/b.txt", b"two" * 1000)]
READ = [("a.txt", b"one", ""), ("folder/b.txt", b"two" * 1000, "")]
PLAIN = tar_of(FILES)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("w", ".tar"), ("w:gz", ".tgz"), ("w:gz", ".gz"), ("w:xz", ".xz"), ("w:bz2", ".bz2")]
)
def test_files_are_members_however_they_are_packed(mode: str, suffix: str) -> None:
    assert members(tar_of(FILES, mode), suffix) == READ


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_dialect(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        entry = tarfile.TarInfo("f" * 90 + "/" + "schlüssel" * 9 + ".txt")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    assert members(out.getvalue(), ".tar") == [(entry.name, b"x", "")]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (tarfile.SYMTYPE, "MEMBER_LINK"),
        (tarfile.LNKTYPE, "MEMBER_LINK"),
        (tarfile.CHRTYPE, "MEMBER_DEVICE"),
        (tarfile.BLKTYPE, "MEMBER_DEVICE"),
        (tarfile.FIFOTYPE, "MEMBER_DEVICE"),
    ],
)
def test_what_is_no_file_is_left_out(kind: bytes, problem: str) -> None:
    assert members(tar_of([("x", b"")], kind=kind, link="/etc/passwd"), ".tar") == [("x", b"", problem)]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("../up", "MEMBER_OUTSIDE"), ("/etc/passwd", "MEMBER_OUTSIDE"), ("a\\b", "MEMBER_NAME"), ("a\nb", "MEMBER_NAME")],
)
def test_a_name_that_no_file_should_have_is_left_out(name: str, problem: str) -> None:
    found = members(tar_of([("good", b"x"), (name, b"evil"), ("good", b"y")]), ".tar")
    assert found == [("good", b"x", ""), (name, b"", problem), ("good", b"", "MEMBER_DUPLICATE")]


def test_a_sparse_file_may_claim_any_size_and_is_left_out() -> None:
    entry = tarfile.TarInfo("holes")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # the real size: 8 GiB
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    assert members(bytes(header) + tar_of([("b", b"x")]), ".tar") == [("holes", b"", "MEMBER_METHOD"), ("b", b"x", "")]


# --- hostile and damaged


def pax(size: str, times: int = 1) -> bytes:
    record = f"size={size}\n"
    record = f"{len(record) + 3} {record}"
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, len(record)
    return (entry.tobuf() + record.encode().ljust(512, b"\0")) * times + PLAIN


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:700],
        PLAIN[:1024],
        PLAIN[:3000],
        PLAIN[:1024] + b"x" + PLAIN[1025:],
        PLAIN[:300] + b"x" + PLAIN[301:],
        pax("-512"),
        pax("x"),
        pax("1", 3000),
        pax("9" * 30),
    ],
)
def test_an_archive_that_is_cut_or_damaged_is_refused(data: bytes) -> None:
    assert reason(data, ".tar") in ("ARCHIVE_BROKEN", "TOO_MANY_MEMBERS")


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (gzip.compress(PLAIN, mtime=0)[:-9], ".gz"),
        (gzip.compress(PLAIN, mtime=0) + b"trailing", ".gz"),
        (gzip.compress(PLAIN, mtime=0)[:30] + b"\xff" * 40, ".gz"),
        (lzma.compress(PLAIN)[:-9], ".xz"),
        (bz2.compress(PLAIN)[:-9], ".bz2"),
        (b"\x1f\x8b\x08", ".gz"),
        (b"BZh9" + b"x" * 40, ".bz2"),
    ],
)
def test_a_packing_that_is_cut_or_damaged_is_refused(data: bytes, suffix: str) -> None:
    assert reason(data, suffix) == "ARCHIVE_BROKEN"


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(gzip.compress, ".gz"), (lzma.compress, ".xz"), (bz2.compress, ".bz2")],
    ids=["gz", "xz", "bz2"],
)
def test_a_packing_of_zeros_is_a_bomb(pack: Callable[[bytes], bytes], suffix: str) -> None:
    assert reason(pack(bytes(64 << 20)), suffix) == "ZIP_BOMB"


def test_many_streams_are_one_file_and_zeros_may_follow() -> None:
    half = len(PLAIN) // 2
    assert members(gzip.compress(PLAIN[:half]) + gzip.compress(PLAIN[half:]) + bytes(100), ".gz") == READ


def test_more_than_the_caps_allow_is_refused() -> None:
    data = tar_of([(f"{n}", b"") for n in range(20)])
    assert reason(data, ".tar", Caps(members=19)) == "TOO_MANY_MEMBERS"
    assert reason(gzip.compress(data, 0), ".gz", Caps(member_bytes=5000)) == "ARCHIVE_TOO_LARGE"


def test_a_single_file_is_called_what_gzip_says() -> None:
    out = io.BytesIO()
    with gzip.GzipFile("notes.txt", "wb", fileobj=out) as file:
        file.write(b"hello")
    assert members(out.getvalue(), ".gz") == [("notes.txt", b"hello", "")]


@pytest.mark.parametrize(("data", "suffix"), [(gzip.compress(b"x", mtime=0), ".gz"), (lzma.compress(b"x"), ".xz")])
def test_a_single_file_without_a_name_is_left_out(data: bytes, suffix: str) -> None:
    assert members(data, suffix) == [("(no name)", b"", "MEMBER_UNNAMED")]


def test_a_name_in_gzip_is_checked_as_any_other() -> None:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(b"x") + packer.flush() + zlib.crc32(b"x").to_bytes(4, "little") + (1).to_bytes(4, "little")
    data = b"\x1f\x8b\x08\x08" + bytes(6) + b"../up\0" + body
    assert members(data, ".gz") == [("../up", b"", "MEMBER_OUTSIDE")]


def test_the_ending_must_say_how_it_is_packed() -> None:
    assert reason(gzip.compress(PLAIN, mtime=0), ".tar") == "TYPE_MISMATCH"
    assert reason(lzma.compress(PLAIN), ".gz") == "TYPE_MISMATCH"
    assert reason(PLAIN, ".gz") == "TYPE_MISMATCH"
    assert reason(b"text", ".tar") == "TYPE_MISMATCH"
