"""A box in miniature: a real gRPC server over TLS with client certificates, whose answers a test writes."""

import ipaddress
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from appliance.errors import ApplianceError, Busy, DocumentRefused
from appliance.gen.v1 import (
    access_pb2_grpc,
    inference_pb2_grpc,
    ingest_pb2_grpc,
    job_pb2_grpc,
    knowledge_pb2_grpc,
    model_pb2_grpc,
    telemetry_pb2_grpc,
)

Answer = Callable[[Any, grpc.ServicerContext], Any]


class Authority:
    """A certificate authority of its own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._certificate = self._sign(self._name, self._key.public_key(), authority=True)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self) -> tuple[bytes, bytes]:
        """Certificate and key, PEM, good as server on loopback and as client."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        certificate = self._sign(name, key.public_key(), authority=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private

    def _sign(self, name: x509.Name, public: ec.EllipticCurvePublicKey, authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(self._key, hashes.SHA256())
        )


@dataclass(frozen=True)
class Call:
    """One call that a box got. `seconds` is what was left of its deadline; None: it had none."""

    method: str
    request: Any
    seconds: float | None


@dataclass
class Box:
    """Every service of the API. `answers` holds a function a method; what it lacks is UNIMPLEMENTED."""

    data_dir: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    address: str = ""
    _server: grpc.Server | None = None

    def start(self, authority: Authority) -> None:
        certificate, key = authority.issue()
        self._server = grpc.server(ThreadPoolExecutor(4))
        access_pb2_grpc.add_AccessServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        job_pb2_grpc.add_JobServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        health_pb2_grpc.add_HealthServicer_to_server(self, self._server)  # type: ignore[arg-type]
        self.answers["Check"] = lambda request, context: health_pb2.HealthCheckResponse(status="SERVING")
        credentials = grpc.ssl_server_credentials([(key, certificate)], authority.pem, require_client_auth=True)
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()
        (self.data_dir / "endpoint").write_text(self.address)
        admit(self.data_dir, authority)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()

    def __getattr__(self, method: str) -> Answer:
        """A handler: the generated code looks for one under each method's name."""
        if not method[0].isupper():
            raise AttributeError(method)

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append(Call(method, request, context.time_remaining()))
            if method not in self.answers:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
            return self.answers[method](request, context)

        return handle


def admit(data_dir: Path, authority: Authority) -> None:
    """Give the local user of a data directory a certificate."""
    folder = data_dir / "clients" / "local"
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = authority.issue()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "cert.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key)


def refusal(error: ApplianceError) -> Answer:
    """An answer that fails with the error, as the API sends it (google.rpc.Status)."""
    metadata = {"file_reason": error.file_reason} if isinstance(error, DocumentRefused) else {}
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain="appliance", metadata=metadata)]
    if isinstance(error, Busy):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        details.append(retry)
    packed = [AnyMessage() for _ in details]
    for into, detail in zip(packed, details, strict=True):
        into.Pack(detail)
    status = status_pb2.Status(code=error.code.value[0], message=str(error), details=packed)

    def answer(request: Any, context: grpc.ServicerContext) -> None:
        context.abort_with_status(rpc_status.to_status(status))

    return answer
