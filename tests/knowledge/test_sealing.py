"""A seal beside everything else: nobody waits for it, and what is changed meanwhile holds from then on, also after a
kill or a power cut at each step of either."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Any

import pytest

from appliance.errors import Busy, DiskFull, Draining, StoreDamaged
from appliance.knowledge.storage.manifest import ManifestStore, SegmentEntry
from appliance.knowledge.storage.store import Store
from appliance.types import Document, Floats, NewDocument
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document
from tests.knowledge.disk_faults import NEVER, STATES, Died, Disk, Platter, die, die_in_the_middle, steps_of
from tests.knowledge.meanwhile import PATIENCE_SECONDS, Held, changing, in_another_thread

CLOSED = frozenset({"role:admin"})
State = list[tuple[str, tuple[str, ...], tuple[str, ...]]]


def state(shelf: Shelf) -> State:
    """Every document: its title, who may read it, its pages."""
    documents, _ = shelf.library.documents("handbook", None)
    return sorted(
        (one.title, tuple(sorted(one.readers)), shelf.library.pages("handbook", one.id, one.readers))
        for one in documents
    )


def check_found(shelf: Shelf, wanted: State) -> None:
    """By a search, exactly what may be read."""
    for groups in (ALL, CLOSED, ALL | CLOSED):
        texts = sorted(pages[0] for _, readers, pages in wanted if groups & set(readers))
        assert sorted(shelf.search("badge", groups, limit=50)) == texts
    assert state(shelf) == wanted


def check_sound(shelf: Shelf) -> None:
    assert shelf.library.verify("handbook") == ()
    assert shelf.library.damaged() == {}


def check_for_good(shelf: Shelf, wanted: State) -> None:
    """Now, from the log and the segments, from the segments alone, and once all is rewritten."""
    crashed = shelf.copy("crashed in the end")
    check_found(crashed, wanted)
    crashed.library.close()
    for again in (
        lambda: shelf.library.seal_where_old(-1.0),
        lambda: shelf.reopen(close=False),
        shelf.compact,
        shelf.reopen,
    ):
        check_found(shelf, wanted)
        check_sound(shelf)
        again()
    check_found(shelf, wanted)


class Change:
    """What others do to a shelf of `prepared`, a step at a time; `done`: how many steps were acknowledged."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self.done = shelf, 0
        found, _ = shelf.library.documents("handbook", None)
        self._documents = {one.title: one for one in found}
        self.steps: list[Callable[[], object]] = [
            lambda: self._close("memtable 0"),
            lambda: shelf.delete(self._documents["memtable 1"]),
            lambda: self._close("segment 0"),
            lambda: shelf.delete(self._documents["segment 1"]),
            lambda: self._put("new 0", self._documents["memtable 2"].id),
            lambda: self._put("new 1", self._documents["segment 2"].id),
            lambda: shelf.library.add_all("handbook", [badge("new 2"), badge("new 3")]),
            lambda: shelf.delete(self._found("new 2")),
            lambda: self._close("new 3"),
        ]

    def _close(self, title: str) -> None:
        self._shelf.library.set_readers("handbook", self._found(title).id, CLOSED, None)

    def _found(self, title: str) -> Document:
        return next(one for one in self._shelf.library.documents("handbook", None)[0] if one.title == title)

    def _put(self, title: str, replaces: str) -> None:
        self._shelf.library.add("handbook", replace(badge(title), replaces=replaces))

    def run(self, first: int = 0, end: int | None = None) -> None:
        for step in self.steps[first:end]:
            step()
            self.done += 1


def badge(title: str) -> NewDocument:
    return new_document(f"Badge {title} expires.", title=title)


def prepare(shelf: Shelf) -> None:
    """Four documents in a segment and four in the log."""
    for place in ("segment", "memtable"):
        shelf.library.add_all("handbook", [badge(f"{place} {number}") for number in range(4)])
        if place == "segment":
            shelf.compact()


@pytest.fixture
def prepared(make_shelf: Callable[..., Shelf]) -> Shelf:
    shelf = make_shelf()
    prepare(shelf)
    return shelf


