"""Tokens that are guessed or forced: computed as many at once, and the answer is what it would have been."""

import pytest

from appliance.infer.pages import PAGE_TOKENS
from tests.infer.simulation import Simulation, follow, prompt


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


def test_many_forced_tokens_of_one_stream_are_computed_as_a_prompt_beside_the_others() -> None:
    simulation = Simulation(8192, prefill_beside_streams=32)
    for request in range(4):
        simulation.submit(request, prompt(request, 10), 1000)
    simulation.step()
    step = simulation.scheduler.plan(simulation.now)
    simulation.cache.run(step, simulation.scheduler)
    for chunk in step.chunks:
        simulation.scheduler.extend(chunk.request, [7] * 80 if chunk.request == 1 else [5])
    found = []
    for _ in range(4):
        step = simulation.scheduler.plan(simulation.now)
        simulation.cache.run(step, simulation.scheduler)
        found.append([(chunk.request, len(chunk.tokens), chunk.samples) for chunk in step.chunks])
        for chunk in step.chunks:
            if chunk.samples:
                simulation.scheduler.extend(chunk.request, [5])
    others = [(0, 1, 1), (2, 1, 1), (3, 1, 1)]
    assert found[:3] == [[*others, (1, 32, 0)], [*others, (1, 32, 0)], [*others, (1, 16, 1)]]
    assert sorted(found[3]) == sorted([*others, (1, 1, 1)])


def test_drafts_of_a_request_that_is_cancelled_in_flight_never_become_a_page() -> None:
    simulation = Simulation(guess=lambda history: [-1] * 8)
    simulation.submit(1, prompt(1, 60), 40)
    simulation.step()
    simulation.meanwhile = lambda: simulation.cancel(1)
    step = simulation.step()
    assert step.chunks[0].start + len(step.chunks[0].tokens) > PAGE_TOKENS > 60 + len(simulation.outputs[1])
    assert simulation.scheduler.pages.cached == 0
