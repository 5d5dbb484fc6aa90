"""Bombs in the real locked child with a box's own caps: each ends by name, the zygote lives on, and nothing is left."""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.sandbox.extractor import LockedExtractor
from tests import container_files, office_files, office_samples
from tests.office_files import paragraph
from tests.sandbox.locked import extract, nothing_left

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Config(data_dir=Path("/nowhere"))
CAPS = Caps(languages="", cells=400_000)  # of the default, reading five times as many takes long


def shared_text_bomb() -> bytes:
    """Two hundred thousand cells that show one text of a hundred thousand letters."""
    cells = '<row><c t="s"><v>0</v></c></row>' * 200_000
    return office_files.stored(office_files.workbook(cells, shared=[f"<t>{'x' * 100_000}</t>"]))


def wide_and_high_sheet() -> bytes:
    rows = f"<row>{'<c><v>1</v></c>' * 100}</row>" * (CAPS.cells // 100 + 1)
    return office_files.stored(office_files.workbook(rows))


def messages(depth: int) -> bytes:
    """A message that carries a message, and so on."""
    data = container_files.mail("Subject: 0", "core")
    for number in range(depth):
        inner = data.decode().replace("\r", "")
        head, _, body = container_files.multipart(f"Content-Type: message/rfc822\n\n{inner}").partition("\n\n")
        data = container_files.mail(f"Subject: {number}\n{head}", body)
    return data


def many_parts() -> bytes:
    head, _, body = container_files.multipart(*["Content-Type: text/plain\n\nx"] * 100_000).partition("\n\n")
    return container_files.mail(f"Subject: x\n{head}", body)


BOMBS = {
    "flat.zip": ("ZIP_BOMB", container_files.flat_bomb()),
    "overlapping.zip": ("ZIP_BOMB", container_files.overlapping_bomb()),
    "quoting.zip": ("ZIP_BOMB", container_files.quoting_bomb()),
    "zeros.gz": ("ZIP_BOMB", container_files.tar_of([("zeros", bytes(64 << 20))], "w:gz")),
    "zeros.docx": ("ZIP_BOMB", container_files.flat_bomb()),
    "laughs.docx": (
        "XML_DTD",
        office_files.package(office_files.DOCX, "word/document.xml", office_files.BILLION_LAUGHS + "<x>&a9;</x>"),
    ),
    "deep.docx": ("TOO_DEEP", office_files.word("<w:ins>" * 50_000 + paragraph("x") + "</w:ins>" * 50_000)),
    "cells.xlsx": ("TOO_MANY_CELLS", wide_and_high_sheet()),
    "shared.xlsx": ("TOO_MUCH_MEMORY", shared_text_bomb()),
    "parts.eml": ("TOO_MANY_MEMBERS", many_parts()),
    "headers.eml": ("MAIL_HEADERS", container_files.mail("Subject: x\n" + "X: y\n" * 300_000)),
    "ole.docx": ("DOCUMENT_ENCRYPTED", office_files.encrypted_package()),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked() -> AsyncIterator[LockedExtractor]:
    extractor = LockedExtractor(LIMITS, "appliance.ingest.extract", CAPS.settings())
    await extractor.start()
    yield extractor
    await extractor.close()


@pytest.mark.long
@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_ends_by_name(locked: LockedExtractor, name: str) -> None:
    expected, data = BOMBS[name]
    async with nothing_left(locked):
        with pytest.raises(DocumentRefused) as refused:
            await extract(locked, data, name)
    assert refused.value.file_reason == expected
    assert (await extract(locked, b"after", "after.txt")).pages == ("after",)


@pytest.mark.long
async def test_a_million_entries_are_refused(locked: LockedExtractor) -> None:
    async with nothing_left(locked):
        with pytest.raises(DocumentRefused) as refused:
            await extract(locked, container_files.million_entries(), "million.zip")
    assert refused.value.file_reason == "TOO_MANY_MEMBERS"


async def test_a_message_ten_deep_is_opened_one_message_at_a_time(locked: LockedExtractor) -> None:
    data, opened = messages(10), 0
    while found := (await extract(locked, data, "m.eml")).members:
        data, opened = found[0].content, opened + 1
    assert opened == 10
    assert b"core" in data


async def test_members_come_out_of_the_lock_whole(locked: LockedExtractor) -> None:
    inner = office_samples.docx_sample()
    data = container_files.raw_zip([(b"a.docx", inner), (b"../b", b"x"), (b"\xff", b"y")], flags=0x800)
    found = (await extract(locked, data, "a.zip")).members
    assert [(one.path, one.content, one.problem) for one in found] == [
        ("a.docx", inner, ""),
        ("../b", b"", "MEMBER_OUTSIDE"),
        ("\udcff", b"y", ""),
    ]


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".zip", ".tgz", ".tar.xz"])
async def test_what_unpacks_to_half_of_the_memory_is_in_memory_once(suffix: str) -> None:
    limits = replace(LIMITS, parse_memory_mib=256)
    locked = LockedExtractor(limits, "appliance.ingest.extract", CAPS.settings())
    chance = random.Random(7)
    content = b"".join(chance.randbytes(2048) + bytes((1 << 17) - 2048) for _ in range(1100))
    if suffix == ".zip":
        data = container_files.zip_of({"large.bin": content})
    else:
        data = container_files.tar_of([("large.bin", content)], "w:gz" if suffix == ".tgz" else "w:xz")
    (large,) = (await extract(locked, data, f"a{suffix.removeprefix('.tar')}")).members
    assert len(content) > limits.parse_memory_mib << 19
    assert large.content == content
    await locked.close()


@pytest.mark.long
async def test_an_old_workbook_with_flipped_bytes_ends_by_name(locked: LockedExtractor) -> None:
    """Its parser is native and believes sizes that it reads: here the lock is what stands."""
    whole, chance, ends = office_samples.xls_sample(), random.Random(5), set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(4):
            data[chance.randrange(512, len(data))] = chance.randrange(256)
        try:
            await extract(locked, bytes(data), "a.xls")
            ends.add("")
        except DocumentRefused as refusal:
            ends.add(refusal.file_reason)
    assert "" in ends
    by_the_lock = {"TOO_MUCH_MEMORY", "PARSER_FAILED", "CRASHED", "SPUN"}
    assert ends <= {"", "DOCUMENT_BROKEN", "EMPTY", "TYPE_MISMATCH", *by_the_lock}
    assert (await extract(locked, b"after", "after.txt")).pages == ("after",)
