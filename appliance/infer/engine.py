"""One model's engine: a thread that plans, computes, samples and delivers, step after step.

Callers submit and cancel from any thread; one lock guards the scheduler and is never held while llama.cpp computes.
Everything outside `llama_decode` is meant to stay near one percent of a step: numpy views, one delivery a step.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from appliance.errors import InvalidArgument, PromptTooLong
from appliance.infer import sampling
from appliance.infer.llama import MAX_SEQUENCES, Context, Detokenizer, Model, Sampler
from appliance.infer.prefix import BLOCK_TOKENS
from appliance.infer.protocol import EXIT_ENGINE_FAILED
from appliance.infer.scheduler import Scheduler
from appliance.types import EngineStats, Finish, FinishReason, Generation, Segment, Text, Timings, Usage

Piece = Text | Finish
Deliver = Callable[[Piece], None]
Post = Callable[[list[tuple[Deliver, Piece]]], None]
log = structlog.get_logger()


@dataclass(slots=True)
class _Answer:
    """A request on its way: how its tokens are chosen, and where its text goes."""

    deliver: Deliver
    sampler: Sampler
    text: Detokenizer
    stops: sampling.StopFilter
    max_tokens: int
    labels: NDArray[np.int32]
    label_texts: tuple[str, ...]
    output_tokens: int = 0
    first_token_seconds: float = field(default=0.0)


class Engine:
    """Continuous batching of one model."""

    def __init__(
        self, model: Model, *, cells: int, sequences: int, batch_tokens: int, queue: int, threads: int, post: Post
    ) -> None:
        """cells: KV cells that all sequences share. post: called once a step with what the step gave, on the engine's
        thread. Raises ModelTooLarge."""
        sequences = min(sequences, MAX_SEQUENCES // 2)
        ids = min(max(4 * sequences, 16), MAX_SEQUENCES)
        self.model, self.cells, self._post = model, cells, post
        self._context = Context(model, cells=cells, sequences=ids, batch_tokens=batch_tokens, threads=threads)
        self._scheduler = Scheduler(
            cells=cells,
            sequences=sequences,
            sequence_ids=ids,
            batch_tokens=batch_tokens,
            queue=queue,
            shares_prefixes=model.shares_prefixes(cells),
        )
        self._answers: dict[int, _Answer] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._next_request = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the step in flight, and free the context; the model stays."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        for answer in self._answers.values():
            answer.sampler.close()
        self._context.close()

    def submit(self, generation: Generation, deliver: Deliver) -> int:
        """Take a request in and name it. `deliver` gets Text pieces and one Finish, in order.

        Tokenizes here, on the caller's thread. Raises InvalidArgument, PromptTooLong, QueueFull.
        """
        vocabulary = self.model.vocabulary
        sampling.check(generation.sampling)
        prompt = np.array(self.encode(generation.prompt), np.int32)
        if not len(prompt):
            raise InvalidArgument.of("prompt", "must not be empty.")
        labels = np.array([vocabulary.label(label) for label in generation.labels], np.int32)
        max_tokens = 1 if len(labels) else generation.sampling.max_tokens
        with self._wake:
            self._next_request += 1
            request = self._next_request
            self._scheduler.submit(request, prompt, max_tokens, generation.prefix_salt, time.monotonic())
            self._answers[request] = _Answer(
                deliver=deliver,
                sampler=Sampler(generation.sampling, vocabulary, prompt),
                text=Detokenizer(vocabulary),
                stops=sampling.StopFilter(generation.sampling.stop),
                max_tokens=max_tokens,
                labels=labels,
                label_texts=generation.labels,
            )
            self._wake.notify()
        return request

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a prompt; on any thread. Raises InvalidArgument, PromptTooLong."""
        vocabulary = self.model.vocabulary
        size = sum(len(segment.text) for segment in segments)
        if size > self.cells * vocabulary.longest_bytes:  # cannot fit: say so without tokenizing it
            raise PromptTooLong(f"The prompt has {size} characters; the context holds {self.cells} tokens.")
        return vocabulary.encode(segments)

    def cancel(self, request: int) -> None:
        """The request is no longer wanted; its cells are free from the next step on. One that has ended is let be."""
        with self._wake:
            if answer := self._answers.pop(request, None):
                self._scheduler.cancel(request, time.monotonic())
                answer.sampler.close()
                self._wake.notify()

    @property
    def stats(self) -> EngineStats:
        with self._wake:
            return EngineStats(
                running=self._scheduler.running,
                waiting=self._scheduler.waiting,
                pages_total=self.cells // BLOCK_TOKENS,
                pages_used=-(-self._scheduler.cells_used // BLOCK_TOKENS),
            )

    @property
    def load(self) -> tuple[int, int, int]:
        """Requests running, requests waiting, KV cells that running requests hold or have reserved."""
        with self._wake:
            return self._scheduler.running, self._scheduler.waiting, self._scheduler.cells_used

    def run_until_idle(self) -> None:
        """Compute on the caller's thread, instead of `start`, until nothing is left to do."""
        while self._scheduler.busy:
            self._step()

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._scheduler.busy or self._closing)
                    if self._closing:
                        return
                self._step()
        except Exception as error:  # noqa: BLE001  whatever it was, the process must go
            # the cache is not to be trusted: the supervisor starts a new process, and calls in flight hear of it
            log.critical("engine.failed", error=type(error).__name__, native=str(error)[:200])
            os._exit(EXIT_ENGINE_FAILED)

    def _step(self) -> None:
        with self._wake:
            step = self._scheduler.plan(time.monotonic())
        self._context.move(step.moves)
        if not step.chunks:
            return
        rows = self._context.compute(step.chunks)
        pieces: list[tuple[Deliver, Piece]] = []
        with self._wake:
            for chunk, row in zip(step.chunks, rows, strict=True):
                answer = self._answers.get(chunk.request)  # None: cancelled while the step ran
                if answer and chunk.samples:
                    self._advance(chunk.request, answer, row, pieces)
        if pieces:
            self._post(pieces)

    def _advance(self, request: int, answer: _Answer, row: int, pieces: list[tuple[Deliver, Piece]]) -> None:
        """Choose the request's next token, and say what is to be said."""
        now = time.monotonic()
        if not answer.output_tokens:
            answer.first_token_seconds = now
        answer.output_tokens += 1
        logprobs: tuple[float, ...] = ()
        ended: FinishReason | None
        if len(answer.labels):
            values = sampling.label_logprobs(self._context.logits(row), answer.labels)
            best, logprobs = int(values.argmax()), tuple(float(value) for value in values)
            token, text, ended = int(answer.labels[best]), answer.label_texts[best], FinishReason.STOP
        else:
            token = self._context.sample(answer.sampler, row)
            text, ended = self._read(answer, token)
        self._scheduler.extend(request, token)
        if text:
            pieces.append((answer.deliver, Text(text)))
        if ended:
            pieces.append((answer.deliver, self._finish(request, answer, ended, logprobs, now)))

    def _read(self, answer: _Answer, token: int) -> tuple[str, FinishReason | None]:
        """What may be shown after this token, and whether the answer has ended."""
        if self.model.vocabulary.is_end(token):
            text = answer.stops.feed(answer.text.flush())
            reason = FinishReason.STOP
        else:
            text = answer.stops.feed(answer.text.feed(token))
            if not answer.stops.stopped and answer.output_tokens < answer.max_tokens:
                return text, None
            reason = FinishReason.STOP if answer.stops.stopped else FinishReason.LENGTH
            text += answer.stops.feed(answer.text.flush())
        return text + answer.stops.flush(), reason

    def _finish(
        self, request: int, answer: _Answer, reason: FinishReason, logprobs: tuple[float, ...], now: float
    ) -> Finish:
        del self._answers[request]
        answer.sampler.close()
        account = self._scheduler.finish(request, now)
        return Finish(
            reason=reason,
            usage=Usage(account.input_tokens, account.cached_input_tokens, account.output_tokens),
            timings=Timings(
                queue_seconds=account.admitted_seconds - account.submitted_seconds,
                prefill_seconds=answer.first_token_seconds - account.admitted_seconds,
                decode_seconds=now - answer.first_token_seconds,
                total_seconds=now - account.submitted_seconds,
            ),
            label_logprobs=logprobs,
        )
