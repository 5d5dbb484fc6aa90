"""What is watched is handed on whole and once; what is half written, never."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from appliance.errors import DiskFull, DocumentRefused
from appliance.ingest import signing
from appliance.ingest.sources import Device, Found, Watcher, watch
from appliance.ingest.sources.watch import Seen, Taken, is_finished, settle
from appliance.types import Source, SourceKind, Watch
from tests.ingest.sources.places import MIB, Place
from tests.stick_images import Fat16

SECRET = b"s" * 32
AT_ONCE = Watch("handbook", frozenset({"everyone"}), settle_polls=1)


def polls(lists: list[list[Found]], settle_polls: int) -> list[set[str]]:
    """What is whole after each poll."""
    seen: dict[str, Seen] = {}
    told = []
    for found in lists:
        seen, whole = settle(seen, found, settle_polls)
        told.append(whole)
    return told


# --- when a file is whole --------------------------------------------------------------------------------------------


def test_a_file_is_whole_when_it_stayed_the_same_for_so_many_polls() -> None:
    a = Found("a.txt", 5, 1)
    assert polls([[a]] * 4, 3) == [set(), set(), set(), {"a.txt"}]


@pytest.mark.parametrize("changed", [Found("a.txt", 6, 1), Found("a.txt", 5, 2)])
def test_a_file_that_changes_begins_to_wait_anew(changed: Found) -> None:
    a = Found("a.txt", 5, 1)
    assert polls([[a], [a], [changed], [changed], [changed]], 2) == [set(), set(), set(), set(), {"a.txt"}]


def test_a_file_that_was_away_begins_to_wait_anew() -> None:
    a = Found("a.txt", 5, 1)
    assert polls([[a], [], [a], [a]], 1) == [set(), set(), set(), {"a.txt"}]


def test_a_marker_beside_it_says_that_a_file_is_whole() -> None:
    files = [Found("a.pdf", 5, 1), Found("a.pdf.ready"), Found("b.pdf", 5, 1), Found("c/a.pdf", 5, 1)]
    assert polls([files] * 9, 0) == [{"a.pdf"}] * 9


def test_a_signed_file_is_whole_and_one_that_its_manifest_misses_is_never() -> None:
    missing = Found("b.pdf", refusal=DocumentRefused("MISSING", "It is not there."))
    assert polls([[Found("a.pdf", 5, 1, signer="Registry"), missing]] * 3, 1) == [{"a.pdf"}] * 3


def test_a_refusal_is_handed_on_when_it_has_settled_and_never_by_a_marker() -> None:
    half = Found("a.pdf", 5, 1, DocumentRefused("SIGNATURE_MISMATCH", "Another size."))
    assert polls([[half, Found("a.pdf.ready")]] * 2, 1) == [set(), {"a.pdf"}]
    assert polls([[half, Found("a.pdf.ready")]] * 5, 0) == [set()] * 5


@pytest.mark.parametrize(
    "name",
    ["a.pdf.part", "a.PDF.PART", "x.tmp", "~$brief.docx", "b.crdownload", ".hidden", ".cache/a.pdf", "a.pdf.ready"],
)
def test_a_name_that_says_unfinished_is_never_looked_at(name: str) -> None:
    assert not is_finished(name)
    assert polls([[Found(name, 1, 1), Found(f"{name}.ready")]] * 5, 1)[-1] == set()


@pytest.mark.parametrize("name", ["a.pdf", "partly.txt", "tmp/a.txt", "a.part.pdf", "a~$.txt", "x/y.z/ü.md"])
def test_other_names_are(name: str) -> None:
    assert is_finished(name)


# --- what was taken --------------------------------------------------------------------------------------------------


def test_what_was_taken_is_known_after_a_restart_until_it_changes(tmp_path: Path) -> None:
    name = os.fsdecode(b"latin\xfc.txt")
    path, both = tmp_path / "w" / "a", [Found("a.txt", 1, 2), Found(name, 3, 4)]
    Taken(path, SECRET).add(both, both)
    with path.open("ab") as file:
        file.write(b"torn")
    again = Taken(path, SECRET)
    changed, other = Found("a.txt", 1, 3), Found("b.txt", 1, 2)
    assert again.fresh([*both, changed, other]) == (changed, other)
    again.add([other], [*both, other])
    assert Taken(path, SECRET).fresh([*both, changed, other]) == (changed,)


def test_what_is_not_there_any_more_is_forgotten_and_taken_when_it_comes_back(tmp_path: Path) -> None:
    taken, a, b = Taken(tmp_path / "a", SECRET), Found("a.txt", 1, 2), Found("b.txt", 1, 2)
    taken.add([a], [a])
    taken.add([b], [b])
    assert taken.fresh([a, b]) == (a,)


def test_the_list_of_what_was_taken_tells_no_name(tmp_path: Path) -> None:
    taken = Taken(tmp_path / "a", SECRET)
    for name in ("dismissal-of-j-doe.pdf", "merger.docx"):
        taken.add([Found(name, 1, 2)], [Found(name, 1, 2)])
    told = (tmp_path / "a").read_bytes()
    assert len(told) == 2 * 16
    assert not any(word in told for word in (b"dismissal", b"doe", b"merger", b"pdf"))
    assert Taken(tmp_path / "a", bytes(32)).fresh([Found("merger.docx", 1, 2)]), "who has no key can guess no name"


def test_the_list_of_what_was_taken_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SLACK_FILES", 10)
    taken = Taken(tmp_path / "a", SECRET)
    for number in range(50):
        taken.add([Found("a.txt", 1, number)], [Found("a.txt", 1, number)])
    assert (tmp_path / "a").stat().st_size < 15 * 16
    assert Taken(tmp_path / "a", SECRET).fresh([Found("a.txt", 1, 49)]) == ()


# --- the watcher -----------------------------------------------------------------------------------------------------


class Taker:
    """What was handed on, by name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[str]]] = []
        self.sources: list[Source] = []
        self.fails = False

    async def __call__(self, tenant: str, source: Source, watch: Watch, found: tuple[Found, ...]) -> None:
        if self.fails:
            raise DiskFull("The disk is full.")
        self.sources.append(source)
        self.calls.append((tenant, watch.collection, [one.name for one in found]))


