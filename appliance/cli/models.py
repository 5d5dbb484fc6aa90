"""`appliance models`: what is loaded, from where, and what it needs."""

import os
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import aliases
from appliance.cli.session import Session, Yes, command, complete_model, confirm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.types import MemoryPlan, ModelStatus

models = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Models: import, load, quantize, pin, route.")
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name.", autocompletion=complete_model)]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Start the job and leave.")]
WITH_PLAN = {"chat", "pointer", "adapter"}


class OnnxKind(Enum):
    """What an ONNX model is for; the file does not say."""

    EMBEDDING = "embedding"
    RERANKER = "reranker"


def add_to(app: typer.Typer) -> None:
    aliases.add_to(models)
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
    path: Annotated[str, typer.Argument(help="A GGUF file of the box, or a folder: every model in it.")],
    base: Annotated[
        str, typer.Option("--base", help="The model that an adapter belongs to.", autocompletion=complete_model)
    ] = "",
    kind: Annotated[OnnxKind | None, typer.Option("--kind", help="What a folder with an ONNX model is.")] = None,
    no_wait: NoWait = False,
) -> None:
    """Check model files and take them into the store; `models delete` undoes it. Ctrl-C cancels."""
    from appliance.cli import output, progress
    from appliance.types import ModelKind

    with session.connect() as client:
        chosen = ModelKind(kind.value) if kind else None
        job = client.import_model(os.path.abspath(os.path.expanduser(path)), base, chosen)
        job = job if no_wait else progress.wait(client, job)
        files = list(client.imported_files(job.id))
        if len(files) < 2:
            progress.raise_failure(job)
    if session.json:
        output.show_json({"job": job, "files": files})
    else:
        rows = ((file.path, file.model or "refused", file.detail) for file in files)
        output.show_table(("file", "model", "reason"), rows)
        output.show(f"{job.name} ({job.subject}): {job.state.value}.")
    progress.raise_failure(job)


@command(models)
def quantize(
    session: Session,
    model: ModelName,
    storage: Annotated[str, typer.Option("--type", help="Q4_K_M or Q8_0.")] = "Q4_K_M",
    name: Annotated[str, typer.Option("--name", help="The new model's; else the model's with the type.")] = "",
    no_wait: NoWait = False,
) -> None:
    """Write an f16, bf16 or f32 model anew in fewer bits, as a model of its own. Ctrl-C cancels."""
    from appliance.cli import output, progress

    with session.connect() as client:
        job = client.quantize_model(model, storage, name)
        if not no_wait:
            job = progress.wait(client, job)
            progress.raise_failure(job)
    if session.json:
        return output.show_json({"job": job})
    return output.show(f"{job.name} ({job.subject}): {job.state.value}. {job.note}")


@command(models)
def load(session: Session, model: ModelName) -> None:
    """Load a model now; else its first use does. Says first what memory it takes, and which idle models make room."""
    from appliance.cli import output

    with session.connect() as client:
        if not session.json and client.model(model).kind.value in WITH_PLAN:
            output.note(plan_text(client.plan_model(model)))
        _show_one(client.load_model(model), session.json)


@command(models)
def plan(session: Session, model: ModelName) -> None:
    """Show what loading a model would take, and load nothing."""
    from appliance.cli import output

    with session.connect() as client:
        found = client.plan_model(model)
    if session.json:
        return output.show_json(found)
    return output.show(plan_text(found))


@command(models)
def pin(session: Session, model: ModelName) -> None:
    """Keep a model loaded once it is, whatever else needs the memory."""
    with session.connect() as client:
        _show_one(client.pin_model(model), session.json)


@command(models)
def unpin(session: Session, model: ModelName) -> None:
    """Let a model be unloaded again when it is idle."""
    with session.connect() as client:
        _show_one(client.pin_model(model, False), session.json)


@command(models)
def top(session: Session) -> None:
    """Watch the engines of loaded models. With --json one line a second. Ctrl-C ends it."""
    from appliance.cli import engines

    engines.watch(session)


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
            "pinned" if model.pinned else "",
            model.base or model.source,
            model.detail,
        )
        for model in found
    )
    headings = (
        "model",
        "kind",
        "state",
        "architecture",
        "#file",
        "#memory",
        "#context",
        "pin",
        "source or base",
        "detail",
    )
    output.show_table(headings, rows)


def plan_text(plan: "MemoryPlan") -> str:
    """'qwen3-14b uses 9.8 of 24.0 GiB', and what stands in the way."""
    from appliance.cli.output import bytes_text

    if plan.problem:
        return plan.problem
    text = f"{plan.model} uses {bytes_text(plan.needed_bytes)} of {bytes_text(plan.total_bytes)}"
    text += f", with {plan.context_tokens} tokens of context."
    return f"{text} To make room, {', '.join(plan.unloads)} will be unloaded." if plan.unloads else text


def _show_one(model: "ModelStatus", as_json: bool) -> None:
    from appliance.cli import output

    return output.show_json(model) if as_json else show_table([model])
