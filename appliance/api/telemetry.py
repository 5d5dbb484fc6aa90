"""TelemetryService: what the box knows about itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from appliance.access.callers import Callers
from appliance.api import messages
from appliance.api.interceptors import Context
from appliance.gen.v1 import telemetry_pb2 as pb
from appliance.gen.v1 import telemetry_pb2_grpc
from appliance.health.monitor import Monitor
from appliance.types import EngineStats, Principal, Status

ENGINE_SECONDS = 1.0  # as often as an engine tells of itself


@dataclass(frozen=True)
class TelemetryService(telemetry_pb2_grpc.TelemetryServiceServicer):
    """status: as it is for a caller."""

    callers: Callers
    monitor: Monitor
    status: Callable[[Principal], Status]
    engines: Callable[[], Mapping[str, EngineStats]]

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        caller = self._caller(context)
        return messages.status(await asyncio.to_thread(self.status, caller))

    async def WatchHealth(
        self, request: pb.WatchHealthRequest, context: Context
    ) -> AsyncIterator[pb.WatchHealthResponse]:
        async for report in self.monitor.watch(self._caller(context).tenant):
            yield messages.health(report)

    async def WatchEngine(
        self, request: pb.WatchEngineRequest, context: Context
    ) -> AsyncIterator[pb.WatchEngineResponse]:
        while True:
            yield messages.engines(self.engines())
            await asyncio.sleep(ENGINE_SECONDS)

    def _caller(self, context: Context) -> Principal:
        return self.callers.by_certificate(context.auth_context())
