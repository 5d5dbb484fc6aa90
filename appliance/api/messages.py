"""Our values as protobuf messages, a function a message."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from appliance import types
from appliance.errors import InvalidArgument
from appliance.gen.v1 import access_pb2, inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2


def timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def usage(value: types.Usage) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        input_tokens=value.input_tokens,
        cached_input_tokens=value.cached_input_tokens,
        output_tokens=value.output_tokens,
    )


def finish(value: types.Finish) -> inference_pb2.Finish:
    timings = inference_pb2.Timings(
        queue_seconds=value.timings.queue_seconds,
        search_seconds=value.timings.search_seconds,
        prefill_seconds=value.timings.prefill_seconds,
        decode_seconds=value.timings.decode_seconds,
        total_seconds=value.timings.total_seconds,
    )
    reason = inference_pb2.Finish.Reason.Value(f"REASON_{value.reason.name}")
    return inference_pb2.Finish(reason=reason, usage=usage(value.usage), timings=timings)


def sampling(message: inference_pb2.Sampling) -> types.Sampling:
    """The request's sampling, our defaults where it is silent."""
    given = {name: getattr(message, name) for name in _SAMPLING if message.HasField(name)}  # type: ignore[arg-type]
    return types.Sampling(**given, stop=tuple(message.stop))


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
)


def chat_piece(value: types.ChatPiece) -> inference_pb2.ChatResponse:
    match value:
        case types.Text():
            return inference_pb2.ChatResponse(text=value.text, choices=map(_token_choice, value.choices))
        case types.ToolCall():
            call = inference_pb2.ToolCall(id=value.id, name=value.name, arguments=value.arguments)
            return inference_pb2.ChatResponse(tool_call=call)
        case types.Finish():
            return inference_pb2.ChatResponse(finish=finish(value))


def _token_choice(value: types.TokenChoice) -> inference_pb2.TokenChoice:
    return inference_pb2.TokenChoice(chosen=_token_logprob(value.chosen), top=map(_token_logprob, value.top))


def _token_logprob(value: types.TokenLogprob) -> inference_pb2.TokenLogprob:
    return inference_pb2.TokenLogprob(token=value.token, piece=value.piece, logprob=value.logprob)


def collection(value: types.Collection, *, with_size: bool) -> knowledge_pb2.Collection:
    """with_size: for those who write there; it tells of documents that others may not read."""
    return knowledge_pb2.Collection(
        name=value.name,
        document_count=value.document_count,
        passage_count=value.passage_count,
        size_bytes=value.size_bytes if with_size else 0,
        create_time=timestamp(value.create_time),
        embedder=f"models/{value.embedder}" if value.embedder else "",
    )


def document(value: types.Document, *, with_readers: bool = False) -> knowledge_pb2.Document:
    """with_readers: for those who may change them; there may be ten thousand."""
    return knowledge_pb2.Document(
        name=value.name,
        title=value.title,
        media_type=value.media_type,
        sha256=value.sha256,
        size_bytes=value.size_bytes,
        page_count=value.page_count,
        passage_count=value.passage_count,
        source=value.source,
        parser=value.parser,
        readers=sorted(value.readers) if with_readers else (),
        create_time=timestamp(value.create_time),
        metadata={name: _metadata_value(part) for name, part in value.metadata.items()},
    )


def _metadata_value(value: types.MetadataValue) -> knowledge_pb2.MetadataValue:
    if isinstance(value, bool):
        return knowledge_pb2.MetadataValue(flag=value)
    if isinstance(value, str):
        return knowledge_pb2.MetadataValue(text=value)
    return knowledge_pb2.MetadataValue(number=value)


def passage(value: types.Passage) -> knowledge_pb2.Passage:
    return knowledge_pb2.Passage(
        document=value.document,
        title=value.title,
        page=value.span.page,
        start=value.span.start,
        end=value.span.end,
        text=value.text,
        score=value.score,
        snippet=_snippet(value.snippet),
        context=value.context,
        explanation=_explanation(value.explanation) if value.explanation else None,
    )


