"""`appliance knowledge`: collections, their keys, and that they are whole."""

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.evaluate import evaluate
from appliance.cli.session import (
    CollectionOption,
    Session,
    Yes,
    command,
    complete_collection,
    complete_model,
    confirm,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from appliance.client import Client
    from appliance.types import Collection, Job, ShredProof

knowledge = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Collections: keys, checks, copies.")
CollectionName = Annotated[
    str, typer.Argument(metavar="COLLECTION", help="A collection.", autocompletion=complete_collection)
]
BoxPath = Annotated[str, typer.Argument(metavar="PATH", help="A path of the box.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Start the job and leave.")]
PassphraseFile = Annotated[
    str, typer.Option("--passphrase-file", help="A file with the passphrase, - for stdin; else it is asked for.")
]


def add_to(app: typer.Typer) -> None:
    command(knowledge)(evaluate)
    app.add_typer(knowledge, name="knowledge")


@command(knowledge, "list")
def list_collections(session: Session) -> None:
    """List the collections, with what you may read in them."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.collections())
    return output.show_json({"collections": found}) if session.json else _show(found)


@command(knowledge)
def create(session: Session, collection: CollectionName) -> None:
    """Make an empty collection."""
    from appliance.cli import output

    with session.connect() as client:
        made = client.create_collection(collection)
    return output.show_json(made) if session.json else _show([made])


@command(knowledge)
def compact(session: Session, collection: CollectionName = "", option: CollectionOption = "default") -> None:
    """Drop deleted documents from disk.

    What was written since the last time is sealed into a segment.
    """
    from appliance.cli import output

    with session.connect() as client:
        found = client.compact(collection or option)
    return output.show_json(found) if session.json else _show([found])


@command(knowledge)
def shred(session: Session, collection: CollectionName, yes: Yes = False) -> None:
    """Destroy a collection: first its keys, then its files.

    No copy of its files opens afterwards, but for an export, which has a passphrase of its own.
    """
    from appliance.cli import output

    confirm(f"Destroy the collection {output.printable(collection)} and every document in it?", yes)
    with session.connect() as client:
        proof = client.delete_collection(collection)
    if session.json:
        return output.show_json(_as_document(proof))
    output.show(f"Destroyed {collection}.\n")
    return _show_proof(proof)


@command(knowledge)
def verify(
    session: Session,
    collection: CollectionName = "",
    option: CollectionOption = "default",
    no_wait: NoWait = False,
) -> None:
    """Read and check every byte of a collection."""
    from appliance.cli import output, progress
    from appliance.errors import StoreDamaged
    from appliance.types import JobState

    collection = collection or option
    with session.connect() as client:
        job = client.verify_collection(collection)
        if no_wait:
            return _show_started(job, session)
        ended = progress.wait(client, job)
        faults = client.faults(collection) if ended.error_reason == StoreDamaged.reason else ()
    if session.json:
        output.show_json({"job": ended, "faults": faults})
    elif faults:
        output.show_table(("file", "damage"), ((fault.file, fault.problem) for fault in faults))
    elif ended.state is JobState.SUCCEEDED:
        output.show(f"{collection}: {ended.done} {ended.unit} read, every byte is what was written.")
    return progress.raise_failure(ended)


@command(knowledge)
def reembed(
    session: Session,
    collection: CollectionName = "",
    option: CollectionOption = "default",
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="An embedder; else the built-in one.", autocompletion=complete_model),
    ] = "",
    no_wait: NoWait = False,
) -> None:
    """Make a collection's vectors anew by another embedder, while it serves."""
    _run(session, lambda client: client.reembed_collection(collection or option, model), no_wait)


@command(knowledge, "rotate-keys")
def rotate_keys(session: Session, yes: Yes = False) -> None:
    """Replace your tenant's key and the key of each of its collections.

    No data is rewritten. Backups made before open no more: make new ones afterwards.
    """
    from appliance.cli import output

    confirm("Earlier backups of your collections will not open any more. Replace the keys?", yes)
    with session.connect() as client:
        count = client.rotate_keys()
    if session.json:
        return output.show_json({"collections": count})
    return output.show(f"New keys for {count} collection{'s' * (count != 1)}.")


@command(knowledge, "export")
def export_(
    session: Session,
    collection: CollectionName,
    path: BoxPath,
    passphrase_file: PassphraseFile = "",
    no_wait: NoWait = False,
) -> None:
    """Write a collection as one file that a passphrase opens, on any box."""
    secret = _passphrase(passphrase_file, twice=True)
    _run(session, lambda client: client.export_collection(collection, _absolute(path), secret), no_wait)


@command(knowledge, "import")
def import_(
    session: Session,
    collection: CollectionName,
    path: BoxPath,
    passphrase_file: PassphraseFile = "",
    no_wait: NoWait = False,
) -> None:
    """Make a collection of an exported file."""
    secret = _passphrase(passphrase_file, twice=False)
    _run(session, lambda client: client.import_collection(collection, _absolute(path), secret), no_wait)


@command(knowledge)
def backup(session: Session, collection: CollectionName, path: BoxPath, no_wait: NoWait = False) -> None:
    """Copy a collection's encrypted files into a folder, while it serves; this box's keys open the copy."""
    _run(session, lambda client: client.backup_collection(collection, _absolute(path)), no_wait)


@command(knowledge)
def restore(
    session: Session,
    collection: CollectionName,
    path: BoxPath,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where it is there and sound: what was written since is lost.")
    ] = False,
    no_wait: NoWait = False,
) -> None:
    """Make a collection of a backup, or put it in the place of a damaged one."""
    _run(session, lambda client: client.restore_collection(collection, _absolute(path), replace=replace), no_wait)


