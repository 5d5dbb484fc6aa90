"""Streams by model name: which worker serves a model, and when one is started. The daemon's side of inference."""

import asyncio
import copy
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from appliance.errors import (
    ApplianceError,
    Broken,
    MemoryInUse,
    ModelDamaged,
    ModelMissing,
    ModelRestarting,
    ModelTooLarge,
    ModelUnsupported,
    NoChatModel,
)
from appliance.infer import swap
from appliance.infer.launch import EngineOptions, launch_spec
from appliance.infer.supervisor import Supervisor
from appliance.ports import Aliases, Count, ModelFiles
from appliance.types import (
    Adapter,
    EngineStats,
    Finish,
    Generation,
    MemoryPlan,
    ModelFile,
    ModelKind,
    ModelState,
    ModelStatus,
    Priority,
    Segment,
    Tally,
    Text,
)

TEND_SECONDS = 1.0
MAX_SHADOWS = 16  # at once; beyond, a request is not shadowed
RETRY_SECONDS = 5.0
# the target's fault, not the request's; what else is Refused or Busy says nothing about a target
BLAMED = (Broken, ModelMissing, ModelDamaged, ModelUnsupported, ModelTooLarge, ModelRestarting)
log = structlog.get_logger()
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Admit(Protocol):
    """Whether a model fits: against the bytes that loaded models were promised, and those that unloading would free."""

    def __call__(
        self,
        file: ModelFile,
        context_tokens: int,
        loaded_bytes: int,
        freed_bytes: int = 0,
        draft: ModelFile | None = None,
    ) -> MemoryPlan:
        """draft: the model that is loaded with it, to draft for it."""


@dataclass(slots=True)
class _Loaded:
    """A model that has a worker, or gets one. mapped_bytes: of the plan, those that are files' pages in memory.

    swapped: it is being unloaded for another or for idleness.
    """

    file: ModelFile
    supervisor: Supervisor
    planned_bytes: int
    mapped_bytes: int
    context_tokens: int
    loading: "asyncio.Task[None]"
    last_used_seconds: float
    requests: int = 0
    unloading: "asyncio.Task[None] | None" = None
    swapped: bool = False


