"""`appliance jobs`: long work, seen and stopped."""

from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, command, complete_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.types import Job

jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, watch and cancel long work.")
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job, such as 7f3a.", autocompletion=complete_job)]


def add_to(app: typer.Typer) -> None:
    app.add_typer(jobs, name="jobs")


@command(jobs, "list")
def list_jobs(session: Session) -> None:
    """List jobs, newest first."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.jobs())
    if session.json:
        return output.show_json({"jobs": found})
    return _show_table(found)


@command(jobs)
def show(session: Session, job: JobName) -> None:
    """Show one job."""
    with session.connect() as client:
        _show_one(client.job(job), session.json)


@command(jobs)
def watch(session: Session, job: JobName) -> None:
    """Follow a job until it ends; with --json a line at each change. Ctrl-C leaves the job running."""
    from appliance.cli import output

    with session.connect() as client, client.watch_job(job) as states:
        for state in states:
            if session.json:
                output.show_json(state, indent=None)
            else:
                amount = f"{state.done} of {state.total or '?'} {state.unit}"
                output.show(f"{state.state.value:<9}  {amount}  {output.printable(state.note)}")


@command(jobs)
def cancel(session: Session, job: JobName) -> None:
    """Ask a job to stop. What it has done so far stays."""
    with session.connect() as client:
        _show_one(client.cancel_job(job), session.json)


def _show_one(job: "Job", as_json: bool) -> None:
    from appliance.cli import output

    if as_json:
        return output.show_json(job)
    pairs = [
        ("job", job.id),
        ("kind", job.kind),
        ("subject", job.subject),
        ("state", job.state.value),
        ("done", f"{job.done} of {job.total or '?'} {job.unit}"),
        ("note", job.note),
        ("error", f"{job.error_reason} {job.error_message}".strip()),
        ("started", output.time_text(job.create_time)),
        ("ended", output.time_text(job.end_time)),
    ]
    return output.show_fields(pair for pair in pairs if pair[1])


def _show_table(found: "Iterable[Job]") -> None:
    from appliance.cli import output

    rows = (
        (
            job.id,
            job.kind,
            job.subject,
            job.state.value,
            f"{job.done}/{job.total or '?'} {job.unit}",
            output.time_text(job.create_time),
            job.error_reason,
        )
        for job in found
    )
    output.show_table(("job", "kind", "subject", "state", "#done", "started", "error"), rows)