def _snippet(value: types.Snippet) -> knowledge_pb2.Snippet:
    highlights = (knowledge_pb2.Range(start=start, end=end) for start, end in value.highlights)
    return knowledge_pb2.Snippet(text=value.text, highlights=highlights)


def _explanation(value: types.Explanation) -> knowledge_pb2.Explanation:
    return knowledge_pb2.Explanation(
        words=knowledge_pb2.LegScore(rank=value.words.rank, score=value.words.score),
        meaning=knowledge_pb2.LegScore(rank=value.meaning.rank, score=value.meaning.score),
        meaning_weight=value.meaning_weight,
        fused=value.fused,
        reranked=value.reranked,
    )


def found(value: types.Found) -> knowledge_pb2.SearchResponse:
    facets = {
        field: knowledge_pb2.Facet(
            counts=[knowledge_pb2.FacetCount(value=item.value, document_count=item.documents) for item in counts]
        )
        for field, counts in value.facets.items()
    }
    passages = map(passage, value.passages)
    return knowledge_pb2.SearchResponse(passages=passages, facets=facets, next_page_token=value.next_page)


def fault(value: types.Fault) -> knowledge_pb2.Fault:
    return knowledge_pb2.Fault(file=value.file, problem=value.problem)


def ask_piece(value: types.AskPiece) -> knowledge_pb2.AskResponse:
    match value:
        case types.Passages():
            mode = knowledge_pb2.AnswerMode.Value(f"ANSWER_MODE_{value.mode.name}")
            passages = [passage(item) for item in value.passages]
            return knowledge_pb2.AskResponse(passages=knowledge_pb2.Passages(mode=mode, passages=passages))
        case types.Text():
            return knowledge_pb2.AskResponse(text=value.text)
        case types.Citation():
            return knowledge_pb2.AskResponse(citation=_citation(value))
        case types.Unsupported():
            span = knowledge_pb2.Unsupported(answer_start=value.answer_start, answer_end=value.answer_end)
            return knowledge_pb2.AskResponse(unsupported=span)
        case types.AskFinish():
            ending = knowledge_pb2.AskFinish(
                answered=value.answered,
                finish=finish(value.finish),
                groundedness=value.groundedness,
                cached=value.cached,
                queries=value.queries,
            )
            return knowledge_pb2.AskResponse(finish=ending)


def _citation(value: types.Citation) -> knowledge_pb2.Citation:
    return knowledge_pb2.Citation(
        document=value.document,
        title=value.title,
        page=value.span.page,
        start=value.span.start,
        end=value.span.end,
        quote=value.quote,
        answer_start=value.answer_start,
        answer_end=value.answer_end,
    )


def job(value: types.Job) -> job_pb2.Job:
    return job_pb2.Job(
        name=value.name,
        kind=value.kind,
        subject=value.subject,
        state=job_pb2.Job.State.Value(f"STATE_{value.state.name}"),
        done=value.done,
        total=value.total,
        unit=value.unit,
        note=value.note,
        error_reason=value.error_reason,
        error_message=value.error_message,
        create_time=timestamp(value.create_time),
        end_time=timestamp(value.end_time),
    )


def provenance(value: types.Provenance) -> ingest_pb2.Provenance:
    return ingest_pb2.Provenance(
        kind=ingest_pb2.Provenance.Kind.Value(f"KIND_{value.kind.name}"),
        path=value.path,
        serial=value.serial,
        volume=value.volume,
        label=value.label,
        signer=value.signer,
    )


def source(value: types.Source) -> ingest_pb2.Source:
    return ingest_pb2.Source(
        name=value.name,
        provenance=provenance(value.provenance),
        state=ingest_pb2.Source.State.Value(f"STATE_{value.state.name}"),
        problem=value.problem,
        filesystem=value.filesystem,
        size_bytes=value.size_bytes,
        watch=_watch(value.watch) if value.watch else None,
    )


