"""Imported ONNX models, embedders and rerankers, each in a process of its own: started when asked, ended when idle.

    stdin    {"kind": "embedding", "model": path, "tokenizer": path, "threads": 2, "memory_bytes": n}, and then for each
             request {"texts": [...]}, of a reranker {"query": ..., "texts": [...]}
    stdout   {"width": 384}, and then for each request {"tokens": 12} and len(texts) x width little-endian float32;
             where something fails {"reason": ..., "message": ...} instead

The process reads bytes that may be hostile, so what it says is believed no more than is needed: lines and answers are
bounded, and numbers must be finite. One that says something else, says nothing in time or dies is ended; the next call
starts another.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from appliance.errors import (
    ApplianceError,
    DeadlineExceeded,
    ModelDamaged,
    ModelRestarting,
    ModelTooLarge,
    NotFound,
    QueueFull,
    WorkerDied,
)
from appliance.infer.protocol import make_error
from appliance.infer.supervisor import OWN_FAULTS, how
from appliance.ports import ModelFiles
from appliance.types import Encoded, Floats, ModelFile, ModelKind, ModelState, ModelStatus

KINDS = (ModelKind.EMBEDDING, ModelKind.RERANKER)
CHUNK_TEXTS = 8  # a request of the process: others' turns, and cancelling, wait for no more
LOAD_SECONDS, ANSWER_SECONDS, TEND_SECONDS = 300.0, 120.0, 1.0
WORKING_BYTES = 1 << 30  # beside three times the weights: the file, the session's own, and what it packs anew
MAX_WIDTH, MAX_TOKENS = 16_384, 1 << 20
FAULTS = {"MODEL_DAMAGED", "MODEL_UNSUPPORTED", "SANDBOX_UNAVAILABLE"}  # what a process may say of itself
_NO_FORM = (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError)  # it died, or says what makes no sense
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """queue: calls of one model that may be open at once. idle_seconds: when its process is ended, 0 for never."""

    threads: int = 1
    queue: int = 16
    idle_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that is ready. width: numbers a text."""

    process: Process
    width: int

    async def ask(self, asked: Mapping[str, Any], rows: int) -> tuple[Floats, int]:
        """Rows and tokens. Raises what it said, and one of _NO_FORM."""
        said = await _tell(self.process, asked)
        tokens = said["tokens"]
        if not isinstance(tokens, int) or not 0 <= tokens <= MAX_TOKENS:
            raise ValueError("tokens")
        assert self.process.stdout
        content = await self.process.stdout.readexactly(rows * self.width * 4)
        found = np.frombuffer(content, "<f4").reshape(rows, self.width)
        if not np.isfinite(found).all():
            raise ModelDamaged("The model's answer is no number.")
        return found, tokens


@dataclass(slots=True)
class _Loaded:
    """A model that was asked. turn: who asks its process now. gone: it must not be started again."""

    file: ModelFile
    last_used_seconds: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    child: _Child | None = None
    exchange: "asyncio.Task[tuple[Floats, int]] | None" = None
    calls: int = 0
    gone: bool = False
    fault: str = ""


