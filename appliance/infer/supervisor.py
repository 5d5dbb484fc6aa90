"""One model's worker process: start it, watch it, restart it with backoff, and speak to it.

    STORED ─start─► LOADING ─ready─► READY ─dies─► RESTARTING ─► LOADING …
                       └─ cannot load, or self-test failed ─► FAILED (not tried again until asked)

A worker that dies takes only its own calls with it: they get WorkerDied, which names the signal or exit code; calls
that come before it is back get ModelRestarting.
"""

import asyncio
import contextlib
import copy
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from appliance.errors import (
    ApplianceError,
    DeadlineExceeded,
    ModelDamaged,
    ModelRestarting,
    WorkerDied,
)
from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.gen.engine.v1 import engine_pb2_grpc as pb_grpc
from appliance.infer import protocol
from appliance.types import EngineStats, Finish, Generation, ModelState, Segment, Text

LOAD_TIMEOUT_SECONDS = 600.0  # far more than the largest model needs from the slowest disk
STOP_SECONDS = 5.0  # for a worker that was told to end, to write what is warm to disk
STATS_SECONDS = 0.25  # how old what is known of an engine may be
log = structlog.get_logger()
# what native code dies of by itself; a kill from outside may be tried again
OWN_FAULTS = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the n-th restart in a row; a worker that served this long starts from the first again."""

    first_seconds: float = 0.2
    most_seconds: float = 30.0
    healthy_seconds: float = 60.0
    most_failed_loads: int = 5

    def delay_seconds(self, failures: int) -> float:
        return float(min(self.first_seconds * 2 ** (failures - 1), self.most_seconds))


class Supervisor:
    """Keeps one worker alive. All methods belong to the event loop that called `start`."""

    def __init__(
        self,
        name: str,
        spec: protocol.LaunchSpec,
        *,
        backoff: Backoff = Backoff(),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """name: the model's, for messages. on_change: called after each change of `state`."""
        self.name, self.spec = name, spec
        self.state, self.detail = ModelState.STORED, ""
        self.error: ApplianceError | None = None
        self.pid: int | None = None
        self.stats: EngineStats | None = None  # the latest known, while it serves
        self._backoff, self._on_change = backoff, on_change
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # ready, failed or stopped
        self._stub: pb_grpc.EngineServiceAsyncStub | None = None
        self._process: Process | None = None

    async def start(self) -> None:
        """Returns when the model is ready. Raises what the worker said of why it cannot load, or SelfTestFailed;
        ModelRestarting where it was stopped meanwhile."""
        if self._task is None:
            self._settled.clear()
            self.error = None
            self._task = asyncio.create_task(self._keep_alive())
        await self._settled.wait()
        if self.error:
            raise copy.copy(self.error)
        if self._task is None:
            raise ModelRestarting(f"Model {self.name} was unloaded while it was being loaded.")

    async def stop(self) -> None:
        """End the worker and all that it held, however it fared. Calls in flight get WorkerDied.

        It may take STOP_SECONDS to put its warm prefixes on disk; then it is killed.
        """
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._settled.set()
        self._become(ModelState.STORED, "")

    def fail(self, error: ApplianceError) -> None:
        """The model must not be started: its file is not what it was."""
        self.error = error
        self._become(ModelState.FAILED, str(error))

    async def generate(self, generation: Generation) -> AsyncIterator[Text | Finish]:
        """Zero or more Text, then one Finish. Closing the iterator frees the sequence within a step.

        Raises InvalidArgument, PromptTooLong, QueueFull, ModelRestarting, WorkerDied.
        """
        stub, process = self._serving()
        call = stub.Generate(protocol.generation_to_pb(generation))
        try:
            async for response in call:
                yield protocol.piece_from_pb(response)
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error, process) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if process.returncode is None or (task and task.cancelling()):
                raise
            # a reader so slow that the dead worker's channel was closed before it read on: nobody cancelled it
            raise self._died(process) from None
        finally:
            call.cancel()

    async def tokenize(self, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Token ids as the model reads them. Raises InvalidArgument, PromptTooLong, ModelRestarting, WorkerDied."""
        stub, process = self._serving()
        try:
            response = await stub.Tokenize(pb.TokenizeRequest(segments=protocol.segments_to_pb(segments)))
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error, process) from None
        return tuple(response.ids)

    async def describe(self) -> pb.DescribeResponse:
        """What the worker says of its model and load. Raises ModelRestarting, WorkerDied."""
        stub, process = self._serving()
        try:
            return await stub.Describe(pb.DescribeRequest())
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error, process) from None

    async def watch(self) -> AsyncIterator[EngineStats]:
        """The engine's state at once, then each STATS_SECONDS. Raises ModelRestarting, and WorkerDied when it dies."""
        stub, process = self._serving()
        call = stub.Watch(pb.WatchRequest(period_seconds=STATS_SECONDS))
        try:
            async for response in call:
                yield protocol.stats_from_pb(response)
        except grpc.aio.AioRpcError as error:
            raise await self._explain(error, process) from None
        finally:
            call.cancel()

    def _serving(self) -> "tuple[pb_grpc.EngineServiceAsyncStub, Process]":
        if self.error:
            raise copy.copy(self.error)  # one that is raised again and again keeps the frames, and prompts, of all
        if self.state is not ModelState.READY or not self._stub or not self._process:
            raise ModelRestarting(f"Model {self.name} is {self.state.value}. {self.detail}".strip(), 1.0)
        return self._stub, self._process

    async def _explain(self, error: grpc.aio.AioRpcError, process: Process) -> ApplianceError:
        """Why a call broke: what the worker said, else how it died."""
        if said := protocol.error_from_call(error):
            return said
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"Model {self.name} did not answer in time.")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), timeout=5)
        return self._died(process)

    def _died(self, process: Process) -> WorkerDied:
        return WorkerDied(f"The engine of model {self.name} {how(process.returncode)} while it answered.")

    async def _keep_alive(self) -> None:
        failures, failed_loads = 0, 0
        while True:
            started = asyncio.get_running_loop().time()
            error: ApplianceError | None
            try:
                error, code = await self._run_once()
            except Exception as failure:  # noqa: BLE001  whatever it was, who waits must hear of it
                error, code = self._cannot_start(failure), None
            served = asyncio.get_running_loop().time() - started
            failures = 1 if not error and served > self._backoff.healthy_seconds else failures + 1
            failed_loads = failed_loads + 1 if error else 0
            if error and (not error.retryable or failed_loads >= self._backoff.most_failed_loads):
                self.fail(error)
                return
            delay = self._backoff.delay_seconds(failures)
            self._become(ModelState.RESTARTING, str(error or f"Its engine {how(code)}."))
            await asyncio.sleep(delay)

    async def _run_once(self) -> tuple[ApplianceError | None, int | None]:
        """One worker's life: (why it never got ready or None, exit code)."""
        if self.state is not ModelState.RESTARTING:
            self._become(ModelState.LOADING, "")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.infer.worker"), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self.pid = process.pid
        try:
            error = await self._load(process)
            if error is None:
                await self._serve_until_death(process)
        finally:
            await _end(process)
            self.pid = None
            _unlink(self.spec.socket_path)
        return error, process.returncode

    async def _load(self, process: Process) -> ApplianceError | None:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_SECONDS):
                return await self._wait_ready(process)
        except TimeoutError:
            return WorkerDied(f"The engine did not load model {self.name} within {LOAD_TIMEOUT_SECONDS:g} seconds.")

    async def _wait_ready(self, process: Process) -> ApplianceError | None:
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(ConnectionError):  # it died: the line that is missing below says so
            process.stdin.write(self.spec.to_json().encode() + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            return self._died_loading(await process.wait())
        said = json.loads(line)
        if said["state"] == "failed":
            return protocol.make_error(said["reason"], said["message"])
        return None

    def _cannot_start(self, failure: Exception) -> ApplianceError:
        why = failure.strerror if isinstance(failure, OSError) else None
        return WorkerDied(f"The engine of model {self.name} cannot be started: {why or type(failure).__name__}.")

    def _died_loading(self, code: int) -> ApplianceError:
        message = f"The engine {how(code)} while it loaded model {self.name}"
        if -code in OWN_FAULTS:
            return ModelDamaged(f"{message}: the file is damaged, or not made for this engine.")
        return WorkerDied(f"{message}.")

    async def _serve_until_death(self, process: Process) -> None:
        channel = grpc.aio.insecure_channel(f"unix:{self.spec.socket_path}", options=protocol.CHANNEL_OPTIONS)
        self._stub, self._process = pb_grpc.EngineServiceStub(channel), process
        self._become(ModelState.READY, "")
        watching = asyncio.create_task(self._keep_stats())
        try:
            await process.wait()
            log.warning("engine.died", model=self.name, how=how(process.returncode))
        finally:
            watching.cancel()
            self._stub = self._process = self.stats = None
            await _end(process)
            # with grace: calls in flight must see the broken connection, not a channel that we closed
            await channel.close(grace=1.0)

    async def _keep_stats(self) -> None:
        with contextlib.suppress(ApplianceError):
            async with contextlib.aclosing(self.watch()) as states:  # type: ignore[type-var]
                async for stats in states:
                    self.stats = stats

    def _become(self, state: ModelState, detail: str) -> None:
        self.state, self.detail = state, detail
        if state in (ModelState.READY, ModelState.FAILED):
            self._settled.set()
        log.info("model.state", model=self.name, state=state.value, detail=detail)
        self._on_change()


async def _end(process: Process) -> None:
    """SIGTERM, on which a worker keeps what is warm; SIGKILL for one that takes too long over it."""
    try:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
    except TimeoutError:
        log.warning("engine.killed", pid=process.pid, after_seconds=STOP_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def how(code: int | None) -> str:
    """How a process ended, in words that follow its name."""
    if code is None:
        return "broke the connection"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"
