"""Continuous batching as pure decisions: who computes which tokens in the next step. No clock, no thread, no library.

    submit ─► waiting ─► admitted (cells reserved, prefix shared) ─► chunks of the prompt ─► one token a step ─► finish
                 │                                                                                               │
                 └─ QueueFull, PromptTooLong                    blocks stay for others until evicted, oldest first ◄┘

A step has at most `batch_tokens` rows: running streams first, one row each, then prompt chunks in order of admission
(chunked prefill, Sarathi-Serve, Agrawal et al. 2024). Admission is by cells and exact: prompt + max_tokens, less what
is shared, are reserved, so that no step can ever find the cache full. A request whose leading blocks another is
computing waits for them instead of computing them too.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from appliance.errors import PromptTooLong, QueueFull
from appliance.infer.prefix import BLOCK_TOKENS, PrefixIndex, Tokens, chain


class Copy(NamedTuple):
    """The first `tokens` of `source` belong to `target` too."""

    source: int
    target: int
    tokens: int


class Trim(NamedTuple):
    """Only the first `tokens` of `sequence` stay."""

    sequence: int
    tokens: int


class Chunk(NamedTuple):
    """Rows of a step: `tokens` of a sequence from position `start`. samples: the last row's logits give a token."""

    request: int
    sequence: int
    start: int
    tokens: Tokens
    samples: bool


class Step(NamedTuple):
    """First the moves, in order; then all chunks in one batch."""

    moves: Sequence[Copy | Trim]
    chunks: Sequence[Chunk]


