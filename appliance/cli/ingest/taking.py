"""`appliance ingest preview` and `start`: what brings documents in from where the box can read them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.ingest.group import ReaderOption, follow, ingest, raise_failure
from appliance.cli.session import CollectionOption, Session, Yes, command

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.types import FileOutcome, Ingestion

NoWait = Annotated[bool, typer.Option("--no-wait", help="Let the box work, and leave.")]


@command(ingest)
def preview(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE|PATH", help="A source of the box, or a folder, file or stick's image there."),
    ],
    collection: CollectionOption = "default",
    reader: ReaderOption = [],  # noqa: B006 - typer copies it
) -> None:
    """Look at a source and take nothing in: what is there, what is known already, what would be refused and why.

    A path is of the box, in the folders of its option `ingest_roots`; `upload` sends from elsewhere.
    """
    with session.connect() as client:
        found = _begun(session, client, source, collection, reader)
        _show_preview(session, client, follow(session, client, found))


@command(ingest)
def start(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(metavar="INGESTION|SOURCE|PATH", help="What was previewed, or a source, folder, file or image."),
    ],
    collection: CollectionOption = "default",
    reader: ReaderOption = [],  # noqa: B006
    yes: Yes = False,
    no_wait: NoWait = False,
) -> None:
    """Take documents in: those of a preview, or of a source, which is looked at first.

    A path is of the box, in the folders of its option `ingest_roots`; `upload` sends from elsewhere.

    Each file ends as committed, duplicate, unpacked, quarantined or left, with its reason. Ctrl-C leaves the box at
    work, and says how to come back.
    """
    with session.connect() as client:
        found = _ingestion(client, what)
        if found is not None and reader:
            raise typer.BadParameter("--reader is said when an ingestion is previewed")
        if found is not None:
            found = client.approve_ingestion(found.id)
        elif yes:
            found = _begun(session, client, what, collection, reader, approve=True)
        else:
            found = _begun(session, client, what, collection, reader)
            found = _ask(session, client, follow(session, client, found))
        finish(session, client, found, no_wait)


def finish(session: Session, client: "Client", ingestion: "Ingestion", no_wait: bool = False) -> None:
    """Follow an ingestion, show what became of it, then fail as it did."""
    from appliance.cli import output

    ingestion, failed = ended(session, client, ingestion, no_wait)
    if session.json:
        output.show_json({"ingestion": ingestion, "failed": failed})
    else:
        show_end(session, ingestion, failed)
    raise_failure(client, ingestion)


def ended(
    session: Session, client: "Client", ingestion: "Ingestion", no_wait: bool
) -> "tuple[Ingestion, list[FileOutcome]]":
    """How an ingestion stands when nothing is to be waited for any more, and its files that failed."""
    from appliance.types import FileState

    if no_wait:
        return ingestion, []
    ingestion = follow(session, client, ingestion)
    return ingestion, list(client.files(ingestion.id, (FileState.QUARANTINED, FileState.LEFT)))


def show_end(session: Session, ingestion: "Ingestion", failed: "list[FileOutcome]") -> None:
    from appliance.cli import output
    from appliance.cli.ingest import shown
    from appliance.types import IngestionState

    if ingestion.state is IngestionState.WAITING:
        line = session.line("ingest", "start", ingestion.id)
        return output.show(f"{ingestion.name} waits until somebody approves it: {line}")
    if ingestion.state in (IngestionState.SCANNING, IngestionState.RUNNING):
        return output.show(f"Started {ingestion.name}. Follow it: {session.line('ingest', 'watch', ingestion.id)}")
    report = session.line("ingest", "report", ingestion.id, "--format", "html", "--output", f"{ingestion.id}.html")
    return shown.show_summary(ingestion, failed, report)


def _show_preview(session: Session, client: "Client", ingestion: "Ingestion") -> None:
    from appliance.cli import output
    from appliance.cli.ingest import shown

    raise_failure(client, ingestion)
    files, line = list(client.files(ingestion.id)), session.line("ingest", "start", ingestion.id)
    if session.json:
        return output.show_json(shown.preview_document(ingestion, files, line))
    return shown.show_preview(ingestion, files, line)


def _begun(
    session: Session, client: "Client", what: str, collection: str, reader: list[str], *, approve: bool = False
) -> "Ingestion":
    """An ingestion of a source. Of a place that the box takes nothing from, but this machine has, says what to type."""
    from appliance.cli import output
    from appliance.errors import SourceRefused

    source = source_of(client, what)
    try:
        return client.start_ingestion(source, collection, reader, approve=approve)
    except SourceRefused as error:
        if "ingest_roots" in str(error) and os.path.exists(source):
            readers = [word for name in reader for word in ("--reader", name)]
            output.note(f"Send it: {session.line('ingest', 'upload', source, '-c', collection, *readers)}")
        raise


def _ask(session: Session, client: "Client", ingestion: "Ingestion") -> "Ingestion":
    """Show a preview and take it in, if somebody says so."""
    from appliance.cli import output
    from appliance.cli.ingest import shown
    from appliance.errors import Cancelled

    raise_failure(client, ingestion)
    if not session.json:
        shown.show_preview(ingestion, list(client.files(ingestion.id)), session.line("ingest", "start", ingestion.id))
    try:
        if typer.confirm("Take it in?", err=True):
            return client.approve_ingestion(ingestion.id)
    except typer.Abort:
        output.note("Nobody could be asked; --yes answers.")
    output.note(f"It waits. Drop it: {session.line('ingest', 'cancel', ingestion.id)}")
    raise Cancelled(f"Nothing was taken in: {ingestion.name} waits.")


def _ingestion(client: "Client", what: str) -> "Ingestion | None":
    """The ingestion of that name; None where it must be a place to take files from."""
    from appliance.errors import ApplianceError

    if what.startswith("ingestions/"):
        return client.ingestion(what)
    if "/" in what or Path(what).exists():
        return None
    try:
        return client.ingestion(what)
    except ApplianceError as error:
        if error.reason in ("NOT_FOUND", "INVALID_ARGUMENT"):
            return None
        raise


def source_of(client: "Client", what: str) -> str:
    """As the box names it: "sources/ID", or an absolute path. Raises NotFound for a word that is neither."""
    from appliance.errors import NotFound

    if what.startswith("sources/"):
        return what
    if "/" in what or Path(what).exists():
        return os.path.abspath(os.path.expanduser(what))
    if all(source.id != what for source in client.sources()):
        raise NotFound(f"Nothing is called {what}: no ingestion, no source, and no path here.")
    return f"sources/{what}"
