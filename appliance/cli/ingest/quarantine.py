"""`appliance ingest quarantine`: files that were refused, and what to do with them."""

from typing import Annotated

import typer

from appliance.cli.ingest.group import ReaderOption, ingest
from appliance.cli.ingest.taking import NoWait, finish
from appliance.cli.session import Session, Yes, command, confirm

quarantine = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Files that were refused: list, release, purge."
)
ingest.add_typer(quarantine, name="quarantine")


@command(quarantine, "list")
def list_files(
    session: Session,
    all_: Annotated[
        bool, typer.Option("--all", help="Also older refusals of the same bytes of the same name.")
    ] = False,
) -> None:
    """List refused files of all ingestions, newest first, each once. Those whose bytes are kept can be released."""
    from appliance.cli import output
    from appliance.cli.ingest.shown import short

    with session.connect() as client:
        every = list(client.quarantine())
    once = {(file.path, file.sha256): file for file in reversed(every)}
    found = every if all_ else [file for file in every if once[file.path, file.sha256] is file]
    if session.json:
        return output.show_json({"files": found})
    rows = (
        (
            f"{short(file.id.rpartition('-')[0])}-{file.id.rpartition('-')[2]}",
            file.path,
            ("kept" if file.kept else "not kept") + (", released" if file.released else ""),
            file.reason,
            f"{file.detail} {file.remedy}".strip(),
        )
        for file in found
    )
    output.show_table(("id", "file", "bytes", "reason", "why, and what to do"), rows)
    if older := len(every) - len(found):
        output.note(f"{older:,} older refusal{'s' * (older != 1)} of the same: --all")
    return None


@command(quarantine)
def release(
    session: Session,
    files: Annotated[list[str], typer.Argument(metavar="ID...", help="Files of one ingestion, by id.")],
    reader: ReaderOption = [],  # noqa: B006 - typer copies it
    no_wait: NoWait = False,
) -> None:
    """Send refused files on their way again, as a new ingestion: after an update, or for other readers."""
    with session.connect() as client:
        finish(session, client, client.release_files(files, reader), no_wait)


@command(quarantine)
def purge(
    session: Session,
    files: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Files by id.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Those of every ingestion.")] = False,
    yes: Yes = False,
) -> None:
    """Destroy the kept bytes of refused files. What became of them stays said."""
    from appliance.cli import output

    if bool(files) == all_:
        raise typer.BadParameter("give the ID of each file, or --all")
    what = "all refused files" if all_ else f"{len(files or ())} refused file{'s' * (len(files or ()) != 1)}"
    confirm(f"Destroy the kept bytes of {what}? They cannot be released afterwards.", yes)
    with session.connect() as client:
        purged = client.purge_files(files or (), all_=all_)
    if session.json:
        return output.show_json({"purged": purged})
    return output.show(f"Destroyed the bytes of {purged} file{'s' * (purged != 1)}.")
