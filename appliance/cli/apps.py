"""`appliance apps`: keys of the applications that call the box by HTTP."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, Yes, command, complete_app_key, confirm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.types import AppKey

apps = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke keys of applications.")
Names = list[str]


class Scope(Enum):
    """`types.AppScope` by its values: `appliance --help` must not wait for the import of types."""

    INFERENCE = "inference"
    KNOWLEDGE = "knowledge"
    METRICS = "metrics"


Scopes = Annotated[list[Scope], typer.Option("--scope", "-s", help="What the key opens; may be repeated.")]
Collections = Annotated[
    Names, typer.Option("--collection", "-c", help="A collection that the key opens; none: all. May be repeated.")
]
Models = Annotated[Names, typer.Option("--model", "-m", help="A model that the key opens; none: all. May be repeated.")]
Days = Annotated[float, typer.Option("--days", min=0.001, max=366, help="How long the key is good.")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(apps, name="apps")


@command(apps)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What the application is called, such as crm.")],
    scope: Scopes = [Scope.INFERENCE],  # noqa: B006 - typer copies it
    collection: Collections = [],  # noqa: B006
    model: Models = [],  # noqa: B006
    tenant: Annotated[str, typer.Option("--tenant", help="Whose application it is; else yours.")] = "",
    days: Days = 90.0,
) -> None:
    """Make a key. It is shown once, and kept nowhere."""
    from datetime import timedelta

    from appliance.cli import output
    from appliance.types import AppScope

    scopes = [AppScope(one.value) for one in scope]
    with session.connect() as client:
        key, token = client.create_app_key(name, scopes, collection, model, tenant, timedelta(days=days))
    if session.json:
        return output.show_json({"key": key, "token": token})
    output.show(token)
    return output.note("Keep it now: the box has only its hash, and cannot show it again.")


@command(apps, "list")
def list_keys(session: Session) -> None:
    """List the keys, newest first."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.app_keys())
    if session.json:
        return output.show_json({"keys": found})
    return _show_table(found)


@command(apps)
def revoke(
    session: Session,
    key: Annotated[
        str, typer.Argument(metavar="KEY", autocompletion=complete_app_key, help="The part before the dot.")
    ],
    yes: Yes = False,
) -> None:
    """Refuse a key from now on. It cannot be taken back."""
    from appliance.cli import output

    confirm(f"Revoke the app key {output.printable(key)}?", yes)
    with session.connect() as client:
        revoked = client.revoke_app_key(key)
    if session.json:
        return output.show_json(revoked)
    return output.show(f"Revoked {revoked.id} of {revoked.user}.")


def _show_table(found: "Iterable[AppKey]") -> None:
    from datetime import UTC, datetime

    from appliance.cli import output

    now = datetime.now(UTC)
    rows = (
        (
            key.id,
            f"{key.tenant}/{key.user}",
            "revoked" if key.revoke_time else "expired" if key.expire_time <= now else "good",
            " ".join(sorted(scope.value for scope in key.scopes)),
            " ".join(sorted(key.collections)) or "all",
            " ".join(sorted(key.models)) or "all",
            output.time_text(key.expire_time),
            output.time_text(key.last_use_time),
        )
        for key in found
    )
    output.show_table(("key", "application", "state", "scopes", "collections", "models", "expires", "last used"), rows)
