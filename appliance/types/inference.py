"""Prompts, what a model is to do with them, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


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
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 256
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
