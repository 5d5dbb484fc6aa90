"""Files on their way into a collection: where they come from, what was read from them, what became of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from appliance.types.knowledge import Block


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a container, or attached to a message. path: as it was written there, to be believed in nothing;
    bytes of it that are no UTF-8 stand as `surrogateescape` has them. problem: why it was left out, without content.
    """

    path: str
    content: bytes
    problem: str = ""


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


class SourceKind(Enum):
    FOLDER = "folder"
    SHARE = "share"
    STICK = "stick"
    IMAGE = "image"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where files come from, for their lineage. path: of a folder, a share's mount or an image, printable.

    serial, volume, label: of a stick or an image: the device's serial number, the file system's id and label.
    signer: the name of the trusted key that signed the files' manifest, '' where none did; those of several volumes
    with plus signs between.
    """

    kind: SourceKind
    path: str = ""
    serial: str = ""
    volume: str = ""
    label: str = ""
    signer: str = ""

    @property
    def uri(self) -> str:
        """With a file's printable name after a slash, what a document calls its source."""
        if self.kind is SourceKind.STICK:
            return f"usb://{self.serial or 'unknown'}/{self.volume}"
        return f"{'upload' if self.kind is SourceKind.UPLOAD else 'file'}://{self.path}"


class SourceState(Enum):
    READY = "ready"
    REFUSED = "refused"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Source:
    """A place that files can be taken from. name: "sources/ID". problem: why it is not ready, with what to do."""

    id: str
    provenance: Provenance
    state: SourceState
    problem: str = ""
    filesystem: str = ""
    size_bytes: int = 0
    watch: "Watch | None" = None

    @property
    def name(self) -> str:
        return f"sources/{self.id}"


@dataclass(frozen=True, slots=True)
class Watch:
    """What is done, unasked, with whole files of a source. approve: without an operator's word.

    settle_polls: how often size and times must be the same before a file counts as whole; 0: only files that lie
    beside another of the same name and ".ready", or that a signed manifest lists.
    """

    collection: str
    readers: frozenset[str]
    approve: bool = False
    settle_polls: int = 3


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is being sent. size_bytes: durable in the box by now. user: who sends it; path and user are '' of one
    that cannot be read. create_time: when it was begun; update_time: when its last bytes came.
    """

    id: str
    path: str
    collection: str
    user: str
    size_bytes: int
    create_time: datetime
    update_time: datetime

    @property
    def name(self) -> str:
        return f"uploads/{self.id}"


@dataclass(frozen=True, slots=True)
class Volume:
    """A file system on a stick or in an image, as a locked child found it. number: its place there, from 0.

    offset_bytes: where it begins. id, label: its own, printable; '' where it has none. filesystem: "FAT12", "FAT16",
    "FAT32", "exFAT", '' for what cannot be read, and then why: reason, detail.
    """

    number: int
    filesystem: str
    offset_bytes: int
    size_bytes: int
    id: str = ""
    label: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file on a volume as a locked child found it: believed in nothing, but as what to ask the next child for.

    path: below the volume's root, slashes between; never '', '.' or '..' in it. modified_ns: since 1970, a local time
    read as UTC where the volume names no zone, 0: unknown. cluster, contiguous: where its bytes lie. reason, detail:
    why it cannot be read, '' where it can. An entry without a name tells of its volume alone.
    """

    volume: Volume
    path: str
    size_bytes: int = 0
    modified_ns: int = 0
    cluster: int = 0
    contiguous: bool = False
    reason: str = ""
    detail: str = ""


class FileState(Enum):
    """FOUND: seen in the preview, to be taken. HELD: its bytes are in the box, encrypted. UNPACKED: a container whose
    members are files of their own. LEFT: not taken, for its source went away, the ingestion was ended before, or
    something still wrote to it or what it lies in was refused (then with a reason).
    """

    FOUND = "found"
    HELD = "held"
    COMMITTED = "committed"
    DUPLICATE = "duplicate"
    UNPACKED = "unpacked"
    QUARANTINED = "quarantined"
    LEFT = "left"

    @property
    def ended(self) -> bool:
        return self not in (FileState.FOUND, FileState.HELD)


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """How one file stands. path: printable, with the deceiving parts escaped; a member's begins with its container's.

    id: unique in the box. remedy: what to do about a reason. released: whether an operator sent it on its way again.
    kept: of a refused file that is listed: whether its bytes are in the box.
    """

    path: str
    state: FileState
    reason: str = ""
    detail: str = ""
    document: str = ""
    sha256: str = ""
    size_bytes: int = 0
    ingestion: str = ""
    time: datetime | None = None
    tenant: str = ""
    id: str = ""
    remedy: str = ""
    format: str = ""
    released: bool = False
    kept: bool = False


class IngestionState(Enum):
    """WAITING: the preview is whole, and somebody must approve it. INTERRUPTED: its source went away; it goes on when
    that is back. FAILED: the box could not go on; `problem` says why; it may be resumed.
    """

    SCANNING = "scanning"
    WAITING = "waiting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"

    @property
    def ended(self) -> bool:
        return self in (IngestionState.CANCELLED, IngestionState.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Ingestion:
    """One load of files into one collection, durable from its first moment. operator: who began it; approver: who let
    it go on, '' nobody yet, "policy" where none had to. job: the one that works on it now, or did last.

    counts, by_format: files by state, and by the format that will read them; sizes in bytes of all files found.
    """

    id: str
    tenant: str
    collection: str
    readers: frozenset[str]
    provenance: Provenance
    operator: str
    state: IngestionState
    create_time: datetime
    approver: str = ""
    job: str = ""
    problem: str = ""
    counts: Mapping[FileState, int] = field(default_factory=dict)
    by_format: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    end_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"ingestions/{self.id}"


@dataclass(frozen=True, slots=True)
class Lineage:
    """How a document came in, as the document carries it; '' for what there was none of. ingestion: its name.

    kind: of the source, a `SourceKind`'s value; path, serial, volume, label: its provenance. container: the printable
    path of the archive or mail that the file lay in.
    """

    ingestion: str
    operator: str = ""
    approver: str = ""
    kind: str = ""
    path: str = ""
    serial: str = ""
    volume: str = ""
    label: str = ""
    container: str = ""
    signer: str = ""
