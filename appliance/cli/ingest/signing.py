"""`appliance ingest keygen` and `sign`: sticks that a box knows to be whole and yours. No box is asked."""

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.ingest.group import ingest
from appliance.cli.session import Session, command


@command(ingest)
def keygen(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the private key; keep it apart.")],
) -> None:
    """Make a key that signs sticks, and print its public half, which a box is told to trust."""
    from appliance.cli import output
    from appliance.ingest import signing

    public = signing.make_key(file)
    if session.json:
        return output.show_json({"file": str(file), "public_key": public})
    output.show(public)
    return output.note(
        f"The private key is in {file}. On the box: {session.line('ingest', 'sources', 'trust', 'NAME', public)}"
    )


@command(ingest)
def sign(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="A stick's root, or a folder that is copied onto one.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The private key, as keygen wrote it.")],
) -> None:
    """List every file below a folder with its hash, and sign the list. An older signature is replaced."""
    import asyncio

    from appliance.cli import output
    from appliance.ingest import signing

    count = asyncio.run(signing.sign_folder(folder, key))
    if session.json:
        return output.show_json({"files": count, "public_key": signing.public_key(key)})
    return output.show(f"Signed {count} file{'s' * (count != 1)}: {folder / signing.MANIFEST}.")
