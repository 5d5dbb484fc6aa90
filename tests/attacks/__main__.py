"""Every attack behind all walls, without its own walls, with each of these alone, and with any one wall away:
`make attack-test`.
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

from appliance.types import Walls
from tests.attacks.attack import ATTACKS, Attack, World
from tests.attacks.claims import NOTHING, Removed, fault, lacking, outcomes, trials
from tests.attacks.exceptions import ALONE, UNPROVEN
from tests.attacks.trial import REMOVALS, Outcome, extractor, left_behind, outside

Found = Mapping[Removed, Mapping[str, Outcome]]


async def walls_of(world: World) -> Walls:
    """Those of this machine, which are printed."""
    locked = extractor(world)
    await locked.start()
    walls = locked.walls
    await locked.close()
    assert walls
    for wall in walls.layers:
        print(f"{wall.name:26}{'' if wall.stands else 'MISSING: '}{wall.detail}")
    return walls


def alone(attack: Attack, wall: str) -> Removed:
    """What is away where one of the attack's walls stands without the others of them."""
    return frozenset(attack.walls) - {wall}


def stopper(found: Found, attack: Attack, removed: Removed) -> str:
    """The wall that alone ends the attack in the same way as here; or who ends it where none of its walls does."""
    outcome = found[removed][attack.name]
    if not outcome.stopped:
        return "NOTHING"
    for wall in attack.walls:
        if wall not in removed and found[alone(attack, wall)][attack.name] == outcome:
            return wall
    if outcome.how == "RecursionError":
        return "interpreter"
    return "daemon" if outcome.how.islower() or not attack.walls else "kernel"


def show(found: Found) -> None:
    """Two tables: how each wall of an attack stops it alone, and what it gets without them; one wall away at a time."""
    titles = {attack: f"{attack.kind}: {attack.title}" for attack in ATTACKS.values()}
    columns = "".join(f"{wall:13}" for wall in REMOVALS)
    print(f"\n{'attack':60}{'stopped by':24}{'alone:':8}{columns}without these")
    for attack, title in titles.items():
        by = f"{stopper(found, attack, NOTHING)} ({found[NOTHING][attack.name].how})"
        hows = {wall: found[alone(attack, wall)][attack.name].how for wall in attack.walls}
        cells = "".join(f"{hows.get(wall, ''):13}" for wall in REMOVALS)
        bare = found[frozenset(attack.walls)][attack.name]
        without = f"{'stopped' if bare.stopped else 'SUCCEEDS'}: {bare.how[:30]}" if attack.walls else ""
        print(f"{title:60}{by:32}{cells}{without}".rstrip())
    print(f"\n{'with one wall away, it is stopped by':60}" + "".join(f"{f'no {wall}':15}" for wall in REMOVALS))
    for attack, title in titles.items():
        if not attack.slow:
            by_wall = (stopper(found, attack, frozenset((wall,))) for wall in REMOVALS)
            print(f"{title:60}{''.join(f'{by:15}' for by in by_wall)}".rstrip())


def show_exceptions(found: Found) -> None:
    """What one wall alone holds, and what was stopped without its walls, with the reasons."""
    bare = {attack: found[frozenset(attack.walls)][attack.name] for attack in ATTACKS.values() if attack.walls}
    print("\nheld by one wall alone, and borne:")
    for attack, outcome in bare.items():
        if len(attack.walls) == 1 and not outcome.stopped:
            print(f"  {attack.title}, without {attack.walls[0]}: {ALONE.get(attack.name, 'NOT DECLARED')}")
    print("\nstopped here without its walls, too, so that it proves none of them:")
    for attack, outcome in bare.items():
        if outcome.stopped:
            print(f"  {attack.title} ({outcome.how}): {UNPROVEN.get(attack.name, 'NOT DECLARED')}")


def judged(found: Found, lacks: Removed) -> list[str]:
    """What is not as it is claimed."""
    lines = (
        fault(attack, removed, some[attack.name], found[frozenset(attack.walls)][attack.name], lacks)
        for removed, some in found.items()
        for attack in (ATTACKS[name] for name in some)
    )
    return [line for line in lines if line]


def main() -> None:
    """Exits 1 where something failed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    found = {}
    with outside() as world:
        before = left_behind(world)
        lacks = lacking(asyncio.run(walls_of(world)))
        for removed, attacks in trials().items():
            found[removed] = asyncio.run(outcomes(world, removed, attacks))
            if not removed:
                changed = sorted(path.name for path in Path(world.folder).iterdir())
                left = left_behind(world) - before
    show(found)
    show_exceptions(found)
    failed = judged(found, lacks)
    if changed != ["present", "secret", "server"]:
        failed.append(f"the folder that was attacked holds {changed}")
    failed += [f"left behind: {path}" for path in left]
    if lacks:
        print(f"\nThis machine lacks {' and '.join(sorted(lacks))}: what is claimed of walls was not judged.")
    for line in failed:
        print(f"FAILED  {line}")
    print(f"{sum(map(len, found.values())) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
