"""An ingest on what it stands on: real keys and ledgers in a folder; sources, parser and knowledge base in memory."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from appliance.config import Config
from appliance.errors import DocumentRefused, NotFound, ScannerUnavailable, SourceGone
from appliance.ingest.memfd import seal
from appliance.ingest.service import Ingest
from appliance.ingest.sources.found import Found
from appliance.jobs import JobRunner
from appliance.ports import Extractor, Scanner
from appliance.types import (
    EVERYONE,
    Document,
    Extracted,
    FileOutcome,
    FileState,
    Ingestion,
    Member,
    NewDocument,
    Principal,
    Provenance,
    Role,
    SourceKind,
)
from appliance.vault import FileKeyring, FileTenantKeys
from tests.fakes import MemoryLibrary, OneLibrary

EVERYBODY = frozenset({EVERYONE})
OPERATOR = Principal("clinic", "olga", Role.OPERATOR)
SECOND = Principal("clinic", "otto", Role.OPERATOR)
RIVAL = Principal("rival", "rita", Role.OPERATOR)
STICK = Provenance(SourceKind.STICK, "", "4C530001", "ABCD-1234", "DOCS")
LIMITS = Config(data_dir=Path("/nowhere"), document_max_mib=1)


@dataclass
class WatchedLibrary(MemoryLibrary):
    """Calls `before_add` first, from the thread that adds; `after_add` with what is stored then; `before_delete`."""

    before_delete: Callable[[Document], None] = lambda document: None
    before_add: Callable[[NewDocument], None] = lambda document: None
    after_add: Callable[[NewDocument], None] = lambda document: None

    def add(self, collection: str, document: NewDocument) -> Document:
        self.before_add(document)
        made = super().add(collection, document)
        self.after_add(document)
        return made

    def delete(self, collection: str, document: str, groups: frozenset[str] | None) -> None:
        self.before_delete(self.stored[collection][document][0])
        super().delete(collection, document, groups)


@dataclass
class PlainExtractor:
    """ports.Extractor of this test's own bytes, in this process; `error` in place of a result.

    A `.zip` holds a line a member, "name=text"; a `.eml` the same after its first line, which is its text; a line
    that ends in "!REASON" is a member that was left out.
    """

    error: Exception | None = None
    names: list[str] = field(default_factory=list)

    async def extract(self, fd: int, name: str) -> Extracted:
        await asyncio.sleep(0)
        self.names.append(name)
        if self.error:
            raise self.error
        text = os.pread(fd, os.fstat(fd).st_size, 0).decode()
        if name.endswith((".zip", ".eml")):
            words, _, packed = text.partition("\n") if name.endswith(".eml") else ("", "", text)
            return Extracted("mixed", "plain 1", (words,) if words else (), (), tuple(_members(packed)))
        if text == "no text":
            raise DocumentRefused("EMPTY", "It is empty.")
        return Extracted("text/plain", "plain 1", (text,))


def _members(packed: str) -> Iterator[Member]:
    for line in filter(None, packed.split("\n")):
        name, _, content = line.partition("=")
        left_out = content.startswith("!")
        yield Member(name, b"" if left_out else content.replace("\\n", "\n").encode(), content[1:] if left_out else "")


@dataclass
class GatedExtractor(PlainExtractor):
    """Reads nothing until it may."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    async def extract(self, fd: int, name: str) -> Extracted:
        self.waiting += 1
        await self.may_read.wait()
        return await super().extract(fd, name)


@dataclass
class MemoryStick:
    """A source of files in memory. goes_after: calls that it answers before it is pulled."""

    files: dict[str, bytes] = field(default_factory=dict)
    provenance: Provenance = STICK
    goes_after: int = 1 << 30
    copied: list[str] = field(default_factory=list)
    refusals: dict[str, DocumentRefused] = field(default_factory=dict)
    signers: dict[str, str] = field(default_factory=dict)
    before_copy: Callable[[str], None] = lambda name: None

    def answer(self) -> None:
        if self.goes_after <= 0:
            raise SourceGone("The stick was pulled while it was read.")
        self.goes_after -= 1


