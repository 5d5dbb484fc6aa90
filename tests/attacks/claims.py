"""What is claimed of the walls that stop an attack, measured: which of them are taken away, and what must come of it.

Behind all walls every attack is stopped. Without all of its own walls an attack succeeds, or it would be no proof of
them; with one of these back it is stopped, so that each is seen to hold alone. With any one wall away it is stopped,
unless that is declared to be its only one.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from appliance.types import Walls
from tests.attacks.attack import ATTACKS, Attack, World
from tests.attacks.exceptions import ALONE, UNPROVEN
from tests.attacks.trial import REMOVALS, Outcome, extractor, restore, tried
from tests.sandbox.locked import extract

Removed = frozenset[str]
NOTHING: Removed = frozenset()
SLOW_WALL_SECONDS, WALL_SECONDS = 5, 60


def proofs(attack: Attack) -> tuple[Removed, ...]:
    """All of its walls away, and all of them but one."""
    walls = frozenset(attack.walls)
    return (walls, *(walls - {wall} for wall in attack.walls))


def trials() -> Mapping[Removed, Collection[Attack]]:
    """The attacks by what they are tried without; those that take long are not tried without walls of others."""
    found: dict[Removed, list[Attack]] = {}
    for attack in ATTACKS.values():
        singles = () if attack.slow else (frozenset((wall,)) for wall in REMOVALS)
        for removed in {NOTHING, *singles, *proofs(attack)}:
            found.setdefault(removed, []).append(attack)
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), sorted(item[0]))))


async def outcomes(world: World, removed: Removed, attacks: Collection[Attack]) -> dict[str, Outcome]:
    """By name, each in a child of its own; at the end the zygote is the same, still answers, and has no child."""
    found: dict[str, Outcome] = {}
    for slow, wall_seconds in ((False, WALL_SECONDS), (True, SLOW_WALL_SECONDS)):
        if some := [attack for attack in attacks if attack.slow is slow]:
            locked = extractor(world, removed, wall_seconds)
            await locked.start()
            idle = set(_processes())
            for attack in some:
                found[attack.name] = await tried(locked, attack)
                if removed:
                    restore(Path(world.folder))
            assert (await extract(locked, b"harmless")).pages == ("harmless",)
            while len(left := set(_processes())) > len(idle):  # noqa: ASYNC110 - the last child is being reaped
                await asyncio.sleep(0.01)
            assert left == idle, "the zygote is another one"
            await locked.close()
    return found


def lacking(walls: Walls) -> Removed:
    """The walls that this machine has not, or not whole: what is claimed of them cannot be shown here."""
    layers = {wall.name: wall for wall in walls.layers}
    whole = {"landlock": "signals" in layers["landlock"].detail, "namespaces": layers["namespaces"].stands}
    return frozenset(name for name, stands in whole.items() if not stands)


def fault(attack: Attack, removed: Removed, outcome: Outcome, bare: Outcome, lacks: Removed = NOTHING) -> str:
    """What is not as it is claimed; empty where all is. bare: how it ends without any of its own walls."""
    own, without = frozenset(attack.walls), " and ".join(sorted(removed)) or "nothing"
    if outcome.stopped:
        if not own or lacks or outcome != bare:
            return ""
        if removed in proofs(attack)[1:]:
            return f"{attack.name}: {' and '.join(own - removed)} makes no difference ({outcome.how})"
        if own <= removed and attack.name not in UNPROVEN:
            return f"{attack.name}: without {without} it is still stopped ({outcome.how})"
        return ""
    if not own or own - removed - lacks:
        return f"{attack.name}: it succeeds without {without} ({outcome.how})"
    if len(own) == 1 and attack.name not in ALONE:
        return f"{attack.name}: held by {without} alone, which is not declared ({outcome.how})"
    return ""


def _processes() -> Iterator[psutil.Process]:
    """Below this one, without those that ended and that nobody awaits: where nothing forbids it attackers fork."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process
