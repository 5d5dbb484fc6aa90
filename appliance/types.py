"""Frozen values that cross boundaries. No behaviour beyond what a value knows of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

EVERYONE = "everyone"


# --- who -------------------------------------------------------------------------------------------------------------


class Role(Enum):
    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    APP = "app"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a caller is, from the URI name of its certificate."""

    tenant: str
    user: str
    role: Role

    @property
    def groups(self) -> frozenset[str]:
        """What a document's `readers` are compared with."""
        return frozenset({EVERYONE, f"user:{self.user}", f"role:{self.role.value}"})

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/users/{self.user} ({self.role.value})"


class AppScope(Enum):
    """What an app key opens."""

    INFERENCE = "inference"
    KNOWLEDGE = "knowledge"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class AppKey:
    """A key of an application, without its secret. No collections or models: all of them.

    last_use_time is coarse: to the hour.
    """

    id: str
    tenant: str
    user: str
    scopes: frozenset[AppScope]
    create_time: datetime
    expire_time: datetime
    collections: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    last_use_time: datetime | None = None
    revoke_time: datetime | None = None

    @property
    def principal(self) -> Principal:
        return Principal(self.tenant, self.user, Role.APP)


# --- inference -------------------------------------------------------------------------------------------------------


class Origin(Enum):
    """Whose words a stretch of a prompt is, most trusted first. Only SCAFFOLD text may become control tokens."""

    SCAFFOLD = 1
    SYSTEM = 2
    TENANT = 3
    USER = 4
    RETRIEVED = 5


@dataclass(frozen=True, slots=True)
class Segment:
    origin: Origin
    text: str


