"""What a scripted box says in the tests of the verbs."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import Result

from appliance.gen.v1 import inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2

Cli = Callable[..., Result]
STAMP = Timestamp(seconds=int(datetime(2026, 11, 20, 12, 0, tzinfo=UTC).timestamp()))
DOCUMENT = "collections/default/documents/5f2c"
FINISH = inference_pb2.Finish(
    reason=inference_pb2.Finish.REASON_STOP,
    usage=inference_pb2.Usage(input_tokens=7, cached_input_tokens=3, output_tokens=2),
    timings=inference_pb2.Timings(search_seconds=0.25, total_seconds=0.5),
)


def job(state: job_pb2.Job.State.ValueType, **more: Any) -> job_pb2.Job:
    return job_pb2.Job(name="jobs/7f", kind="ingest", state=state, create_time=STAMP, unit="files", **more)


def watched(*states: job_pb2.Job) -> Any:
    return lambda request, context: iter([job_pb2.WatchJobResponse(job=state) for state in states])


def outcome(path: str, state: ingest_pb2.FileOutcome.State.ValueType, reason: str = "") -> ingest_pb2.FileOutcome:
    return ingest_pb2.FileOutcome(path=path, state=state, reason=reason, detail="As it is." if reason else "")


def files(*outcomes: ingest_pb2.FileOutcome) -> Any:
    return lambda request, context: ingest_pb2.ListFilesResponse(files=outcomes)


def passage(title: str = "badges.md") -> knowledge_pb2.Passage:
    return knowledge_pb2.Passage(document=DOCUMENT, title=title, page=3, start=10, end=38, text="Badges expire.")


def ask(
    *texts: str, answered: bool = True, title: str = "badges.md", unsupported: tuple[int, int] | None = None
) -> Any:
    """An answer that cites one sentence, if it is one."""
    found = knowledge_pb2.Passages(mode=knowledge_pb2.ANSWER_MODE_QUOTE, passages=[passage(title)])
    pieces = [knowledge_pb2.AskResponse(passages=found)]
    pieces += [knowledge_pb2.AskResponse(text=text) for text in texts]
    if answered:
        span: dict[str, Any] = {"page": 3, "start": 10, "end": 24, "quote": "Badges expire."}
        citation = knowledge_pb2.Citation(document=DOCUMENT, title=title, answer_start=0, answer_end=14, **span)
        pieces.append(knowledge_pb2.AskResponse(citation=citation))
    if unsupported:
        start, end = unsupported
        piece = knowledge_pb2.Unsupported(answer_start=start, answer_end=end)
        pieces.append(knowledge_pb2.AskResponse(unsupported=piece))
    finish = knowledge_pb2.AskFinish(answered=answered, finish=FINISH)
    pieces.append(knowledge_pb2.AskResponse(finish=finish))
    return lambda request, context: iter(pieces)


def documents(*titles: str) -> Any:
    found = [
        knowledge_pb2.Document(name=f"collections/default/documents/{number}", title=title, create_time=STAMP)
        for number, title in enumerate(titles)
    ]
    return lambda request, context: knowledge_pb2.ListDocumentsResponse(documents=found)


def models(*names: str) -> Any:
    found = [
        model_pb2.Model(
            name=f"models/{name}",
            kind=model_pb2.Model.KIND_CHAT,
            state=model_pb2.Model.STATE_READY,
            source="/stick/model.gguf",
            size_bytes=3 << 20,
        )
        for name in names
    ]
    return lambda request, context: model_pb2.ListModelsResponse(models=found)


def chat(*texts: str) -> Any:
    pieces = [inference_pb2.ChatResponse(text=text) for text in texts]
    return lambda request, context: iter([*pieces, inference_pb2.ChatResponse(finish=FINISH)])
