"""The scheduler against a simulated cache that keeps what llama.cpp would, and refuses what llama.cpp would."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PromptTooLong, QueueFull
from appliance.infer.scheduler import Copy, Scheduler, Step, Trim


class Cache:
    """A unified cache: cells by (position, token history), each held by a set of sequences. A full cache fails."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.cell_holders: dict[int, set[int]] = {}
        self.of: dict[int, list[tuple[int, int]]] = {}  # sequence -> (cell, token) by position
        self.next = 0
        self.computed_tokens = 0

    def run(self, step: Step) -> None:
        for move in step.moves:
            if isinstance(move, Copy):
                assert not self.of.get(move.target), "a copy goes to an empty sequence"
                self.of[move.target] = self.of[move.source][: move.tokens]
                assert len(self.of[move.target]) == move.tokens
                for cell, _ in self.of[move.target]:
                    self.cell_holders[cell].add(move.target)
            else:
                self._trim(move)
        for chunk in step.chunks:
            row = self.of.setdefault(chunk.sequence, [])
            assert len(row) == chunk.start, "positions of a sequence follow one another"
            for token in chunk.tokens:
                self.cell_holders[self.next] = {chunk.sequence}
                row.append((self.next, int(token)))
                self.next += 1
                self.computed_tokens += 1
        assert len(self.cell_holders) <= self.cells, "no step finds the cache full"

    def tokens(self, sequence: int) -> list[int]:
        return [token for _, token in self.of[sequence]]

    def _trim(self, move: Trim) -> None:
        row = self.of.get(move.sequence, [])
        for cell, _ in row[move.tokens :]:
            self.cell_holders[cell].discard(move.sequence)
            if not self.cell_holders[cell]:
                del self.cell_holders[cell]
        self.of[move.sequence] = row[: move.tokens]


class Simulation:
    """Runs a scheduler to the end; the 'model' continues a sequence by a hash of all its tokens."""

    def __init__(self, **options: int) -> None:
        settings = {"cells": 2048, "sequences": 4, "sequence_ids": 16, "batch_tokens": 128, "queue": 1000} | options
        self.scheduler = Scheduler(**settings)  # type: ignore[arg-type]
        self.cache = Cache(settings["cells"])
        self.batch_tokens = settings["batch_tokens"]
        self.wanted: dict[int, int] = {}
        self.outputs: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.prompts: dict[int, list[int]] = {}
        self.now = 0.0

    def submit(self, request: int, prompt: list[int], max_tokens: int, salt: bytes = b"") -> None:
        self.scheduler.submit(request, np.array(prompt, np.int32), max_tokens, salt, self.now)
        self.wanted[request], self.outputs[request], self.prompts[request] = max_tokens, [], prompt

    def step(self) -> Step:
        self.now += 1.0
        step = self.scheduler.plan(self.now)
        assert sum(len(chunk.tokens) for chunk in step.chunks) <= self.batch_tokens
        self.cache.run(step)
        for chunk in step.chunks:
            if chunk.samples:
                history = self.cache.tokens(chunk.sequence)
                assert history == self.prompts[chunk.request] + self.outputs[chunk.request]
                token = hash(tuple(history)) % 1000
                self.outputs[chunk.request].append(token)
                self.scheduler.extend(chunk.request, token)
                if len(self.outputs[chunk.request]) == self.wanted[chunk.request]:
                    self.cached[chunk.request] = self.scheduler.finish(chunk.request, self.now).cached_input_tokens
        return step

    def run(self) -> None:
        for _ in range(100_000):
            if not self.scheduler.busy:
                return
            self.step()
        raise AssertionError("it never came to an end")


def prompt(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 1000, count)]


def test_hundreds_of_requests_all_end_with_the_tokens_they_would_have_had_alone() -> None:
    together = Simulation()
    random = np.random.default_rng(1)
    shared = [prompt(seed, 200) for seed in range(5)]
    for request in range(300):
        head = shared[int(random.integers(5))][: int(random.integers(0, 200))]
        together.submit(
            request, head + prompt(100 + request, int(random.integers(1, 300))), int(random.integers(1, 30))
        )
    together.run()
    for request in range(0, 300, 29):
        alone = Simulation()
        alone.submit(request, together.prompts[request], together.wanted[request])
        alone.run()
        assert together.outputs[request] == alone.outputs[request]
    assert sum(together.cached.values()) > 5_000
    assert together.scheduler.cells_used == 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_is_asked_and_cancelled_the_cache_is_never_found_full(data: st.DataObject) -> None:
    simulation = Simulation(cells=512, sequences=3, sequence_ids=5, batch_tokens=64)
    for request in range(40):
        head = prompt(data.draw(st.integers(0, 2)), 128)[: data.draw(st.integers(0, 128))]
        tail = prompt(1000 + request, data.draw(st.integers(1, 150)))
        simulation.submit(request, head + tail, data.draw(st.integers(1, 80)))
        for _ in range(data.draw(st.integers(0, 3))):
            simulation.step()
        if data.draw(st.booleans()):
            simulation.scheduler.cancel(data.draw(st.integers(0, request)), simulation.now)
    simulation.run()
    assert simulation.scheduler.cells_used == 0


