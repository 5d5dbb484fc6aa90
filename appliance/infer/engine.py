"""One model's engine: a thread that plans, moves pages, computes, and delivers, step after step.

Callers submit and cancel from any thread; one lock guards the scheduler and is never held while llama.cpp computes.
Everything outside `llama_decode` is meant to stay near one percent of a step: numpy views, one delivery a step.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import structlog

from appliance.errors import ApplianceError, DeadlineExceeded, InvalidArgument, ModelRestarting, PromptTooLong
from appliance.infer import pages
from appliance.infer.answer import Advance, Answer
from appliance.infer.llama import MAX_SEQUENCES, Context, Model
from appliance.infer.lora import Adapters
from appliance.infer.pages import PAGE_TOKENS, Copy, Move, Restore, Save, Tokens
from appliance.infer.protocol import EXIT_ENGINE_FAILED
from appliance.infer.scheduler import (
    MOST_DRAFTED,
    NOTHING,
    Account,
    Chunk,
    Scheduler,
    output_rows,
    sequence_ids,
)
from appliance.infer.speculate import Drafter, DraftModel, PromptLookup
from appliance.infer.tiers import Tiers
from appliance.infer.work import Order
from appliance.types import EngineStats, Finish, FinishReason, Generation, Segment, Text, Timings, Usage

Piece = Text | Finish | ApplianceError
Deliver = Callable[[Piece], None]
Post = Callable[[list[tuple[Deliver, Piece]]], None]
PAGED = "paged"
log = structlog.get_logger()


@dataclass(slots=True)
class _Totals:
    """What EngineStats counts from the start."""

    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    drafted_tokens_total: int = 0
    accepted_tokens_total: int = 0
    steps_total: int = 0
    compute_seconds_total: float = 0.0
    step_seconds_total: float = 0.0


@dataclass(slots=True)
class _Stream:
    """A request on its way: what makes its answer, and where that goes."""

    answer: Answer
    deliver: Deliver
    adapter: str
    first_token_seconds: float = field(default=0.0)


class Engine:
    """Continuous batching of one model."""

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch_tokens: int,
        queue: int,
        threads: int,
        post: Post,
        kv_type: str = "f16",
        identity: bytes = b"",
        tiers: Tiers | None = None,
        attention: str = "",
        speculate_below_streams: int = 4,
        draft_model: DraftModel | None = None,
        prefill_beside_streams: int = 0,
    ) -> None:
        """cells: KV cells that all sequences share. post: called once a step with what the step gave, on the engine's
        thread. identity: of model and cache, for the pages' keys. tiers, draft_model: become the engine's to close.
        attention: which kernel computes it. speculate_below_streams: no drafts where more requests run, 0 for never;
        they come from the draft model, or else from the request's own tokens. prefill_beside_streams: rows of prompts
        in a step for which streams wait, 0 for the whole budget. Raises ModelTooLarge, ModelUnsupported.
        """
        sequences = min(sequences, MAX_SEQUENCES // 2)
        ids = sequence_ids(sequences)
        page_count = cells // PAGE_TOKENS
        self._shares = shares = model.shares_prefixes(cells)
        self.model, self.cells, self._post, self._identity = model, cells, post, identity
        self._tiers = tiers if shares else None
        self._owned_tiers = tiers
        # a draft that was wrong is taken back, which a state that is recurrent or has left its window cannot be
        self._speculate_below, self._draft_model = speculate_below_streams if shares else 0, draft_model
        self._context = Context(
            model,
            cells=cells,
            sequences=ids,
            batch_tokens=batch_tokens,
            threads=threads,
            outputs=output_rows(sequences, batch_tokens),
            kv_type=kv_type,
        )
        self._adapters = Adapters(model)
        self._scheduler = Scheduler(
            pages=page_count,
            sequences=sequences,
            sequence_ids=ids,
            batch_tokens=batch_tokens,
            queue=queue,
            shares_prefixes=shares,
            # in the stock kernel every query scans idle cells too
            most_cached=page_count if attention.startswith(PAGED) else page_count // 4,
            saved=self._tiers.holds if self._tiers else None,
            prefill_beside_streams=prefill_beside_streams,
        )
        self._totals, self._attention = _Totals(), attention
        self._streams: dict[int, _Stream] = {}
        self._dead: list[Answer] = []  # for the engine's thread to close: it may be using them
        self._wake = threading.Condition()
        self._closing = False
        self._next_request = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the step in flight, keep what is warm in the tiers, and free the context; the model stays.

        Nothing is taken in from here on, also of what is being tokenized now: `submit` raises ModelRestarting.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        for request in list(self._streams):
            self.cancel(request)
        while self._scheduler.busy:
            step = self._scheduler.plan(time.monotonic())
            assert not step.chunks  # what is planned but not computed would be saved as if it were
            self._move(step.moves)
        for answer in self._dead:
            answer.close()
        if self._owned_tiers:
            self._owned_tiers.close()
        if self._draft_model:
            self._draft_model.close()
        self._context.close()

    def submit(self, generation: Generation, deliver: Deliver) -> int:
        """Take a request in and name it. `deliver` gets Text pieces and then one Finish or one error, in order.

        Tokenizes, and compiles a constraint, here on the caller's thread; so are an adapter and pages on disk loaded.
        Raises InvalidArgument, PromptTooLong, QueueFull, ModelRestarting, and ModelMissing, AdapterMismatch,
        ModelDamaged of an adapter.
        """
        with self._wake:
            self._check_open()
            self._scheduler.check_queue(generation.tenant, generation.priority)
        prompt = np.array(self.encode(generation.prompt), np.int32)
        if not len(prompt):
            raise InvalidArgument.of("prompt", "must not be empty.")
        max_tokens = 1 if generation.labels else generation.sampling.max_tokens
        self._scheduler.check_size(len(prompt), max_tokens)
        answer = Answer(generation, self.model.vocabulary, prompt, self._drafter(generation, prompt))
        adapter = ""
        try:
            adapter = self._adapters.acquire(generation.adapter)
            root = pages.root(generation.prefix_salt, self._identity, adapter)
            keys = tuple(pages.chain(prompt, root)) if self._shares else ()
            if self._tiers:
                self._tiers.warm(keys)
            order = Order(
                request=0,
                prompt=prompt,
                max_tokens=max_tokens,
                root=root,
                tenant=generation.tenant,
                adapter=adapter,
                priority=generation.priority,
                keys=keys,
            )
            with self._wake:
                return self._submit(order, generation.deadline_seconds, _Stream(answer, deliver, adapter))
        except Exception:
            self._adapters.release(adapter)
            answer.close()
            raise

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a prompt; on any thread. Raises InvalidArgument, PromptTooLong."""
        vocabulary = self.model.vocabulary
        size = sum(len(segment.text) for segment in segments)
        if size > self.cells * vocabulary.longest_bytes:  # cannot fit: say so without tokenizing it
            raise PromptTooLong(f"The prompt has {size} characters; the context holds {self.cells} tokens.")
        return vocabulary.encode(segments)

    def cancel(self, request: int) -> None:
        """The request is no longer wanted; its pages are free from the next step on. One that has ended is let be."""
        with self._wake:
            if request in self._streams:
                self._scheduler.cancel(request, time.monotonic())
                self._forget(request)
                self._wake.notify()

    @property
    def stats(self) -> EngineStats:
        with self._wake:
            scheduler, tiers = self._scheduler, self._tiers
            return EngineStats(
                **asdict(self._totals),
                running=scheduler.running,
                waiting=scheduler.waiting,
                preempted=scheduler.preempted,
                pages_total=scheduler.pages.total,
                pages_used=scheduler.pages.used,
                pages_cached=scheduler.pages.cached,
                host_pages=tiers.host_pages if tiers else 0,
                disk_pages=tiers.disk_pages if tiers else 0,
                preemptions_total=scheduler.preemptions,
                requests_total=self._next_request,
                attention=self._attention,
                disk_fault=tiers.disk_fault if tiers else "",
            )

    def run_until_idle(self) -> None:
        """Compute on the caller's thread, instead of `start`, until nothing is left to do."""
        while self._scheduler.busy:
            self._step()

    def _drafter(self, generation: Generation, prompt: Tokens) -> Drafter | None:
        if not self._speculate_below or generation.labels:
            return None
        return self._draft_model.begin(prompt, generation.sampling) if self._draft_model else PromptLookup(prompt)

    def _submit(self, order: Order, deadline_seconds: float, stream: _Stream) -> int:
        self._check_open()
        now, request = time.monotonic(), self._next_request + 1
        deadline = now + deadline_seconds if deadline_seconds else 0.0
        self._scheduler.submit(order._replace(request=request, deadline_seconds=deadline), now)
        self._next_request, self._streams[request] = request, stream
        self._wake.notify()
        return request

    def _check_open(self) -> None:
        if self._closing:
            raise ModelRestarting("The model is being unloaded or started again.")

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._scheduler.busy or self._dead or self._closing)
                    if self._closing:
                        return
                self._step()
        except Exception as error:  # noqa: BLE001  whatever it was, the process must go
            # the cache is not to be trusted: the supervisor starts a new process, and calls in flight hear of it
            log.critical("engine.failed", error=type(error).__name__, native=str(error)[:200])
            os._exit(EXIT_ENGINE_FAILED)

    def _step(self) -> None:
        began = time.monotonic()
        drafts = self._drafts()
        pieces: list[tuple[Deliver, Piece]] = []
        with self._wake:
            step = self._scheduler.plan(began, drafts)
            if step.chunks:  # all who use it may be gone before it is computed with
                self._adapters.use(step.adapter)
            for request in step.expired:
                late = DeadlineExceeded("The request's deadline passed before its answer was complete.")
                pieces.append((self._forget(request).deliver, late))
            for request, full in step.refused.items():
                pieces.append((self._forget(request).deliver, full))
        self._move(step.moves)
        if step.chunks:
            with self._adapters.native:
                self._adapters.apply(self._context, step.adapter)
                ready = time.monotonic()
                rows = self._context.compute(step.chunks)
                self._totals.compute_seconds_total += time.monotonic() - ready
            self._adapters.release(step.adapter)
            self._totals.steps_total += 1
            self._advance(step.chunks, rows, pieces)
        if pieces:
            self._post(pieces)
        self._totals.step_seconds_total += time.monotonic() - began

    def _drafts(self) -> Mapping[int, Tokens]:
        """Guesses at what follows, while few enough requests run that a step has rows to spare."""
        with self._wake:
            dead, self._dead = self._dead, []
            requests = self._scheduler.streaming if self._scheduler.running <= self._speculate_below else []
            streams = {request: self._streams[request] for request in requests}
            # an adapter's turn lasts several steps: what another's would guess at now is mostly for nothing
            streams = {name: stream for name, stream in streams.items() if stream.adapter == self._adapters.applied}
        for answer in dead:
            answer.close()
        if not streams:
            return NOTHING
        return {name: stream.answer.draft(MOST_DRAFTED // len(streams)) for name, stream in streams.items()}

    def _move(self, moves: Sequence[Move]) -> None:
        """Tell the cache what was decided, in order, and the scheduler what could be restored."""
        planned: dict[int, int] = {}
        restored: dict[int, int] = {}
        for move in moves:
            if isinstance(move, Restore):
                request, done = move.request, restored.get(move.request, 0)
                if done == planned.get(request, 0) and self._restore(move):
                    restored[request] = done + 1
                planned[request] = planned.get(request, 0) + 1
            elif isinstance(move, Save):
                self._save(move)
            elif isinstance(move, Copy):
                self._context.copy(move)
            else:
                self._context.trim(move)
        with self._wake:
            for request, count in planned.items():
                self._scheduler.restored(request, restored.get(request, 0), count)

    def _restore(self, move: Restore) -> bool:
        assert self._tiers
        state = self._tiers.get(move.key)
        self._scheduler.page_bytes = len(state) if state else self._scheduler.page_bytes
        return state is not None and self._context.restore(move.sequence, move.page, state)

    def _save(self, move: Save) -> None:
        assert self._tiers
        try:
            state = self._context.save(move.sequence, move.page)
            self._scheduler.page_bytes = len(state)
            self._tiers.put(move.key, state)
        except MemoryError:
            log.warning("kv_host.no_memory")

    def _advance(self, chunks: Sequence[Chunk], rows: Sequence[int], pieces: list[tuple[Deliver, Piece]]) -> None:
        """Let the answers take the logits of their rows, and say what is to be said."""
        made: list[tuple[int, _Stream, Advance]] = []
        for chunk, row in zip(chunks, rows, strict=True):
            stream = self._streams.get(chunk.request)  # None: cancelled while the step ran
            if stream and chunk.samples:
                drafted = chunk.tokens[len(chunk.tokens) - chunk.samples + 1 :]
                logits = [self._context.logits(row + index) for index in range(chunk.samples)]
                made.append((chunk.request, stream, stream.answer.advance(logits, drafted)))
                self._totals.drafted_tokens_total += len(drafted)
        now = time.monotonic()
        with self._wake:
            for request, stream, advance in made:
                if request in self._streams:
                    self._take(request, stream, advance, now, pieces)

    def _take(
        self, request: int, stream: _Stream, made: Advance, now: float, pieces: list[tuple[Deliver, Piece]]
    ) -> None:
        totals = self._totals
        stream.first_token_seconds = stream.first_token_seconds or now
        if made.tokens:
            self._scheduler.extend(request, made.tokens)
        totals.generated_tokens_total += len(made.tokens)
        totals.accepted_tokens_total += made.accepted
        if made.piece:
            pieces.append((stream.deliver, made.piece))
        if made.ended:
            account = self._scheduler.finish(request, now)
            totals.prompt_tokens_total += account.input_tokens
            totals.cached_tokens_total += account.cached_input_tokens
            pieces.append((stream.deliver, _finish(account, stream, made.ended, made.label_logprobs, now)))
            self._forget(request)

    def _forget(self, request: int) -> _Stream:
        stream = self._streams.pop(request)
        self._adapters.release(stream.adapter)
        self._dead.append(stream.answer)
        return stream


def _finish(account: Account, stream: _Stream, reason: FinishReason, logprobs: tuple[float, ...], now: float) -> Finish:
    return Finish(
        reason=reason,
        usage=Usage(account.input_tokens, account.cached_input_tokens, account.output_tokens),
        timings=Timings(
            queue_seconds=account.admitted_seconds - account.submitted_seconds,
            prefill_seconds=stream.first_token_seconds - account.admitted_seconds,
            decode_seconds=now - stream.first_token_seconds,
            total_seconds=now - account.submitted_seconds,
        ),
        label_logprobs=logprobs,
    )
