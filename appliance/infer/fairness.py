"""Who is next: virtual token counters (VTC, Sheng et al. 2024, "Fairness in Serving Large Language Models").

Each tenant's counter grows by what it was served; the least served of those who wait goes first. Two tenants that both
wait all the time are never further apart than twice the larger of one request's input and one batch's output.
"""

from collections import deque
from collections.abc import Iterator
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

    @property
    def highest(self) -> int:
        """The highest priority that waits, as a number; 0 for none."""
        return next((priority.value for priority, lines in self._lines.items() if lines), 0)

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

    A change costs a new graph, so an adapter goes on until it is a quantum ahead of the one that was served least; time
    is what is shared, so a sequence advances as fast whatever its adapter.
    """

    def __init__(self) -> None:
        self._counters = VirtualCounters()
        self._present: frozenset[str] = frozenset()
        self._current = ""

    def choose(self, wanting: frozenset[str]) -> str:
        """One of the adapters ('' for none) that have tokens to compute."""
        if wanting and wanting != self._present:
            for gone in sorted(self._present - wanting):
                self._counters.leave(gone)
            for come in sorted(wanting - self._present):
                self._counters.enter(come)
            self._present = wanting
        if len(wanting) > 1 or (wanting and self._current not in wanting):
            least = min(sorted(wanting), key=self._counters.__getitem__)
            ahead = self._counters[self._current] - self._counters[least]
            if self._current not in wanting or ahead >= QUANTUM_STEPS:
                self._current = least
        return self._current

    def charge(self, prompt_tokens: int) -> None:
        """The adapter that was chosen last had a step, with so many rows of prompts."""
        self._counters.charge(self._current, 1.0 + prompt_tokens / PREFILL_TOKENS_A_STEP)
