"""Protobuf messages as our values and back, a function a message: the client's half of `api/messages.py`."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from appliance import errors, types
from appliance.gen.v1 import access_pb2, inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2

E = TypeVar("E", bound=Enum)


def named(kind: str, name: str) -> str:
    """'handbook' and 'collections/handbook' as the latter; '' stays."""
    return name if not name or name.startswith(f"{kind}/") else f"{kind}/{name}"


def message(value: types.Message) -> inference_pb2.Message:
    return inference_pb2.Message(
        role=inference_pb2.Message.Role.Value(f"ROLE_{value.speaker.name}"),
        text=value.text,
        tool_calls=map(_tool_call, value.tool_calls),
        tool_call_id=value.tool_call_id,
    )


def _tool_call(value: types.ToolCall) -> inference_pb2.ToolCall:
    return inference_pb2.ToolCall(id=value.id, name=value.name, arguments=value.arguments)


def tool(value: types.Tool) -> inference_pb2.Tool:
    return inference_pb2.Tool(name=value.name, description=value.description, parameters=value.parameters)


def tool_choice(value: types.ToolChoice) -> inference_pb2.ToolChoice:
    mode = inference_pb2.ToolChoice.Mode.Value(f"MODE_{value.mode.name}")
    return inference_pb2.ToolChoice(mode=mode, name=value.name)


def response_format(value: types.Constraint | None) -> inference_pb2.ResponseFormat | None:
    if value is None:
        return None
    if value.kind is types.ConstraintKind.GBNF:
        return inference_pb2.ResponseFormat(gbnf=value.text)
    return inference_pb2.ResponseFormat(json_schema=value.text)


def sampling(value: types.Sampling | None) -> inference_pb2.Sampling | None:
    if value is None:
        return None
    return inference_pb2.Sampling(
        temperature=value.temperature,
        top_p=value.top_p,
        top_k=value.top_k,
        min_p=value.min_p,
        repeat_penalty=value.repeat_penalty,
        presence_penalty=value.presence_penalty,
        frequency_penalty=value.frequency_penalty,
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


def duration(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    made = Duration()
    made.FromTimedelta(value)
    return made


def chat_piece(answer: inference_pb2.ChatResponse) -> types.ChatPiece:
    match answer.WhichOneof("piece"):
        case "text":
            return types.Text(answer.text, tuple(map(_token_choice, answer.choices)))
        case "tool_call":
            call = answer.tool_call
            return types.ToolCall(call.id, call.name, call.arguments)
        case _:
            return finish(answer.finish)


def _token_choice(value: inference_pb2.TokenChoice) -> types.TokenChoice:
    return types.TokenChoice(_token_logprob(value.chosen), tuple(map(_token_logprob, value.top)))


def _token_logprob(value: inference_pb2.TokenLogprob) -> types.TokenLogprob:
    return types.TokenLogprob(value.token, value.piece, value.logprob)


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
    highlights = tuple((part.start, part.end) for part in value.snippet.highlights)
    return types.Passage(
        value.document,
        value.title,
        span,
        value.text,
        value.score,
        types.Snippet(value.snippet.text, highlights),
        value.context,
        _explanation(value.explanation) if value.HasField("explanation") else None,
    )


def _explanation(value: knowledge_pb2.Explanation) -> types.Explanation:
    return types.Explanation(
        words=types.LegScore(value.words.rank, value.words.score),
        meaning=types.LegScore(value.meaning.rank, value.meaning.score),
        meaning_weight=value.meaning_weight,
        fused=value.fused,
        reranked=value.reranked if value.HasField("reranked") else None,
    )


def found(answer: knowledge_pb2.SearchResponse) -> types.Found:
    facets = {
        field: tuple(types.FacetCount(count.value, count.document_count) for count in facet.counts)
        for field, facet in answer.facets.items()
    }
    return types.Found(tuple(map(passage, answer.passages)), facets, answer.next_page_token)


def _metadata_value(value: knowledge_pb2.MetadataValue) -> types.MetadataValue:
    match value.WhichOneof("value"):
        case "number":
            return value.number
        case "flag":
            return value.flag
        case _:
            return value.text


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
            ending = answer.finish
            return types.AskFinish(
                ending.answered, finish(ending.finish), ending.groundedness, ending.cached, tuple(ending.queries)
            )


def collection(value: knowledge_pb2.Collection) -> types.Collection:
    return types.Collection(
        value.name.removeprefix("collections/"),
        value.document_count,
        value.passage_count,
        value.size_bytes,
        time(value.create_time),
        value.embedder.removeprefix("models/"),
    )


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
        metadata={name: _metadata_value(part) for name, part in value.metadata.items()},
    )


def provenance(value: ingest_pb2.Provenance) -> types.Provenance:
    return types.Provenance(
        kind=enum(types.SourceKind, ingest_pb2.Provenance.Kind, value.kind),
        path=value.path,
        serial=value.serial,
        volume=value.volume,
        label=value.label,
        signer=value.signer,
    )


def watch(value: ingest_pb2.Watch) -> types.Watch:
    return types.Watch(
        value.collection.removeprefix("collections/"), frozenset(value.readers), value.approve, value.settle_polls
    )


def source(value: ingest_pb2.Source) -> types.Source:
    return types.Source(
        id=value.name.removeprefix("sources/"),
        provenance=provenance(value.provenance),
        state=enum(types.SourceState, ingest_pb2.Source.State, value.state),
        problem=value.problem,
        filesystem=value.filesystem,
        size_bytes=value.size_bytes,
        watch=watch(value.watch) if value.HasField("watch") else None,
    )


def upload(value: ingest_pb2.Upload) -> types.Upload:
    return types.Upload(
        id=value.name.removeprefix("uploads/"),
        path=value.path,
        collection=value.collection.removeprefix("collections/"),
        user=value.user,
        size_bytes=value.size_bytes,
        create_time=time(value.create_time),
        update_time=time(value.update_time),
    )


def ingestion(value: ingest_pb2.Ingestion) -> types.Ingestion:
    """Without its tenant, which is the caller's."""
    return types.Ingestion(
        id=value.name.removeprefix("ingestions/"),
        tenant="",
        collection=value.collection.removeprefix("collections/"),
        readers=frozenset(value.readers),
        provenance=provenance(value.provenance),
        operator=value.operator,
        state=enum(types.IngestionState, ingest_pb2.Ingestion.State, value.state),
        create_time=time(value.create_time),
        approver=value.approver,
        job=value.job,
        problem=value.problem,
        counts={types.FileState(name): count for name, count in value.counts.items()},
        by_format=dict(value.by_format),
        size_bytes=value.size_bytes,
        end_time=time(value.end_time) if value.HasField("end_time") else None,
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
        ingestion=value.ingestion,
        time=time(value.time) if value.HasField("time") else None,
        id=value.id,
        remedy=value.remedy,
        format=value.format,
        released=value.released,
        kept=value.kept,
    )


