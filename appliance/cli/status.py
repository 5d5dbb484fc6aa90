"""`appliance status`: the box at a glance."""

import typer

from appliance.cli.session import Session, command


def add_to(app: typer.Typer) -> None:
    command(app)(status)


def status(session: Session) -> None:
    """Show the box at a glance."""
    from appliance.cli import output

    with session.connect() as client:
        box = client.status()
    if session.json:
        return output.show_json(box)
    used, total = output.bytes_text(box.memory_used_bytes), output.bytes_text(box.memory_total_bytes)
    output.show_fields(
        [
            ("health", box.severity.name.lower()),
            ("version", box.version),
            ("up", output.duration_text(box.uptime_seconds)),
            ("listens on", box.listen_address),
            ("data directory", box.data_directory),
            ("models", str(box.model_count)),
            ("collections", str(box.collection_count)),
            ("documents", str(box.document_count)),
            ("memory", f"{used} of {total}"),
            ("disk free", output.bytes_text(box.disk_free_bytes)),
            ("you are", box.principal),
        ]
    )
    return None
