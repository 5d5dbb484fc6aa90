"""Who goes first, who waits, and who is refused: tenants, priorities and adapters on the simulated cache."""

import itertools

import numpy as np
import pytest

from appliance.errors import QueueFull
from appliance.infer.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT, QUANTUM_STEPS
from appliance.infer.scheduler import TURN_TOKENS, Scheduler
from appliance.infer.work import Order
from appliance.types import Priority
from tests.infer.simulation import Simulation, prompt


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


def test_equal_priorities_of_a_tenant_never_preempt_one_another() -> None:
    simulation = Simulation(2048)
    for request in range(3):
        simulation.submit(request, prompt(request, 200), 1800)
    simulation.run()
    assert simulation.scheduler.preemptions == 0


def test_who_reserves_all_there_is_gives_way_after_a_turn_to_a_tenant_that_was_served_less() -> None:
    alone = Simulation(8192)
    alone.submit(1, prompt(1, 100), 3000)
    alone.run()
    simulation = Simulation(8192)
    simulation.submit(1, prompt(1, 100), 8000, tenant="greedy")
    for _ in range(10):
        simulation.step()
    for request in range(10, 14):
        simulation.submit(request, prompt(request, 100), 20, tenant="b")
    while not simulation.outputs[10]:
        simulation.step()
    assert TURN_TOKENS <= len(simulation.outputs[1]) <= TURN_TOKENS + 10
    while len(simulation.outputs[1]) < 3000:
        simulation.step()
    assert simulation.cached.keys() == {10, 11, 12, 13}
    assert simulation.scheduler.preemptions == 1
    assert simulation.outputs[1][:3000] == alone.outputs[1]


def test_who_has_all_sequences_gives_one_way_too_and_short_answers_are_never_put_aside() -> None:
    simulation = Simulation(16384, sequences=4)
    for request in range(4):
        simulation.submit(request, prompt(request, 100), 1500 if request else TURN_TOKENS, tenant="greedy")
    simulation.step()
    simulation.submit(10, prompt(10, 100), 20, tenant="b")
    simulation.submit(11, prompt(11, 100), TURN_TOKENS, tenant="b")
    simulation.run()
    assert list(simulation.cached)[:2] == [0, 10]
    assert all(len(simulation.outputs[name]) == order.max_tokens for name, order in simulation.orders.items())


def test_tenants_that_can_only_run_one_at_a_time_take_turns_and_each_is_worth_its_computing_again() -> None:
    simulation = Simulation(4096)
    simulation.submit(1, prompt(1, 1000), 3000, tenant="a")
    simulation.submit(2, prompt(2, 1000), 3000, tenant="b")
    simulation.run()
    assert 2 <= simulation.scheduler.preemptions <= 2 * 3000 / TURN_TOKENS
    assert simulation.cache.computed_tokens <= 2 * 4000 + simulation.scheduler.preemptions * 4000


def test_a_full_queue_gives_a_newcomer_the_place_of_the_youngest_of_the_tenant_that_has_most() -> None:
    simulation = Simulation(queue=6)
    for request in range(5):
        simulation.submit(request, prompt(request, 10), 5, tenant="a", priority=Priority(3 - request % 2))
    for request in (10, 11):
        simulation.submit(request, prompt(request, 10), 5, tenant="b", priority=Priority.LOW)
    simulation.step()
    assert set(simulation.refused) == {3}, "the youngest of tenant a's lowest priority"
    assert 0 < simulation.refused[3].retry_after_seconds <= 60
    simulation.run()
    assert simulation.cached.keys() == {0, 1, 2, 4, 10, 11}


def test_a_tenant_that_floods_refuses_only_itself() -> None:
    simulation, numbers, polite = Simulation(queue=16), itertools.count(), set[int]()
    for _ in range(20):
        for tenant in ["a"] * 30 + ["b"]:
            request = next(numbers)
            try:
                simulation.submit(request, prompt(request, 100), 20, tenant=tenant)
            except QueueFull as full:
                simulation.refused[request] = full
        polite.add(request)
        for _ in range(10):
            simulation.step()
    simulation.run()
    assert simulation.cached.keys() >= polite
    assert simulation.cached.keys() | simulation.refused.keys() == set(range(next(numbers)))
    assert not simulation.cached.keys() & simulation.refused.keys(), "each is told once how it ended"


def test_in_a_full_queue_a_tenants_own_higher_priority_takes_a_lower_ones_place_and_an_equal_does_not() -> None:
    simulation = Simulation(queue=2)
    for request in (1, 2):
        simulation.submit(request, prompt(request, 10), 5, priority=Priority.LOW)
    with pytest.raises(QueueFull):
        simulation.submit(3, prompt(3, 10), 5, priority=Priority.LOW)
    simulation.submit(4, prompt(4, 10), 5)
    simulation.run()
    assert (set(simulation.refused), set(simulation.cached)) == ({2}, {1, 4})


