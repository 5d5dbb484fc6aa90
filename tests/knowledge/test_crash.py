"""A kill and a full disk at every single step of every kind of write: nothing acknowledged is lost, nothing is half."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.errors import DiskFull
from appliance.knowledge.library import Library
from appliance.knowledge.storage.manifest import ManifestStore
from tests import crash
from tests.knowledge.conftest import ALL, Shelf, new_document

_STEPS = ("open", "pwrite", "fsync", "fdatasync", "rename", "unlink", "ftruncate")


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
            reads = name == "open" and isinstance(arguments[1], int) and not arguments[1] & os.O_CREAT
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
    if name not in ("rename", "unlink", "ftruncate"):
        raise OSError(errno.ENOSPC, "No space left on device")


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


WRITES = [add, delete, seal, rewrite]


def prepare(shelf: Shelf, write: object) -> None:
    """Some documents in a segment and some in the log."""
    for pages in OLD[:3]:
        shelf.add(*pages)
    shelf.compact()
    for pages in OLD[3:]:
        shelf.add(*pages)
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
    if write is delete:
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
                assert str(shelf.root) in told
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
    search = Library.search

    def one_off(self: Library, collection: str, query: str, groups: frozenset[str], limit: int) -> object:
        return search(self, collection, query, groups, limit)[1:]

    monkeypatch.setattr(Library, "search", one_off)
    with pytest.raises(AssertionError, match="not found by its own words"):
        crash.LibraryWorkload().stored(tmp_path)


@pytest.mark.long
def test_kill_minus_nine_at_random_points_loses_nothing(tmp_path: Path) -> None:
    assert not any(crash.check(crash.LibraryWorkload(), tmp_path, kills=5, seed=1))
