import io
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from appliance import errors, types
from appliance.client import Client, restore_error
from appliance.gen.v1 import inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2
from tests.box import Authority, Box, admit, refusal

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STAMP = Timestamp(seconds=int(NOW.timestamp()))
FINISH = inference_pb2.Finish(
    reason=inference_pb2.Finish.REASON_STOP,
    usage=inference_pb2.Usage(input_tokens=7, cached_input_tokens=3, output_tokens=2),
    timings=inference_pb2.Timings(queue_seconds=0.1, search_seconds=0.2, total_seconds=0.5),
)
JOB = job_pb2.Job(
    name="jobs/7f", kind="ingest", state=job_pb2.Job.STATE_RUNNING, create_time=STAMP, done=1, total=4, unit="files"
)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def box(tmp_path: Path, authority: Authority) -> Iterator[Box]:
    box = Box(tmp_path)
    box.start(authority)
    yield box
    box.stop()


@pytest.fixture
def client(box: Box) -> Iterator[Client]:
    with Client.local(box.data_dir) as client:
        yield client


def test_an_answer_streams_as_text_and_then_its_end(box: Box, client: Client) -> None:
    pieces = [inference_pb2.ChatResponse(text="Hel"), inference_pb2.ChatResponse(text="lo")]
    box.answers["Chat"] = lambda request, context: iter([*pieces, inference_pb2.ChatResponse(finish=FINISH)])
    messages = [types.Message(types.Speaker.SYSTEM, "Be brief."), types.Message(types.Speaker.USER, "Hi")]
    found = list(client.chat(messages, "tiny", types.Sampling(temperature=0, seed=5, stop=("x",))))
    assert found[:2] == [types.Text("Hel"), types.Text("lo")]
    assert found[2] == types.Finish(
        types.FinishReason.STOP,
        types.Usage(7, 3, 2),
        types.Timings(queue_seconds=0.1, search_seconds=0.2, total_seconds=0.5),
    )
    request = box.calls[0].request
    assert request.model == "models/tiny"
    assert [message.role for message in request.messages] == [1, 2]
    assert request.sampling.HasField("temperature")
    assert (request.sampling.temperature, request.sampling.seed, list(request.sampling.stop)) == (0, 5, ["x"])


def test_calls_log_probabilities_and_what_was_asked_for_cross_the_wire(box: Box, client: Client) -> None:
    token = inference_pb2.TokenLogprob(token=5, piece=b"\xc3", logprob=-0.5)
    choice = inference_pb2.TokenChoice(chosen=token, top=[token])
    call = inference_pb2.ToolCall(id="a1", name="time", arguments="{}")
    finish = inference_pb2.Finish(reason=inference_pb2.Finish.REASON_TOOL_CALLS)
    pieces = [
        inference_pb2.ChatResponse(text="Hi", choices=[choice]),
        inference_pb2.ChatResponse(tool_call=call),
        inference_pb2.ChatResponse(finish=finish),
    ]
    box.answers["Chat"] = lambda request, context: iter(pieces)
    messages = [
        types.Message(types.Speaker.USER, "Hi"),
        types.Message(types.Speaker.ASSISTANT, "", (types.ToolCall("a0", "time", "{}"),)),
        types.Message(types.Speaker.TOOL, "noon", tool_call_id="a0"),
    ]
    stream = client.chat(
        messages,
        sampling=types.Sampling(presence_penalty=1.5, frequency_penalty=-0.5),
        tools=[types.Tool("time", "Now.", '{"type": "object"}')],
        tool_choice=types.ToolChoice(types.ToolMode.REQUIRED, "time"),
        constraint=types.Constraint(types.ConstraintKind.GBNF, "root ::= [a-z]"),
        top_logprobs=1,
        priority=types.Priority.HIGH,
    )
    text, called, finished = stream
    logprob = types.TokenLogprob(5, b"\xc3", -0.5)
    assert text == types.Text("Hi", (types.TokenChoice(logprob, (logprob,)),))
    assert called == types.ToolCall("a1", "time", "{}")
    assert isinstance(finished, types.Finish)
    assert finished.reason is types.FinishReason.TOOL_CALLS
    request = box.calls[0].request
    assert request.messages[1].tool_calls[0].id == request.messages[2].tool_call_id == "a0"
    assert request.messages[2].role == inference_pb2.Message.ROLE_TOOL
    assert request.tools == [inference_pb2.Tool(name="time", description="Now.", parameters='{"type": "object"}')]
    assert (request.tool_choice.mode, request.tool_choice.name) == (inference_pb2.ToolChoice.MODE_REQUIRED, "time")
    assert request.response_format.gbnf == "root ::= [a-z]"
    assert (request.top_logprobs, request.priority) == (1, inference_pb2.PRIORITY_HIGH)
    assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (1.5, -0.5)


