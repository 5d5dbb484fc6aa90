"""Every attack, with all layers and with one taken away at a time: `make attack-test`.

Passed is an attack that all layers together stop, and, of REDUNDANT_KINDS, each that the others stop where one layer is
away, but for those that `exceptions.ALONE` declares.
"""

import asyncio
import sys
from pathlib import Path

import psutil
import structlog

from tests.attacks.attack import ATTACKS, World
from tests.attacks.exceptions import ALONE, REDUNDANT_KINDS, borne
from tests.attacks.trial import NOTHING, REMOVALS, Outcome, extractor, left_behind, outside, tried
from tests.sandbox.locked import extract

Outcomes = dict[str, Outcome]


async def has_namespaces(world: World) -> bool:
    """Whether this machine gives all of them; and the walls, on a line each."""
    locked = extractor(world)
    await locked.start()
    layers = locked.walls.layers if locked.walls else ()
    for wall in layers:
        print(f"{wall.name:26}{'' if wall.stands else 'MISSING: '}{wall.detail}")
    print()
    await locked.close()
    return all(wall.stands for wall in layers)


async def all_outcomes(world: World, without: str = "") -> Outcomes:
    """Attack by attack, each in a child of its own; at the end the zygote still answers, and no child is left."""
    locked = extractor(world, without)
    await locked.start()
    idle = len(psutil.Process().children(recursive=True))
    found = {name: await tried(locked, attack, without) for name, attack in ATTACKS.items()}
    assert (await extract(locked, b"harmless")).pages == ("harmless",)
    while len(psutil.Process().children(recursive=True)) > idle:  # noqa: ASYNC110 - the last child is being reaped
        await asyncio.sleep(0.01)
    await locked.close()
    return found


def show(full: Outcomes, weaker: dict[str, Outcomes]) -> None:
    """Two tables: what stops each attack first, and what does with a layer away."""
    titles = {name: f"{ATTACKS[name].kind}: {ATTACKS[name].title}" for name in full}
    print(f"{'attack':60}{'stopped by':14}how")
    for name, outcome in full.items():
        print(f"{titles[name]:60}{outcome.stopped_by:14}{outcome.how}")
    print(f"\n{'with one layer away, it is stopped by':60}" + "".join(f"{f'no {layer}':15}" for layer in weaker))
    for name, title in titles.items():
        print(f"{title:60}" + "".join(f"{outcomes[name].stopped_by:15}" for outcomes in weaker.values()))


def judged(full: Outcomes, weaker: dict[str, Outcomes], namespaces: bool) -> list[str]:
    """What failed, in words."""
    failed = [f"{name}: nothing stops it" for name, outcome in full.items() if outcome.stopped_by == NOTHING]
    for layer, outcomes in weaker.items():
        for name, outcome in outcomes.items():
            alone = outcome.stopped_by == NOTHING and ATTACKS[name].kind in REDUNDANT_KINDS
            if alone and not borne(name, layer, namespaces):
                failed.append(f"{name}: nothing else stops it without {layer} ({outcome.how})")
    return failed


def main() -> None:
    """Exits 1 where something failed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    before = left_behind()
    with outside() as world:
        namespaces = asyncio.run(has_namespaces(world))
        full = asyncio.run(all_outcomes(world))
        weaker = {layer: asyncio.run(all_outcomes(world, layer)) for layer in REMOVALS}
        changed = sorted(path.name for path in Path(world.folder).iterdir())
    show(full, weaker)
    failed = judged(full, weaker, namespaces)
    if changed != ["present", "secret", "server"]:
        failed.append(f"the folder that was attacked holds {changed}")
    failed += [f"left behind: {path}" for path in left_behind() - before]
    print("\nheld by one layer alone, and borne:")
    for (name, layer), why in ALONE.items():
        print(f"  {ATTACKS[name].title}, without {layer}: {why}")
    for line in failed:
        print(f"FAILED  {line}")
    trials = len(full) * (1 + len(weaker))
    print(f"{trials - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
