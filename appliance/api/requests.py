"""Checks that every service makes of a request: resource names (AIP-122), listings (AIP-158), sampling ranges."""

import base64
import binascii
import re
from collections.abc import Collection, Sequence
from typing import TypeVar

from appliance.api import messages
from appliance.errors import InvalidArgument
from appliance.gen.v1 import inference_pb2
from appliance.types import COLLECTION_NAME, EVERYONE, MAX_STOP_CHARACTERS, MAX_STOPS, SAMPLING_RANGES, Role, Sampling

T = TypeVar("T")
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
COLLECTION = re.compile(rf"collections/({COLLECTION_NAME})")
DOCUMENT = re.compile(COLLECTION.pattern + r"/documents/([A-Za-z0-9-]{1,64})")
JOB = re.compile(r"jobs/([a-f0-9]{1,32})")
INGESTION = re.compile(r"ingestions/([a-f0-9]{1,32})")
UPLOAD = re.compile(r"uploads/([a-f0-9]{1,32})")
SOURCE = re.compile(r"sources/([A-Za-z0-9][A-Za-z0-9._-]{0,127})", re.ASCII)
GROUP = re.compile(r"groups/([A-Za-z0-9][A-Za-z0-9._-]{0,63})", re.ASCII)
APP_KEY = re.compile(r"appKeys/([a-f0-9]{1,32})")
ALIAS = re.compile(r"aliases/([a-z0-9][a-z0-9.-]{0,63})")
MAX_DEADLINE_SECONDS = 86_400.0
ROLES = "|".join(role.value for role in Role)
_USER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
READER = re.compile(rf"{EVERYONE}|role:(?:{ROLES})|(?:user|group):{_USER}", re.ASCII)
MAX_READERS = 10_000
MODEL = re.compile(r"models/([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
_COLLECTION_RULE = ": 1 to 63 small letters, digits and hyphens between them"


def collection(name: str, field: str = "name") -> str:
    """The id in "collections/handbook". Raises InvalidArgument."""
    return _match(COLLECTION, name, field, "collections/handbook", _COLLECTION_RULE)[1]


def collection_id(name: str) -> str:
    """The name of a collection that is to be. Raises InvalidArgument."""
    return _match(COLLECTION, f"collections/{name}", "collection_id", "handbook", _COLLECTION_RULE)[1]


def document(name: str, field: str = "name") -> tuple[str, str]:
    """Collection and document id. Raises InvalidArgument."""
    found = _match(DOCUMENT, name, field, "collections/handbook/documents/5f2c")
    return found[1], found[2]


def job(name: str, field: str = "name") -> str:
    """The id in "jobs/7f3a". Raises InvalidArgument."""
    return _match(JOB, name, field, "jobs/7f3a")[1]


def ingestion(name: str, field: str = "name") -> str:
    """The id in "ingestions/7f3a". Raises InvalidArgument."""
    return _match(INGESTION, name, field, "ingestions/7f3a")[1]


def upload(name: str) -> str:
    """The id in "uploads/7f3a". Raises InvalidArgument."""
    return _match(UPLOAD, name, "upload", "uploads/7f3a")[1]


def source(name: str) -> str:
    """The id in "sources/usb-4c530001". Raises InvalidArgument."""
    return _match(SOURCE, name, "name", "sources/usb-4c530001")[1]


def app_key(name: str, field: str = "name") -> str:
    """The id in "appKeys/3f2a". Raises InvalidArgument."""
    return _match(APP_KEY, name, field, "appKeys/3f2a")[1]


def group(name: str, field: str = "name") -> str:
    """The id in "groups/hr". Raises InvalidArgument."""
    return _match(GROUP, name, field, "groups/hr")[1]


def model(name: str, field: str = "name") -> str:
    """The id in "models/qwen3". Raises InvalidArgument."""
    return _match(MODEL, name, field, "models/qwen3")[1]


def alias(name: str, field: str = "name") -> str:
    """The id in "aliases/assistant". Raises InvalidArgument."""
    return _match(ALIAS, name, field, "aliases/assistant")[1]


def deadline_seconds(left: float | None) -> float:
    """What is left of a call's deadline, as an engine takes it; 0 for none."""
    return min(max(left or 0.0, 0.0), MAX_DEADLINE_SECONDS)


def model_or_default(name: str) -> str:
    """The id in "models/qwen3", '' for the default model. Raises InvalidArgument."""
    return model(name, "model") if name else ""


def text(value: str, field: str, max_characters: int) -> str:
    """Text that is there and not too long. Raises InvalidArgument."""
    if not value.strip():
        raise InvalidArgument.of(field, "must not be empty.")
    if len(value) > max_characters:
        raise InvalidArgument.of(field, f"has {len(value)} characters; at most {max_characters} are taken.")
    return value


def sampling(message: inference_pb2.Sampling) -> Sampling:
    """Raises InvalidArgument, naming the field that is out of range."""
    value = messages.sampling(message)
    require_sampling(value)
    return value


def require_sampling(value: Sampling) -> None:
    """Raises InvalidArgument, naming the field that is out of range."""
    for field, (low, high) in SAMPLING_RANGES.items():
        _within(f"sampling.{field}", getattr(value, field), low, high)
    if len(value.stop) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in value.stop):
        limits = f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
        raise InvalidArgument.of("sampling.stop", f"takes {limits}.")
    for stop in value.stop:
        require_unicode(stop, "sampling.stop")


