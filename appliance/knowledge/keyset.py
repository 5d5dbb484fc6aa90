"""Where the next documents of a listing begin, as a token: the title and id of the last one shown.

A token says a place and nothing of who may read: it shows nobody more than the listing itself would. It is bound to
what was asked for, so that the rest of one listing is not taken for the rest of another.
"""

import base64
import hashlib
import json

from appliance.errors import InvalidArgument

_CHECK_BYTES = 8


def token(title: str, document: str, asked: object) -> str:
    """asked: what the listing is of; its repr tells listings apart."""
    place = json.dumps([title, document], ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(_check(place, asked) + place).decode().rstrip("=")


def place(token: str, asked: object) -> tuple[str, str]:
    """Title and id. Raises InvalidArgument where it is no token of that listing."""
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        check, place = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        if check == _check(place, asked):
            title, document = json.loads(place)
            return title, document
    except ValueError:
        pass
    raise InvalidArgument.of("page_token", "is not one that this listing gave; begin without one.")


def _check(place: bytes, asked: object) -> bytes:
    return hashlib.sha256(repr(asked).encode() + b"\x00" + place).digest()[:_CHECK_BYTES]
