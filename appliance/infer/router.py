"""Streams by model name: which worker serves a model, and when one is started. The daemon's side of inference."""

import asyncio
import copy
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from appliance.errors import ApplianceError, ModelRestarting, ModelTooLarge, NoChatModel
from appliance.infer.protocol import LaunchSpec, SelfTest
from appliance.infer.supervisor import Backoff, Supervisor
from appliance.ports import ModelFiles
from appliance.types import (
    Finish,
    Generation,
    ModelFile,
    ModelKind,
    ModelState,
    ModelStatus,
    Segment,
    Text,
)

# (file, context_tokens, bytes that loaded models are planned to use) -> bytes this one will; raises ModelTooLarge
Admit = Callable[[ModelFile, int, int], int]
log = structlog.get_logger()
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every worker is started with; see config.py."""

    socket_directory: Path
    context_tokens: int = 8192
    sequences: int = 8
    batch_tokens: int = 512
    queue: int = 64
    threads: int = 0
    log_level: str = "info"
    self_test: SelfTest | None = None
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(slots=True)
class _Loaded:
    file: ModelFile
    supervisor: Supervisor
    planned_bytes: int
    context_tokens: int
    loading: "asyncio.Task[None]"
    unloading: "asyncio.Task[None] | None" = None


class Router:
    """ports.Generator over worker processes. Loads a model at its first use, if the memory plan admits it."""

    def __init__(
        self,
        files: ModelFiles,
        options: EngineOptions,
        admit: Admit,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """on_change: called when a model's state has changed; it may read `statuses()`."""
        self._files, self._options, self._admit, self._on_change = files, options, admit, on_change
        self._loaded: dict[str, _Loaded] = {}
        self._refused: dict[str, str] = {}

    def chat_model(self, name: str) -> ModelFile:
        """The chat model of that name; '' is the one that was imported last. Raises NotFound, NoChatModel."""
        if name:
            file = self._files.get(name)
            if file.kind is not ModelKind.CHAT:
                raise NoChatModel(f"Model {name} is a {file.kind.value} model: it cannot chat.")
            return file
        chat = [file for file in self._files.list() if file.kind is ModelKind.CHAT]
        if not chat:
            raise NoChatModel("No chat model is imported.")
        return max(chat, key=lambda file: (file.create_time or _LONG_AGO, file.name))

    async def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        """Zero or more Text, then one Finish. Closing the iterator frees the sequence.

        Raises NotFound, NoChatModel, InvalidArgument, PromptTooLong, QueueFull, ModelRestarting, ModelTooLarge,
        ModelMissing, ModelDamaged, ModelUnsupported, SelfTestFailed, WorkerDied.
        """
        file = self._files.get(model) if generation.labels and model else self.chat_model(model)
        supervisor = await self._serving(file)
        pieces = supervisor.generate(generation)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def tokenize(self, model: str, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Token ids as the model reads them. Raises as `generate`."""
        file = self._files.get(model) if model else self.chat_model("")
        return await (await self._serving(file)).tokenize(segments)

    async def load(self, name: str) -> ModelStatus:
        """Start the model's worker and wait until it is ready; a model that failed is tried again.

        Raises NotFound, ModelTooLarge, ModelMissing, ModelDamaged, ModelUnsupported, SelfTestFailed.
        """
        file = self._files.get(name)
        loaded = self._loaded.get(name)
        if loaded and loaded.supervisor.state is ModelState.FAILED:
            await self.unload(name)
        await self._serving(file)
        return self.status(file)

    async def unload(self, name: str) -> None:
        """End the model's worker, which gives all its memory back. Does nothing where it is not loaded.

        Returns when the process has ended; until then calls get ModelRestarting.
        """
        self._refused.pop(name, None)
        if loaded := self._loaded.get(name):
            loaded.unloading = loaded.unloading or asyncio.create_task(self._end(loaded))
            await asyncio.shield(loaded.unloading)  # who goes away leaves it ending

    async def close(self) -> None:
        """End every worker, also where one cannot be ended."""
        ends = await asyncio.gather(*map(self.unload, list(self._loaded)), return_exceptions=True)
        for error in filter(None, ends):
            log.error("model.unload_failed", error=type(error).__name__)

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model file and what its worker does."""
        return tuple(self.status(file) for file in self._files.list())

    def status(self, file: ModelFile) -> ModelStatus:
        status = ModelStatus(
            name=file.name,
            kind=file.kind,
            state=ModelState.REFUSED if file.name in self._refused else ModelState.STORED,
            architecture=file.architecture,
            source=file.source,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            parameters=file.parameters,
            detail=self._refused.get(file.name, ""),
            create_time=file.create_time,
        )
        loaded = self._loaded.get(file.name)
        if loaded is None:
            return status
        return replace(
            status,
            state=loaded.supervisor.state,
            memory_bytes=0 if loaded.supervisor.error else loaded.planned_bytes,
            context_tokens=loaded.context_tokens,
            detail=loaded.supervisor.detail,
        )

    async def _serving(self, file: ModelFile) -> Supervisor:
        """The supervisor of a model that is ready, or was and is restarting. Two calls at once start one process."""
        loaded = self._loaded.get(file.name)
        if loaded and loaded.file.sha256 != file.sha256:
            await self.unload(file.name)
        loaded = self._loaded.get(file.name) or self._plan(file)
        if loaded.unloading:
            raise ModelRestarting(f"Model {file.name} is being unloaded.")
        # waiting for the task, not awaiting it: who goes away while it loads leaves it loading for the others
        await asyncio.wait([loaded.loading])
        if loaded.loading.cancelled():
            raise ModelRestarting(f"Model {file.name} was unloaded while it was being loaded.")
        if error := loaded.loading.exception():
            raise copy.copy(error)  # the task keeps its own, which must not keep each caller's frames
        return loaded.supervisor

    def _plan(self, file: ModelFile) -> _Loaded:
        context = min(self._options.context_tokens, file.trained_context_tokens or self._options.context_tokens)
        used = sum(other.planned_bytes for other in self._loaded.values() if other.supervisor.error is None)
        try:
            planned = self._admit(file, context, used)
        except ModelTooLarge as error:
            self._refused[file.name] = str(error)
            self._on_change()
            raise
        self._refused.pop(file.name, None)
        supervisor = Supervisor(
            file.name, self._spec(file, context), backoff=self._options.backoff, on_change=self._on_change
        )
        loading = asyncio.create_task(self._start(file, supervisor))
        loaded = self._loaded[file.name] = _Loaded(file, supervisor, planned, context, loading)
        return loaded

    async def _start(self, file: ModelFile, supervisor: Supervisor) -> None:
        try:
            await asyncio.to_thread(self._files.verify, file)
        except ApplianceError as error:
            supervisor.fail(error)
            raise
        await supervisor.start()

    async def _end(self, loaded: _Loaded) -> None:
        loaded.loading.cancel()
        try:
            await loaded.supervisor.stop()
        finally:
            del self._loaded[loaded.file.name]
            self._on_change()

    def _spec(self, file: ModelFile, context_tokens: int) -> LaunchSpec:
        options = self._options
        # a new name each time, so that no worker meets another's socket; short, as its path holds 107 bytes
        socket = options.socket_directory / f"{secrets.token_hex(8)}.sock"
        return LaunchSpec(
            model_path=file.path,
            socket_path=str(socket),
            context_tokens=context_tokens,
            sequences=options.sequences,
            batch_tokens=options.batch_tokens,
            queue=options.queue,
            threads=options.threads,
            log_level=options.log_level,
            self_test=options.self_test,
        )
