"""IngestService: documents into a collection."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import ingest_pb2_grpc
from appliance.ingest.pipeline import Ingest
from appliance.types import EVERYONE, Role

MAX_PATH_CHARACTERS = 4096
ROLES = "|".join(role.value for role in Role)
READER = re.compile(rf"{EVERYONE}|role:(?:{ROLES})|user:[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}", re.ASCII)
"""The groups that a caller can be in (types.Principal.groups); a document for any other would be for nobody."""


@dataclass(frozen=True)
class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    ingest: Ingest

    async def IngestFolder(self, request: pb.IngestFolderRequest, context: Context) -> pb.IngestFolderResponse:
        path = requests.text(request.path, "path", MAX_PATH_CHARACTERS)
        collection = requests.collection(request.collection, "collection")
        readers = _readers(request.readers) or frozenset({EVERYONE})
        job = await self.ingest.start(path, collection, readers)
        return pb.IngestFolderResponse(job=messages.job(job))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        found = self.ingest.files(requests.job(request.job, "job"))
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListFilesResponse(files=map(messages.file_outcome, items), next_page_token=token)

    async def ListQuarantine(self, request: pb.ListQuarantineRequest, context: Context) -> pb.ListQuarantineResponse:
        items, token = requests.page(self.ingest.quarantined(), request.page_size, request.page_token)
        return pb.ListQuarantineResponse(files=map(messages.file_outcome, items), next_page_token=token)


def _readers(given: Iterable[str]) -> frozenset[str]:
    """Raises InvalidArgument."""
    for reader in given:
        if READER.fullmatch(reader) is None:
            problem = f"{reader[:80]!r} is no group; there are {EVERYONE!r}, 'role:ROLE' ({ROLES}) and 'user:NAME'."
            raise InvalidArgument.of("readers", problem)
    return frozenset(given)
