"""A kill and a full disk at every single step of every kind of write: nothing acknowledged is lost, nothing is half."""

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, DiskFull
from appliance.knowledge.library import Library
from appliance.knowledge.storage.manifest import ManifestStore
from tests import crash
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document, open_libraries
from tests.knowledge.test_keys import WAS, version_1

_STEPS = ("open", "pwrite", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir", "link", "rmdir")


class Died(BaseException):
    """The process is gone: no handler of the code under test may run on it."""


class Disk:
    """Counts the steps that go to the disk; the one of number `fails_at` fails, and all after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Callable[[str, tuple[object, ...]], None]) -> None:
        self._patch, self._fault = monkeypatch, fault
        self.steps = 0
        self.fails_at = 0

    @contextmanager
    def failing_at(self, step: int) -> Iterator[None]:
        self.steps, self.fails_at = 0, step
        with self._patch.context() as patch:
            for name in _STEPS:
                patch.setattr(f"appliance.knowledge.storage.durable.os.{name}", self._wrap(name, getattr(os, name)))
            yield

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            writes = os.O_CREAT | os.O_WRONLY
            reads = name == "open" and isinstance(arguments[1], int) and not arguments[1] & writes
            if not reads:
                self.steps += 1
                if self.steps > self.fails_at:
                    self._fault(name, arguments)
            return real(*arguments, **options)

        return step


def die(name: str, arguments: tuple[object, ...]) -> None:
    raise Died


def die_in_the_middle(name: str, arguments: tuple[object, ...]) -> None:
    """Half of what was to be written is written."""
    if name == "pwrite":
        descriptor, data, offset = arguments
        assert isinstance(descriptor, int)
        assert isinstance(data, memoryview)
        assert isinstance(offset, int)
        _PWRITE(descriptor, data[: len(data) // 2], offset)
    raise Died


def run_full(name: str, arguments: tuple[object, ...]) -> None:
    if name not in ("open", "rename", "unlink", "ftruncate", "rmdir"):
        raise OSError(errno.ENOSPC, "No space left on device")


def break_down(name: str, arguments: tuple[object, ...]) -> None:
    """The disk fails in everything that is asked of it."""
    raise OSError(errno.EIO, "Input/output error")


_PWRITE = os.pwrite
NEW = ("Badge new expires.", "", "Die Größe zählt.")
OLD = [(f"Badge {number} expires.", "", "Die Größe zählt.") for number in range(5)]


def add(shelf: Shelf) -> None:
    shelf.add(*NEW)


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


WRITES = [add, delete, seal, rewrite, replace, set_readers, rotate, shred]


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
    if write is replace:
        return [sorted([*(other for other in before if other != gone), NEW]) for gone in before]
    if write in (delete, set_readers):
        return [[other for other in before if other != gone] for gone in before]
    return [before]


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, die_in_the_middle])
@pytest.mark.parametrize("write", WRITES)
def test_a_kill_at_any_step_loses_nothing_acknowledged(
    make_shelf: Callable[..., Shelf],
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Shelf], None],
    fault: Callable[..., None],
) -> None:
    prepared = make_shelf()
    prepare(prepared, write)
    disk, step, acknowledged = Disk(monkeypatch, fault), 0, False
    while not acknowledged:
        shelf = prepared.copy(f"step{step}")
        before = texts(shelf)
        with disk.failing_at(step), suppress(Died):
            write(shelf)
            acknowledged = True
        shelf.reopen(close=False)
        wanted = after(write, before)
        assert texts(shelf) in (wanted if acknowledged else [before, *wanted]), f"after step {step}"
        check_nothing_is_left_half(shelf)
        step += 1
    assert step > 3


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
@pytest.mark.parametrize("write", WRITES)
def test_a_disk_that_fails_at_any_step_is_told_and_loses_nothing_acknowledged(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, write: Callable[[Shelf], None]
) -> None:
    prepared = make_shelf()
    prepare(prepared, write)
    disk, step, done = Disk(monkeypatch, break_down), 0, False
    while not done:
        shelf = prepared.copy(f"step{step}")
        before = texts(shelf)
        with disk.failing_at(step), suppress(ApplianceError, OSError):
            write(shelf)
            done = disk.steps <= step
        shelf.reopen(close=False)
        assert texts(shelf) in [before, *after(write, before)], f"at step {step}"
        check_nothing_is_left_half(shelf)
        step += 1
    assert step > 3


@pytest.mark.long
@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_at_any_step_is_told_and_the_store_stays_usable(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, write: Callable[[Shelf], None]
) -> None:
    prepared = make_shelf()
    prepare(prepared, write)
    disk, step, done = Disk(monkeypatch, run_full), 0, False
    while not done:
        shelf = prepared.copy(f"step{step}")
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
        step += 1
    assert step > 3


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
        assert len(counts) < 2 or counts[-1] <= counts[1], f"at step {step}"
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


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, die_in_the_middle, run_full])
def test_an_upgrade_that_ends_at_any_step_goes_on_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    disk, step, done = Disk(monkeypatch, fault), 0, False
    while not done:
        root = version_1(tmp_path / f"step{step}")
        with disk.failing_at(step), suppress(Died, ApplianceError, OSError):
            open_libraries(root, WordEmbedder())
            done = True
        libraries = open_libraries(root, WordEmbedder())
        library = libraries.of("default")
        for name in ("handbook", "default"):
            listed, _ = library.documents(name, ALL)
            assert sorted(library.pages(name, one.id, ALL) for one in listed) == WAS, f"after step {step}"
        assert libraries.damaged() == {}
        assert [path.name for path in (root / "knowledge").iterdir()] == ["default"]
        libraries.close()
        step += 1
    assert step > 20


@pytest.mark.long
def test_kill_minus_nine_at_random_points_loses_nothing(tmp_path: Path) -> None:
    assert not any(crash.check(crash.LibraryWorkload(), tmp_path, kills=5, seed=1))
