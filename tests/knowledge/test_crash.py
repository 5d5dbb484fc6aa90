"""A kill, a power cut, a full disk at the steps of every kind of write: nothing acknowledged is lost or half there."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, DiskFull
from appliance.knowledge.library import Library
from appliance.knowledge.storage.manifest import ManifestStore
from tests import crash
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document, open_libraries
from tests.knowledge.disk_faults import (
    ALL_STEPS,
    NEVER,
    STATES,
    Died,
    Disk,
    Platter,
    break_down,
    die,
    die_in_the_middle,
    run_full,
    steps_of,
)
from tests.knowledge.test_upgrade import WAS, version_1

NEW = ("Badge new expires.", "", "Die Größe zählt.")
NEWER = ("Badge newer expires.", "")
OLD = [(f"Badge {number} expires.", "", "Die Größe zählt.") for number in range(5)]


def add(shelf: Shelf) -> None:
    shelf.add(*NEW)


def add_all(shelf: Shelf) -> None:
    """Three, of which one is refused and one takes the place of another."""
    old = next(iter(shelf.contents()))
    new = [new_document(*NEW), new_document(" "), dataclasses.replace(new_document(*NEWER), replaces=old)]
    shelf.library.add_all("handbook", new)


def delete(shelf: Shelf) -> None:
    shelf.library.delete("handbook", next(iter(shelf.contents())), ALL)


def seal(shelf: Shelf) -> None:
    shelf.compact()


def rewrite(shelf: Shelf) -> None:
    """Nothing is in the log, and a document of the segment is deleted."""
    shelf.compact()


def replace(shelf: Shelf) -> None:
    old = next(iter(shelf.contents()))
    shelf.library.add("handbook", dataclasses.replace(new_document(*NEW), replaces=old))


def set_readers(shelf: Shelf) -> None:
    shelf.library.set_readers("handbook", next(iter(shelf.contents())), frozenset({"role:admin"}), ALL)


def rotate(shelf: Shelf) -> None:
    shelf.library.rotate()


def shred(shelf: Shelf) -> None:
    """Another collection of the tenant; this one's record is wrapped anew."""
    if any(one.id == "other" for one in shelf.library.collections(ALL)):
        shelf.library.drop("other")
    else:
        shelf.libraries.shred_tenant("nobody")  # nothing is left to do


def reembed(shelf: Shelf) -> None:
    shelf.library.reembed("handbook", "", shelf.embedder, Quiet())


class Quiet:
    def update(self, done: int, total: int = 0, note: str = "") -> None:
        pass


WRITES = [add, add_all, delete, seal, rewrite, replace, set_readers, rotate, shred, reembed]
OF_ALL_STEPS = [add, add_all, seal, rotate, shred, reembed]
"""Those without which a kind of step would be missed: what the others do to the disk, these do, too."""


def prepare(shelf: Shelf, write: object) -> None:
    """Some documents in a segment and some in the log."""
    for pages in OLD[:3]:
        shelf.add(*pages)
    shelf.compact()
    for pages in OLD[3:]:
        shelf.add(*pages)
    if write is shred:
        shelf.library.create("other")
        shelf.library.add("other", new_document("Others."))
    if write is rewrite:
        delete(shelf)
        shelf.compact()
        delete(shelf)
    shelf.library.close()


def texts(shelf: Shelf) -> list[tuple[str, ...]]:
    return sorted(shelf.contents().values())


