"""The road of a file into a collection: type, copy and hash, known already?, locked child, knowledge base, outcome.

One job a folder. Files are read and parsed a few ahead, and committed one after the other in the folder's order, so a
job that stops has done all before some file and nothing after it.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TypeVar

import structlog

from appliance.config import Config
from appliance.errors import AlreadyExists, DocumentRefused, NotFound
from appliance.ingest.formats import format_of
from appliance.ingest.quarantine import Quarantine
from appliance.ingest.sources import Folder, Found, new_memfd, printable, snapshot
from appliance.ports import Extractor, Jobs, Libraries, Library, Progress
from appliance.types import Document, Extracted, FileOutcome, FileState, Job, NewDocument, Principal, Role

PIPELINE = "ingest-2"
"""Part of a document's identity: a change here makes ingest read files again that it has read before."""

AHEAD = 4
COPIES = 4
"""Files that are in memory at once, of all jobs together."""

KEPT_JOBS = 50
STORED_FOR_OTHERS = (
    "It is stored already, for others than were named. Who may read that document, or an administrator, can delete it"
    " or change its readers."
)

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as it is before its commit: extracted, or known already, or refused."""

    outcome: FileOutcome
    extracted: Extracted | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the documents of one job go, and for whom it works."""

    caller: Principal
    library: Library
    collection: str
    readers: frozenset[str]
    job: str


