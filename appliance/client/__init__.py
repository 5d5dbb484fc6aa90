"""The typed client: all that the CLI, the console and a Python program need of a box.

Synchronous and safe to use from many threads. Values are those of `appliance.types`, errors those of
`appliance.errors`. Every call carries a deadline.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from appliance import errors
from appliance.client.box import BoxCalls
from appliance.client.calls import CALL_SECONDS, WATCH_SECONDS, WORK_SECONDS, Stream
from appliance.client.failures import restore_error
from appliance.client.inference import InferenceCalls
from appliance.client.ingest import IngestCalls
from appliance.client.knowledge import KnowledgeCalls
from appliance.client.models import ModelCalls
from appliance.config import default_data_dir

__all__ = ["CALL_SECONDS", "WATCH_SECONDS", "WORK_SECONDS", "Client", "Stream", "restore_error"]


class Client(InferenceCalls, KnowledgeCalls, IngestCalls, ModelCalls, BoxCalls):
    """One box, over TLS with a client certificate.

    Names of collections, models, ingestions and jobs are taken with or without their prefix; documents by their whole
    resource name. Every method raises errors of `appliance.errors`: Unreachable, DeadlineExceeded, Unauthenticated,
    Forbidden, and what the box answers. `timeout_seconds` replaces every call's own deadline.
    """

    def __init__(
        self, address: str, ca: bytes, certificate: bytes, key: bytes, timeout_seconds: float | None = None
    ) -> None:
        """address: host:port. ca, certificate, key: PEM."""
        super().__init__(address, ca, certificate, key, timeout_seconds)

    @classmethod
    def local(
        cls, data_dir: Path | None = None, address: str | None = None, timeout_seconds: float | None = None
    ) -> Self:
        """The box whose data directory this is, with its local user's certificate; `address` where it is elsewhere.

        Raises Unreachable where no daemon serves there, Unauthenticated where the certificate is missing or not ours.
        """
        folder = (data_dir or default_data_dir()).expanduser().absolute()
        address = address or _endpoint(folder)
        ca, certificate, key = (_credential(folder, name) for name in ("ca.pem", "cert.pem", "key.pem"))
        return cls(address, ca, certificate, key, timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _endpoint(data_dir: Path) -> str:
    try:
        address = (data_dir / "endpoint").read_text().strip()
    except FileNotFoundError:
        address = ""
    except OSError as error:
        raise errors.Unreachable(f"{data_dir / 'endpoint'} cannot be read: {error.strerror}.") from None
    if not address:
        raise errors.Unreachable(f"No daemon serves the data directory {data_dir}.")
    return address


def _credential(data_dir: Path, name: str) -> bytes:
    path = data_dir / "clients" / "local" / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.Unauthenticated(f"The client certificate {path} cannot be read: {error.strerror}.") from None