def require_unicode(value: str, field: str) -> None:
    """Raises InvalidArgument for half of a surrogate pair, which JSON can spell and no text can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument.of(field, "is not valid Unicode.") from None


def page(items: Sequence[T], page_size: int, page_token: str) -> tuple[Sequence[T], str]:
    """One page of a listing and the token of the next ('' at the end). Raises InvalidArgument."""
    start = _offset(page_token)
    end = start + page_size_of(page_size)
    return items[start:end], _token(end) if end < len(items) else ""


def readers(given: Collection[str], groups: Collection[str]) -> frozenset[str]:
    """Principals and groups that may read a document. groups: those of its tenant, "group:hr", ….

    Raises InvalidArgument, also for a group that there is not: the document would be for nobody.
    """
    if len(given) > MAX_READERS:
        raise InvalidArgument.of("readers", f"{len(given)} were named; at most {MAX_READERS} are taken: use a group.")
    for reader in given:
        if READER.fullmatch(reader) is None:
            kinds = f"{EVERYONE!r}, 'role:ROLE' ({ROLES}), 'group:NAME' and 'user:NAME'"
            raise InvalidArgument.of("readers", f"{reader[:80]!r} is no reader; there are {kinds}.")
        if reader.startswith("group:") and reader not in groups:
            raise InvalidArgument.of(
                "readers", f"{reader!r} names no group of this tenant: `appliance access group set` makes one."
            )
    return frozenset(given)


def page_size_of(wanted: int) -> int:
    """How many items a page is to have, 0 leaving it to the box. Raises InvalidArgument."""
    if wanted < 0:
        raise InvalidArgument.of("page_size", "must not be negative.")
    return min(wanted or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def _match(pattern: re.Pattern[str], name: str, field: str, example: str, rule: str = "") -> re.Match[str]:
    found = pattern.fullmatch(name)
    if found is None:
        raise InvalidArgument.of(field, f"must be a name such as {_shown(example)}{rule}.")
    return found


def _shown(example: str) -> str:
    """First as people type a name: the command line sets the rest before it."""
    short = example.partition("/")[2]
    return f"{short!r}, in full {example!r}" if short and "/" not in short else repr(example)


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise InvalidArgument.of(field, f"must be between {low} and {high}.")


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(str(offset).encode()).decode()


def _offset(page_token: str) -> int:
    try:
        offset = int(base64.urlsafe_b64decode(page_token.encode() or b"MA=="))
    except (ValueError, binascii.Error, UnicodeEncodeError):
        offset = -1
    if offset < 0:
        raise InvalidArgument.of("page_token", "is not one that a listing gave.")
    return offset
