"""The life of an ingestion: preview, approval, cancel, end."""

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import DiskFull, NotFound, QueueFull, SecondPerson, SourceGone, WrongState
from appliance.ingest import runs
from appliance.ingest.ledger import Plan
from appliance.types import (
    FileState,
    Ingestion,
    IngestionState,
    JobState,
    Provenance,
    SourceKind,
)
from tests.ingest.bench import (
    EVERYBODY,
    LIMITS,
    OPERATOR,
    RIVAL,
    SECOND,
    Bench,
    Gate,
    GatedExtractor,
    ends,
    until,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- preview ---------------------------------------------------------------------------------------------------------


async def test_a_preview_says_what_will_become_of_each_file_and_takes_nothing(bench: Bench) -> None:
    bench.write(a__txt="Known.")
    await bench.run()
    bench.write(b__txt="New.", c__txt="New.", d__exe="MZ")
    bench.stick.files["e.txt"] = bytes((1 << 20) + 1)
    waiting, files = await bench.run(approve=False)
    assert waiting.state is IngestionState.WAITING
    assert ends(files) == {
        "a.txt": "duplicate",
        "b.txt": "found",
        "c.txt": "duplicate",
        "d.exe": "quarantined UNKNOWN_TYPE",
        "e.txt": "quarantined TOO_LARGE",
    }
    assert "b.txt" in files["c.txt"].detail
    assert waiting.size_bytes == sum(map(len, bench.stick.files.values()))
    assert (bench.titles(), bench.held(), bench.ingest.quarantined("clinic")) == (["a.txt"], [], ())


async def test_what_a_preview_said_is_decided_anew_when_it_runs(bench: Bench) -> None:
    bench.write(a__txt="Known.")
    await bench.run()
    waiting, _ = await bench.run(approve=False)
    [known] = bench.library.documents("handbook", EVERYBODY)
    bench.library.delete("handbook", known.id, EVERYBODY)
    await bench.ingest.approve(OPERATOR, waiting.name)
    assert ends(bench.files(await bench.wait(waiting))) == {"a.txt": "committed"}


async def test_one_that_is_approved_from_the_start_reads_each_file_once(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    done, _ = await bench.run()
    assert (done.approver, bench.stick.copied) == ("olga", ["a.txt", "b.txt"])


async def test_one_that_is_approved_while_it_scans_goes_on_by_itself(bench: Bench) -> None:
    bench.write(a__txt="One.")
    begun = await bench.start(approve=False)
    approved = await bench.ingest.approve(SECOND, begun.name)
    assert (approved.state, approved.approver) == (IngestionState.SCANNING, "otto")
    done = await bench.wait(begun)
    assert (done.state, bench.titles()) == (IngestionState.SUCCEEDED, ["a.txt"])


# --- who may, and when -----------------------------------------------------------------------------------------------


async def test_where_a_second_person_must_approve_the_first_may_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, config=replace(LIMITS, ingest_approval="second"))
    bench.write(a__txt="One.")
    with pytest.raises(SecondPerson):
        await bench.start(approve=True)
    waiting, _ = await bench.run(approve=False)
    with pytest.raises(SecondPerson):
        await bench.ingest.approve(OPERATOR, waiting.name)
    await bench.ingest.approve(SECOND, waiting.name)
    done = await bench.wait(waiting)
    assert (done.state, done.operator, done.approver) == (IngestionState.SUCCEEDED, "olga", "otto")


async def test_a_bad_source_starts_nothing(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.start(source="sources/none")
    bench.stick.goes_after = 0
    with pytest.raises(SourceGone):
        await bench.start()
    assert (bench.jobs.list(), bench.ingest.list("clinic"), bench.library.collections()) == ((), (), ())


async def test_another_tenants_ingestion_is_not_there(bench: Bench) -> None:
    bench.write(a__exe="MZ")
    done, files = await bench.run()
    with pytest.raises(NotFound):
        bench.ingest.get("rival", done.name)
    with pytest.raises(NotFound):
        bench.ingest.files("rival", done.name)
    for call in (bench.ingest.approve, bench.ingest.resume, bench.ingest.cancel):
        with pytest.raises(NotFound):
            await call(RIVAL, done.name)
    with pytest.raises(NotFound):
        await bench.ingest.release(RIVAL, [files["a.exe"].id])
    assert bench.ingest.quarantined("rival") == ()


async def test_one_that_has_ended_is_neither_approved_nor_resumed_nor_cancelled(bench: Bench) -> None:
    done, _ = await bench.run()
    for call in (bench.ingest.approve, bench.ingest.resume, bench.ingest.cancel):
        with pytest.raises(WrongState):
            await call(OPERATOR, done.name)


async def test_too_many_that_have_not_ended_are_refused_and_another_tenants_do_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.ingest.service.MAX_OPEN", 2)
    for _ in range(2):
        await bench.run(approve=False)
    with pytest.raises(QueueFull):
        await bench.start()
    begun = await bench.start(caller=RIVAL)
    assert (await bench.wait(begun, "rival")).state is IngestionState.SUCCEEDED


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_cancelling_leaves_what_is_committed_and_destroys_the_copies_of_the_rest(bench: Bench) -> None:
    bench.write(**{f"n{number}__txt": f"Text {number}." for number in range(8)})
    gate = Gate()
    bench.library.after_add = gate
    begun = await bench.start()
    assert await asyncio.to_thread(gate.reached.wait, 30)
    cancelling = asyncio.create_task(bench.ingest.cancel(OPERATOR, begun.name))
    await asyncio.sleep(0)
    gate.open()
    cancelled = await cancelling
    assert cancelled.state is IngestionState.CANCELLED
    files = bench.files(cancelled)
    committed = [path for path, one in files.items() if one.state is FileState.COMMITTED]
    assert committed == bench.titles() != []
    assert {one.state for path, one in files.items() if path not in committed} <= {FileState.LEFT}
    assert bench.held() == []
    assert (await bench.ingest.cancel(OPERATOR, begun.name)).state is IngestionState.CANCELLED


async def test_cancelling_the_job_cancels_the_ingestion(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GatedExtractor())
    bench.write(a__txt="One.")
    begun = await bench.start()
    await until(lambda: bool(bench.held()))
    bench.jobs.cancel(begun.job.removeprefix("jobs/"))
    cancelled = await bench.wait(begun)
    assert bench.jobs.get(begun.job.removeprefix("jobs/")).state is JobState.CANCELLED
    assert (cancelled.state, bench.held(), bench.titles()) == (IngestionState.CANCELLED, [], [])


async def test_one_that_waits_is_cancelled_too(bench: Bench) -> None:
    bench.write(a__txt="One.")
    waiting, _ = await bench.run(approve=False)
    cancelled = await bench.ingest.cancel(OPERATOR, waiting.name)
    assert (cancelled.state, ends(bench.files(cancelled))) == (IngestionState.CANCELLED, {"a.txt": "left"})
    assert cancelled.end_time


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_tenants_flood_pushes_out_its_own_oldest_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, config=replace(LIMITS, ingestions_kept=2))
    theirs = await bench.start(caller=RIVAL)
    await bench.wait(theirs, "rival")
    mine = []
    for name in "abcd":
        bench.stick.files = {f"{name}.txt": b"no text"}
        mine.append((await bench.run())[0])
    assert [one.id for one in bench.ingest.list("clinic")] == [mine[3].id, mine[2].id]
    assert [one.id for one in bench.ingest.list("rival")] == [theirs.id]
    assert len(bench.held()) == 2
    await bench.restart_daemon()
    assert len(bench.ingest.list("clinic")) == 2


@pytest.mark.parametrize(
    ("plan", "approver", "state", "to_come"),
    [
        (Plan("s"), "", IngestionState.INTERRUPTED, IngestionState.SCANNING),
        (Plan("s"), "olga", IngestionState.INTERRUPTED, IngestionState.SCANNING),
        (Plan("s", listed=True), "", IngestionState.FAILED, IngestionState.SCANNING),
        (Plan("s", listed=True), "", IngestionState.WAITING, IngestionState.WAITING),
        (Plan("s", listed=True), "olga", IngestionState.FAILED, IngestionState.RUNNING),
    ],
)
async def test_what_comes_next_follows_from_what_is_done(
    bench: Bench, plan: Plan, approver: str, state: IngestionState, to_come: IngestionState
) -> None:
    now, _ = await bench.run()
    assert runs.next_state(replace(now, state=state, approver=approver), plan) is to_come


async def test_one_that_is_approved_at_any_moment_of_its_preview_goes_on(bench: Bench) -> None:
    bench.write(a__txt="One.")
    for turns in range(0, 120, 3):
        begun = await bench.start(approve=False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await bench.ingest.approve(SECOND, begun.name)
        await until(lambda name=begun.name: bench.ingest.get("clinic", name).state.ended)  # type: ignore[misc]
        assert bench.ingest.get("clinic", begun.name).state is IngestionState.SUCCEEDED


# --- at any moment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 5))
@pytest.mark.parametrize("verb", ["start", "approve", "resume"])
async def test_a_caller_that_goes_away_leaves_nothing_behind_on_which_nobody_works(
    bench: Bench, verb: str, steps: int
) -> None:
    bench.write(a__txt="One.")
    if verb == "approve":
        waiting = await bench.wait(await bench.start(approve=False))
        call = bench.ingest.approve(OPERATOR, waiting.name)
    elif verb == "resume":
        bench.stick.goes_after = 1
        stopped = await bench.wait(await bench.start())
        assert stopped.state is IngestionState.INTERRUPTED
        bench.stick.goes_after = 1 << 30
        call = bench.ingest.resume(OPERATOR, stopped.name)
    else:
        call = bench.ingest.start(OPERATOR, "sources/usb", "handbook", EVERYBODY, True)
    calling = asyncio.create_task(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    while not calling.done():
        calling.cancel()
        await asyncio.sleep(0)
    for one in bench.ingest.list("clinic"):
        now = await bench.wait(one)
        assert now.state not in (IngestionState.SCANNING, IngestionState.RUNNING)
        assert now.state is not IngestionState.WAITING or not now.approver


async def test_one_that_was_cancelled_is_not_begun_by_who_approved_it_too_late(bench: Bench) -> None:
    bench.write(a__txt="One.")
    waiting = await bench.wait(await bench.start(approve=False))
    ledger = bench.ingest._ledger("clinic", waiting.name)
    await bench.ingest.cancel(OPERATOR, waiting.name)
    with pytest.raises(WrongState):
        ledger.write(approver="otto", state=IngestionState.RUNNING)
    assert bench.ingest.get("clinic", waiting.name).state is IngestionState.CANCELLED


async def test_one_that_has_succeeded_stays_so_when_its_job_is_cancelled_while_it_tidies(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__txt="One.", b__txt="no text")
    begun = await bench.wait(await bench.start(approve=False))
    gate = Gate()
    monkeypatch.setattr(bench.ingest._ledgers, "prune", gate)
    begun = await bench.ingest.approve(OPERATOR, begun.name)
    await until(gate.reached.is_set)
    bench.jobs.cancel(begun.job.removeprefix("jobs/"))
    gate.open()
    assert (await bench.wait(begun)).state is IngestionState.SUCCEEDED


async def test_one_that_has_succeeded_stays_so_when_there_is_no_room_to_tidy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__txt="One.")
    begun = await bench.wait(await bench.start(approve=False))

    def full(tenant: str) -> None:
        raise DiskFull("No space is left.")

    monkeypatch.setattr(bench.ingest._ledgers, "prune", full)
    await bench.ingest.approve(OPERATOR, begun.name)
    assert (await bench.wait(begun)).state is IngestionState.SUCCEEDED


async def test_files_of_what_waits_are_not_kept_in_memory(bench: Bench) -> None:
    bench.write(a__txt="One.", b__exe="MZ")
    waiting = await bench.wait(await bench.start(approve=False))
    ledger = bench.ingest._ledger("clinic", waiting.name)
    assert ledger._items is None
    assert ledger.ingestion.counts == {FileState.FOUND: 1, FileState.QUARANTINED: 1}
    assert ends(bench.files(waiting)) == {"a.txt": "found", "b.exe": "quarantined UNKNOWN_TYPE"}


async def test_files_are_told_in_pages_that_nothing_shifts(bench: Bench) -> None:
    bench.write(a__zip="x.txt=In.\ny.txt=no text", b__txt="One.", c__exe="MZ")
    done, files = await bench.run()
    whole = [one.id for one in files.values()]
    told, after = list[str](), ""
    while page := bench.ingest.files("clinic", done.name, (), after, 2):
        told, after = [*told, *(one.id for one in page)], page[-1].id
    assert told == whole
    bad = bench.ingest.files("clinic", done.name, (FileState.QUARANTINED,), whole[2], 9)
    assert [one.path for one in bad] == ["c.exe"]


# --- previews that nobody approves -----------------------------------------------------------------------------------


async def test_a_preview_that_nobody_approves_goes_after_its_days(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "TEND_SECONDS", 0.01)
    bench.write(a__txt="One.")
    waiting, _ = await bench.run(approve=False)
    tending = asyncio.create_task(bench.ingest.tend())
    await asyncio.sleep(0.1)
    assert bench.ingest.get("clinic", waiting.name).state is IngestionState.WAITING
    monkeypatch.setattr(runs, "PREVIEW_KEPT", timedelta(0))
    await until(lambda: bench.ingest.get("clinic", waiting.name).state is IngestionState.CANCELLED)
    tending.cancel()
    assert (bench.ingest.unended(), bench.titles()) == ([], [])
    assert ends(bench.files(waiting)) == {"a.txt": "left"}
    assert "Nobody approved it" in bench.ingest.get("clinic", waiting.name).problem


async def test_the_days_of_a_preview_count_from_when_it_was_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "TEND_SECONDS", 0.01)
    bench.write(a__txt="One.")
    waiting, _ = await bench.run(approve=False)
    old = datetime.now(UTC) - runs.PREVIEW_KEPT - timedelta(seconds=1)
    ledger = bench.ingest._ledgers.get("clinic", waiting.id)
    ledger.tell(create_time=old)  # it was interrupted for days
    tending = asyncio.create_task(bench.ingest.tend())
    await asyncio.sleep(0.1)
    assert bench.ingest.get("clinic", waiting.name).state is IngestionState.WAITING
    os.utime(ledger.folder / "log", (old.timestamp(), old.timestamp()))
    await until(lambda: bench.ingest.get("clinic", waiting.name).state is IngestionState.CANCELLED)
    tending.cancel()


def test_what_a_watch_saw_and_what_came_here_waits_for_as_long_as_it_takes() -> None:
    old = datetime.now(UTC) - runs.PREVIEW_KEPT - timedelta(seconds=1)
    origin = Provenance(SourceKind.FOLDER, "/srv/drop")
    waits = Ingestion("7f", "clinic", "handbook", EVERYBODY, origin, "olga", IngestionState.WAITING, old)
    preview = Plan("sources/usb", listed=True)
    assert runs.is_abandoned(waits, preview)
    assert not runs.is_abandoned(waits, replace(preview, automatic=True))
    assert not runs.is_abandoned(waits, replace(preview, source=""))  # sent or released: held, and all there is of it
    assert not runs.is_abandoned(replace(waits, create_time=old + timedelta(seconds=60)), preview)
    for state in set(IngestionState) - {IngestionState.WAITING}:
        assert not runs.is_abandoned(replace(waits, state=state), preview)
