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
By whom: a higher priority, or an equal one of a tenant that was served far less, once it had its turn. Where the queue
is full, who has most places in it gives one up.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from appliance.errors import PromptTooLong, QueueFull
from appliance.infer.fairness import (
    INPUT_WEIGHT,
    OUTPUT_WEIGHT,
    PREFILL_TOKENS_A_STEP,
    FairQueue,
    Turns,
    VirtualCounters,
)
from appliance.infer.pages import PAGE_TOKENS, Move, Pages, Tokens, chain
from appliance.infer.work import NO_TOKENS, Order, Work
from appliance.types import Priority

NOTHING: Mapping[int, Tokens] = {}
# what a step saves, or restores, beside running streams: pages and bytes, of which a millisecond copies about 4 MiB
SAVES_A_STEP, RESTORES_A_STEP, WHEN_IDLE = (4, 8 << 20), (16, 32 << 20), (64, 128 << 20)
MOST_DRAFTED = 32  # rows of a step, all requests together
TURN_TOKENS = 512  # of an answer, before it may be put aside for a tenant that was served as many fewer
MOST_SEQUENCE_IDS = 255  # llama.cpp's 256, less one through which the engine saves and restores pages


def sequence_ids(sequences: int) -> int:
    """How many sequences hold tokens where so many run: idle prefixes need one each."""
    return min(max(4 * sequences, 16), MOST_SEQUENCE_IDS)


def output_rows(sequences: int, batch_tokens: int) -> int:
    """Rows of a step that may give logits: each stream's and the drafts'; llama.cpp wants one a sequence."""
    return max(min(batch_tokens, sequences + MOST_DRAFTED), sequence_ids(sequences) + 1)


class Chunk(NamedTuple):
    """Rows of a step: `tokens` of a sequence from position `start`. The last `samples` of them give logits: none within
    a prompt, one at its end, and one for each drafted token, which are the last `samples - 1` rows."""

    request: int
    sequence: int
    start: int
    tokens: Tokens
    samples: int


class Step(NamedTuple):
    """First the moves, in order; then all chunks in one batch with that adapter.

    expired: requests past their deadlines. refused: those that waited and lost their places, and what to tell them.
    Both are forgotten already.
    """

    moves: Sequence[Move]
    chunks: Sequence[Chunk]
    adapter: str
    expired: Sequence[int]
    refused: Mapping[int, QueueFull]