class Speaker(Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for; nothing is run here. arguments: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. An assistant's may hold tool calls; a tool's answers the call `tool_call_id`."""

    speaker: Speaker
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and repeat_penalty 1 mean none."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()


# least and most of each number of a Sampling, and of its stop strings; at the front door and again in the worker
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0.0, 5.0),
        "top_p": (1e-6, 1.0),
        "top_k": (0, 1_000_000),
        "min_p": (0.0, 0.999_999),
        "repeat_penalty": (0.1, 10.0),
        "presence_penalty": (-2.0, 2.0),
        "frequency_penalty": (-2.0, 2.0),
        "seed": (0, 2**32 - 1),
        "max_tokens": (1, 1_000_000),
    }
)
MAX_STOPS, MAX_STOP_CHARACTERS = 8, 256
MAX_TOP_LOGPROBS = 20


class Priority(Enum):
    """Who goes first where not all can: a higher value is admitted before a lower one and may preempt it."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class ConstraintKind(Enum):
    JSON_SCHEMA = "json_schema"
    GBNF = "gbnf"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like: a JSON schema or a GBNF grammar, as text."""

    kind: ConstraintKind
    text: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA in GGUF for one base model."""

    name: str
    path: str
    sha256: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to an engine. With `labels` (each one token of the vocabulary) the answer is one of them.

    prefix_salt: prefixes are shared between requests of one salt only. tenant: whom fairness counts it for.
    deadline_seconds: from its arrival at the engine; 0 for none. top_logprobs: so many alternatives a token, 0 for the
    chosen one's alone, None for no log-probabilities.
    """

    prompt: tuple[Segment, ...]
    sampling: Sampling = Sampling()
    labels: tuple[str, ...] = ()
    prefix_salt: bytes = b""
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    deadline_seconds: float = 0.0
    adapter: Adapter | None = None
    constraint: Constraint | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    queue_seconds: float = 0.0
    search_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    total_seconds: float = 0.0


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """piece: the bytes that the token stands for, which may be a part of a character."""

    token: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A chosen token, and the most likely ones beside it, best first; of the model's distribution, before sampling."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of an answer as it is made. choices: of the tokens behind it, where log-probabilities were asked for."""

    text: str
    choices: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The last piece of an answer. label_logprobs: in the order of the request's labels."""

    reason: FinishReason
    usage: Usage = Usage()
    timings: Timings = Timings()
    label_logprobs: tuple[float, ...] = ()


class ToolMode(Enum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask for. parameters: a JSON schema of an object, as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """mode REQUIRED with a name: that tool and no other."""

    mode: ToolMode = ToolMode.AUTO
    name: str = ""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A conversation to go on with, by gRPC or HTTP. model: a name, an alias, or '' for the default."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    priority: Priority = Priority.NORMAL
    deadline_seconds: float = 0.0


ChatPiece = Text | ToolCall | Finish


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One worker's state at a moment. Fields ending in _total count from the worker's start."""

    running: int = 0
    waiting: int = 0
    preempted: int = 0  # put aside, to be resumed
    pages_total: int = 0  # of KV_PAGE_TOKENS tokens each, on the device
    pages_used: int = 0  # held or reserved by running requests
    pages_cached: int = 0  # idle prefixes
    host_pages: int = 0
    disk_pages: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0  # of the prompt tokens, those that no step had to compute
    generated_tokens_total: int = 0
    preemptions_total: int = 0
    requests_total: int = 0
    drafted_tokens_total: int = 0
    accepted_tokens_total: int = 0
    steps_total: int = 0
    compute_seconds_total: float = 0.0  # in llama_decode
    step_seconds_total: float = 0.0  # all of it
    attention: str = ""  # "paged", or "stock" and why
    disk_fault: str = ""  # why prefixes were not kept on disk when last one should have been


# --- models ----------------------------------------------------------------------------------------------------------


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


# --- knowledge -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A passage's place in its document: page from 1, [start, end) in code points of the page's extracted text."""

    page: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What ingest hands to a collection: the extracted text by page, and where it came from (lineage)."""

    title: str
    media_type: str
    sha256: str
    size_bytes: int
    source: str
    parser: str
    pipeline: str
    pages: tuple[str, ...]
    readers: frozenset[str] = frozenset({EVERYONE})


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document. `id` is unique in its collection."""

    id: str
    collection: str
    title: str
    media_type: str
    sha256: str
    size_bytes: int
    source: str
    parser: str
    pipeline: str
    page_count: int
    passage_count: int
    readers: frozenset[str]
    create_time: datetime

    @property
    def name(self) -> str:
        return f"collections/{self.collection}/documents/{self.id}"


@dataclass(frozen=True, slots=True)
class Collection:
    id: str
    document_count: int
    passage_count: int
    size_bytes: int
    create_time: datetime

    @property
    def name(self) -> str:
        return f"collections/{self.id}"


@dataclass(frozen=True, slots=True)
class Passage:
    """A found stretch of a document. `document` is a resource name."""

    document: str
    title: str
    span: Span
    text: str
    score: float


class AnswerMode(Enum):
    QUOTE = "quote"
    GENERATE = "generate"


@dataclass(frozen=True, slots=True)
class Passages:
    """The first piece of an Ask stream."""

    mode: AnswerMode
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Citation:
    """A span of stored text that backs [answer_start, answer_end) of the answer; `quote` was read from the store."""

    document: str
    title: str
    span: Span
    quote: str
    answer_start: int
    answer_end: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A sentence of the answer that no passage supports."""

    answer_start: int
    answer_end: int


@dataclass(frozen=True, slots=True)
class AskFinish:
    answered: bool
    finish: Finish


AskPiece = Passages | Text | Citation | Unsupported | AskFinish


# --- ingest ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a locked child read from one file."""

    media_type: str
    parser: str
    pages: tuple[str, ...]


class FileState(Enum):
    COMMITTED = "committed"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """How one file ended. `path` is printable: control and bidirectional characters are escaped."""

    path: str
    state: FileState
    reason: str = ""
    detail: str = ""
    document: str = ""
    sha256: str = ""
    size_bytes: int = 0
    job: str = ""
    time: datetime | None = None


# --- jobs ------------------------------------------------------------------------------------------------------------


class JobState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Job:
    """Long work. `total` 0: not known yet."""

    id: str
    kind: str
    subject: str
    state: JobState
    create_time: datetime
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""
    error_reason: str = ""
    error_message: str = ""
    end_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"jobs/{self.id}"


# --- health ----------------------------------------------------------------------------------------------------------


class Severity(Enum):
    OK = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an admin may have to know, as seen at `since`."""

    code: str
    severity: Severity
    subject: str
    title: str
    remedy: str
    since: datetime
    detail: str = ""
    impacts_serving: bool = False


@dataclass(frozen=True, slots=True)
class HealthReport:
    severity: Severity
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """The box at a glance."""

    version: str
    uptime_seconds: float
    data_directory: str
    listen_address: str
    severity: Severity
    model_count: int
    collection_count: int
    document_count: int
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    principal: str = ""
