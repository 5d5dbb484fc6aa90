"""`appliance search`: the passages that a question finds."""

from typing import Annotated

import typer

from appliance.cli.session import CollectionOption, Session, command


def add_to(app: typer.Typer) -> None:
    command(app)(search)


def search(
    session: Session,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: CollectionOption = "default",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, max=100, help="How many; 0: the box chooses.")] = 0,
) -> None:
    """Show the passages that fit best."""
    from appliance.cli import output

    with session.connect() as client:
        passages = client.search(collection, query, limit)
    if session.json:
        return output.show_json({"passages": passages})
    if not passages:
        output.show("Nothing was found.")
    for number, passage in enumerate(passages, 1):
        span = passage.span
        output.show(f"{number}. {output.printable(passage.title)}, page {span.page}, {span.start}–{span.end}", "bold")
        output.show(passage.text.strip())
        output.show()
    return None