@dataclass
class OpenStick:
    stick: MemoryStick
    closed: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.stick.provenance

    async def files(self) -> tuple[Found, ...]:
        self.stick.answer()
        stick = self.stick
        return tuple(
            Found(name, len(stick.files.get(name, b"")), 0, stick.refusals.get(name), stick.signers.get(name, ""))
            for name in sorted({*stick.files, *stick.refusals})
        )

    async def copy(self, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        self.stick.answer()
        self.stick.before_copy(found.name)
        await asyncio.sleep(0)
        if found.name not in self.stick.files:
            raise DocumentRefused("VANISHED", "It was gone before it was read.")
        content = self.stick.files[found.name]
        self.stick.copied.append(found.name)
        if len(content) > max_bytes:
            raise DocumentRefused("TOO_LARGE", "It is too large.")
        os.write(target, content)
        seal(target)
        return hashlib.sha256(content).hexdigest(), len(content)

    async def close(self) -> None:
        assert not self.closed
        self.closed = True


@dataclass
class MemorySources:
    """Sticks by name."""

    sticks: dict[str, MemoryStick] = field(default_factory=dict)
    opened: list[OpenStick] = field(default_factory=list)

    async def open(self, tenant: str, name: str) -> OpenStick:
        if name not in self.sticks:
            raise NotFound(f"There is no source {name}.")
        if self.sticks[name].goes_after <= 0:
            raise SourceGone("It is not plugged in.")
        self.opened.append(OpenStick(self.sticks[name]))
        return self.opened[-1]


@dataclass
class NameScanner:
    """ports.Scanner that finds what it is told to in a file's bytes."""

    malware: bytes = b"EICAR"
    is_up: bool = True

    async def scan(self, fd: int) -> str:
        if not self.is_up:
            raise ScannerUnavailable("clamd does not answer.")
        return "Eicar-Test" if self.malware in os.pread(fd, 1 << 20, 0) else ""


class Bench:
    """An ingest of tenants clinic and rival, with a stick "sources/usb"."""

    def __init__(
        self,
        folder: Path,
        extractor: Extractor | None = None,
        config: Config = LIMITS,
        scanner: Scanner | None = None,
    ) -> None:
        self.config = replace(config, data_dir=folder / "data")
        keyring = FileKeyring.open(self.config.data_dir / "keys", protects=self.config.data_dir / "knowledge")
        self.tenant_keys = FileTenantKeys(self.config.data_dir / "keys" / "tenants", keyring)
        for tenant in ("clinic", "rival"):
            if not self.tenant_keys.epochs(tenant):
                self.tenant_keys.add(tenant)
        self.keyring, self.extractor, self.scanner = keyring, extractor or PlainExtractor(), scanner
        self.library = WatchedLibrary()
        self.stick = MemoryStick()
        self.sources = MemorySources({"sources/usb": self.stick})
        self.measured: list[tuple[FileOutcome, float]] = []
        self.restart()

    def restart(self) -> None:
        """A new daemon on the same folder, which has not opened it yet; what the old one did in memory is gone."""
        self.jobs = JobRunner()
        self.ingest = Ingest(
            self.config,
            OneLibrary(self.library),
            self.extractor,
            self.jobs,
            self.sources,
            self.keyring,
            self.tenant_keys,
            self.scanner,
            lambda outcome, seconds: self.measured.append((outcome, seconds)),
        )
        self.tenant_keys.before_destroy(self.ingest.retire)
        self.library.before_delete = partial(self.ingest.before_delete, "clinic")

    async def restart_daemon(self) -> None:
        """End the daemon in good order, and start another."""
        self.ingest.stop()
        await self.jobs.stop()
        self.restart()
        await self.ingest.open()

    def write(self, **files: str) -> None:
        """By name, with __ for a dot and ___ for a slash."""
        for name, text in files.items():
            self.stick.files[name.replace("___", "/").replace("__", ".")] = text.encode()

    async def start(
        self,
        approve: bool = True,
        readers: frozenset[str] = EVERYBODY,
        caller: Principal = OPERATOR,
        source: str = "sources/usb",
    ) -> Ingestion:
        return await self.ingest.start(caller, source, "handbook", readers, approve)

    async def wait(self, ingestion: Ingestion, tenant: str = "clinic") -> Ingestion:
        """Until no job works on it."""
        now = self.ingest.get(tenant, ingestion.name)
        if not now.job:  # nothing has worked on it since the start
            return now
        async for _ in self.jobs.watch(now.job.removeprefix("jobs/")):
            pass
        return self.ingest.get(tenant, ingestion.name)

    async def run(self, **given: object) -> tuple[Ingestion, dict[str, FileOutcome]]:
        """From start to end; what became of each file."""
        done = await self.wait(await self.start(**given))  # type: ignore[arg-type]
        return done, self.files(done)

    def files(self, ingestion: Ingestion) -> dict[str, FileOutcome]:
        return {one.path: one for one in self.ingest.files("clinic", ingestion.name)}

    def titles(self, groups: frozenset[str] = EVERYBODY) -> list[str]:
        return [document.title for document in self.library.documents("handbook", groups)]

    def held(self) -> list[Path]:
        """Copies in the quarantine, of all tenants."""
        return sorted(self.config.data_dir.glob("ingest/*/*/held/*"))

    def bytes_on_disk(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.config.data_dir.rglob("*") if path.is_file())


def ends(files: Mapping[str, FileOutcome]) -> dict[str, str]:
    """By path "committed", "quarantined EMPTY", …"""
    return {path: f"{one.state.value} {one.reason}".strip() for path, one in files.items()}


def states(files: Mapping[str, FileOutcome]) -> list[FileState]:
    return [one.state for one in files.values()]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another process or thread. The limit only ends a test that would never end."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def memfds() -> int:
    links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sum(link.startswith("/memfd:document") for link in links)


class Gate:
    """Holds the thread that comes to it until it is opened."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> None:
        self.reached.set()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()
