"""Continuous batching as pure decisions: who computes which tokens in the next step. No clock, no thread, no library.

    submit ─► waiting ─► admitted (pages reserved, prefix shared or restored) ─► chunks of the prompt ─► a token a step
                 │  ▲                                                                   │                      │
                 │  └─────────────── preempted by a higher priority ◄───────────────────┴──────────────────────┤
                 └─► QueueFull, PromptTooLong, past its deadline                      pages stay for others ◄── finish

A step has at most `batch_tokens` rows of one adapter: running streams first, one row each and what is drafted for it,
then prompt chunks in order of admission (chunked prefill, Sarathi-Serve, Agrawal et al. 2024); fewer rows of prompts
where streams would wait for them, as `prefill_beside_streams` says. Admission is by pages
and exact: prompt + max_tokens, less what is shared, are reserved, so that no step can ever find the cache full. A
request whose leading pages another is computing waits for them instead of computing them too. Nothing that was admitted
is ever dropped: who is preempted keeps its tokens, waits first in its line, and shares its own pages when it goes on.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from appliance.errors import PromptTooLong, QueueFull
from appliance.infer.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT, FairQueue, Turns, VirtualCounters
from appliance.infer.pages import PAGE_TOKENS, Move, Pages, Tokens, chain
from appliance.types import Priority

NO_TOKENS: Tokens = np.empty(0, np.int32)
NOTHING: Mapping[int, Tokens] = {}
# pages a step that are saved, or restored, beside running streams: a page is about half a millisecond's copy
SAVES_A_STEP, RESTORES_A_STEP, WHEN_IDLE = 4, 16, 64
MOST_DRAFTED = 32  # rows of a step, all requests together
MOST_SEQUENCE_IDS = 255  # llama.cpp's 256, less one through which the engine saves and restores pages


def sequence_ids(sequences: int) -> int:
    """How many sequences hold tokens where so many run: idle prefixes need one each."""
    return min(max(4 * sequences, 16), MOST_SEQUENCE_IDS)


def output_rows(sequences: int, batch_tokens: int) -> int:
    """Rows of a step that may give logits: each stream's and the drafts'; llama.cpp wants one a sequence."""
    return max(min(batch_tokens, sequences + MOST_DRAFTED), sequence_ids(sequences) + 1)


class Order(NamedTuple):
    """A request as the scheduler sees it. prompt: int32 [n], n ≥ 1. root: what its pages' keys are chained under.

    adapter: '' for none. deadline_seconds: on the clock of `submit` and `plan`; 0 for none.
    """

    request: int
    prompt: Tokens
    max_tokens: int
    root: bytes = b""
    tenant: str = ""
    adapter: str = ""
    priority: Priority = Priority.NORMAL
    deadline_seconds: float = 0.0


class Chunk(NamedTuple):
    """Rows of a step: `tokens` of a sequence from position `start`. The last `samples` of them give logits: none within
    a prompt, one at its end, and one for each drafted token, which are the last `samples - 1` rows."""

    request: int
    sequence: int
    start: int
    tokens: Tokens
    samples: int


class Step(NamedTuple):
    """First the moves, in order; then all chunks in one batch with that adapter. expired: past their deadlines."""

    moves: Sequence[Move]
    chunks: Sequence[Chunk]
    adapter: str
    expired: Sequence[int]


class Account(NamedTuple):
    """What a request has used. Times are what `submit` and `plan` were given."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    submitted_seconds: float
    admitted_seconds: float


