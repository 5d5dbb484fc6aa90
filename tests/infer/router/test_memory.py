"""Which models fit beside one another, and which goes for another."""

from dataclasses import replace

import pytest

from appliance.errors import (
    MemoryInUse,
    ModelTooLarge,
)
from appliance.types import (
    Finish,
    MemoryPlan,
    ModelState,
    Text,
)
from tests.infer.conftest import greedy
from tests.infer.router.conftest import Files, MakeRouter, Plan, answer, states


async def test_a_model_that_the_memory_plan_does_not_admit_is_refused_and_says_why(
    route: MakeRouter, files: Files
) -> None:
    plan = Plan(most=1500)
    router = route(plan)
    files.pins = {"old"}
    await router.load("old")
    with pytest.raises(ModelTooLarge):
        await answer(router, "new")
    refused = next(status for status in router.statuses() if status.name == "new")
    assert (refused.state, refused.detail) == (ModelState.REFUSED, "Model new needs 1000 bytes; 500 are free.")
    await router.unload("old")
    await router.load("new")
    assert list(dict.fromkeys(plan.asked)) == [("old", 1024, 0), ("new", 1024, 1000), ("new", 1024, 0)]


async def test_a_model_with_a_shorter_context_gets_no_more_than_it_was_trained_for(
    route: MakeRouter, files: Files
) -> None:
    files.files["old"] = replace(files.get("old"), trained_context_tokens=512)
    assert (await route().load("old")).context_tokens == 512


# --- swapping ---------------------------------------------------------------------------------------------------------


async def test_the_least_recently_used_idle_model_makes_room(route: MakeRouter, files: Files) -> None:
    ticks = iter(range(10_000))
    router = route(Plan(most=2500), clock=lambda: float(next(ticks)))
    await answer(router, "old")
    await answer(router, "new")
    await answer(router, "old")
    assert router.plan("pointer").unloads == ("new",)
    await router.load("pointer")
    assert states(router) == {"old": ModelState.READY, "new": ModelState.STORED, "pointer": ModelState.READY}


async def test_a_swap_never_takes_a_model_that_answers(route: MakeRouter) -> None:
    router = route(Plan(most=1000))
    stream = router.generate("old", greedy("hello", max_tokens=400))
    assert isinstance(await anext(stream), Text)
    with pytest.raises(MemoryInUse, match="running answers"):
        await answer(router, "new")
    assert isinstance([piece async for piece in stream][-1], Finish)
    await answer(router, "new")
    assert states(router)["old"] is ModelState.STORED


async def test_a_pinned_model_is_unloaded_neither_by_need_nor_by_idleness(route: MakeRouter, files: Files) -> None:
    now = 0.0
    router = route(Plan(most=1000), idle_seconds=10.0, clock=lambda: now)
    files.pins = {"old"}
    assert (await router.load("old")).pinned
    with pytest.raises(ModelTooLarge, match="0 are free"):
        await answer(router, "new")
    now = 1e6
    router.unload_idle()
    assert states(router)["old"] is ModelState.READY


async def test_a_model_that_nobody_asks_for_is_unloaded_after_its_time(route: MakeRouter) -> None:
    now = 0.0
    router = route(idle_seconds=10.0, clock=lambda: now)
    await answer(router, "old")
    stream = router.generate("new", greedy("hello", max_tokens=400))
    await anext(stream)
    now = 9.0
    router.unload_idle()
    assert states(router)["old"] is ModelState.READY
    now = 10.0
    router.unload_idle()
    assert isinstance([piece async for piece in stream][-1], Finish)
    assert (await answer(router, "old")).usage.output_tokens == 12  # it waits for the end of the other and loads anew
    assert states(router)["new"] is ModelState.READY


async def test_a_plan_says_what_a_model_takes_before_and_while_it_is_loaded(route: MakeRouter) -> None:
    router = route(Plan(most=1500))
    assert router.plan("old") == MemoryPlan("old", 1024, 1000, 1500, 1500)
    await router.load("old")
    assert router.plan("old") == MemoryPlan("old", 1024, 1000, 1500, 1500)
    assert router.plan("new") == MemoryPlan("new", 1024, 1000, 1500, 1500, unloads=("old",))
