"""What the reader shows and what it refuses by."""

from collections.abc import Callable
from dataclasses import dataclass

ReadAt = Callable[[int, int], bytes]
"""Offset and size in bytes to the bytes there: fewer where the device ends. May raise OSError: what should have been
read is refused then, as UNREADABLE."""

MAX_VOLUMES = 16
MAX_ENTRIES = 200_000  # files and folders of one volume
MAX_DEPTH = 64
MAX_PATH_BYTES = 4096
MAX_CLUSTERS = 1 << 27


class Refused(Exception):
    """A file, a folder or a volume that is not to be read. reason: stable, such as CHAIN_LOOP; detail: a sentence
    without content.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Volume:
    """number: from 0, in the order of the partition table. filesystem: "FAT12", "FAT16", "FAT32", "exFAT"; '' for what
    cannot be read, and then reason and detail say why. id: such as "1A2B-3C4D". label: its own; both may be '', and are
    printable.
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
    """One file. path: below the volume's root, with slashes between, valid Unicode, at most MAX_PATH_BYTES as UTF-8;
    never '.', '..' or empty between them, and no two of a volume the same. modified_ns: since 1970; a local time is
    read as UTC where the volume names no zone; 0: unknown. cluster, contiguous: where its bytes lie, for `content`.

    reason, detail: why it, or the folder of that path, cannot be read, '' where it can; a name that may not be shown
    stands escaped. With path '' it tells of its volume alone, which then is empty or cannot be read.
    """

    volume: Volume
    path: str
    size_bytes: int = 0
    modified_ns: int = 0
    cluster: int = 0
    contiguous: bool = False
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What a folder says of one file or folder below it. fault: why it cannot be read, where that shows here."""

    name: str
    folder: bool
    size_bytes: int
    modified_ns: int
    cluster: int
    contiguous: bool = False
    fault: Refused | None = None


def exact(read_at: ReadAt, offset: int, size: int) -> bytes:
    """Exactly `size` bytes. Raises Refused: TRUNCATED where the device ends before; UNREADABLE."""
    if offset >> 62:  # no file has so much, and no system call takes the number
        raise Refused("TRUNCATED", "It lies past the end of the device.")
    try:
        data = read_at(offset, size)
    except OSError as error:
        raise Refused("UNREADABLE", f"The device cannot read it: {error.strerror or 'input/output error'}.") from None
    if len(data) != size:
        raise Refused("TRUNCATED", "It lies past the end of the device.")
    return data
