"""A cache that keeps what llama.cpp would, and refuses what llama.cpp would; and a scheduler that runs on it."""

from collections.abc import Callable

import numpy as np

from appliance.errors import QueueFull
from appliance.infer.pages import PAGE_TOKENS, Copy, Restore, Save, Tokens, Trim, root
from appliance.infer.scheduler import Scheduler, Step
from appliance.infer.work import Order

Guess = Callable[[list[int]], list[int]]


class Cache:
    """A unified cache: cells by (position, token history), each held by a set of sequences. A full cache fails."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.cell_holders: dict[int, set[int]] = {}
        self.of: dict[int, list[tuple[int, int]]] = {}  # sequence -> (cell, token) by position
        self.next = 0
        self.computed_tokens = 0
        self.saved: dict[bytes, list[int]] = {}
        self.damaged: set[bytes] = set()
        self.restored_pages = 0

    def run(self, step: Step, scheduler: Scheduler) -> None:
        restores: dict[int, list[bool]] = {}
        for move in step.moves:
            if isinstance(move, Copy):
                self._copy(move)
            elif isinstance(move, Trim):
                self._trim(move)
            elif isinstance(move, Save):
                row = self.tokens(move.sequence)
                page = row[move.page * PAGE_TOKENS : (move.page + 1) * PAGE_TOKENS]
                assert len(page) == PAGE_TOKENS, "only whole pages are saved, while they are there"
                self.saved[move.key] = page
            else:
                before = restores.setdefault(move.request, [])
                before.append(all(before) and self._restore(move))
        for request, done in restores.items():
            scheduler.restored(request, sum(done), len(done))
        for chunk in step.chunks:
            self._append(chunk.sequence, chunk.start, [int(token) for token in chunk.tokens])
            self.computed_tokens += len(chunk.tokens)
        assert len(self.cell_holders) <= self.cells, "no step finds the cache full"

    def tokens(self, sequence: int) -> list[int]:
        return [token for _, token in self.of[sequence]]

    def _append(self, sequence: int, start: int, tokens: list[int]) -> None:
        row = self.of.setdefault(sequence, [])
        assert len(row) == start, "positions of a sequence follow one another"
        for token in tokens:
            self.cell_holders[self.next] = {sequence}
            row.append((self.next, token))
            self.next += 1

    def _copy(self, move: Copy) -> None:
        assert not self.of.get(move.target), "a copy goes to an empty sequence"
        self.of[move.target] = self.of[move.source][: move.tokens]
        assert len(self.of[move.target]) == move.tokens
        for cell, _ in self.of[move.target]:
            self.cell_holders[cell].add(move.target)

    def _restore(self, move: Restore) -> bool:
        if move.key in self.damaged:
            return False
        self._append(move.sequence, move.page * PAGE_TOKENS, self.saved[move.key])
        self.restored_pages += 1
        return True

    def _trim(self, move: Trim) -> None:
        row = self.of.get(move.sequence, [])
        for cell, _ in row[move.tokens :]:
            self.cell_holders[cell].discard(move.sequence)
            if not self.cell_holders[cell]:
                del self.cell_holders[cell]
        self.of[move.sequence] = row[: move.tokens]


class Simulation:
    """Runs a scheduler to the end; the 'model' continues a sequence by a hash of all its tokens."""

    def __init__(self, cells: int = 2048, *, tiers: bool = False, guess: Guess | None = None, **options: int) -> None:
        settings = {"sequences": 4, "sequence_ids": 16, "batch_tokens": 128, "queue": 1000} | options
        self.cache = Cache(cells)
        saved = self.cache.saved.__contains__ if tiers else None
        self.scheduler = Scheduler(pages=cells // PAGE_TOKENS, saved=saved, **settings)  # type: ignore[arg-type]
        self.batch_tokens, self.guess = settings["batch_tokens"], guess
        self.orders: dict[int, Order] = {}
        self.outputs: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.prompts: dict[int, list[int]] = {}
        self.expired: list[int] = []
        self.refused: dict[int, QueueFull] = {}
        self.accepted = 0
        self.gone: set[int] = set()
        self.meanwhile: Callable[[], None] = lambda: None  # what callers do while a step is computed
        self.now = 0.0

    def submit(self, request: int, prompt: list[int], max_tokens: int, salt: bytes = b"", **options: object) -> None:
        order = Order(request, np.array(prompt, np.int32), max_tokens, root(salt, b"m", ""), **options)  # type: ignore[arg-type]
        self.scheduler.submit(order, self.now)
        self.orders[request], self.outputs[request], self.prompts[request] = order, [], prompt

    def step(self) -> Step:
        self.now += 1.0
        step = self.scheduler.plan(self.now, self.drafts())
        assert sum(len(chunk.tokens) for chunk in step.chunks) <= self.batch_tokens
        assert {self.orders[chunk.request].adapter for chunk in step.chunks} <= {step.adapter}
        self.expired += step.expired
        self.refused |= step.refused
        self.meanwhile()
        self.cache.run(step, self.scheduler)
        for chunk in step.chunks:
            if chunk.samples and chunk.request not in self.gone:
                history = self.cache.tokens(chunk.sequence)
                drafted = history[len(history) - chunk.samples + 1 :]
                history = history[: len(history) - len(drafted)]
                assert history == self.prompts[chunk.request] + self.outputs[chunk.request]
                self.sample(chunk.request, history, drafted)
        return step

    def cancel(self, request: int) -> None:
        self.gone.add(request)
        self.scheduler.cancel(request, self.now)

    def sample(self, request: int, history: list[int], drafted: list[int]) -> None:
        wanted, tokens = self.orders[request].max_tokens - len(self.outputs[request]), [follow(history)]
        for draft in drafted:
            if draft != tokens[-1] or len(tokens) == wanted:
                break
            tokens.append(follow(history + tokens))
        self.accepted += self.scheduler.extend(request, tokens)
        self.outputs[request] += tokens
        if len(tokens) == wanted:
            self.cached[request] = self.scheduler.finish(request, self.now).cached_input_tokens

    def drafts(self) -> dict[int, Tokens]:
        if self.guess is None:
            return {}
        histories = {name: self.prompts[name] + self.outputs[name] for name in self.scheduler.streaming}
        return {name: np.array(self.guess(history), np.int32) for name, history in histories.items()}

    def run(self) -> None:
        for _ in range(100_000):
            if not self.scheduler.busy:
                return
            self.step()
        raise AssertionError("it never came to an end")


def follow(history: list[int]) -> int:
    return hash(tuple(history)) % 1000


def prompt(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 1000, count)]
