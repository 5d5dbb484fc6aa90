"""Who is next: virtual token counters (VTC, Sheng et al. 2024, "Fairness in Serving Large Language Models").

Each tenant's counter grows by what it was served; the least served of those who wait goes first. Two tenants that both
wait all the time are never further apart than twice the larger of one request's input and one batch's output.
"""

from collections import Counter, deque
from collections.abc import Iterator, Set
from typing import Generic, Protocol, TypeVar

from appliance.types import Priority

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0  # an output token costs a step's row of its own; VTC's own weights


class VirtualCounters:
    """Service by client. A client that comes back is lifted to the least of those present: idling saves up nothing."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._present: set[str] = set()
        self._last = ""  # who left last

    def __getitem__(self, client: str) -> float:
        return self._served.get(client, 0.0)

    def enter(self, client: str) -> None:
        """The client wants service, and may have wanted it before."""
        if client in self._present:
            return
        floor = min((self[other] for other in self._present), default=self[self._last])
        self._served[client] = max(self[client], floor)
        self._present.add(client)

    def leave(self, client: str) -> None:
        self._present.discard(client)
        self._last = client

    def charge(self, client: str, amount: float) -> None:
        self._served[client] = self[client] + amount


class Queued(Protocol):
    @property
    def tenant(self) -> str: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def ran(self) -> bool: ...


Q = TypeVar("Q", bound=Queued)


class FairQueue(Generic[Q]):
    """What waits: by priority, then by the tenants' counters, then in order of arrival."""

    def __init__(self, counters: VirtualCounters) -> None:
        self._counters = counters
        self._lines: dict[Priority, dict[str, deque[Q]]] = {
            priority: {} for priority in sorted(Priority, key=lambda priority: -priority.value)
        }
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Q]:
        for lines in self._lines.values():
            for tenant in sorted(lines, key=self._counters.__getitem__):  # stable: who came first, where equal
                yield from lines[tenant]

    def displaced_by(self, tenant: str, priority: Priority) -> Q | None:
        """Who goes where such a newcomer finds no place: the youngest of the lowest priority of the tenant that has the
        most places, the newcomer's counted; None where that is the newcomer. Nobody who ran before goes."""
        places, youngest = Counter({tenant: 1}), dict[str, Q | None]()
        for lines in self._lines.values():
            for name, line in lines.items():
                places[name] += len(line)
                if not line[-1].ran:
                    youngest[name] = line[-1]
        own = youngest.get(tenant)
        if own is None or own.priority.value >= priority.value:
            youngest[tenant] = None
        return youngest[max(youngest, key=lambda name: (places[name], name == tenant))]

    def push(self, item: Q, *, first: bool = False) -> None:
        """first: ahead of its tenant's others."""
        self._counters.enter(item.tenant)
        line = self._lines[item.priority].setdefault(item.tenant, deque())
        if first:
            line.appendleft(item)
        else:
            line.append(item)
        self._length += 1

    def remove(self, item: Q) -> None:
        lines = self._lines[item.priority]
        lines[item.tenant].remove(item)
        self._length -= 1
        if not lines[item.tenant]:
            del lines[item.tenant]
            if not any(item.tenant in others for others in self._lines.values()):
                self._counters.leave(item.tenant)


QUANTUM_STEPS = 4.0
PREFILL_TOKENS_A_STEP = 32.0  # so many prompt tokens take about the time of a step of decodes


class Turns:
    """Which adapter computes the next step: llama.cpp applies adapters to a context, so a step has one.

    Time is what is shared, so a sequence advances as fast whatever its adapter, but by tenants: who uses several at
    once has a share of the time between them. A change costs a new graph, so an adapter goes on for a quantum. Next is,
    of those that had no more than their share, who would be back at it first (WF2Q, Bennett and Zhang 1996): so a
    tenant's many adapters come between another's turns and never all in a row.
    """

    def __init__(self) -> None:
        self._counters = VirtualCounters()  # steps, divided by the share
        self._wanting: Set[tuple[str, str]] = frozenset()
        self._shares: dict[str, float] = {}
        self._current, self._turn = "", 0.0

    def choose(self, wanting: Set[tuple[str, str]]) -> str:
        """One of the adapters ('' for none) that have tokens to compute. wanting: tenants and their adapters."""
        if wanting and wanting != self._wanting:
            self._wanting, before = wanting, self._shares
            self._shares = _shares(wanting)
            for gone in sorted(before.keys() - self._shares.keys()):
                self._counters.leave(gone)
            for come in sorted(self._shares.keys() - before.keys()):
                self._counters.enter(come)
        if wanting and (self._current not in self._shares or self._turn >= QUANTUM_STEPS):
            self._current, self._turn = self._next(), 0.0
        return self._current

    def charge(self, prompt_tokens: int) -> None:
        """The adapter that was chosen last had a step, with so many rows of prompts."""
        steps = 1.0 + prompt_tokens / PREFILL_TOKENS_A_STEP
        self._turn += steps
        self._counters.charge(self._current, steps / self._shares[self._current])

    def _next(self) -> str:
        served, shares = self._counters, self._shares
        if len(shares) == 1:
            return next(iter(shares))
        fair = sum(served[adapter] * share for adapter, share in shares.items()) / sum(shares.values())
        fair = max(fair, min(served[adapter] for adapter in shares))  # or rounding leaves none
        due = [adapter for adapter in sorted(shares) if served[adapter] <= fair]
        return min(due, key=lambda adapter: served[adapter] + QUANTUM_STEPS / shares[adapter])


def _shares(wanting: Set[tuple[str, str]]) -> dict[str, float]:
    """By adapter, of the tenant to whom it matters most: one over how many adapters that tenant uses."""
    adapters, shares = Counter(tenant for tenant, _ in wanting), dict[str, float]()
    for tenant, adapter in wanting:
        shares[adapter] = max(shares.get(adapter, 0.0), 1 / adapters[tenant])
    return shares
