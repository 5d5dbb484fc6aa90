"""Whose commit goes on while another lasts, and whose waits."""

import asyncio
from collections.abc import Collection
from pathlib import Path
from threading import Event

import pytest

from appliance.ingest.work import LONG_CHARACTERS, TENANTS_AT_ONCE, Turns
from appliance.types import IngestionState, NewDocument
from tests.ingest.bench import EVERYBODY, STICK, Bench, Gate, MemoryStick, ends, until

X, Y = ("handbook", "x"), ("handbook", "y")


class Lasting:
    """A commit that ends when it may."""

    def __init__(self, turns: Turns, tenant: str, touches: Collection[tuple[str, str]], is_long: bool) -> None:
        self.began, self.may_end = Event(), Event()
        self.task = asyncio.create_task(turns.run(tenant, touches, is_long, self._commit))

    def _commit(self) -> bool:
        self.began.set()
        return self.may_end.wait(60)

    async def end(self) -> None:
        self.may_end.set()
        assert await self.task


async def goes(turns: Turns, tenant: str, touches: Collection[tuple[str, str]], is_long: bool) -> bool:
    """Whether a commit is let through; one that is not holds up the test until it fails."""
    async with asyncio.timeout(60):
        return await turns.run(tenant, touches, is_long, lambda: True)


async def waits(turns: Turns, tenant: str, touches: Collection[tuple[str, str]], is_long: bool) -> bool:
    """Whether a commit is not let through; it is given up."""
    began = Event()
    task = asyncio.create_task(turns.run(tenant, touches, is_long, began.set))
    for _ in range(50):
        await asyncio.sleep(0.001)
    is_waiting = not began.is_set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return is_waiting


async def test_a_long_commit_holds_up_the_tenants_other_long_ones_alone() -> None:
    turns = Turns()
    long = Lasting(turns, "clinic", {X}, True)
    await until(long.began.is_set)
    assert await goes(turns, "clinic", {Y}, False)
    assert await waits(turns, "clinic", {Y}, True)
    assert await goes(turns, "bank", {X}, True)
    await long.end()
    assert await goes(turns, "clinic", {Y}, True)


async def test_of_two_that_touch_the_same_one_waits_and_holds_up_nobody_meanwhile() -> None:
    turns = Turns()
    long = Lasting(turns, "clinic", {X}, True)
    await until(long.began.is_set)
    waiting = Lasting(turns, "clinic", {X, Y}, False)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.began.is_set()
    assert await goes(turns, "clinic", {("handbook", "z")}, False)
    assert await goes(turns, "bank", {X, Y}, False), "another tenant's are other documents"
    await long.end()
    await until(waiting.began.is_set)
    await waiting.end()


async def test_one_that_is_cancelled_while_it_waits_leaves_nothing_taken() -> None:
    turns = Turns()
    long = Lasting(turns, "clinic", {X}, True)
    await until(long.began.is_set)
    for _ in range(TENANTS_AT_ONCE + 1):
        assert await waits(turns, "clinic", {X, Y}, False)
    assert await goes(turns, "clinic", {Y}, False)
    await long.end()
    assert await goes(turns, "clinic", {X, Y}, True)


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
