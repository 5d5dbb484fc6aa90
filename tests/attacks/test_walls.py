"""Every attack against all walls, and what is claimed of these; also without any one of them: `make attack-test`."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from appliance.sandbox.extractor import LockedExtractor
from tests.attacks.attack import ATTACKS, Attack, World
from tests.attacks.claims import Removed, fault, lacking, outcomes, proofs
from tests.attacks.exceptions import ALONE, UNPROVEN
from tests.attacks.trial import Outcome, extractor, left_behind, outside, tried
from tests.sandbox.locked import extract

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = [name for name, attack in ATTACKS.items() if not attack.slow]
SLOW = [name for name, attack in ATTACKS.items() if attack.slow]
FREE, REFUSED = Outcome(False, "it got through"), Outcome(True, "EPERM")
PROOFS = sorted({removed for name in QUICK for removed in proofs(ATTACKS[name]) if removed}, key=sorted)

READ = Attack("read", "files", "", lambda _: None, ("seccomp", "landlock"), slow=False)
CODE = Attack("code", "code", "", lambda _: None, ("seccomp",), slow=False)
LIE = Attack("lie", "answers", "", lambda _: None, (), slow=False)


@pytest.mark.parametrize(
    ("attack", "removed", "outcome", "bare", "says"),
    [
        (READ, "", REFUSED, FREE, ""),
        (READ, "", FREE, FREE, "succeeds without nothing"),
        (READ, "landlock", FREE, FREE, "succeeds without landlock"),
        (READ, "limits", FREE, FREE, "succeeds without limits"),
        (READ, "landlock seccomp", FREE, FREE, ""),
        (READ, "landlock seccomp", REFUSED, REFUSED, "still stopped"),
        (READ, "landlock", REFUSED, REFUSED, "no difference"),
        (CODE, "seccomp", FREE, FREE, "not declared"),
        (ATTACKS["code-map_code"], "seccomp", FREE, FREE, ""),
        (ATTACKS["privileges-clock"], "seccomp", REFUSED, REFUSED, ""),
        (LIE, "", REFUSED, REFUSED, ""),
        (LIE, "", FREE, FREE, "succeeds without nothing"),
    ],
)
async def test_what_is_not_as_it_is_claimed_of_the_walls_is_a_fault(
    attack: Attack, removed: str, outcome: Outcome, bare: Outcome, says: str
) -> None:
    said = fault(attack, frozenset(removed.split()), outcome, bare)
    assert says in said if says else said == ""


async def test_a_wall_that_a_machine_lacks_is_not_held_against_those_that_stand() -> None:
    lacks = frozenset({"landlock"})
    assert fault(READ, frozenset({"seccomp"}), FREE, FREE, lacks) == ""
    assert fault(READ, frozenset({"limits"}), FREE, FREE, lacks) != ""


async def test_what_one_wall_alone_holds_is_declared_with_a_reason() -> None:
    alone = {name for name, attack in ATTACKS.items() if len(attack.walls) == 1}
    assert alone - {*ALONE, *UNPROVEN} == set()
    assert ALONE.keys() - alone == set()
    assert UNPROVEN.keys() - ATTACKS.keys() == set()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with outside() as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(world: World) -> AsyncIterator[LockedExtractor]:
    locked = extractor(world, wall_seconds=60)  # but for those that wait for it, an attack takes milliseconds
    await locked.start()
    yield locked
    await locked.close()


@pytest.mark.parametrize("name", QUICK)
async def test_an_attack_is_stopped_by_the_first_wall_that_is_meant_for_it(locked: LockedExtractor, name: str) -> None:
    outcome = await tried(locked, ATTACKS[name])
    assert outcome.stopped
    if ATTACKS[name].kind == "answers":
        assert outcome.how in ("form", "crash")
    elif ATTACKS[name].walls[:1] == ("seccomp",):
        assert outcome.how in ("SIGSYS", "EPERM")
    elif ATTACKS[name].walls == ("limits",):
        assert outcome.how in ("ENOMEM", "memory", "crash", "EBADF", "processor time")
    else:
        assert outcome.how in ("EBADF", "form", "size", "RecursionError")


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
async def test_an_attack_on_patience_ends_by_the_daemons_clock(world: World, name: str) -> None:
    hasty = extractor(world, wall_seconds=3)
    assert await tried(hasty, ATTACKS[name]) == Outcome(True, "wall time")
    await hasty.close()


@pytest.mark.long
@pytest.mark.parametrize("removed", PROOFS, ids=lambda removed: "+".join(sorted(removed)))
async def test_an_attack_succeeds_without_its_walls_and_not_behind_one_of_them(
    world: World, locked: LockedExtractor, removed: Removed
) -> None:
    assert locked.walls
    if lacks := lacking(locked.walls):
        pytest.skip(f"this machine lacks {sorted(lacks)}")
    attacks = [ATTACKS[name] for name in QUICK if removed in proofs(ATTACKS[name])]
    found = await outcomes(world, removed, attacks)
    bare = {one.name: found[one.name] if removed == frozenset(one.walls) else FREE for one in attacks}
    assert [fault(one, removed, found[one.name], bare[one.name]) for one in attacks] == [""] * len(attacks)


@pytest.mark.long
async def test_after_all_attacks_nothing_is_left_behind_and_the_next_document_is_read(world: World) -> None:
    before = left_behind(world)
    locked = extractor(world, wall_seconds=60)
    await locked.start()
    idle = len(psutil.Process().children(recursive=True))
    for name in QUICK:
        await tried(locked, ATTACKS[name])
    assert (await extract(locked, b"harmless")).pages == ("harmless",)
    while len(psutil.Process().children(recursive=True)) > idle:  # noqa: ASYNC110 - the last child is being reaped
        await asyncio.sleep(0.01)
    assert left_behind(world) == before
    assert sorted(os.listdir(world.folder)) == ["present", "secret", "server"]
    assert await asyncio.to_thread(Path(world.secret).read_text) == "secret"
    assert psutil.pid_exists(world.victim_pid)
    await locked.close()
