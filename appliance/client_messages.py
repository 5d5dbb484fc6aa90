"""Protobuf messages as our values and back, a function a message: the client's half of `api/messages.py`."""

from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from appliance import errors, types
from appliance.gen.v1 import inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2

E = TypeVar("E", bound=Enum)


def named(kind: str, name: str) -> str:
    """'handbook' and 'collections/handbook' as the latter; '' stays."""
    return name if not name or name.startswith(f"{kind}/") else f"{kind}/{name}"


def message(value: types.Message) -> inference_pb2.Message:
    return inference_pb2.Message(role=inference_pb2.Message.Role.Value(f"ROLE_{value.speaker.name}"), text=value.text)


def sampling(value: types.Sampling | None) -> inference_pb2.Sampling | None:
    if value is None:
        return None
    return inference_pb2.Sampling(
        temperature=value.temperature,
        top_p=value.top_p,
        top_k=value.top_k,
        min_p=value.min_p,
        repeat_penalty=value.repeat_penalty,
        seed=value.seed,
        max_tokens=value.max_tokens,
        stop=value.stop,
    )


def enum(kind: type[E], names: Any, number: int) -> E:
    """The member of `kind` that a protobuf enum value stands for: STATE_READY is READY."""
    try:
        return next(member for member in kind if names.Name(number).endswith(f"_{member.name}"))
    except (StopIteration, ValueError):
        raise errors.Broken(f"The box sent a {kind.__name__} that this client does not know: {number}.") from None


def time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def chat_piece(answer: inference_pb2.ChatResponse) -> types.Text | types.Finish:
    return types.Text(answer.text) if answer.WhichOneof("piece") == "text" else finish(answer.finish)


def finish(value: inference_pb2.Finish) -> types.Finish:
    usage, timings = value.usage, value.timings
    return types.Finish(
        enum(types.FinishReason, inference_pb2.Finish.Reason, value.reason),
        types.Usage(usage.input_tokens, usage.cached_input_tokens, usage.output_tokens),
        types.Timings(
            timings.queue_seconds,
            timings.search_seconds,
            timings.prefill_seconds,
            timings.decode_seconds,
            timings.total_seconds,
        ),
    )


def passage(value: knowledge_pb2.Passage) -> types.Passage:
    span = types.Span(value.page, value.start, value.end)
    return types.Passage(value.document, value.title, span, value.text, value.score)


def ask_piece(answer: knowledge_pb2.AskResponse) -> types.AskPiece:
    match answer.WhichOneof("piece"):
        case "passages":
            mode = enum(types.AnswerMode, knowledge_pb2.AnswerMode, answer.passages.mode)
            return types.Passages(mode, tuple(map(passage, answer.passages.passages)))
        case "text":
            return types.Text(answer.text)
        case "citation":
            item = answer.citation
            span = types.Span(item.page, item.start, item.end)
            return types.Citation(item.document, item.title, span, item.quote, item.answer_start, item.answer_end)
        case "unsupported":
            return types.Unsupported(answer.unsupported.answer_start, answer.unsupported.answer_end)
        case _:
            return types.AskFinish(answer.finish.answered, finish(answer.finish.finish))


def collection(value: knowledge_pb2.Collection) -> types.Collection:
    name = value.name.removeprefix("collections/")
    return types.Collection(name, value.document_count, value.passage_count, value.size_bytes, time(value.create_time))


def document(value: knowledge_pb2.Document) -> types.Document:
    parent, _, identifier = value.name.partition("/documents/")
    return types.Document(
        id=identifier,
        collection=parent.removeprefix("collections/"),
        title=value.title,
        media_type=value.media_type,
        sha256=value.sha256,
        size_bytes=value.size_bytes,
        source=value.source,
        parser=value.parser,
        pipeline="",  # stays inside the box
        page_count=value.page_count,
        passage_count=value.passage_count,
        readers=frozenset(value.readers),
        create_time=time(value.create_time),
    )


def file_outcome(value: ingest_pb2.FileOutcome) -> types.FileOutcome:
    return types.FileOutcome(
        path=value.path,
        state=enum(types.FileState, ingest_pb2.FileOutcome.State, value.state),
        reason=value.reason,
        detail=value.detail,
        document=value.document,
        sha256=value.sha256,
        size_bytes=value.size_bytes,
        job=value.job,
        time=time(value.time) if value.HasField("time") else None,
    )


def job(value: job_pb2.Job) -> types.Job:
    return types.Job(
        id=value.name.removeprefix("jobs/"),
        kind=value.kind,
        subject=value.subject,
        state=enum(types.JobState, job_pb2.Job.State, value.state),
        create_time=time(value.create_time),
        done=value.done,
        total=value.total,
        unit=value.unit,
        note=value.note,
        error_reason=value.error_reason,
        error_message=value.error_message,
        end_time=time(value.end_time) if value.HasField("end_time") else None,
    )


def model(value: model_pb2.Model) -> types.ModelStatus:
    return types.ModelStatus(
        name=value.name.removeprefix("models/"),
        kind=enum(types.ModelKind, model_pb2.Model.Kind, value.kind),
        state=enum(types.ModelState, model_pb2.Model.State, value.state),
        architecture=value.architecture,
        source=value.source,
        sha256=value.sha256,
        size_bytes=value.size_bytes,
        memory_bytes=value.memory_bytes,
        context_tokens=value.context_tokens,
        parameters=value.parameters,
        detail=value.detail,
        create_time=time(value.create_time) if value.HasField("create_time") else None,
    )


def health(value: telemetry_pb2.WatchHealthResponse) -> types.HealthReport:
    findings = (
        types.Finding(
            code=item.code,
            severity=enum(types.Severity, telemetry_pb2.Severity, item.severity),
            subject=item.subject,
            title=item.title,
            remedy=item.remedy,
            since=time(item.since),
            detail=item.detail,
            impacts_serving=item.impacts_serving,
        )
        for item in value.findings
    )
    return types.HealthReport(enum(types.Severity, telemetry_pb2.Severity, value.severity), tuple(findings))


def status(value: telemetry_pb2.GetStatusResponse) -> types.Status:
    return types.Status(
        version=value.version,
        uptime_seconds=value.uptime.ToTimedelta().total_seconds(),
        data_directory=value.data_directory,
        listen_address=value.listen_address,
        severity=enum(types.Severity, telemetry_pb2.Severity, value.severity),
        model_count=value.model_count,
        collection_count=value.collection_count,
        document_count=value.document_count,
        memory_used_bytes=value.memory_used_bytes,
        memory_total_bytes=value.memory_total_bytes,
        disk_free_bytes=value.disk_free_bytes,
        principal=value.principal,
    )
