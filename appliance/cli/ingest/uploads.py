"""`appliance ingest upload` and `uploads`: files of this machine, and those that are on their way to the box."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.ingest.group import ReaderOption, ingest, raise_failure
from appliance.cli.ingest.taking import NoWait, ended, show_end
from appliance.cli.session import CollectionOption, Session, command

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.types import FileOutcome, Ingestion

uploads = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Files that are on their way to the box: list, cancel."
)
ingest.add_typer(uploads, name="uploads")
FilesHere = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Files of this machine, or folders: all below.", exists=True, readable=True),
]


@command(ingest)
def upload(
    session: Session,
    files: FilesHere,
    collection: CollectionOption = "default",
    reader: ReaderOption = [],  # noqa: B006 - typer copies it
    resume: Annotated[str, typer.Option("--resume", metavar="UPLOAD", help="Go on with one that broke off.")] = "",
    no_wait: NoWait = False,
) -> None:
    """Send files from this machine, and take them in. One that breaks off goes on where the box has it durably."""
    if resume and (len(files) != 1 or files[0].is_dir()):
        raise typer.BadParameter("--resume takes the one FILE that it was")
    from appliance.cli import output
    from appliance.errors import LeftOut, NotFound, UploadTooLarge

    sent, refused, left_out = [], list[UploadTooLarge](), list[Path]()
    with session.connect() as client:
        for file, name in _named(files, left_out):
            try:
                begin = partial(client.create_upload, name, collection, reader)
                sent.append(ended(session, client, _send(session, client, file, begin, resume), no_wait))
            except UploadTooLarge as error:
                output.note(f"{file} is not taken: {error}")
                refused.append(error)
                continue
            if not session.json:
                _show_sent(session, name, *sent[-1], alone=files == [file])
        if session.json:
            output.show_json({"uploads": [{"ingestion": ingestion, "failed": failed} for ingestion, failed in sent]})
        if refused:
            raise refused[0]
        if not sent:
            raise NotFound(f"There is no file in {files[0]}.")
        raise_failure(client, *(ingestion for ingestion, _ in sent))
        if left_out:
            raise LeftOut(f"Not all was sent: {len(left_out)} left out, links, pipes or devices.")


@command(uploads, "list")
def list_uploads(session: Session) -> None:
    """List files that are on their way, of every user, the oldest first. One without news for a day is dropped."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.uploads())
    if session.json:
        return output.show_json({"uploads": found})
    rows = (
        (
            one.id,
            one.path or "cannot be read",
            output.bytes_text(one.size_bytes),
            one.collection,
            one.user,
            output.time_text(one.create_time),
            output.time_text(one.update_time),
        )
        for one in found
    )
    return output.show_table(("upload", "file", "#here", "collection", "by", "begun", "last bytes"), rows)


@command(uploads)
def cancel(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="UPLOAD...", help="Uploads, as the list names them.")],
) -> None:
    """Destroy what came of files that are on their way, whoever sends them."""
    from appliance.cli import output

    with session.connect() as client:
        for name in names:
            client.cancel_upload(name)
    if session.json:
        return output.show_json({"cancelled": names})
    return output.show(f"Cancelled {len(names)} upload{'s' * (len(names) != 1)}: nothing of it is kept.")


def _show_sent(
    session: Session, name: str, ingestion: "Ingestion", failed: "list[FileOutcome]", *, alone: bool
) -> None:
    """What became of a file; of one of several that is done in a line, with why it was refused if it was."""
    from appliance.cli import output
    from appliance.cli.ingest import shown
    from appliance.types import IngestionState

    if alone or ingestion.state is not IngestionState.SUCCEEDED:
        return show_end(session, ingestion, failed)
    output.show(f"{name}: {shown.headline(ingestion)}")
    return shown.show_failed(failed, session.line(*shown.every_file(ingestion))) if failed else None


def _named(files: list[Path], left_out: list[Path]) -> Iterator[tuple[Path, str]]:
    """Each file, and what the box shall call it: of a folder with that folder's name before it. What there is no file,
    also a link to one or to a folder, is said and noted in `left_out`.
    """
    from appliance.cli import output

    for given in files:
        if not given.is_dir():
            yield given, _text(given.name)
            continue
        top = given.resolve()
        for place, folders, names in os.walk(top, onerror=_unreadable):
            folders.sort()
            links = {name for name in folders if Path(place, name).is_symlink()}
            for path in (Path(place, name) for name in sorted({*names, *links})):
                if path.is_file() and not path.is_symlink():
                    yield path, _text(path.relative_to(top.parent).as_posix())
                else:
                    output.note(f"{path} is left out: it is a link, a pipe or a device.")
                    left_out.append(path)


def _unreadable(error: OSError) -> None:
    from appliance.errors import NotFound

    raise NotFound(f"{error.filename} cannot be read: {error.strerror}.")


def _text(name: str) -> str:
    """With what is no UTF-8 in it escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _send(session: Session, client: "Client", file: Path, begin: Callable[..., str], resume: str) -> "Ingestion":
    """The ingestion of a file that was sent whole, by the upload `resume` or one that `begin` makes (`size_bytes`).

    Where it breaks off, says how to go on.
    """
    from appliance.cli import output, progress
    from appliance.errors import ApplianceError, NotFound

    upload = ""
    try:
        with open(file, "rb") as opened:
            size_bytes = os.fstat(opened.fileno()).st_size
            upload = (resume or begin(size_bytes=size_bytes)).removeprefix("uploads/")
            with progress.sending(file.name, size_bytes) as sent:
                return client.upload(upload, opened, sent)
    except (ApplianceError, OSError, KeyboardInterrupt) as error:
        if upload and (not isinstance(error, ApplianceError) or error.retryable):
            output.note(f"It broke off. Go on: {session.line('ingest', 'upload', str(file), '--resume', upload)}")
            output.note(f"Drop it: {session.line('ingest', 'uploads', 'cancel', upload)}")
        if isinstance(error, OSError):
            raise NotFound(f"{file} cannot be read: {error.strerror}.") from None
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(130) from None
        raise
