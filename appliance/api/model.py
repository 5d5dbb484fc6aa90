"""ModelService: the models on this box, whatever runs them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument, NotFound
from appliance.gen.v1 import model_pb2 as pb
from appliance.gen.v1 import model_pb2_grpc
from appliance.types import Job, ModelKind, ModelStatus

MAX_PATH_CHARACTERS = 4096


class Engines(Protocol):
    """Models that workers run (`infer/router.py`)."""

    def statuses(self) -> tuple[ModelStatus, ...]: ...

    async def load(self, name: str) -> ModelStatus: ...

    async def unload(self, name: str) -> None: ...


class Store(Protocol):
    """Model files (`models/store.py`)."""

    def delete(self, name: str) -> None: ...


class Imports(Protocol):
    """Files on their way in (`models/imports.py`)."""

    def statuses(self) -> tuple[ModelStatus, ...]: ...

    def import_file(self, path: Path) -> Job: ...


@dataclass(frozen=True)
class ModelService(model_pb2_grpc.ModelServiceServicer):
    engines: Engines
    store: Store
    imports: Imports
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
            status = await self.engines.load(status.name)
        return pb.LoadModelResponse(model=messages.model(status))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        status = self._find(requests.model(request.name))
        if status.kind is ModelKind.EMBEDDING:
            raise InvalidArgument.of("name", "the embedding model serves every search and stays loaded.")
        await self.engines.unload(status.name)
        return pb.UnloadModelResponse(model=messages.model(self._find(status.name)))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        status = self._find(requests.model(request.name))
        if status.kind is not ModelKind.CHAT:
            raise InvalidArgument.of("name", "this model is part of the box and cannot be deleted.")
        await self.engines.unload(status.name)
        await asyncio.to_thread(self.store.delete, status.name)
        return pb.DeleteModelResponse()

    def _all(self) -> Iterator[ModelStatus]:
        yield self.embedder
        yield from self.engines.statuses()
        yield from self.imports.statuses()

    def _find(self, name: str) -> ModelStatus:
        for status in self._all():
            if status.name == name:
                return status
        raise NotFound(f"There is no model models/{name}.")
