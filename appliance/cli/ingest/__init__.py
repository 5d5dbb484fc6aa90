"""`appliance ingest`: documents from sticks, shares, folders and this machine into a collection."""

import typer

from appliance.cli.ingest import quarantine, runs, signing, sources, taking, uploads
from appliance.cli.ingest.group import ingest

__all__ = ["add_to", "quarantine", "runs", "signing", "sources", "taking", "uploads"]


def add_to(app: typer.Typer) -> None:
    app.add_typer(ingest, name="ingest")
