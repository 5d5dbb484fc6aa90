"""What became of files."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from appliance.types.knowledge import Block


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a container, or attached to a message. path: as it was written there, to be believed in nothing."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a locked child read from one file. blocks: its structure, in order, without overlap; it may have none.

    A container without text of its own has no pages; its members are files of their own.
    """

    media_type: str
    parser: str
    pages: tuple[str, ...]
    blocks: tuple[Block, ...] = ()
    members: tuple[Member, ...] = ()


class FileState(Enum):
    COMMITTED = "committed"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """How one file ended. `path` is printable: control and bidirectional characters are escaped."""

    path: str
    state: FileState
    reason: str = ""
    detail: str = ""
    document: str = ""
    sha256: str = ""
    size_bytes: int = 0
    job: str = ""
    time: datetime | None = None
    tenant: str = ""
