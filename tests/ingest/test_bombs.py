"""Containers in containers that unpack to more than their size, over all levels, and one that holds itself."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio

from appliance.app import PARSERS, options
from appliance.errors import NotKept
from appliance.sandbox.extractor import LockedExtractor
from appliance.types import Extracted, FileState, IngestionState, Member
from tests.container_files import attachment, mail, multipart, zip_of
from tests.ingest.bench import LIMITS, OPERATOR, Bench, PlainExtractor, ends, until
from tests.ingest.faults import ALL, Died, Fault, die, died, dying_at
from tests.zip_quine import quine

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
MAX_MEMBERS, MAX_MEMBER_BYTES = 10_000, 1 << 30
"""As they are documented, not as the code has them: a cap that is loosened is a cap that is lost."""

LARGE_ROOT_BYTES = 6 * MIB
"""Of which 1 GiB is no bomb by ratio."""


@dataclass
class Unpacker(PlainExtractor):
    """Reads a file by its first word: the members of that name, or text. Some it reads only once they may be."""

    holds: dict[bytes, tuple[Member, ...]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    async def extract(self, fd: int, name: str) -> Extracted:
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        self.names.append(name)
        if name in self.gates:
            await self.gates[name].wait()
        members = self.holds.get(content.split(b" ")[0], ())
        words = "" if members and name.endswith(".zip") else content[:80].decode()
        return Extracted("any", "unpacker 1", (words,) if words else (), (), members)


def members(**contents: bytes) -> tuple[Member, ...]:
    return tuple(Member(name.replace("__", "."), content) for name, content in contents.items())


def unread(count: int, content: bytes = b"") -> tuple[Member, ...]:
    """Files of a kind that is not read: they count, and are not held."""
    return tuple(Member(f"{number}.bin", content) for number in range(count))


async def end_of(folder: Path, root: bytes, holds: dict[bytes, tuple[Member, ...]]) -> tuple[str, Bench]:
    """How a.zip ends that has these bytes, in a load with a harmless file after it."""
    bench = Bench(folder, Unpacker(holds=holds), config=replace(LIMITS, document_max_mib=8))
    bench.stick.files = {"a.zip": root, "z.txt": b"Harmless."}
    done, files = await bench.run()
    assert done.state is IngestionState.SUCCEEDED
    assert ends(files)["z.txt"] == "committed"
    return ends(files)["a.zip"], bench


# --- the caps, each at its border ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "end"), [(0, "unpacked"), (1, "quarantined TOO_MANY_MEMBERS")])
async def test_a_file_may_hold_ten_thousand_over_all_levels_and_not_one_more(
    tmp_path: Path, more: int, end: str
) -> None:
    holds = {
        b"root": members(b__zip=b"many", c__zip=b"few"),
        b"many": unread(MAX_MEMBERS - 3),
        b"few": unread(1 + more),
    }
    found, bench = await end_of(tmp_path, b"root", holds)
    assert found == end
    assert bench.held() == []


@pytest.mark.parametrize(("more", "end"), [(0, "unpacked"), (1, "quarantined ARCHIVE_TOO_LARGE")])
async def test_a_file_may_unpack_to_a_gibibyte_over_all_levels_and_not_a_byte_more(
    tmp_path: Path, more: int, end: str
) -> None:
    inner, piece = (b"half", b"rest"), bytes(64 * MIB)
    holds = {
        b"root": members(b__zip=inner[0], c__zip=inner[1]),
        b"half": unread(8, piece),
        b"rest": (*unread(7, piece), Member("last.bin", piece[: -8 + more or None])),
    }
    assert sum(len(one.content) for held in holds.values() for one in held) == MAX_MEMBER_BYTES + more
    found, _ = await end_of(tmp_path, b"root ".ljust(LARGE_ROOT_BYTES), holds)
    assert found == end


@pytest.mark.parametrize(("more", "end"), [(0, "unpacked"), (1, "quarantined ZIP_BOMB")])
@pytest.mark.parametrize(("root_bytes", "may_bytes"), [(100, MIB), (10_000, 200 * 10_000)])
async def test_a_file_may_unpack_to_so_many_times_its_size_over_all_levels_and_not_a_byte_more(
    tmp_path: Path, root_bytes: int, may_bytes: int, more: int, end: str
) -> None:
    left = may_bytes - len(b"inner") + more
    holds = {
        b"root": (*members(b__zip=b"inner"), Member("first.bin", bytes(left // 2))),
        b"inner": unread(1, bytes(left - left // 2)),
    }
    found, _ = await end_of(tmp_path, b"root ".ljust(root_bytes), holds)
    assert found == end


async def test_the_ratio_is_the_options(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Unpacker(holds={b"root": unread(3, bytes(MIB))}), replace(LIMITS, archive_max_ratio=2000))
    bench.stick.files = {"a.zip": b"root ".ljust(2000)}
    _, files = await bench.run()
    assert ends(files)["a.zip"] == "unpacked"


# --- what becomes of the rest ----------------------------------------------------------------------------------------


def bomb() -> dict[bytes, tuple[Member, ...]]:
    large = bytes(600 << 10)
    return {
        b"root": members(a__txt=b"Before it.", b__zip=b"one", c__zip=b"two", d__zip=b"three", y__txt=b"After it."),
        b"one": (*members(x__txt=b"In the first."), Member("zeros.bin", large)),
        b"two": (*members(x__txt=b"In the second."), Member("zeros.bin", large)),
        b"three": members(x__txt=b"In the third."),
    }


BOMB_ENDS = {
    "a.zip": "quarantined ZIP_BOMB",
    "a.zip/a.txt": "committed",
    "a.zip/b.zip": "unpacked",
    "a.zip/b.zip/x.txt": "committed",
    "a.zip/b.zip/zeros.bin": "quarantined UNKNOWN_TYPE",
    "a.zip/c.zip": "left ZIP_BOMB",
    "a.zip/d.zip": "left ZIP_BOMB",
    "a.zip/y.txt": "left ZIP_BOMB",
    "z.txt": "committed",
}


async def test_what_was_committed_stays_the_rest_is_not_read_and_no_byte_of_it_is_kept(tmp_path: Path) -> None:
    _, bench = await end_of(tmp_path, b"root", bomb())
    [done] = bench.ingest.list("clinic")
    files = bench.files(done)
    assert ends(files) == BOMB_ENDS
    assert bench.titles() == ["a.zip/a.txt", "a.zip/b.zip/x.txt", "z.txt"]
    assert bench.held() == []
    assert "200 times its size" in files["a.zip"].detail
    assert "a.zip" in files["a.zip/y.txt"].detail
    extractor = bench.extractor
    assert isinstance(extractor, Unpacker)
    assert "a.zip/d.zip" not in extractor.names
    assert [one.path for one in bench.ingest.quarantined("clinic")] == ["a.zip/b.zip/zeros.bin", "a.zip"]
    with pytest.raises(NotKept):
        await bench.ingest.release(OPERATOR, [files["a.zip"].id])


async def test_what_was_being_read_when_the_bomb_was_seen_is_not_taken(tmp_path: Path) -> None:
    gate = asyncio.Event()
    bench = Bench(tmp_path, Unpacker(holds=bomb(), gates={"a.zip/y.txt": gate}))
    bench.stick.files = {"a.zip": b"root", "z.txt": b"Harmless."}
    begun = await bench.start()
    await until(lambda: bench.files(begun)["a.zip"].state is FileState.QUARANTINED if bench.files(begun) else False)
    gate.set()
    assert ends(bench.files(await bench.wait(begun))) == BOMB_ENDS


async def test_after_a_restart_it_has_ended_as_it_was_told(tmp_path: Path) -> None:
    _, bench = await end_of(tmp_path, b"root", bomb())
    [done] = bench.ingest.list("clinic")
    told = bench.files(done)
    await bench.restart_daemon()
    assert bench.files(done) == told


@pytest.mark.parametrize(("fault", "left"), [(die, ALL), (die, "nothing")])
@pytest.mark.long
async def test_a_kill_or_a_power_cut_at_any_step_leaves_no_byte_of_it_and_changes_nothing_that_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, left: str
) -> None:
    step, has_ended = 0, False
    while not has_ended:
        bench = Bench(tmp_path / str(step), Unpacker(holds=bomb()))
        bench.stick.files = {"a.zip": b"root", "z.txt": b"Harmless."}
        told: dict[str, FileState] = {}
        with dying_at(step, bench, monkeypatch, fault, left):
            with suppress(Died):
                begun = await bench.start()
                await died(bench, begun)
                told = {path: one.state for path, one in bench.files(begun).items() if one.time}
                has_ended = bench.ingest.get("clinic", begun.id).state.ended
            bench.ingest.stop()
            await bench.jobs.stop()
        bench.restart()
        await bench.ingest.open()
        if known := bench.ingest.list("clinic"):
            done = await bench.wait(known[0])
            files = bench.files(done)
            assert ends(files) == BOMB_ENDS, f"step {step}"
            outer_may_turn = {path: state for path, state in told.items() if state is not FileState.UNPACKED}
            assert outer_may_turn.items() <= {path: one.state for path, one in files.items()}.items()
            assert bench.held() == []
        step += 1
    assert step > 40


async def test_of_a_mail_that_carries_a_bomb_all_else_is_taken(tmp_path: Path) -> None:
    holds = bomb()
    bench = Bench(tmp_path, Unpacker(holds=holds | {b"mail": members(a__zip=b"root", n__txt=b"Carried.")}))
    bench.stick.files = {"m.eml": b"mail of mine"}
    _, files = await bench.run()
    carried = {f"m.eml/{path}": end for path, end in BOMB_ENDS.items() if path != "z.txt"}
    assert ends(files) == carried | {"m.eml": "committed", "m.eml/n.txt": "committed"}


async def test_a_container_that_is_known_counts_as_any(tmp_path: Path) -> None:
    holds = {
        b"mail": unread(1, bytes(600 << 10)),
        b"root": members(a__eml=b"mail of mine", b__eml=b"mail of mine", c__txt=b"After them."),
    }
    bench = Bench(tmp_path, Unpacker(holds=holds))
    bench.stick.files = {"a.eml": b"mail of mine"}
    await bench.run()
    bench.stick.files = {"a.zip": b"root"}
    _, files = await bench.run()
    assert ends(files) == {
        "a.zip": "quarantined ZIP_BOMB",
        "a.zip/a.eml": "duplicate",
        "a.zip/a.eml/0.bin": "quarantined UNKNOWN_TYPE",
        "a.zip/b.eml": "left ZIP_BOMB",
        "a.zip/c.txt": "left ZIP_BOMB",
    }


# --- through the lock, with a box's own caps -------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked() -> AsyncIterator[LockedExtractor]:
    extractor = LockedExtractor(LIMITS, PARSERS, options.caps(LIMITS).settings())
    await extractor.start()
    yield extractor
    await extractor.close()


def forty_two(width: int = 16, levels: int = 3, leaf_bytes: int = MIB) -> bytes:
    """As 42.zip: each archive holds the next one `width` times, the last one zeros, so few that no level is a bomb."""
    data = zip_of({"zeros.bin": bytes(leaf_bytes)})
    for _ in range(levels):
        data = zip_of({f"{number:x}.zip": data for number in range(width)})
    return data


@pytest.mark.parametrize("levels", [1, 2, 3])
async def test_42_zip_is_one_refused_file_whose_rest_is_not_unpacked(
    tmp_path: Path, locked: LockedExtractor, levels: int
) -> None:
    bench = Bench(tmp_path, locked)
    bench.stick.files = {"42.zip": forty_two(levels=levels), "after.txt": b"Harmless."}
    assert len(bench.stick.files["42.zip"]) < 20_000
    done, files = await bench.run()
    assert done.state is IngestionState.SUCCEEDED
    assert (ends(files)["42.zip"], ends(files)["after.txt"]) == ("quarantined ZIP_BOMB", "committed")
    assert sum(one.state is FileState.UNPACKED for one in files.values()) <= levels
    assert sum(one.reason == "ZIP_BOMB" and one.state is FileState.QUARANTINED for one in files.values()) == 1
    assert bench.held() == []


async def test_an_archive_that_holds_itself_is_refused_at_once(tmp_path: Path, locked: LockedExtractor) -> None:
    bench = Bench(tmp_path, locked)
    bench.stick.files = {"r.zip": quine(), "after.txt": b"Harmless."}
    _, files = await bench.run()
    assert ends(files) == {"r.zip": "quarantined ZIP_BOMB", "after.txt": "committed"}
    assert "holds itself" in files["r.zip"].detail


async def test_a_mail_that_carries_an_archive_that_holds_itself_is_committed_and_that_is_refused(
    tmp_path: Path, locked: LockedExtractor
) -> None:
    bench = Bench(tmp_path, locked)
    bench.stick.files = {"m.eml": carrying("r.zip", quine())}
    _, files = await bench.run()
    assert ends(files) == {"m.eml": "committed", "m.eml/r.zip": "quarantined ZIP_BOMB"}


def carrying(name: str, content: bytes) -> bytes:
    words = "Content-Type: text/plain\n\nSee what I have."
    head, _, body = multipart(words, attachment(name, content)).partition("\n\n")
    return mail(f"Subject: x\n{head}", body)


@pytest.mark.long
async def test_an_honest_archive_of_archives_is_taken_whole(tmp_path: Path, locked: LockedExtractor) -> None:
    bench = Bench(tmp_path, locked)
    bench.stick.files = {"years.zip": zip_of(dict(years()))}
    _, files = await bench.run()
    assert {one.state for one in files.values()} == {FileState.UNPACKED, FileState.COMMITTED}
    assert len(files) == 1 + 12 + 12 * 20


def years() -> Iterator[tuple[str, bytes]]:
    """Of reports that are much alike, as their authors' forms are."""
    for year in range(12):
        form = "Name of the porter, number of the badge, hour of the visit.\n" * 100
        reports = {f"{day}.txt": f"Report {day} of {year}.\n{form}".encode() for day in range(20)}
        yield f"{year}.zip", zip_of(reports)
