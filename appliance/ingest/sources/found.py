"""What a source shows: names, and how they are told to people."""

from dataclasses import dataclass
from typing import Protocol

from appliance.errors import DocumentRefused
from appliance.types import Provenance


@dataclass(frozen=True, slots=True)
class Found:
    """One name below a source, folders excepted. name: with slashes between; bytes of it that are no UTF-8 stand as
    `surrogateescape` has them. modified_ns: since 1970, 0: unknown. refusal: why it is no file to read, where that
    shows already. signer: the trusted key whose manifest lists it, '' for none.

    changed_ns: when anything of the file was changed last, which no program sets back as it does modified_ns, and which
    is another's for a file that took this one's place; 0: unknown. sha256: of what a poll read, '' where none did.
    """

    name: str
    size_bytes: int = 0
    modified_ns: int = 0
    refusal: DocumentRefused | None = None
    signer: str = ""
    changed_ns: int = 0
    sha256: str = ""

    @property
    def stamp(self) -> str:
        """By what shows without reading it, a file that changed is told from one that did not."""
        return f"{self.size_bytes} {self.modified_ns} {self.changed_ns}"


class OpenSource(Protocol):
    """A source held open: its files may be listed and copied, several at once, until it is closed.

    Every method raises SourceGone where the stick was pulled or the share does not answer: open it again then, later.
    """

    @property
    def provenance(self) -> Provenance: ...

    async def files(self) -> tuple[Found, ...]:
        """Every name below, in the same order each time while nothing changes. Raises SandboxUnavailable."""

    async def copy(self, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        """Copy a file into the empty memfd `target` and seal it; sha256 in hex and size of what it holds then.

        Where `found.changed_ns` is known, that very file: CHANGED, where its stamp is another before or after. `target`
        stays the caller's, also to close when this is cancelled: nothing more is written to it by its number.
        Raises DocumentRefused (TOO_LARGE, CHANGED, UNREADABLE, LINK, VANISHED, NOT_SIGNED, …), SandboxUnavailable.
        """

    async def close(self) -> None:
        """Let go of it, also where it no longer answers."""


def printable(name: str) -> str:
    """A name that deceives no reader: control, bidirectional and undecodable parts and backslashes are escaped."""
    return "".join(char if char.isprintable() and char != "\\" else _escaped(char) for char in name)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is no UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
