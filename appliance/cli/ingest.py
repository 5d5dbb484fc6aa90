"""`appliance ingest`: documents into a collection, and what became of each file."""

import os
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import CollectionOption, Session, command, complete_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.client import Client
    from appliance.types import FileOutcome, Job


def add_to(app: typer.Typer) -> None:
    command(app)(ingest)


def ingest(
    session: Session,
    path: Annotated[str | None, typer.Argument(help="A folder or file of the box.")] = None,
    collection: CollectionOption = "default",
    reader: Annotated[
        list[str] | None,
        typer.Option("--reader", help="Who may read: everyone, role:ROLE, group:NAME or user:NAME."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start the job and leave.")] = False,
    files: Annotated[
        str | None,
        typer.Option("--files", metavar="JOB", help="What became of a job's files.", autocompletion=complete_job),
    ] = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="All files that were refused.")] = False,
) -> None:
    """Read a folder into a collection.

    Each file ends as committed, duplicate or quarantined with its reason. Ctrl-C cancels; what was committed is kept.
    """
    if [path is not None, files is not None, quarantine].count(True) != 1:
        raise typer.BadParameter("give a PATH, or --files JOB, or --quarantine")
    with session.connect() as client:
        if path is None:
            return _list_files(client.files(files) if files else client.quarantine(), session.json)
        job = client.ingest_folder(os.path.abspath(os.path.expanduser(path)), collection, reader or ())
        if no_wait:
            return _show_started(job, session.json)
        return _finish(client, job, session.json)


def _finish(client: "Client", job: "Job", as_json: bool) -> None:
    """Wait, show the summary, then fail as the job did."""
    from appliance.cli import progress

    ended = progress.wait(client, job)
    show_summary(ended, list(client.files(job.id)), as_json)
    progress.raise_failure(ended)


def show_summary(job: "Job", outcomes: "list[FileOutcome]", as_json: bool) -> None:
    """Counts by outcome, and each refused file with its reason."""
    from appliance.cli import output
    from appliance.types import FileState, JobState

    counts = Counter(outcome.state for outcome in outcomes)
    refused = [outcome for outcome in outcomes if outcome.state is FileState.QUARANTINED]
    if as_json:
        by_name = {state.value: counts[state] for state in FileState}
        return output.show_json({"job": job, "counts": by_name, "quarantined": refused})
    kept = " What was committed is kept." if job.state in (JobState.CANCELLED, JobState.FAILED) else ""
    output.show(f"{job.state.value.capitalize()}: {len(outcomes)} file{'s' * (len(outcomes) != 1)}.{kept}")
    output.show_fields((state.value, str(counts[state])) for state in FileState)
    if refused:
        _show_outcomes(refused)
    return None


def _list_files(outcomes: "Iterable[FileOutcome]", as_json: bool) -> None:
    from appliance.cli import output

    if as_json:
        return output.show_json({"files": list(outcomes)})
    return _show_outcomes(outcomes)


def _show_outcomes(outcomes: "Iterable[FileOutcome]") -> None:
    from appliance.cli import output

    rows = ((item.path, item.state.value, item.reason, item.detail) for item in outcomes)
    output.show_table(("file", "outcome", "reason", "detail"), rows)


def _show_started(job: "Job", as_json: bool) -> None:
    from appliance.cli import output

    if as_json:
        return output.show_json({"job": job})
    return output.show(f"Started {job.name}. Follow it with: appliance jobs watch {job.id}")