def test_without_sampling_the_box_chooses(box: Box, client: Client) -> None:
    box.answers["Chat"] = lambda request, context: iter([inference_pb2.ChatResponse(finish=FINISH)])
    list(client.chat([types.Message(types.Speaker.USER, "Hi")]))
    assert not box.calls[0].request.HasField("sampling")
    assert box.calls[0].request.model == ""


def test_a_stream_that_is_cancelled_from_another_thread_ends_its_reader_and_the_call(box: Box, client: Client) -> None:
    ended = threading.Event()

    def endless(request: Any, context: grpc.ServicerContext) -> Iterator[inference_pb2.ChatResponse]:
        context.add_callback(ended.set)
        yield inference_pb2.ChatResponse(text="a")
        ended.wait(30)

    box.answers["Chat"] = endless
    stream = client.chat([types.Message(types.Speaker.USER, "Hi")])
    assert next(stream) == types.Text("a")
    threading.Timer(0.05, stream.cancel).start()
    with pytest.raises(errors.Cancelled):
        next(stream)
    assert ended.wait(10)


def test_embeddings_are_rows_of_float32(box: Box, client: Client) -> None:
    vectors = [inference_pb2.Vector(values=[1, 0]), inference_pb2.Vector(values=[0, 1])]
    box.answers["Embed"] = lambda request, context: inference_pb2.EmbedResponse(vectors=vectors)
    found = client.embed(["a", "b"])
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 0], [0, 1]]


def test_scores_are_float32_in_the_order_of_the_documents(box: Box, client: Client) -> None:
    box.answers["Rerank"] = lambda request, context: inference_pb2.RerankResponse(scores=[0.5, -1])
    found = client.rerank("q", ["a", "b"], "judge")
    assert found.dtype == np.float32
    assert found.tolist() == [0.5, -1]
    asked = box.calls[-1].request
    assert (asked.model, asked.query, list(asked.documents)) == ("models/judge", "q", ["a", "b"])


def test_tokens_are_their_ids(box: Box, client: Client) -> None:
    box.answers["Tokenize"] = lambda request, context: inference_pb2.TokenizeResponse(ids=[3, 1])
    assert client.tokenize("x", "tiny") == (3, 1)


