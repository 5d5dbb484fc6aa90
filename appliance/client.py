"""The typed client: all that the CLI, the console and a Python program need of a box.

Synchronous and safe to use from many threads. Values are those of `appliance.types`, errors those of
`appliance.errors`. Every call carries a deadline.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from appliance import client_messages as convert
from appliance import errors, types
from appliance.client_messages import named
from appliance.config import default_data_dir
from appliance.gen.v1 import access_pb2, inference_pb2, ingest_pb2, job_pb2, knowledge_pb2, model_pb2, telemetry_pb2
from appliance.gen.v1.access_pb2_grpc import AccessServiceStub
from appliance.gen.v1.inference_pb2_grpc import InferenceServiceStub
from appliance.gen.v1.ingest_pb2_grpc import IngestServiceStub
from appliance.gen.v1.job_pb2_grpc import JobServiceStub
from appliance.gen.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from appliance.gen.v1.model_pb2_grpc import ModelServiceStub
from appliance.gen.v1.telemetry_pb2_grpc import TelemetryServiceStub

T = TypeVar("T")

CALL_SECONDS = 30.0  # a look-up or a small change
WORK_SECONDS = 600.0  # an answer, a model that loads, a compaction
WATCH_SECONDS = 86_400.0
ERROR_DOMAIN = "appliance"
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 1_000),  # so that a dead box is noticed within seconds
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 256 << 20),  # GetDocument sends the whole text of a document
    ("grpc.enable_http_proxy", 0),  # a box is reached directly, whatever the environment says of proxies
]


class Stream(Iterator[T], Generic[T]):
    """The messages of a streaming call. `cancel` may be called from any thread; the reader then gets Cancelled."""

    def __init__(self, call: Any, read: Callable[[Any], T], address: str) -> None:
        self._call, self._read, self._address = call, read, address

    def __next__(self) -> T:
        try:
            return self._read(next(self._call))
        except grpc.RpcError as error:
            raise _error(error, self._address) from None

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Client:
    """One box, over TLS with a client certificate.

    Names of collections, models and jobs are taken with or without their prefix; documents by their whole resource
    name. Every method raises errors of `appliance.errors`: Unreachable, DeadlineExceeded, Unauthenticated, Forbidden,
    and what the box answers. `timeout_seconds` replaces every call's own deadline.
    """

    def __init__(
        self, address: str, ca: bytes, certificate: bytes, key: bytes, timeout_seconds: float | None = None
    ) -> None:
        """address: host:port. ca, certificate, key: PEM."""
        self.address = address
        self._timeout_seconds = timeout_seconds
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        self._channel = grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)
        self._inference = InferenceServiceStub(self._channel)
        self._knowledge = KnowledgeServiceStub(self._channel)
        self._ingest = IngestServiceStub(self._channel)
        self._jobs = JobServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._telemetry = TelemetryServiceStub(self._channel)
        self._access = AccessServiceStub(self._channel)
        self._check: Any = health_pb2_grpc.HealthStub(self._channel).Check  # type: ignore[attr-defined]

    @classmethod
    def local(
        cls, data_dir: Path | None = None, address: str | None = None, timeout_seconds: float | None = None
    ) -> Self:
        """The box whose data directory this is, with its local user's certificate; `address` where it is elsewhere.

        Raises Unreachable where no daemon serves there, Unauthenticated where the certificate is missing or not ours.
        """
        folder = (data_dir or default_data_dir()).expanduser().absolute()
        address = address or _endpoint(folder)
        ca, certificate, key = (_credential(folder, name) for name in ("ca.pem", "cert.pem", "key.pem"))
        return cls(address, ca, certificate, key, timeout_seconds)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the box ---

    def serving(self) -> bool:
        """Whether the daemon takes calls (grpc.health.v1). False too where none answers."""
        try:
            answer = self._call(self._check, health_pb2.HealthCheckRequest(), 5.0)
        except (errors.Unreachable, errors.DeadlineExceeded):
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def status(self) -> types.Status:
        return convert.status(self._call(self._telemetry.GetStatus, telemetry_pb2.GetStatusRequest()))

    def health(self) -> types.HealthReport:
        """What there is to know now."""
        with self.watch_health(CALL_SECONDS) as reports:
            return next(reports)

    def watch_health(self, timeout_seconds: float = WATCH_SECONDS) -> Stream[types.HealthReport]:
        """The present report at once, then each change."""
        request = telemetry_pb2.WatchHealthRequest()
        return self._stream(self._telemetry.WatchHealth, request, convert.health, timeout_seconds)

    # --- inference ---

    def chat(
        self,
        messages: Sequence[types.Message],
        model: str = "",
        sampling: types.Sampling | None = None,
        timeout_seconds: float = WORK_SECONDS,
        *,
        tools: Sequence[types.Tool] = (),
        tool_choice: types.ToolChoice | None = None,
        constraint: types.Constraint | None = None,
        top_logprobs: int | None = None,
        priority: types.Priority = types.Priority.NORMAL,
    ) -> Stream[types.ChatPiece]:
        """Zero or more Text and ToolCall, then one Finish.

        '' names the default chat model; without `sampling` the box chooses. A ToolCall is only asked for: run it if
        you will, and send its result as a Message of Speaker.TOOL after one of the assistant that holds the call.
        """
        request = inference_pb2.ChatRequest(
            model=named("models", model),
            messages=map(convert.message, messages),
            sampling=convert.sampling(sampling),
            tools=map(convert.tool, tools),
            tool_choice=convert.tool_choice(tool_choice) if tool_choice else None,
            response_format=convert.response_format(constraint),
            top_logprobs=top_logprobs,
            priority=inference_pb2.Priority.Value(f"PRIORITY_{priority.name}"),
        )
        return self._stream(self._inference.Chat, request, convert.chat_piece, timeout_seconds)

    def embed(self, texts: Sequence[str], model: str = "") -> types.Floats:
        """float32 [len(texts), dimension], unit norm."""
        request = inference_pb2.EmbedRequest(model=named("models", model), texts=texts)
        answer = self._call(self._inference.Embed, request, WORK_SECONDS)
        return np.array([vector.values for vector in answer.vectors], dtype=np.float32)

    def rerank(self, query: str, documents: Sequence[str], model: str) -> types.Floats:
        """float32 [len(documents)], higher is better, comparable for one query only."""
        request = inference_pb2.RerankRequest(model=named("models", model), query=query, documents=documents)
        return np.array(self._call(self._inference.Rerank, request, WORK_SECONDS).scores, dtype=np.float32)

    def tokenize(self, text: str, model: str = "") -> tuple[int, ...]:
        request = inference_pb2.TokenizeRequest(model=named("models", model), text=text)
        return tuple(self._call(self._inference.Tokenize, request).ids)

    # --- knowledge ---

    def ask(
        self,
        collection: str,
        question: str,
        mode: types.AnswerMode | None = None,
        model: str = "",
        sampling: types.Sampling | None = None,
        timeout_seconds: float = WORK_SECONDS,
    ) -> Stream[types.AskPiece]:
        """Passages, then Text, then Citation and Unsupported, then one AskFinish. Without `mode` the box chooses."""
        request = knowledge_pb2.AskRequest(
            collection=named("collections", collection),
            question=question,
            mode=knowledge_pb2.AnswerMode.Value(f"ANSWER_MODE_{mode.name if mode else 'UNSPECIFIED'}"),
            model=named("models", model),
            sampling=convert.sampling(sampling),
        )
        return self._stream(self._knowledge.Ask, request, convert.ask_piece, timeout_seconds)

    def search(self, collection: str, query: str, limit: int = 0) -> tuple[types.Passage, ...]:
        """The best passages, best first; limit 0: as many as the box thinks right."""
        request = knowledge_pb2.SearchRequest(collection=named("collections", collection), query=query, limit=limit)
        return tuple(map(convert.passage, self._call(self._knowledge.Search, request).passages))

    def collections(self) -> Iterator[types.Collection]:
        request = knowledge_pb2.ListCollectionsRequest()
        return map(convert.collection, self._pages(self._knowledge.ListCollections, request, "collections"))

    def create_collection(self, collection: str) -> types.Collection:
        request = knowledge_pb2.CreateCollectionRequest(collection_id=collection.removeprefix("collections/"))
        return convert.collection(self._call(self._knowledge.CreateCollection, request).collection)

    def delete_collection(self, collection: str) -> None:
        """Destroys the collection's keys, then its files."""
        request = knowledge_pb2.DeleteCollectionRequest(name=named("collections", collection))
        self._call(self._knowledge.DeleteCollection, request, WORK_SECONDS)

    def compact(self, collection: str) -> types.Collection:
        request = knowledge_pb2.CompactCollectionRequest(name=named("collections", collection))
        return convert.collection(self._call(self._knowledge.CompactCollection, request, WORK_SECONDS).collection)

    def documents(self, collection: str) -> Iterator[types.Document]:
        request = knowledge_pb2.ListDocumentsRequest(parent=named("collections", collection))
        return map(convert.document, self._pages(self._knowledge.ListDocuments, request, "documents"))

    def document(self, name: str) -> tuple[types.Document, tuple[str, ...]]:
        """A document and its text by page: what citations are ranges of."""
        answer = self._call(self._knowledge.GetDocument, knowledge_pb2.GetDocumentRequest(name=name))
        return convert.document(answer.document), tuple(answer.pages)

    def delete_document(self, name: str) -> None:
        self._call(self._knowledge.DeleteDocument, knowledge_pb2.DeleteDocumentRequest(name=name))

    # --- ingest and jobs ---

    def ingest_folder(self, path: str, collection: str, readers: Sequence[str] = ()) -> types.Job:
        """Start to read a folder or file of the box; no `readers`: everyone may read the documents."""
        request = ingest_pb2.IngestFolderRequest(
            path=path, collection=named("collections", collection), readers=readers
        )
        return convert.job(self._call(self._ingest.IngestFolder, request).job)

    def files(self, job: str) -> Iterator[types.FileOutcome]:
        """What became of each file of an ingest job."""
        request = ingest_pb2.ListFilesRequest(job=named("jobs", job))
        return map(convert.file_outcome, self._pages(self._ingest.ListFiles, request, "files"))

    def quarantine(self) -> Iterator[types.FileOutcome]:
        """Files that were refused, of all jobs, newest first."""
        return map(
            convert.file_outcome, self._pages(self._ingest.ListQuarantine, ingest_pb2.ListQuarantineRequest(), "files")
        )

    def job(self, job: str) -> types.Job:
        return convert.job(self._call(self._jobs.GetJob, job_pb2.GetJobRequest(name=named("jobs", job))).job)

    def jobs(self) -> Iterator[types.Job]:
        """Newest first."""
        return map(convert.job, self._pages(self._jobs.ListJobs, job_pb2.ListJobsRequest(), "jobs"))

    def watch_job(self, job: str, timeout_seconds: float = WATCH_SECONDS) -> Stream[types.Job]:
        """The present state at once, then each change, until the job has ended."""
        request = job_pb2.WatchJobRequest(name=named("jobs", job))
        return self._stream(self._jobs.WatchJob, request, lambda answer: convert.job(answer.job), timeout_seconds)

    def cancel_job(self, job: str) -> types.Job:
        return convert.job(self._call(self._jobs.CancelJob, job_pb2.CancelJobRequest(name=named("jobs", job))).job)

    # --- models ---

    def models(self) -> Iterator[types.ModelStatus]:
        return map(convert.model, self._pages(self._models.ListModels, model_pb2.ListModelsRequest(), "models"))

    def model(self, model: str) -> types.ModelStatus:
        return convert.model(
            self._call(self._models.GetModel, model_pb2.GetModelRequest(name=named("models", model))).model
        )

    def import_model(self, path: str, base: str = "", kind: types.ModelKind | None = None) -> types.Job:
        """Start to check a file of the box, or every GGUF of a folder, and to take it into the store.

        base: of an adapter that fits several models. kind: EMBEDDING or RERANKER, of a folder with an ONNX model.
        """
        number = model_pb2.Model.Kind.Value(f"KIND_{kind.name}" if kind else "KIND_UNSPECIFIED")
        request = model_pb2.ImportModelRequest(path=path, base=named("models", base), kind=number)
        return self.job(self._call(self._models.ImportModel, request).job)

    def imported_files(self, job: str) -> Iterator[types.ImportedFile]:
        """What became of each file of an import by path."""
        request = model_pb2.ListImportedFilesRequest(job=named("jobs", job))
        return map(convert.imported_file, self._pages(self._models.ListImportedFiles, request, "files"))

    def load_model(self, model: str) -> types.ModelStatus:
        request = model_pb2.LoadModelRequest(name=named("models", model))
        return convert.model(self._call(self._models.LoadModel, request, WORK_SECONDS).model)

    def unload_model(self, model: str) -> types.ModelStatus:
        request = model_pb2.UnloadModelRequest(name=named("models", model))
        return convert.model(self._call(self._models.UnloadModel, request, WORK_SECONDS).model)

    def delete_model(self, model: str) -> None:
        request = model_pb2.DeleteModelRequest(name=named("models", model))
        self._call(self._models.DeleteModel, request, WORK_SECONDS)

    def plan_model(self, model: str) -> types.MemoryPlan:
        """What loading it would take, and which idle models it would end; nothing is loaded."""
        request = model_pb2.PlanModelRequest(name=named("models", model))
        return convert.memory_plan(self._call(self._models.PlanModel, request))

    def pin_model(self, model: str, pinned: bool = True) -> types.ModelStatus:
        """Keep a model loaded once it is, whatever else needs the memory; or no longer."""
        request = model_pb2.PinModelRequest(name=named("models", model), pinned=pinned)
        return convert.model(self._call(self._models.PinModel, request).model)

    def quantize_model(self, model: str, storage: str, new_name: str = "") -> types.Job:
        """Start to write a model anew in fewer bits (Q4_K_M, Q8_0) and to import it."""
        request = model_pb2.QuantizeModelRequest(name=named("models", model), type=storage, new_name=new_name)
        return self.job(self._call(self._models.QuantizeModel, request).job)

    def watch_engines(self, timeout_seconds: float = WATCH_SECONDS) -> Stream[Mapping[str, types.EngineStats]]:
        """The state of each loaded model's engine at once, then each second."""
        request = telemetry_pb2.WatchEngineRequest()
        return self._stream(self._telemetry.WatchEngine, request, convert.engines, timeout_seconds)

    def aliases(self) -> Iterator[types.Alias]:
        """Names that lead to models by weight; ask for them as for any model."""
        return map(convert.alias, self._pages(self._models.ListAliases, model_pb2.ListAliasesRequest(), "aliases"))

    def set_alias(self, alias: str, targets: Sequence[types.Target]) -> types.Alias:
        """Make an alias or give it other targets; the first is the stable one."""
        items = (
            model_pb2.Alias.Target(model=named("models", target.model), weight=target.weight, shadow=target.shadow)
            for target in targets
        )
        request = model_pb2.SetAliasRequest(alias=model_pb2.Alias(name=named("aliases", alias), targets=items))
        return convert.alias(self._call(self._models.SetAlias, request).alias)

    def promote_alias(self, alias: str, model: str) -> types.Alias:
        """One of the targets becomes the only one."""
        request = model_pb2.PromoteAliasRequest(name=named("aliases", alias), model=named("models", model))
        return convert.alias(self._call(self._models.PromoteAlias, request).alias)

    def rollback_alias(self, alias: str) -> types.Alias:
        """Back to the targets that were before the last change."""
        request = model_pb2.RollbackAliasRequest(name=named("aliases", alias))
        return convert.alias(self._call(self._models.RollbackAlias, request).alias)

    def delete_alias(self, alias: str) -> None:
        self._call(self._models.DeleteAlias, model_pb2.DeleteAliasRequest(name=named("aliases", alias)))

    # --- access ---

    def create_app_key(
        self,
        user: str,
        scopes: Sequence[types.AppScope],
        collections: Sequence[str] = (),
        models: Sequence[str] = (),
        tenant: str = "",
        lifetime: timedelta | None = None,
    ) -> tuple[types.AppKey, str]:
        """A key for an application that speaks HTTP, and its token, told only here.

        No collections or models: all of them. '' is the caller's own tenant; without `lifetime` the box chooses.
        """
        request = access_pb2.CreateAppKeyRequest(
            tenant=tenant,
            user=user,
            scopes=[access_pb2.AppScope.Value(f"APP_SCOPE_{scope.name}") for scope in scopes],
            collections=[named("collections", name) for name in collections],
            models=[named("models", name) for name in models],
            lifetime=convert.duration(lifetime),
        )
        answer = self._call(self._access.CreateAppKey, request)
        return convert.app_key(answer.app_key), answer.token

    def app_keys(self) -> Iterator[types.AppKey]:
        """Newest first, revoked and expired ones too."""
        return map(convert.app_key, self._pages(self._access.ListAppKeys, access_pb2.ListAppKeysRequest(), "app_keys"))

    def revoke_app_key(self, key: str) -> types.AppKey:
        """No call with the key is taken from here on. `key`: the token's part before the dot."""
        request = access_pb2.RevokeAppKeyRequest(name=named("appKeys", key))
        return convert.app_key(self._call(self._access.RevokeAppKey, request).app_key)

    # --- calling ---

    def _call(self, method: Any, request: Any, seconds: float = CALL_SECONDS) -> Any:
        try:
            return method(request, timeout=self._timeout_seconds or seconds)
        except grpc.RpcError as error:
            raise _error(error, self.address) from None

    def _stream(self, method: Any, request: Any, read: Callable[[Any], T], seconds: float) -> Stream[T]:
        return Stream(method(request, timeout=self._timeout_seconds or seconds), read, self.address)

    def _pages(self, method: Any, request: Any, field: str) -> Iterator[Any]:
        while True:
            answer = self._call(method, request)
            yield from getattr(answer, field)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token


