"""A job that a verb waits for: a bar on a terminal's stderr, Ctrl-C as its cancellation, its failure as an error."""

import sys
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from appliance.cli.output import console, note, printable
from appliance.client import WORK_SECONDS, Client, restore_error
from appliance.types import Job, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable


def wait(client: Client, job: Job) -> Job:
    """The job when it has ended. Ctrl-C asks the box to cancel it, and waits for the end all the same."""
    try:
        with client.watch_job(job.id) as states:
            return _shown(job, states)
    except KeyboardInterrupt:
        note("Cancelling: what is done so far stays.")
        client.cancel_job(job.id)
        with client.watch_job(job.id, WORK_SECONDS) as states:
            return _shown(job, states)


def raise_failure(job: Job) -> None:
    """Raises the error that a job ended with, if it did."""
    if job.state is JobState.FAILED:
        raise restore_error(job.error_reason, job.error_message)
    if job.state is JobState.CANCELLED:
        raise restore_error("CANCELLED", f"{job.name} was cancelled.")


def _shown(job: Job, states: "Iterable[Job]") -> Job:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task(printable(f"{job.kind} {job.unit}"), total=None, note="")
        for state in states:
            job = state
            bar.update(task, completed=job.done, total=job.total or None, note=printable(job.note))
    return job