def after(write: object, before: list[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """What the store may hold once the write is done."""
    if write is add:
        return [sorted([*before, NEW])]
    if write is add_all:
        return [sorted([*(other for other in before if other != gone), NEW, NEWER]) for gone in before]
    if write is replace:
        return [sorted([*(other for other in before if other != gone), NEW]) for gone in before]
    if write in (delete, set_readers):
        return [[other for other in before if other != gone] for gone in before]
    return [before]


def rehearsed(
    prepared: Shelf, disk: Disk, write: Callable[[Shelf], None], only: frozenset[str] = ALL_STEPS
) -> list[int]:
    """Each step of a write, and the one behind its last."""
    shelf = prepared.copy("rehearsed")
    texts(shelf)  # what opening writes is no step
    with disk.failing_at(NEVER):
        write(shelf)
    shelf.library.close()
    return steps_of(disk.kinds, only)


@pytest.mark.long
@pytest.mark.parametrize("write", WRITES)
def test_a_kill_at_each_step_and_a_power_cut_there_or_after_the_start_lose_nothing_acknowledged(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, write: Callable[[Shelf], None]
) -> None:
    """A cut at a step leaves one of STATES, by turns; each fourth comes after the start that follows the kill."""
    prepared = make_shelf()
    prepare(prepared, write)
    disk = Disk(monkeypatch, die)
    steps = rehearsed(prepared, disk, write)
    for at, step in enumerate(steps):
        shelf, acknowledged = prepared.copy(f"step{step}"), False
        before = texts(shelf)
        platter = Platter(shelf.root)
        with platter.watching(monkeypatch), disk.failing_at(step), suppress(Died):
            write(shelf)
            acknowledged = True
        assert acknowledged is (step == steps[-1])
        allowed = after(write, before) if acknowledged else [before, *after(write, before)]
        states = STATES if acknowledged else STATES[at % 4 : at % 4 + 1]  # each fourth: the power goes later
        cut = [platter.left(shelf.root.with_name(f"step{step}-{state}"), state) for state in states]
        with platter.watching(monkeypatch):
            shelf.reopen(close=False)  # after a kill; the power goes after that
            shown = texts(shelf)
            if at % 4 == 3 or acknowledged:
                cut.append(platter.left(shelf.root.with_name(f"step{step}-later"), STATES[at // 4 % 2]))
        platter.close()
        assert shown in allowed, f"after step {step}"
        check_nothing_is_left_half(shelf)
        shelf.library.close()
        for root in cut:
            check_after_a_cut(root, [shown] if root.name.endswith("later") else allowed)


def check_after_a_cut(root: Path, allowed: list[list[tuple[str, ...]]]) -> None:
    again = Shelf(root)
    assert texts(again) in allowed, f"after a power cut: {root.name}"
    check_nothing_is_left_half(again)
    again.library.close()
    shutil.rmtree(root)


@pytest.mark.long
@pytest.mark.parametrize("write", OF_ALL_STEPS)
def test_a_kill_in_the_middle_of_each_write_loses_nothing_acknowledged(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, write: Callable[[Shelf], None]
) -> None:
    prepared = make_shelf()
    prepare(prepared, write)
    disk = Disk(monkeypatch, die_in_the_middle)
    for step in rehearsed(prepared, disk, write, frozenset({"pwrite"}))[:-1]:
        shelf = prepared.copy(f"step{step}")
        before = texts(shelf)
        with disk.failing_at(step), pytest.raises(Died):
            write(shelf)
        shelf.reopen(close=False)
        assert texts(shelf) in [before, *after(write, before)], f"after step {step}"
        check_nothing_is_left_half(shelf)
        shelf.library.close()


def check_nothing_is_left_half(shelf: Shelf) -> None:
    """After a start: one key of each kind, no folder on its way, and either all of the other collection or nothing."""
    tenant = shelf.files.parent
    assert len(list((shelf.root / "vault" / "tenants" / "default").iterdir())) == 1
    for directory in tenant.iterdir():
        assert not directory.name.startswith(".")
        if directory.name == "other":
            listed, _ = shelf.library.documents("other", ALL)
            assert [shelf.library.pages("other", one.id, ALL) for one in listed] == [("Others.",)]
        assert len(list(directory.glob("key.*"))) == 1
    assert shelf.library.damaged() == {}


@pytest.mark.long
@pytest.mark.parametrize("write", OF_ALL_STEPS)
def test_a_disk_that_fails_at_each_step_is_told_and_loses_nothing_acknowledged(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, write: Callable[[Shelf], None]
) -> None:
    prepared = make_shelf()
    prepare(prepared, write)
    disk = Disk(monkeypatch, break_down)
    steps = rehearsed(prepared, disk, write)
    for step in steps:
        shelf, told = prepared.copy(f"step{step}"), False
        before = texts(shelf)
        with disk.failing_at(step):
            try:
                write(shelf)
            except (ApplianceError, OSError):
                told = True
        shelf.reopen(close=False)
        wanted = after(write, before)
        assert texts(shelf) in ([before, *wanted] if told else wanted), f"at step {step}"
        assert not told or step < steps[-1]
        check_nothing_is_left_half(shelf)
        shelf.library.close()


@pytest.mark.long
@pytest.mark.parametrize("write", OF_ALL_STEPS)
def test_a_full_disk_at_each_step_that_needs_room_is_told_and_the_store_stays_usable(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, write: Callable[[Shelf], None]
) -> None:
    prepared = make_shelf()
    prepare(prepared, write)
    disk = Disk(monkeypatch, run_full)
    for step in rehearsed(prepared, disk, write, frozenset({"pwrite", "fsync", "fdatasync", "mkdir", "link"})):
        shelf, done = prepared.copy(f"step{step}"), False
        before = texts(shelf)
        with disk.failing_at(step):
            try:
                write(shelf)
                done = True
            except DiskFull as error:
                told = str(error)
                assert str(shelf.root) in told or str(shelf.root.parent) in told
            assert done or texts(shelf) == before, f"at step {step}"
        if not done:
            write(shelf)  # there is room again
        now = texts(shelf)
        assert now in after(write, before)
        shelf.reopen()
        assert texts(shelf) == now
        shelf.library.close()


def test_an_addition_that_found_the_disk_full_can_be_made_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, run_full)
    with disk.failing_at(0), pytest.raises(DiskFull):
        shelf.add("Badges expire.")
    assert shelf.library.find("handbook", new_document("Badges expire.").sha256, "v1") is None
    added = shelf.add("Badges expire.")
    assert shelf.contents() == {added.id: ("Badges expire.",)}


def test_a_disk_that_stays_full_is_not_filled_with_what_failed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step that may find no room: ten attempts leave no more than one did."""
    shelf.add("Badges expire.")
    shelf.library.close()
    disk, step, done = Disk(monkeypatch, run_full), 0, False

    def files() -> int:
        return sum(path.is_file() for path in shelf.files.rglob("*"))

    while not done:
        shelf.reopen()
        counts = []
        for attempt in range(10):
            with disk.failing_at(step):
                try:
                    shelf.add(f"Doors close {step} {attempt}.")
                    done = True
                except DiskFull:
                    counts.append(files())
        assert max(counts, default=0) <= (counts or [0])[0] + 2, f"at step {step}"  # a manifest in doubt, its log
        shelf.add(f"Doors open {step}.")
        assert {path.name for path in (shelf.files / "wal").iterdir()} == {
            entry.file_id.hex() for entry in shelf.collection._store.manifest.wals
        }
        step += 1
    assert step > 3


def test_segments_of_failed_commits_are_removed_by_the_next(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.add("Badges expire.")
    commit = ManifestStore.commit

    def full(*_: object) -> None:
        raise DiskFull("No space is left.")

    for _ in range(3):
        monkeypatch.setattr(ManifestStore, "commit", full)
        with pytest.raises(DiskFull):
            shelf.compact()
        monkeypatch.setattr(ManifestStore, "commit", commit)
    shelf.compact()
    assert shelf.file("seg").exists()


def test_a_full_disk_while_a_collection_is_made_leaves_none(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, run_full)
    step, made = 0, False
    while not made:
        with disk.failing_at(step):
            try:
                shelf.library.create("second")
                made = True
            except DiskFull:
                assert [collection.id for collection in shelf.library.collections()] == ["handbook"]
        assert not list(shelf.files.parent.glob(".new-*"))
        step += 1
    assert [collection.id for collection in shelf.reopen().collections()] == ["handbook", "second"]


def test_a_dropped_collection_is_dropped_whenever_the_process_dies(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, die)
    step, done = 0, False
    while not done:
        shelf = make_shelf()
        document = shelf.add("Badges expire.")
        with disk.failing_at(step), suppress(Died):
            shelf.library.drop("handbook")
            done = True
        shelf.reopen(close=False)
        if shelf.library.collections():
            assert not done
            assert shelf.contents() == {document.id: ("Badges expire.",)}
        else:
            assert shelf.library.damaged() == {}
            shelf.library.create("handbook")
            assert shelf.contents() == {}
        step += 1
    assert step > 2


def test_a_stored_document_that_a_search_misses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = crash.open_library(tmp_path)
    library.create(crash.COLLECTION)
    for number in range(8):
        library.add(crash.COLLECTION, new_document(*crash.pages_of(number), title=crash.title_of(number)))
    library.close()
    assert len(crash.LibraryWorkload().stored(tmp_path)) == 8
    show = Library.show

    def one_off(self: Library, *asked: Any) -> object:
        return show(self, *asked)[1:]

    monkeypatch.setattr(Library, "show", one_off)
    with pytest.raises(AssertionError, match="not found by its own words"):
        crash.LibraryWorkload().stored(tmp_path)


class Forgetful(crash.LibraryWorkload):
    """A workload that acknowledges other readers, and whose store does not have them."""

    ahead = 1

    def start(self, directory: Path, first_number: int, seed: int) -> "subprocess.Popen[str]":
        said = "added 0\nadded 1\nsharing 0 role:admin\nshared 0 role:admin\nsharing 1 role:app"
        program = f"import time; print({said!r}, flush=True); time.sleep(60)"
        return subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def stored(self, directory: Path) -> dict[int, crash.Stored]:
        return {number: crash.Stored(crash.pages_of(number)) for number in (0, 1)}


def test_readers_that_were_acknowledged_and_are_not_stored_are_told(tmp_path: Path) -> None:
    assert list(crash.check(Forgetful(), tmp_path, kills=1, seed=1)) == ["kill 0: for others [0]"]


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, die_in_the_middle, run_full])
def test_an_upgrade_that_ends_at_the_first_step_of_each_kind_goes_on_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    """A kind is a call from the same chain of functions."""
    disk = Disk(monkeypatch, fault)
    with disk.failing_at(NEVER):
        open_libraries(version_1(tmp_path / "rehearsed"), WordEmbedder()).close()
    kinds = {kind: step for step, kind in reversed(list(enumerate(disk.kinds)))}  # the first of each
    assert len(kinds) > 15
    for step in sorted(step for kind, step in kinds.items() if fault is not die_in_the_middle or kind[0] == "pwrite"):
        root = version_1(tmp_path / f"step{step}")
        with disk.failing_at(step), suppress(Died, ApplianceError, OSError):
            open_libraries(root, WordEmbedder())
        libraries = open_libraries(root, WordEmbedder())
        library = libraries.of("default")
        for name in ("handbook", "default"):
            listed, _ = library.documents(name, ALL)
            assert sorted(library.pages(name, one.id, ALL) for one in listed) == WAS, f"after step {step}"
        assert libraries.damaged() == {}
        assert [path.name for path in (root / "knowledge").iterdir()] == ["default"]
        libraries.close()


@pytest.mark.long
def test_kill_minus_nine_at_random_points_loses_nothing(tmp_path: Path) -> None:
    assert not any(crash.check(crash.LibraryWorkload(), tmp_path, kills=5, seed=1))
