"""The router over real workers; only the file store is a small one of our own."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import (
    MemoryInUse,
    ModelDamaged,
    ModelRestarting,
    ModelTooLarge,
    NoChatModel,
    NotFound,
    PromptTooLong,
    WorkerDied,
)
from appliance.infer.router import EngineOptions, Router
from appliance.infer.supervisor import Backoff
from appliance.ports import Count
from appliance.types import (
    Finish,
    Generation,
    MemoryPlan,
    ModelFile,
    ModelKind,
    ModelState,
    Origin,
    Sampling,
    Segment,
    Tally,
    Text,
)
from tests.infer.conftest import greedy, words

START = datetime(2026, 1, 1, tzinfo=UTC)


class Files:
    """ports.ModelFiles over a dict; `damaged` names fail their verification."""

    def __init__(self, files: list[ModelFile]) -> None:
        self.files = {file.name: file for file in files}
        self.damaged: set[str] = set()
        self.verified: list[str] = []
        self.pins: set[str] = set()

    def list(self) -> tuple[ModelFile, ...]:
        return tuple(self.files.values())

    def get(self, name: str) -> ModelFile:
        if name not in self.files:
            raise NotFound(f"There is no model {name}.")
        return self.files[name]

    def pinned(self, name: str) -> bool:
        return name in self.pins

    def verify(self, file: ModelFile) -> None:
        self.verified.append(file.name)
        if file.name in self.damaged:
            raise ModelDamaged(f"{file.name} is not what its hash says.")


def model_file(name: str, path: Path, minutes: int, kind: ModelKind = ModelKind.CHAT) -> ModelFile:
    return ModelFile(
        name=name,
        kind=kind,
        path=str(path),
        architecture="llama",
        sha256=f"{name}-{minutes}",
        size_bytes=path.stat().st_size,
        source="test",
        trained_context_tokens=8192,
        create_time=START + timedelta(minutes=minutes),
    )


@pytest.fixture
def files(models: dict[str, Path]) -> Files:
    return Files(
        [
            model_file("new", models["qwen2"], 9),
            model_file("old", models["llama"], 1),
            model_file("pointer", models["qwen2"], 20, ModelKind.POINTER),
        ]
    )


class Plan:
    """Admits up to `most` bytes in all, a thousand a model, and keeps what it was asked."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.most = most
        self.asked: list[tuple[str, int, int]] = []
        self.drafts: dict[str, str] = {}  # who was to draft for whom

    def __call__(
        self,
        file: ModelFile,
        context_tokens: int,
        loaded_bytes: int,
        freed_bytes: int = 0,
        draft: ModelFile | None = None,
    ) -> MemoryPlan:
        self.asked.append((file.name, context_tokens, loaded_bytes))
        self.drafts[file.name] = draft.name if draft else ""
        free = self.most - loaded_bytes
        problem = "" if free >= 1000 else f"Model {file.name} needs 1000 bytes; {free} are free."
        return MemoryPlan(file.name, context_tokens, 1000, free, self.most, problem)


class Names:
    """ports.Aliases: each name's next models in order, and what was counted."""

    def __init__(self) -> None:
        self.draws: dict[str, list[str]] = {}
        self.shadowing: dict[str, tuple[str, ...]] = {}
        self.counted: list[tuple[str, str, Tally]] = []

    def choose(self, name: str) -> str:
        return self.draws[name].pop(0) if self.draws.get(name) else ""

    def shadows(self, name: str) -> tuple[str, ...]:
        return self.shadowing.get(name, ())

    def counter(self, name: str) -> Count:
        return lambda model, outcome: self.counted.append((name, model, outcome)) if name else None

    @property
    def outcomes(self) -> list[tuple[str, str, int, int]]:
        return [(name, model, tally.errors, tally.output_tokens) for name, model, tally in self.counted]


@pytest.fixture
def cut(models: dict[str, Path], tmp_path: Path) -> ModelFile:
    path = tmp_path / "cut.gguf"
    path.write_bytes(models["llama"].read_bytes()[:5000])
    return model_file("cut", path, 0)


MakeRouter = Callable[..., Router]