class Bench:
    """A watched place, and looks at it one by one."""

    def __init__(self, path: Path, sticks_allowed: str = "listed") -> None:
        self.path, self.place, self.take = path, Place(path, sticks_allowed=sticks_allowed), Taker()
        self.drop = path / "drop"
        self.drop.mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        self.watcher = Watcher(self.place.sources, self.place.plugged, self.path / "watched", SECRET, 0.01, MIB)

    async def looks(self, count: int) -> list[tuple[str, str, list[str]]]:
        """What was taken in so many looks."""
        self.take.calls.clear()
        for _ in range(count):
            await asyncio.gather(*self.watcher.look(self.take))
        return list(self.take.calls)


async def test_a_file_is_handed_on_once_also_after_a_restart_and_again_when_it_changed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.place.sources.watch("acme", str(bench.drop), True, AT_ONCE)
    (bench.drop / "a.txt").write_text("one")
    assert await bench.looks(5) == [("acme", "handbook", ["a.txt"])]
    assert bench.take.sources[0].provenance.kind is SourceKind.SHARE
    bench.restart()
    assert await bench.looks(5) == []
    (bench.drop / "a.txt").write_text("changed")
    (bench.drop / "b.txt.part").write_text("half")
    assert await bench.looks(5) == [("acme", "handbook", ["a.txt"])]
    (bench.drop / "b.txt.part").rename(bench.drop / "b.txt")
    assert await bench.looks(5) == [("acme", "handbook", ["b.txt"])]


async def test_what_could_not_be_taken_is_handed_on_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.place.sources.watch("acme", str(bench.drop), False, AT_ONCE)
    (bench.drop / "a.txt").write_text("one")
    bench.take.fails = True
    assert await bench.looks(4) == []
    bench.take.fails = False
    assert await bench.looks(2) == [("acme", "handbook", ["a.txt"])]


async def test_another_collection_takes_all_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.drop / "a.txt").write_text("one")
    await bench.place.sources.watch("acme", str(bench.drop), False, AT_ONCE)
    await bench.looks(3)
    await bench.place.sources.watch("acme", str(bench.drop), False, Watch("other", frozenset({"everyone"}), False, 1))
    assert await bench.looks(3) == [("acme", "other", ["a.txt"])]


