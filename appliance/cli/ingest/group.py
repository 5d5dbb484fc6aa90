"""What the verbs of `appliance ingest` share: their group, their arguments, how they follow an ingestion."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, complete_ingestion

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.types import Ingestion

ingest = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Take documents in from sticks, shares, folders and this machine; see what became of each file.",
)
IngestionName = Annotated[
    str,
    typer.Argument(
        metavar="INGESTION", help="An ingestion's id, or its first digits: 7f3a.", autocompletion=complete_ingestion
    ),
]
ReaderOption = Annotated[
    list[str],
    typer.Option("--reader", help="Who may read: everyone, role:ROLE, group:NAME or user:NAME. May be repeated."),
]
POLL_SECONDS = 0.2


def follow(session: Session, client: "Client", ingestion: "Ingestion") -> "Ingestion":
    """How an ingestion stands once it has ended, or waits for somebody; its progress is shown until then.

    Ctrl-C ends the verb, and not the ingestion.
    """
    from appliance.cli import output, progress
    from appliance.errors import NotFound
    from appliance.types import IngestionState

    at_work = (IngestionState.SCANNING, IngestionState.RUNNING)
    try:
        while ingestion.state in at_work:
            with suppress(NotFound), client.watch_job(ingestion.job) as states:  # the daemon forgets old jobs
                progress.show(states)
            ingestion = client.ingestion(ingestion.id)
            if ingestion.state in at_work:
                time.sleep(POLL_SECONDS)  # between one job and the next
    except KeyboardInterrupt:
        output.note(f"{ingestion.name} goes on in the box. Come back: {session.line('ingest', 'watch', ingestion.id)}")
        output.note(f"Stop it: {session.line('ingest', 'cancel', ingestion.id)}")
        raise typer.Exit(130) from None
    return ingestion


def raise_failure(client: "Client", *ingestions: "Ingestion") -> None:
    """Raises the error that one stopped with, if any did, and SomeRefused where they are done but for files."""
    from appliance.types import FileState, IngestionState

    for ingestion in ingestions:
        raise_stop(client, ingestion)
    counts = [ingestion.counts for ingestion in ingestions if ingestion.state is IngestionState.SUCCEEDED]
    files = sum(sum(one.values()) for one in counts)
    for state, word in ((FileState.QUARANTINED, "refused"), (FileState.LEFT, "left")):
        require_none_refused(sum(one.get(state, 0) for one in counts), files, word)


def require_none_refused(refused: int, files: int, word: str = "refused") -> None:
    """Raises SomeRefused."""
    from appliance.errors import SomeRefused

    if refused:
        raise SomeRefused(
            f"{refused:,} of {files:,} file{'s' * (files != 1)} {'was' if refused == 1 else 'were'} {word}."
        )


def raise_stop(client: "Client", ingestion: "Ingestion") -> None:
    """Raises the error that an ingestion stopped with, if it did."""
    from appliance.cli import progress
    from appliance.errors import Broken, Cancelled, NotFound, SourceGone
    from appliance.types import IngestionState

    if ingestion.state is IngestionState.CANCELLED:
        raise Cancelled(f"{ingestion.name} was cancelled.")
    if ingestion.state in (IngestionState.INTERRUPTED, IngestionState.FAILED):
        with suppress(NotFound):  # the daemon forgets old jobs
            progress.raise_failure(client.job(ingestion.job))
        raise (SourceGone if ingestion.state is IngestionState.INTERRUPTED else Broken)(ingestion.problem)