@pytest.fixture
async def route(files: Files, tmp_path: Path) -> AsyncIterator[MakeRouter]:
    made: list[Router] = []

    def make(
        plan: Plan | None = None,
        on_change: Callable[[], None] = lambda: None,
        names: Names | None = None,
        idle_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        context_tokens: int = 1024,
        **changes: object,
    ) -> Router:
        options = EngineOptions(
            tmp_path / "engines",
            context_tokens=context_tokens,
            batch_tokens=128,
            threads=1,
            log_level="warning",
            backoff=Backoff(first_seconds=0.05),
            idle_seconds=idle_seconds,
            **changes,  # type: ignore[arg-type]
        )
        made.append(Router(files, options, plan or Plan(), names or Names(), on_change, clock))
        return made[-1]

    yield make
    for router in made:
        await router.close()


async def answer(router: Router, model: str, generation: Generation | None = None) -> Finish:
    *texts, finish = [piece async for piece in router.generate(model, generation or greedy("hello"))]
    assert all(isinstance(piece, Text) for piece in texts)
    assert isinstance(finish, Finish)
    return finish


def states(router: Router) -> dict[str, ModelState]:
    return {status.name: status.state for status in router.statuses()}


async def test_a_model_is_loaded_at_its_first_use_and_unloaded_when_asked(route: MakeRouter, files: Files) -> None:
    changes: list[dict[str, ModelState]] = []
    router: Router = route(on_change=lambda: changes.append(states(router)))
    assert set(states(router).values()) == {ModelState.STORED}
    assert (await answer(router, "old")).usage.output_tokens == 12
    status = next(status for status in router.statuses() if status.name == "old")
    assert (status.state, status.memory_bytes, status.context_tokens) == (ModelState.READY, 1000, 1024)
    await router.unload("old")
    assert states(router)["old"] is ModelState.STORED
    assert [change["old"] for change in changes][:2] == [ModelState.LOADING, ModelState.READY]
    assert files.verified == ["old"]


async def test_a_model_that_is_being_unloaded_is_started_again_only_when_its_process_has_ended(
    route: MakeRouter, tmp_path: Path
) -> None:
    router = route()
    await router.load("old")
    first = list((tmp_path / "engines").iterdir())
    unloads = [asyncio.create_task(router.unload("old")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ModelRestarting, match="is being unloaded"):
        await answer(router, "old")
    unloads[0].cancel()
    await unloads[1]
    assert list((tmp_path / "engines").iterdir()) == []
    await answer(router, "old")
    second = list((tmp_path / "engines").iterdir())
    assert len(first) == len(second) == 1
    assert first != second


async def test_closing_ends_every_worker_also_where_one_cannot_be_ended_well(route: MakeRouter, tmp_path: Path) -> None:
    def refuse() -> None:
        if closing and ModelState.READY in states(router).values():
            raise RuntimeError

    closing = False
    router = route(on_change=refuse)
    await asyncio.gather(router.load("old"), router.load("new"))
    closing = True
    await router.close()
    assert list((tmp_path / "engines").iterdir()) == []
    assert set(states(router).values()) == {ModelState.STORED}


async def test_each_caller_of_a_model_that_failed_gets_an_error_of_its_own(route: MakeRouter, files: Files) -> None:
    router = route()
    files.damaged = {"old"}
    errors = [(await asyncio.gather(answer(router, "old"), return_exceptions=True))[0] for _ in range(3)]
    assert {(type(error), str(error)) for error in errors} == {(ModelDamaged, "old is not what its hash says.")}
    assert len({id(error) for error in errors}) == 3


async def test_two_loads_at_once_make_one_process(route: MakeRouter, files: Files) -> None:
    router = route()
    statuses = await asyncio.gather(router.load("old"), router.load("old"), answer(router, "old"))
    assert statuses[0] == statuses[1]
    assert files.verified == ["old"]


async def test_the_default_chat_model_is_the_one_imported_last(route: MakeRouter, files: Files) -> None:
    router = route()
    assert router.chat_model("").name == "new"
    del files.files["new"]
    assert router.chat_model("").name == "old"
    assert router.chat_model("old").name == "old"


async def test_without_a_chat_model_there_is_a_clear_error(route: MakeRouter, files: Files) -> None:
    router = route()
    with pytest.raises(NoChatModel, match="cannot chat"):
        await answer(router, "pointer")
    del files.files["new"], files.files["old"]
    with pytest.raises(NoChatModel, match="No chat model is imported"):
        await answer(router, "")
    with pytest.raises(NotFound):
        await answer(router, "old")


async def test_the_pointer_model_answers_with_labels(route: MakeRouter) -> None:
    prompt = (Segment(Origin.USER, "the badge"),)
    generation = Generation(prompt, Sampling(temperature=0.0), ("<|im_start|>", "<|im_end|>"))
    assert len((await answer(route(), "pointer", generation)).label_logprobs) == 2


async def test_tokens_are_counted_as_the_model_reads_them(route: MakeRouter) -> None:
    router = route()
    ids = await router.tokenize("new", [Segment(Origin.USER, "the badge")])
    finish = await answer(router, "new", greedy("the badge"))
    assert len(ids) == finish.usage.input_tokens == 2
    assert await router.tokenize("", [Segment(Origin.USER, "the badge")]) == ids


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


async def test_a_file_that_is_not_what_its_hash_says_never_reaches_the_engine(route: MakeRouter, files: Files) -> None:
    router = route()
    files.damaged = {"old"}
    for _ in range(2):
        with pytest.raises(ModelDamaged):
            await answer(router, "old")
    assert states(router)["old"] is ModelState.FAILED
    assert files.verified == ["old"]
    files.damaged = set()
    assert (await router.load("old")).state is ModelState.READY


async def test_a_broken_model_does_not_hinder_another(route: MakeRouter, files: Files, cut: ModelFile) -> None:
    files.files["cut"] = cut
    router = route()
    with pytest.raises(ModelDamaged):
        await router.load("cut")
    await answer(router, "old")
    assert (states(router)["cut"], states(router)["old"]) == (ModelState.FAILED, ModelState.READY)


async def test_a_file_that_was_replaced_is_loaded_anew(
    route: MakeRouter, files: Files, models: dict[str, Path]
) -> None:
    router = route()
    before = await router.tokenize("old", [Segment(Origin.USER, "hello")])
    files.files["old"] = replace(files.get("old"), path=str(models["gemma2"]), sha256="another")
    assert await router.tokenize("old", [Segment(Origin.USER, "hello")]) != before


async def test_who_goes_away_while_a_model_loads_leaves_it_loading_for_others(route: MakeRouter) -> None:
    router = route()
    impatient = asyncio.create_task(answer(router, "old"))
    patient = asyncio.create_task(answer(router, "old"))
    await asyncio.sleep(0.05)
    impatient.cancel()
    assert (await patient).usage.output_tokens == 12


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


async def test_a_worker_killed_in_mid_batch_tells_its_callers_and_serves_again(route: MakeRouter) -> None:
    router = route(context_tokens=8192)
    streams = [router.generate("old", greedy(f"hello {i}", max_tokens=2500)) for i in range(3)]
    for stream in streams:
        await anext(stream)
    pid = router._loaded["old"].supervisor.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(WorkerDied, match="SIGKILL"):
            [piece async for piece in stream]
    async with asyncio.timeout(30):
        while states(router)["old"] is not ModelState.READY:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await answer(router, "old")).usage.output_tokens == 12


