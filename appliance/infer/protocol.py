"""What daemon and worker say to one another: the launch spec, the first line, exit codes, and engine.v1 messages.

The worker reads one LaunchSpec from stdin, and writes one JSON line to stdout: `{"state": "ready"}`, or
`{"state": "failed", "reason": …, "message": …}` before it exits. Then it serves appliance.engine.v1 on its socket.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import grpc

from appliance.errors import ApplianceError, Broken, Busy, by_reason
from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.types import (
    Adapter,
    Constraint,
    ConstraintKind,
    EngineStats,
    Finish,
    FinishReason,
    Generation,
    Origin,
    Priority,
    Sampling,
    Segment,
    Text,
    Timings,
    TokenChoice,
    TokenLogprob,
    Usage,
)

EXIT_LOAD_FAILED = 3
EXIT_SELF_TEST_FAILED = 4
EXIT_ENGINE_FAILED = 5
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_PENDING_REQUESTS = 100_000
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a restarted worker must not inherit its predecessor's reconnect backoff
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # of a flood gRPC itself would end what is beyond 1,000 without a word; the engine says QUEUE_FULL to each
    ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
)
_REASON, _RETRY = "appliance-reason", "appliance-retry-after-seconds"


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Power-on self-test: with this prompt the model must answer `expected` among `labels`."""

    model_path: str
    prompt: tuple[Segment, ...]
    labels: tuple[str, ...]
    expected: str


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """All that a worker is told. threads 0: one a core, less one reserved. self_test None only in tests.

    model_sha256: what prefixes are bound to, with kv_type ("f16" or "q8_0"). host_cache_bytes, disk_cache_bytes: bounds
    of the tiers for idle prefixes, 0 for none; disk_cache_directory: this model's own; disk_cache_key: 32 bytes as hex.
    speculate_below_streams: no tokens are drafted where more requests run; draft_model_path: '' for prompt lookup.
    attention: "auto", "stock" (ggml's own kernels), or "none" (zeros: a bench's floor, never served). products: whether
    products with weights are ours, too, where attention is not "stock".
    prefill_beside_streams: rows of prompts in a step for which streams wait; 0 for all of batch_tokens.
    """

    model_path: str
    socket_path: str
    context_tokens: int = 8192
    sequences: int = 8
    batch_tokens: int = 512
    queue: int = 64
    threads: int = 0
    log_level: str = "info"
    self_test: SelfTest | None = None
    model_sha256: str = ""
    kv_type: str = "f16"
    host_cache_bytes: int = 0
    disk_cache_bytes: int = 0
    disk_cache_directory: str = ""
    disk_cache_key: str = field(default="", repr=False)
    speculate_below_streams: int = 4
    draft_model_path: str = ""
    attention: str = "auto"
    products: bool = True
    prefill_beside_streams: int = 256

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=lambda origin: origin.name)

    @classmethod
    def from_json(cls, text: str) -> "LaunchSpec":
        values: dict[str, Any] = json.loads(text)
        if test := values.pop("self_test"):
            prompt = tuple(Segment(Origin[part["origin"]], part["text"]) for part in test.pop("prompt"))
            labels = tuple(test.pop("labels"))
            return cls(**values, self_test=SelfTest(**test, prompt=prompt, labels=labels))
        return cls(**values)


def error_to_metadata(error: ApplianceError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that keeps an error's class across the socket."""
    retry = ((_RETRY, str(error.retry_after_seconds)),) if isinstance(error, Busy) else ()
    return ((_REASON, error.reason), *retry)


def error_from_call(call: grpc.aio.AioRpcError) -> ApplianceError | None:
    """The error that a worker raised; None where the call broke without the worker saying why."""
    metadata = {str(key): str(value) for key, value in call.trailing_metadata() or ()}
    if _REASON not in metadata:
        return None
    return make_error(metadata[_REASON], call.details() or "", float(metadata.get(_RETRY, "1")))


def make_error(reason: str, message: str, retry_after_seconds: float = 1.0) -> ApplianceError:
    """An error by its reason."""
    cls = by_reason().get(reason, Broken)
    return cls(message, retry_after_seconds) if issubclass(cls, Busy) else cls(message)


def segments_to_pb(segments: Iterable[Segment]) -> list[pb.Segment]:
    return [pb.Segment(origin=pb.Segment.Origin.Value(f"ORIGIN_{s.origin.name}"), text=s.text) for s in segments]


def segments_from_pb(segments: Iterable[pb.Segment]) -> tuple[Segment, ...]:
    """A segment that does not say whose words it is counts as the least trusted."""
    return tuple(Segment(Origin(s.origin) if s.origin else Origin.RETRIEVED, s.text) for s in segments)


def generation_to_pb(generation: Generation) -> pb.GenerateRequest:
    sampling = generation.sampling
    return pb.GenerateRequest(
        prompt=segments_to_pb(generation.prompt),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repeat_penalty=sampling.repeat_penalty,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        labels=generation.labels,
        prefix_salt=generation.prefix_salt,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        tenant=generation.tenant,
        priority=pb.Priority.Value(f"PRIORITY_{generation.priority.name}"),
        deadline_seconds=generation.deadline_seconds,
        adapter=_adapter_to_pb(generation.adapter),
        constraint=_constraint_to_pb(generation.constraint),
        top_logprobs=generation.top_logprobs,
    )


def generation_from_pb(request: pb.GenerateRequest) -> Generation:
    return Generation(
        prompt=segments_from_pb(request.prompt),
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            repeat_penalty=request.repeat_penalty,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop=tuple(request.stop),
        ),
        labels=tuple(request.labels),
        prefix_salt=request.prefix_salt,
        tenant=request.tenant,
        priority=Priority(request.priority or Priority.NORMAL.value),
        deadline_seconds=request.deadline_seconds,
        adapter=_adapter_from_pb(request),
        constraint=_constraint_from_pb(request),
        top_logprobs=request.top_logprobs if request.HasField("top_logprobs") else None,
    )


