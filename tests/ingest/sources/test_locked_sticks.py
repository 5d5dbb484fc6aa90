"""A stick through the real lock: the reader opens nothing there, and imports nothing once it is locked in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.errors import SourceGone, SourceRefused
from appliance.sandbox.volumes import LockedVolumes
from tests import stick_images
from tests.ingest.sources.places import Place, content, contents
from tests.stick_images import FILES, Exfat, Fat16, short


@pytest.fixture
async def volumes() -> AsyncIterator[LockedVolumes]:
    made = LockedVolumes(Config(), "appliance.ingest.volume")
    yield made
    await made.close()


@pytest.mark.skipif(not stick_images.has("mkfs.fat", "mcopy", "mmd"), reason="mtools are not installed")
async def test_a_fat32_stick_is_read_whole(tmp_path: Path, volumes: LockedVolumes) -> None:
    place = Place(tmp_path, volumes, sticks_allowed="all")
    place.plugged.plug(stick_images.fat(tmp_path / "sdb", FILES))
    source = await place.sources.open("acme", "sources/usb-4C53")
    assert source.provenance.uri == "usb://4C53/1A2B-3C4D"
    assert await contents(source) == FILES


async def test_exfat_and_refusals_come_through_the_lock(tmp_path: Path, volumes: LockedVolumes) -> None:
    place, disk, stick = Place(tmp_path, volumes), Exfat(), Fat16()
    disk.file("straight 日本 🙂.bin", bytes(range(256)) * 40, 40, contiguous=True)
    disk.file("in pieces.bin", b"x" * 9000, 20, 10, 30)
    stick.root(short(b"LOOP    TXT", 2, 4096), short(b"A/B     TXT", 0, 0), short(b"LIES    TXT", 5, 0xFFFFFFFF))
    stick.link(2, 3, 2)
    (tmp_path / "a.img").write_bytes(stick_images.gpt([bytes(disk.data), bytes(stick.data)]))
    source = await place.sources.open("acme", str(tmp_path / "a.img"))
    assert await contents(source) == {
        "partition-1/straight 日本 🙂.bin": bytes(range(256)) * 40,
        "partition-1/in pieces.bin": b"x" * 9000,
        "partition-2/A\\u002fB.TXT": "BAD_NAME",
        "partition-2/LIES.TXT": "TRUNCATED",
        "partition-2/LOOP.TXT": "CHAIN_LOOP",
    }


async def test_what_holds_no_file_system_and_a_stick_that_is_pulled_are_told_apart(
    tmp_path: Path, volumes: LockedVolumes
) -> None:
    place, stick = Place(tmp_path, volumes), Fat16()
    (tmp_path / "noise.img").write_bytes(bytes(100_000))
    with pytest.raises(SourceRefused, match="none that is known"):
        await place.sources.open("acme", str(tmp_path / "noise.img"))
    stick.file(b"A       TXT", b"alpha", 2)
    (tmp_path / "a.img").write_bytes(stick.data)
    source = await place.sources.open("acme", str(tmp_path / "a.img"))
    (found,) = await source.files()
    (tmp_path / "a.img").write_bytes(b"")
    with pytest.raises(SourceGone):
        await content(source, found)
    await source.close()
