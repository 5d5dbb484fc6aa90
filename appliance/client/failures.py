"""What a failed call means, as an error of `appliance.errors`."""

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from appliance import errors

ERROR_DOMAIN = "appliance"


def restore_error(
    reason: str, message: str, file_reason: str = "", retry_after_seconds: float = 1.0
) -> errors.ApplianceError:
    """The error of that reason, as the box raised it; a reason that this client does not know is in the message."""
    kind = errors.by_reason().get(reason)
    if kind is None:
        return errors.ApplianceError(f"{reason}: {message}")
    if issubclass(kind, errors.Busy):
        return kind(message, retry_after_seconds)
    if issubclass(kind, errors.DocumentRefused):
        return kind(file_reason, message)
    return kind(message)


def from_call(error: grpc.RpcError, address: str) -> errors.ApplianceError:
    """What a failed call means: the box's own error where it sent one (google.rpc.Status), else what gRPC saw."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an RpcError of a call is that call
    except ValueError:  # gRPC replaced the code of an error that it could not carry
        status = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.domain != ERROR_DOMAIN:
        return _transport_error(error.code(), error.details() or "", address)
    retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds() or 1.0
    return restore_error(info.reason, status.message, info.metadata["file_reason"], retry_after_seconds)


def _transport_error(code: grpc.StatusCode, details: str, address: str) -> errors.ApplianceError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return _unavailable(details, address)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(f"{address} did not answer in time.")
        case grpc.StatusCode.CANCELLED:
            return errors.Cancelled("The call was cancelled.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.ApplianceError(
                f"{address} does not know this call: it is of another version than this client."
            )
        case _:
            return errors.ApplianceError(f"{address} failed: {code.name}, {details}.")


def _unavailable(details: str, address: str) -> errors.ApplianceError:
    """gRPC has one code for all of these; only its words tell them apart. Under TLS 1.3 a refused client certificate
    shows as a connection that closes before the first call."""
    if "failed to connect" not in details and "resolution" not in details:
        return errors.Unreachable(f"The connection to {address} broke off.")
    if any(words in details for words in ("Tls handshake failed", "security handshaker", "Verification")):
        return errors.Unauthenticated(f"What listens at {address} is not the box that the certificates are for.")
    if "Socket closed" in details or "Connection reset" in details:
        return errors.Unauthenticated(f"{address} did not accept this client's certificate.")
    return errors.Unreachable(f"No daemon answers at {address}.")