class Account(NamedTuple):
    """What a request has used. Times are what `submit` and `plan` were given."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    submitted_seconds: float
    admitted_seconds: float


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
        self.page_bytes = 1  # what a page takes where it is saved; the engine tells when it has seen one
        self._limit, self._batch_tokens, self._queue = sequences, batch_tokens, queue
        self._prefill_beside_streams = prefill_beside_streams or batch_tokens
        self._shares, self._saved = shares_prefixes, saved if shares_prefixes else None
        self._counters, self._turns = VirtualCounters(), Turns()
        self._waiting: FairQueue[Work] = FairQueue(self._counters)
        self._works: dict[int, Work] = {}
        self._running: dict[int, Work] = {}
        self._coming: dict[bytes, Work] = {}  # pages of prompts that are being computed or restored, and by whom
        self._refused: dict[int, QueueFull] = {}  # since the last plan
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
        return sum(work.ran for work in self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._works or self._refused or self.pages.pending)

    @property
    def streaming(self) -> list[int]:
        """Requests that may be given drafts now."""
        return [request for request, work in self._running.items() if work.decoding]

    def check_queue(self, tenant: str = "", priority: Priority = Priority.NORMAL) -> Work | None:
        """Who would lose its place to such a newcomer; None while there is room.

        Raises QueueFull where `submit` would.
        """
        if len(self._waiting) < self._queue:
            return None
        if (work := self._waiting.displaced_by(tenant, priority)) is None:
            raise self._queue_full()
        return work

    def check_size(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raises PromptTooLong where `submit` would."""
        most = self.pages.total * PAGE_TOKENS
        if prompt_tokens + max_tokens > most:
            raise PromptTooLong(
                f"The prompt has {prompt_tokens} tokens and may be answered with {max_tokens}; "
                f"the context holds {most}."
            )

    def submit(self, order: Order, now_seconds: float) -> None:
        """Take a request in. Raises PromptTooLong, QueueFull.

        Where the queue is full, somebody loses a place: the youngest of the lowest priority of the tenant that has the
        most. Where that is not the newcomer, who gets QueueFull here, it is told by the next step's `refused`.
        """
        prompt_tokens = len(order.prompt)
        self.check_size(prompt_tokens, order.max_tokens)
        if displaced := self.check_queue(order.tenant, order.priority):
            refused = displaced.order.request
            self.cancel(refused, now_seconds)
            self._refused[refused] = self._queue_full()
        tokens = np.zeros(prompt_tokens + order.max_tokens, np.int32)
        tokens[:prompt_tokens] = order.prompt
        keys = chain(order.prompt, order.root, after=order.keys) if self._shares else []
        work = self._works[order.request] = Work(order, tokens, keys, now_seconds, prompt_tokens)
        self._waiting.push(work)
        if order.deadline_seconds:
            if len(self._deadlines) > 2 * len(self._works):  # most are of requests that have ended
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._works]
                heapq.heapify(self._deadlines)
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
        ready = (work.order for work in self._running.values() if work.ready)
        adapter = self._turns.choose({(order.tenant, order.adapter) for order in ready})
        chunks = self._fill(adapter, drafts)
        refused, self._refused = self._refused, {}
        moves = self.pages.take_moves(self._movable(SAVES_A_STEP if chunks else WHEN_IDLE))
        return Step(moves, chunks, adapter, expired, refused)

    def restored(self, request: int, pages: int, planned: int) -> None:
        """So many of the request's `planned` Restore moves succeeded; what follows the first that did not is lost."""
        work = self._running.get(request)
        if work is None:
            return
        for key in work.restoring[:pages]:
            self.pages.complete(work.sequence, key, restored=True)
        self._unpromise(work, work.restoring[:pages])
        work.computed += pages * PAGE_TOKENS
        work.restoring = work.restoring[planned:] if pages == planned else []
        if work.admissions == 1:
            work.cached = work.computed

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
        else:
            self._refused.pop(request, None)

    def _queue_full(self) -> QueueFull:
        ahead = len(self._waiting) / self._limit * self._service_seconds
        return QueueFull(f"{len(self._waiting)} requests wait for this model.", min(max(ahead, 0.1), 60.0))

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
        streams = [work for work in mine if work.decoding]
        prompts = [work for work in mine if not work.decoding]
        prompts.sort(key=lambda work: (-work.priority.value, work.number))
        room, chunks = self._batch_tokens, []
        most_prefilled = self._most_prefilled(len(prompts))
        spare = max(0, room - len(streams))  # drafts take nobody's row
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
        rows = room = min(room, most_prefilled)
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
        streams = sum(work.decoding for work in self._running.values())
        if not streams:
            return self._batch_tokens
        return max(1, prompts // streams) * self._prefill_beside_streams

    def _take(self, work: Work, room: int, draft: Tokens = NO_TOKENS) -> Chunk:
        start, end = work.computed, min(work.known, work.computed + room)
        if end < work.known:
            work.computed = end
            return Chunk(work.order.request, work.sequence, start, work.tokens[start:end], 0)
        work.streaming, work.drafted, work.computed = True, draft, end + len(draft)
        tokens = np.concatenate((work.tokens[start:end], draft)) if len(draft) else work.tokens[start:end]
        return Chunk(work.order.request, work.sequence, start, tokens, 1 + len(draft))

    # --- who runs ---

    def _admit(self, now_seconds: float) -> None:
        """Admit in the queue's order. Where one cannot be placed those behind it wait too, so that it cannot starve."""
        while len(self._waiting) and (len(self._running) < self._limit or self._victims(next(iter(self._waiting)))):
            work = next((work for work in self._waiting if not self._is_coming(work)), None)
            if work is None or not self._place(work, now_seconds):
                return

    def _place(self, work: Work, now_seconds: float) -> bool:
        """Reserve a sequence and pages, sharing what is known; where that needs it, put others aside."""
        if len(self._running) >= self._limit and not self._preempt_for(work):
            return False
        while (placed := self.pages.reserve(work.shareable, work.pages)) is None:
            if not self._preempt_for(work):
                return False
        self._waiting.remove(work)
        work.sequence, work.computed = placed.sequence, placed.shared * PAGE_TOKENS
        if self._saved:
            work.restoring = list(takewhile(self._saved, work.shareable[placed.shared :]))
        self._admissions += 1
        work.number, work.known_before = self._admissions, work.known
        work.admissions += 1
        if work.admissions == 1:
            work.cached, work.admitted_seconds = work.computed, now_seconds
            known_already = work.computed + len(work.restoring) * PAGE_TOKENS
            self._counters.charge(work.tenant, INPUT_WEIGHT * (work.known - known_already))
        self._running[work.order.request] = work
        self._promise(work)
        return True

    def _preempt_for(self, work: Work) -> bool:
        """Put the youngest of the lowest priority aside of those that may be, if room would come of it."""
        victims = self._victims(work)
        if not victims or work.pages > self.pages.room(work.shareable, [victim.sequence for victim in victims]):
            return False
        victim = self._leave(min(victims, key=lambda other: (other.priority.value, -other.number)))
        victim.streaming, victim.computed, victim.restoring = False, 0, []
        self._waiting.push(victim, first=True)
        self.preemptions += 1
        return True

    def _victims(self, work: Work) -> list[Work]:
        """Who may be put aside for the work. None of its tenant's equals; and of others' none before it had a turn that
        is worth its computing again."""
        priority, far = work.priority.value, self._counters[work.tenant] + OUTPUT_WEIGHT * TURN_TOKENS
        return [
            other
            for other in self._running.values()
            if other.priority.value < priority
            or (
                other.priority.value == priority
                and self._counters[other.tenant] >= far
                and other.known - other.known_before >= max(TURN_TOKENS, other.known / PREFILL_TOKENS_A_STEP)
            )
        ]

    def _leave(self, work: Work) -> Work:
        """The work runs no longer; its whole pages stay for others, and for itself."""
        self._complete_pages(work)
        del self._running[work.order.request]
        self._unpromise(work, work.keys)
        self.pages.retire(work.sequence)
        return work

    # --- prefixes ---

    def _is_coming(self, work: Work) -> bool:
        """Is the first page that the work lacks about to be there, by one that does not wait for the likes of it?"""
        if work.waits_for not in self._coming:
            lacking = work.shareable
            held = self.pages.match(lacking)
            work.waits_for = lacking[held] if held < len(lacking) else b""
        promiser = self._coming.get(work.waits_for)
        return promiser is not None and promiser.priority.value >= work.priority.value

    def _promise(self, work: Work) -> None:
        for key in work.keys[work.computed // PAGE_TOKENS :]:
            other = self._coming.get(key)
            if other is None or other.priority.value < work.priority.value:
                self._coming[key] = work

    def _unpromise(self, work: Work, keys: Sequence[bytes]) -> None:
        for key in keys:
            if self._coming.get(key) is work:
                del self._coming[key]

    def _restore(self) -> None:
        streams = any(work.ready for work in self._running.values())
        room = self._movable(RESTORES_A_STEP if streams else WHEN_IDLE)
        for work in self._running.values():
            if work.restoring and room > 0:
                first = work.computed // PAGE_TOKENS
                for page, key in enumerate(work.restoring[:room], first):
                    self.pages.restore(work.order.request, work.sequence, page, key)
                room -= len(work.restoring[:room])

    def _movable(self, most: tuple[int, int]) -> int:
        """How many pages that is; one in any case."""
        return max(1, min(most[0], most[1] // self.page_bytes))

    def _complete_pages(self, work: Work) -> None:
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
