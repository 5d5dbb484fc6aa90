"""`appliance ingest sources`: sticks that are plugged in, shares and folders that are watched."""

from typing import Annotated

import typer

from appliance.cli.ingest.group import ReaderOption, ingest
from appliance.cli.session import CollectionOption, Session, command

sources = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Where documents may come from: list, watch, allow, trust."
)
ingest.add_typer(sources, name="sources")
SourceName = Annotated[str, typer.Argument(metavar="SOURCE", help="A source, as the list names it.")]
Serial = Annotated[str, typer.Argument(metavar="SERIAL", help="A stick's serial number, as the list names it.")]
Signer = Annotated[str, typer.Argument(metavar="NAME", help="What people call who signs.")]


@command(sources, "list")
def list_sources(session: Session) -> None:
    """List sticks that are plugged in, and shares and folders that are watched."""
    from appliance.cli import output
    from appliance.cli.ingest.shown import place

    with session.connect() as client:
        found, (serials, signers) = client.sources(), client.source_rules()
    if session.json:
        return output.show_json({"sources": found, "allowed_serials": serials, "signers": signers})
    rows = [
        (
            source.id,
            source.state.value,
            place(source.provenance),
            source.filesystem,
            output.bytes_text(source.size_bytes) if source.size_bytes else "",
            source.watch.collection if source.watch else "",
            source.problem,
        )
        for source in found
    ]
    if found:
        output.show_table(("source", "state", "what", "system", "#size", "watched for", "problem"), rows)
    else:
        output.show("No stick is plugged in, and no folder or share is watched.")
    if serials or signers:
        output.show()
        allowed = (("allowed stick", serial) for serial in serials)
        output.show_fields([*allowed, *(("trusted signer", f"{name}  {key}") for name, key in signers.items())])
    return None


@command(sources)
def watch(
    session: Session,
    place: Annotated[
        str, typer.Argument(metavar="PATH|SOURCE", help="A folder in the box's `ingest_roots`, or a stick's source.")
    ],
    collection: CollectionOption = "default",
    reader: ReaderOption = [],  # noqa: B006 - typer copies it
    share: Annotated[bool, typer.Option("--share", help="It is a mount of another machine's folder.")] = False,
    approve: Annotated[bool, typer.Option("--approve", help="Take files in without an operator's word.")] = False,
    settle_polls: Annotated[
        int,
        typer.Option(
            "--settle-polls",
            min=0,
            help="How often a file must look the same before it is whole; 0: only by its name or a signed manifest.",
        ),
    ] = 3,
) -> None:
    """Take whole files from a folder, a share or a stick from now on. Again: with these settings."""
    from appliance.cli import output
    from appliance.cli.ingest.taking import source_of
    from appliance.types import EVERYONE, Watch

    wanted = Watch(collection, frozenset(reader or (EVERYONE,)), approve, settle_polls)
    with session.connect() as client:
        found = client.watch_source(source_of(client, place), wanted, share=share)
    if session.json:
        return output.show_json(found)
    if approve:
        return output.show(f"{found.name} is watched: files for {collection} are taken in.")
    output.show(f"{found.name} is watched: files for {collection} wait until somebody approves them.")
    output.show(f"See what waits: {session.line('ingest', 'list')}")
    return output.show(f"Take it in:     {session.line('ingest', 'start')} INGESTION")


@command(sources)
def unwatch(session: Session, source: SourceName) -> None:
    """Watch a folder or a share no more."""
    from appliance.cli import output

    with session.connect() as client:
        client.unwatch_source(source)
    if session.json:
        return output.show_json({"unwatched": source})
    return output.show(f"{source} is watched no more.")


@command(sources)
def allow(session: Session, serial: Serial) -> None:
    """Let sticks of a serial number in."""
    _set_allowed(session, serial, allowed=True)


@command(sources)
def forbid(session: Session, serial: Serial) -> None:
    """Let sticks of a serial number in no longer."""
    _set_allowed(session, serial, allowed=False)


@command(sources)
def trust(
    session: Session,
    name: Signer,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its public key, as `ingest keygen` prints it.")],
) -> None:
    """Trust the manifests that a key signs."""
    _set_trust(session, name, key)


@command(sources)
def distrust(session: Session, name: Signer) -> None:
    """Trust a name's manifests no more."""
    _set_trust(session, name, "")


def _set_allowed(session: Session, serial: str, *, allowed: bool) -> None:
    from appliance.cli import output

    with session.connect() as client:
        is_there = any(source.provenance.serial == serial for source in client.sources())
        client.allow_device(serial, allowed=allowed)
    if session.json:
        return output.show_json({"serial": serial, "allowed": allowed, "plugged_in": is_there})
    output.show(f"Sticks of serial number {serial} {'may come in' if allowed else 'are refused'} from now on.")
    if allowed and not is_there:
        listed = session.line("ingest", "sources", "list")
        output.note(f"No stick of that number is plugged in now; if it should be, compare it: {listed}")
    return None


def _set_trust(session: Session, name: str, key: str) -> None:
    from appliance.cli import output

    with session.connect() as client:
        client.trust_signer(name, key)
    if session.json:
        return output.show_json({"signer": name, "trusted": bool(key)})
    return output.show(f"Manifests that {name} signs are {'trusted' if key else 'not trusted'} from now on.")
