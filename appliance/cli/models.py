"""`appliance models`: what is loaded, from where, and what it needs."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, Yes, command, complete_model, confirm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.types import ModelStatus

models = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, import, load, unload and delete models.")
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name.", autocompletion=complete_model)]


def add_to(app: typer.Typer) -> None:
    app.add_typer(models, name="models")


@command(models, "list")
def list_models(session: Session) -> None:
    """List models: what is loaded, and from where."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.models())
    if session.json:
        return output.show_json({"models": found})
    return show_table(found)


@command(models, "import")
def import_model(
    session: Session,
    path: Annotated[str, typer.Argument(help="A GGUF file of the box.")],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start the job and leave.")] = False,
) -> None:
    """Check a model file and take it into the store. Ctrl-C cancels."""
    from appliance.cli import output, progress

    with session.connect() as client:
        job = client.import_model(os.path.abspath(os.path.expanduser(path)))
        if not no_wait:
            job = progress.wait(client, job)
            progress.raise_failure(job)
    if session.json:
        return output.show_json({"job": job})
    return output.show(f"{job.name} ({job.subject}): {job.state.value}.")


@command(models)
def load(session: Session, model: ModelName) -> None:
    """Load a model now; else its first use does."""
    with session.connect() as client:
        _show_one(client.load_model(model), session.json)


@command(models)
def unload(session: Session, model: ModelName) -> None:
    """End a model's worker; all its memory comes back."""
    with session.connect() as client:
        _show_one(client.unload_model(model), session.json)


@command(models)
def delete(session: Session, model: ModelName, yes: Yes = False) -> None:
    """Delete a model's file from the store."""
    from appliance.cli import output

    confirm(f"Delete the model {output.printable(model)}?", yes)
    with session.connect() as client:
        client.delete_model(model)
    if session.json:
        return output.show_json({"deleted": model})
    return output.show(f"Deleted {model}.")


def show_table(found: "Iterable[ModelStatus]") -> None:
    from appliance.cli import output

    rows = (
        (
            model.name,
            model.kind.value,
            model.state.value,
            model.architecture,
            output.bytes_text(model.size_bytes),
            output.bytes_text(model.memory_bytes) if model.memory_bytes else "",
            str(model.context_tokens or ""),
            model.source,
            model.detail,
        )
        for model in found
    )
    headings = ("model", "kind", "state", "architecture", "#file", "#memory", "#context", "source", "detail")
    output.show_table(headings, rows)


def _show_one(model: "ModelStatus", as_json: bool) -> None:
    from appliance.cli import output

    return output.show_json(model) if as_json else show_table([model])
