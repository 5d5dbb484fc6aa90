"""What is computed, shared, saved and restored, and when, on a simulated cache; who goes first is test_fairness.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PromptTooLong, QueueFull
from appliance.infer import pages
from appliance.infer.pages import PAGE_TOKENS, chain, root
from appliance.infer.scheduler import Step
from appliance.infer.work import Order
from appliance.types import Priority
from tests.infer.simulation import Simulation, follow, prompt


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
    assert simulation.scheduler.waiting == 3


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


def test_a_higher_priority_does_not_wait_for_a_prefix_that_a_lower_one_computes() -> None:
    simulation = Simulation(8192, sequences=6)
    head = prompt(1, 1280)
    simulation.submit(1, head + prompt(2, 10), 5, priority=Priority.LOW)
    simulation.step()
    for request in range(10, 13):
        simulation.submit(request, prompt(request, 1000), 3)
    simulation.submit(2, head + prompt(3, 10), 5, priority=Priority.HIGH)
    simulation.submit(3, head + prompt(4, 10), 5, priority=Priority.HIGH)
    before = simulation.now
    while not simulation.outputs[2]:
        simulation.step()
    assert simulation.now - before <= 1290 // 128 + 2, "as if it were alone"
    simulation.run()
    assert simulation.cached[3] == 1280, "who is its equal still shares"
    assert not simulation.scheduler._coming


def test_a_prefix_in_the_tiers_is_restored_once_for_all_who_want_it_at_once() -> None:
    simulation = Simulation(4096, tiers=True)
    simulation.submit(1, prompt(1, 640), 2)
    simulation.run()
    simulation.submit(2, prompt(2, 4000), 2)
    simulation.run()
    for request in range(10, 14):
        simulation.submit(request, prompt(1, 640) + prompt(request, 5), 30)
    simulation.step()
    assert (simulation.scheduler.running, simulation.scheduler.pages.used) == (1, 11)
    simulation.step()
    assert (simulation.scheduler.running, simulation.scheduler.pages.used) == (4, 14), "it is there for the others"
    simulation.run()
    assert simulation.cache.restored_pages == 9, "all but the one that was still there"
    assert [simulation.cached[request] for request in range(10, 14)] == [640] * 4
    assert not simulation.scheduler._coming


def test_who_waited_for_a_page_that_cannot_be_restored_shares_what_is_computed_instead() -> None:
    simulation = Simulation(4096, tiers=True)
    simulation.submit(1, prompt(1, 640), 2)
    simulation.run()
    simulation.submit(2, prompt(2, 4000), 2)
    simulation.run()
    simulation.cache.damaged.add(list(simulation.cache.saved)[4])
    before = simulation.cache.computed_tokens
    for request in (10, 11):
        simulation.submit(request, prompt(1, 640) + prompt(request, 5), 2)
    simulation.run()
    assert simulation.cache.restored_pages == 3
    assert [simulation.cached[request] for request in (10, 11)] == [256, 640]
    assert simulation.cache.computed_tokens - before == (645 - 256 + 1) + (5 + 1)
    assert not simulation.scheduler._coming


def test_nobody_is_put_aside_in_vain() -> None:
    simulation = Simulation(1024, sequences=8)
    head = prompt(1, 512)
    simulation.submit(1, head + prompt(2, 10), 150, priority=Priority.HIGH)
    while not simulation.outputs[1]:
        simulation.step()
    for request in (2, 3):
        simulation.submit(request, head + prompt(request, 10), 100, priority=Priority.LOW)
    simulation.step()
    simulation.submit(9, prompt(9, 400), 50, priority=Priority.HIGH)  # more than both would leave: they share the head
    simulation.step()
    assert (simulation.scheduler.running, simulation.scheduler.preemptions) == (3, 0)
    simulation.run()
    assert len(simulation.outputs[9]) == 50


def test_who_shares_with_those_that_stay_needs_less_room() -> None:
    simulation = Simulation(1024, sequences=8)
    head = prompt(1, 512)
    simulation.submit(1, head + prompt(2, 10), 150, priority=Priority.HIGH)
    while not simulation.outputs[1]:
        simulation.step()
    simulation.submit(2, prompt(2, 200), 50, priority=Priority.LOW)
    simulation.step()
    simulation.submit(9, head + prompt(9, 200), 50, priority=Priority.HIGH)
    simulation.step()
    assert (simulation.scheduler.running, simulation.scheduler.preemptions) == (2, 1)
    simulation.run()
    assert [len(simulation.outputs[request]) for request in (1, 2, 9)] == [150, 50, 50]


def test_deadlines_of_requests_that_have_ended_are_forgotten_and_the_others_kept() -> None:
    simulation = Simulation(queue=5000)
    simulation.submit(0, prompt(0, 10), 900, deadline_seconds=50.0)
    for request in range(1, 2000):
        simulation.submit(request, prompt(0, 10), 5, deadline_seconds=1e9 - request)
        simulation.scheduler.cancel(request, simulation.now)
    assert len(simulation.scheduler._deadlines) < 10
    simulation.run()
    assert (simulation.expired, simulation.now) == ([0], 50.0)


def test_prompts_are_computed_in_order_of_admission_also_where_streams_take_turns() -> None:
    simulation = Simulation(8192, sequences=8, batch_tokens=16)
    for request in range(3):
        simulation.submit(request, prompt(request, 200), 5)
    for _ in range(12):
        assert [chunk.request for chunk in simulation.step().chunks] == [0]


def test_keys_that_the_caller_made_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation, tokens, under = Simulation(), prompt(1, 300), root(b"", b"m", "")
    simulation.submit(1, tokens, 2)
    simulation.run()
    order = Order(2, np.array(tokens, np.int32), 2, under, keys=tuple(chain(np.array(tokens, np.int32), under)))
    with monkeypatch.context() as patch:
        patch.setattr(pages, "hmac", None)
        simulation.scheduler.submit(order, simulation.now)
        simulation.scheduler.plan(simulation.now)
    assert simulation.scheduler.finish(2, simulation.now).cached_input_tokens == 256