def lineage(value: ingest_pb2.Lineage) -> types.Lineage:
    origin = value.provenance
    return types.Lineage(
        ingestion=value.ingestion,
        operator=value.operator,
        approver=value.approver,
        kind=enum(types.SourceKind, ingest_pb2.Provenance.Kind, origin.kind).value if origin.kind else "",
        path=origin.path,
        serial=origin.serial,
        volume=origin.volume,
        label=origin.label,
        container=value.container,
        signer=origin.signer,
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
        base=value.base.removeprefix("models/"),
        pinned=value.pinned,
    )


def memory_plan(value: model_pb2.PlanModelResponse) -> types.MemoryPlan:
    return types.MemoryPlan(
        model=value.model.removeprefix("models/"),
        context_tokens=value.context_tokens,
        needed_bytes=value.needed_bytes,
        free_bytes=value.free_bytes,
        total_bytes=value.total_bytes,
        problem=value.problem,
        unloads=tuple(name.removeprefix("models/") for name in value.unloads),
    )


def imported_file(value: model_pb2.ImportedFile) -> types.ImportedFile:
    return types.ImportedFile(value.path, value.model.removeprefix("models/"), value.reason, value.detail)


def alias(value: model_pb2.Alias) -> types.Alias:
    targets = (types.Target(item.model.removeprefix("models/"), item.weight, item.shadow) for item in value.targets)
    tallies = (types.Tally(item.requests, item.errors, item.output_tokens, item.seconds) for item in value.targets)
    return types.Alias(
        name=value.name.removeprefix("aliases/"),
        targets=tuple(targets),
        tallies=tuple(tallies),
        detail=value.detail,
        previous=value.previous,
        update_time=time(value.update_time) if value.HasField("update_time") else None,
    )


def engines(value: telemetry_pb2.WatchEngineResponse) -> Mapping[str, types.EngineStats]:
    """Each model's engine by the model's name."""
    return {
        item.model.removeprefix("models/"): types.EngineStats(
            **{field.name: getattr(item, field.name) for field in fields(types.EngineStats)}
        )
        for item in value.engines
    }


def app_key(value: access_pb2.AppKey) -> types.AppKey:
    return types.AppKey(
        id=value.name.removeprefix("appKeys/"),
        tenant=value.tenant,
        user=value.user,
        scopes=frozenset(enum(types.AppScope, access_pb2.AppScope, scope) for scope in value.scopes),
        create_time=time(value.create_time),
        expire_time=time(value.expire_time),
        collections=frozenset(name.removeprefix("collections/") for name in value.collections),
        models=frozenset(name.removeprefix("models/") for name in value.models),
        last_use_time=time(value.last_use_time) if value.HasField("last_use_time") else None,
        revoke_time=time(value.revoke_time) if value.HasField("revoke_time") else None,
    )


def group(value: access_pb2.Group) -> types.Group:
    return types.Group(value.name.removeprefix("groups/"), frozenset(value.users))


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
        walls=_walls(value.walls) if value.HasField("walls") else None,
    )


def _walls(value: telemetry_pb2.Walls) -> types.Walls:
    layers = tuple(types.Wall(wall.name, wall.stands, wall.needed, wall.detail) for wall in value.layers)
    return types.Walls(layers, value.proof_time.ToDatetime(UTC))
