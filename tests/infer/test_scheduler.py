"""The scheduler against a simulated cache that keeps what llama.cpp would, and refuses what llama.cpp would."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PromptTooLong, QueueFull
from appliance.infer.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT
from appliance.infer.pages import PAGE_TOKENS, Copy, Restore, Save, Tokens, Trim, root
from appliance.infer.scheduler import Scheduler, Step
from appliance.infer.work import Order
from appliance.types import Priority

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
        alone.submit(request, together.prompts[request], together.orders[request].max_tokens)
        alone.run()
        assert together.outputs[request] == alone.outputs[request]
    assert sum(together.cached.values()) > 5_000
    assert together.scheduler.pages.used == 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_is_asked_and_cancelled_the_cache_is_never_found_full(data: st.DataObject) -> None:
    simulation = Simulation(512, tiers=data.draw(st.booleans()), sequences=3, sequence_ids=5, batch_tokens=64)
    for request in range(40):
        head = prompt(data.draw(st.integers(0, 2)), 128)[: data.draw(st.integers(0, 128))]
        tail = prompt(1000 + request, data.draw(st.integers(1, 150)))
        simulation.submit(
            request, head + tail, data.draw(st.integers(1, 80)), priority=data.draw(st.sampled_from(Priority))
        )
        for _ in range(data.draw(st.integers(0, 3))):
            simulation.step()
        if data.draw(st.booleans()):
            simulation.cancel(data.draw(st.integers(0, request)))
    simulation.run()
    assert simulation.scheduler.pages.used == 0


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
    assert simulation.scheduler.pages.used == 7
    simulation.scheduler.cancel(1, simulation.now)
    simulation.scheduler.cancel(2, simulation.now)
    assert simulation.scheduler.pages.used == 0
    simulation.step()
    assert [chunk.request for chunk in simulation.step().chunks] == [3]


def test_idle_prefixes_keep_what_they_may_and_always_the_last() -> None:
    simulation = Simulation(1024, most_cached=4)
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


def test_the_least_served_tenant_goes_first() -> None:
    simulation = Simulation(sequences=1, sequence_ids=8)
    for request in range(5):
        simulation.submit(request, prompt(request, 100), 20, tenant="many")
    simulation.step()
    simulation.submit(9, prompt(9, 100), 20, tenant="one")
    simulation.run()
    assert list(simulation.cached)[:3] == [0, 9, 1]


def test_two_tenants_that_always_wait_are_served_alike() -> None:
    """The bound of VTC, theorem 4.4: twice the larger of a request's input and what a batch can hold of outputs."""
    simulation = Simulation(sequences=4)
    served, random = {"a": 0.0, "b": 0.0}, np.random.default_rng(3)
    worst, most = 0.0, 2 * max(INPUT_WEIGHT * 400, OUTPUT_WEIGHT * 2048)
    for request in range(600):
        tenant, size = ("a", 400) if request % 2 else ("b", int(random.integers(1, 60)))
        simulation.submit(request, prompt(request, size), int(random.integers(1, 40)), tenant=tenant)
    done: dict[int, int] = {}
    while min(simulation.scheduler._waiting._lines[Priority.NORMAL].get(name, ()) != () for name in served):
        step = simulation.step()
        for chunk in step.chunks:
            tenant = simulation.orders[chunk.request].tenant
            prompt_left = max(0, len(simulation.prompts[chunk.request]) - chunk.start)
            served[tenant] += INPUT_WEIGHT * min(prompt_left, len(chunk.tokens))
            grown = len(simulation.outputs[chunk.request]) - done.get(chunk.request, 0)
            served[tenant] += OUTPUT_WEIGHT * grown
            done[chunk.request] = len(simulation.outputs[chunk.request])
        worst = max(worst, abs(served["a"] - served["b"]))
    assert simulation.now > 200
    assert worst <= most


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    simulation = Simulation(sequences=1, sequence_ids=8)
    for request in range(20):
        simulation.submit(request, prompt(request, 50), 10, tenant="a")
    for _ in range(100):
        simulation.step()
    before = len(simulation.cached)
    for request in range(20, 40):
        simulation.submit(request, prompt(request, 50), 10, tenant="b")
    simulation.run()
    order = [simulation.orders[request].tenant for request in list(simulation.cached)[before : before + 12]]
    assert order.count("a") >= 5


def test_a_higher_priority_goes_first_and_takes_the_place_of_a_lower_one() -> None:
    simulation = Simulation(512)
    simulation.submit(1, prompt(1, 200), 200, priority=Priority.LOW)
    simulation.submit(2, prompt(2, 30), 30, priority=Priority.LOW)
    for _ in range(20):
        simulation.step()
    simulation.submit(3, prompt(3, 50), 10, priority=Priority.LOW)
    simulation.submit(4, prompt(4, 300), 20, priority=Priority.HIGH)
    simulation.step()
    assert (simulation.scheduler.preempted, simulation.scheduler.preemptions) == (2, 2)
    simulation.run()
    assert next(iter(simulation.cached)) == 4
    assert [len(simulation.outputs[request]) for request in (1, 2, 3, 4)] == [200, 30, 10, 20]


