"""The jobs that work on ingestions: begun, gone on with after a restart or once a source is back, ended.

start ──▶ SCANNING ──▶ WAITING ──approve──▶ RUNNING ──▶ SUCCEEDED
              └─────── approved before ───────▲ │
          INTERRUPTED, FAILED ◀─────────────────┘ (and from SCANNING); resume goes back there
"""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Protocol

import structlog

from appliance.errors import ApplianceError, NotFound, ScannerUnavailable, SourceGone, SourceRefused, WrongState
from appliance.ingest.commit import Commit
from appliance.ingest.judge import Judge, ended
from appliance.ingest.ledger import Ledger, Plan
from appliance.ingest.ledgers import Ledgers
from appliance.ingest.preview import preview, to_its_end
from appliance.ingest.sources.found import OpenSource
from appliance.ingest.work import Tools, Work
from appliance.ports import Jobs, Libraries, Progress
from appliance.types import FileState, Ingestion, IngestionState

TEND_SECONDS, LONGEST_PAUSE_SECONDS = 3.0, 600.0
PREVIEW_KEPT = timedelta(days=7)
"""How long a preview waits for somebody to approve it, from when its ledger was written last."""

_AT_WORK = (IngestionState.SCANNING, IngestionState.RUNNING)
log = structlog.get_logger()


class Sources(Protocol):
    """Where files come from (sources/)."""

    async def open(self, tenant: str, name: str) -> OpenSource:
        """A source by name, or an absolute path. Raises NotFound, InvalidArgument, SourceRefused, SourceGone."""


def next_state(now: Ingestion, plan: Plan) -> IngestionState:
    """What to do with one that has not ended, and that nothing stands in the way of."""
    if not plan.listed:
        return IngestionState.SCANNING
    if now.approver:
        return IngestionState.RUNNING
    return IngestionState.WAITING if now.state is IngestionState.WAITING else IngestionState.SCANNING


def is_abandoned(now: Ingestion, plan: Plan) -> bool:
    """Whether it is an old preview of what somebody can ask for again: not of what a watch saw, nor of what is held."""
    waits = now.state is IngestionState.WAITING and bool(plan.source) and not plan.automatic
    return waits and _is_old(now.create_time)


def _is_old(time: datetime) -> bool:
    return time + PREVIEW_KEPT < datetime.now(UTC)


