"""TelemetryService: what the box knows about itself."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from appliance.access import roles
from appliance.api import messages
from appliance.api.interceptors import Context
from appliance.gen.v1 import telemetry_pb2 as pb
from appliance.gen.v1 import telemetry_pb2_grpc
from appliance.types import HealthReport, Status


class Health(Protocol):
    """The present findings (`health/monitor.py`)."""

    def watch(self) -> AsyncIterator[HealthReport]: ...


@dataclass(frozen=True)
class TelemetryService(telemetry_pb2_grpc.TelemetryServiceServicer):
    health: Health
    status: Callable[[], Status]

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        principal = str(roles.principal(context.auth_context()))
        return messages.status(replace(self.status(), principal=principal))

    async def WatchHealth(
        self, request: pb.WatchHealthRequest, context: Context
    ) -> AsyncIterator[pb.WatchHealthResponse]:
        async for report in self.health.watch():
            yield messages.health(report)