def test_who_was_preempted_goes_on_as_if_nothing_had_been_and_shares_its_own_pages() -> None:
    alone = Simulation()
    alone.submit(1, prompt(1, 200), 200)
    alone.run()
    simulation = Simulation(512, tiers=True)
    simulation.submit(1, prompt(1, 200), 200, priority=Priority.LOW)
    for _ in range(100):
        simulation.step()
    simulation.submit(2, prompt(2, 300), 20)
    before = simulation.cache.computed_tokens
    simulation.run()
    assert simulation.outputs[1] == alone.outputs[1]
    assert simulation.scheduler.preemptions == 1
    assert simulation.cache.restored_pages > 0
    assert simulation.cache.computed_tokens - before < 300 + 20 + 101 + PAGE_TOKENS


def test_equal_priorities_never_preempt_one_another() -> None:
    simulation = Simulation(512)
    for request in range(6):
        simulation.submit(request, prompt(request, 200), 100)
    simulation.run()
    assert simulation.scheduler.preemptions == 0


def test_past_its_deadline_a_request_ends_wherever_it_is() -> None:
    simulation = Simulation(512)
    simulation.submit(1, prompt(1, 300), 150, deadline_seconds=10.0)
    simulation.submit(2, prompt(2, 300), 150, deadline_seconds=5.0)
    simulation.submit(3, prompt(3, 300), 20, deadline_seconds=500.0)
    simulation.run()
    assert simulation.expired == [2, 1]
    assert len(simulation.outputs[3]) == 20
    assert simulation.scheduler.pages.used == 0


def test_cancelling_in_the_middle_of_a_prompt_frees_all_of_it() -> None:
    simulation = Simulation(shares_prefixes=False)
    simulation.submit(1, prompt(1, 1500), 10)
    simulation.step()
    simulation.scheduler.cancel(1, simulation.now)
    simulation.step()
    assert not simulation.cache.cell_holders
    assert not simulation.scheduler.busy


@pytest.mark.parametrize("right", [0, 1, 3, 8])
def test_drafts_change_how_fast_tokens_come_and_never_which(right: int) -> None:
    def guess(history: list[int]) -> list[int]:
        made: list[int] = []
        for index in range(8):
            made.append(follow(history + made) if index < right else -1)
        return made

    plain, drafted = Simulation(), Simulation(guess=guess)
    for simulation in (plain, drafted):
        for request in range(3):
            simulation.submit(request, prompt(request, 100), 50)
        simulation.run()
    assert drafted.outputs == plain.outputs
    assert drafted.now <= plain.now - 50 + 50 / (1 + right) + 3
    assert (drafted.accepted > 0) == (right > 0)


def test_tokens_that_are_forced_are_computed_with_the_next_step() -> None:
    simulation = Simulation()
    simulation.submit(1, prompt(1, 10), 20)
    simulation.scheduler.plan(1.0)
    simulation.scheduler.extend(1, [5, 6, 7])
    chunk = simulation.scheduler.plan(2.0).chunks[0]
    assert (list(chunk.tokens), chunk.start, chunk.samples) == ([5, 6, 7], 10, 1)


def test_drafts_never_take_the_row_of_a_stream_or_pass_the_end_of_an_answer() -> None:
    simulation = Simulation(batch_tokens=8, sequences=4, guess=lambda history: [1] * 20)
    for request in range(4):
        simulation.submit(request, prompt(request, 2), 3)
    while simulation.scheduler.busy:
        step = simulation.step()
        for chunk in step.chunks:
            assert chunk.start + len(chunk.tokens) < 2 + 3
    assert all(len(output) == 3 for output in simulation.outputs.values())


def test_adapters_take_turns_in_quanta_and_none_starves() -> None:
    simulation = Simulation(cells=8192, sequences=8)
    for request in range(8):
        simulation.submit(request, prompt(request, 30), 100, adapter=f"lora{request % 4}")
    turns: list[str] = []
    while simulation.scheduler.running == 8 or not turns:
        turns.append(simulation.step().adapter)
    counts = [turns.count(f"lora{index}") for index in range(4)]
    assert min(counts) >= 0.8 * max(counts)
    changes = sum(a != b for a, b in itertools.pairwise(turns))
    assert changes <= len(turns) / 3
    simulation.run()


def test_a_base_stream_beside_an_adapters_long_prompt_goes_on() -> None:
    simulation = Simulation(cells=8192)
    simulation.submit(1, prompt(1, 10), 200)
    simulation.step()
    simulation.submit(2, prompt(2, 4000), 10, adapter="lora")
    simulation.run()
    assert list(simulation.cached) == [2, 1] or len(simulation.outputs[1]) == 200
    assert len(simulation.outputs[2]) == 10


