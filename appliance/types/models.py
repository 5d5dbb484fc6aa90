"""Models, their states, and the names that lead to them."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from appliance.types.arrays import Floats


class ModelKind(Enum):
    CHAT = "chat"
    EMBEDDING = "embedding"
    POINTER = "pointer"
    RERANKER = "reranker"
    ADAPTER = "adapter"


class ModelState(Enum):
    STORED = "stored"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a model makes of texts: a row each, float32, and the tokens that it read for all."""

    rows: Floats
    tokens: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is on disk and was verified. `scaffold` names the prompt scaffold of its family.

    kv_bytes_per_token: of the context; compute_bytes_per_token: of one engine step. base: the model that an adapter
    belongs to. An ONNX model's `path` is a folder of two files, and its sha256 is over both.
    """

    name: str
    kind: ModelKind
    path: str
    architecture: str
    sha256: str
    size_bytes: int
    source: str
    parameters: int = 0
    trained_context_tokens: int = 0
    kv_bytes_per_token: int = 0
    compute_bytes_per_token: int = 0
    scaffold: str = "plain"
    create_time: datetime | None = None
    base: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as `models list` shows it. memory_bytes: planned, while it is loaded."""

    name: str
    kind: ModelKind
    state: ModelState
    architecture: str = ""
    source: str = ""
    sha256: str = ""
    size_bytes: int = 0
    memory_bytes: int = 0
    context_tokens: int = 0
    parameters: int = 0
    detail: str = ""
    create_time: datetime | None = None
    base: str = ""
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What loading a model would take, decided before it is loaded.

    total_bytes: of the box. unloads: the idle models that would make room. problem: why it cannot be loaded, or ''.
    """

    model: str
    context_tokens: int
    needed_bytes: int
    free_bytes: int
    total_bytes: int
    problem: str = ""
    unloads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """How one file of an import job ended: as a model, or with the reason why it is none."""

    path: str
    model: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A model that an alias leads to: with a share of its requests, or as a shadow whose answers nobody sees."""

    model: str
    weight: int = 1
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of a target's requests since the targets were set; errors are the box's, not the caller's."""

    requests: int = 0
    errors: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that leads to models by weight; the first target is the stable one.

    tallies: in the order of the targets. detail: why the targets are what they are. previous: how often they can be
    rolled back.
    """

    name: str
    targets: tuple[Target, ...]
    tallies: tuple[Tally, ...] = ()
    detail: str = ""
    previous: int = 0
    update_time: datetime | None = None
