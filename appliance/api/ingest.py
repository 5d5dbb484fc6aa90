"""IngestService: documents into a collection, each in the caller's own tenant."""

from dataclasses import dataclass

from appliance.access.callers import Callers
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import ingest_pb2_grpc
from appliance.ingest.pipeline import Ingest
from appliance.types import EVERYONE, Principal

MAX_PATH_CHARACTERS = 4096


@dataclass(frozen=True)
class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    callers: Callers
    ingest: Ingest

    async def IngestFolder(self, request: pb.IngestFolderRequest, context: Context) -> pb.IngestFolderResponse:
        path = requests.text(request.path, "path", MAX_PATH_CHARACTERS)
        collection = requests.collection(request.collection, "collection")
        caller = self._caller(context)
        readers = requests.readers(request.readers, self.callers.groups.readers(caller.tenant)) or frozenset({EVERYONE})
        job = await self.ingest.start(caller, path, collection, readers)
        return pb.IngestFolderResponse(job=messages.job(job))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        found = self.ingest.files(self._caller(context).tenant, requests.job(request.job, "job"))
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListFilesResponse(files=map(messages.file_outcome, items), next_page_token=token)

    async def ListQuarantine(self, request: pb.ListQuarantineRequest, context: Context) -> pb.ListQuarantineResponse:
        found = self.ingest.quarantined(self._caller(context).tenant)
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListQuarantineResponse(files=map(messages.file_outcome, items), next_page_token=token)

    def _caller(self, context: Context) -> Principal:
        return self.callers.by_certificate(context.auth_context())