class Runs:
    """Belongs to one event loop."""

    def __init__(self, ledgers: Ledgers, tools: Tools, jobs: Jobs, libraries: Libraries, sources: Sources) -> None:
        self._ledgers, self._tools, self._jobs, self._libraries = ledgers, tools, jobs, libraries
        self._sources = sources
        self._working: dict[str, str] = {}  # job by ingestion
        self._stopping = False
        self.scanner_fault = ""
        """Why nothing could be scanned when that was tried last; empty while all is well."""

    async def open(self) -> None:
        """Go on with what was being worked on when the daemon ended."""
        for ledger in self._ledgers.all():
            if ledger.ingestion.state in _AT_WORK:
                self.begin(ledger)

    async def tend(self) -> None:
        """Until cancelled: go on with what was approved and then interrupted, once its source is back, and drop old
        previews that nobody approved. From one that is interrupted again and again this keeps off for longer each time.
        """
        tries: dict[str, tuple[float, float]] = {}  # by ingestion, when it may be tried next, and the pause after that
        while True:
            await asyncio.sleep(TEND_SECONDS)
            for ledger in self._ledgers.all():
                now = ledger.ingestion
                if is_abandoned(now, ledger.plan) and _is_old(ledger.write_time) and now.id not in self._working:
                    await self._drop_preview(ledger)
                if now.state is not IngestionState.INTERRUPTED or not now.approver or now.id in self._working:
                    continue
                due_seconds, pause_seconds = tries.get(now.id, (0.0, TEND_SECONDS))
                if monotonic() >= due_seconds:
                    try:
                        await self.resume(ledger)
                    except ApplianceError:
                        continue  # its source is not back
                    except Exception as error:
                        log.exception("ingest.not_resumed", ingestion=now.id, error=type(error).__name__)
                    tries[now.id] = (monotonic() + pause_seconds, min(2 * pause_seconds, LONGEST_PAUSE_SECONDS))
            tries = {key: value for key, value in tries.items() if value[0] + LONGEST_PAUSE_SECONDS > monotonic()}

    async def _drop_preview(self, ledger: Ledger) -> None:
        now = ledger.ingestion
        try:
            await self.end(ledger, f"Nobody approved it for {PREVIEW_KEPT.days} days. Begin it again.")
        except ApplianceError as error:
            log.warning("ingest.preview_not_dropped", ingestion=now.id, tenant=now.tenant, reason=error.reason)
            return
        log.info("ingest.preview_dropped", ingestion=now.id, tenant=now.tenant, waited_days=PREVIEW_KEPT.days)

    def stop(self) -> None:
        """The daemon ends: jobs that are cancelled from now on stop where they are, and the next start goes on."""
        self._stopping = True

    def begin(self, ledger: Ledger, source: OpenSource | None = None) -> Ingestion:
        """Have a job work on it, unless one does. source: open already, if it is; the job closes it."""
        now = ledger.ingestion
        if now.id in self._working:
            return now

        async def work(progress: Progress) -> None:
            try:
                await self._work(ledger, source, progress)
            finally:
                self._working.pop(now.id, None)
                await asyncio.to_thread(ledger.unload)
            if ledger.ingestion.state in _AT_WORK:
                self.begin(ledger)  # it was approved in the moment in which this began to wait for that

        job = self._jobs.start("ingest", f"collections/{now.collection}", "files", work, now.tenant)
        self._working[now.id] = job.id
        return ledger.tell(job=job.name)

    async def resume(self, ledger: Ledger) -> Ingestion:
        """Go on with one that was interrupted or failed, if its source is there or needed no more.

        Raises SourceRefused, SourceGone, DiskFull.
        """
        now = ledger.ingestion
        if now.id in self._working:
            return now
        source = await self._open(ledger)

        async def write_and_begin() -> Ingestion:
            try:
                await asyncio.to_thread(partial(ledger.write, state=next_state(now, ledger.plan), problem=""))
            except BaseException:
                if source:
                    await source.close()
                raise
            if source and now.id in self._working:  # who resumed it beside this has opened his own
                await source.close()
                return ledger.ingestion
            return self.begin(ledger, source)

        return await to_its_end(write_and_begin())

    async def cancel(self, ledger: Ledger) -> None:
        """Returns once it has ended. Raises DiskFull, StoreDamaged."""
        if job := self._working.get(ledger.ingestion.id):
            self._jobs.cancel(job)
            async for _ in self._jobs.watch(job):
                pass
            self._working.pop(ledger.ingestion.id, None)  # of a job that never came to its first step
        if not ledger.ingestion.state.ended:
            await self.end(ledger)

    async def end(self, ledger: Ledger, problem: str = "") -> None:
        """What is open is LEFT; copies in the box are destroyed. No news of one that has ended. problem: why it ends,
        where nobody asked for it.

        Raises DiskFull, StoreDamaged.
        """
        await to_its_end(asyncio.to_thread(self._leave, ledger, problem))

    def _leave(self, ledger: Ledger, problem: str) -> None:
        left = [ended(item.changed(state=FileState.LEFT)) for item in ledger.items() if item.is_open]
        try:
            ledger.close(left, state=IngestionState.CANCELLED, problem=problem, end_time=datetime.now(UTC))
        except WrongState:
            return
        self._ledgers.sweep(ledger)  # also of copies that a full disk kept out of the ledger

    # --- what a job does

    async def _work(self, ledger: Ledger, source: OpenSource | None, progress: Progress) -> None:
        try:
            await self._stages(ledger, source, progress)
        except asyncio.CancelledError:
            if not self._stopping and not ledger.ingestion.state.ended:
                await self.end(ledger)
            raise
        except ApplianceError as error:
            if isinstance(error, ScannerUnavailable):
                self.scanner_fault = str(error)
            gone = isinstance(error, SourceGone | SourceRefused)
            await self._stop_at(ledger, IngestionState.INTERRUPTED if gone else IngestionState.FAILED, error)
            raise
        except Exception as error:
            inside = ApplianceError(f"It failed inside: {type(error).__name__}.")
            await self._stop_at(ledger, IngestionState.FAILED, inside)
            raise

    async def _stages(self, ledger: Ledger, source: OpenSource | None, progress: Progress) -> None:
        missing: ApplianceError | None = None
        await to_its_end(asyncio.to_thread(self._ledgers.sweep, ledger))
        try:
            source = source or await self._open(ledger)
        except (SourceGone, SourceRefused) as error:  # what is held goes on all the same
            missing = error
        try:
            if not await self._previewed(ledger, source, missing, progress):
                return
            judge = await asyncio.to_thread(self._judge, ledger)
            commit = await asyncio.to_thread(self._committing, ledger, judge)
            await Work(self._tools, ledger, commit, judge, progress).run(source, missing)
            self.scanner_fault = ""
            await to_its_end(asyncio.to_thread(self._succeed, ledger))
        finally:
            if source:
                await source.close()

    async def _previewed(
        self, ledger: Ledger, source: OpenSource | None, missing: ApplianceError | None, progress: Progress
    ) -> bool:
        """Whether the preview is done, and somebody has approved it."""
        if next_state(ledger.ingestion, ledger.plan) is IngestionState.SCANNING:
            if source is None:
                raise missing or SourceGone("The source is not there.")
            judge = await asyncio.to_thread(self._judge, ledger)
            hashes = not ledger.ingestion.approver
            await preview(ledger, source, judge, self._tools.max_bytes, progress, hashes=hashes)
        state = IngestionState.RUNNING if ledger.ingestion.approver else IngestionState.WAITING
        if ledger.ingestion.state is not state:
            await to_its_end(asyncio.to_thread(partial(ledger.write, state=state)))
        return bool(ledger.ingestion.approver)

    async def _open(self, ledger: Ledger) -> OpenSource | None:
        """The very source that it began with; None where no file needs it. Raises SourceRefused, SourceGone."""
        items = await asyncio.to_thread(ledger.items)
        needed = not ledger.plan.listed or any(i.is_open and i.outcome.state is not FileState.HELD for i in items)
        if not ledger.plan.source or not needed:
            return None
        try:
            source = await self._sources.open(ledger.ingestion.tenant, ledger.plan.source)
        except NotFound as error:
            raise SourceGone(str(error)) from None
        before, now = ledger.ingestion.provenance, source.provenance
        if (before.kind, before.path, before.serial, before.volume) != (now.kind, now.path, now.serial, now.volume):
            await source.close()
            raise SourceGone("Another stick is there than the one that this began with.")
        return source

    def _judge(self, ledger: Ledger) -> Judge:
        now = ledger.ingestion
        taken = self._ledgers.taken(now.tenant, now.collection) if ledger.plan.automatic else frozenset()
        return Judge(ledger, self._libraries.of(now.tenant), taken)

    def _committing(self, ledger: Ledger, judge: Judge) -> Commit:
        library = self._libraries.of(ledger.ingestion.tenant)
        tools = self._tools
        return Commit(ledger, library, judge, tools.quarantine, tools.max_bytes, tools.max_ratio)

    def _succeed(self, ledger: Ledger) -> None:
        """Then what is kept of refused files stays within its bounds, and what is kept of ingestions."""
        now = ledger.close(state=IngestionState.SUCCEEDED, problem="", end_time=datetime.now(UTC))
        try:
            self._tools.shed(now.tenant)
            self._ledgers.prune(now.tenant)
        except ApplianceError as error:  # the next one tidies
            log.warning("ingest.not_tidied", tenant=now.tenant, reason=error.reason)

    async def _stop_at(self, ledger: Ledger, state: IngestionState, error: ApplianceError) -> None:
        problem = f"{error} {error.remedy}"
        log.warning("ingest.stopped", ingestion=ledger.ingestion.id, state=state.value, reason=error.reason)
        try:
            await to_its_end(asyncio.to_thread(partial(ledger.write, state=state, problem=problem)))
        except WrongState:
            return
        except ApplianceError:  # a full disk; a restart would go on with it
            ledger.tell(state=state, problem=problem)
