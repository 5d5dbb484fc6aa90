"""Whose commit goes on while another lasts, and whose waits."""

import asyncio
from collections.abc import Collection
from pathlib import Path
from threading import Event

import pytest

from appliance.ingest.work import BATCH_FILES, LONG_CHARACTERS, TENANTS_AT_ONCE, Lane, Turns
from appliance.types import IngestionState, NewDocument
from tests.ingest.bench import EVERYBODY, RIVAL, STICK, Bench, Gate, MemoryStick, ends, until

X, Y = ("handbook", "x"), ("handbook", "y")


class Lasting:
    """A commit that ends when it may."""

    def __init__(self, turns: Turns, tenant: str, touches: Collection[tuple[str, str]], lane: Lane) -> None:
        self.began, self.may_end = Event(), Event()
        self.task = asyncio.create_task(turns.run(tenant, touches, lane, self._commit))

    def _commit(self) -> bool:
        self.began.set()
        return self.may_end.wait(60)

    async def end(self) -> None:
        self.may_end.set()
        assert await self.task


async def goes(turns: Turns, tenant: str, touches: Collection[tuple[str, str]], lane: Lane) -> bool:
    """Whether a commit is let through; one that is not holds up the test until it fails."""
    async with asyncio.timeout(60):
        return await turns.run(tenant, touches, lane, lambda: True)


async def waits(turns: Turns, tenant: str, touches: Collection[tuple[str, str]], lane: Lane) -> bool:
    """Whether a commit is not let through; it is given up."""
    began = Event()
    task = asyncio.create_task(turns.run(tenant, touches, lane, began.set))
    for _ in range(50):
        await asyncio.sleep(0.001)
    is_waiting = not began.is_set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return is_waiting


async def test_a_long_commit_holds_up_the_tenants_other_long_ones_alone() -> None:
    turns = Turns()
    long = Lasting(turns, "clinic", {X}, Lane.LONG)
    await until(long.began.is_set)
    assert await goes(turns, "clinic", {Y}, Lane.SHORT)
    assert await waits(turns, "clinic", {Y}, Lane.LONG)
    assert await goes(turns, "bank", {X}, Lane.LONG)
    await long.end()
    assert await goes(turns, "clinic", {Y}, Lane.LONG)


async def test_of_two_that_touch_the_same_one_waits_and_holds_up_nobody_meanwhile() -> None:
    turns = Turns()
    long = Lasting(turns, "clinic", {X}, Lane.LONG)
    await until(long.began.is_set)
    waiting = Lasting(turns, "clinic", {X, Y}, Lane.SHORT)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.began.is_set()
    assert await goes(turns, "clinic", {("handbook", "z")}, Lane.SHORT)
    assert await goes(turns, "bank", {X, Y}, Lane.SHORT), "another tenant's are other documents"
    await long.end()
    await until(waiting.began.is_set)
    await waiting.end()


async def test_one_that_is_cancelled_while_it_waits_leaves_nothing_taken() -> None:
    turns = Turns()
    long = Lasting(turns, "clinic", {X}, Lane.LONG)
    await until(long.began.is_set)
    for _ in range(TENANTS_AT_ONCE + 1):
        assert await waits(turns, "clinic", {X, Y}, Lane.SHORT)
    assert await goes(turns, "clinic", {Y}, Lane.SHORT)
    await long.end()
    assert await goes(turns, "clinic", {X, Y}, Lane.LONG)


# --- of whole ingestions ---------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """With a second stick of the same name and number, so that its files are the first one's."""
    bench = Bench(tmp_path)
    bench.sources.sticks["sources/two"] = MemoryStick(provenance=STICK)
    return bench


def hold_long_ones(bench: Bench) -> Gate:
    gate = Gate()

    def hold(document: NewDocument) -> None:
        if sum(map(len, document.pages)) > LONG_CHARACTERS:
            gate()

    bench.library.before_add = hold
    return gate


LONG_TEXT = "Badges expire. " * (LONG_CHARACTERS // 15 + 1)


async def test_a_long_text_does_not_hold_up_the_tenants_other_ingestions(bench: Bench) -> None:
    gate = hold_long_ones(bench)
    bench.write(a__txt=LONG_TEXT)
    bench.sources.sticks["sources/two"].files = {"b.txt": b"One.", "c.txt": b"Two."}
    long = await bench.start()
    await until(gate.reached.is_set)
    short = await bench.wait(await bench.start(source="sources/two"))
    assert (short.state, bench.titles()) == (IngestionState.SUCCEEDED, ["b.txt", "c.txt"])
    assert bench.ingest.get("clinic", long.id).state is IngestionState.RUNNING
    gate.open()
    assert (await bench.wait(long)).state is IngestionState.SUCCEEDED


@pytest.mark.parametrize(("name", "text", "end"), [("a.txt", "Short.", "committed"), ("b.txt", LONG_TEXT, "duplicate")])
async def test_what_has_the_path_or_the_bytes_of_a_long_text_waits_for_it_and_is_there_once(
    bench: Bench, name: str, text: str, end: str
) -> None:
    gate = hold_long_ones(bench)
    bench.write(a__txt=LONG_TEXT)
    bench.sources.sticks["sources/two"].files = {name: text.encode()}
    long = await bench.start()
    await until(gate.reached.is_set)
    other = await bench.start(source="sources/two")
    await until(lambda: len(bench.extractor.names) == 2)  # type: ignore[attr-defined]
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert bench.titles() == []
    gate.open()
    await bench.wait(long)
    assert ends(bench.files(await bench.wait(other))) == {name: end}
    [document] = bench.library.documents("handbook", EVERYBODY)
    assert document.title == "a.txt"
    assert document.size_bytes == (len(text) if end == "committed" else len(LONG_TEXT))


MANY = "\n".join(f"{number}.txt=Number {number}." for number in range(BATCH_FILES + 1))


@pytest.mark.parametrize("own", [True, False])
async def test_an_archive_that_comes_after_a_long_text_holds_up_no_other_tenants_archives(
    bench: Bench, own: bool
) -> None:
    """own: the text is of its ingestion; or of another of its tenant."""
    gate = hold_long_ones(bench)
    bench.write(a__txt=LONG_TEXT)
    bench.sources.sticks["sources/two"].files = {"b.zip": MANY.encode()}
    bench.sources.sticks["sources/three"] = MemoryStick({"c.zip": b"d.txt=One."})
    if own:
        bench.stick.files |= bench.sources.sticks["sources/two"].files
    long = [await bench.start()]
    await until(gate.reached.is_set)
    if not own:
        long.append(await bench.start(source="sources/two"))
    for _ in range(50):
        await asyncio.sleep(0.001)
    other = await bench.start(caller=RIVAL, source="sources/three")
    try:
        async with asyncio.timeout(10):
            assert (await bench.wait(other, "rival")).state is IngestionState.SUCCEEDED
    finally:
        gate.open()
    assert {(await bench.wait(one)).state for one in long} == {IngestionState.SUCCEEDED}
