"""ModelService: the models on this box, whatever runs them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument, NotFound
from appliance.gen.v1 import model_pb2 as pb
from appliance.gen.v1 import model_pb2_grpc
from appliance.infer.router import Router
from appliance.models.imports import ImportFolder
from appliance.models.store import ModelStore
from appliance.types import ModelKind, ModelStatus

MAX_PATH_CHARACTERS = 4096


@dataclass(frozen=True)
class ModelService(model_pb2_grpc.ModelServiceServicer):
    router: Router
    store: ModelStore
    imports: ImportFolder
    embedder: ModelStatus

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        items, token = requests.page(list(self._all()), request.page_size, request.page_token)
        return pb.ListModelsResponse(models=map(messages.model, items), next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=messages.model(self._find(requests.model(request.name))))

    async def ImportModel(self, request: pb.ImportModelRequest, context: Context) -> pb.ImportModelResponse:
        path = Path(requests.text(request.path, "path", MAX_PATH_CHARACTERS))
        if not path.is_absolute():
            raise InvalidArgument.of("path", "must be absolute: it is a file of the server.")
        return pb.ImportModelResponse(job=self.imports.import_file(path).name)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        status = self._find(requests.model(request.name))
        if status.kind is not ModelKind.EMBEDDING:  # the embedder is always loaded
            status = await self.router.load(status.name)
        return pb.LoadModelResponse(model=messages.model(status))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        status = self._find(requests.model(request.name))
        if status.kind is ModelKind.EMBEDDING:
            raise InvalidArgument.of("name", "the embedding model serves every search and stays loaded.")
        await self.router.unload(status.name)
        return pb.UnloadModelResponse(model=messages.model(self._find(status.name)))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        status = self._find(requests.model(request.name))
        if status.kind is not ModelKind.CHAT:
            raise InvalidArgument.of("name", "this model is part of the box and cannot be deleted.")
        await asyncio.to_thread(self.store.delete, status.name)  # first, so that no call can load it again
        await self.router.unload(status.name)
        return pb.DeleteModelResponse()

    def _all(self) -> Iterator[ModelStatus]:
        yield self.embedder
        yield from self.router.statuses()
        yield from self.imports.statuses()

    def _find(self, name: str) -> ModelStatus:
        for status in self._all():
            if status.name == name:
                return status
        raise NotFound(f"There is no model models/{name}.")