async def test_a_folder_that_goes_and_comes_back_is_watched_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.place.sources.watch("acme", str(bench.drop), False, AT_ONCE)
    bench.drop.rename(tmp_path / "away")
    assert await bench.looks(3) == []
    (tmp_path / "away").rename(bench.drop)
    (bench.drop / "a.txt").write_text("one")
    assert await bench.looks(3) == [("acme", "handbook", ["a.txt"])]


async def test_a_signed_drop_is_taken_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.drop / "a.txt").write_text("one")
    bench.place.book.trust("Registry", signing.make_key(tmp_path / "key.pem"))
    await signing.sign_folder(bench.drop, tmp_path / "key.pem")
    (bench.drop / "later.txt").write_text("not listed")
    await bench.place.sources.watch("acme", str(bench.drop), False, Watch("handbook", frozenset(), settle_polls=0))
    assert await bench.looks(3) == [("acme", "handbook", ["a.txt"])]
    assert bench.take.sources[0].provenance.signer == "Registry"


async def test_a_watched_stick_is_taken_when_it_is_plugged_in_and_looked_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sticks_allowed="all")
    await bench.place.sources.watch("acme", "sources/usb-4C53", False, AT_ONCE)
    assert await bench.looks(2) == []
    made = Fat16()
    made.file(b"A       TXT", b"alpha", 2)
    (tmp_path / "sdb").write_bytes(made.data)
    bench.place.plugged.plug(tmp_path / "sdb")
    assert await bench.looks(3) == [("acme", "handbook", ["A.TXT"])]
    made.file(b"B       TXT", b"beta", 3)
    (tmp_path / "sdb").write_bytes(made.data)
    assert await bench.looks(2) == []  # while it is plugged in, nobody else writes it
    bench.place.plugged.devices.clear()
    await bench.looks(1)
    bench.place.plugged.plug(tmp_path / "sdb")
    assert await bench.looks(2) == [("acme", "handbook", ["B.TXT"])]


async def test_two_tenants_watch_one_folder_each_for_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (bench.drop / "a.txt").write_text("one")
    for tenant in ("acme", "beta"):
        await bench.place.sources.watch(tenant, str(bench.drop), False, AT_ONCE)
    assert sorted(await bench.looks(3)) == [("acme", "handbook", ["a.txt"]), ("beta", "handbook", ["a.txt"])]


async def test_a_place_whose_take_lasts_holds_up_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "slow").mkdir()
    for folder in (bench.drop, tmp_path / "slow"):
        (folder / "a.txt").write_text("one")
        await bench.place.sources.watch("acme", str(folder), False, AT_ONCE)
    go, taken = asyncio.Event(), asyncio.Queue[str]()

    async def take(tenant: str, source: Source, watch: Watch, found: tuple[Found, ...]) -> None:
        if source.provenance.path.endswith("slow"):
            await go.wait()
        await taken.put(source.provenance.path)

    running = asyncio.create_task(bench.watcher.run(take))
    bench.place.plugged.change.set()
    while taken.empty():
        bench.place.plugged.change.set()
        await asyncio.sleep(0)
    assert (await taken.get()).endswith("drop")
    go.set()
    assert (await taken.get()).endswith("slow")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_device_that_is_slow_to_say_what_it_is_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, asked = Bench(tmp_path), list[bool]()
    await bench.place.sources.watch("acme", "sources/usb-4C53", False, AT_ONCE)

    def slow() -> tuple[Device, ...]:
        asked.append(threading.current_thread() is threading.main_thread())
        return ()

    monkeypatch.setattr(bench.place.plugged, "list", slow)
    assert await bench.looks(1) == []
    assert asked == [False]


async def test_a_watched_place_that_is_refused_is_told_to_its_tenant_until_it_is_mended_or_watched_no_more(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    (bench.drop / "a.txt").write_text("one")
    made = await bench.place.sources.watch("acme", str(bench.drop), False, AT_ONCE)
    allowed, bench.place.sources = bench.place.sources, bench.place.again(ingest_roots="/srv")
    bench.restart()
    assert await bench.looks(3) == []
    [(place, problem)] = bench.watcher.problems().items()
    assert place == ("acme", made.name)
    assert "ingest_roots" in problem
    bench.watcher._sources = allowed
    assert await bench.looks(4) == [("acme", "handbook", ["a.txt"])]
    assert bench.watcher.problems() == {}
    bench.watcher._sources = bench.place.sources
    await bench.looks(1)
    await allowed.unwatch("acme", made.name)
    await bench.looks(1)
    assert bench.watcher.problems() == {}
