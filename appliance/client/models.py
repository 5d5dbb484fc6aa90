"""Models on the box, and the names that lead to them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance import types
from appliance.client import messages as convert
from appliance.client.calls import WATCH_SECONDS, WORK_SECONDS, Stream
from appliance.client.jobs import JobCalls
from appliance.client.messages import named
from appliance.gen.v1 import model_pb2, telemetry_pb2
from appliance.gen.v1.model_pb2_grpc import ModelServiceStub
from appliance.gen.v1.telemetry_pb2_grpc import TelemetryServiceStub


class ModelCalls(JobCalls):
    """Models on the box, and the names that lead to them."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._models = ModelServiceStub(self._channel)
        self._engines = TelemetryServiceStub(self._channel)

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
        return self._stream(self._engines.WatchEngine, request, convert.engines, timeout_seconds)

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