def test_every_kind_of_piece_of_an_answer_arrives_as_its_type(box: Box, client: Client) -> None:
    name = "collections/a/documents/1"
    passage = knowledge_pb2.Passage(document=name, title="t.md", page=2, start=3, end=9, text="a text", score=0.5)
    citation = knowledge_pb2.Citation(
        document=name, title="t.md", page=2, start=3, end=9, quote="a text", answer_start=0, answer_end=6
    )
    box.answers["Ask"] = lambda request, context: iter(
        [
            knowledge_pb2.AskResponse(
                passages=knowledge_pb2.Passages(mode=knowledge_pb2.ANSWER_MODE_QUOTE, passages=[passage])
            ),
            knowledge_pb2.AskResponse(text="a text"),
            knowledge_pb2.AskResponse(citation=citation),
            knowledge_pb2.AskResponse(unsupported=knowledge_pb2.Unsupported(answer_start=1, answer_end=2)),
            knowledge_pb2.AskResponse(finish=knowledge_pb2.AskFinish(answered=True, finish=FINISH)),
        ]
    )
    passages, text, cited, unsupported, finish = client.ask("a", "What?", types.AnswerMode.QUOTE)
    span = types.Span(2, 3, 9)
    assert passages == types.Passages(types.AnswerMode.QUOTE, (types.Passage(name, "t.md", span, "a text", 0.5),))
    assert text == types.Text("a text")
    assert cited == types.Citation(name, "t.md", span, "a text", 0, 6)
    assert unsupported == types.Unsupported(1, 2)
    assert isinstance(finish, types.AskFinish)
    assert finish.answered
    assert box.calls[0].request.collection == "collections/a"
    assert box.calls[0].request.mode == knowledge_pb2.ANSWER_MODE_QUOTE


def test_a_listing_follows_its_page_tokens(box: Box, client: Client) -> None:
    def page(request: knowledge_pb2.ListDocumentsRequest, context: Any) -> knowledge_pb2.ListDocumentsResponse:
        number = int(request.page_token or "0")
        document = knowledge_pb2.Document(name=f"{request.parent}/documents/{number}", create_time=STAMP)
        token = str(number + 1) if number < 2 else ""
        return knowledge_pb2.ListDocumentsResponse(documents=[document], next_page_token=token)

    box.answers["ListDocuments"] = page
    found = list(client.documents("handbook"))
    assert [document.id for document in found] == ["0", "1", "2"]
    assert found[0].name == "collections/handbook/documents/0"
    assert found[0].create_time == NOW