class Router:
    """ports.Generator over worker processes. Loads a model at its first use, if the memory plan admits it.

    Where it does not fit, idle models that are not pinned are unloaded first, the least recently used first; a model
    with a running or waiting request never is.
    """

    def __init__(
        self,
        files: ModelFiles,
        options: EngineOptions,
        admit: Admit,
        aliases: Aliases,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_change: called when a model's state has changed; it may read `statuses()`."""
        self._files, self._options, self._admit, self._aliases = files, options, admit, aliases
        self._on_change, self._clock = on_change, clock
        self._loaded: dict[str, _Loaded] = {}
        self._refused: dict[str, str] = {}
        self._shadows: set[asyncio.Task[None]] = set()

    # --- ports.Generator ---

    def chat_model(self, name: str) -> ModelFile:
        """The chat model of that name, '' for the one that was imported last. Raises NotFound, NoChatModel.

        An alias gives one of its targets by weight; an adapter gives its base under the adapter's name.
        """
        if name:
            file = self._files.get(self._aliases.choose(name) or name)
            return replace(self._chatting(file), name=file.name)
        chat = [file for file in self._files.list() if file.kind is ModelKind.CHAT]
        if not chat:
            raise NoChatModel("No chat model is imported.")
        return max(chat, key=lambda file: (file.create_time or _LONG_AGO, file.name))

    async def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        """Zero or more Text, then one Finish. Closing the iterator frees the sequence.

        alias: the name that `chat_model` resolved to `model`; outcomes are counted for it, and its shadows asked too.
        Raises NotFound, NoChatModel, InvalidArgument, PromptTooLong, QueueFull, ModelRestarting, MemoryInUse,
        ModelTooLarge, ModelMissing, ModelDamaged, ModelUnsupported, SelfTestFailed, WorkerDied.
        """
        if not alias and (chosen := self._aliases.choose(model)):
            alias, model = model, chosen
        count = self._aliases.counter(alias)
        self._start_shadows(alias, model, generation, count)
        started, finish = self._clock(), None
        try:
            async with aclosing(self._answer(model, generation)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    finish = piece if isinstance(piece, Finish) else None
                    yield piece
        except ApplianceError as error:
            self._count(count, model, started, None, error)
            raise
        self._count(count, model, started, finish, None)

    async def tokenize(self, model: str, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Token ids as the model reads them. Raises as `generate`."""
        file = self._files.get(self._aliases.choose(model) or model) if model else self.chat_model("")
        async with self._using(self._base(file)) as supervisor:
            return await supervisor.tokenize(segments)

    async def _answer(self, model: str, generation: Generation) -> AsyncIterator[Text | Finish]:
        file = self._files.get(model) if model else self.chat_model("")
        base = self._base(file) if generation.labels else self._chatting(file)
        if file.kind is ModelKind.ADAPTER:
            await asyncio.to_thread(self._files.verify, file)
            generation = replace(generation, adapter=Adapter(file.name, file.path, file.sha256))
        async with (
            self._using(base) as supervisor,
            aclosing(supervisor.generate(generation)) as pieces,  # type: ignore[type-var]
        ):
            async for piece in pieces:
                yield piece

    def _base(self, file: ModelFile) -> ModelFile:
        """The model whose worker serves a file: an adapter's base, else itself."""
        return self._files.get(file.base) if file.base else file

    def _chatting(self, file: ModelFile) -> ModelFile:
        """The model behind a file that can chat. Raises NoChatModel."""
        base = self._base(file)
        if base.kind is not ModelKind.CHAT:
            raise NoChatModel(f"Model {file.name} is a {file.kind.value} model: it cannot chat.")
        return base

    # --- aliases ---

    def _count(
        self, count: Count, model: str, started_seconds: float, finish: Finish | None, error: ApplianceError | None
    ) -> None:
        if error and not isinstance(error, BLAMED):
            return
        tokens = finish.usage.output_tokens if finish else 0
        count(model, Tally(1, int(error is not None), tokens, self._clock() - started_seconds))

    def _start_shadows(self, alias: str, model: str, generation: Generation, count: Count) -> None:
        for shadow in self._aliases.shadows(alias):
            if shadow != model and len(self._shadows) < MAX_SHADOWS:
                task = asyncio.create_task(self._shadow(shadow, model, generation, count))
                self._shadows.add(task)
                task.add_done_callback(self._shadows.discard)

    async def _shadow(self, shadow: str, model: str, generation: Generation, count: Count) -> None:
        """Ask a shadow the same, behind everyone else, for its tally alone."""
        started, finish, failure = self._clock(), None, None
        try:
            if self._base(self._files.get(shadow)).scaffold != self._base(self._files.get(model)).scaffold:
                return  # the prompt is not in its words
            async for piece in self._answer(shadow, replace(generation, priority=Priority.LOW)):
                finish = piece if isinstance(piece, Finish) else None
        except ApplianceError as error:
            failure = error
        self._count(count, shadow, started, finish, failure)

    # --- loading and unloading ---

    async def load(self, name: str) -> ModelStatus:
        """Start the model's worker and wait until it is ready; a model that failed is tried again.

        Raises NotFound, MemoryInUse, ModelTooLarge, ModelMissing, ModelDamaged, ModelUnsupported, SelfTestFailed.
        """
        file = self._files.get(name)
        base = self._base(file)
        loaded = self._loaded.get(base.name)
        if loaded and loaded.supervisor.state is ModelState.FAILED:
            await self.unload(base.name)
        async with self._using(base):
            return self.status(file)

    async def unload(self, name: str) -> None:
        """End the model's worker, which gives all its memory back. Does nothing where it is not loaded.

        Returns when the process has ended; until then calls get ModelRestarting.
        """
        self._refused.pop(name, None)
        if loaded := self._loaded.get(name):
            loaded.unloading = loaded.unloading or asyncio.create_task(self._end(loaded))
            await asyncio.shield(loaded.unloading)  # who goes away leaves it ending

    async def sweep(self) -> None:
        """Remove from disk the warm prefixes of models that are here no longer. Unload those first."""
        if folder := self._options.disk_cache_directory:
            here = {file.sha256 for file in (*self._files.list(), *(loaded.file for loaded in self._loaded.values()))}
            await asyncio.to_thread(_remove_others, folder, here)

    async def tend(self) -> None:
        """Unload what nobody asked for long enough, until cancelled."""
        while True:
            await asyncio.sleep(TEND_SECONDS)
            self.unload_idle()

    def unload_idle(self) -> None:
        """Begin to unload the models that have been idle for longer than the options say."""
        for name in swap.overdue(self._residents(), self._clock(), self._options.idle_seconds):
            self._swap_out(name)

    async def close(self) -> None:
        """End every worker, also where one cannot be ended."""
        for task in list(self._shadows):
            task.cancel()
        ends = await asyncio.gather(*map(self.unload, list(self._loaded)), return_exceptions=True)
        for error in filter(None, ends):
            log.error("model.unload_failed", error=type(error).__name__)

    def plan(self, name: str) -> MemoryPlan:
        """What loading a model would take, and which idle models it would end. Nothing is loaded. Raises NotFound."""
        file = self._base(self._files.get(name))
        if loaded := self._loaded.get(file.name):
            now = self._plan_without(file, frozenset({file.name}))
            return replace(now, needed_bytes=loaded.planned_bytes, problem="")
        return self._plan(file)

    # --- what there is ---

    def stats(self) -> Mapping[str, EngineStats]:
        """The latest known state of each engine that serves, by its model's name."""
        return {name: loaded.supervisor.stats for name, loaded in self._loaded.items() if loaded.supervisor.stats}

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model file and what its worker does."""
        return tuple(self.status(file) for file in self._files.list())

    def status(self, file: ModelFile) -> ModelStatus:
        served_by = file.base or file.name
        status = ModelStatus(
            name=file.name,
            kind=file.kind,
            state=ModelState.REFUSED if served_by in self._refused else ModelState.STORED,
            architecture=file.architecture,
            source=file.source,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            parameters=file.parameters,
            detail=self._refused.get(served_by, ""),
            create_time=file.create_time,
            base=file.base,
            pinned=self._files.pinned(file.name),
        )
        loaded = self._loaded.get(served_by)
        if loaded is None:
            return status
        state = loaded.supervisor.state
        waits = state is ModelState.STORED and not loaded.unloading  # for another to be unloaded, or its file's hash
        return replace(
            status,
            state=ModelState.LOADING if waits else state,
            memory_bytes=0 if loaded.supervisor.error or file.base else loaded.planned_bytes,
            context_tokens=loaded.context_tokens,
            detail=loaded.supervisor.detail,
        )

    # --- one model's worker ---

    @asynccontextmanager
    async def _using(self, file: ModelFile) -> AsyncIterator[Supervisor]:
        """The supervisor of a model that is ready, or was and is restarting; it is not idle meanwhile."""
        loaded = await self._place(file)
        loaded.requests += 1
        try:
            # waiting for the task, not awaiting it: who goes away while it loads leaves it loading for the others
            await asyncio.wait([loaded.loading])
            if loaded.loading.cancelled():
                raise ModelRestarting(f"Model {file.name} was unloaded while it was being loaded.")
            if error := loaded.loading.exception():
                raise copy.copy(error)  # the task keeps its own, which must not keep each caller's frames
            yield loaded.supervisor
        finally:
            loaded.requests -= 1
            loaded.last_used_seconds = self._clock()

    async def _place(self, file: ModelFile) -> _Loaded:
        """The model's place among the loaded, new where it has none. Two calls at once start one process."""
        while True:
            loaded = self._loaded.get(file.name)
            if loaded is None:
                return self._begin(file)
            if loaded.unloading and loaded.swapped:
                await asyncio.wait([loaded.unloading])
            elif loaded.file.sha256 != file.sha256:
                await self.unload(file.name)
            elif loaded.unloading:
                raise ModelRestarting(f"Model {file.name} is being unloaded.")
            else:
                return loaded

    def _begin(self, file: ModelFile) -> _Loaded:
        plan = self._plan(file)
        if plan.problem:
            self._refused[file.name] = plan.problem
            self._on_change()
            raise ModelTooLarge(plan.problem)
        self._refused.pop(file.name, None)
        for name in plan.unloads:
            self._swap_out(name)
        ending = [other.unloading for other in self._loaded.values() if other.unloading]
        spec, draft = launch_spec(file, plan.context_tokens, self._options), self._draft(file)
        supervisor = Supervisor(file.name, spec, backoff=self._options.backoff, on_change=self._on_change)
        loading = asyncio.create_task(self._start(file, draft, supervisor, ending))
        log.info("model.planned", model=file.name, needed_bytes=plan.needed_bytes, unloads=plan.unloads)
        if self._options.draft_model and not draft and file.kind is ModelKind.CHAT:
            log.info("draft.none", model=file.name, draft=self._options.draft_model)
        mapped = file.size_bytes + (draft.size_bytes if draft else 0)
        loaded = _Loaded(file, supervisor, plan.needed_bytes, mapped, plan.context_tokens, loading, self._clock())
        self._loaded[file.name] = loaded
        return loaded

    async def _start(
        self,
        file: ModelFile,
        draft: ModelFile | None,
        supervisor: Supervisor,
        ending: "Sequence[asyncio.Task[None]]",
    ) -> None:
        try:
            if ending:  # their memory is what this one was promised
                await asyncio.wait(ending)
            await asyncio.to_thread(self._files.verify, file)
        except ApplianceError as error:
            supervisor.fail(error)
            raise
        if draft and await self._is_sound(draft):
            supervisor.spec = replace(supervisor.spec, draft_model_path=draft.path)
        await supervisor.start()

    def _draft(self, file: ModelFile) -> ModelFile | None:
        """The model that is to draft for another. Whether it can, by its vocabulary, its worker finds out."""
        name = self._options.draft_model
        if not name or not self._options.speculate_below_streams or file.kind is not ModelKind.CHAT:
            return None
        found = next((other for other in self._files.list() if other.name == name), None)
        return found if found and found.kind is ModelKind.CHAT and found.sha256 != file.sha256 else None

    async def _is_sound(self, draft: ModelFile) -> bool:
        """A draft model that is damaged is left out: what it would draft for serves without it."""
        try:
            await asyncio.to_thread(self._files.verify, draft)
        except ApplianceError as error:
            log.warning("draft.damaged", draft=draft.name, reason=error.reason)
            return False
        return True

    def _plan(self, file: ModelFile) -> MemoryPlan:
        """The plan with the idle models unloaded that are in its way. Raises MemoryInUse where those are not idle."""
        residents = self._residents()
        unloads = swap.make_room(residents, lambda gone: not self._plan_without(file, gone).problem)
        if unloads is not None:
            return replace(self._plan_without(file, frozenset(unloads)), unloads=unloads)
        unpinned = frozenset(resident.name for resident in residents if not resident.pinned)
        if not self._plan_without(file, unpinned).problem:
            raise MemoryInUse(f"Model {file.name} fits when running answers of other models have ended.", RETRY_SECONDS)
        return self._plan_without(file, frozenset(resident.name for resident in residents if resident.idle))

    def _plan_without(self, file: ModelFile, gone: frozenset[str]) -> MemoryPlan:
        """The plan as if some models were unloaded. What is being unloaded already counts as gone."""
        holding = [other for other in self._loaded.values() if other.supervisor.error is None]
        left = [other for other in holding if other.file.name not in gone and not other.unloading]
        # weights are mapped: what their pages take counts as available already
        freed = sum(max(0, other.planned_bytes - other.mapped_bytes) for other in holding if other not in left)
        adapters = sum(other.size_bytes for other in self._files.list() if other.base == file.name)
        context = min(self._options.context_tokens, file.trained_context_tokens or self._options.context_tokens)
        whole = replace(file, size_bytes=file.size_bytes + adapters)
        return self._admit(whole, context, sum(other.planned_bytes for other in left), freed, self._draft(file))

    def _residents(self) -> list[swap.Resident]:
        """The models that hold memory and are not about to give it back."""
        return [
            swap.Resident(name, loaded.last_used_seconds, loaded.requests, self._files.pinned(name))
            for name, loaded in self._loaded.items()
            if loaded.supervisor.error is None and not loaded.unloading
        ]

    def _swap_out(self, name: str) -> None:
        """Begin to unload a model that no request holds; a request that comes meanwhile waits and loads it again."""
        loaded = self._loaded[name]
        loaded.swapped = True
        loaded.unloading = asyncio.create_task(self._end(loaded))
        log.info("model.swapped_out", model=name)

    async def _end(self, loaded: _Loaded) -> None:
        loaded.loading.cancel()
        try:
            await loaded.supervisor.stop()
        finally:
            del self._loaded[loaded.file.name]
            self._on_change()


def _remove_others(folder: Path, kept: Set[str]) -> None:
    """Remove all that lies in a folder under other names. What cannot be removed is logged and left."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name not in kept:
                try:
                    shutil.rmtree(path)
                    log.info("kv_disk.swept", sha256=path.name)
                except OSError as error:
                    log.warning("kv_disk.not_swept", sha256=path.name, error=error.strerror)
