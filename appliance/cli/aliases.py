"""`appliance models alias`: names that lead to models by weight."""

from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, Yes, command, complete_model, confirm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.types import Alias, Target

alias = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Names that lead to models: canary, A/B, shadow.")
Name = Annotated[str, typer.Argument(metavar="ALIAS", help="An alias; ask for it as for a model.")]


def add_to(models: typer.Typer) -> None:
    models.add_typer(alias, name="alias")


@command(alias, "list")
def list_aliases(session: Session) -> None:
    """List aliases, and how their targets fare."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.aliases())
    if session.json:
        return output.show_json({"aliases": found})
    return show_table(found)


@command(alias, "set")
def set_alias(
    session: Session,
    name: Name,
    targets: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[:WEIGHT]...", help="The stable one first.", autocompletion=complete_model),
    ],
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            "--shadow", metavar="MODEL", help="Asked too, its answers thrown away.", autocompletion=complete_model
        ),
    ] = None,
) -> None:
    """Make an alias, or give it other targets: `alias set assistant qwen3:9 qwen3-new:1`."""
    chosen = [_target(item) for item in targets] + [_target(f"{item}:0", shadow=True) for item in shadow or ()]
    with session.connect() as client:
        _show_one(client.set_alias(name, chosen), session.json)


@command(alias)
def promote(
    session: Session,
    name: Name,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The target to keep.", autocompletion=complete_model)],
) -> None:
    """Make one of the targets the only one."""
    with session.connect() as client:
        _show_one(client.promote_alias(name, model), session.json)


@command(alias)
def rollback(session: Session, name: Name) -> None:
    """Put back the targets that were before the last change."""
    with session.connect() as client:
        _show_one(client.rollback_alias(name), session.json)


@command(alias)
def delete(session: Session, name: Name, yes: Yes = False) -> None:
    """Delete an alias; its models stay."""
    from appliance.cli import output

    confirm(f"Delete the alias {output.printable(name)}?", yes)
    with session.connect() as client:
        client.delete_alias(name)
    if session.json:
        return output.show_json({"deleted": name})
    return output.show(f"Deleted {name}.")


def show_table(found: "Iterable[Alias]") -> None:
    from appliance.cli import output

    rows = [
        (
            alias.name if index == 0 else "",
            target.model,
            "shadow" if target.shadow else str(target.weight),
            str(tally.requests),
            str(tally.errors),
            f"{tally.output_tokens / tally.seconds:.1f}" if tally.seconds else "",
            alias.detail if index == 0 else "",
        )
        for alias in found
        for index, (target, tally) in enumerate(zip(alias.targets, alias.tallies, strict=True))
    ]
    output.show_table(("alias", "model", "#weight", "#requests", "#errors", "#tokens/s", "detail"), rows)


def _target(text: str, shadow: bool = False) -> "Target":
    """'qwen3:9' as a target. Raises InvalidArgument."""
    from appliance.errors import InvalidArgument
    from appliance.types import Target

    model, _, weight = text.partition(":")
    if weight and not weight.isdecimal():
        raise InvalidArgument.of("targets", f"the weight of {model} must be a whole number, not {weight!r}.")
    return Target(model, int(weight or 1), shadow)


def _show_one(found: "Alias", as_json: bool) -> None:
    from appliance.cli import output

    return output.show_json(found) if as_json else show_table([found])
