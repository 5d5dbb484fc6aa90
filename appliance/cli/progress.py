"""A job that a verb waits for: a bar on a terminal's stderr, Ctrl-C as its cancellation, its failure as an error."""

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from appliance.cli.output import console, note, printable
from appliance.client import WORK_SECONDS, Client, restore_error
from appliance.types import Job, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def wait(client: Client, job: Job) -> Job:
    """The job when it has ended. Ctrl-C asks the box to cancel it, and waits for the end all the same."""
    try:
        with client.watch_job(job.id) as states:
            return show(states) or job
    except KeyboardInterrupt:
        note("Cancelling: what is done so far stays.")
        client.cancel_job(job.id)
        with client.watch_job(job.id, WORK_SECONDS) as states:
            return show(states) or job


def raise_failure(job: Job) -> None:
    """Raises the error that a job ended with, if it did."""
    if job.state is JobState.FAILED:
        raise restore_error(job.error_reason, job.error_message)
    if job.state is JobState.CANCELLED:
        raise restore_error("CANCELLED", f"{job.name} was cancelled.")


def show(states: "Iterable[Job]") -> Job | None:
    """The last of a job's states; each is shown as it comes."""
    job = None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    with _bar(columns) as bar:
        task = bar.add_task("", total=None, note="")
        for job in states:
            about = printable(f"{job.kind} {job.unit}")
            bar.update(task, description=about, completed=job.done, total=job.total or None, note=printable(job.note))
    return job


@contextmanager
def sending(name: str, size_bytes: int) -> "Iterator[Callable[[int], None]]":
    """A bar for bytes on their way; what is yielded is told how many are."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _bar(columns) as bar:
        task = bar.add_task(printable(name), total=size_bytes)
        yield lambda sent: bar.update(task, completed=sent)


def _bar(columns: "tuple[ProgressColumn, ...]") -> Progress:
    return Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())
