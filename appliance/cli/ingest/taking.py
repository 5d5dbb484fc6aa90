"""`appliance ingest preview` and `start`: what brings documents in from where the box can read them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.ingest.group import ReaderOption, follow, ingest, raise_failure, raise_stop, require_none_refused
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

    What was previewed waits for `start`, or for `cancel`; after 7 days it is dropped.
    """
    with session.connect() as client:
        found = _begun(session, client, source, collection, reader)
        found, files = _previewed(client, follow(session, client, found))
    _show_preview(session, found, files)
    if not session.json:
        show_ways(session, found)


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
            found = follow(session, client, _begun(session, client, what, collection, reader))
            if not _ask(session, client, found):
                return
            found = client.approve_ingestion(found.id)
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
        output.show(f"{ingestion.name} waits until somebody approves it.")
        return show_ways(session, ingestion)
    if ingestion.state in (IngestionState.SCANNING, IngestionState.RUNNING):
        return output.show(f"Started {ingestion.name}. Follow it: {session.line('ingest', 'watch', ingestion.id)}")
    report = session.line("ingest", "report", ingestion.id, "--format", "html", "--output", f"{ingestion.id}.html")
    return shown.show_summary(ingestion, failed, report, session.line(*shown.every_file(ingestion)))


def show_ways(session: Session, ingestion: "Ingestion") -> None:
    """How to go on with one that waits, as two commands."""
    from appliance.cli import output
    from appliance.types import IngestionState

    if ingestion.state is IngestionState.WAITING:
        where = output.note if session.json else output.show
        where(f"\nTake it in: {session.line('ingest', 'start', ingestion.id)}")
        where(f"Drop it:    {session.line('ingest', 'cancel', ingestion.id)}")


def _previewed(client: "Client", ingestion: "Ingestion") -> "tuple[Ingestion, list[FileOutcome]]":
    """With its files; one that has nothing to take in is dropped, and waits for nobody."""
    from appliance.types import FileState, IngestionState

    raise_stop(client, ingestion)
    files = list(client.files(ingestion.id))
    if ingestion.state is IngestionState.WAITING and not any(file.state is FileState.FOUND for file in files):
        ingestion = client.cancel_ingestion(ingestion.id)
    return ingestion, files


def _show_preview(session: Session, ingestion: "Ingestion", files: "list[FileOutcome]") -> None:
    from appliance.cli import output
    from appliance.cli.ingest import shown

    if session.json:
        return output.show_json(shown.preview_document(ingestion, files, session.line("ingest", "start", ingestion.id)))
    return shown.show_preview(ingestion, files, session.line(*shown.every_file(ingestion)))


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


def _ask(session: Session, client: "Client", ingestion: "Ingestion") -> bool:
    """Show a preview; whether to take it in. Nobody is asked where there is nothing to take.

    Raises NotApproved; SomeRefused where that is for what was refused.
    """
    from appliance.cli import output
    from appliance.errors import NotApproved
    from appliance.types import FileState, IngestionState

    ingestion, files = _previewed(client, ingestion)
    waits = ingestion.state is IngestionState.WAITING
    if not session.json or not waits:
        _show_preview(session, ingestion, files)
    if not waits:
        require_none_refused(sum(file.state is FileState.QUARANTINED for file in files), len(files))
        return False
    try:
        if typer.confirm("Take it in?", err=True):
            return True
    except typer.Abort:
        output.note("Nobody could be asked; --yes answers.")
    show_ways(session, ingestion)
    raise NotApproved(f"Nothing was taken in: {ingestion.name} waits.")


def _ingestion(client: "Client", what: str) -> "Ingestion | None":
    """The ingestion of that name; None where it must be a place to take files from."""
    from appliance.errors import NotFound

    if what.startswith("ingestions/"):
        return client.ingestion(what)
    if not set(what) <= set("0123456789abcdef") or Path(what).exists():
        return None
    with suppress(NotFound):
        return client.ingestion(what)
    return None


def source_of(client: "Client", what: str) -> str:
    """As the box names it: "sources/ID", or an absolute path.

    Raises NotFound for a word that is neither, InvalidArgument for a path that no call can carry.
    """
    from appliance.errors import InvalidArgument, NotFound

    if what.startswith("sources/"):
        return what
    if "/" in what or Path(what).exists():
        path = os.path.abspath(os.path.expanduser(what))
        if path.encode("utf-8", "replace").decode() != path:
            raise InvalidArgument.of("path", f"{path} is no UTF-8: name a folder around it, or send it with `upload`.")
        return path
    if all(source.id != what for source in client.sources()):
        raise NotFound(f"Nothing is called {what}: no ingestion, no source, and no path here.")
    return f"sources/{what}"