class Encoders:
    """`ports.Encoders` over processes. Belongs to one event loop."""

    def __init__(
        self,
        files: ModelFiles,
        options: EncoderOptions,
        free_bytes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """free_bytes: of memory, that a model may take now."""
        self._files, self._options, self._free_bytes, self._clock = files, options, free_bytes, clock
        self._loaded: dict[str, _Loaded] = {}
        # Of its own: threads of the process's pool wait for a model here, and one that loads must not wait for them.
        self._verifying = ThreadPoolExecutor(1, thread_name_prefix="verify")

    async def embed(self, model: str, texts: Sequence[str]) -> Encoded:
        rows, tokens = await self._encode(self._file(model, ModelKind.EMBEDDING), texts, {})
        return Encoded(rows, tokens)

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> Encoded:
        rows, tokens = await self._encode(self._file(model, ModelKind.RERANKER), texts, {"query": query})
        return Encoded(rows, tokens)

    def check_reranker(self, model: str) -> None:
        self._file(model, ModelKind.RERANKER)

    async def load(self, name: str) -> None:
        """Start the model's process now. Raises as `embed`."""
        async with self._calling(self._files.get(name)) as loaded:
            await self._ask(loaded, {}, 0)

    async def unload(self, name: str) -> None:
        """End the model's process; calls in flight get WorkerDied. Does nothing where there is none."""
        if loaded := self._loaded.pop(name, None):
            loaded.gone = True
            if loaded.exchange:
                loaded.exchange.cancel()
                await asyncio.wait([loaded.exchange])
            await _drop(loaded)
            log.info("encoder.unloaded", model=name)

    async def tend(self) -> None:
        """Unload what nobody asked for long enough, until cancelled."""
        while True:
            await asyncio.sleep(TEND_SECONDS)
            await self.unload_idle()

    async def unload_idle(self) -> None:
        """Unload the models that have been idle for longer than the options say."""
        limit = self._options.idle_seconds or math.inf
        for name, loaded in list(self._loaded.items()):
            if not loaded.calls and not loaded.exchange and self._clock() - loaded.last_used_seconds >= limit:
                await self.unload(name)

    async def close(self) -> None:
        """End every process."""
        await asyncio.gather(*map(self.unload, list(self._loaded)))

    def told(self, status: ModelStatus) -> ModelStatus:
        """What is known of a stored model, and of its process where it has one here."""
        loaded = self._loaded.get(status.name)
        if loaded is None:
            return status
        if _alive(loaded):
            return replace(status, state=ModelState.READY, memory_bytes=_needed_bytes(loaded.file))
        state = ModelState.LOADING if loaded.exchange else ModelState.FAILED if loaded.fault else status.state
        return replace(status, state=state, detail=loaded.fault)

    # --- one model's process ---

    def _file(self, model: str, kind: ModelKind) -> ModelFile:
        file = self._files.get(model)
        if file.kind is not kind:
            raise NotFound(f"models/{model} is a {file.kind.value} model, no {kind.value} model.")
        return file

    async def _encode(self, file: ModelFile, texts: Sequence[str], more: Mapping[str, Any]) -> tuple[Floats, int]:
        """A row for each text, and the tokens of all; texts of like length go together."""
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, Floats] = {}
        total = 0
        async with self._calling(file) as loaded:
            for start in range(0, len(by_length), CHUNK_TEXTS):
                places = by_length[start : start + CHUNK_TEXTS]
                rows, tokens = await self._ask(loaded, {**more, "texts": [texts[i] for i in places]}, len(places))
                found |= zip(places, rows, strict=True)
                total += tokens
        if len({row.shape for row in found.values()}) > 1:  # it died meanwhile, and came back another
            raise WorkerDied(f"The process of model {file.name} does not answer alike.")
        return np.stack([found[i] for i in range(len(texts))]), total

    @asynccontextmanager
    async def _calling(self, file: ModelFile) -> AsyncIterator[_Loaded]:
        """The model, which is not idle meanwhile. Raises QueueFull."""
        loaded = self._loaded.get(file.name)
        if loaded and loaded.file.sha256 != file.sha256:
            await self.unload(file.name)
        loaded = self._loaded.setdefault(file.name, _Loaded(file, self._clock()))
        if loaded.calls >= self._options.queue:
            raise QueueFull(f"{loaded.calls} calls wait for model {file.name} already.")
        loaded.calls += 1
        try:
            yield loaded
        finally:
            loaded.calls -= 1
            loaded.last_used_seconds = self._clock()

    async def _ask(self, loaded: _Loaded, asked: Mapping[str, Any], rows: int) -> tuple[Floats, int]:
        """One exchange, in turn. Who goes away leaves it to its end, for the process must be heard out."""
        await loaded.turn.acquire()
        exchange = loaded.exchange = asyncio.create_task(self._exchange(loaded, asked, rows))

        def end(done: "asyncio.Task[tuple[Floats, int]]") -> None:
            loaded.exchange = None
            loaded.turn.release()
            if not done.cancelled():
                done.exception()  # where nobody waits any more, nobody needs to hear of it

        exchange.add_done_callback(end)
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not exchange.cancelled() or (task and task.cancelling()):
                raise
            raise WorkerDied(f"Model {loaded.file.name} was unloaded while it answered.") from None

    async def _exchange(self, loaded: _Loaded, asked: Mapping[str, Any], rows: int) -> tuple[Floats, int]:
        name = loaded.file.name
        if loaded.gone:
            raise ModelRestarting(f"Model {name} was unloaded.")
        if not _alive(loaded):  # one that died while nobody asked it is no news to who asks now
            loaded.child = None
        if loaded.child is None:
            loaded.child = await self._start(loaded)
        if not rows:
            return np.empty((0, loaded.child.width), np.float32), 0
        error: ApplianceError
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await loaded.child.ask(asked, rows)
        except TimeoutError:
            error = DeadlineExceeded(f"Model {name} did not answer within {ANSWER_SECONDS:g} seconds.")
        except _NO_FORM:
            with suppress(TimeoutError):
                await asyncio.wait_for(loaded.child.process.wait(), 1.0)
            error = WorkerDied(f"The process of model {name} {how(loaded.child.process.returncode)} while it answered.")
        await _drop(loaded)
        log.warning("encoder.ended", model=name, reason=error.reason)
        raise error

    async def _start(self, loaded: _Loaded) -> _Child:
        """Raises ModelMissing, ModelDamaged, ModelUnsupported, ModelTooLarge, SandboxUnavailable, WorkerDied."""
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._verifying, self._files.verify, loaded.file)
            self._require_memory(loaded.file)
            child = await self._launch(loaded.file)
        except ApplianceError as error:
            loaded.fault = str(error)
            raise
        loaded.fault = ""
        log.info("encoder.ready", model=loaded.file.name, pid=child.process.pid)
        return child

    def _require_memory(self, file: ModelFile) -> None:
        needed, free = _needed_bytes(file), self._free_bytes()
        if needed > free:
            raise ModelTooLarge(f"Model {file.name} needs {needed >> 20} MiB of memory; {max(0, free) >> 20} are free.")

    async def _launch(self, file: ModelFile) -> _Child:
        told = {
            "kind": file.kind.value,
            "model": str(Path(file.path) / "model.onnx"),
            "tokenizer": str(Path(file.path) / "tokenizer.json"),
            "threads": self._options.threads,
            "memory_bytes": _needed_bytes(file),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.infer.onnx_worker"),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's threads would start before the walls go up
        )
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                width = (await _tell(process, told))["width"]
            if not isinstance(width, int) or not 0 < width <= MAX_WIDTH:
                raise ModelDamaged(f"Model {file.name} gives no vectors.")
        except BaseException as failure:
            code = await _end(process)
            if isinstance(failure, TimeoutError):
                raise WorkerDied(f"Model {file.name} did not load within {LOAD_SECONDS:g} seconds.") from None
            if isinstance(failure, _NO_FORM):
                raise _died_loading(file.name, code) from None
            raise
        return _Child(process, width)


