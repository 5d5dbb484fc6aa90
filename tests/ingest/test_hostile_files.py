"""Hostile PDFs and pictures through the real lock with a box's own caps: each is read or refused by name, and nothing
dies or is left behind."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from appliance.app import PARSERS, options
from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.sandbox.extractor import LockedExtractor
from tests import pdf_files, picture_files
from tests.sandbox.locked import extract, nothing_left

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOX = Config(data_dir=Path("/nowhere"))
READ = "read"


def locked_by(config: Config) -> LockedExtractor:
    """As a box of that configuration has it."""
    settings = options.caps(config).settings()
    return LockedExtractor(config, PARSERS, settings, more_cpu_seconds=options.ocr_seconds(config))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked() -> AsyncIterator[LockedExtractor]:
    extractor = locked_by(BOX)
    await extractor.start()
    yield extractor
    await extractor.close()


async def end(locked: LockedExtractor, data: bytes, name: str) -> str:
    """How a file ends; nothing of it is left, and after it another is read as ever."""
    async with nothing_left(locked):
        try:
            await extract(locked, data, name)
            how = READ
        except DocumentRefused as refusal:
            how = refusal.file_reason
    after = await extract(locked, b"Harmless.", "harmless.txt")
    assert after.pages == ("Harmless.",)
    return how


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "ends"),
    [
        pytest.param(lambda: pdf_files.acting_pdf(), {READ}, id="JavaScript, launch and submit actions"),
        pytest.param(lambda: pdf_files.attaching_pdf({"run.exe": b"MZ\x90\x00"}), {READ}, id="a program embedded"),
        pytest.param(
            lambda: pdf_files.attached_bomb_pdf(200), {"ZIP_BOMB", "TOO_MUCH_MEMORY", READ}, id="a bomb embedded"
        ),
        pytest.param(lambda: pdf_files.many_pages_pdf(100_000), {"TOO_MANY_PAGES"}, id="10^5 pages"),
        pytest.param(
            lambda: pdf_files.picture_pdf(bytes(9), 100_000, 100_000, 1), {"IMAGE_TOO_LARGE"}, id="10^10 pixels"
        ),
        pytest.param(lambda: pdf_files.text_pdf()[:-200], {READ, "PDF_BROKEN"}, id="no end"),
        pytest.param(lambda: pdf_files.looping_xref_pdf(), {READ}, id="a table of objects before itself"),
        pytest.param(lambda: pdf_files.object_stream_pdf(8), {"PDF_BROKEN", "EMPTY"}, id="objects in a bomb"),
        pytest.param(lambda: pdf_files.cyclic_fonts_pdf(), {READ}, id="fonts and forms within themselves"),
        pytest.param(lambda: pdf_files.circular_pdf(), {"PDF_BROKEN"}, id="pages within themselves"),
        pytest.param(lambda: pdf_files.encrypted_pdf("AES-256"), {"PDF_ENCRYPTED"}, id="a user's password"),
        pytest.param(lambda: pdf_files.encrypted_pdf("AES-256", password=""), {READ}, id="an owner's password alone"),
        pytest.param(lambda: pdf_files.nested_pdf(200_000), {READ, "EMPTY", "PDF_BROKEN"}, id="deep arrays"),
        pytest.param(lambda: pdf_files.updated_pdf(), {READ}, id="an incremental update"),
        pytest.param(
            lambda: pdf_files.bomb_pdf(64), {"SPUN", "TOO_MUCH_MEMORY", "TOO_MUCH_TEXT"}, id="a page of 64 MiB"
        ),
        pytest.param(lambda: pdf_files.looping_outline_pdf(), {READ}, id="an outline within itself"),
        pytest.param(lambda: pdf_files.crowded_pdf(20_000), {READ}, id="20,000 words at random places and lines"),
        pytest.param(lambda: pdf_files.attached_large_pdf(250), {"TOO_MUCH_MEMORY", READ}, id="250 MiB embedded"),
        pytest.param(lambda: pdf_files.drawn_pdf(200, 5000, "Text."), {READ}, id="200 pages full of drawn lines"),
        pytest.param(lambda: pdf_files.drawn_pdf(1, 50_000), {READ, "OCR_TOO_SLOW", "EMPTY"}, id="50,000 drawn lines"),
    ],
)
async def test_a_hostile_pdf_ends_by_name(locked: LockedExtractor, make: Callable[[], bytes], ends: set[str]) -> None:
    assert await end(locked, make(), "hostile.pdf") in ends


@pytest.mark.parametrize(
    ("data", "suffix", "ends"),
    [
        (picture_files.empty_png(100_000, 100_000, 1), ".png", {"IMAGE_TOO_LARGE"}),
        (picture_files.empty_png(9_999, 9_999, 1), ".png", {"IMAGE_BROKEN", "TOO_MUCH_MEMORY", "EMPTY"}),
        (picture_files.looping_tiff(), ".tiff", {READ, "EMPTY", "IMAGE_BROKEN"}),
        (picture_files.long_comment_png(64), ".png", {"EMPTY", "IMAGE_BROKEN"}),
        (b"GIF89a" + bytes(100), ".gif", {"IMAGE_BROKEN", "EMPTY"}),
    ],
    ids=["10^10 pixels", "10^8 pixels", "frames within themselves", "a bomb as a comment", "zeros"],
)
async def test_a_hostile_picture_ends_by_name(
    locked: LockedExtractor, data: bytes, suffix: str, ends: set[str]
) -> None:
    assert await end(locked, data, f"hostile{suffix}") in ends


@pytest.mark.long
async def test_pages_of_noise_with_a_line_of_text_each_have_no_more_time_the_more_they_are() -> None:
    extractor = locked_by(replace(BOX, ocr_cpu_seconds=20))
    async with nothing_left(extractor):
        read = await extract(extractor, pdf_files.noise_pdf(100), "noise.pdf")
    await extractor.close()
    assert re.search(r"not read: pages \d+-100$", read.parser)
    assert read.pages[99].strip() == "A line to be read"


@pytest.mark.long
async def test_what_takes_long_for_its_many_pages_or_pictures_is_read_and_what_spins_ends_as_any_file() -> None:
    extractor = locked_by(replace(BOX, parse_cpu_seconds=1, ocr_cpu_seconds=60))
    image = picture_files.drawn([f"Rule {number}: the porter rings first." for number in range(30)], (2480, 3508))
    scan = await extract(extractor, pdf_files.picture_pdf(image.tobytes(), *image.size), "scan.pdf")
    assert scan.pages[0].count("the porter rings first") >= 29
    book = await extract(extractor, pdf_files.text_pdf(["Rule of the house. " * 30] * 1000), "book.pdf")
    assert len(book.pages) == 1000
    with pytest.raises(DocumentRefused, match="more than 1 processor seconds") as refused:
        await extract(extractor, pdf_files.crowded_pdf(60_000), "crowd.pdf")
    assert refused.value.file_reason == "SPUN"
    await extractor.close()


@pytest.mark.long
async def test_a_long_text_in_an_old_charset_is_read_within_the_caps(locked: LockedExtractor) -> None:
    line = "Ключи передаются лично и никогда по почте. Охранник звонит перед вызовом лифта.\n".encode("koi8-r")
    assert await end(locked, line * ((16 << 20) // len(line)), "long.log") == READ


@pytest.mark.long
async def test_a_whole_page_of_an_a4_scan_is_recognised_in_the_lock(locked: LockedExtractor) -> None:
    image = picture_files.drawn(
        [f"Rule {number}: the porter rings the ward first." for number in range(40)], (2480, 3508)
    )
    read = await extract(locked, pdf_files.picture_pdf(image.tobytes(), *image.size), "scan.pdf")
    assert read.pages[0].count("the porter rings the ward first") >= 39
    assert "tesseract" in read.parser