# --- where a box is, and who we are -----------------------------------------------------------------------------------


def _endpoint(data_dir: Path) -> str:
    try:
        address = (data_dir / "endpoint").read_text().strip()
    except FileNotFoundError:
        address = ""
    except OSError as error:
        raise errors.Unreachable(f"{data_dir / 'endpoint'} cannot be read: {error.strerror}.") from None
    if not address:
        raise errors.Unreachable(f"No daemon serves the data directory {data_dir}.")
    return address


def _credential(data_dir: Path, name: str) -> bytes:
    path = data_dir / "clients" / "local" / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.Unauthenticated(f"The client certificate {path} cannot be read: {error.strerror}.") from None


# --- errors -----------------------------------------------------------------------------------------------------------


def restore_error(
    reason: str, message: str, file_reason: str = "", retry_after_seconds: float = 1.0
) -> errors.ApplianceError:
    """The error of that reason, as the box raised it; a reason that this client does not know is in the message."""
    kind = errors.by_reason().get(reason)
    if kind is None:
        return errors.ApplianceError(f"{reason}: {message}")
    if issubclass(kind, errors.Busy):
        return kind(message, retry_after_seconds)
    if issubclass(kind, errors.DocumentRefused):
        return kind(file_reason, message)
    return kind(message)


def _error(error: grpc.RpcError, address: str) -> errors.ApplianceError:
    """What a failed call means: the box's own error where it sent one (google.rpc.Status), else what gRPC saw."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an RpcError of a call is that call
    except ValueError:  # gRPC replaced the code of an error that it could not carry
        status = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.domain != ERROR_DOMAIN:
        return _transport_error(error.code(), error.details() or "", address)
    retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds() or 1.0
    return restore_error(info.reason, status.message, info.metadata["file_reason"], retry_after_seconds)


def _transport_error(code: grpc.StatusCode, details: str, address: str) -> errors.ApplianceError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return _unavailable(details, address)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(f"{address} did not answer in time.")
        case grpc.StatusCode.CANCELLED:
            return errors.Cancelled("The call was cancelled.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ApplianceError(
                f"{address} does not know this call: it is of another version than this client."
            )
        case _:
            return errors.ApplianceError(f"{address} failed: {code.name}, {details}.")


def _unavailable(details: str, address: str) -> errors.ApplianceError:
    """gRPC has one code for all of these; only its words tell them apart. Under TLS 1.3 a refused client certificate
    shows as a connection that closes before the first call."""
    if "failed to connect" not in details and "resolution" not in details:
        return errors.Unreachable(f"The connection to {address} broke off.")
    if any(words in details for words in ("Tls handshake failed", "security handshaker", "Verification")):
        return errors.Unauthenticated(f"What listens at {address} is not the box that the certificates are for.")
    if "Socket closed" in details or "Connection reset" in details:
        return errors.Unauthenticated(f"{address} did not accept this client's certificate.")
    return errors.Unreachable(f"No daemon answers at {address}.")
