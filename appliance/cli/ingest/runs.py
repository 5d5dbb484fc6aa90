"""`appliance ingest list`, `show`, `watch`, `cancel`, `resume` and `report`: ingestions that are there."""

import os
import tempfile
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.ingest.group import IngestionName, ingest
from appliance.cli.ingest.taking import finish, show_ways
from appliance.cli.session import Session, command


class Form(Enum):
    JSON = "json"
    CSV = "csv"
    HTML = "html"


Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file; else stdout.")]


@command(ingest, "list")
def list_ingestions(session: Session) -> None:
    """List ingestions, newest first."""
    from appliance.cli import output
    from appliance.cli.ingest import shown

    with session.connect() as client:
        found = list(client.ingestions())
    if session.json:
        return output.show_json({"ingestions": found})
    return shown.show_ingestions(found)


@command(ingest)
def show(
    session: Session,
    ingestion: IngestionName,
    all_: Annotated[bool, typer.Option("--all", help="Every file, and not only those that failed.")] = False,
) -> None:
    """Show how an ingestion stands, and its files that failed."""
    from appliance.cli import output
    from appliance.cli.ingest import shown
    from appliance.types import FileState

    with session.connect() as client:
        found = client.ingestion(ingestion)
        files = list(client.files(found.id, () if all_ else (FileState.QUARANTINED, FileState.LEFT)))
    if session.json:
        return output.show_json({"ingestion": found, "files": files})
    shown.show_one(found)
    if files:
        output.show()
        if all_:
            shown.show_files(files)
        else:
            shown.show_failed(files, session.line(*shown.every_file(found)))
    return show_ways(session, found)


@command(ingest)
def watch(session: Session, ingestion: IngestionName) -> None:
    """Follow an ingestion until it has ended, or waits for a word. Ctrl-C leaves it at work."""
    with session.connect() as client:
        finish(session, client, client.ingestion(ingestion))


@command(ingest)
def cancel(session: Session, ingestion: IngestionName) -> None:
    """End an ingestion. What was committed stays; copies of the rest are destroyed."""
    from appliance.cli import output

    with session.connect() as client:
        found = client.cancel_ingestion(ingestion)
    if session.json:
        return output.show_json({"ingestion": found})
    return output.show(f"{found.name} is {found.state.value}. What was committed stays.")


@command(ingest)
def resume(session: Session, ingestion: IngestionName) -> None:
    """Go on with an ingestion that was interrupted or failed."""
    with session.connect() as client:
        finish(session, client, client.resume_ingestion(ingestion))


@command(ingest)
def report(
    session: Session,
    ingestion: IngestionName,
    form: Annotated[Form, typer.Option("--format", help="How it is written.")] = Form.JSON,
    file: Output = None,
    force: Annotated[bool, typer.Option("--force", help="Also over a file that is there.")] = False,
) -> None:
    """Write the whole story of an ingestion: each file with its outcome, reason and remedy."""
    from appliance.cli import output

    with session.connect() as client, client.report(ingestion, form.value) as pieces:
        if file is None:
            stdout = typer.get_binary_stream("stdout")
            for piece in pieces:
                stdout.write(piece)
            return None
        size = write_new(file, pieces, force)
    if session.json:
        return output.show_json({"file": str(file), "size_bytes": size})
    return output.show(f"Wrote {file}, {output.bytes_text(size)}.")


def write_new(file: Path, pieces: Iterable[bytes], force: bool) -> int:
    """A file that is there whole or not at all; how many bytes it has. Also on FAT, which has no hard links.

    Raises AlreadyExists, DiskFull, InvalidArgument.
    """
    import errno

    from appliance.errors import AlreadyExists, DiskFull, InvalidArgument

    if not force and os.path.lexists(file):
        raise AlreadyExists(f"{file} is there already; --force writes over it.")
    try:
        fd, scratch = tempfile.mkstemp(prefix=".report-", dir=file.parent)
    except OSError as error:
        raise InvalidArgument.of("output", f"{file} cannot be written: {error.strerror}.") from None
    try:
        with open(fd, "wb") as opened:
            for piece in pieces:
                opened.write(piece)
            opened.flush()
            os.fsync(opened.fileno())
            size = opened.tell()
        if not force:
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # nobody else's file from here on
        os.replace(scratch, file)
    except OSError as error:
        os.unlink(scratch)
        if error.errno == errno.EEXIST:
            raise AlreadyExists(f"{file} is there already; --force writes over it.") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{file} cannot be written: the disk is full.") from None
        raise InvalidArgument.of("output", f"{file} cannot be written: {error.strerror}.") from None
    except BaseException:
        os.unlink(scratch)
        raise
    return size
