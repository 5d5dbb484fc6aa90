"""Which loaded models make room for another, and which have been idle for too long. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model. `requests`: those that it runs or that wait for it; with any it is never unloaded."""

    name: str
    last_used_seconds: float
    requests: int = 0
    pinned: bool = False

    @property
    def idle(self) -> bool:
        return not self.requests and not self.pinned


def make_room(residents: Sequence[Resident], fits: Callable[[frozenset[str]], bool]) -> tuple[str, ...] | None:
    """The idle models to unload so that another fits, least recently used first; None where no such choice suffices.

    fits: whether the other would, with these unloaded. A model whose place turns out not to be needed is spared.
    """
    chosen: list[str] = []
    for resident in sorted(residents, key=lambda one: one.last_used_seconds):
        if fits(frozenset(chosen)):
            break
        if resident.idle:
            chosen.append(resident.name)
    if not fits(frozenset(chosen)):
        return None
    for name in list(chosen):
        if fits(frozenset(chosen) - {name}):
            chosen.remove(name)
    return tuple(chosen)


def overdue(residents: Sequence[Resident], now_seconds: float, idle_seconds: float) -> tuple[str, ...]:
    """The models that nobody asked for so long; none where idle_seconds is 0."""
    if not idle_seconds:
        return ()
    return tuple(one.name for one in residents if one.idle and now_seconds - one.last_used_seconds >= idle_seconds)
