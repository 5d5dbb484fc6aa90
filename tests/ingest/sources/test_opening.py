"""A source while it is opened: a share that stalls, a stick that takes another's place, a long list."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import SourceGone, SourceRefused
from appliance.ingest import signing
from appliance.ingest.sources import Folder, Found, OpenFolder, kernel, mounts, opened
from appliance.ingest.sources.signed import SignedSource
from appliance.ingest.sources.stalls import Calls
from appliance.types import Entry, Provenance, SourceKind, SourceState
from tests.ingest.sources.places import WATCH, Place, content, stick
from tests.stick_images import Fat16

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
    top = os.open(tmp_path / "drop", os.O_PATH | os.O_DIRECTORY)
    folder = StalledFolder(top, tmp_path / "drop", tmp_path / "data")
    calls, done = Calls("drop", 0.05), threading.Event()
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
    real = kernel.openat2

    def hangs(top: int, name: bytes, flags: int, resolve: int) -> int:
        if name.endswith(b"/dead"):
            stalled.append(threading.current_thread())
            answer.wait()
        return real(top, name, flags, resolve)

    monkeypatch.setattr(kernel, "openat2", hangs)
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
