"""A router over real workers, its file store and its memory plan small ones of our own."""

import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import (
    ModelDamaged,
    NotFound,
)
from appliance.infer.launch import EngineOptions
from appliance.infer.router import Router
from appliance.infer.supervisor import Backoff
from appliance.ports import Count
from appliance.types import (
    Finish,
    Generation,
    MemoryPlan,
    ModelFile,
    ModelKind,
    ModelState,
    Tally,
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
