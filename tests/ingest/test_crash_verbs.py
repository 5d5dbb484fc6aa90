"""A kill and a power cut at every step of a release, of an upload's end and of what a watch takes: nothing that was
acknowledged is lost, nothing is there twice, and neither a byte in the clear nor a copy that nobody knows is left.

Whoever was told nothing does it again, as clients and watches do.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, NotFound
from appliance.ingest.sources import Watcher
from appliance.types import Extracted, FileState, IngestionState, Watch
from tests.ingest.bench import EVERYBODY, OPERATOR, Bench, PlainExtractor
from tests.ingest.faults import DEATHS, Died, Disk, Fault, die, died, dying_at
from tests.ingest.sources.places import MIB, Place

SECRET = b"s" * 32
MARK = "MARKER of what is in the file"
AT_ONCE = Watch("handbook", EVERYBODY, approve=True, settle_polls=1)


@dataclass
class Mended(PlainExtractor):
    """Reads what it could not read before, once it may."""

    is_mended: bool = False

    async def extract(self, fd: int, name: str) -> Extracted:
        if self.is_mended and name.endswith(".txt"):
            return Extracted("text/plain", "plain 2", (f"{MARK}, mended.",))
        return await super().extract(fd, name)


@dataclass
class Trial:
    """What is done to a bench under faults, and again after a restart where it was not acknowledged.

    told: the ingestions that it was told of. kept: how many copies stay held when all has ended.
    """

    bench: Bench
    titles: tuple[str, ...]
    kept: int = 0
    told: list[str] = field(default_factory=list)
    act: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
    again: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)


async def a_release(folder: Path) -> Trial:
    """Of a refused member of an archive."""
    extractor = Mended()
    bench = Bench(folder, extractor)
    bench.write(b__zip="x.txt=no text")
    _, files = await bench.run()
    extractor.is_mended = True
    trial = Trial(bench, ("b.zip/x.txt",), kept=1)

    async def act() -> None:
        trial.told.append((await bench.ingest.release(OPERATOR, [files["b.zip/x.txt"].id])).id)

    trial.act = trial.again = act
    return trial


async def an_uploads_end(folder: Path) -> Trial:
    bench = Bench(folder)
    text = f"{MARK}, sent.".encode()
    upload = await bench.ingest.begin_upload(OPERATOR, "rules.txt", "handbook", EVERYBODY)
    await bench.ingest.append(OPERATOR, upload, 0, text)
    trial = Trial(bench, ("rules.txt",))

    async def act() -> None:
        trial.told.append((await bench.ingest.finish(OPERATOR, upload, sha256(text).hexdigest())).id)

    async def again() -> None:
        with suppress(NotFound):  # it is an ingestion by now
            assert bench.ingest.upload_size(OPERATOR, upload) == len(text), "what was acknowledged is there"
            await act()

    trial.act, trial.again = act, again
    return trial


async def what_a_watch_takes(folder: Path) -> Trial:
    """Of a real folder, by a real watch with its list of what was taken."""
    drop = folder / "drop"
    put_files(drop, "a.txt", "b.txt")
    bench, place = Bench(folder / "box"), Place(folder)
    bench.sources = place.sources  # type: ignore[assignment]
    bench.restart()
    await place.sources.watch("clinic", str(drop), False, AT_ONCE)
    trial = Trial(bench, ("a.txt", "b.txt"))

    async def look() -> None:
        """As a new daemon does, until it finds nothing more to do."""
        watches = bench.config.data_dir / "ingest" / "watches-of-a-test"
        watcher = Watcher(place.sources, place.plugged, watches, SECRET, 0.01, MIB)
        for _ in range(3):
            await asyncio.gather(*watcher.look(bench.ingest.take))

    trial.act = trial.again = look
    return trial


def put_files(drop: Path, *names: str) -> None:
    drop.mkdir(parents=True)
    for name in names:
        (drop / name).write_text(f"{MARK}, in {name}.")


Make = Callable[[Path], Awaitable[Trial]]
MAKERS: list[Make] = [a_release, an_uploads_end, what_a_watch_takes]


async def count_steps(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    trial = await make(folder)
    disk = Disk(monkeypatch, trial.bench.config.data_dir / "ingest", die)
    with disk.failing_at(1 << 30):
        await trial.act()
        await all_ended(trial.bench)
    await check(trial)
    return disk.steps


async def all_ended(bench: Bench) -> None:
    for one in bench.ingest.list("clinic"):
        if bench.ingest.get("clinic", one.id).job:
            await died(bench, one)


async def check(trial: Trial) -> None:
    """Every ingestion has come to a good end, and the box holds what it should, once."""
    bench = trial.bench
    for one in bench.ingest.list("clinic"):
        done = await bench.wait(one)
        assert done.state is IngestionState.SUCCEEDED, done.problem
    assert trial.told == [] or trial.told[-1] in {one.id for one in bench.ingest.list("clinic")}
    assert tuple(sorted(bench.titles())) == trial.titles
    assert len(bench.held()) == trial.kept
    assert not list(bench.config.data_dir.glob("ingest/clinic/uploads/*"))
    assert not list(bench.config.data_dir.rglob(".new-*"))
    assert MARK.encode() not in bench.bytes_on_disk()
    for document in bench.library.documents("handbook", EVERYBODY):
        assert document.metadata.get("container", "") == document.title.rpartition("/")[0]


async def acknowledged(trial: Trial) -> bool:
    try:
        await trial.act()
    except (ApplianceError, Died):
        return False
    return True


@pytest.mark.parametrize(("fault", "left"), DEATHS)
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.long
async def test_a_kill_or_a_power_cut_at_any_step_loses_nothing_doubles_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, fault: Fault, left: str
) -> None:
    steps = await count_steps(make, tmp_path / "count", monkeypatch)
    assert steps > 20
    for step in range(steps):
        trial = await make(tmp_path / str(step))
        bench = trial.bench
        with dying_at(step, bench, monkeypatch, fault, left):
            was_told = await acknowledged(trial)
            await all_ended(bench)
            before = told_states(bench)
            bench.ingest.stop()
            await bench.jobs.stop()
        assert MARK.encode() not in bench.bytes_on_disk(), f"step {step}"
        bench.restart()
        await bench.ingest.open()
        for one, files in before.items():
            now = {file.id: file.state for file in bench.ingest.files("clinic", one)}
            assert files.items() <= now.items(), f"step {step}: what was told is not so"
        if not was_told or make is what_a_watch_takes:  # a watch looks on, whatever it was told
            await trial.again()
        await check(trial)


def told_states(bench: Bench) -> dict[str, dict[str, FileState]]:
    """Of each ingestion that is known, the files that have come to their end."""
    return {
        one.id: {file.id: file.state for file in bench.ingest.files("clinic", one.id) if file.time}
        for one in bench.ingest.list("clinic")
    }
