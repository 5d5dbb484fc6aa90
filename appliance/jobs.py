"""The one runner of long work.

A job is an asyncio task and a frozen snapshot of what it says of itself. Ended jobs are kept until `KEEP_ENDED` newer
ones have ended, so that a client that comes back later still learns how its job went.

Work that blocks has threads of its own: it may hold them for hours, and wait in them for what needs the process's other
threads.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import structlog

from appliance.errors import ApplianceError, Cancelled, NotFound
from appliance.ports import Progress, Work
from appliance.types import Job, JobState

KEEP_ENDED = 200
IN_THREADS = 2
"""Jobs that block, at once; others are queued."""

log = structlog.get_logger()


@dataclass
class _Entry:
    """A job's latest snapshot, its task, and the event that the next snapshot sets."""

    job: Job
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def publish(self, job: Job) -> None:
        self.job = job
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True)
class _Progress:
    entry: _Entry

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        self.entry.publish(replace(self.entry.job, done=done, total=total, note=note))


class _ThreadProgress:
    """What work in a thread tells, brought to the loop; and how it learns that it is to end."""

    def __init__(self, told: Progress) -> None:
        self._told, self._loop = told, asyncio.get_running_loop()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        """Raises Cancelled."""
        if self._cancelled:
            raise Cancelled("The job was cancelled.")
        self._loop.call_soon_threadsafe(self._told.update, done, total, note)


async def _to_its_end(threads: Executor, work: Callable[[Progress], None], told: Progress) -> None:
    """Run work in a thread, which nothing can stop but itself."""
    progress = _ThreadProgress(told)
    running = asyncio.get_running_loop().run_in_executor(threads, work, progress)
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            progress.cancel()
    try:
        running.result()
    except Cancelled:
        raise asyncio.CancelledError from None


class JobRunner:
    """Fulfils `ports.Jobs`. Belongs to one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._threads = ThreadPoolExecutor(IN_THREADS, thread_name_prefix="job")
        self._in_threads = asyncio.Semaphore(IN_THREADS)

    def start(self, kind: str, subject: str, unit: str, work: Work, tenant: str = "") -> Job:
        return self._start(_new_job(kind, subject, unit, tenant), work, nullcontext())

    def start_in_thread(
        self, kind: str, subject: str, unit: str, work: Callable[[Progress], None], tenant: str = ""
    ) -> Job:
        blocking = partial(_to_its_end, self._threads, work)
        return self._start(_new_job(kind, subject, unit, tenant), blocking, self._in_threads)

    def get(self, job: str) -> Job:
        return self._entry(job).job

    def list(self) -> tuple[Job, ...]:
        return tuple(
            sorted((entry.job for entry in self._entries.values()), key=lambda job: job.create_time, reverse=True)
        )

    async def watch(self, job: str) -> AsyncIterator[Job]:
        entry = self._entry(job)
        while True:
            changed, snapshot = entry.changed, entry.job
            yield snapshot
            if snapshot.state.ended:
                return
            await changed.wait()

    def cancel(self, job: str) -> Job:
        entry = self._entry(job)
        if entry.task is not None and not entry.job.state.ended and not entry.task.cancelling():
            entry.task.cancel()
        return entry.job

    async def stop(self) -> None:
        """Cancel what runs and wait until it has ended."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None and not entry.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)

    def _start(self, job: Job, work: Work, turn: AbstractAsyncContextManager[None]) -> Job:
        entry = self._entries[job.id] = _Entry(job)
        entry.task = asyncio.create_task(self._run(entry, work, turn), name=job.name)
        # A task that is cancelled before its first step never enters _run.
        entry.task.add_done_callback(lambda _: None if entry.job.state.ended else self._end(entry, JobState.CANCELLED))
        self._forget_old()
        return job

    async def _run(self, entry: _Entry, work: Work, turn: AbstractAsyncContextManager[None]) -> None:
        """turn: entered before the job runs; it is queued until then."""
        try:
            async with turn:
                entry.publish(replace(entry.job, state=JobState.RUNNING))
                await work(_Progress(entry))  # a job's fault ends that job, whatever it is
        except asyncio.CancelledError:
            self._end(entry, JobState.CANCELLED)
        except ApplianceError as error:
            self._end(entry, JobState.FAILED, error.reason, str(error))
        except Exception as error:
            log.exception("job.crashed", job=entry.job.name, kind=entry.job.kind)
            self._end(entry, JobState.FAILED, ApplianceError.reason, f"The job failed inside: {type(error).__name__}.")
        else:
            self._end(entry, JobState.SUCCEEDED)

    def _end(self, entry: _Entry, state: JobState, reason: str = "", message: str = "") -> None:
        ended = replace(entry.job, state=state, end_time=datetime.now(UTC), error_reason=reason, error_message=message)
        entry.publish(ended)
        log.info("job.ended", job=ended.name, kind=ended.kind, state=state.value, done=ended.done, reason=reason)

    def _entry(self, job: str) -> _Entry:
        try:
            return self._entries[job]
        except KeyError:
            raise NotFound(f"There is no job jobs/{job}.") from None

    def _forget_old(self) -> None:
        ended = [entry.job for entry in self._entries.values() if entry.job.state.ended]
        for job in sorted(ended, key=lambda job: job.create_time)[: max(0, len(ended) - KEEP_ENDED)]:
            del self._entries[job.id]


def _new_job(kind: str, subject: str, unit: str, tenant: str) -> Job:
    now = datetime.now(UTC)
    return Job(secrets.token_hex(8), kind, subject, JobState.QUEUED, now, unit=unit, tenant=tenant)
