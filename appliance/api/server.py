"""The gRPC server: services, TLS, limits. It listens on one address or says why it cannot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from appliance.access.ca import Identity
from appliance.api.access import AccessService
from appliance.api.inference import InferenceService
from appliance.api.ingest import IngestService
from appliance.api.interceptors import Gate
from appliance.api.job import JobService
from appliance.api.knowledge import KnowledgeService
from appliance.api.model import ModelService
from appliance.api.telemetry import TelemetryService
from appliance.errors import PortInUse
from appliance.gen.v1 import (
    access_pb2_grpc,
    inference_pb2_grpc,
    ingest_pb2_grpc,
    job_pb2_grpc,
    knowledge_pb2_grpc,
    model_pb2_grpc,
    telemetry_pb2_grpc,
)

MAX_REQUEST_BYTES = 16 << 20
MAX_PENDING_REQUESTS = 100_000
MAX_PENDING_SECONDS = 86_400
OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.so_reuseport", 0),  # else a second daemon would share the port and answer half the calls
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # of a flood gRPC itself would end what is beyond 1,000, or has waited for 30 s, without a word; the services say
    # QUEUE_FULL to each, and each call has its own deadline
    ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
    ("grpc.server_max_unrequested_time_in_server", MAX_PENDING_SECONDS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),  # clients notice a dead box by a 1 s keepalive
    ("grpc.http2.max_ping_strikes", 0),  # on a busy machine pings arrive in bunches: no reason to hang up
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True)
class Services:
    access: AccessService
    inference: InferenceService
    knowledge: KnowledgeService
    ingest: IngestService
    job: JobService
    model: ModelService
    telemetry: TelemetryService


class Server:
    """One gRPC server; `address` is where it listens, once it does.

    identity: asked at each new connection, so that a renewed certificate is shown.
    """

    def __init__(self, services: Services, identity: Callable[[], Identity]) -> None:
        self.address = ""
        self._gate = Gate()
        self._health = HealthServicer()
        self._server = grpc.aio.server(interceptors=[self._gate], options=OPTIONS)
        self._credentials = _credentials(identity)
        access_pb2_grpc.add_AccessServiceServicer_to_server(services.access, self._server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(services.inference, self._server)
        knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(services.knowledge, self._server)
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(services.ingest, self._server)
        job_pb2_grpc.add_JobServiceServicer_to_server(services.job, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(services.model, self._server)
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(services.telemetry, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self, address: str) -> str:
        """Listen; the address with the port that was taken where `address` ends in :0. Raises PortInUse."""
        try:
            port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise PortInUse(f"Something else listens on {address}, or this machine has no such address.")
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.address = f"{address.rpartition(':')[0]}:{port}"
        return self.address

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new calls with DRAINING, end watches, let the rest finish for the grace period, then close."""
        self._gate.drain()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)


def _credentials(identity: Callable[[], Identity]) -> grpc.ServerCredentials:
    def configuration() -> grpc.ServerCertificateConfiguration:
        shown = identity()
        return grpc.ssl_server_certificate_configuration([(shown.key, shown.certificate)], shown.client_authority)

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)