@dataclass(slots=True, eq=False)
class _Work:
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
    admitted_seconds: float = 0.0
    number: int = 0  # of its last admission
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
    def ready(self) -> bool:
        return self.computed < self.known and not self.restoring

    @property
    def pages(self) -> int:
        return -(-len(self.tokens) // PAGE_TOKENS)


class Scheduler:
    """Not safe for threads: the engine holds one lock around it."""

    def __init__(
        self,
        *,
        pages: int,
        sequences: int,
        sequence_ids: int,
        batch_tokens: int,
        queue: int,
        shares_prefixes: bool = True,
        most_cached: int | None = None,
        saved: Callable[[bytes], bool] | None = None,
        prefill_beside_streams: int = 0,
    ) -> None:
        """pages: of the cache. sequences: that run at once. sequence_ids: running and idle together (at most 255).
        most_cached: pages that idle prefixes may keep, by default all. saved: whether the tiers below hold a page.
        prefill_beside_streams: rows of prompts in a step for which streams wait; 0: the whole budget."""
        assert sequence_ids >= sequences
        self.pages = Pages(pages, sequence_ids, most_cached=pages if most_cached is None else most_cached, saved=saved)
        self.preemptions = 0
        self._limit, self._batch_tokens, self._queue = sequences, batch_tokens, queue
        self._prefill_beside_streams = prefill_beside_streams or batch_tokens
        self._shares, self._saved = shares_prefixes, saved if shares_prefixes else None
        self._counters, self._turns = VirtualCounters(), Turns()
        self._waiting: FairQueue[_Work] = FairQueue(self._counters)
        self._works: dict[int, _Work] = {}
        self._running: dict[int, _Work] = {}
        self._coming: dict[bytes, _Work] = {}  # pages of prompts that are being computed, and by whom
        self._deadlines: list[tuple[float, int]] = []
        self._admissions = 0
        self._service_seconds = 1.0  # how long an admitted request took, smoothed

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def preempted(self) -> int:
        """How many of those that wait ran before."""
        return sum(work.admissions > 0 for work in self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._works or self.pages.pending)

    @property
    def streaming(self) -> list[int]:
        """Requests that may be given drafts now."""
        running = self._running.items()
        return [request for request, work in running if work.streaming and work.known - work.computed == 1]

    def check_queue(self) -> None:
        """Raises QueueFull where `submit` would."""
        if len(self._waiting) >= self._queue:
            ahead = len(self._waiting) / self._limit * self._service_seconds
            raise QueueFull(f"{len(self._waiting)} requests wait for this model.", min(max(ahead, 0.1), 60.0))

    def check_size(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raises PromptTooLong where `submit` would."""
        most = self.pages.total * PAGE_TOKENS
        if prompt_tokens + max_tokens > most:
            raise PromptTooLong(
                f"The prompt has {prompt_tokens} tokens and may be answered with {max_tokens}; "
                f"the context holds {most}."
            )

    def submit(self, order: Order, now_seconds: float) -> None:
        """Take a request in. Raises PromptTooLong, QueueFull."""
        prompt_tokens = len(order.prompt)
        self.check_size(prompt_tokens, order.max_tokens)
        self.check_queue()
        tokens = np.zeros(prompt_tokens + order.max_tokens, np.int32)
        tokens[:prompt_tokens] = order.prompt
        keys = chain(order.prompt, order.root) if self._shares else []
        work = self._works[order.request] = _Work(order, tokens, keys, now_seconds, prompt_tokens)
        self._waiting.push(work)
        if order.deadline_seconds:
            heapq.heappush(self._deadlines, (order.deadline_seconds, order.request))

    def plan(self, now_seconds: float, drafts: Mapping[int, Tokens] = NOTHING) -> Step:
        """The next step. What it holds counts as computed from here on: run it before the next call, then `restored`
        and `extend`. drafts: guesses at the tokens that follow those of a streaming request; as many are taken as fit.
        """
        expired = self._expire(now_seconds)
        for work in self._running.values():
            self._complete_pages(work)
        self._admit(now_seconds)
        self._restore()
        adapter = self._turns.choose(frozenset(work.order.adapter for work in self._running.values() if work.ready))
        chunks = self._fill(adapter, drafts)
        return Step(self.pages.take_moves(SAVES_A_STEP if chunks else WHEN_IDLE), chunks, adapter, expired)

    def restored(self, request: int, pages: int, planned: int) -> None:
        """So many of the request's `planned` Restore moves succeeded; what follows the first that did not is lost."""
        work = self._running.get(request)
        if work is None:
            return
        for key in work.restoring[:pages]:
            self.pages.complete(work.sequence, key, restored=True)
        work.computed += pages * PAGE_TOKENS
        work.restoring = work.restoring[planned:] if pages == planned else []
        if work.admissions == 1:
            work.cached = work.computed
        if not work.restoring:
            self._promise(work)

    def extend(self, request: int, tokens: Sequence[int]) -> int:
        """The request goes on with `tokens`: drafts that were right, a sampled one, any that are forced.

        Returns how many of its drafts hold; the cells of the others are given back.
        """
        work = self._running[request]
        self._counters.charge(work.tenant, OUTPUT_WEIGHT * len(tokens))
        if len(tokens) == 1 and not len(work.drafted) and work.known < len(work.tokens):  # the usual step
            work.tokens[work.known] = tokens[0]
            work.known += 1
            return 0
        new = np.asarray(tokens, np.int32)[: len(work.tokens) - work.known]
        both = min(len(new), len(work.drafted))
        different = np.flatnonzero(new[:both] != work.drafted[:both])
        right = int(different[0]) if len(different) else both
        valid = min(work.known + right, work.known + len(new) - 1)
        if valid < work.computed:
            self.pages.trim(work.sequence, valid)
            work.computed = valid
        work.drafted = NO_TOKENS
        work.tokens[work.known : work.known + len(new)] = new
        work.known += len(new)
        return right

    def finish(self, request: int, now_seconds: float) -> Account:
        """The running request has its answer, or is no longer wanted; its pages are free from the next step on."""
        work = self._leave(self._running[request])
        del self._works[request]
        self._service_seconds += 0.2 * (now_seconds - work.admitted_seconds - self._service_seconds)
        prompt = len(work.order.prompt)
        return Account(prompt, work.cached, work.known - prompt, work.submitted_seconds, work.admitted_seconds)

    def cancel(self, request: int, now_seconds: float) -> None:
        """Forget the request, running or waiting or long gone."""
        if request in self._running:
            self.finish(request, now_seconds)
        elif work := self._works.pop(request, None):
            self._waiting.remove(work)

    def _expire(self, now_seconds: float) -> list[int]:
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now_seconds:
            request = heapq.heappop(self._deadlines)[1]
            if request in self._works:
                self.cancel(request, now_seconds)
                expired.append(request)
        return expired

    # --- a step's rows ---

    def _fill(self, adapter: str, drafts: Mapping[int, Tokens]) -> list[Chunk]:
        mine = [work for work in self._running.values() if work.ready and work.order.adapter == adapter]
        streams = [work for work in mine if work.streaming]
        prompts = sorted((work for work in mine if not work.streaming), key=lambda work: -work.priority.value)
        room, chunks = self._batch_tokens, []
        spare = max(0, room - sum(work.known - work.computed for work in streams))  # drafts take nobody's row
        for work in streams:
            if not room:
                break
            most = max(0, min(spare, len(work.tokens) - work.known - 1))
            chunks.append(self._take(work, room, drafts.get(work.order.request, NO_TOKENS)[:most]))
            room -= len(chunks[-1].tokens)
            spare -= len(work.drafted)
        if len(chunks) < len(streams):  # more streams than rows: those that had theirs go behind the others
            for work in streams[: len(chunks)]:
                self._running[work.order.request] = self._running.pop(work.order.request)
        rows = room = min(room, self._most_prefilled(len(prompts)))
        for work in prompts:
            if room:
                chunks.append(self._take(work, room))
                room -= len(chunks[-1].tokens)
        if chunks:
            self._turns.charge(rows - room)
        return chunks

    def _most_prefilled(self, prompts: int) -> int:
        """Rows of prompts that a step may have: it takes as long as its rows, and all streams wait for it, of whatever
        adapter. Where more prompts than streams wait, as many times the rows: then more is lost by making those wait.
        """
        streams = sum(work.streaming for work in self._running.values())
        if not streams:
            return self._batch_tokens
        return max(1, prompts // streams) * self._prefill_beside_streams

    def _take(self, work: _Work, room: int, draft: Tokens = NO_TOKENS) -> Chunk:
        start, end = work.computed, min(work.known, work.computed + room)
        if end < work.known:
            work.computed = end
            return Chunk(work.order.request, work.sequence, start, work.tokens[start:end], 0)
        draft = draft[: room - (end - start)]
        work.streaming, work.drafted, work.computed = True, draft, end + len(draft)
        tokens = np.concatenate((work.tokens[start:end], draft)) if len(draft) else work.tokens[start:end]
        return Chunk(work.order.request, work.sequence, start, tokens, 1 + len(draft))

    # --- who runs ---

    def _admit(self, now_seconds: float) -> None:
        """Admit in the queue's order. Where one cannot be placed those behind it wait too, so that it cannot starve."""
        while len(self._waiting) and (len(self._running) < self._limit or self._victim(self._waiting.highest)):
            work = next((work for work in self._waiting if not self._is_being_computed(work)), None)
            if work is None or not self._place(work, now_seconds):
                return

    def _place(self, work: _Work, now_seconds: float) -> bool:
        """Reserve a sequence and pages, sharing what is known; where that needs it, put lower priorities aside."""
        if len(self._running) >= self._limit and not self._preempt_for(work):
            return False
        while (placed := self.pages.reserve(self._shareable(work), work.pages)) is None:
            if not self._preempt_for(work):
                return False
        self._waiting.remove(work)
        work.sequence, work.computed = placed.sequence, placed.shared * PAGE_TOKENS
        if self._saved:
            work.restoring = list(takewhile(self._saved, self._shareable(work)[placed.shared :]))
        self._admissions += 1
        work.number = self._admissions
        work.admissions += 1
        if work.admissions == 1:
            work.cached, work.admitted_seconds = work.computed, now_seconds
            known_already = work.computed + len(work.restoring) * PAGE_TOKENS
            self._counters.charge(work.tenant, INPUT_WEIGHT * (work.known - known_already))
        self._running[work.order.request] = work
        self._promise(work)
        return True

    def _preempt_for(self, work: _Work) -> bool:
        """Put the youngest of the lowest priority aside, if it is below the work's and room would come of it."""
        victim = self._victim(work.priority.value)
        below = (other.pages for other in self._running.values() if other.priority.value < work.priority.value)
        if victim is None or work.pages > self.pages.free + self.pages.cached + sum(below):
            return False
        self._leave(victim)
        victim.streaming, victim.computed, victim.restoring = False, 0, []
        self._waiting.push(victim, first=True)
        self.preemptions += 1
        return True

    def _victim(self, priority: int) -> _Work | None:
        below = (work for work in self._running.values() if work.priority.value < priority)
        return min(below, key=lambda work: (work.priority.value, -work.number), default=None)

    def _leave(self, work: _Work) -> _Work:
        """The work runs no longer; its whole pages stay for others, and for itself."""
        self._complete_pages(work)
        del self._running[work.order.request]
        self._unpromise(work, work.keys)
        self.pages.retire(work.sequence)
        return work

    # --- prefixes ---

    def _shareable(self, work: _Work) -> list[bytes]:
        """Keys that may be taken from others: at least the last known token is computed, for its logits."""
        return work.keys[: (work.known - 1) // PAGE_TOKENS]

    def _is_being_computed(self, work: _Work) -> bool:
        """Is the first page that the work lacks about to be there?"""
        if work.waits_for in self._coming:
            return True
        lacking = self._shareable(work)
        lacking = lacking[self.pages.match(lacking) :]
        work.waits_for = lacking[0] if lacking and not (self._saved and self._saved(lacking[0])) else b""
        return work.waits_for in self._coming

    def _promise(self, work: _Work) -> None:
        for key in work.keys[work.computed // PAGE_TOKENS + len(work.restoring) :]:
            self._coming.setdefault(key, work)

    def _unpromise(self, work: _Work, keys: Sequence[bytes]) -> None:
        for key in keys:
            if self._coming.get(key) is work:
                del self._coming[key]

    def _restore(self) -> None:
        room = RESTORES_A_STEP if any(work.ready for work in self._running.values()) else WHEN_IDLE
        for work in self._running.values():
            if work.restoring and room > 0:
                first = work.computed // PAGE_TOKENS
                for page, key in enumerate(work.restoring[:room], first):
                    self.pages.restore(work.order.request, work.sequence, page, key)
                room -= len(work.restoring[:room])

    def _complete_pages(self, work: _Work) -> None:
        """Make the pages known that the last step completed."""
        whole = min(work.computed, work.known) // PAGE_TOKENS
        done = self.pages.count(work.sequence)
        if not self._shares or whole == done:
            return
        if whole > len(work.keys):
            work.keys = chain(work.tokens[: whole * PAGE_TOKENS], work.order.root, after=work.keys)
        for key in work.keys[done:whole]:
            self.pages.complete(work.sequence, key)
        self._unpromise(work, work.keys[done:whole])