def test_running_streams_come_before_prompts_and_a_long_prompt_never_stalls_them() -> None:
    simulation = Simulation()
    simulation.submit(1, prompt(1, 10), 50)
    simulation.step()
    simulation.submit(2, prompt(2, 1000), 5)
    for _ in range(8):
        step = simulation.step()
        assert [chunk.request for chunk in step.chunks] == [1, 2]
        assert len(step.chunks[0].tokens) == 1
    assert len(simulation.outputs[1]) == 9


def test_two_requests_with_the_same_start_compute_it_once() -> None:
    simulation = Simulation()
    head = prompt(1, 640)
    for request in range(4):
        simulation.submit(request, head + prompt(10 + request, 10), 3)
    simulation.run()
    assert simulation.cache.computed_tokens == 640 + 4 * (10 + 3 - 1)
    assert simulation.cached == {0: 0, 1: 640, 2: 640, 3: 640}


def test_the_second_turn_of_a_conversation_reuses_the_answer_too() -> None:
    simulation = Simulation()
    simulation.submit(1, prompt(1, 100), 100)
    simulation.run()
    simulation.submit(2, prompt(1, 100) + simulation.outputs[1] + prompt(2, 20), 5)
    simulation.run()
    assert simulation.cached[2] == 192


def test_salts_share_nothing() -> None:
    simulation = Simulation()
    simulation.submit(1, prompt(1, 300), 3, salt=b"one")
    simulation.run()
    simulation.submit(2, prompt(1, 300), 3, salt=b"two")
    simulation.submit(3, prompt(1, 300), 3, salt=b"one")
    simulation.run()
    assert simulation.cached == {1: 0, 2: 0, 3: 256}


def test_a_request_that_can_never_fit_is_refused_before_it_waits() -> None:
    simulation = Simulation(cells=512)
    with pytest.raises(PromptTooLong, match="500 tokens and may be answered with 13; the context holds 512"):
        simulation.submit(1, prompt(1, 500), 13)
    simulation.submit(2, prompt(1, 500), 12)
    simulation.run()
    assert len(simulation.outputs[2]) == 12


def test_a_request_waits_while_the_cells_are_taken() -> None:
    simulation = Simulation(cells=512)
    simulation.submit(1, prompt(1, 300), 100)
    simulation.submit(2, prompt(2, 300), 100)
    simulation.step()
    assert (simulation.scheduler.running, simulation.scheduler.waiting) == (1, 1)
    simulation.run()
    assert len(simulation.outputs[2]) == 100


def test_a_large_request_is_not_starved_by_small_ones_behind_it() -> None:
    simulation = Simulation(cells=512)
    simulation.submit(1, prompt(1, 200), 100)
    simulation.submit(2, prompt(2, 400), 10)
    for request in range(3, 30):
        simulation.submit(request, prompt(request, 50), 10)
    simulation.run()
    assert list(simulation.cached)[:2] == [1, 2]


def test_a_full_queue_says_when_to_come_back() -> None:
    simulation = Simulation(queue=3)
    for request in range(3):
        simulation.submit(request, prompt(request, 10), 5)
    with pytest.raises(QueueFull) as refused:
        simulation.submit(3, prompt(3, 10), 5)
    assert refused.value.retry_after_seconds > 0


def test_cancelling_frees_cells_at_once_and_forgets_who_waits() -> None:
    simulation = Simulation(cells=512)
    simulation.submit(1, prompt(1, 300), 100)
    simulation.submit(2, prompt(2, 300), 100)
    simulation.submit(3, prompt(3, 300), 100)
    simulation.step()
    assert simulation.scheduler.cells_used == 400
    simulation.scheduler.cancel(1, simulation.now)
    simulation.scheduler.cancel(2, simulation.now)
    assert simulation.scheduler.cells_used == 0
    simulation.step()
    assert [chunk.request for chunk in simulation.step().chunks] == [3]


def test_idle_prefixes_keep_a_quarter_of_the_cache_and_always_the_last() -> None:
    simulation = Simulation(cells=1024)
    for request in range(10):
        simulation.submit(request, prompt(request, 128), 2)
        simulation.run()
    simulation.step()
    assert len(simulation.cache.cell_holders) == 256
    simulation.submit(20, prompt(20, 640), 2)
    simulation.run()
    simulation.step()
    assert len(simulation.cache.cell_holders) == 640


def test_without_sharing_nothing_is_kept() -> None:
    simulation = Simulation(shares_prefixes=False)
    for request in (1, 2):
        simulation.submit(request, prompt(1, 300), 2)
        simulation.run()
    simulation.step()
    assert simulation.cached == {1: 0, 2: 0}
    assert not simulation.cache.cell_holders
