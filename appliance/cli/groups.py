"""`appliance access group`: groups of users, whom documents name as readers."""

from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, Yes, command, complete_group, confirm

if TYPE_CHECKING:
    from appliance.types import Group

access = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Say who belongs together.")
group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Groups that documents name as readers.")
access.add_typer(group, name="group")
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A group; as a reader it is group:NAME.", autocompletion=complete_group)
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(access, name="access")


@command(group, "set")
def set_group(
    session: Session,
    name: Name,
    users: Annotated[list[str], typer.Argument(metavar="USER...", help="All of its users, by name.")],
) -> None:
    """Make a group, or give it other users: these, and nobody else. It counts from the next call on."""
    with session.connect() as client:
        _show_one(client.set_group(name, users), session.json)


@command(group, "list")
def list_groups(session: Session) -> None:
    """List the groups of your tenant."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.groups())
    if session.json:
        return output.show_json({"groups": found})
    return output.show_table(("group", "#users"), ((one.name, str(len(one.users))) for one in found))


@command(group)
def show(session: Session, name: Name) -> None:
    """Show who is in a group."""
    with session.connect() as client:
        _show_one(client.group(name), session.json)


@command(group)
def delete(session: Session, name: Name, yes: Yes = False) -> None:
    """Delete a group. Documents keep its name: a new group of that name may read them."""
    from appliance.cli import output

    confirm(f"Delete the group {output.printable(name)}? Its users lose what only the group may read.", yes)
    with session.connect() as client:
        client.delete_group(name)
    if session.json:
        return output.show_json({"deleted": name})
    return output.show(f"Deleted {name}.")


def _show_one(found: "Group", as_json: bool) -> None:
    from appliance.cli import output

    if as_json:
        return output.show_json(found)
    return output.show_table(("user",), ((user,) for user in sorted(found.users)))