def upload(value: types.Upload) -> ingest_pb2.Upload:
    return ingest_pb2.Upload(
        name=value.name,
        path=value.path,
        collection=f"collections/{value.collection}" if value.collection else "",
        user=value.user,
        size_bytes=value.size_bytes,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def _watch(value: types.Watch) -> ingest_pb2.Watch:
    return ingest_pb2.Watch(
        collection=f"collections/{value.collection}",
        readers=sorted(value.readers),
        approve=value.approve,
        settle_polls=value.settle_polls,
    )


def ingestion(value: types.Ingestion) -> ingest_pb2.Ingestion:
    return ingest_pb2.Ingestion(
        name=value.name,
        collection=f"collections/{value.collection}",
        readers=sorted(value.readers),
        provenance=provenance(value.provenance),
        operator=value.operator,
        approver=value.approver,
        state=ingest_pb2.Ingestion.State.Value(f"STATE_{value.state.name}"),
        job=value.job,
        problem=value.problem,
        counts={state.value: count for state, count in value.counts.items()},
        by_format=value.by_format,
        size_bytes=value.size_bytes,
        create_time=timestamp(value.create_time),
        end_time=timestamp(value.end_time),
    )


def file_outcome(value: types.FileOutcome) -> ingest_pb2.FileOutcome:
    return ingest_pb2.FileOutcome(
        path=value.path,
        state=ingest_pb2.FileOutcome.State.Value(f"STATE_{value.state.name}"),
        reason=value.reason,
        detail=value.detail,
        document=value.document,
        sha256=value.sha256,
        size_bytes=value.size_bytes,
        ingestion=f"ingestions/{value.ingestion}" if value.ingestion else "",
        time=timestamp(value.time),
        id=value.id,
        remedy=value.remedy,
        format=value.format,
        released=value.released,
        kept=value.kept,
    )


def file_state(value: ingest_pb2.FileOutcome.State.ValueType) -> types.FileState:
    """Raises InvalidArgument."""
    try:
        return types.FileState[ingest_pb2.FileOutcome.State.Name(value).removeprefix("STATE_")]
    except (KeyError, ValueError):
        raise InvalidArgument.of("states", f"{value} is no state of a file.") from None


def lineage(value: types.Lineage) -> ingest_pb2.Lineage:
    kind = types.SourceKind(value.kind) if value.kind else None
    origin = ingest_pb2.Provenance(
        kind=ingest_pb2.Provenance.Kind.Value(f"KIND_{kind.name if kind else 'UNSPECIFIED'}"),
        path=value.path,
        serial=value.serial,
        volume=value.volume,
        label=value.label,
        signer=value.signer,
    )
    return ingest_pb2.Lineage(
        ingestion=value.ingestion,
        operator=value.operator,
        approver=value.approver,
        provenance=origin,
        container=value.container,
    )


def model(value: types.ModelStatus) -> model_pb2.Model:
    return model_pb2.Model(
        name=f"models/{value.name}",
        kind=model_pb2.Model.Kind.Value(f"KIND_{value.kind.name}"),
        state=model_pb2.Model.State.Value(f"STATE_{value.state.name}"),
        architecture=value.architecture,
        source=value.source,
        sha256=value.sha256,
        size_bytes=value.size_bytes,
        memory_bytes=value.memory_bytes,
        context_tokens=value.context_tokens,
        parameters=value.parameters,
        detail=value.detail,
        create_time=timestamp(value.create_time),
        base=f"models/{value.base}" if value.base else "",
        pinned=value.pinned,
    )


def memory_plan(value: types.MemoryPlan) -> model_pb2.PlanModelResponse:
    return model_pb2.PlanModelResponse(
        model=f"models/{value.model}",
        context_tokens=value.context_tokens,
        needed_bytes=value.needed_bytes,
        free_bytes=value.free_bytes,
        total_bytes=value.total_bytes,
        problem=value.problem,
        unloads=[f"models/{name}" for name in value.unloads],
    )


def imported_file(value: types.ImportedFile) -> model_pb2.ImportedFile:
    model = f"models/{value.model}" if value.model else ""
    return model_pb2.ImportedFile(path=value.path, model=model, reason=value.reason, detail=value.detail)


def alias(value: types.Alias) -> model_pb2.Alias:
    targets = [
        model_pb2.Alias.Target(
            model=f"models/{target.model}",
            weight=target.weight,
            shadow=target.shadow,
            requests=tally.requests,
            errors=tally.errors,
            output_tokens=tally.output_tokens,
            seconds=tally.seconds,
        )
        for target, tally in zip(value.targets, value.tallies, strict=True)
    ]
    return model_pb2.Alias(
        name=f"aliases/{value.name}",
        targets=targets,
        detail=value.detail,
        previous=value.previous,
        update_time=timestamp(value.update_time),
    )


def engines(value: Mapping[str, types.EngineStats]) -> telemetry_pb2.WatchEngineResponse:
    states = [telemetry_pb2.EngineState(model=f"models/{name}", **asdict(stats)) for name, stats in value.items()]
    return telemetry_pb2.WatchEngineResponse(engines=states)


def app_key(value: types.AppKey) -> access_pb2.AppKey:
    return access_pb2.AppKey(
        name=f"appKeys/{value.id}",
        tenant=value.tenant,
        user=value.user,
        scopes=sorted(access_pb2.AppScope.Value(f"APP_SCOPE_{scope.name}") for scope in value.scopes),
        collections=[f"collections/{name}" for name in sorted(value.collections)],
        models=[f"models/{name}" for name in sorted(value.models)],
        create_time=timestamp(value.create_time),
        expire_time=timestamp(value.expire_time),
        last_use_time=timestamp(value.last_use_time),
        revoke_time=timestamp(value.revoke_time),
    )


def group(value: types.Group) -> access_pb2.Group:
    return access_pb2.Group(name=f"groups/{value.name}", users=sorted(value.users))


def severity(value: types.Severity) -> telemetry_pb2.Severity.ValueType:
    return telemetry_pb2.Severity.Value(f"SEVERITY_{value.name}")


def health(value: types.HealthReport) -> telemetry_pb2.WatchHealthResponse:
    findings = [
        telemetry_pb2.Finding(
            code=item.code,
            severity=severity(item.severity),
            subject=item.subject,
            title=item.title,
            detail=item.detail,
            remedy=item.remedy,
            since=timestamp(item.since),
            impacts_serving=item.impacts_serving,
        )
        for item in value.findings
    ]
    return telemetry_pb2.WatchHealthResponse(severity=severity(value.severity), findings=findings)


def status(value: types.Status) -> telemetry_pb2.GetStatusResponse:
    uptime = Duration()
    uptime.FromMilliseconds(int(value.uptime_seconds * 1000))
    return telemetry_pb2.GetStatusResponse(
        version=value.version,
        uptime=uptime,
        data_directory=value.data_directory,
        listen_address=value.listen_address,
        severity=severity(value.severity),
        model_count=value.model_count,
        collection_count=value.collection_count,
        document_count=value.document_count,
        memory_used_bytes=value.memory_used_bytes,
        memory_total_bytes=value.memory_total_bytes,
        disk_free_bytes=value.disk_free_bytes,
        principal=value.principal,
        walls=_walls(value.walls) if value.walls else None,
    )


def _walls(value: types.Walls) -> telemetry_pb2.Walls:
    layers = [
        telemetry_pb2.Wall(name=wall.name, stands=wall.stands, needed=wall.needed, detail=wall.detail)
        for wall in value.layers
    ]
    proof_time = Timestamp()
    proof_time.FromDatetime(value.proof_time)
    return telemetry_pb2.Walls(layers=layers, proof_time=proof_time)