def test_whoever_asks_first_what_a_full_queue_would_say_hears_the_same() -> None:
    simulation = Simulation(queue=3)
    for request, tenant in enumerate("aab"):
        simulation.scheduler.check_queue(tenant)
        simulation.submit(request, prompt(request, 10), 5, tenant=tenant)
    with pytest.raises(QueueFull):
        simulation.scheduler.check_queue("a")
    with pytest.raises(QueueFull):
        simulation.scheduler.check_queue("b")  # would have as many as a
    assert simulation.scheduler.check_queue("c")
    assert simulation.scheduler.waiting == 3, "asking changes nothing"


def test_who_was_refused_and_is_cancelled_before_it_is_told_is_told_nothing() -> None:
    simulation = Simulation(queue=2)
    for request in (1, 2):
        simulation.submit(request, prompt(request, 10), 5, tenant="a")
    simulation.submit(3, prompt(3, 10), 5, tenant="b", priority=Priority.LOW)
    for request in (1, 3):
        simulation.cancel(request)
    assert simulation.scheduler.busy, "somebody is still to be told"
    simulation.cancel(2)
    assert not simulation.scheduler.busy
    assert simulation.step().refused == {}


def test_who_ran_before_never_loses_its_place_in_a_full_queue() -> None:
    simulation = Simulation(512, queue=2)
    for request in (1, 2):
        simulation.submit(request, prompt(request, 150), 100, tenant="a", priority=Priority.LOW)
    simulation.step()
    simulation.submit(3, prompt(3, 400), 100, tenant="b", priority=Priority.HIGH)
    simulation.step()
    assert simulation.scheduler.preempted == 2
    with pytest.raises(QueueFull):
        simulation.submit(4, prompt(4, 10), 5, tenant="c")
    simulation.run()
    assert simulation.cached.keys() == {1, 2, 3}


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
    lengths = []
    while not simulation.outputs[2]:
        simulation.step()
        lengths.append(len(simulation.outputs[1]))
    pauses = [len(list(steps)) for _, steps in itertools.groupby(lengths)]
    assert max(pauses) <= 1 + QUANTUM_STEPS
    assert 20 < len(simulation.outputs[1]) < 200
    simulation.run()
    assert [len(simulation.outputs[request]) for request in (1, 2)] == [200, 10]


@pytest.mark.parametrize("adapters", [1, 7])
def test_a_tenant_with_many_adapters_leaves_another_its_share_of_the_time(adapters: int) -> None:
    simulation = Simulation(16384, sequences=8)
    for request in range(7):
        simulation.submit(request, prompt(request, 30), 1500, tenant="a", adapter=f"lora{request % adapters}")
    simulation.submit(50, prompt(50, 30), 1500, tenant="b")
    lengths = []
    for _ in range(600):
        simulation.step()
        lengths.append(len(simulation.outputs[50]))
    assert 270 <= len(simulation.outputs[50]) <= 330
    pauses = [len(list(steps)) for _, steps in itertools.groupby(lengths[20:])]
    assert max(pauses) <= 1 + 2 * QUANTUM_STEPS, "a's adapters never come all in a row"
    own = [len(simulation.outputs[request]) for request in range(7)]
    assert min(own) >= 0.8 * max(own), "and have a's share between them"


def test_an_adapter_that_only_a_tenant_served_elsewhere_wants_is_not_starved() -> None:
    simulation = Simulation(16384, sequences=8)
    simulation.submit(1, prompt(1, 30), 1500, tenant="a", adapter="both")
    simulation.submit(2, prompt(2, 30), 1500, tenant="a", adapter="own")
    simulation.submit(3, prompt(3, 30), 1500, tenant="b", adapter="both")
    for _ in range(600):
        simulation.step()
    assert 170 <= len(simulation.outputs[2]) <= 230, "b is served half as much again as a's own"
    assert 370 <= len(simulation.outputs[3]) <= 430


def test_a_tenant_alone_on_its_adapter_goes_as_fast_as_many_that_share_one() -> None:
    simulation = Simulation(16384, sequences=8)
    for request in range(7):
        simulation.submit(request, prompt(request, 30), 1500, tenant=f"tenant{request}")
    simulation.submit(7, prompt(7, 30), 1500, tenant="alone", adapter="own")
    for _ in range(600):
        simulation.step()
    assert all(270 <= len(output) <= 330 for output in simulation.outputs.values())


def test_a_turn_is_worth_computing_again_what_was_put_aside() -> None:
    scheduler = Scheduler(pages=512, sequences=2, sequence_ids=16, batch_tokens=512, queue=4)
    scheduler.submit(Order(1, np.arange(32_000, dtype=np.int32), 700, tenant="a"), 0.0)
    while not scheduler.plan(0.0).chunks[0].samples:
        pass
    scheduler.submit(Order(2, np.arange(32_000, dtype=np.int32), 10, tenant="b"), 0.0)
    for _ in range(699):
        scheduler.extend(1, [1])
        assert [chunk.request for chunk in scheduler.plan(0.0).chunks] == [1]
    assert scheduler.preemptions == 0
