"""`appliance serve`: become the daemon."""

import os
import sys

import typer


def add_to(app: typer.Typer) -> None:
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command("serve", add_help_option=False, context_settings=settings)(serve)


def serve(context: typer.Context) -> None:
    """Run the daemon in this process. Its options are the daemon's: `appliance serve --help`."""
    data_dir = context.find_root().params.get("data_dir")
    before = ["--data-dir", str(data_dir)] if data_dir else []
    os.execv(sys.executable, [sys.executable, "-m", "appliance.daemon", *before, *context.args])  # noqa: S606
