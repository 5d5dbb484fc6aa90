"""Every attack against all walls; the full trial, with one taken away at a time, is `make attack-test`."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from appliance.sandbox.extractor import LockedExtractor
from tests.attacks.attack import ATTACKS, World
from tests.attacks.exceptions import REDUNDANT_KINDS, borne
from tests.attacks.trial import NOTHING, REMOVALS, extractor, left_behind, outside, tried
from tests.sandbox.locked import extract

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = [name for name, attack in ATTACKS.items() if not attack.slow]
SLOW = [name for name, attack in ATTACKS.items() if attack.slow]
BY_DAEMON = ("files-overwrite_document", "files-inherited", "resources-output_flood")


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
async def test_an_attack_is_stopped_by_the_layer_that_is_meant_for_it(locked: LockedExtractor, name: str) -> None:
    kind, outcome = ATTACKS[name].kind, await tried(locked, ATTACKS[name])
    if kind == "answers" or name in BY_DAEMON:
        assert outcome.stopped_by == "daemon"
    elif kind == "resources":
        assert outcome.stopped_by in ("limits", "seccomp", "interpreter")
    else:
        assert outcome.stopped_by == "seccomp"


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
async def test_an_attack_on_time_ends_at_a_limit(world: World, name: str) -> None:
    hasty = extractor(world, wall_seconds=3)
    assert (await tried(hasty, ATTACKS[name])).stopped_by != NOTHING
    await hasty.close()


@pytest.mark.long
@pytest.mark.parametrize("layer", list(REMOVALS))
async def test_where_one_layer_is_away_the_others_stop_what_they_can(
    world: World, locked: LockedExtractor, layer: str
) -> None:
    assert locked.walls
    namespaces = all(wall.stands for wall in locked.walls.layers)
    weak = extractor(world, layer, wall_seconds=60)
    for name in QUICK:
        if ATTACKS[name].kind in REDUNDANT_KINDS and not borne(name, layer, namespaces):
            outcome = await tried(weak, ATTACKS[name], layer)
            assert outcome.stopped_by != NOTHING, f"{name} without {layer}: {outcome.how}"
    await weak.close()


@pytest.mark.long
async def test_an_attack_succeeds_where_nothing_stops_it(world: World) -> None:
    """A trial that could not fail would prove nothing."""
    weak = extractor(world, "seccomp", wall_seconds=60)
    outcome = await tried(weak, ATTACKS["code-map_code"], "seccomp")
    await weak.close()
    assert outcome.stopped_by == NOTHING


@pytest.mark.long
async def test_after_all_attacks_nothing_is_left_behind_and_the_next_document_is_read(world: World) -> None:
    before, shared = left_behind(), set(os.listdir("/dev/shm"))
    locked = extractor(world, wall_seconds=60)
    await locked.start()
    idle = len(psutil.Process().children(recursive=True))
    for name in QUICK:
        await tried(locked, ATTACKS[name])
    assert (await extract(locked, b"harmless")).pages == ("harmless",)
    while len(psutil.Process().children(recursive=True)) > idle:  # noqa: ASYNC110 - the last child is being reaped
        await asyncio.sleep(0.01)
    assert left_behind() == before
    assert {name for name in set(os.listdir("/dev/shm")) - shared if "appliance" in name} == set()
    assert sorted(os.listdir(world.folder)) == ["present", "secret", "server"]
    assert await asyncio.to_thread(Path(world.secret).read_text) == "secret"
    assert psutil.pid_exists(world.victim_pid)
    await locked.close()
