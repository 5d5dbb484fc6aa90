"""An ingestion that stops at any point, for its source went away or the daemon ended, goes on from there."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import DiskFull, SourceGone
from appliance.ingest import runs
from appliance.ingest.ledger import Item, Ledger
from appliance.ingest.sealed_log import HEADER_BYTES
from appliance.types import (
    FileState,
    Ingestion,
    IngestionState,
)
from tests.ingest.bench import (
    OPERATOR,
    STICK,
    Bench,
    GatedExtractor,
    MemoryStick,
    PlainExtractor,
    ends,
    until,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", range(8))
@pytest.mark.parametrize("approve", [True, False])
async def test_a_stick_pulled_at_any_call_interrupts_it_and_it_goes_on_once_that_is_back(
    bench: Bench, calls: int, approve: bool
) -> None:
    bench.write(a__txt="One.", b__txt="Two.", c__txt="no text", d__zip="e.txt=Three.")
    bench.stick.goes_after = calls + 1
    begun = await bench.start(approve)
    stopped = await bench.wait(begun)
    if stopped.state is IngestionState.INTERRUPTED:
        assert "pulled" in stopped.problem
        bench.stick.goes_after = 0
        if any(one.state is not FileState.HELD for one in bench.files(stopped).values() if not one.time):
            with pytest.raises(SourceGone):
                await bench.ingest.resume(OPERATOR, begun.name)
        bench.stick.goes_after = 1 << 30
        stopped = await bench.wait(await bench.ingest.resume(OPERATOR, begun.name))
    bench.stick.goes_after = 1 << 30
    if not approve:
        assert stopped.state is IngestionState.WAITING
        await bench.ingest.approve(OPERATOR, begun.name)
        stopped = await bench.wait(begun)
    assert stopped.state is IngestionState.SUCCEEDED
    assert ends(bench.files(stopped)) == {
        "a.txt": "committed",
        "b.txt": "committed",
        "c.txt": "quarantined EMPTY",
        "d.zip": "unpacked",
        "d.zip/e.txt": "committed",
    }
    assert sorted(bench.titles()) == ["a.txt", "b.txt", "d.zip/e.txt"]


async def test_what_was_copied_before_the_stick_was_pulled_is_committed_without_it(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.", c__txt="Three.")
    bench.stick.goes_after = 4  # two lists, two copies
    begun = await bench.start()
    stopped = await bench.wait(begun)
    assert stopped.state is IngestionState.INTERRUPTED
    assert bench.titles() == ["a.txt", "b.txt"]
    assert ends(bench.files(stopped)) == {"a.txt": "committed", "b.txt": "committed", "c.txt": "found"}


async def test_a_stick_that_comes_back_goes_on_by_itself_where_it_was_approved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "TEND_SECONDS", 0.01)
    bench.write(a__txt="One.")
    bench.sources.sticks["sources/two"] = MemoryStick({"b.txt": b"Two."}, STICK)
    bench.stick.goes_after = bench.sources.sticks["sources/two"].goes_after = 1
    approved, not_approved = await bench.start(), await bench.start(approve=False, source="sources/two")
    assert (await bench.wait(approved)).state is (await bench.wait(not_approved)).state is IngestionState.INTERRUPTED
    tending = asyncio.create_task(bench.ingest.tend())
    bench.stick.goes_after = bench.sources.sticks["sources/two"].goes_after = 1 << 30
    await until(lambda: bench.ingest.get("clinic", approved.id).state is IngestionState.SUCCEEDED)
    assert bench.ingest.get("clinic", not_approved.id).state is IngestionState.INTERRUPTED
    tending.cancel()


async def test_one_that_is_resumed_twice_at_once_leaves_no_source_open(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    bench.stick.goes_after = 2
    stopped = await bench.wait(await bench.start())
    bench.stick.goes_after = 1 << 30
    await asyncio.gather(*(bench.ingest.resume(OPERATOR, stopped.name) for _ in range(2)))
    assert (await bench.wait(stopped)).state is IngestionState.SUCCEEDED
    assert all(source.closed for source in bench.sources.opened)


async def test_another_stick_in_the_same_place_is_not_gone_on_with(bench: Bench) -> None:
    bench.write(a__txt="One.")
    bench.stick.goes_after = 1
    begun = await bench.start()
    await bench.wait(begun)
    bench.stick.goes_after, bench.stick.provenance = 1 << 30, replace(STICK, volume="FFFF-0000")
    with pytest.raises(SourceGone, match="Another stick"):
        await bench.ingest.resume(OPERATOR, begun.name)
    assert bench.ingest.get("clinic", begun.id).state is IngestionState.INTERRUPTED


# --- restart ---------------------------------------------------------------------------------------------------------


async def test_all_that_is_known_of_an_ingestion_is_known_after_a_restart(bench: Bench) -> None:
    bench.write(a__txt="One.", b__exe="MZ", c__zip="d.txt=Two.")
    done, files = await bench.run()
    waiting, previewed = await bench.run(approve=False)
    await bench.restart_daemon()
    assert bench.ingest.list("clinic") == (
        replace(waiting, job=bench.ingest.get("clinic", waiting.id).job),
        replace(done, job=bench.ingest.get("clinic", done.id).job),
    )
    assert bench.files(done) == files
    assert bench.files(waiting) == previewed
    assert [one.path for one in bench.ingest.quarantined("clinic")] == ["b.exe"]


async def test_one_that_was_worked_on_goes_on_after_a_restart_without_the_stick_where_all_is_held(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, GatedExtractor())
    bench.write(a__txt="One.", b__txt="Two.")
    begun = await bench.start()
    await until(lambda: len(bench.held()) == 2)
    await until(lambda: all(one.state is FileState.HELD for one in bench.files(begun).values()))
    bench.extractor = PlainExtractor()
    bench.stick.goes_after = 0
    await bench.restart_daemon()
    done = await bench.wait(begun)
    assert (done.state, bench.titles(), bench.held()) == (IngestionState.SUCCEEDED, ["a.txt", "b.txt"], [])


async def test_a_copy_that_no_ledger_knows_is_destroyed_at_the_start(bench: Bench) -> None:
    bench.write(a__txt="no text")
    done, _ = await bench.run()
    [kept] = bench.held()
    (kept.parent / "77").write_bytes(kept.read_bytes())
    (kept.parents[2] / "0123456789abcdef").mkdir()
    await bench.restart_daemon()
    assert bench.held() == [kept]
    assert [path.name for path in kept.parents[2].iterdir() if path.is_dir()] == [done.id]


async def test_copies_that_a_full_disk_kept_out_of_the_ledger_go_when_it_is_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.write

    def full(self: Ledger, items: Iterable[Item] = (), **changes: object) -> Ingestion:
        items = tuple(items)
        if any(item.container >= 0 for item in items):
            raise DiskFull("No space is left to write the ledger.")
        return real(self, items, **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "write", full)
    bench.write(a__zip="b.txt=One.\nc.txt=Two.")
    stopped, _ = await bench.run()
    assert (stopped.state, len(bench.held())) == (IngestionState.FAILED, 3)
    await bench.ingest.cancel(OPERATOR, stopped.name)
    assert bench.held() == []


async def test_a_daemon_that_ends_cancels_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GatedExtractor())
    bench.write(a__txt="One.")
    begun = await bench.start()
    await until(lambda: bool(bench.held()))
    bench.ingest.stop()
    await bench.jobs.stop()
    assert bench.ingest.get("clinic", begun.id).state is IngestionState.RUNNING
    assert bench.held()


async def test_a_ledger_that_lost_its_first_record_is_named_and_the_others_open(bench: Bench) -> None:
    bench.write(a__txt="One.")
    first, _ = await bench.run()
    second, _ = await bench.run()
    path = bench.config.data_dir / "ingest" / "clinic" / first.id / "log"
    path.write_bytes(path.read_bytes()[: HEADER_BYTES + 5])
    await bench.restart_daemon()
    assert [one.id for one in bench.ingest.list("clinic")] == [second.id]
    assert list(bench.ingest.damaged()) == [("clinic", first.name)]
