"""ModelService: the models on this box."""

from dataclasses import dataclass
from typing import Protocol

from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import NotFound
from appliance.gen.v1 import model_pb2 as pb
from appliance.gen.v1 import model_pb2_grpc
from appliance.types import Job, ModelStatus

MAX_PATH_CHARACTERS = 4096


class Models(Protocol):
    """All models of the box, whatever runs them (`app.py`)."""

    def statuses(self) -> tuple[ModelStatus, ...]: ...

    def import_file(self, path: str) -> Job: ...

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...

    async def delete(self, name: str) -> None: ...


@dataclass(frozen=True)
class ModelService(model_pb2_grpc.ModelServiceServicer):
    models: Models

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        items, token = requests.page(self.models.statuses(), request.page_size, request.page_token)
        return pb.ListModelsResponse(models=map(messages.model, items), next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self._model(requests.model(request.name)))

    async def ImportModel(self, request: pb.ImportModelRequest, context: Context) -> pb.ImportModelResponse:
        job = self.models.import_file(requests.text(request.path, "path", MAX_PATH_CHARACTERS))
        return pb.ImportModelResponse(job=job.name)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        name = requests.model(request.name)
        await self.models.load(name)
        return pb.LoadModelResponse(model=self._model(name))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        name = requests.model(request.name)
        await self.models.unload(name)
        return pb.UnloadModelResponse(model=self._model(name))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        await self.models.delete(requests.model(request.name))
        return pb.DeleteModelResponse()

    def _model(self, name: str) -> pb.Model:
        for status in self.models.statuses():
            if status.name == name:
                return messages.model(status)
        raise NotFound(f"There is no model models/{name}.")