def piece_to_pb(piece: Text | Finish) -> pb.GenerateResponse:
    if isinstance(piece, Text):
        choices = [
            pb.TokenChoice(chosen=_logprob_to_pb(choice.chosen), top=map(_logprob_to_pb, choice.top))
            for choice in piece.choices
        ]
        return pb.GenerateResponse(text=piece.text, choices=choices)
    return pb.GenerateResponse(
        finish=pb.Finish(
            reason=pb.Finish.Reason.Value(f"REASON_{piece.reason.name}"),
            input_tokens=piece.usage.input_tokens,
            cached_input_tokens=piece.usage.cached_input_tokens,
            output_tokens=piece.usage.output_tokens,
            queue_seconds=piece.timings.queue_seconds,
            prefill_seconds=piece.timings.prefill_seconds,
            decode_seconds=piece.timings.decode_seconds,
            label_logprobs=piece.label_logprobs,
        )
    )


def piece_from_pb(response: pb.GenerateResponse) -> Text | Finish:
    if response.WhichOneof("piece") == "text":
        choices = (
            TokenChoice(_logprob_from_pb(choice.chosen), tuple(map(_logprob_from_pb, choice.top)))
            for choice in response.choices
        )
        return Text(response.text, tuple(choices))
    finish = response.finish
    return Finish(
        reason=FinishReason.STOP if finish.reason == pb.Finish.REASON_STOP else FinishReason.LENGTH,
        usage=Usage(finish.input_tokens, finish.cached_input_tokens, finish.output_tokens),
        timings=Timings(
            queue_seconds=finish.queue_seconds,
            prefill_seconds=finish.prefill_seconds,
            decode_seconds=finish.decode_seconds,
            total_seconds=finish.queue_seconds + finish.prefill_seconds + finish.decode_seconds,
        ),
        label_logprobs=tuple(finish.label_logprobs),
    )


def stats_to_pb(stats: EngineStats) -> pb.WatchResponse:
    return pb.WatchResponse(**asdict(stats))


def stats_from_pb(response: pb.WatchResponse) -> EngineStats:
    return EngineStats(**{field.name: getattr(response, field.name) for field in fields(EngineStats)})


def _adapter_to_pb(adapter: Adapter | None) -> pb.Adapter | None:
    return pb.Adapter(**asdict(adapter)) if adapter else None


def _adapter_from_pb(request: pb.GenerateRequest) -> Adapter | None:
    if not request.HasField("adapter"):
        return None
    adapter = request.adapter
    return Adapter(adapter.name, adapter.path, adapter.sha256, adapter.scale)


def _constraint_to_pb(constraint: Constraint | None) -> pb.Constraint | None:
    if constraint is None:
        return None
    return pb.Constraint(kind=pb.Constraint.Kind.Value(f"KIND_{constraint.kind.name}"), text=constraint.text)


def _constraint_from_pb(request: pb.GenerateRequest) -> Constraint | None:
    if not request.HasField("constraint"):
        return None
    kind = pb.Constraint.Kind.Name(request.constraint.kind).removeprefix("KIND_")
    return Constraint(ConstraintKind[kind], request.constraint.text)


def _logprob_to_pb(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(token=token.token, piece=token.piece, logprob=token.logprob)


def _logprob_from_pb(token: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token, token.piece, token.logprob)
