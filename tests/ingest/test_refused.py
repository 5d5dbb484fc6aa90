"""Refused files: kept within a bound, released, purged."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import (
    DiskFull,
    DocumentRefused,
    Forbidden,
    InvalidArgument,
    NotFound,
    NotKept,
    QueueFull,
    SecondPerson,
)
from appliance.ingest import work
from appliance.ingest.ledger import Item, Ledger
from appliance.types import Extracted, FileOutcome, FileState, Ingestion, IngestionState, Principal, Role
from tests.ingest.bench import EVERYBODY, LIMITS, OPERATOR, RIVAL, SECOND, Bench, PlainExtractor, ends


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_refusals_of_all_ingestions_are_listed_newest_first(bench: Bench) -> None:
    bench.write(a__txt="no text", b__txt="no text", c__txt="One.")
    await bench.run()
    bench.stick.files = {"d.exe": b"MZ"}
    await bench.run()
    assert [one.path for one in bench.ingest.quarantined("clinic")] == ["d.exe", "b.txt", "a.txt"]
    await bench.restart_daemon()
    assert [one.path for one in bench.ingest.quarantined("clinic")] == ["d.exe", "b.txt", "a.txt"]


async def test_a_listing_says_of_which_refused_files_the_bytes_are_kept(bench: Bench) -> None:
    bench.write(a__txt="no text", b__exe="MZ", c__txt="One.")
    done, files = await bench.run()
    assert {path: one.kept for path, one in files.items()} == {"a.txt": True, "b.exe": False, "c.txt": False}
    assert [(one.path, one.kept) for one in bench.ingest.quarantined("clinic")] == [("b.exe", False), ("a.txt", True)]
    await bench.ingest.purge(OPERATOR, all_=True)
    assert not any(one.kept for one in (*bench.ingest.quarantined("clinic"), *bench.files(done).values()))


async def test_the_same_bytes_refused_again_are_kept_once_and_the_newest_can_be_released(bench: Bench) -> None:
    bench.write(a__txt="no text")
    _, first = await bench.run()
    bench.write(b__txt="no text")  # another file with these bytes
    done, second = await bench.run()
    assert len(bench.held()) == 2
    assert [one.kept for one in bench.ingest.quarantined("clinic")] == [True, True, False]
    [old] = [one for one in bench.ingest.quarantined("clinic") if not one.kept]
    assert (old.id, old.detail.endswith("Its bytes are kept where it was refused again.")) == (first["a.txt"].id, True)
    with pytest.raises(NotKept):
        await bench.ingest.release(OPERATOR, [old.id])
    await bench.wait(await bench.ingest.release(OPERATOR, [second["a.txt"].id]))
    assert done.counts[FileState.QUARANTINED] == 2


async def test_the_same_bytes_for_other_readers_are_kept_for_each(bench: Bench) -> None:
    bench.write(a__txt="no text")
    await bench.run()
    await bench.run(readers=frozenset({"role:admin"}))
    assert len(bench.held()) == 2


async def test_a_file_that_is_released_is_read_anew_from_the_box_and_where_it_came_from_stays(bench: Bench) -> None:
    bench.write(a__txt="no text", b__txt="no text")
    first, files = await bench.run()
    bench.extractor = _Mended()
    await bench.restart_daemon()
    bench.stick.goes_after = 0
    released = await bench.ingest.release(OPERATOR, [files["a.txt"].id])
    done = await bench.wait(released)
    assert (done.state, ends(bench.files(done))) == (IngestionState.SUCCEEDED, {"a.txt": "committed"})
    assert (done.provenance, done.readers) == (first.provenance, EVERYBODY)
    [document] = bench.library.documents("handbook", EVERYBODY)
    assert document.source == "usb://4C530001/ABCD-1234/a.txt"
    assert [one.released for one in bench.files(first).values()] == [True, False]


async def test_a_member_that_is_released_keeps_the_archive_that_it_lay_in_however_often_it_is(bench: Bench) -> None:
    bench.write(site__zip="inner.zip=a.txt=no text")
    _, files = await bench.run()
    for _ in range(2):
        [refused] = [one for one in files.values() if one.state is FileState.QUARANTINED]
        files = bench.files(await bench.wait(await bench.ingest.release(OPERATOR, [refused.id])))
    bench.extractor = _Mended()
    await bench.restart_daemon()
    [refused] = files.values()
    await bench.wait(await bench.ingest.release(OPERATOR, [refused.id]))
    [document] = bench.library.documents("handbook", EVERYBODY)
    assert (document.title, document.metadata["container"]) == ("site.zip/inner.zip/a.txt", "site.zip/inner.zip")


class _Mended(PlainExtractor):
    async def extract(self, fd: int, name: str) -> Extracted:
        return Extracted("text/plain", "plain 2", ("mended",))


async def test_a_file_that_was_for_others_is_released_for_these(bench: Bench) -> None:
    bench.write(a__txt="Pay.")
    await bench.run()
    bench.write(a__txt="Pay, and more.")
    _, files = await bench.run(readers=frozenset({"role:admin"}))
    assert ends(files) == {"a.txt": "quarantined READERS_DIFFER"}
    done = await bench.wait(await bench.ingest.release(OPERATOR, [files["a.txt"].id], EVERYBODY))
    assert ends(bench.files(done)) == {"a.txt": "committed"}
    assert bench.titles() == ["a.txt"]


async def test_what_cannot_be_released_is_named(bench: Bench) -> None:
    bench.write(a__txt="no text", b__exe="MZ", c__txt="One.")
    _, files = await bench.run()
    _, others = await bench.run()
    for ids, error in (
        ([files["b.exe"].id], NotKept),
        ([files["a.txt"].id, others["a.txt"].id], InvalidArgument),
        ([], InvalidArgument),
        ([files["c.txt"].id], NotFound),
        (["none-1"], NotFound),
        (["x"], NotFound),
    ):
        with pytest.raises(error):
            await bench.ingest.release(OPERATOR, ids)
    with pytest.raises(NotFound):
        await bench.ingest.release(RIVAL, [files["a.txt"].id])
    assert len(bench.ingest.list("clinic")) == 2


async def test_files_are_named_by_the_beginning_of_their_ingestions_id_where_it_is_of_one_alone(bench: Bench) -> None:
    bench.write(a__txt="no text", b__txt="no text ")
    bench.stick.files["b.txt"] = b"no text"
    done, files = await bench.run()
    short = f"{done.id[:4]}-{files['a.txt'].id.rpartition('-')[2]}"
    assert await bench.ingest.purge(OPERATOR, [short, files["a.txt"].id]) == 1
    assert len(bench.held()) == 1
    for ids in ([f"{done.id[:3]}-0"], [f"{done.id}0-0"], ["-0"]):
        with pytest.raises(NotFound):
            await bench.ingest.purge(OPERATOR, ids)


async def test_a_release_needs_a_second_person_where_an_ingestion_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, config=replace(LIMITS, ingest_approval="second"))
    bench.write(a__txt="no text")
    first, _ = await bench.run(approve=False)
    await bench.ingest.approve(SECOND, first.name)
    refused = bench.files(await bench.wait(first))["a.txt"]
    released = await bench.ingest.release(OPERATOR, [refused.id])
    assert (released.state, released.job) == (IngestionState.WAITING, "")
    with pytest.raises(SecondPerson):
        await bench.ingest.approve(OPERATOR, released.name)
    await bench.ingest.approve(SECOND, released.name)
    assert ends(bench.files(await bench.wait(released))) == {"a.txt": "quarantined EMPTY"}


async def test_purged_bytes_are_gone_and_what_became_of_the_file_stays_said(bench: Bench) -> None:
    bench.write(a__txt="no text", b__txt="no text ", c__exe="MZ")
    bench.stick.files["b.txt"] = b"no text"
    done, files = await bench.run()
    assert len(bench.held()) == 2
    assert await bench.ingest.purge(OPERATOR, [files["a.txt"].id]) == 1
    assert len(bench.held()) == 1
    assert "not kept" in bench.files(done)["a.txt"].detail
    assert await bench.ingest.purge(RIVAL, all_=True) == 0
    assert await bench.ingest.purge(OPERATOR, all_=True) == 1
    assert await bench.ingest.purge(OPERATOR, all_=True) == 0
    assert bench.held() == []
    assert len(bench.ingest.quarantined("clinic")) == 3
    for ids, every in (((), False), ((files["a.txt"].id,), True)):
        with pytest.raises(InvalidArgument):
            await bench.ingest.purge(OPERATOR, ids, all_=every)


async def test_the_oldest_go_first_where_too_much_is_kept_and_it_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, _Refusing(), replace(LIMITS, quarantine_max_mib=1))
    for tenant_caller in (OPERATOR, RIVAL):
        bench.stick.files = {"a.txt": b"x" * (900 << 10)}
        begun = await bench.start(caller=tenant_caller)
        await bench.wait(begun, tenant_caller.tenant)
    bench.stick.files = {"b.txt": b"y" * (900 << 10)}
    await bench.run()
    first, second = reversed(bench.ingest.quarantined("clinic"))
    assert (first.path, second.path) == ("a.txt", "b.txt")
    assert "not kept" in first.detail
    assert "not kept" not in second.detail
    assert len(bench.held()) == 2, "another tenant's stays"


async def test_an_old_ledger_that_cannot_be_read_stops_no_ingestion_and_keeps_no_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SHED_EVERY_BYTES", 1)
    bench = Bench(tmp_path, _Refusing(), replace(LIMITS, quarantine_max_mib=1))
    for name in ("a.txt", "b.txt", "c.txt"):
        bench.stick.files = {name: name.encode() * (180 << 10)}
        done = await bench.wait(await bench.start())
        assert done.state is IngestionState.SUCCEEDED
        if name == "a.txt":
            path = bench.config.data_dir / "ingest" / "clinic" / done.id / "log"
            raw = path.read_bytes()
            path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert {held.parts[-3] for held in bench.held()} == {path.parent.name, done.id}
    assert {name.removeprefix("ingestions/") for _, name in bench.ingest.damaged()} == {path.parent.name}


class _Refusing(PlainExtractor):
    async def extract(self, fd: int, name: str) -> Extracted:
        raise DocumentRefused("CRASHED", "Its parser crashed.")


async def test_a_release_counts_as_an_ingestion_that_has_not_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__txt="no text")
    _, files = await bench.run()
    monkeypatch.setattr("appliance.ingest.service.MAX_OPEN", 0)
    with pytest.raises(QueueFull):
        await bench.ingest.release(OPERATOR, [files["a.txt"].id])
    assert bench.ingest.list("clinic")[0].counts == {FileState.QUARANTINED: 1}


async def test_refusals_are_listed_in_pages(bench: Bench) -> None:
    bench.stick.files = {f"{name}.exe": b"MZ" for name in "abc"}
    await bench.run()
    await bench.run()
    whole = bench.ingest.quarantined("clinic")
    told, after = list[FileOutcome](), ""
    while page := bench.ingest.quarantined("clinic", after, 2):
        told, after = [*told, *page], page[-1].id
    assert (tuple(told), len(told)) == (whole, 6)
    assert bench.ingest.quarantined("clinic", "beef-1", 2) == ()


async def test_who_may_not_read_a_refused_file_does_not_release_it_to_himself(bench: Bench) -> None:
    bench.write(a__txt="no text")
    secret = frozenset({"group:hr"})
    first, files = await bench.run(readers=secret, caller=SECOND)
    ids = [files["a.txt"].id]
    with pytest.raises(Forbidden):
        await bench.ingest.release(OPERATOR, ids, frozenset({"user:olga"}))
    assert [one.id for one in bench.ingest.list("clinic")] == [first.id]
    for caller in (SECOND, Principal("clinic", "root", Role.ADMIN), Principal("clinic", "h", Role.OPERATOR, secret)):
        assert (await bench.ingest.release(caller, ids, EVERYBODY)).readers == EVERYBODY
    assert (await bench.ingest.release(OPERATOR, ids)).readers == secret


async def test_what_is_stored_for_others_is_kept_to_be_released_once_that_was_changed(bench: Bench) -> None:
    bench.write(a__txt="Pay.")
    _, stored = await bench.run()
    _, files = await bench.run(readers=frozenset({"role:admin"}))
    assert ends(files) == {"a.txt": "quarantined READERS_DIFFER"}
    bench.library.delete("handbook", stored["a.txt"].document.rpartition("/")[2], EVERYBODY)
    done = await bench.wait(await bench.ingest.release(OPERATOR, [files["a.txt"].id]))
    assert ends(bench.files(done)) == {"a.txt": "committed"}


async def test_a_release_that_fails_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write(a__txt="no text", b__txt="no text")
    done, files = await bench.run()
    before = bench.held()

    def full(tenant: str) -> None:
        raise DiskFull("No space is left.")

    monkeypatch.setattr(bench.ingest._ledgers, "prune", full)
    with pytest.raises(DiskFull):
        await bench.ingest.release(OPERATOR, [one.id for one in files.values()])
    assert (bench.held(), [one.id for one in bench.ingest.list("clinic")]) == (before, [done.id])
    assert not list(bench.config.data_dir.glob("ingest/clinic/*/held/.*"))


async def test_a_release_goes_on_where_the_old_ingestion_cannot_be_told_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__txt="no text")
    _, files = await bench.run()
    real = Ledger.write

    def full(self: Ledger, items: Iterable[Item] = (), **changes: object) -> Ingestion:
        items = tuple(items)
        if any(item.outcome.released for item in items):
            raise DiskFull("No space is left to write the ledger.")
        return real(self, items, **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "write", full)
    released = await bench.wait(await bench.ingest.release(OPERATOR, [files["a.txt"].id]))
    assert released.state is IngestionState.SUCCEEDED


async def test_refused_files_are_let_go_while_an_ingestion_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SHED_EVERY_BYTES", 1 << 20)
    bench = Bench(tmp_path, _Refusing(), replace(LIMITS, quarantine_max_mib=1))
    bench.stick.files = {f"{number:03}.txt": os.urandom(200 << 10) for number in range(200)}
    most = 0
    real = bench.ingest._quarantine.hold

    def hold(*given: object) -> None:
        nonlocal most
        real(*given)  # type: ignore[arg-type]
        ended = bench.ingest.list("clinic")[0].counts.get(FileState.QUARANTINED, 0)
        most = max(most, len(bench.held()) - (200 - ended) * (ended == 200))

    monkeypatch.setattr(bench.ingest._quarantine, "hold", hold)
    monkeypatch.setattr(work, "HELD_AHEAD_BYTES", 1 << 20)
    await bench.run()
    assert most < 150
