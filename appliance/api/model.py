"""ModelService: the models on this box, whatever runs them, and the names that lead to them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument, ModelInUse, NotFound
from appliance.gen.v1 import model_pb2 as pb
from appliance.gen.v1 import model_pb2_grpc
from appliance.infer.encoders import KINDS, Encoders
from appliance.infer.router import Router
from appliance.models.aliases import AliasBook
from appliance.models.imports import ImportFolder
from appliance.models.requantize import Requantizer
from appliance.models.store import ModelStore
from appliance.types import ModelKind, ModelStatus, Target

MAX_PATH_CHARACTERS = 4096
WITH_ENGINE = {ModelKind.CHAT, ModelKind.POINTER, ModelKind.ADAPTER}
ONNX_KINDS = {
    pb.Model.KIND_UNSPECIFIED: None,
    pb.Model.KIND_EMBEDDING: ModelKind.EMBEDDING,
    pb.Model.KIND_RERANKER: ModelKind.RERANKER,
}


@dataclass(frozen=True)
class ModelService(model_pb2_grpc.ModelServiceServicer):
    router: Router
    store: ModelStore
    imports: ImportFolder
    aliases: AliasBook
    requantizer: Requantizer
    embedder: ModelStatus
    encoders: Encoders

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        items, token = requests.page(list(self._all()), request.page_size, request.page_token)
        return pb.ListModelsResponse(models=map(messages.model, items), next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=messages.model(self._find(requests.model(request.name))))

    async def ImportModel(self, request: pb.ImportModelRequest, context: Context) -> pb.ImportModelResponse:
        path = Path(requests.text(request.path, "path", MAX_PATH_CHARACTERS))
        if not path.is_absolute():
            raise InvalidArgument.of("path", "must be absolute: it is a file of the server.")
        if request.kind not in ONNX_KINDS:
            raise InvalidArgument.of("kind", "must be embedding or reranker, of an ONNX model; a GGUF says its own.")
        base = requests.model(request.base, "base") if request.base else ""
        return pb.ImportModelResponse(job=self.imports.import_path(path, base, ONNX_KINDS[request.kind]).name)

    async def ListImportedFiles(
        self, request: pb.ListImportedFilesRequest, context: Context
    ) -> pb.ListImportedFilesResponse:
        outcomes = self.imports.outcomes(requests.job(request.job, "job"))
        items, token = requests.page(outcomes, request.page_size, request.page_token)
        return pb.ListImportedFilesResponse(files=map(messages.imported_file, items), next_page_token=token)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        status = self._find(requests.model(request.name))
        if status != self.embedder:  # which is always loaded
            status = await self._load(status)
        return pb.LoadModelResponse(model=messages.model(status))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        status = self._find(requests.model(request.name))
        if status == self.embedder:
            raise InvalidArgument.of("name", "the embedding model serves every search and stays loaded.")
        if status.kind is ModelKind.ADAPTER:
            raise InvalidArgument.of("name", f"an adapter is loaded with its base; unload models/{status.base}.")
        await self._unload(status.name)
        return pb.UnloadModelResponse(model=messages.model(self._find(status.name)))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        status = self._find(requests.model(request.name))
        if status == self.embedder:
            raise InvalidArgument.of("name", "this model is part of the box and cannot be deleted.")
        if using := self.aliases.using(status.name):
            raise ModelInUse(f"models/{status.name} is a target of the aliases {', '.join(using)}.")
        await asyncio.to_thread(self.store.delete, status.name)  # first, so that no call can load it again
        await self._unload(status.name)
        await self.router.sweep()
        return pb.DeleteModelResponse()

    async def PlanModel(self, request: pb.PlanModelRequest, context: Context) -> pb.PlanModelResponse:
        status = self._find(requests.model(request.name))
        self._require_engine(status)
        return messages.memory_plan(self.router.plan(status.name))

    async def PinModel(self, request: pb.PinModelRequest, context: Context) -> pb.PinModelResponse:
        status = self._find(requests.model(request.name))
        self._require_engine(status)
        if status.kind is ModelKind.ADAPTER:
            raise InvalidArgument.of("name", f"an adapter is loaded with its base; pin models/{status.base}.")
        await asyncio.to_thread(self.store.pin, status.name, request.pinned)
        return pb.PinModelResponse(model=messages.model(self._find(status.name)))

    async def QuantizeModel(self, request: pb.QuantizeModelRequest, context: Context) -> pb.QuantizeModelResponse:
        job = self.requantizer.start(requests.model(request.name), request.type, request.new_name)
        return pb.QuantizeModelResponse(job=job.name)

    # --- aliases ---

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Context) -> pb.ListAliasesResponse:
        items, token = requests.page(self.aliases.list(), request.page_size, request.page_token)
        return pb.ListAliasesResponse(aliases=map(messages.alias, items), next_page_token=token)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        targets = [
            Target(requests.model(target.model, f"alias.targets[{i}].model"), target.weight, target.shadow)
            for i, target in enumerate(request.alias.targets)
        ]
        alias = self.aliases.set(requests.alias(request.alias.name, "alias.name"), targets)
        return pb.SetAliasResponse(alias=messages.alias(alias))

    async def PromoteAlias(self, request: pb.PromoteAliasRequest, context: Context) -> pb.PromoteAliasResponse:
        alias = self.aliases.promote(requests.alias(request.name), requests.model(request.model, "model"))
        return pb.PromoteAliasResponse(alias=messages.alias(alias))

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.RollbackAliasResponse:
        return pb.RollbackAliasResponse(alias=messages.alias(self.aliases.rollback(requests.alias(request.name))))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        self.aliases.delete(requests.alias(request.name))
        return pb.DeleteAliasResponse()

    async def _load(self, status: ModelStatus) -> ModelStatus:
        if status.kind not in KINDS:
            self._require_engine(status)
            return await self.router.load(status.name)
        await self.encoders.load(status.name)
        return self._find(status.name)

    async def _unload(self, name: str) -> None:
        await self.router.unload(name)
        await self.encoders.unload(name)

    def _require_engine(self, status: ModelStatus) -> None:
        if status.kind not in WITH_ENGINE:
            raise InvalidArgument.of("name", f"models/{status.name} is a {status.kind.value} model; it has no engine.")

    def _all(self) -> Iterator[ModelStatus]:
        yield self.embedder
        yield from map(self.encoders.told, self.router.statuses())
        yield from self.imports.statuses()

    def _find(self, name: str) -> ModelStatus:
        for status in self._all():
            if status.name == name:
                return status
        raise NotFound(f"There is no model models/{name}.")
