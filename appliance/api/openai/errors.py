"""An error as OpenAI's API says it: {"error": {message, type, code, param}}."""

from typing import Any

from appliance.api.http import http_status, in_words
from appliance.errors import ApplianceError, InvalidArgument

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def shape(error: ApplianceError) -> dict[str, Any]:
    """The error's body. code: our reason in small letters. param: the field that is wrong."""
    field = error.field if isinstance(error, InvalidArgument) else ""
    status = http_status(error)
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    return {"error": {"message": in_words(error), "type": kind, "code": error.reason.lower(), "param": field or None}}
