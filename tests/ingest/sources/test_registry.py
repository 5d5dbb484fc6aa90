"""Sources by name: who is let in, what is read, and how each of them goes away."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.errors import InvalidArgument, NotFound, SourceGone, SourceRefused
from appliance.ingest import signing
from appliance.ingest.sources import Found
from appliance.types import Provenance, SourceKind, SourceState
from tests import stick_images
from tests.ingest.sources.places import WATCH, Place, content, contents, stick
from tests.stick_images import Exfat, Fat16
from tests.volumes import PlainVolumes

# --- folders and files -----------------------------------------------------------------------------------------------


async def test_a_folder_is_opened_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"alpha")
    (folder / "below" / "b.txt").write_bytes(b"beta")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    source = await Place(tmp_path).sources.open("acme", str(folder))
    assert source.provenance == Provenance(SourceKind.FOLDER, path=str(folder))
    assert {one.name: one.size_bytes for one in await source.files()}["below/b.txt"] == 4
    assert await contents(source) == {"a.txt": b"alpha", "below/b.txt": b"beta", "link": "LINK", "pipe": "NOT_A_FILE"}


async def test_a_single_file_is_a_source_whose_lineage_is_its_folder(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"1")
    source = await Place(tmp_path).sources.open("acme", str(tmp_path / "one.txt"))
    assert source.provenance.path == str(tmp_path)
    assert await contents(source) == {"one.txt": b"1"}


async def test_names_that_are_no_source_are_refused(tmp_path: Path) -> None:
    sources = Place(tmp_path).sources
    with pytest.raises(NotFound, match="There is no source"):
        await sources.open("acme", "sources/usb-none")
    with pytest.raises(NotFound, match="There is no file or folder"):
        await sources.open("acme", str(tmp_path / "none"))
    with pytest.raises(InvalidArgument, match="must be absolute"):
        await sources.open("acme", "relative")
    with pytest.raises(SourceRefused, match="own data directory"):
        await sources.open("acme", str(tmp_path / "data"))


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    place = Place(tmp_path, sticks_allowed="all")
    place.plugged.plug(stick(tmp_path / "sdb"))
    (tmp_path / "noise.img").write_bytes(bytes(100_000))
    await contents(await place.sources.open("acme", "sources/usb-4C53"))
    before = os.listdir("/proc/self/fd")
    await contents(await place.sources.open("acme", "sources/usb-4C53"))
    await contents(await place.sources.open("acme", str(tmp_path)))
    with pytest.raises(SourceRefused):
        await place.sources.open("acme", str(tmp_path / "noise.img"))
    with pytest.raises(SourceRefused):
        await place.sources.open("acme", str(tmp_path / "data"))
    assert os.listdir("/proc/self/fd") == before


# --- sticks ----------------------------------------------------------------------------------------------------------


async def test_only_sticks_on_the_list_are_let_in(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.plugged.plug(stick(tmp_path / "sdb"))
    (listed,) = await place.sources.list("acme")
    assert (listed.name, listed.state) == ("sources/usb-4C53", SourceState.REFUSED)
    assert "SanDisk Ultra" in listed.problem
    with pytest.raises(SourceRefused, match="4C53 is not on the list"):
        await place.sources.open("acme", listed.name)
    place.book.allow("4C53", True)
    assert [one.state for one in await place.sources.list("acme")] == [SourceState.READY]
    source = await place.sources.open("acme", listed.name)
    assert source.provenance == Provenance(SourceKind.STICK, "", "4C53", "CAFE-0001", "BYHAND")
    assert source.provenance.uri == "usb://4C53/CAFE-0001"
    assert await contents(source) == {"A.TXT": b"alpha"}
    place.book.allow("4C53", False)
    with pytest.raises(SourceRefused):
        await place.sources.open("acme", listed.name)


@pytest.mark.parametrize(("allowed", "state"), [("all", SourceState.READY), ("none", SourceState.REFUSED)])
async def test_all_or_no_sticks_may_be_let_in(tmp_path: Path, allowed: str, state: SourceState) -> None:
    place = Place(tmp_path, sticks_allowed=allowed)
    place.book.allow("4C53", True)
    place.plugged.plug(stick(tmp_path / "sdb"))
    assert [one.state for one in await place.sources.list("acme")] == [state]


async def test_a_stick_without_a_serial_number_is_on_no_list(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.plugged.plug(stick(tmp_path / "sdb"), serial="")
    (source,) = await place.sources.list("acme")
    assert (source.state, "no serial number" in source.problem) == (SourceState.REFUSED, True)


async def test_two_sticks_of_one_serial_number_are_refused_both(tmp_path: Path) -> None:
    place = Place(tmp_path, sticks_allowed="all")
    place.plugged.plug(stick(tmp_path / "sdb"))
    place.plugged.plug(stick(tmp_path / "sdc"))
    (source,) = await place.sources.list("acme")
    assert (source.state, "pull one" in source.problem) == (SourceState.REFUSED, True)
    with pytest.raises(SourceRefused, match="pull one"):
        await place.sources.open("acme", "sources/usb-4C53")


async def test_a_stick_that_was_pulled_before_it_is_read_is_gone(tmp_path: Path) -> None:
    place = Place(tmp_path, sticks_allowed="all")
    place.plugged.plug(stick(tmp_path / "sdb"))
    (tmp_path / "sdb").unlink()
    with pytest.raises(SourceGone, match="was pulled"):
        await place.sources.open("acme", "sources/usb-4C53")


async def test_a_stick_that_is_pulled_while_it_is_open_is_gone_and_gives_no_wrong_reason(tmp_path: Path) -> None:
    place = Place(tmp_path, sticks_allowed="all")
    place.plugged.plug(stick(tmp_path / "sdb", {b"A       TXT": b"alpha", b"B       TXT": b"beta"}))
    source = await place.sources.open("acme", "sources/usb-4C53")
    first, second = await source.files()
    assert await content(source, first) == b"alpha"
    os.truncate(tmp_path / "sdb", 0)
    with pytest.raises(SourceGone) as gone:
        await content(source, second)
    assert gone.value.retryable
    with pytest.raises(SourceGone):
        await source.files()
    await source.close()


async def test_a_bad_sector_is_the_files_fault_and_not_the_sticks(tmp_path: Path) -> None:
    volumes = PlainVolumes()
    place = Place(tmp_path, volumes, sticks_allowed="all")
    place.plugged.plug(stick(tmp_path / "sdb"))
    source = await place.sources.open("acme", "sources/usb-4C53")
    (found,) = await source.files()
    volumes.reads = 0
    assert await content(source, found) == "UNREADABLE"
    await source.close()


@pytest.mark.parametrize("reads", range(12))
async def test_a_stick_that_fails_at_any_read_says_so(tmp_path: Path, reads: int) -> None:
    place = Place(tmp_path, PlainVolumes(reads), sticks_allowed="all")
    place.plugged.plug(stick(tmp_path / "sdb"))
    try:
        found = await contents(await place.sources.open("acme", "sources/usb-4C53"))
    except SourceRefused as refused:
        assert "cannot be read" in str(refused) or "can be read" in str(refused)  # noqa: PT017
    else:
        assert found
        assert set(found.values()) <= {"UNREADABLE", b"alpha"}


async def test_a_file_that_is_another_than_was_seen_is_not_taken(tmp_path: Path) -> None:
    place = Place(tmp_path)
    path = stick(tmp_path / "a.img")
    source = await place.sources.open("acme", str(path))
    (seen,) = await source.files()
    await source.close()
    stick(path, {b"A       TXT": b"another"})
    source = await place.sources.open("acme", str(path))
    assert await content(source, seen) == "CHANGED"
    stick(path, {b"B       TXT": b"another"})
    again = await place.sources.open("acme", str(path))
    assert await content(again, seen) == "VANISHED"
    await source.close()
    await again.close()


# --- images ----------------------------------------------------------------------------------------------------------


async def test_an_image_is_read_as_a_stick_and_only_by_its_name(tmp_path: Path) -> None:
    place = Place(tmp_path, sticks_allowed="none")
    source = await place.sources.open("acme", str(stick(tmp_path / "backup.IMG")))
    assert source.provenance == Provenance(SourceKind.IMAGE, str(tmp_path / "backup.IMG"), "", "CAFE-0001", "BYHAND")
    assert await contents(source) == {"A.TXT": b"alpha"}
    plain = await place.sources.open("acme", str(stick(tmp_path / "backup.txt")))
    assert list(await contents(plain)) == ["backup.txt"]


async def test_of_several_partitions_names_begin_with_theirs_and_what_is_not_read_says_so(tmp_path: Path) -> None:
    made = Fat16()
    made.file(b"A       TXT", b"alpha", 2)
    ntfs = bytearray(1 << 17)
    ntfs[3:11] = b"NTFS    "
    (tmp_path / "disk.img").write_bytes(stick_images.gpt([bytes(made.data), bytes(ntfs), bytes(made.data)]))
    source = await Place(tmp_path).sources.open("acme", str(tmp_path / "disk.img"))
    assert source.provenance.volume == "CAFE-0001+CAFE-0001"
    assert await contents(source) == {
        "partition-1/A.TXT": b"alpha",
        "partition-2": "UNSUPPORTED_FILESYSTEM",
        "partition-3/A.TXT": b"alpha",
    }


async def test_an_empty_partition_beside_another_changes_no_name(tmp_path: Path) -> None:
    made = Fat16()
    made.file(b"A       TXT", b"alpha", 2)
    (tmp_path / "disk.img").write_bytes(stick_images.gpt([bytes(Fat16().data), bytes(made.data)]))
    assert await contents(await Place(tmp_path).sources.open("acme", str(tmp_path / "disk.img"))) == {"A.TXT": b"alpha"}


@pytest.mark.parametrize("data", [b"", b"x" * 100, bytes(1 << 16), b"\xeb\x3c\x90" + bytes(600)])
async def test_an_image_of_nothing_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.img").write_bytes(data)
    with pytest.raises((SourceRefused, SourceGone)):
        await Place(tmp_path).sources.open("acme", str(tmp_path / "a.img"))


async def test_a_link_that_is_called_an_image_is_refused(tmp_path: Path) -> None:
    stick(tmp_path / "a.img")
    (tmp_path / "b.img").symlink_to("a.img")
    with pytest.raises(SourceRefused, match="link"):
        await Place(tmp_path).sources.open("acme", str(tmp_path / "b.img"))


# --- signed sticks ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def key(tmp_path: Path) -> str:
    """The public key of a folder `signed` with `a.txt` and `b.txt`."""
    (tmp_path / "signed").mkdir()
    (tmp_path / "signed" / "a.txt").write_bytes(b"alpha")
    (tmp_path / "signed" / "b.txt").write_bytes(b"beta")
    public = signing.make_key(tmp_path / "key.pem")
    await signing.sign_folder(tmp_path / "signed", tmp_path / "key.pem")
    return public


@pytest.fixture
def image(tmp_path: Path, key: str) -> Path:
    """An image of the folder, to which `c.txt` was added and in which `b.txt` was changed."""
    files = {path.name: path.read_bytes() for path in (tmp_path / "signed").iterdir()}
    return stick_images.fat(tmp_path / "s.img", {**files, "b.txt": b"BETA", "c.txt": b"gamma"}, 12, 4 << 20)


needs_mtools = pytest.mark.skipif(not stick_images.has("mkfs.fat", "mcopy"), reason="mtools are not installed")


@needs_mtools
async def test_what_is_not_signed_is_refused_where_it_must_be(tmp_path: Path, image: Path, key: str) -> None:
    place = Place(tmp_path, sticks_must_be_signed="yes")
    place.book.trust("Registry", key)
    source = await place.sources.open("acme", str(image))
    assert source.provenance.signer == "Registry"
    assert {one.name: one.signer for one in await source.files() if not one.refusal}["a.txt"] == "Registry"
    assert await contents(source) == {"a.txt": b"alpha", "b.txt": "SIGNATURE_MISMATCH", "c.txt": "NOT_SIGNED"}
    place.book.trust("Registry", "")
    source = await place.sources.open("acme", str(image))
    assert source.provenance.signer == ""
    assert set((await contents(source)).values()) == {"NOT_SIGNED"}


@needs_mtools
async def test_where_nothing_must_be_signed_the_rest_is_taken_but_never_what_contradicts_its_signature(
    tmp_path: Path, image: Path, key: str
) -> None:
    place = Place(tmp_path)
    place.book.trust("Registry", key)
    source = await place.sources.open("acme", str(image))
    assert {one.name: one.signer for one in await source.files()} == {
        "a.txt": "Registry",
        "b.txt": "Registry",  # of the signed size: its hash is seen when it is copied
        "c.txt": "",
    }
    assert await contents(source) == {"a.txt": b"alpha", "b.txt": "SIGNATURE_MISMATCH", "c.txt": b"gamma"}


def volume(files: Mapping[str, bytes]) -> bytes:
    """An exFAT volume with these files in its root."""
    made, cluster = Exfat(), 10
    for name, data in files.items():
        chain = range(cluster, cluster + max(1, -(-len(data) // made.cluster_bytes)))
        made.file(name, data, *chain)
        cluster += len(chain)
    return bytes(made.data)


def write(path: Path, files: Mapping[str, bytes]) -> None:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


async def signed_files(path: Path, files: Mapping[str, bytes], key: Path) -> dict[str, bytes]:
    """These files, and their manifest with its signature."""
    write(path, files)
    await signing.sign_folder(path, key)
    return {name: (path / name).read_bytes() for name in (*files, signing.MANIFEST, signing.SIGNATURE)}


async def two_signed_volumes(path: Path) -> tuple[Place, dict[str, bytes], dict[str, bytes]]:
    """A place that trusts two signers, and the files of a volume of each: both have an `a.txt`, another each."""
    place = Place(path)
    for name in ("Registry", "Lab"):
        place.book.trust(name, signing.make_key(path / f"{name}.pem"))
    first = await signed_files(path / "one", {"a.txt": b"alpha", "gone.txt": b"gone"}, path / "Registry.pem")
    second = await signed_files(path / "two", {"a.txt": b"other", "b.txt": b"beta"}, path / "Lab.pem")
    del first["gone.txt"]
    return place, first, second


@pytest.mark.parametrize("required", ["yes", "no"])
async def test_the_manifest_of_each_volume_counts_for_that_volume_alone(tmp_path: Path, required: str) -> None:
    place, first, second = await two_signed_volumes(tmp_path)
    volumes = [volume({**first, "b.txt": b"beta"}), volume({**second, "b.txt": b"BETA"})]
    (tmp_path / "disk.img").write_bytes(stick_images.gpt(volumes))
    sources = place.again(sticks_must_be_signed=required)
    source = await sources.open("acme", str(tmp_path / "disk.img"))
    assert source.provenance.signer == "Registry+Lab"
    assert {one.name: one.signer for one in await source.files()} == {
        "partition-1/a.txt": "Registry",
        "partition-1/b.txt": "",  # the other volume's manifest lists one of this name and content
        "partition-1/gone.txt": "Registry",
        "partition-2/a.txt": "Lab",
        "partition-2/b.txt": "Lab",  # of the signed size: its hash is seen when it is copied
    }
    assert await contents(source) == {
        "partition-1/a.txt": b"alpha",
        "partition-1/b.txt": "NOT_SIGNED" if required == "yes" else b"beta",
        "partition-1/gone.txt": "MISSING",
        "partition-2/a.txt": b"other",
        "partition-2/b.txt": "SIGNATURE_MISMATCH",
    }


async def test_files_of_an_unsigned_volume_are_refused_beside_a_signed_one_where_only_signed_ones_are_taken(
    tmp_path: Path,
) -> None:
    place, first, second = await two_signed_volumes(tmp_path)
    del second[signing.SIGNATURE]
    ntfs = bytearray(1 << 17)
    ntfs[3:11] = b"NTFS    "
    folder = {"partition-1": b"named like a volume"}
    volumes = [volume(first), bytes(ntfs), volume(second), volume(folder)]
    (tmp_path / "disk.img").write_bytes(stick_images.gpt(volumes))
    source = await place.again(sticks_must_be_signed="yes").open("acme", str(tmp_path / "disk.img"))
    assert source.provenance.signer == "Registry"
    assert await content(source, Found("partition-9/a.txt")) == "NOT_SIGNED"
    assert await contents(source) == {
        "partition-1/a.txt": b"alpha",
        "partition-1/gone.txt": "MISSING",
        "partition-2": "UNSUPPORTED_FILESYSTEM",
        "partition-3/a.txt": "NOT_SIGNED",
        "partition-3/b.txt": "NOT_SIGNED",
        "partition-4/partition-1": "NOT_SIGNED",
    }


async def test_a_signed_share_lists_what_is_still_to_come(tmp_path: Path, key: str) -> None:
    place = Place(tmp_path)
    place.book.trust("Registry", key)
    (tmp_path / "signed" / "b.txt").unlink()
    watched = await place.sources.watch("acme", str(tmp_path / "signed"), True, WATCH)
    source = await place.sources.open("acme", watched.name)
    assert source.provenance == Provenance(SourceKind.SHARE, str(tmp_path / "signed"), signer="Registry")
    assert await contents(source) == {"a.txt": b"alpha", "b.txt": "MISSING"}


# --- watched places --------------------------------------------------------------------------------------------------


async def test_a_tenant_sees_its_own_watched_places_and_every_stick(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "drop").mkdir()
    place.plugged.plug(stick(tmp_path / "sdb"))
    made = await place.sources.watch("acme", str(tmp_path / "drop"), False, WATCH)
    assert (made.state, made.watch, made.provenance.kind) == (SourceState.READY, WATCH, SourceKind.FOLDER)
    assert [one.id for one in await place.sources.list("acme")] == [made.id, "usb-4C53"]
    assert [one.id for one in await place.sources.list("other")] == ["usb-4C53"]
    with pytest.raises(NotFound):
        await place.sources.open("other", made.name)
    (tmp_path / "drop").rmdir()
    (gone, _) = await place.sources.list("acme")
    assert (gone.state, "no file or folder" in gone.problem) == (SourceState.ABSENT, True)
    await place.sources.unwatch("acme", made.name)
    assert [one.id for one in await place.sources.list("acme")] == ["usb-4C53"]
    with pytest.raises(NotFound):
        await place.sources.unwatch("acme", made.name)


async def test_a_watched_stick_is_absent_until_it_is_plugged_in(tmp_path: Path) -> None:
    place = Place(tmp_path, sticks_allowed="all")
    made = await place.sources.watch("acme", "sources/usb-4C53", False, WATCH)
    assert (made.name, made.state) == ("sources/usb-4C53", SourceState.ABSENT)
    with pytest.raises(SourceGone):
        await place.sources.open("acme", made.name)
    place.plugged.plug(stick(tmp_path / "sdb"))
    (source,) = await place.sources.list("acme")
    assert (source.state, source.watch) == (SourceState.READY, WATCH)
    assert [one.watch for one in await place.sources.list("other")] == [None]


async def test_the_boxs_own_data_is_not_watched(tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="own data directory"):
        await Place(tmp_path).sources.watch("acme", str(tmp_path / "data"), False, WATCH)


async def test_a_watched_place_that_is_outside_by_now_is_refused_and_says_so_and_stays(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "drop").mkdir()
    made = await place.sources.watch("acme", str(tmp_path / "drop"), False, WATCH)
    narrower = place.again(ingest_roots="/srv")
    (source,) = await narrower.list("acme")
    assert (source.id, source.state, source.watch) == (made.id, SourceState.REFUSED, WATCH)
    assert "`ingest_roots` gives you (/srv)" in source.problem
    with pytest.raises(SourceRefused, match="ingest_roots"):
        await narrower.open("acme", made.name)
    assert [one.state for one in await place.sources.list("acme")] == [SourceState.READY]


async def test_what_is_outside_is_not_watched_nor_read_as_a_file_or_an_image(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    place = Place(tmp_path, ingest_roots=str(tmp_path / "drop"))
    (tmp_path / "a.txt").write_bytes(b"alpha")
    for path in (tmp_path, tmp_path / "a.txt", stick(tmp_path / "a.img"), tmp_path / "none"):
        with pytest.raises(SourceRefused, match="ingest_roots"):
            await place.sources.open("acme", str(path))
        with pytest.raises(SourceRefused, match="ingest_roots"):
            await place.sources.watch("acme", str(path), True, WATCH)
    assert await place.sources.list("acme") == ()
