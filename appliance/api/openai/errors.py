"""An error as OpenAI's API says it: {"error": {message, type, code, param}}."""

from typing import Any

from appliance.errors import ApplianceError, InvalidArgument

KINDS = {
    "UNAUTHENTICATED": "authentication_error",
    "PERMISSION_DENIED": "permission_error",
    "RESOURCE_EXHAUSTED": "rate_limit_error",
    "INTERNAL": "server_error",
    "UNAVAILABLE": "server_error",
    "DEADLINE_EXCEEDED": "server_error",
    "DATA_LOSS": "server_error",
}


def shape(error: ApplianceError) -> dict[str, Any]:
    """The error's body. code: our reason in small letters. param: the field that is wrong."""
    field = error.field.removeprefix("sampling.") if isinstance(error, InvalidArgument) else ""
    message = f"{str(error).removeprefix('sampling.')} {error.remedy}"
    kind = KINDS.get(error.code.name, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": error.reason.lower(), "param": field or None}}
