"""Models that answer for others: behind an alias, as a shadow, as a draft."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import (
    ModelDamaged,
    PromptTooLong,
)
from appliance.infer.router import Router
from appliance.types import (
    Finish,
    ModelState,
)
from tests.infer.conftest import greedy
from tests.infer.router.conftest import Files, MakeRouter, Names, Plan, answer, model_file, states


async def test_an_alias_leads_to_the_drawn_model_and_its_outcomes_are_counted(route: MakeRouter) -> None:
    names = Names()
    names.draws = {"assistant": ["old", "new"]}
    router = route(names=names)
    file = router.chat_model("assistant")
    assert file.name == "old"
    generation = greedy("hello")
    assert [piece async for piece in router.generate(file.name, generation, alias="assistant")]
    await answer(router, "assistant")  # an alias where a model is expected is drawn here
    assert names.outcomes == [("assistant", "old", 0, 12), ("assistant", "new", 0, 12)]


async def test_an_alias_wins_over_a_model_of_its_name_but_its_targets_are_models(route: MakeRouter) -> None:
    names = Names()
    names.draws = {"old": ["new", "new", "new"]}  # a model was imported under the alias's name
    router = route(names=names)
    assert router.chat_model("old").name == "new"
    assert [piece async for piece in router.generate("old", greedy("hello"), alias="assistant")]
    assert names.outcomes == [("assistant", "old", 0, 12)]


async def test_the_boxs_errors_count_and_the_callers_do_not(route: MakeRouter, files: Files) -> None:
    names = Names()
    router = route(names=names)
    files.damaged = {"new"}
    with pytest.raises(ModelDamaged):
        [piece async for piece in router.generate("new", greedy("hello"), alias="assistant")]
    with pytest.raises(PromptTooLong):
        [piece async for piece in router.generate("old", greedy("badge " * 5000), alias="assistant")]
    stream = router.generate("old", greedy("hello", max_tokens=400), alias="assistant")
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert names.outcomes == [("assistant", "new", 1, 0)]


async def test_a_shadow_is_asked_the_same_and_only_counted(route: MakeRouter) -> None:
    names = Names()
    names.shadowing = {"assistant": ("new", "old")}
    router = route(names=names)
    pieces = [piece async for piece in router.generate("old", greedy("hello"), alias="assistant")]
    assert sum(isinstance(piece, Finish) for piece in pieces) == 1
    async with asyncio.timeout(30):
        while len(names.counted) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert sorted(names.outcomes) == [("assistant", "new", 0, 12), ("assistant", "old", 0, 12)]


async def test_a_shadow_with_another_scaffold_is_not_asked(route: MakeRouter, files: Files) -> None:
    names = Names()
    names.shadowing = {"assistant": ("new",)}
    files.files["new"] = replace(files.get("new"), scaffold="chatml")
    router = route(names=names)
    assert [piece async for piece in router.generate("old", greedy("hello"), alias="assistant")]
    await asyncio.sleep(0)
    assert states(router)["new"] is ModelState.STORED


# --- what engines say of themselves -----------------------------------------------------------------------------------


async def drafted_tokens(router: Router, model: str) -> int:
    """After an answer that goes round in circles, so that any drafter has something to go by."""
    assert (await answer(router, model, greedy("the badge " * 40, max_tokens=200))).usage.output_tokens == 200
    return (await anext(router._loaded[model].supervisor.watch())).drafted_tokens_total


async def test_the_configured_model_drafts_for_another_and_counts_in_its_plan(
    route: MakeRouter, files: Files, models: dict[str, Path]
) -> None:
    files.files["small"] = model_file("small", models["llama"], 2)
    plan = Plan()
    router = route(plan, draft_model="small")
    assert await drafted_tokens(router, "old") > 0
    spec = router._loaded["old"].supervisor.spec
    assert (spec.draft_model_path, plan.drafts["old"]) == (str(models["llama"]), "small")
    assert "small" in files.verified


async def test_nobody_drafts_for_itself_for_a_pointer_or_where_speculation_is_off(
    route: MakeRouter, files: Files
) -> None:
    plan = Plan()
    router = route(plan, draft_model="new")
    for name in ("new", "pointer", "old"):
        router.plan(name)
    assert plan.drafts == {"new": "", "pointer": "", "old": "new"}
    for options in ({"draft_model": "new", "speculate_below_streams": 0}, {"draft_model": "gone"}):
        route(plan, **options).plan("old")
        assert plan.drafts["old"] == ""


async def test_a_draft_model_with_another_vocabulary_hinders_nobody(
    route: MakeRouter, capfd: pytest.CaptureFixture[str]
) -> None:
    router = route(draft_model="new")
    assert await drafted_tokens(router, "old") > 0  # from the prompt alone
    await router.unload("old")
    assert '"event": "draft.refused"' in capfd.readouterr().err


async def test_a_damaged_draft_model_never_reaches_the_engine(
    route: MakeRouter, files: Files, models: dict[str, Path]
) -> None:
    files.files["small"] = model_file("small", models["llama"], 2)
    files.damaged = {"small"}
    router = route(draft_model="small")
    assert (await answer(router, "old")).usage.output_tokens == 12
    assert router._loaded["old"].supervisor.spec.draft_model_path == ""


# --- prefixes on disk -------------------------------------------------------------------------------------------------
