"""A request on its way through the scheduler: what was ordered, and how far it is."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from appliance.infer.pages import PAGE_TOKENS, Tokens
from appliance.types import Priority

NO_TOKENS: Tokens = np.empty(0, np.int32)


class Order(NamedTuple):
    """A request as the scheduler sees it. prompt: int32 [n], n ≥ 1. root: what its pages' keys are chained under.

    adapter: '' for none. deadline_seconds: on the clock of `submit` and `plan`; 0 for none. keys: `pages.chain` of the
    prompt and the root, made outside the engine's lock; those that are missing are made by `submit`.
    """

    request: int
    prompt: Tokens
    max_tokens: int
    root: bytes = b""
    tenant: str = ""
    adapter: str = ""
    priority: Priority = Priority.NORMAL
    deadline_seconds: float = 0.0
    keys: tuple[bytes, ...] = ()


@dataclass(slots=True, eq=False)
class Work:
    """An order and its tokens: `computed` ≤ `known` ≤ all, drafts aside."""

    order: Order
    tokens: Tokens  # [prompt + max_tokens]; the first `known` are set
    keys: list[bytes]
    submitted_seconds: float
    known: int
    computed: int = 0  # tokens whose cells hold values, drafts with them, after the step that was planned last
    drafted: Tokens = field(default_factory=lambda: NO_TOKENS)
    cached: int = 0
    sequence: int = -1
    admissions: int = 0
    admitted_seconds: float = 0.0  # first
    number: int = 0  # of its last admission
    known_before: int = 0  # that admission
    streaming: bool = False  # its prompt, or all it had when it was preempted, is computed
    restoring: list[bytes] = field(default_factory=list)  # keys of its next pages that are to come from the tiers
    waits_for: bytes = b""

    @property
    def tenant(self) -> str:
        return self.order.tenant

    @property
    def priority(self) -> Priority:
        return self.order.priority

    @property
    def ran(self) -> bool:
        return self.admissions > 0

    @property
    def ready(self) -> bool:
        return self.computed < self.known and not self.restoring

    @property
    def decoding(self) -> bool:
        """A stream that lacks one row; with more, of forced tokens, it is computed as prompts are."""
        return self.streaming and self.known - self.computed == 1

    @property
    def pages(self) -> int:
        return -(-len(self.tokens) // PAGE_TOKENS)

    @property
    def shareable(self) -> list[bytes]:
        """Keys that may be taken from others: at least the last known token is computed, for its logits."""
        return self.keys[: (self.known - 1) // PAGE_TOKENS]