# --- aliases ----------------------------------------------------------------------------------------------------------


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


async def test_the_state_of_each_engine_is_known_while_it_serves(route: MakeRouter) -> None:
    router = route()
    await router.load("old")
    async with asyncio.timeout(30):
        while not router.stats():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert list(router.stats()) == ["old"]
    assert router.stats()["old"].running == 0
    await router.unload("old")
    assert router.stats() == {}


# --- drafts -----------------------------------------------------------------------------------------------------------


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


async def test_a_closed_router_leaves_warm_prefixes_and_a_sweep_only_those_of_models_that_are_here(
    route: MakeRouter, files: Files, tmp_path: Path
) -> None:
    kv = tmp_path / "kv"
    options = {"disk_cache_directory": kv, "disk_cache_bytes": 1 << 24, "disk_cache_key": bytes(32)}
    router = route(**options)
    for name in ("old", "new"):
        await answer(router, name, greedy(words(0, 200)))
    await router.close()
    assert {folder.name for folder in kv.iterdir()} == {"old-1", "new-9"}
    assert len(list((kv / "old-1").glob("*.page"))) == 3
    (kv / "elsewhere").symlink_to(tmp_path)
    (kv / "a-file").touch()
    router = route(**options)
    await router.load("new")
    del files.files["old"], files.files["new"]
    await router.sweep()
    assert {folder.name for folder in kv.iterdir()} == {"new-9", "elsewhere", "a-file"}, "loaded, or not its own"
    await router.unload("new")
    await router.sweep()
    assert not list(kv.glob("*-?"))
    assert (kv / "elsewhere").resolve() == tmp_path


async def test_a_sweep_needs_no_folder(route: MakeRouter, tmp_path: Path) -> None:
    await route().sweep()
    await route(disk_cache_directory=tmp_path / "none").sweep()
