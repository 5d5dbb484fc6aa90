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
def list_files(session: Session) -> None:
    """List refused files of all ingestions, newest first."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.quarantine())
    if session.json:
        return output.show_json({"files": found})
    rows = (
        (
            file.id,
            file.path,
            file.reason,
            f"{file.detail} {file.remedy}".strip(),
            file.ingestion.removeprefix("ingestions/"),
            "released" if file.released else "",
            output.time_text(file.time),
        )
        for file in found
    )
    return output.show_table(("id", "file", "reason", "why, and what to do", "ingestion", "", "refused"), rows)


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