def states(shelf: Shelf) -> list[State]:
    """Before the first step of a Change, and after each."""
    copy = shelf.copy("states")
    change, found = Change(copy), [state(copy)]
    for step in change.steps:
        step()
        found.append(state(copy))
    copy.library.close()
    assert len({str(one) for one in found}) == len(found)
    return found


@pytest.mark.parametrize("written", [False, True])
def test_what_is_changed_while_a_seal_stands_still_holds_at_once_and_for_good(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    wanted, change = states(prepared), Change(prepared)
    seal = Held(monkeypatch, written=written)
    with seal.during(lambda: prepared.library.seal_where_old(-1.0)):
        for number, step in enumerate(change.steps, 1):
            step()
            check_found(prepared, wanted[number])
            crashed = prepared.copy(f"crashed {number}")
            check_found(crashed, wanted[number])
            crashed.library.close()
        prepared.library.rotate()
        check_found(prepared, wanted[-1])
    assert seal.calls == 1
    check_for_good(prepared, wanted[-1])


def test_a_seal_drops_the_logs_of_what_it_sealed_and_no_other(prepared: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = (prepared.files / "wal").iterdir()
    store = prepared.collection._store
    with Held(monkeypatch, written=True).during(lambda: prepared.library.seal_where_old(-1.0)):
        prepared.add("Badge new expires.")
        assert len(list((prepared.files / "wal").iterdir())) == 2
    (after,) = (prepared.files / "wal").iterdir()
    assert after != before
    assert len(store.manifest.segments) == 2
    assert 0 < store.unsealed_seconds < PATIENCE_SECONDS
    prepared.library.seal_where_old(-1.0)
    assert list((prepared.files / "wal").iterdir()) == []
    assert store.unsealed_seconds == 0.0


def recover(shelf: Shelf, allowed: Sequence[State], where: str) -> State:
    """What a start finds, which is one of the allowed, and stays so whatever is done next."""
    shelf.reopen(close=False)
    found = state(shelf)
    assert found in allowed, where
    shelf.library.seal_where_old(-1.0)
    shelf.reopen(close=False)
    assert state(shelf) == found, f"{where}, sealed"
    shelf.compact()
    assert state(shelf) == found, f"{where}, compacted"
    shelf.library.close()
    return found


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, die_in_the_middle])
def test_a_kill_or_a_power_cut_at_each_step_of_a_seal_and_of_what_is_done_meanwhile(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    wanted = states(prepared)
    prepared.library.close()
    disk = Disk(monkeypatch, fault)

    def run(shelf: Shelf, change: Change) -> None:
        with changing(lambda: change.run(0, 5), lambda: change.run(5)):
            shelf.library.seal_where_old(-1.0)

    rehearsed = prepared.copy("rehearsed")
    change = Change(rehearsed)
    with disk.failing_at(NEVER):
        run(rehearsed, change)
    assert change.done == len(wanted) - 1
    assert len(rehearsed.collection._store.manifest.segments) == 2
    rehearsed.library.close()
    only = frozenset({"pwrite"}) if fault is die_in_the_middle else frozenset(kind[0] for kind in disk.kinds)
    steps = steps_of(disk.kinds, only)
    assert len(steps) > 10
    for at, step in enumerate(steps):
        shelf = prepared.copy(f"step {step}")
        change, platter = Change(shelf), Platter(shelf.root)
        with platter.watching(monkeypatch), disk.failing_at(step), suppress(Died):
            run(shelf, change)
        allowed = wanted[change.done : change.done + 2]
        cut = platter.left(shelf.root.with_name(f"step {step} cut"), STATES[at % 3])
        platter.close()
        recover(shelf, allowed, f"after step {step}")
        again = Shelf(cut)
        recover(again, allowed, f"after a power cut at step {step}: {STATES[at % 3]}")


def test_embedding_anew_keeps_no_writer_waiting_for_the_embedder(prepared: Shelf) -> None:
    """Not even at its end, for what was added meanwhile."""
    first = next(iter(prepared.library.documents("handbook", None)[0]))

    class Interrupted(WordEmbedder):
        calls = 0

        def embed(self, texts: Sequence[str]) -> Floats:
            if texts:
                self.calls += 1
                in_another_thread(self.write)
            return super().embed(texts)

        def write(self) -> None:
            if self.calls == 1:
                prepared.add("Badge new expires.")
            readers = frozenset({"role:admin", f"user:{self.calls}"})
            prepared.library.set_readers("handbook", first.id, readers, None)

    embedder = Interrupted("another")
    prepared.library.reembed("handbook", "", embedder, Quiet())
    assert embedder.calls == 3
    assert prepared.collection._store.manifest.embedder == embedder.identity
    found = prepared.library.documents("handbook", None)[0]
    assert len(found) == 9
    assert next(one for one in found if one.id == first.id).readers == {"role:admin", "user:3"}


@pytest.mark.parametrize("fails_at", ["segment", "commit"])
def test_after_a_seal_that_failed_all_is_there_and_the_next_one_seals_it(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    wanted, change = states(prepared), Change(prepared)
    full: list[object] = []

    def refuse(*_: object, **__: object) -> None:
        full.append(0)
        raise DiskFull("No space is left.")

    def before() -> None:
        change.run(0, 5)
        if fails_at == "segment":
            raise DiskFull("No space is left.")

    def behind() -> None:
        change.run(5)
        monkeypatch.setattr(ManifestStore, "commit", refuse)

    with changing(before, behind):
        prepared.library.seal_where_old(-1.0)  # it is logged, and tried again later
    assert bool(full) == (fails_at == "commit")
    monkeypatch.undo()
    check_found(prepared, wanted[5 if fails_at == "segment" else -1])
    change.run(change.done)
    check_found(prepared, wanted[-1])
    memtable = prepared.collection._published.snapshot.memtable
    assert (memtable.frozen, memtable.open_passages) == (0, memtable.passages)
    copy = prepared.copy("crashed")
    check_found(copy, wanted[-1])
    copy.library.close()
    prepared.library.seal_where_old(-1.0)
    assert prepared.collection._published.snapshot.memtable.blocks == ()
    assert len(list((prepared.files / "seg").iterdir())) == 2
    check_for_good(prepared, wanted[-1])


class Quiet:
    def update(self, done: int, total: int = 0, note: str = "") -> None:
        assert done <= total


class Counted:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock, self.waits = Lock(), Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waits.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_writers_wait_once_what_was_added_during_a_seal_is_as_much_again(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, sealing = make_shelf(seal_passages=4), Counted()
    monkeypatch.setattr(shelf.collection._rewriter, "_sealing", sealing)
    for number in range(3):
        shelf.add(f"Badge {number} expires.")
    seal = Held(monkeypatch, written=False)

    def pour() -> None:
        for number in range(4, 20):
            shelf.add(f"Badge {number} expires.")

    pouring = Thread(target=pour, daemon=True)
    with seal.during(lambda: shelf.add("Badge 3 expires.")):
        pouring.start()
        assert sealing.waits.wait(PATIENCE_SECONDS)
        assert len(shelf.contents()) == 8
        shelf.delete(next(one for one in shelf.library.documents("handbook", ALL)[0]))
        assert len(shelf.contents()) == 7
        assert seal.calls == 1
    pouring.join(PATIENCE_SECONDS)
    assert len(shelf.contents()) == 19
    assert seal.calls == 5
    assert len(shelf.search("badge", limit=40)) == 19
    shelf.reopen(close=False)
    assert len(shelf.contents()) == 19


def test_a_seal_and_a_merge_beside_each_other_lose_nothing(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf()
    for number in range(4):
        shelf.library.add_all("handbook", [badge(f"segment {number}"), badge(f"other {number}")])
        shelf.library.seal_where_old(-1.0)
    shelf.library.add_all("handbook", [badge(f"memtable {number}") for number in range(4)])
    wanted, change = states(shelf), Change(shelf)

    def seal() -> None:
        shelf.library.seal_where_old(-1.0)
        change.run(0, 5)

    def seal_again() -> None:
        change.run(5)
        shelf.library.seal_where_old(-1.0)

    with changing(seal, seal_again):
        shelf.library.compact_where_due()
    assert len(shelf.collection._published.snapshot.segments) == 3
    check_for_good(shelf, wanted[-1])


def test_a_collection_that_is_dropped_while_it_is_sealed_leaves_nothing(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Held(monkeypatch, written=True).during(lambda: prepared.library.seal_where_old(-1.0)):
        prepared.library.drop("handbook")
        prepared.library.create("handbook")
        prepared.add("Badge new expires.")
    assert list((prepared.files / "seg").iterdir()) == []
    assert list(prepared.contents().values()) == [("Badge new expires.",)]
    assert prepared.library.damaged() == {}
    check_sound(prepared)


def test_a_backup_of_an_instant_within_a_seal_is_whole(prepared: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, change = states(prepared), Change(prepared)
    with Held(monkeypatch, written=True).during(lambda: prepared.library.seal_where_old(-1.0)):
        change.run(0, 4)
        pinned = prepared.library.pin_files("handbook")
        change.run(4)
    with pinned:
        files = {name: b"".join(pinned.pieces(name)) for name in pinned.sizes}
    check_found(prepared, wanted[-1])
    again = prepared.copy("put back")
    again.library.close()
    for name in ("seg", "wal", "mf"):
        for path in (again.files / name).iterdir():
            path.unlink()
    for name, content in files.items():
        (again.files / name).write_bytes(content)
    again.reopen(close=False).accept_rollback("handbook")
    check_found(again, wanted[4])
    again.library.close()


def test_the_segment_of_a_seal_holds_no_document_that_was_deleted_before_it(prepared: Shelf) -> None:
    prepared.delete(next(one for one in prepared.library.documents("handbook", ALL)[0] if one.title == "memtable 1"))
    prepared.library.seal_where_old(-1.0)
    assert [segment.documents for segment in prepared.collection._published.snapshot.segments] == [4, 3]
    assert prepared.collection._store.manifest.deleted == frozenset()


def test_a_store_that_is_appended_to_goes_on_in_another_log_than_the_frozen(prepared: Shelf) -> None:
    store: Store = prepared.collection._store
    frozen = store.freeze_logs()
    assert {entry.file_id for entry in store.manifest.wals} == frozen
    assert store.freeze_logs() == frozen
    prepared.add("Badge new expires.")
    first, second = store.manifest.wals
    assert {first.file_id} == frozen
    assert first.end_bytes is not None
    assert second.end_bytes is None
    assert second.first_seq == 3


@pytest.mark.parametrize("written", [False, True])
def test_a_seal_that_a_stop_overtakes_writes_nothing_behind_it(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Another process may have the files by then."""
    stopped = prepared.library
    with Held(monkeypatch, written=written).during(lambda: stopped.seal_where_old(-1.0)):
        old = prepared.collection
        prepared.reopen()
        prepared.library.add("handbook", badge("new"))
        wanted = state(prepared)
        for write in (lambda: old.add(badge("newer")), old.compact, old.rotate, old.pin_files):
            with pytest.raises(Draining):
                write()
    assert len(wanted) == 9
    check_for_good(prepared, wanted)


def test_a_segment_that_cannot_be_opened_when_it_is_written_is_not_left(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, files = state(prepared), set((prepared.files / "seg").iterdir())

    def refuse(*_: object) -> None:
        raise Busy("Too many files are open.")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "open_segment", refuse)
        with pytest.raises(Busy):
            prepared.compact()
    assert set((prepared.files / "seg").iterdir()) == files
    check_for_good(prepared, wanted)


def test_that_a_dropped_collection_has_no_folder_is_no_damage_to_the_next_of_its_name(
    prepared: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = Store.write_segment, list[StoreDamaged]()

    def write_segment(store: Store, *arguments: Any, **options: Any) -> SegmentEntry:
        prepared.library.drop("handbook")
        try:
            return real(store, *arguments, **options)
        except StoreDamaged as error:
            failed.append(error)
            prepared.library.create("handbook")
            raise

    monkeypatch.setattr(Store, "write_segment", write_segment)
    prepared.library.seal_where_old(-1.0)
    assert len(failed) == 1
    assert prepared.library.damaged() == {}
