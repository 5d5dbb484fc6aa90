"""The work on an approved ingestion: copy, hold, scan, extract in a locked child, embed, commit, say what became of it.

    source ──copy──▶ quarantine ──scan──▶ locked child ──▶ batch ──▶ library ──▶ ledger ──▶ held copy destroyed
             one                    a few                       one               one

Copies run ahead, so that a stick may be pulled long before its documents are embedded; a few files are read at once;
a batch is embedded while the next is read; the commits of a tenant's ingestions take turns, those of long documents
apart. Files are committed in their order, a container's members right after it. A step done twice, for a crash hid the
first time, changes nothing.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import PurePath
from time import monotonic
from typing import Any, TypeVar

from appliance.errors import ApplianceError, DocumentRefused, NotFound, SourceGone, StoreDamaged
from appliance.ingest.commit import Commit, Read
from appliance.ingest.formats import FORMATS
from appliance.ingest.judge import Judge, left_unfinished, refused
from appliance.ingest.ledger import Item, Ledger, family_order
from appliance.ingest.memfd import new_memfd
from appliance.ingest.preview import as_seen, look_at, to_its_end, wanted
from appliance.ingest.quarantine import Quarantine
from appliance.ingest.sources.found import Found, OpenSource
from appliance.ports import Extractor, Progress, Scanner
from appliance.types import FileOutcome, FileState

AHEAD = 4
"""Files that an ingestion has read, or is reading, before the next commit."""

COPIES = 4
"""Files that are in memory at once, of all ingestions together."""

HELD_AHEAD_BYTES = 1 << 30
"""So much of a source is copied before it is read."""

SHED_EVERY_BYTES = 64 << 20
"""So much more than may be kept of refused files can be there while an ingestion is at work."""

ARCHIVES = frozenset(
    {"application/zip", "application/x-tar", "application/gzip", "application/x-xz", "application/x-bzip2"}
)
"""What holds more than its own bytes: read when its turn has come, one at a time, for all of it is in memory then."""

BATCH_FILES, BATCH_CHARACTERS = 64, 256 << 10
LONG_CHARACTERS = 2 * BATCH_CHARACTERS
"""Of a batch that a long document is in."""

TENANTS_AT_ONCE = 8
"""Whose batches are being committed in one lane; those of others wait."""

CHANGED_SINCE = "It is another than in the preview: it was taken as it is now."
T = TypeVar("T")
Measure = Callable[[FileOutcome, float], None]
"""Is told of each file that has come to its end, and how many seconds it took to read."""


class Lane(Enum):
    """LONG: takes more than a batch takes. ARCHIVE: embeds nothing, and others wait to unpack theirs."""

    SHORT = "short"
    LONG = "long"
    ARCHIVE = "archive"


class Turns:
    """One commit at a time of each tenant in each lane, in threads of its own: the embedder takes a few passages of
    each by turns, so that a long document holds up no other tenant's, nor its own tenant's others. Of two that touch
    the same, one waits for the other: each judges what the one before has left.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._threads = {lane: ThreadPoolExecutor(TENANTS_AT_ONCE, "ingest-commit") for lane in Lane}
        self._lanes: dict[tuple[str, Lane], asyncio.Lock] = {}
        self._touched: set[tuple[str, str, str]] = set()
        self._freed = asyncio.Condition()

    async def run(self, tenant: str, touches: Collection[tuple[str, str]], lane: Lane, commit: Callable[[], T]) -> T:
        """What `commit` gives, once it is its turn; to its end, however often cancelled. touches: of the tenant."""
        turn = self._lanes.setdefault((tenant, lane), asyncio.Lock())
        async with self._alone({(tenant, *one) for one in touches}), turn:
            return await to_its_end(asyncio.get_running_loop().run_in_executor(self._threads[lane], commit))

    @asynccontextmanager
    async def _alone(self, touches: set[tuple[str, str, str]]) -> AsyncIterator[None]:
        """All at once, so that no two wait for each other; and before its turn, so that who waits holds up nobody."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._touched.isdisjoint(touches))
            self._touched |= touches
        try:
            yield
        finally:
            self._touched -= touches
            await to_its_end(self._tell_freed())

    async def _tell_freed(self) -> None:
        async with self._freed:
            self._freed.notify_all()


@dataclass(frozen=True)
class Tools:
    """What the work on all ingestions shares. Belongs to one event loop.

    max_bytes: of a document. max_ratio: how many times its size a file may unpack to.
    shed: lets the oldest refused files of a tenant go where too much is kept of them; blocks.
    """

    extractor: Extractor
    scanner: Scanner | None
    quarantine: Quarantine
    max_bytes: int
    max_ratio: int
    measure: Measure
    shed: Callable[[str], object] = lambda tenant: None
    unpacking: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns: Turns = field(default_factory=Turns)
    copies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COPIES))


@dataclass
class _Entry:
    """A file in the line to be committed. task: what reads it, once something does."""

    item: Item
    task: "asyncio.Task[Read] | None" = None


class Work:
    """On one ingestion, from the first open file to the last; once."""

    def __init__(self, tools: Tools, ledger: Ledger, commit: Commit, judge: Judge, progress: Progress) -> None:
        self._tools, self._ledger, self._commit, self._judge = tools, ledger, commit, judge
        self._progress = progress
        self._line: deque[_Entry] = deque()
        self._copied: asyncio.Queue[Item | None] = asyncio.Queue()
        self._held_bytes, self._room = 0, asyncio.Event()
        self._batch: list[Read] = []
        self._committing: asyncio.Task[list[Item]] | None = None
        self._done = self._total = self._refused_bytes = 0

    async def run(self, source: OpenSource | None, missing: ApplianceError | None = None) -> None:
        """Take every file that is open. source: None where it is not there; what is held goes on all the same, and
        then, where files are left that could not be copied, this raises `missing`. When it is cancelled no file is
        begun any more, and what is being embedded comes to nothing; what is being written is written.

        Raises SourceGone where the source goes away, and at once NotFound (the collection),
        ScannerUnavailable, SandboxUnavailable, DiskFull, StoreDamaged, KeyUnavailable.
        """
        items = await asyncio.to_thread(self._ledger.items)
        pending = [item for item in items if item.is_open]
        self._total, self._done = len(items), len(items) - len(pending)
        copying = asyncio.create_task(self._copy_all(family_order(pending, items), source, missing))
        try:
            await self._take_all()
            await copying
        except asyncio.CancelledError:
            self._commit.stop()
            raise
        finally:
            begun = [copying, self._committing, *(entry.task for entry in self._line)]
            tasks = [task for task in begun if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- from the source into the quarantine

    async def _copy_all(self, items: Sequence[Item], source: OpenSource | None, missing: ApplianceError | None) -> None:
        """Hold what is not held yet, in order, and put each in the queue; None last, also where the source is gone."""
        try:
            is_needed = any(item.outcome.state is not FileState.HELD for item in items)
            found = {one.name: one for one in await source.files()} if is_needed and source else {}
            for item in items:
                while self._held_bytes > HELD_AHEAD_BYTES:
                    self._room.clear()
                    await self._room.wait()
                if item.outcome.state is not FileState.HELD:
                    if source is None:
                        raise missing or SourceGone("The source is not there.")
                    item = await self._copy(item, found.get(item.name), source)
                self._held_bytes += item.outcome.size_bytes
                self._copied.put_nowait(item)
        finally:
            self._copied.put_nowait(None)

    async def _copy(self, item: Item, found: Found | None, source: OpenSource) -> Item:
        """Held, or with its end where it needs not to be. Raises SourceGone, DiskFull, …"""
        previewed = item.outcome.sha256
        item = item.changed(state=FileState.FOUND, reason="", detail="", remedy="", document="")
        if found is None:
            return refused(item, DocumentRefused("VANISHED", "It was gone before it was read."))
        if not as_seen(item, found):
            return left_unfinished(item)
        item = look_at(replace(item, signer=found.signer), found, self._tools.max_bytes)  # as it is signed now
        if item.outcome.state is FileState.QUARANTINED:
            return item
        async with self._tools.copies:
            memfd = new_memfd()
            try:
                sha256, size = await source.copy(wanted(item, found), memfd, self._tools.max_bytes)
                if item.seen_sha256 not in ("", sha256):
                    return left_unfinished(item)
                note = CHANGED_SINCE if previewed not in ("", sha256) else ""
                item = item.changed(sha256=sha256, size_bytes=size, detail=note)
                return await to_its_end(asyncio.to_thread(self._hold, item, memfd))
            except DocumentRefused as refusal:
                has_changed = item.seen and refusal.file_reason == "CHANGED"
                return left_unfinished(item) if has_changed else refused(item, refusal)
            finally:
                os.close(memfd)

    def _hold(self, item: Item, memfd: int) -> Item:
        known = self._judge.known(item)
        if known and known.outcome.state is not FileState.QUARANTINED:  # of a refused one the bytes are kept
            return known
        ingestion = self._ledger.ingestion
        self._tools.quarantine.hold(ingestion.tenant, ingestion.id, item.number, memfd)
        self._tools.quarantine.settle(ingestion.tenant, ingestion.id)
        item = item.changed(state=FileState.HELD)
        self._ledger.write([item])
        return item

    # --- from the quarantine into the library

    async def _take_all(self) -> None:
        """Until the queue has ended and its last file is committed."""
        whole = False
        while self._line or not whole:
            whole = await self._queue_up(whole)
            self._read_ahead()
            if self._line:
                await self._take_first()
            if whole and not self._line:
                await self._commit_now()

    async def _queue_up(self, whole: bool) -> bool:
        """Take over what was copied; wait for the next file where there is nothing else to do. Whether that was all."""
        while not whole and (self._copied.qsize() or not self._line):
            copied = asyncio.create_task(self._copied.get())
            try:
                await self._commit_until(copied)
            finally:
                copied.cancel()
            item = copied.result()
            whole = item is None
            if item:
                self._line.append(_Entry(item))
        return whole

    def _read_ahead(self) -> None:
        for entry in islice(self._line, AHEAD):
            if entry.task is None and not _is_archive(entry.item):
                entry.task = asyncio.create_task(self._read(entry.item))

    async def _take_first(self) -> None:
        """The first of the line is read, and joins the batch."""
        is_archive = _is_archive(self._line[0].item)
        if is_archive:
            await self._commit_now()  # first, for others wait while this one unpacks
        first = self._line[0]
        async with self._tools.unpacking if is_archive else nullcontext():
            first.task = first.task or asyncio.create_task(self._read(first.item))
            await self._commit_until(first.task)
            await self._take(first.task.result())

    async def _take(self, read: Read) -> None:
        self._line.popleft()
        self._held_bytes -= read.item.outcome.size_bytes
        self._room.set()
        self._batch.append(read)
        if read.extracted and read.extracted.members:
            await self._commit_now()  # its members come before what follows
        elif len(self._batch) >= BATCH_FILES or _characters(self._batch) >= BATCH_CHARACTERS:
            await self._settle()
            self._begin_commit()

    async def _read(self, item: Item) -> Read:
        """All that can be done ahead of the commit. Raises SandboxUnavailable, ScannerUnavailable, StoreDamaged, …"""
        if item.outcome.state is not FileState.HELD:
            return Read(item)
        looked = look_at(item, Found(item.name, item.outcome.size_bytes), self._tools.max_bytes)
        if looked.outcome.state is FileState.QUARANTINED:  # an upload, or what was released
            return Read(looked)
        began = monotonic()
        async with self._tools.copies:
            if end := self._commit.end_of(item):
                return Read(end)
            known = await to_its_end(asyncio.to_thread(self._judge.known, item))
            if known:
                return Read(known)
            ingestion = self._ledger.ingestion
            try:
                memfd = await _opened(partial(self._tools.quarantine.open, ingestion.tenant, ingestion.id, item.number))
            except (NotFound, StoreDamaged):
                if end := self._commit.end_of(item):  # and its bytes are being destroyed
                    return Read(end)
                raise
            try:
                if self._tools.scanner and (malware := await self._tools.scanner.scan(memfd)):
                    raise DocumentRefused(f"MALWARE:{malware}", "The virus scanner found malware in it.")
                return Read(item, await self._tools.extractor.extract(memfd, item.name), monotonic() - began)
            except DocumentRefused as refusal:
                return Read(refused(item, refusal), None, monotonic() - began)
            finally:
                os.close(memfd)

    # --- commits

    async def _commit_until(self, ready: "asyncio.Task[Any]") -> None:
        """Commit what was read, small as the batch may be, while there is nothing to do but to wait for this."""
        while not ready.done():
            if not self._committing:
                self._begin_commit()
            waited = [ready, self._committing] if self._committing else [ready]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._committing and self._committing.done():
                await self._settle()

    async def _commit_now(self) -> None:
        await self._settle()
        self._begin_commit()
        await self._settle()

    def _begin_commit(self) -> None:
        if self._batch:
            reads, self._batch = self._batch, []
            self._committing = asyncio.create_task(self._commit_in_turn(reads))

    async def _settle(self) -> None:
        """The commit that is under way has ended; what its files held comes next in the line."""
        if self._committing:
            committing, self._committing = self._committing, None
            try:
                members = await asyncio.shield(committing)
            except asyncio.CancelledError:
                self._committing = committing
                raise
            self._total += len(members)
            self._line.extendleft(_Entry(item) for item in reversed(members))
            self._held_bytes += sum(item.outcome.size_bytes for item in members)

    async def _commit_in_turn(self, reads: Sequence[Read]) -> list[Item]:
        tenant, touches, commit = self._ledger.ingestion.tenant, self._commit.touches(reads), self._commit.commit
        ends, members = await self._tools.turns.run(tenant, touches, _lane(reads), partial(commit, reads))
        self._done += len(ends)
        self._progress.update(self._done, self._total + len(members), ends[-1].outcome.path)
        for item, read in zip(ends, reads, strict=True):
            self._tools.measure(item.outcome, read.seconds)
            if item.outcome.state is FileState.QUARANTINED:
                self._refused_bytes += item.outcome.size_bytes
        if self._refused_bytes > SHED_EVERY_BYTES:
            self._refused_bytes = 0
            await to_its_end(asyncio.to_thread(self._tools.shed, tenant))
        return members


def _lane(reads: Sequence[Read]) -> Lane:
    if any(_is_archive(one.item) and one.extracted and one.extracted.members for one in reads):
        return Lane.ARCHIVE  # the only one of its batch
    members = sum(len(one.extracted.members) for one in reads if one.extracted)
    return Lane.LONG if _characters(reads) > LONG_CHARACTERS or members > BATCH_FILES else Lane.SHORT


def _characters(reads: Iterable[Read]) -> int:
    return sum(len(page) for one in reads if one.extracted for page in one.extracted.pages)


def _is_archive(item: Item) -> bool:
    form = FORMATS.get(PurePath(item.outcome.path).suffix.lower())
    return form is not None and form.media_type in ARCHIVES


async def _opened(open_: Callable[[], int]) -> int:
    """The descriptor that it opens in a thread; nobody's where this is cancelled, so it is closed then."""
    opened: list[int] = []
    try:
        await to_its_end(asyncio.to_thread(lambda: opened.append(open_())))
    except asyncio.CancelledError:
        for fd in opened:
            os.close(fd)
        raise
    return opened[0]
