"""The router over real workers; only the file store is a small one of our own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import ModelDamaged, ModelRestarting, ModelTooLarge, NoChatModel, NotFound
from appliance.infer.router import EngineOptions, Router
from appliance.infer.supervisor import Backoff
from appliance.types import (
    Finish,
    Generation,
    ModelFile,
    ModelKind,
    ModelState,
    Origin,
    Sampling,
    Segment,
    Text,
)
from tests.infer.conftest import greedy

START = datetime(2026, 1, 1, tzinfo=UTC)


class Files:
    """ports.ModelFiles over a dict; `damaged` names fail their verification."""

    def __init__(self, files: list[ModelFile]) -> None:
        self.files = {file.name: file for file in files}
        self.damaged: set[str] = set()
        self.verified: list[str] = []

    def list(self) -> tuple[ModelFile, ...]:
        return tuple(self.files.values())

    def get(self, name: str) -> ModelFile:
        if name not in self.files:
            raise NotFound(f"There is no model {name}.")
        return self.files[name]

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

    def __call__(self, file: ModelFile, context_tokens: int, loaded_bytes: int) -> int:
        self.asked.append((file.name, context_tokens, loaded_bytes))
        if loaded_bytes + 1000 > self.most:
            raise ModelTooLarge(f"Model {file.name} needs 1000 bytes; {self.most - loaded_bytes} are free.")
        return 1000


@pytest.fixture
def cut(models: dict[str, Path], tmp_path: Path) -> ModelFile:
    path = tmp_path / "cut.gguf"
    path.write_bytes(models["llama"].read_bytes()[:5000])
    return model_file("cut", path, 0)


MakeRouter = Callable[..., Router]


@pytest.fixture
async def route(files: Files, tmp_path: Path) -> AsyncIterator[MakeRouter]:
    made: list[Router] = []

    def make(plan: Plan | None = None, on_change: Callable[[], None] = lambda: None) -> Router:
        options = EngineOptions(
            tmp_path / "engines",
            context_tokens=1024,
            batch_tokens=128,
            threads=1,
            log_level="warning",
            backoff=Backoff(first_seconds=0.05),
        )
        made.append(Router(files, options, plan or Plan(), on_change))
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


async def test_a_model_that_the_memory_plan_does_not_admit_is_refused_and_says_why(route: MakeRouter) -> None:
    plan = Plan(most=1500)
    router = route(plan)
    await router.load("old")
    with pytest.raises(ModelTooLarge):
        await answer(router, "new")
    refused = next(status for status in router.statuses() if status.name == "new")
    assert (refused.state, refused.detail) == (ModelState.REFUSED, "Model new needs 1000 bytes; 500 are free.")
    await router.unload("old")
    await router.load("new")
    assert plan.asked == [("old", 1024, 0), ("new", 1024, 1000), ("new", 1024, 0)]


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