def _alive(loaded: _Loaded) -> bool:
    return loaded.child is not None and loaded.child.process.returncode is None


def _needed_bytes(file: ModelFile) -> int:
    return 3 * file.size_bytes + WORKING_BYTES


def _died_loading(name: str, code: int) -> ApplianceError:
    message = f"A process {how(code)} while it loaded model {name}"
    if -code in OWN_FAULTS:
        return ModelDamaged(f"{message}: the file is damaged, or not made for this engine.")
    return WorkerDied(f"{message}.")


async def _tell(process: Process, line: Mapping[str, Any]) -> dict[str, Any]:
    """Write a line and read one. Raises the error that it tells of, and one of _NO_FORM."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(line).encode() + b"\n")
    await process.stdin.drain()
    answer = await process.stdout.readline()
    if not answer.endswith(b"\n"):
        raise EOFError
    said = json.loads(answer)
    if not isinstance(said, dict):
        raise ValueError("no object")
    if "reason" in said:
        if said["reason"] not in FAULTS or not isinstance(said["message"], str):
            raise ValueError("reason")
        raise make_error(said["reason"], _printable(said["message"]))
    return said


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:1000])


async def _drop(loaded: _Loaded) -> None:
    child, loaded.child = loaded.child, None
    if child:
        await _end(child.process)


async def _end(process: Process) -> int:
    """It has nothing to save. With all that it started, whose open ends of the pipes would keep us waiting; not by
    `process.kill`, which takes the exit code of one that has just died from under asyncio."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return await process.wait()