class Ingest:
    """Folders into collections, as jobs. What became of each file is kept for the newest jobs; refusals for good."""

    def __init__(self, config: Config, libraries: Libraries, extractor: Extractor, jobs: Jobs) -> None:
        self._max_bytes = config.document_max_mib << 20
        self._own = config.data_dir
        self._libraries = libraries
        self._extractor = extractor
        self._jobs = jobs
        self._quarantine = Quarantine(config.data_dir / "quarantine")
        self._outcomes: dict[tuple[str, str], list[FileOutcome]] = {}  # by tenant and job
        self._committing = asyncio.Lock()
        self._copies = asyncio.Semaphore(COPIES)  # held for no commit, so that no job waits for another's order

    async def start(self, caller: Principal, path: str, collection: str, readers: frozenset[str]) -> Job:
        """Start to read a folder or a file of this box. Makes the caller's tenant's collection if there is none.

        Raises InvalidArgument, NotFound (of the path). The job fails with SandboxUnavailable, DiskFull, StoreDamaged.
        """
        library = await asyncio.to_thread(self._prepare, caller.tenant, path, collection)
        named: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work(progress: Progress) -> None:
            target = _Target(caller, library, collection, readers, await named)
            with await asyncio.to_thread(Folder, path, self._own) as folder:
                await self._work(folder, target, progress)

        job = self._jobs.start("ingest", f"collections/{collection}", "files", work, caller.tenant)
        self._outcomes[caller.tenant, job.name] = []
        while len(self._outcomes) > KEPT_JOBS:
            del self._outcomes[next(iter(self._outcomes))]
        named.set_result(job.name)
        return job

    def files(self, tenant: str, job: str) -> tuple[FileOutcome, ...]:
        """What became of each file of a tenant's job so far, in order; by its id or name. Raises NotFound."""
        name = f"jobs/{job.removeprefix('jobs/')}"
        if (tenant, name) not in self._outcomes:
            raise NotFound(f"There is no record of the files of {name}.")
        return tuple(self._outcomes[tenant, name])

    def quarantined(self, tenant: str) -> tuple[FileOutcome, ...]:
        """Files of a tenant that were refused, of all jobs, newest first."""
        return self._quarantine.newest_first(tenant)

    def _prepare(self, tenant: str, path: str, collection: str) -> Library:
        Folder(path, self._own).close()
        library = self._libraries.of(tenant)
        with suppress(AlreadyExists):
            library.create(collection)
        return library

    async def _work(self, folder: Folder, target: _Target, progress: Progress) -> None:
        found = await _to_its_end(asyncio.to_thread(lambda: tuple(folder.walk())))
        progress.update(0, len(found))
        ahead: deque[asyncio.Task[_Read]] = deque()
        done = 0
        try:
            for entry in found:
                ahead.append(asyncio.create_task(self._read(folder, entry, target)))
                if len(ahead) == AHEAD:
                    done = await self._finish(ahead, folder, target, done)
                    progress.update(done, len(found), printable(entry.name))
            while ahead:
                done = await self._finish(ahead, folder, target, done)
                progress.update(done, len(found))
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _read(self, folder: Folder, entry: Found, target: _Target) -> _Read:
        """All that can be done ahead of the commit. Raises SandboxUnavailable."""
        path, tenant = printable(entry.name), target.caller.tenant
        outcome = FileOutcome(path=path, state=FileState.COMMITTED, job=target.job, tenant=tenant)
        try:
            if entry.refusal:
                raise entry.refusal
            format_of(PurePath(entry.name).suffix.lower())
        except DocumentRefused as refusal:
            return _Read(_refused(outcome, refusal))
        async with self._copies:
            return await self._read_copy(folder, entry.name, outcome, target)

    async def _read_copy(self, folder: Folder, name: str, outcome: FileOutcome, target: _Target) -> _Read:
        memfd = new_memfd()
        try:
            sha256, size = await _to_its_end(asyncio.to_thread(self._copy, folder, name, memfd))
            outcome = replace(outcome, sha256=sha256, size_bytes=size)
            known = await _to_its_end(asyncio.to_thread(target.library.find, target.collection, sha256, PIPELINE))
            if known:
                return _Read(_known(outcome, known, target))
            return _Read(outcome, await self._extractor.extract(memfd, name))
        except DocumentRefused as refusal:
            return _Read(_refused(outcome, refusal))
        finally:
            os.close(memfd)

    def _copy(self, folder: Folder, name: str, memfd: int) -> tuple[str, int]:
        fd = folder.open(name)
        try:
            return snapshot(fd, memfd, self._max_bytes)
        finally:
            os.close(fd)

    async def _finish(self, ahead: deque[asyncio.Task[_Read]], folder: Folder, target: _Target, done: int) -> int:
        """Commit the oldest file that was read; how many are done then."""
        read = await ahead[0]
        ahead.popleft()
        await _to_its_end(self._commit(read, folder, target))
        return done + 1

    async def _commit(self, read: _Read, folder: Folder, target: _Target) -> None:
        outcome = read.outcome
        if read.extracted:
            async with self._committing:  # of two equal files, in one job or in two, the second is a duplicate
                outcome = await asyncio.to_thread(self._add, read.extracted, outcome, folder, target)
        outcome = replace(outcome, time=datetime.now(UTC))
        if outcome.state is FileState.QUARANTINED:
            await asyncio.to_thread(self._quarantine.add, outcome)
        kept = self._outcomes.get((target.caller.tenant, target.job))
        if kept is not None:
            kept.append(outcome)
        log.info("ingest.file", job=target.job, state=outcome.state.value, reason=outcome.reason)

    def _add(self, extracted: Extracted, outcome: FileOutcome, folder: Folder, target: _Target) -> FileOutcome:
        if known := target.library.find(target.collection, outcome.sha256, PIPELINE):
            return _known(outcome, known, target)
        source = folder.source(outcome.path)
        older = target.library.find_file(target.collection, source, outcome.path)
        if older and older.readers != target.readers:
            return _known(outcome, older, target)
        document = NewDocument(
            title=outcome.path,
            media_type=extracted.media_type,
            sha256=outcome.sha256,
            size_bytes=outcome.size_bytes,
            source=source,
            parser=extracted.parser,
            pipeline=PIPELINE,
            pages=extracted.pages,
            readers=target.readers,
            blocks=extracted.blocks,
            replaces=older.id if older else "",
        )
        try:
            return replace(outcome, document=target.library.add(target.collection, document).name)
        except DocumentRefused as refusal:
            return _refused(outcome, refusal)


def _known(outcome: FileOutcome, known: Document, target: _Target) -> FileOutcome:
    """A duplicate, unless it was to be for others than the stored document is: that must not go unsaid.

    Who holds a copy of a file learns no more of a document that he may neither read nor administer; and what is said
    here is read by others, too, so it names no reader.
    """
    if known.readers & target.caller.groups or target.caller.role is Role.ADMIN:
        outcome = replace(outcome, document=known.name)
    if known.readers == target.readers:
        return replace(outcome, state=FileState.DUPLICATE)
    return _refused(outcome, DocumentRefused("READERS_DIFFER", STORED_FOR_OTHERS))


def _refused(outcome: FileOutcome, refusal: DocumentRefused) -> FileOutcome:
    return replace(outcome, state=FileState.QUARANTINED, reason=refusal.file_reason, detail=str(refusal))


async def _to_its_end(work: Awaitable[T]) -> T:
    """Await `work`, however often cancelled, until it has ended: a thread cannot be stopped, half a commit not kept."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.exception()  # its own end is not news
        raise asyncio.CancelledError
    return task.result()
