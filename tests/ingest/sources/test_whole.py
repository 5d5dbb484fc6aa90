"""The file that is copied is the one that was whole: what wrote to it, or took its place, since its polls is found."""

import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.sources import Found, OpenFolder, watch
from appliance.types import Source, Watch
from tests.ingest.sources.places import Place, content
from tests.ingest.sources.test_watch import AT_ONCE, Bench


def restore_times(path: Path, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite(path: Path) -> None:
    path.write_bytes(b"after.")


def rewrite_and_set_its_time_back(path: Path) -> None:
    status = path.stat()
    rewrite(path)
    restore_times(path, status)


def put_another_in_its_place(path: Path) -> None:
    status, other = path.stat(), path.with_name("other")
    rewrite(other)
    restore_times(other, status)
    other.rename(path)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" more")


CHANGES = [rewrite, rewrite_and_set_its_time_back, put_another_in_its_place, lengthen]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changed_since_it_was_seen_is_not_copied_as_that(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "a.txt").write_bytes(b"before")
    source = await Place(tmp_path).sources.open("acme", str(drop))
    [seen] = await source.files()
    assert await content(source, seen) == b"before"
    change(drop / "a.txt")
    assert await content(source, seen) == "CHANGED"
    [now] = await source.files()
    assert now.stamp != seen.stamp
    assert await content(source, replace(seen, changed_ns=0)) == (drop / "a.txt").read_bytes(), "as it is"
    await source.close()


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changes_while_it_is_copied_is_not_taken(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "a.txt").write_bytes(b"before")
    source = await Place(tmp_path).sources.open("acme", str(drop))
    [seen] = await source.files()
    real = os.read

    def read(fd: int, count: int) -> bytes:
        data = real(fd, count)
        if data == b"before":
            change(drop / "a.txt")
        return data

    monkeypatch.setattr(os, "read", read)
    taken = await content(source, seen)
    assert taken == "CHANGED" or (change is put_another_in_its_place and taken == b"before"), "the old file, whole"
    await source.close()


# --- the digest of a watch -------------------------------------------------------------------------------------------


class Kept:
    """What was handed on."""

    def __init__(self) -> None:
        self.found: list[Found] = []

    async def __call__(self, tenant: str, source: Source, watch: Watch, found: tuple[Found, ...]) -> None:
        self.found += found


async def test_a_file_is_handed_on_with_what_was_read_of_it_when_it_first_stayed_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, kept, reads = Bench(tmp_path), Kept(), list[str]()
    bench.take = kept  # type: ignore[assignment]
    real = OpenFolder.copy

    async def copy(self: OpenFolder, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        reads.append(found.name)
        return await real(self, found, target, max_bytes)

    monkeypatch.setattr(OpenFolder, "copy", copy)
    await bench.place.sources.watch("acme", str(bench.drop), True, replace(AT_ONCE, settle_polls=3))
    (bench.drop / "a.txt").write_text("one")
    for expected in ([], ["a.txt"], ["a.txt"]):
        for task in bench.watcher.look(kept):
            await task
        assert (reads, kept.found) == (expected, [])
    for _ in range(3):
        for task in bench.watcher.look(kept):
            await task
    assert reads == ["a.txt"], "once, and what was taken never again"
    [found] = kept.found
    assert (found.name, found.sha256) == ("a.txt", sha256(b"one").hexdigest())
    assert found.changed_ns == (bench.drop / "a.txt").stat().st_ctime_ns


async def test_a_file_that_changes_while_a_poll_reads_it_begins_to_wait_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, kept = Bench(tmp_path), Kept()
    await bench.place.sources.watch("acme", str(bench.drop), True, AT_ONCE)
    (bench.drop / "a.txt").write_text("one")
    real, busy = OpenFolder.copy, [True]

    async def copy(self: OpenFolder, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        if busy:
            raise DocumentRefused("CHANGED", "It was changed while it was read.")
        return await real(self, found, target, max_bytes)

    monkeypatch.setattr(OpenFolder, "copy", copy)
    for _ in range(5):
        for task in bench.watcher.look(kept):
            await task
    assert kept.found == []
    busy.clear()
    for _ in range(2):
        for task in bench.watcher.look(kept):
            await task
    assert [one.name for one in kept.found] == ["a.txt"]


async def test_what_cannot_be_read_is_handed_on_to_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, kept = Bench(tmp_path), Kept()
    await bench.place.sources.watch("acme", str(bench.drop), True, AT_ONCE)
    (bench.drop / "big.txt").write_bytes(bytes(1))
    os.truncate(bench.drop / "big.txt", 2 << 20)
    (bench.drop / "link.txt").symlink_to("/etc/hostname")
    for _ in range(3):
        for task in bench.watcher.look(kept):
            await task
    assert [(one.name, one.sha256) for one in kept.found] == [("big.txt", ""), ("link.txt", "")]


async def test_a_look_reads_only_so_much_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HASHED_BYTES", 5)
    bench, kept, told = Bench(tmp_path), Kept(), list[list[str]]()
    await bench.place.sources.watch("acme", str(bench.drop), True, AT_ONCE)
    for name in "abcd":
        (bench.drop / f"{name}.txt").write_text("four")
    for _ in range(4):
        kept.found.clear()
        for task in bench.watcher.look(kept):
            await task
        told.append([one.name[0] for one in kept.found])
    assert told == [[], ["a", "b"], ["c", "d"], []]


async def test_a_marked_file_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, kept = Bench(tmp_path), Kept()
    await bench.place.sources.watch("acme", str(bench.drop), True, replace(AT_ONCE, settle_polls=3))
    (bench.drop / "a.txt").write_text("one")
    (bench.drop / "a.txt.ready").write_text("")
    for task in bench.watcher.look(kept):
        await task
    assert [(one.name, one.sha256) for one in kept.found] == [("a.txt", "")]
