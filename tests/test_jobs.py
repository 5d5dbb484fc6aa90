import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.errors import DiskFull, NotFound
from appliance.jobs import IN_THREADS, KEEP_ENDED, JobRunner
from appliance.ports import Progress
from appliance.types import Job, JobState


async def ended(runner: JobRunner, job: Job) -> Job:
    return [snapshot async for snapshot in runner.watch(job.id)][-1]


async def test_a_watcher_sees_the_present_state_first_and_the_end_last() -> None:
    runner, go_on = JobRunner(), asyncio.Event()

    async def work(progress: Progress) -> None:
        progress.update(1, 2, "first")
        await go_on.wait()
        progress.update(2, 2)

    job = runner.start("ingest", "collections/a", "files", work)
    await asyncio.sleep(0)
    watching = runner.watch(job.id)
    first = await anext(watching)
    assert (first.state, first.done, first.total, first.note) == (JobState.RUNNING, 1, 2, "first")
    go_on.set()
    seen = [snapshot async for snapshot in watching]
    assert (seen[-1].state, seen[-1].done) == (JobState.SUCCEEDED, 2)
    assert seen[-1].end_time is not None


async def test_a_job_that_raises_our_error_fails_with_its_reason() -> None:
    async def work(progress: Progress) -> None:
        raise DiskFull("No space is left.")

    runner = JobRunner()
    last = await ended(runner, runner.start("ingest", "", "files", work))
    assert (last.state, last.error_reason, last.error_message) == (JobState.FAILED, "DISK_FULL", "No space is left.")


async def test_a_bug_in_a_job_fails_it_without_quoting_what_it_read() -> None:
    async def work(progress: Progress) -> None:
        raise ValueError("the patient's name")

    runner = JobRunner()
    last = await ended(runner, runner.start("ingest", "", "files", work))
    assert (last.state, last.error_reason) == (JobState.FAILED, "INTERNAL")
    assert "patient" not in last.error_message


@pytest.mark.parametrize("started", [False, True])
async def test_cancel_ends_a_job_whether_it_has_begun_or_not(started: bool) -> None:
    async def work(progress: Progress) -> None:
        await asyncio.Event().wait()

    runner = JobRunner()
    job = runner.start("ingest", "", "files", work)
    if started:
        await asyncio.sleep(0)
    runner.cancel(job.id)
    assert (await ended(runner, job)).state is JobState.CANCELLED


async def test_a_second_cancel_does_not_disturb_what_the_first_one_began() -> None:
    cleaning, go_on = asyncio.Event(), asyncio.Event()

    async def work(progress: Progress) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await go_on.wait()
            progress.update(1, note="cleaned up")

    runner = JobRunner()
    job = runner.start("ingest", "", "files", work)
    await asyncio.sleep(0)
    runner.cancel(job.id)
    await cleaning.wait()
    runner.cancel(job.id)
    go_on.set()
    last = await ended(runner, job)
    assert (last.state, last.note) == (JobState.CANCELLED, "cleaned up")


async def test_stopping_the_runner_cancels_what_runs() -> None:
    async def work(progress: Progress) -> None:
        await asyncio.Event().wait()

    runner = JobRunner()
    job = runner.start("ingest", "", "files", work)
    await asyncio.sleep(0)
    await runner.stop()
    assert runner.get(job.id).state is JobState.CANCELLED


async def test_jobs_are_listed_newest_first_and_old_ended_ones_are_forgotten() -> None:
    async def work(progress: Progress) -> None:
        return

    runner = JobRunner()
    started = [runner.start("ingest", "", "files", work) for _ in range(2)]
    assert [job.id for job in runner.list()] == [job.id for job in reversed(started)]
    for _ in range(KEEP_ENDED + 5):
        await ended(runner, runner.start("ingest", "", "files", work))
    with pytest.raises(NotFound):
        runner.get(started[0].id)
    assert len(runner.list()) <= KEEP_ENDED + 1


async def test_work_in_a_thread_tells_its_progress_to_the_loop() -> None:
    def work(progress: Progress) -> None:
        progress.update(1, 2, "first")
        progress.update(2, 2, "second")

    runner = JobRunner()
    last = await ended(runner, runner.start_in_thread("verify", "collections/a", "files", work))
    assert (last.state, last.done, last.note) == (JobState.SUCCEEDED, 2, "second")


async def test_work_in_a_thread_learns_that_it_is_cancelled_at_its_next_update() -> None:
    runner, began, go_on, after = JobRunner(), threading.Event(), threading.Event(), []

    def work(progress: Progress) -> None:
        began.set()
        go_on.wait(10)
        progress.update(1)
        after.append("never")

    job = runner.start_in_thread("verify", "collections/a", "files", work)
    await asyncio.to_thread(began.wait, 10)
    runner.cancel(job.id)
    await asyncio.sleep(0)
    assert not runner.get(job.id).state.ended  # a thread cannot be stopped from outside
    go_on.set()
    assert (await ended(runner, job)).state is JobState.CANCELLED
    assert after == []


async def test_however_many_jobs_block_some_wait_queued_and_no_other_thread_waits_for_them() -> None:
    runner, go_on = JobRunner(), threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    def work(progress: Progress) -> None:
        go_on.wait(30)

    jobs = [runner.start_in_thread("verify", "collections/a", "files", work) for _ in range(IN_THREADS + 2)]
    for _ in range(3):
        await asyncio.sleep(0)
    states = [runner.get(job.id).state for job in jobs]
    assert states == [JobState.RUNNING] * IN_THREADS + [JobState.QUEUED] * 2
    async with asyncio.timeout(20):
        assert await asyncio.to_thread(lambda: "served") == "served"
    runner.cancel(jobs[-1].id)
    assert (await ended(runner, jobs[-1])).state is JobState.CANCELLED
    go_on.set()
    assert [(await ended(runner, job)).state for job in jobs[:-1]] == [JobState.SUCCEEDED] * (IN_THREADS + 1)


@pytest.mark.parametrize("tenant", ["", "acme"])
async def test_a_job_says_whose_it_is(tenant: str) -> None:
    async def work(progress: Progress) -> None:
        return

    runner = JobRunner()
    started = [
        runner.start("import", "", "bytes", work, tenant),
        runner.start_in_thread("verify", "", "files", lambda progress: None, tenant),
    ]
    assert [(await ended(runner, job)).tenant for job in started] == [tenant, tenant]
