"""IngestService: sources, ingestions, uploads and quarantine, each of the caller's own tenant."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from appliance.access import roles
from appliance.access.callers import Callers
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument, NotFound, RequestTooLarge, SecondPerson
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import ingest_pb2_grpc
from appliance.ingest import lineage
from appliance.ingest.report import ReportFormat
from appliance.ingest.service import Ingest
from appliance.ingest.sources.registry import Sources
from appliance.ports import Libraries
from appliance.types import EVERYONE, FileOutcome, Principal, Watch

MAX_PATH_CHARACTERS = 4096
MAX_PIECE_BYTES = 1 << 20
MAX_IDS = 10_000
MAX_POLLS = 1000
_FILE = re.compile(r"[a-f0-9]{1,32}-[0-9]{1,10}", re.ASCII)


@dataclass(frozen=True)
class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    """second_approves: a watch may then let nothing in by itself."""

    callers: Callers
    ingest: Ingest
    sources: Sources
    libraries: Libraries
    second_approves: bool = False

    # --- sources

    async def ListSources(self, request: pb.ListSourcesRequest, context: Context) -> pb.ListSourcesResponse:
        found, book = await self.sources.list(self._caller(context).tenant), self.sources.book
        return pb.ListSourcesResponse(
            sources=map(messages.source, found), allowed_serials=sorted(book.devices), signers=book.signers
        )

    async def WatchSource(self, request: pb.WatchSourceRequest, context: Context) -> pb.WatchSourceResponse:
        caller = self._caller(context)
        place = requests.text(request.path, "path", MAX_PATH_CHARACTERS)
        watched = await self.sources.watch(caller.tenant, place, request.share, self._watch(caller, request.watch))
        return pb.WatchSourceResponse(source=messages.source(watched))

    async def UnwatchSource(self, request: pb.UnwatchSourceRequest, context: Context) -> pb.UnwatchSourceResponse:
        await self.sources.unwatch(self._caller(context).tenant, requests.source(request.name))
        return pb.UnwatchSourceResponse()

    async def AllowDevice(self, request: pb.AllowDeviceRequest, context: Context) -> pb.AllowDeviceResponse:
        await asyncio.to_thread(self.sources.book.allow, request.serial, request.allowed)
        return pb.AllowDeviceResponse()

    async def TrustSigner(self, request: pb.TrustSignerRequest, context: Context) -> pb.TrustSignerResponse:
        await asyncio.to_thread(self.sources.book.trust, request.signer, request.public_key)
        return pb.TrustSignerResponse()

    # --- ingestions

    async def StartIngestion(self, request: pb.StartIngestionRequest, context: Context) -> pb.StartIngestionResponse:
        caller = self._caller(context)
        started = await self.ingest.start(
            caller,
            requests.text(request.source, "source", MAX_PATH_CHARACTERS),
            requests.collection(request.collection, "collection"),
            self._readers(caller, request.readers),
            request.approve,
        )
        return pb.StartIngestionResponse(ingestion=messages.ingestion(started))

    async def GetIngestion(self, request: pb.GetIngestionRequest, context: Context) -> pb.GetIngestionResponse:
        found = self.ingest.get(self._caller(context).tenant, requests.ingestion(request.name))
        return pb.GetIngestionResponse(ingestion=messages.ingestion(found))

    async def ListIngestions(self, request: pb.ListIngestionsRequest, context: Context) -> pb.ListIngestionsResponse:
        found = self.ingest.list(self._caller(context).tenant)
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListIngestionsResponse(ingestions=map(messages.ingestion, items), next_page_token=token)

    async def ApproveIngestion(
        self, request: pb.ApproveIngestionRequest, context: Context
    ) -> pb.ApproveIngestionResponse:
        changed = await self.ingest.approve(self._caller(context), requests.ingestion(request.name))
        return pb.ApproveIngestionResponse(ingestion=messages.ingestion(changed))

    async def ResumeIngestion(self, request: pb.ResumeIngestionRequest, context: Context) -> pb.ResumeIngestionResponse:
        changed = await self.ingest.resume(self._caller(context), requests.ingestion(request.name))
        return pb.ResumeIngestionResponse(ingestion=messages.ingestion(changed))

    async def CancelIngestion(self, request: pb.CancelIngestionRequest, context: Context) -> pb.CancelIngestionResponse:
        changed = await self.ingest.cancel(self._caller(context), requests.ingestion(request.name))
        return pb.CancelIngestionResponse(ingestion=messages.ingestion(changed))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        tenant, name = self._caller(context).tenant, requests.ingestion(request.ingestion, "ingestion")
        states = frozenset(map(messages.file_state, request.states))
        after, limit = _after(request.page_token), requests.page_size_of(request.page_size)
        found = await asyncio.to_thread(self.ingest.files, tenant, name, states, after, limit + 1)
        items, token = _page(found, limit)
        return pb.ListFilesResponse(files=map(messages.file_outcome, items), next_page_token=token)

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> AsyncIterator[pb.GetReportResponse]:
        tenant, name = self._caller(context).tenant, requests.ingestion(request.ingestion, "ingestion")
        pieces = await asyncio.to_thread(self.ingest.report, tenant, name, _form(request.format))
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            for start in range(0, len(piece), MAX_PIECE_BYTES):
                yield pb.GetReportResponse(data=piece[start : start + MAX_PIECE_BYTES])

    async def GetLineage(self, request: pb.GetLineageRequest, context: Context) -> pb.GetLineageResponse:
        collection, document = requests.document(request.document, "document")
        caller = self._caller(context)
        found = await asyncio.to_thread(self.libraries.of(caller.tenant).get, collection, document, caller.groups)
        origin, ingestion = lineage.from_metadata(found.metadata), None
        with suppress(NotFound):
            ingestion = self.ingest.get(caller.tenant, origin.ingestion) if origin else None
        return pb.GetLineageResponse(
            document=messages.document(found, with_readers=caller.role in roles.WRITE),
            pipeline=found.pipeline,
            lineage=messages.lineage(origin) if origin else None,
            ingestion=messages.ingestion(ingestion) if ingestion else None,
        )

    # --- quarantine

    async def ListQuarantine(self, request: pb.ListQuarantineRequest, context: Context) -> pb.ListQuarantineResponse:
        after, limit = _after(request.page_token), requests.page_size_of(request.page_size)
        found = await asyncio.to_thread(self.ingest.quarantined, self._caller(context).tenant, after, limit + 1)
        items, token = _page(found, limit)
        return pb.ListQuarantineResponse(files=map(messages.file_outcome, items), next_page_token=token)

    async def ReleaseFiles(self, request: pb.ReleaseFilesRequest, context: Context) -> pb.ReleaseFilesResponse:
        caller, ids = self._caller(context), _ids(request.ids)
        readers = self._readers(caller, request.readers) if request.readers else None
        released = await self.ingest.release(caller, ids, readers)
        return pb.ReleaseFilesResponse(ingestion=messages.ingestion(released))

    async def PurgeFiles(self, request: pb.PurgeFilesRequest, context: Context) -> pb.PurgeFilesResponse:
        if request.all and request.ids:
            raise InvalidArgument.of("ids", "are not taken together with all.")
        ids = () if request.all else _ids(request.ids)
        return pb.PurgeFilesResponse(purged=await self.ingest.purge(self._caller(context), ids, all_=request.all))

    # --- uploads

    async def CreateUpload(self, request: pb.CreateUploadRequest, context: Context) -> pb.CreateUploadResponse:
        caller = self._caller(context)
        upload = await self.ingest.begin_upload(
            caller,
            requests.text(request.path, "path", MAX_PATH_CHARACTERS),
            requests.collection(request.collection, "collection"),
            self._readers(caller, request.readers),
            _size(request.size_bytes),
        )
        return pb.CreateUploadResponse(upload=f"uploads/{upload}")

    async def UploadFile(self, pieces: AsyncIterator[pb.UploadFileRequest], context: Context) -> pb.UploadFileResponse:
        """A piece is read once the one before it is durable: gRPC's window holds the sender back until then."""
        caller, upload, size = self._caller(context), "", 0
        async for piece in pieces:
            named = requests.upload(piece.upload) if piece.upload or not upload else upload
            if upload not in ("", named):
                raise InvalidArgument.of("upload", f"must stay uploads/{upload} in every piece.")
            upload, size = named, await self._append(caller, named, piece)
            if piece.sha256:
                whole = await self.ingest.finish(caller, upload, piece.sha256)
                return pb.UploadFileResponse(size_bytes=size, ingestion=messages.ingestion(whole))
        if not upload:
            raise InvalidArgument.of("upload", "must be named in the first piece.")
        return pb.UploadFileResponse(size_bytes=size)

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        caller, upload = self._caller(context), requests.upload(request.upload)
        return pb.GetUploadResponse(size_bytes=await asyncio.to_thread(self.ingest.upload_size, caller, upload))

    async def ListUploads(self, request: pb.ListUploadsRequest, context: Context) -> pb.ListUploadsResponse:
        found = await asyncio.to_thread(self.ingest.uploads, self._caller(context).tenant)
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListUploadsResponse(uploads=map(messages.upload, items), next_page_token=token)

    async def CancelUpload(self, request: pb.CancelUploadRequest, context: Context) -> pb.CancelUploadResponse:
        await self.ingest.cancel_upload(self._caller(context), requests.upload(request.upload))
        return pb.CancelUploadResponse()

    async def _append(self, caller: Principal, upload: str, piece: pb.UploadFileRequest) -> int:
        """How much of the file is durable with this piece."""
        if len(piece.data) > MAX_PIECE_BYTES:
            raise RequestTooLarge(f"data: has {len(piece.data)} bytes; a piece has at most {MAX_PIECE_BYTES}.")
        if piece.offset < 0:
            raise InvalidArgument.of("offset", "must not be negative.")
        if piece.data:
            return await self.ingest.append(caller, upload, piece.offset, piece.data)
        return await asyncio.to_thread(self.ingest.upload_size, caller, upload)

    # --- inside

    def _watch(self, caller: Principal, given: pb.Watch) -> Watch:
        if given.approve and self.second_approves:
            raise SecondPerson("A watch may not approve what it finds: another person must.")
        if not 0 <= given.settle_polls <= MAX_POLLS:
            raise InvalidArgument.of("watch.settle_polls", f"must be between 0 and {MAX_POLLS}.")
        collection = requests.collection(given.collection, "watch.collection")
        return Watch(collection, self._readers(caller, given.readers), given.approve, given.settle_polls)

    def _readers(self, caller: Principal, given: Collection[str]) -> frozenset[str]:
        return requests.readers(given, self.callers.groups.readers(caller.tenant)) or frozenset({EVERYONE})

    def _caller(self, context: Context) -> Principal:
        return self.callers.by_certificate(context.auth_context())


def _size(size_bytes: int) -> int:
    if size_bytes < 0:
        raise InvalidArgument.of("size_bytes", "must not be negative.")
    return size_bytes


def _ids(given: Collection[str]) -> frozenset[str]:
    if not 0 < len(given) <= MAX_IDS:
        raise InvalidArgument.of("ids", f"must name 1 to {MAX_IDS} files.")
    return frozenset(given)


def _after(page_token: str) -> str:
    """The id of a page's last file: files that come between two calls shift nothing."""
    if page_token and _FILE.fullmatch(page_token) is None:
        raise InvalidArgument.of("page_token", "is not one that a listing gave.")
    return page_token


def _page(found: Sequence[FileOutcome], limit: int) -> tuple[Sequence[FileOutcome], str]:
    """found: one more than a page has, where there are more."""
    return found[:limit], found[limit - 1].id if len(found) > limit else ""


def _form(value: pb.GetReportRequest.Format.ValueType) -> ReportFormat:
    try:
        name = pb.GetReportRequest.Format.Name(value).removeprefix("FORMAT_")
    except ValueError:
        raise InvalidArgument.of("format", "must be JSON, CSV or HTML.") from None
    return ReportFormat.JSON if name == "UNSPECIFIED" else ReportFormat[name]