def test_models_come_with_their_state_and_without_their_prefix(box: Box, client: Client) -> None:
    model = model_pb2.Model(
        name="models/tiny", kind=model_pb2.Model.KIND_CHAT, state=model_pb2.Model.STATE_READY, size_bytes=5
    )
    box.answers["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(models=[model])
    (found,) = client.models()
    assert (found.name, found.kind, found.state) == ("tiny", types.ModelKind.CHAT, types.ModelState.READY)
    assert found.create_time is None


def test_an_import_is_a_job(box: Box, client: Client) -> None:
    box.answers["ImportModel"] = lambda request, context: model_pb2.ImportModelResponse(job="jobs/7f")
    box.answers["GetJob"] = lambda request, context: job_pb2.GetJobResponse(job=JOB)
    job = client.import_model("/stick/m.gguf")
    assert (job.id, job.state, job.done, job.total, job.end_time) == ("7f", types.JobState.RUNNING, 1, 4, None)
    assert [call.request for call in box.calls][1] == job_pb2.GetJobRequest(name="jobs/7f")


def test_files_say_how_they_ended(box: Box, client: Client) -> None:
    file = ingest_pb2.FileOutcome(
        path="a.pdf", state=ingest_pb2.FileOutcome.STATE_QUARANTINED, reason="PDF_ENCRYPTED", time=STAMP
    )
    box.answers["ListFiles"] = lambda request, context: ingest_pb2.ListFilesResponse(files=[file])
    (found,) = client.files("7f")
    assert (found.state, found.reason, found.time) == (types.FileState.QUARANTINED, "PDF_ENCRYPTED", NOW)
    assert box.calls[0].request.ingestion == "ingestions/7f"


def test_health_is_the_first_report_of_the_watch(box: Box, client: Client) -> None:
    finding = telemetry_pb2.Finding(
        code="SANDBOX_UNAVAILABLE", severity=telemetry_pb2.SEVERITY_CRITICAL, title="t", since=STAMP
    )
    report = telemetry_pb2.WatchHealthResponse(severity=telemetry_pb2.SEVERITY_CRITICAL, findings=[finding])
    box.answers["WatchHealth"] = lambda request, context: iter([report, report])
    found = client.health()
    assert found.severity is types.Severity.CRITICAL
    assert found.findings[0].code == "SANDBOX_UNAVAILABLE"


def test_an_enum_value_of_a_newer_box_is_named_as_unknown(box: Box, client: Client) -> None:
    answer = telemetry_pb2.GetStatusResponse(severity=9)  # type: ignore[arg-type]
    box.answers["GetStatus"] = lambda request, context: answer
    with pytest.raises(errors.Broken, match="Severity that this client does not know: 9"):
        client.status()


def every_call(client: Client) -> list[Callable[[], object]]:
    document, message = "collections/a/documents/1", types.Message(types.Speaker.USER, "Hi")
    return [
        client.status,
        client.health,
        lambda: list(client.chat([message])),
        lambda: client.embed(["a"]),
        lambda: client.tokenize("a"),
        lambda: list(client.ask("a", "b")),
        lambda: client.search("a", "b"),
        lambda: list(client.collections()),
        lambda: client.create_collection("a"),
        lambda: client.delete_collection("a"),
        lambda: client.compact("a"),
        lambda: list(client.documents("a")),
        lambda: client.document(document),
        lambda: client.delete_document(document),
        client.sources,
        lambda: client.watch_source("/x", types.Watch("a", frozenset({"everyone"}))),
        lambda: client.unwatch_source("a"),
        lambda: client.allow_device("4c53"),
        lambda: client.trust_signer("records", ""),
        lambda: client.ingest("/x", "a"),
        lambda: client.ingestion("1"),
        lambda: list(client.ingestions()),
        lambda: client.approve_ingestion("1"),
        lambda: client.resume_ingestion("1"),
        lambda: client.cancel_ingestion("1"),
        lambda: list(client.report("1")),
        lambda: client.lineage(document),
        lambda: client.create_upload("a.md", "a"),
        lambda: list(client.uploads()),
        lambda: client.cancel_upload("1"),
        lambda: client.upload("1", io.BytesIO(b"a")),
        lambda: client.release_files(["1"]),
        lambda: client.purge_files(["1"]),
        lambda: list(client.files("1")),
        lambda: list(client.quarantine()),
        lambda: client.job("1"),
        lambda: list(client.jobs()),
        lambda: list(client.watch_job("1")),
        lambda: client.cancel_job("1"),
        lambda: list(client.models()),
        lambda: client.model("a"),
        lambda: client.import_model("/x"),
        lambda: client.load_model("a"),
        lambda: client.unload_model("a"),
        lambda: client.delete_model("a"),
        lambda: list(client.imported_files("a")),
        lambda: client.plan_model("a"),
        lambda: client.pin_model("a"),
        lambda: client.quantize_model("a", "Q8_0"),
        lambda: next(client.watch_engines()),
        lambda: list(client.aliases()),
        lambda: client.set_alias("a", []),
        lambda: client.promote_alias("a", "b"),
        lambda: client.rollback_alias("a"),
        lambda: client.delete_alias("a"),
    ]


def test_every_call_carries_a_deadline(box: Box, client: Client) -> None:
    calls = every_call(client)
    for call in calls:
        with pytest.raises(errors.ApplianceError, match="another version"):
            call()
    assert client.serving()
    assert len({call.method for call in box.calls}) == len(calls) + 1
    assert [call.method for call in box.calls if call.seconds is None or not 0 < call.seconds < 90_000] == []


def test_the_client_s_timeout_replaces_each_call_s_own(box: Box) -> None:
    with Client.local(box.data_dir, timeout_seconds=7) as client, pytest.raises(errors.ApplianceError):
        client.status()
    assert box.calls[0].seconds is not None
    assert 0 < box.calls[0].seconds < 8


@pytest.mark.parametrize("cls", errors.by_reason().values(), ids=errors.by_reason().keys())
def test_every_error_of_the_tree_comes_back_as_itself(
    cls: type[errors.ApplianceError], box: Box, client: Client
) -> None:
    error = restore_error(cls.reason, "It went wrong.", "PDF_ENCRYPTED", 2.5)
    box.answers["GetStatus"] = refusal(error)
    with pytest.raises(cls, match="It went wrong") as caught:
        client.status()
    assert type(caught.value) is cls
    if isinstance(caught.value, errors.Busy):
        assert caught.value.retry_after_seconds == 2.5
    if isinstance(caught.value, errors.DocumentRefused):
        assert caught.value.file_reason == "PDF_ENCRYPTED"


def test_an_error_in_the_midst_of_a_stream_comes_back_as_itself(box: Box, client: Client) -> None:
    def dying(request: Any, context: grpc.ServicerContext) -> Iterator[inference_pb2.ChatResponse]:
        yield inference_pb2.ChatResponse(text="a")
        refusal(errors.WorkerDied("The worker died."))(request, context)

    box.answers["Chat"] = dying
    stream = client.chat([types.Message(types.Speaker.USER, "Hi")])
    assert next(stream) == types.Text("a")
    with pytest.raises(errors.WorkerDied, match="The worker died"):
        next(stream)


def test_a_reason_that_this_client_does_not_know_is_named() -> None:
    assert "NEW_REASON: Something." in str(restore_error("NEW_REASON", "Something."))


def test_a_late_answer_is_a_deadline_exceeded(box: Box) -> None:
    released = threading.Event()
    box.answers["GetStatus"] = lambda request, context: released.wait(10)
    with Client.local(box.data_dir, timeout_seconds=0.2) as client, pytest.raises(errors.DeadlineExceeded):
        client.status()
    released.set()


def test_a_data_directory_without_a_daemon_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(errors.Unreachable, match=str(tmp_path)):
        Client.local(tmp_path)


def test_an_address_where_nothing_listens_is_unreachable(box: Box) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Client.local(box.data_dir, address) as client:
        with pytest.raises(errors.Unreachable, match=address):
            client.status()
        assert not client.serving()


def test_a_box_that_dies_during_an_answer_is_unreachable(box: Box, client: Client) -> None:
    released = threading.Event()

    def dying(request: Any, context: grpc.ServicerContext) -> Iterator[inference_pb2.ChatResponse]:
        yield inference_pb2.ChatResponse(text="a")
        released.wait(10)

    box.answers["Chat"] = dying
    stream = client.chat([types.Message(types.Speaker.USER, "Hi")])
    next(stream)
    threading.Thread(target=box.stop).start()
    with pytest.raises((errors.Unreachable, errors.Cancelled)):
        next(stream)
    released.set()


def test_a_missing_certificate_is_named(box: Box) -> None:
    (box.data_dir / "clients" / "local" / "key.pem").unlink()
    with pytest.raises(errors.Unauthenticated, match=r"clients/local/key\.pem cannot be read: No such file"):
        Client.local(box.data_dir)


def test_a_box_of_another_authority_is_not_trusted(box: Box) -> None:
    admit(box.data_dir, Authority())
    with Client.local(box.data_dir) as client, pytest.raises(errors.Unauthenticated, match="is not the box"):
        client.status()


def test_a_certificate_of_another_authority_is_not_let_in(box: Box, authority: Authority) -> None:
    admit(box.data_dir, Authority())
    (box.data_dir / "clients" / "local" / "ca.pem").write_bytes(authority.pem)
    with Client.local(box.data_dir) as client, pytest.raises(errors.Unauthenticated, match="did not accept"):
        client.status()
    assert box.calls == []


def test_many_threads_share_one_client(box: Box, client: Client) -> None:
    box.answers["GetStatus"] = lambda request, context: telemetry_pb2.GetStatusResponse(
        severity=telemetry_pb2.SEVERITY_OK
    )
    found: list[types.Status] = []
    threads = [threading.Thread(target=lambda: found.append(client.status())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
