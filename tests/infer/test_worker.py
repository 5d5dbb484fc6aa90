"""The worker's own part: what a slow reader costs, and what stays warm when it ends."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import DeadlineExceeded, ModelRestarting, WorkerDied
from appliance.infer.protocol import LaunchSpec
from appliance.infer.supervisor import Backoff, Supervisor
from appliance.infer.worker import Outbox, _identity
from appliance.types import Finish, FinishReason, Generation, Text, TokenChoice, TokenLogprob
from tests.infer.conftest import greedy, words

PROMPT = greedy(words(0, 400), salt=b"tenant")


def choice(token: int) -> TokenChoice:
    return TokenChoice(TokenLogprob(token, b"x", -0.5))


async def test_what_a_slow_reader_has_not_taken_becomes_one_piece_and_nothing_is_lost() -> None:
    outbox = Outbox()
    for index in range(1000):
        outbox.put(Text(f"{index} ", (choice(index),)))
    assert len(outbox._texts) <= 65
    [text] = await outbox.take()
    assert isinstance(text, Text)
    assert text.text == "".join(f"{index} " for index in range(1000))
    assert [one.chosen.token for one in text.choices] == list(range(1000))


def test_pages_of_another_context_size_cache_type_or_attention_are_not_the_same(spec: LaunchSpec) -> None:
    changed = [
        _identity(spec, "paged (avx2)"),
        _identity(replace(spec, context_tokens=8192), "paged (avx2)"),
        _identity(replace(spec, kv_type="q8_0"), "paged (avx2)"),
        _identity(replace(spec, model_sha256="1" * 64), "paged (avx2)"),
        _identity(replace(spec, attention="none"), "paged (avx2)"),
        _identity(spec, "stock: as configured"),
    ]
    assert len(set(changed)) == len(changed)
    assert _identity(spec, "stock: of another version") == changed[-1]


async def test_the_end_comes_after_the_text_and_an_error_may_be_the_end() -> None:
    outbox = Outbox()
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put(Text("a"))
    outbox.put(Finish(FinishReason.STOP))
    assert await taking == [Text("a"), Finish(FinishReason.STOP)]
    late = DeadlineExceeded("late")
    outbox = Outbox()
    outbox.put(late)
    assert await outbox.take() == [late]


@pytest.fixture
def spec(models: dict[str, Path], tmp_path: Path) -> LaunchSpec:
    return LaunchSpec(
        str(models["llama"]),
        str(tmp_path / "w" / "engine.sock"),
        context_tokens=4096,
        batch_tokens=128,
        threads=1,
        log_level="warning",
        model_sha256="0" * 64,
        disk_cache_bytes=1 << 24,
        disk_cache_directory=str(tmp_path / "kv"),
        disk_cache_key=bytes(32).hex(),
    )


async def ask(supervisor: Supervisor, generation: Generation) -> tuple[str, int]:
    *texts, finish = [piece async for piece in supervisor.generate(generation)]
    assert isinstance(finish, Finish)
    return "".join(piece.text for piece in texts if isinstance(piece, Text)), finish.usage.cached_input_tokens


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_warm_prefix_survives_the_workers_end(spec: LaunchSpec, tmp_path: Path, how: signal.Signals) -> None:
    supervisor = Supervisor("llama", spec, backoff=Backoff(first_seconds=0.05))
    await supervisor.start()
    try:
        cold = await ask(supervisor, PROMPT)
        await until(lambda: len(list((tmp_path / "kv").glob("*.page"))) == 6)
        assert supervisor.pid
        first = supervisor.pid
        os.kill(first, how)
        await until(lambda: supervisor.pid not in (None, first) and supervisor.state.value == "ready")
        assert await ask(supervisor, replace(PROMPT, prefix_salt=b"another")) == (cold[0], 0)
        assert await ask(supervisor, PROMPT) == (cold[0], 384)
    finally:
        await supervisor.stop()


async def test_sigterm_keeps_what_runs_and_ends_the_worker_quietly(spec: LaunchSpec, tmp_path: Path) -> None:
    supervisor = Supervisor("llama", spec, backoff=Backoff(first_seconds=60.0))
    await supervisor.start()
    try:
        stream = supervisor.generate(replace(PROMPT, sampling=replace(PROMPT.sampling, max_tokens=3500)))
        await anext(stream)
        assert supervisor.pid
        os.kill(supervisor.pid, signal.SIGTERM)
        await until(lambda: supervisor.pid is None)
        assert "code 0" in supervisor.detail
        assert len(list((tmp_path / "kv").glob("*.page"))) >= 6
        with pytest.raises(ModelRestarting):
            await ask(supervisor, PROMPT)
    finally:
        await supervisor.stop()


async def test_stopping_a_worker_keeps_what_runs(spec: LaunchSpec, tmp_path: Path) -> None:
    supervisor = Supervisor("llama", spec)
    await supervisor.start()
    stream = supervisor.generate(replace(PROMPT, sampling=replace(PROMPT.sampling, max_tokens=3500)))
    await anext(stream)
    await supervisor.stop()
    assert len(list((tmp_path / "kv").glob("*.page"))) >= 6
    with pytest.raises(WorkerDied, match="exited with code 0"):
        [piece async for piece in stream]


async def test_a_damaged_cache_on_disk_stops_nobody(spec: LaunchSpec, tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    for index in range(5):
        (tmp_path / "kv" / f"{index:064x}.page").write_bytes(b"no page")
    supervisor = Supervisor("llama", spec)
    await supervisor.start()
    try:
        assert (await ask(supervisor, PROMPT))[1] == 0
    finally:
        await supervisor.stop()


async def test_a_deadline_ends_a_stream_with_its_error(spec: LaunchSpec) -> None:
    supervisor = Supervisor("llama", spec)
    await supervisor.start()
    try:
        long = replace(PROMPT, sampling=replace(PROMPT.sampling, max_tokens=3500), deadline_seconds=0.1)
        with pytest.raises(DeadlineExceeded):
            await ask(supervisor, long)
        stats = await anext(supervisor.watch())
        assert (stats.running, stats.pages_used) == (0, 0)
    finally:
        await supervisor.stop()


async def test_a_reader_that_never_reads_stalls_nobody(spec: LaunchSpec) -> None:
    supervisor = Supervisor("llama", spec)
    await supervisor.start()
    try:
        silent = supervisor.generate(greedy(words(3, 50), max_tokens=3000))
        await anext(silent)
        for _ in range(3):
            assert await ask(supervisor, PROMPT)
        await silent.aclose()  # type: ignore[attr-defined]
    finally:
        await supervisor.stop()
