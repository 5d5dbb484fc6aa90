"""Real worker processes over their sockets."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import (
    InvalidArgument,
    ModelDamaged,
    ModelMissing,
    ModelRestarting,
    PromptTooLong,
    QueueFull,
    SelfTestFailed,
    WorkerDied,
)
from appliance.infer.protocol import EXIT_LOAD_FAILED, EXIT_SELF_TEST_FAILED, LaunchSpec, SelfTest
from appliance.infer.supervisor import Backoff, Supervisor
from appliance.types import Finish, Generation, ModelState, Origin, Sampling, Segment, Text
from tests.infer.conftest import Bench, greedy, words

Start = Callable[..., Supervisor]
Worker = Callable[[str], None]
Slept = asyncio.Queue[float]
LONG = greedy(words(0, 100), max_tokens=3900)
QUICK = Backoff(first_seconds=0.05, most_seconds=0.4)


@pytest.fixture
async def supervise(models: dict[str, Path], tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Supervisor] = []

    def make(
        model: str | Path = "llama",
        *,
        backoff: Backoff = QUICK,
        on_change: Callable[[], None] = lambda: None,
        **changes: object,
    ) -> Supervisor:
        path = models[model] if isinstance(model, str) else model
        socket = tmp_path / f"e{len(started)}" / "engine.sock"
        spec = LaunchSpec(str(path), str(socket), context_tokens=4096, batch_tokens=128, threads=1, log_level="warning")
        spec = replace(spec, **changes)  # type: ignore[arg-type]
        started.append(Supervisor(str(model), spec, backoff=backoff, on_change=on_change))
        return started[-1]

    yield make
    for supervisor in started:
        await supervisor.stop()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Workers are shell scripts from here on, that run this once they have read what they are told."""

    def make(script: str) -> None:
        path = tmp_path / "worker"
        path.write_text(f"#!/bin/sh\nread -r spec\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return make


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Slept:
    """The pauses between restarts in seconds, which take no time."""
    pauses: Slept = asyncio.Queue()
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        pauses.put_nowait(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", record)
    return pauses


async def answer(supervisor: Supervisor, generation: Generation) -> tuple[str, Finish]:
    *texts, finish = [piece async for piece in supervisor.generate(generation)]
    assert isinstance(finish, Finish)
    return "".join(piece.text for piece in texts if isinstance(piece, Text)), finish


async def until(condition: Callable[[], bool]) -> None:
    """Watch a process from outside, until it is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_running(supervisor: Supervisor, count: int) -> None:
    async with asyncio.timeout(10):
        while (await supervisor.describe()).running != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def self_test(model: Path, expected: str) -> SelfTest:
    prompt = (Segment(Origin.SCAFFOLD, "<|im_start|>"), Segment(Origin.USER, "the badge expires"))
    return SelfTest(str(model), prompt, ("<|im_start|>", "<|im_end|>"), expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
async def test_a_worker_answers_as_the_engine_in_process_does(
    supervise: Start, bench: Callable[..., Bench], architecture: str
) -> None:
    supervisor = supervise(architecture)
    await supervisor.start()
    text, finish = await answer(supervisor, greedy(words(0, 100)))
    expected, same = bench(architecture).answer(greedy(words(0, 100)))
    assert text == expected
    assert finish.usage == same.usage
    described = await supervisor.describe()
    assert (described.architecture, described.context_tokens) == (architecture, 4096)


async def test_errors_keep_their_class_and_message_across_the_socket(supervise: Start) -> None:
    supervisor = supervise(queue=1, sequences=1)
    await supervisor.start()
    with pytest.raises(PromptTooLong, match="the context holds 4096"):
        await answer(supervisor, greedy(words(0, 5000)))
    with pytest.raises(PromptTooLong, match="4000000 characters; the context holds 4096"):
        await supervisor.tokenize([Segment(Origin.USER, "<" * 4_000_000)])
    with pytest.raises(InvalidArgument, match=r"^temperature: "):
        await answer(supervisor, replace(LONG, sampling=Sampling(temperature=-1.0)))
    calls = [asyncio.create_task(answer(supervisor, replace(LONG, prefix_salt=b"%d" % i))) for i in range(3)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
    refused = [call.exception() for call in done if call.exception()]
    assert isinstance(refused[0], QueueFull)
    assert refused[0].retry_after_seconds > 0
    for call in waiting:
        call.cancel()
    await asyncio.wait(calls)


async def test_closing_a_stream_frees_its_cells(supervise: Start) -> None:
    supervisor = supervise()
    await supervisor.start()
    stream = supervisor.generate(LONG)
    await anext(stream)
    assert (await supervisor.describe()).kv_cells_used == 4032
    await stream.aclose()  # type: ignore[attr-defined]
    await until_running(supervisor, 0)
    assert (await supervisor.describe()).kv_cells_used == 0


async def test_a_killed_worker_takes_its_calls_with_it_and_comes_back(supervise: Start) -> None:
    one, other = supervise("llama"), supervise("qwen2")
    await asyncio.gather(one.start(), other.start())
    unaffected = asyncio.create_task(answer(other, greedy("the badge", max_tokens=3000)))
    stream = one.generate(LONG)
    await anext(stream)
    first_pid = one.pid
    assert first_pid
    os.kill(first_pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="was ended by SIGKILL while it answered"):
        async for _ in stream:
            pass
    await until(lambda: one.state is not ModelState.READY)
    with pytest.raises(ModelRestarting):
        await answer(one, greedy("hello"))
    await until(lambda: one.state is ModelState.READY)
    assert one.pid != first_pid
    assert (await answer(one, greedy("hello")))[1].usage.output_tokens == 12
    assert (await unaffected)[1].usage.output_tokens > 0
    assert other.state is ModelState.READY


async def test_an_engine_tells_of_itself_at_once_and_until_it_dies(supervise: Start) -> None:
    supervisor = supervise()
    with pytest.raises(ModelRestarting):
        await anext(supervisor.watch())
    await supervisor.start()
    await answer(supervisor, greedy("hello"))
    states = supervisor.watch()
    first = await anext(states)
    assert (first.requests_total, first.generated_tokens_total, first.running) == (1, 12, 0)
    assert first.pages_total > 0
    await until(lambda: supervisor.stats is not None)
    assert supervisor.pid
    os.kill(supervisor.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        async for _ in states:
            pass
    await until(lambda: supervisor.state is not ModelState.READY)
    assert supervisor.stats is None


@pytest.mark.parametrize(
    ("healthy_seconds", "pauses"), [(3600.0, [0.5, 1.0, 2.0, 3.0, 3.0]), (0.0, [0.5, 0.5, 0.5, 0.5, 0.5])]
)
async def test_restarts_wait_longer_each_time_unless_the_worker_served_well(
    supervise: Start, worker: Worker, slept: Slept, healthy_seconds: float, pauses: list[float]
) -> None:
    worker("""echo '{"state": "ready"}'""")
    backoff = Backoff(first_seconds=0.5, most_seconds=3.0, healthy_seconds=healthy_seconds)
    await supervise(backoff=backoff).start()
    async with asyncio.timeout(20):
        assert [await slept.get() for _ in pauses] == pauses


async def test_a_worker_that_never_loads_is_given_up_after_some_tries(
    supervise: Start, worker: Worker, slept: Slept
) -> None:
    worker("exit 9")
    supervisor = supervise(backoff=Backoff(first_seconds=0.5, most_failed_loads=4))
    with pytest.raises(WorkerDied, match="exited with code 9 while it loaded"):
        await supervisor.start()
    assert supervisor.state is ModelState.FAILED
    assert [slept.get_nowait() for _ in range(slept.qsize())] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("number", ["ABRT", "SEGV", "BUS", "ILL", "FPE"])
async def test_a_file_that_native_code_dies_of_is_damaged_and_not_tried_again(
    supervise: Start, worker: Worker, slept: Slept, number: str
) -> None:
    worker(f"kill -{number} $$")
    supervisor = supervise()
    with pytest.raises(
        ModelDamaged, match=f"was ended by SIG{number} while it loaded model llama: the file is damaged"
    ):
        await supervisor.start()
    assert (supervisor.state, supervisor.pid, slept.qsize()) == (ModelState.FAILED, None, 0)


@pytest.mark.parametrize("line", ["no JSON", "{}", "[]", '{"state": "failed"}', '{"state": "failed", "reason": []}'])
async def test_a_worker_whose_first_line_makes_no_sense_counts_as_a_failed_load(
    supervise: Start, worker: Worker, slept: Slept, line: str
) -> None:
    worker(f"echo '{line}'")
    supervisor = supervise()
    async with asyncio.timeout(20):
        with pytest.raises(WorkerDied, match="cannot be started"):
            await supervisor.start()
    assert (supervisor.state, supervisor.pid) == (ModelState.FAILED, None)
    assert slept.qsize() == QUICK.most_failed_loads - 1


async def test_a_process_that_cannot_be_made_is_tried_again(
    supervise: Start, monkeypatch: pytest.MonkeyPatch, slept: Slept
) -> None:
    supervisor = supervise()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        starting = asyncio.create_task(supervisor.start())
        async with asyncio.timeout(20):
            await slept.get()
        assert supervisor.detail.endswith("cannot be started: No such file or directory.")
    await starting
    assert supervisor.state is ModelState.READY


async def test_a_worker_that_hangs_while_it_loads_is_killed(
    supervise: Start, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.infer.supervisor.LOAD_TIMEOUT_SECONDS", 0.02)
    worker("exec sleep 1000")
    supervisor = supervise()
    async with asyncio.timeout(20):
        with pytest.raises(WorkerDied, match=r"did not load model llama within 0\.02 seconds"):
            await supervisor.start()
    assert (supervisor.state, supervisor.pid) == (ModelState.FAILED, None)


async def test_whatever_became_of_its_watch_a_supervisor_can_be_stopped(supervise: Start, worker: Worker) -> None:
    def refuse() -> None:
        if supervisor.state is ModelState.RESTARTING:
            raise RuntimeError

    worker("exit 9")
    supervisor = supervise(on_change=refuse)
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.state is ModelState.RESTARTING)
    await supervisor.stop()
    assert supervisor.state is ModelState.STORED
    with pytest.raises(ModelRestarting):
        await starting


async def test_each_caller_of_a_failed_model_gets_an_error_of_its_own(supervise: Start, tmp_path: Path) -> None:
    supervisor = supervise(tmp_path / "none.gguf")
    calls = [supervisor.start(), supervisor.start(), supervisor.describe(), supervisor.describe()]
    errors = [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]
    assert {(type(error), str(error)) for error in errors} == {(ModelMissing, "The model's file is not there.")}
    assert len({id(error) for error in [*errors, supervisor.error]}) == 5
    assert supervisor.error
    assert supervisor.error.__traceback__ is None


async def test_a_worker_that_is_killed_while_it_loads_is_tried_again(supervise: Start) -> None:
    supervisor = supervise()
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.pid is not None)
    pid = supervisor.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    await starting
    assert (await answer(supervisor, greedy("hello")))[1].usage.output_tokens == 12


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
async def test_a_truncated_model_fails_with_a_reason_and_is_not_tried_again(
    supervise: Start, models: dict[str, Path], tmp_path: Path, share: float
) -> None:
    whole = models["llama"].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    supervisor = supervise(path)
    with pytest.raises(ModelDamaged, match="cannot load the model"):
        await supervisor.start()
    assert supervisor.state is ModelState.FAILED
    assert supervisor.pid is None
    with pytest.raises(ModelDamaged):
        await answer(supervisor, greedy("hello"))


async def test_a_missing_model_fails_as_missing(supervise: Start, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        await supervise(tmp_path / "none.gguf").start()


async def test_a_worker_passes_its_self_test_before_it_is_ready(supervise: Start, models: dict[str, Path]) -> None:
    answers = []
    for expected in ("<|im_start|>", "<|im_end|>"):
        with suppress(SelfTestFailed):
            await supervise("llama", self_test=self_test(models["qwen2"], expected)).start()
            answers.append(expected)
    assert len(answers) == 1


async def test_an_engine_that_computes_wrongly_never_serves(supervise: Start, models: dict[str, Path]) -> None:
    supervisor = supervise("llama", self_test=self_test(models["qwen2"], "<|endoftext|>"))
    with pytest.raises(SelfTestFailed, match="is right"):
        await supervisor.start()
    assert supervisor.state is ModelState.FAILED


async def test_stopping_ends_the_process_and_its_calls(supervise: Start) -> None:
    supervisor = supervise()
    await supervisor.start()
    pid = supervisor.pid
    assert pid
    call = asyncio.create_task(answer(supervisor, LONG))
    await until_running(supervisor, 1)
    await supervisor.stop()
    with pytest.raises(WorkerDied):
        await call
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert supervisor.state is ModelState.STORED


async def test_a_worker_is_told_to_end_and_given_the_time_to(supervise: Start, worker: Worker, tmp_path: Path) -> None:
    worker(f"""trap 'sleep 0.2; touch {tmp_path}/saved; exit 0' TERM; echo '{{"state": "ready"}}'
        while :; do sleep 0.05; done""")
    supervisor = supervise()
    await supervisor.start()
    await supervisor.stop()
    assert (tmp_path / "saved").exists()
    assert supervisor.pid is None


async def test_a_worker_that_does_not_end_when_told_to_is_killed(
    supervise: Start, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.infer.supervisor.STOP_SECONDS", 0.1)
    worker("""trap '' TERM; echo '{"state": "ready"}'; exec sleep 1000""")
    supervisor = supervise()
    await supervisor.start()
    pid = supervisor.pid
    assert pid
    async with asyncio.timeout(20):
        await supervisor.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert supervisor.state is ModelState.STORED


async def test_a_worker_may_be_stopped_while_it_loads(supervise: Start) -> None:
    supervisor = supervise()
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.pid is not None)
    await supervisor.stop()
    assert supervisor.pid is None
    with pytest.raises(ModelRestarting):
        async with asyncio.timeout(5):
            await starting


async def test_only_its_user_can_reach_a_worker(supervise: Start) -> None:
    supervisor = supervise()
    await supervisor.start()
    socket = supervisor.spec.socket_path
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (socket, os.path.dirname(socket))]
    assert modes == [0o600, 0o700]


async def test_a_worker_leaves_no_core_dump_and_no_prompt_in_its_arguments(supervise: Start) -> None:
    supervisor = supervise()
    await supervisor.start()
    proc = Path(f"/proc/{supervisor.pid}")
    limit = next(line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core"))
    assert limit.split()[4:6] == ["0", "0"]
    assert (proc / "cmdline").read_bytes().split(b"\0")[1:] == [b"-m", b"appliance.infer.worker", b""]


def test_a_worker_dies_with_its_parent(models: dict[str, Path], tmp_path: Path) -> None:
    spec = LaunchSpec(str(models["llama"]), str(tmp_path / "e" / "s"), context_tokens=512, threads=1)
    code = f"""
import subprocess, sys, os
from subprocess import PIPE
child = subprocess.Popen([sys.executable, "-m", "appliance.infer.worker"], stdin=PIPE, stdout=PIPE)
child.stdin.write({spec.to_json().encode()!r} + b"\\n"); child.stdin.flush()
assert b"ready" in child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        signal.sigtimedwait([], 0.01)
    raise AssertionError("the worker outlived its parent")


@pytest.mark.parametrize(
    ("content", "test", "code", "reason"),
    [
        (b"GGUF", None, EXIT_LOAD_FAILED, b"MODEL_DAMAGED"),
        (b"", "<|endoftext|>", EXIT_SELF_TEST_FAILED, b"SELF_TEST_FAILED"),
    ],
)
def test_what_fails_says_so_in_one_line_and_its_own_exit_code(
    models: dict[str, Path], tmp_path: Path, content: bytes, test: str | None, code: int, reason: bytes
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    spec = LaunchSpec(str(path), str(tmp_path / "s"), self_test=self_test(models["qwen2"], test) if test else None)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.infer.worker"],
        input=spec.to_json().encode() + b"\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert reason in done.stdout
    assert done.stdout.count(b"\n") == 1
    assert b"Traceback" not in done.stderr
