"""Sources by name: who is let in, what is read, and how each of them goes away."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import InvalidArgument, NotFound, SourceGone, SourceRefused
from appliance.ingest import signing
from appliance.ingest.sources import Folder, Found, OpenFolder, mounts, opened
from appliance.ingest.sources.signed import SignedSource
from appliance.ingest.sources.stalls import Calls
from appliance.types import Entry, Provenance, SourceKind, SourceState, Watch
from tests import stick_images
from tests.ingest.sources.places import Place, content, contents
from tests.stick_images import Fat16
from tests.volumes import PlainVolumes

WATCH = Watch("handbook", frozenset({"everyone"}))


def stick(path: Path, files: dict[bytes, bytes] | None = None) -> Path:
    """An image with these files, a cluster each."""
    made = Fat16()
    for number, (name, data) in enumerate((files or {b"A       TXT": b"alpha"}).items()):
        made.file(name, data, number + 2)
    path.write_bytes(made.data)
    return path


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
    with pytest.raises(InvalidArgument, match="own data directory"):
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
    with pytest.raises(InvalidArgument):
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
    with pytest.raises(InvalidArgument, match="own data directory"):
        await Place(tmp_path).sources.watch("acme", str(tmp_path / "data"), False, WATCH)


# --- a share that stalls ---------------------------------------------------------------------------------------------


class StalledFolder(Folder):
    """A folder whose reads hang until `answer` is set."""

    answer: threading.Event

    def open(self, name: str) -> int:
        self.answer.wait()
        return super().open(name)


async def test_a_copy_from_a_share_that_stalls_ends_and_never_touches_its_target_again(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "a.txt").write_bytes(b"late")
    folder, calls, done = (
        StalledFolder(str(tmp_path / "drop"), tmp_path / "data"),
        Calls("drop", 0.05),
        threading.Event(),
    )
    folder.answer = threading.Event()
    source = OpenFolder(folder, Provenance(SourceKind.SHARE), calls, closed=done.set)
    (found,) = await source.files()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SourceGone, match="gave no answer"):
        await content(source, found)
    await source.close()
    assert not done.is_set()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)  # may have the target's number now
    folder.answer.set()
    done.wait(5)
    assert os.fstat(other).st_size == 0
    os.close(other)
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1


async def test_a_share_that_stalls_is_absent_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, answer, stalled = Place(tmp_path, patience_seconds=0.05), threading.Event(), list[threading.Thread]()
    for name in ("dead", "sound"):
        (tmp_path / name).mkdir()
        await place.sources.watch("acme", str(tmp_path / name), True, WATCH)
    real = os.lstat

    def hangs(path: str) -> os.stat_result:
        if path == str(tmp_path / "dead"):
            stalled.append(threading.current_thread())
            answer.wait()
        return real(path)

    monkeypatch.setattr(os, "lstat", hangs)
    for _ in range(5):
        states = {one.provenance.path: one.state for one in await place.sources.list("acme")}
        assert states == {str(tmp_path / "dead"): SourceState.ABSENT, str(tmp_path / "sound"): SourceState.READY}
    assert len(stalled) == 1
    answer.set()
    stalled[0].join(5)
    assert {one.state for one in await place.sources.list("acme")} == {SourceState.READY}


# --- what is opened is what was asked for ----------------------------------------------------------------------------


async def test_a_stick_that_takes_the_place_of_another_before_it_is_open_is_not_read_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, made, real = Place(tmp_path), Fat16(), os.open
    made.file(b"A       TXT", b"alpha", 2)
    (tmp_path / "sdb").write_bytes(made.data)
    place.plugged.plug(tmp_path / "sdb")
    place.book.allow("4C53", True)

    def swapped(path: str, *arguments: Any, **options: Any) -> int:
        if path == str(tmp_path / "sdb"):
            place.plugged.devices.clear()
            place.plugged.plug(tmp_path / "sdb", "EVIL")
        return real(path, *arguments, **options)

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", swapped)
        with pytest.raises(SourceGone):
            await place.sources.open("acme", "sources/usb-4C53")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_mount_that_stalls_mounts_the_device_that_it_was_asked_for_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(1 << 17)
    data[1080:1082] = b"\x53\xef"
    (tmp_path / "a.img").write_bytes(data)
    place = Place(tmp_path, patience_seconds=0.05, stick_mount="ext4")
    answer, ended, mounted = threading.Event(), threading.Event(), list[str]()

    def stalls(fd: int, *_: object) -> tuple[int, str]:
        answer.wait(5)
        mounted.append(os.readlink(f"/proc/self/fd/{fd}"))
        ended.set()
        raise SourceRefused("It is damaged.")

    monkeypatch.setattr(mounts, "mount", stalls)
    with pytest.raises(SourceGone, match="gave no answer"):
        await place.sources.open("acme", str(tmp_path / "a.img"))
    others = [os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT) for _ in range(8)]  # one has the number now
    answer.set()
    assert await asyncio.to_thread(ended.wait, 5)
    assert mounted == [str(tmp_path / "a.img")]
    for other in others:
        os.close(other)


async def test_a_manifest_is_verified_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop" / "a.txt").write_bytes(b"alpha")
    place, real, beside = Place(tmp_path), signing.signer_of, list[bool]()
    place.book.trust("Registry", signing.make_key(tmp_path / "key.pem"))
    await signing.sign_folder(tmp_path / "drop", tmp_path / "key.pem")

    def signer_of(*arguments: Any) -> str:
        beside.append(threading.current_thread() is not threading.main_thread())
        return real(*arguments)

    monkeypatch.setattr(signing, "signer_of", signer_of)
    await place.sources.watch("acme", str(tmp_path / "drop"), False, WATCH)
    (source,) = await place.sources.list("acme")
    opened = await place.sources.open("acme", source.name)
    assert [one.signer for one in await opened.files()] == ["Registry"]
    await opened.close()
    assert beside == [True]


async def test_a_long_listing_is_worked_through_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, beside = Place(tmp_path, sticks_must_be_signed="yes"), set[tuple[str, bool]]()

    def note(what: str) -> None:
        beside.add((what, threading.current_thread() is not threading.main_thread()))

    named, judged = opened._name, SignedSource._judged

    def name(entry: Entry, of_several: bool) -> str:
        note("named")
        return named(entry, of_several)

    def judge(source: SignedSource, found: Found) -> Found:
        note("judged")
        return judged(source, found)

    monkeypatch.setattr(opened, "_name", name)
    monkeypatch.setattr(SignedSource, "_judged", judge)
    source = await place.sources.open("acme", str(stick(tmp_path / "a.img")))
    assert [one.refusal.file_reason for one in await source.files() if one.refusal] == ["NOT_SIGNED"]
    await source.close()
    assert beside == {("named", True), ("judged", True)}
