"""The router over real workers."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import (
    ModelDamaged,
    ModelRestarting,
    NoChatModel,
    NotFound,
    WorkerDied,
)
from appliance.infer.router import Router
from appliance.types import (
    Generation,
    ModelFile,
    ModelState,
    Origin,
    Sampling,
    Segment,
)
from tests.infer.conftest import greedy, words
from tests.infer.router.conftest import Files, MakeRouter, answer, states


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