@command(knowledge, "accept-rollback")
def accept_rollback(session: Session, collection: CollectionName, yes: Yes = False) -> None:
    """Go on with an older state of a collection that somebody put back on the disk."""
    from appliance.cli import output

    confirm(f"Take what the disk holds of {output.printable(collection)} for its newest state?", yes)
    with session.connect() as client:
        found = client.accept_rollback(collection)
    return output.show_json(found) if session.json else _show([found])


@command(knowledge, "shred-tenant")
def shred_tenant(
    session: Session,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The name of your own tenant.")],
) -> None:
    """Destroy every collection of your tenant, and its keys; the name must be typed once more."""
    from appliance.cli import output
    from appliance.errors import Cancelled

    try:
        typed = typer.prompt(f"Every document of {output.printable(tenant)} is destroyed. Its name", err=True)
    except typer.Abort:
        typed = ""
    if typed != tenant:
        raise Cancelled("Nothing was changed: the name was not typed.")
    with session.connect() as client:
        proofs = client.shred_tenant(tenant)
    if session.json:
        return output.show_json({"proofs": [_as_document(proof) for proof in proofs]})
    for proof in proofs:
        _show_proof(proof)
    return output.show(f"Destroyed {len(proofs)} collection{'s' * (len(proofs) != 1)} and the keys of {tenant}.")


def _run(session: Session, start: "Callable[[Client], Job]", no_wait: bool) -> None:
    """Start a job; wait for its end, and fail as it did."""
    from appliance.cli import output, progress

    with session.connect() as client:
        job = start(client)
        if no_wait:
            return _show_started(job, session)
        ended = progress.wait(client, job)
    if session.json:
        output.show_json({"job": ended})
    progress.raise_failure(ended)
    if not session.json:
        output.show(
            f"{ended.kind.capitalize()} of {ended.subject.removeprefix('collections/')}: {ended.done} {ended.unit}."
        )
    return None


def _show_started(job: "Job", session: Session) -> None:
    from appliance.cli import output

    if session.json:
        return output.show_json({"job": job})
    return output.show(f"Started {job.name}. Follow it with: appliance jobs watch {job.id}")


def _as_document(proof: "ShredProof") -> dict[str, str]:
    return {"statement": proof.statement, "signature": proof.signature.hex()}


def _show_proof(proof: "ShredProof") -> None:
    from appliance.cli import output

    output.show(f"{proof.statement}\n")
    output.show(f"signature {proof.signature.hex()}", "dim")


def _passphrase(file: str, twice: bool) -> str:
    """From a file, or asked for: never an argument, which every user of the machine could read."""
    from appliance.errors import InvalidArgument

    if file:
        try:
            secret = (sys.stdin.read() if file == "-" else Path(file).read_text()).rstrip("\n")
        except OSError as error:
            raise InvalidArgument.of("passphrase-file", f"{file} cannot be read: {error.strerror}.") from None
    else:
        secret = getpass.getpass("Passphrase: ")
        if twice and getpass.getpass("Again: ") != secret:
            raise InvalidArgument.of("passphrase", "the two differ.")
    if not secret:
        raise InvalidArgument.of("passphrase", "must not be empty.")
    return secret


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _show(found: "Sequence[Collection]") -> None:
    from appliance.cli import output

    rows = (
        (
            item.id,
            str(item.document_count),
            str(item.passage_count),
            output.bytes_text(item.size_bytes),
            item.embedder or "built-in",
        )
        for item in found
    )
    output.show_table(("collection", "#documents", "#passages", "#size", "embedder"), rows)
