"""A kill, a power cut, and a full disk, at every step that changes the disk: nothing that was acknowledged is lost or
there twice.

Steps (faults.py) are those from the start of an ingestion to its end. After one fails the process does nothing more;
then a new one starts on what the disk holds, and the ingestion goes on by itself.
"""

import asyncio
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.types import FileState, Ingestion, IngestionState
from tests.ingest.bench import OPERATOR, Bench, ends
from tests.ingest.faults import DEATHS, Died, Disk, Fault, come_back, die, died, dying_at, run_full

EXPECTED = {
    "a.txt": "committed",
    "b.zip": "unpacked",
    "b.zip/x.txt": "committed",
    "b.zip/y.txt": "quarantined EMPTY",
    "c.eml": "committed",
    "c.eml/z.txt": "committed",
    "d.txt": "duplicate",
}


NEVER = 1 << 30


def bench_of(folder: Path) -> Bench:
    bench = Bench(folder)
    bench.write(a__txt="One.", b__zip="x.txt=In it.\ny.txt=no text", c__eml="Hello.\nz.txt=With it.", d__txt="One.")
    return bench


async def begin(bench: Bench) -> Ingestion | None:
    try:
        return await bench.start()
    except (ApplianceError, Died):
        return None


async def check_whole(bench: Bench, begun: Ingestion | None) -> None:
    """It, or another start of the same, comes to the right end, and of copies the refused file's alone is held."""
    if begun is None:
        begun = await bench.start()
    done = await bench.wait(begun)
    assert done.state is IngestionState.SUCCEEDED, done.problem
    assert ends(bench.files(done)) == EXPECTED
    assert bench.titles() == ["a.txt", "b.zip/x.txt", "c.eml", "c.eml/z.txt"]
    kept = {one.id.rpartition("-")[2] for one in bench.ingest.quarantined("clinic") if one.ingestion == done.id}
    assert [path.name for path in bench.held() if path.parents[1].name == done.id] == sorted(kept)
    assert len(kept) == 1


async def count_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    bench = bench_of(folder)
    disk = Disk(monkeypatch, bench.config.data_dir / "ingest", die)
    with disk.failing_at(1 << 30):
        await bench.wait(await bench.start())
    return disk.steps


@pytest.mark.parametrize(("fault", "left"), DEATHS)
@pytest.mark.long
async def test_a_kill_or_a_power_cut_at_any_step_loses_nothing_and_commits_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, left: str
) -> None:
    steps = await count_steps(tmp_path / "count", monkeypatch)
    assert steps > 60
    for step in range(steps + 1):
        await check_death(bench_of(tmp_path / str(step)), monkeypatch, step, fault, left)


@pytest.mark.parametrize(("fault", "left"), DEATHS)
async def test_what_was_told_at_its_end_outlives_a_kill_and_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, left: str
) -> None:
    await check_death(bench_of(tmp_path), monkeypatch, NEVER, fault, left)


async def test_a_folder_that_a_killed_daemon_made_and_did_not_sync_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path)
    with dying_at(NEVER, bench, monkeypatch, die, "nothing"):
        (bench.config.data_dir / "ingest").mkdir()
        await bench.ingest.open()
        begun = await bench.start()
        await bench.wait(begun)
        bench.ingest.stop()
        await bench.jobs.stop()
    bench.restart()
    await bench.ingest.open()
    await check_whole(bench, begun)


@pytest.mark.parametrize(("fault", "left"), DEATHS)
async def test_a_copy_that_was_purged_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, left: str
) -> None:
    bench = bench_of(tmp_path)
    await bench.run()
    with dying_at(NEVER, bench, monkeypatch, fault, left):
        assert await bench.ingest.purge(OPERATOR, all_=True) == 1
    assert bench.held() == []


async def check_death(bench: Bench, monkeypatch: pytest.MonkeyPatch, step: int, fault: Fault, left: str) -> None:
    told: dict[str, FileState] = {}
    has_ended = False
    with dying_at(step, bench, monkeypatch, fault, left):
        begun = await begin(bench)
        if begun:
            await died(bench, begun)
            told = {path: one.state for path, one in bench.files(begun).items() if one.time}
            has_ended = existing(bench, begun).state.ended
        bench.ingest.stop()
        await bench.jobs.stop()
    if has_ended:
        assert len(come_back(bench)) <= 1, f"step {step}: the key of a copy that was destroyed has come back"
    bench.restart()
    await bench.ingest.open()
    for path, state in told.items():
        assert bench.files(existing(bench, begun))[path].state is state, f"step {step}: what was told is not so"
    await check_whole(bench, next(iter(bench.ingest.list("clinic")), None))


def existing(bench: Bench, begun: Ingestion | None) -> Ingestion:
    assert begun
    return bench.ingest.get("clinic", begun.id)


@pytest.mark.long
async def test_a_full_disk_at_any_step_fails_it_and_it_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = await count_steps(tmp_path / "count", monkeypatch)
    for step in range(steps):
        bench = bench_of(tmp_path / str(step))
        disk = Disk(monkeypatch, bench.config.data_dir / "ingest", run_full)
        with disk.failing_at(step):
            begun = await begin(bench)
            if begun:
                stopped = await bench.wait(begun)
                assert stopped.state in (IngestionState.FAILED, IngestionState.SUCCEEDED), step
                assert stopped.state is IngestionState.SUCCEEDED or "No space is left" in stopped.problem
        if begun and bench.ingest.get("clinic", begun.id).state is IngestionState.FAILED:
            await bench.ingest.resume(OPERATOR, begun.name)
        await check_whole(bench, next(iter(bench.ingest.list("clinic")), None))


async def test_a_task_that_is_killed_in_a_thread_reaches_no_handler(tmp_path: Path) -> None:
    """The fault of these tests is one that the code under test cannot swallow."""
    with pytest.raises(Died):
        await asyncio.to_thread(die, "pwrite", ())