def test_an_evicted_prefix_comes_back_from_the_tiers() -> None:
    simulation = Simulation(1024, tiers=True)
    simulation.submit(1, prompt(1, 640), 2)
    simulation.run()
    simulation.submit(2, prompt(2, 900), 2)
    simulation.run()
    before = simulation.cache.computed_tokens
    simulation.submit(3, prompt(1, 640), 2)
    simulation.run()
    assert simulation.cached[3] == 576
    assert simulation.cache.computed_tokens - before == 64 + 1
    assert simulation.outputs[3] == simulation.outputs[1]


def test_a_page_that_cannot_be_restored_is_computed_again() -> None:
    simulation = Simulation(1024, tiers=True)
    simulation.submit(1, prompt(1, 640), 2)
    simulation.run()
    simulation.submit(2, prompt(2, 900), 2)
    simulation.run()
    keys = list(simulation.cache.saved)
    simulation.cache.damaged.add(keys[4])
    simulation.submit(3, prompt(1, 640), 2)
    simulation.run()
    assert simulation.cached[3] == 256
    assert simulation.outputs[3] == simulation.outputs[1]


def test_thousands_of_requests_of_every_kind_all_end_and_leave_nothing_behind() -> None:
    simulation = Simulation(
        4096, tiers=True, sequences=8, sequence_ids=24, queue=5000, guess=lambda history: [follow(history), -1]
    )
    random = np.random.default_rng(7)
    shared = [prompt(seed, 200) for seed in range(4)]

    def cancel_some() -> None:
        if random.random() < 0.05:
            simulation.cancel(int(random.integers(0, max(simulation.orders) + 1)))

    simulation.meanwhile = cancel_some
    for request in range(3000):
        head = shared[int(random.integers(4))][: int(random.integers(0, 200))]
        simulation.submit(
            request,
            head + prompt(100 + request, int(random.integers(1, 80))),
            int(random.integers(1, 12)),
            salt=b"%d" % random.integers(3),
            tenant=f"tenant{random.integers(5)}",
            adapter=["", "", "lora1", "lora2"][int(random.integers(4))],
            priority=Priority(int(random.integers(1, 4))),
            deadline_seconds=float(random.choice([0.0, 0.0, 0.0, simulation.now + 30])),
        )
        for _ in range(int(random.integers(0, 4))):
            simulation.step()
    simulation.run()
    ended = simulation.cached.keys() | simulation.gone | set(simulation.expired)
    assert ended == set(range(3000)), "no request is dropped"
    for request in simulation.cached:
        assert len(simulation.outputs[request]) == simulation.orders[request].max_tokens
    pages = simulation.scheduler.pages
    assert pages.used == 0
    assert pages.free + pages.cached == pages.total
    assert simulation.scheduler.preemptions > 0
    assert not simulation.scheduler._coming


def prompt_rows(step: Step, streams: int) -> int:
    return sum(len(chunk.tokens) for chunk in step.chunks[streams:])


def test_beside_streams_a_step_has_only_so_many_rows_of_prompts_and_alone_the_whole_budget() -> None:
    simulation = Simulation(4096, prefill_beside_streams=32)
    simulation.submit(1, prompt(1, 300), 20)
    assert [prompt_rows(simulation.step(), 0) for _ in range(3)] == [128, 128, 44]
    simulation.submit(2, prompt(2, 1000), 5)
    steps = [simulation.step() for _ in range(12)]
    assert {(len(step.chunks[0].tokens), prompt_rows(step, 1)) for step in steps} == {(1, 32)}
    while len(simulation.outputs[1]) < 20:
        simulation.step()
    assert prompt_rows(simulation.step(), 0) == 128, "nobody waits for it any more"
    simulation.run()
    assert [len(simulation.outputs[request]) for request in (1, 2)] == [20, 5]


def test_where_more_prompts_than_streams_wait_they_get_as_many_times_the_rows() -> None:
    simulation = Simulation(8192, sequences=8, prefill_beside_streams=32)
    simulation.submit(1, prompt(1, 10), 200)
    simulation.step()
    found = []
    for request in range(2, 8):
        simulation.submit(request, prompt(request, 1000), 100)
        found.append(prompt_rows(simulation.step(), 1))
    assert found == [32, 64, 96, 127, 127, 127]


def test_streams_of_another_adapter_wait_for_a_step_too() -> None:
    simulation = Simulation(4096, prefill_beside_streams=32)
    simulation.submit(1, prompt(1, 10), 100)
    simulation.step()
    simulation.submit(2, prompt(2, 1000), 5, adapter="a")
    rows = [prompt_rows(step, 0) for step in (simulation.step() for _ in range(20)) if step.adapter == "a"]
    assert rows
    assert set(rows) == {32}