class Account(NamedTuple):
    """What a request has used. Times are what `submit` and `plan` were given."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    submitted_seconds: float
    admitted_seconds: float


@dataclass(slots=True, eq=False)
class _Work:
    request: int
    tokens: Tokens  # [prompt + max_tokens]; the first `known` are set
    prompt_tokens: int
    salt: bytes
    keys: list[bytes]
    submitted_seconds: float
    known: int = 0
    computed: int = 0  # tokens whose cells hold values, after the step that was planned last
    cached: int = 0
    sequence: int = -1
    admitted_seconds: float = field(default=0.0)

    @property
    def decoding(self) -> bool:
        return self.computed >= self.prompt_tokens


class Scheduler:
    """Not safe for threads: the engine holds one lock around it."""

    def __init__(
        self,
        *,
        cells: int,
        sequences: int,
        sequence_ids: int,
        batch_tokens: int,
        queue: int,
        shares_prefixes: bool = True,
    ) -> None:
        """cells: of the cache. sequences: that run at once. sequence_ids: running and idle together (at most 256)."""
        assert sequence_ids >= sequences
        self._cells, self._limit, self._batch_tokens, self._queue = cells, sequences, batch_tokens, queue
        self._shares = shares_prefixes
        self._free = list(range(sequence_ids))
        self._waiting: deque[_Work] = deque()
        self._running: dict[int, _Work] = {}
        self._index = PrefixIndex()
        self._moves: list[Copy | Trim] = []
        self._service_seconds = 1.0  # how long an admitted request took, smoothed

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._moves)

    @property
    def cells_used(self) -> int:
        """Cells held or reserved by running requests; idle prefixes, which give way, are not counted."""
        return self._occupied() - self._index.idle_cells

    def submit(self, request: int, prompt: Tokens, max_tokens: int, salt: bytes, now_seconds: float) -> None:
        """Take a request in. prompt: int32 [n], n ≥ 1. Raises PromptTooLong, QueueFull."""
        wanted = len(prompt) + max_tokens
        if wanted > self._cells:
            raise PromptTooLong(
                f"The prompt has {len(prompt)} tokens and may be answered with {max_tokens}; "
                f"the context holds {self._cells}."
            )
        if len(self._waiting) >= self._queue:
            ahead = len(self._waiting) / self._limit * self._service_seconds
            raise QueueFull(f"{len(self._waiting)} requests wait for this model.", min(max(ahead, 0.1), 60.0))
        tokens = np.zeros(wanted, np.int32)
        tokens[: len(prompt)] = prompt
        keys = chain(tokens[: len(prompt)], salt) if self._shares else []
        work = _Work(request, tokens, len(prompt), salt, keys, now_seconds, known=len(prompt))
        self._waiting.append(work)

    def plan(self, now_seconds: float) -> Step:
        """The next step. What it holds counts as computed from here on: run it before the next call."""
        for work in self._running.values():
            self._index_blocks(work)
        self._admit(now_seconds)
        chunks: list[Chunk] = []
        room = self._batch_tokens
        for decoding in (True, False):
            for work in self._running.values():
                if work.decoding is decoding and room and work.computed < work.known:
                    chunks.append(self._take(work, room))
                    room -= len(chunks[-1].tokens)
        moves, self._moves = self._moves, []
        return Step(moves, chunks)

    def extend(self, request: int, token: int) -> None:
        """The step gave the request its next token."""
        work = self._running[request]
        work.tokens[work.known] = token
        work.known += 1

    def finish(self, request: int, now_seconds: float) -> Account:
        """The running request has its answer, or is no longer wanted; its cells are free from the next step on."""
        work = self._running.pop(request)
        self._index_blocks(work)
        self._retire(work.sequence)
        self._service_seconds += 0.2 * (now_seconds - work.admitted_seconds - self._service_seconds)
        output = work.known - work.prompt_tokens
        return Account(work.prompt_tokens, work.cached, output, work.submitted_seconds, work.admitted_seconds)

    def cancel(self, request: int, now_seconds: float) -> None:
        """Forget the request, running or waiting or long gone."""
        if request in self._running:
            self.finish(request, now_seconds)
        self._waiting = deque(work for work in self._waiting if work.request != request)

    def _take(self, work: _Work, room: int) -> Chunk:
        start, end = work.computed, min(work.known, work.computed + room)
        work.computed = end
        return Chunk(work.request, work.sequence, start, work.tokens[start:end], end == work.known)

    def _admit(self, now_seconds: float) -> None:
        blocked: list[_Work] = []
        while self._waiting and len(self._running) < self._limit:
            work = self._waiting.popleft()
            if self._is_being_computed(work):
                blocked.append(work)
            elif not self._place(work):
                blocked.append(work)  # the cells are taken: those behind it wait too, so that it cannot starve
                break
            else:
                work.admitted_seconds = now_seconds
                self._running[work.request] = work
        self._waiting.extendleft(reversed(blocked))

    def _shareable(self, work: _Work) -> list[bytes]:
        """Keys that may be taken from others: at least the prompt's last token is computed, for its logits."""
        return work.keys[: (work.prompt_tokens - 1) // BLOCK_TOKENS]

    def _is_being_computed(self, work: _Work) -> bool:
        mine = self._shareable(work)
        _, present = self._index.match(mine)
        return any(
            present < _common(mine, other.keys) and other.computed < other.prompt_tokens
            for other in self._running.values()
        )

    def _place(self, work: _Work) -> bool:
        """Reserve a sequence and cells, sharing what is known; False where the cells are taken."""
        target = self._free.pop() if self._free else self._evict()
        source, count = self._index.match(self._shareable(work))
        shared = count * BLOCK_TOKENS
        if count:
            self._index.share(source, target, count)
        needed = len(work.tokens) - shared
        if self.cells_used + needed > self._cells:
            self._index.drop(target)
            self._free.append(target)
            return False
        if count:
            self._moves.append(Copy(source, target, shared))
        while self._occupied() + needed > self._cells:
            self._free.append(self._evict())
        work.sequence, work.cached, work.computed = target, shared, shared
        return True

    def _occupied(self) -> int:
        """Cells of all blocks, and what running requests have reserved beyond their blocks."""
        reserved = sum(
            len(work.tokens) - self._index.count(work.sequence) * BLOCK_TOKENS for work in self._running.values()
        )
        return self._index.cells + reserved

    def _index_blocks(self, work: _Work) -> None:
        """Make the blocks known that the last step completed."""
        if not self._shares:
            return
        whole = work.computed // BLOCK_TOKENS
        if whole > len(work.keys):
            work.keys = chain(work.tokens[: whole * BLOCK_TOKENS], work.salt, after=work.keys)
        for key in work.keys[self._index.count(work.sequence) : whole]:
            self._index.insert(work.sequence, key)

    def _retire(self, sequence: int) -> None:
        blocks = self._index.count(sequence)
        if not self._index.retire(sequence):
            self._drop(sequence)
            return
        self._moves.append(Trim(sequence, blocks * BLOCK_TOKENS))
        # every query scans idle cells too: keep the last one, and others up to a quarter of the cache
        while self._index.idle > 1 and self._index.idle_cells > self._cells // 4:
            self._free.append(self._evict())

    def _evict(self) -> int:
        sequence = self._index.evict()
        assert sequence >= 0, "sequence ids outnumber running requests, so one is idle"
        self._moves.append(Trim(sequence, 0))
        return sequence

    def _drop(self, sequence: int) -> None:
        self._index.drop(sequence)
        self._moves.append(Trim(sequence, 0))
        self._free.append(sequence)


def _common(left: Sequence[bytes], right: Sequence[bytes]) -> int:
    """How many keys both start with. A key names all before it, so the first difference ends it."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
