"""`appliance documents`: what is in a collection."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.search import FilterOption
from appliance.cli.session import CollectionOption, Session, Yes, command, confirm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.client import Client
    from appliance.types import Document, Ingestion, Lineage

documents = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, trace and delete documents.")
LEAST_DIGITS = 4
"""Of an id that is not said to its end."""

DocumentName = Annotated[
    str, typer.Argument(metavar="DOCUMENT", help="Its title or id in the collection, or its whole resource name.")
]


def add_to(app: typer.Typer) -> None:
    app.add_typer(documents, name="documents")


@command(documents, "list")
def list_documents(
    session: Session,
    collection: CollectionOption = "default",
    condition: FilterOption = "",
    all_: Annotated[bool, typer.Option("--all", help="For administrators: with what you may not read.")] = False,
) -> None:
    """List the documents of a collection."""
    from appliance.cli import output

    with session.connect() as client:
        found = list(client.documents(collection, condition, all_=all_))
    if session.json:
        return output.show_json({"documents": [_told(item) for item in found]})
    rows = (
        (
            item.title,
            item.id,
            item.media_type,
            str(item.page_count),
            str(item.passage_count),
            output.bytes_text(item.size_bytes),
            output.time_text(item.create_time),
        )
        for item in found
    )
    return output.show_table(("document", "id", "type", "#pages", "#passages", "#size", "taken in"), rows)


@command(documents)
def show(
    session: Session,
    document: DocumentName,
    collection: CollectionOption = "default",
    page: Annotated[int | None, typer.Option("--page", min=1, help="The text of this page only.")] = None,
) -> None:
    """Show where a document came from, and its text."""
    from appliance.errors import NotFound

    with session.connect() as client:
        found, pages = client.document(_resource_name(client, collection, document))
    if page is not None and page > len(pages):
        raise NotFound(f"{found.title!r} has {len(pages)} pages.")
    numbered = list(enumerate(pages, 1))
    _show_one(found, numbered if page is None else [numbered[page - 1]], session.json)


@command(documents)
def why(session: Session, document: DocumentName, collection: CollectionOption = "default") -> None:
    """Show where a document comes from: its file, stick or share, who let it in, what read it, in which ingestion."""
    from appliance.cli import output

    with session.connect() as client:
        found, lineage, ingestion = client.lineage(_resource_name(client, collection, document))
    line = (
        session.line("ingest", "report", lineage.ingestion.removeprefix("ingestions/")) if ingestion and lineage else ""
    )
    if session.json:
        return output.show_json({"document": _told(found), "lineage": lineage, "ingestion": ingestion, "report": line})
    return output.show_fields(pair for pair in _lineage_rows(found, lineage, ingestion, line) if pair[1])


@command(documents)
def delete(
    session: Session, document: DocumentName, collection: CollectionOption = "default", yes: Yes = False
) -> None:
    """Delete a document.

    It is gone from every search at once, and from disk at compaction.
    """
    from appliance.cli import output

    with session.connect() as client:
        name = _resource_name(client, collection, document, all_=True)
        confirm(f"Delete {output.printable(document)} ({output.printable(name)})?", yes)
        client.delete_document(name)
    if session.json:
        return output.show_json({"deleted": name})
    return output.show(f"Deleted {document}.")


@command(documents)
def readers(
    session: Session,
    document: DocumentName,
    reader: Annotated[list[str], typer.Argument(help="Who may read it: everyone, role:ROLE, group:NAME or user:NAME.")],
    collection: CollectionOption = "default",
) -> None:
    """Say who may read a document, from the next question on."""
    from appliance.cli import output

    with session.connect() as client:
        changed = client.set_readers(_resource_name(client, collection, document, all_=True), reader)
    if session.json:
        return output.show_json(changed)
    return output.show(f"{output.printable(changed.title)} is for {', '.join(sorted(changed.readers))}.")


def _resource_name(client: "Client", collection: str, document: str, *, all_: bool = False) -> str:
    """The name of the document of that title or id, or of the one whose id begins so.

    all_: to change it: for an administrator also one that it may not read, and no beginning of an id will do.
    Raises NotFound; InvalidArgument where there are several.
    """
    from appliance.errors import InvalidArgument, NotFound

    if document.startswith("collections/"):
        return document
    listed = list(client.documents(collection, all_=all_))
    found = [item for item in listed if document in (item.id, item.title)]
    if not found and not all_ and len(document) >= LEAST_DIGITS:
        found = [item for item in listed if item.id.startswith(document)]
    if not found:
        raise NotFound(f"The collection {collection} holds no document {document!r}.")
    if len(found) > 1:
        ids = f"{found[0].id}, {found[1].id}{', …' * (len(found) > 2)}"
        raise InvalidArgument.of("document", f"{len(found)} have this title or begin so; name one by its id: {ids}.")
    return found[0].name


def _lineage_rows(
    document: "Document", lineage: "Lineage | None", ingestion: "Ingestion | None", report: str
) -> "list[tuple[str, str]]":
    """From the passages of a document back to where its file was."""
    from appliance.cli import output
    from appliance.cli.ingest.shown import place
    from appliance.types import Provenance, SourceKind

    rows = [
        ("document", document.title),
        ("name", document.name),
        ("passages", f"{document.passage_count} on {document.page_count} page{'s' * (document.page_count != 1)}"),
        ("file", f"sha256 {document.sha256}, {output.bytes_text(document.size_bytes)}"),
        ("source", document.source),
        ("parser", f"{document.parser}, {document.pipeline}"),
        ("readers", ", ".join(sorted(document.readers))),
        ("taken in", output.time_text(document.create_time)),
    ]
    if lineage is None:
        return [
            *rows,
            ("ingestion", "none: it was imported or restored with its collection, or came before ingestions"),
        ]
    kind = SourceKind(lineage.kind or SourceKind.FOLDER.value)
    origin = Provenance(kind, lineage.path, lineage.serial, lineage.volume, lineage.label, lineage.signer)
    return [
        *rows,
        ("from", place(origin)),
        ("inside", lineage.container),
        ("started by", lineage.operator),
        ("approved by", lineage.approver),
        ("ingestion", lineage.ingestion + (f", {output.time_text(ingestion.create_time)}" if ingestion else "")),
        ("report", report or "no longer kept"),
    ]


def _told(document: "Document") -> "dict[str, Any]":
    """For programs; without readers where the box does not say who they are, for somebody always is."""
    from appliance.cli import output

    told: dict[str, Any] = output.plain(document)
    return told if told["readers"] else {name: value for name, value in told.items() if name != "readers"}


def _show_one(document: "Document", pages: "Sequence[tuple[int, str]]", as_json: bool) -> None:
    from appliance.cli import output

    if as_json:
        texts = [{"page": number, "text": text} for number, text in pages]
        return output.show_json({"document": _told(document), "pages": texts})
    output.show_fields(
        pair
        for pair in [
            ("title", document.title),
            ("name", document.name),
            ("type", document.media_type),
            ("size", output.bytes_text(document.size_bytes)),
            ("sha256", document.sha256),
            ("source", document.source),
            ("parser", document.parser),
            ("readers", ", ".join(sorted(document.readers))),
            *((name, str(value)) for name, value in sorted(document.metadata.items())),
            ("taken in", output.time_text(document.create_time)),
        ]
        if pair[1]
    )
    for number, text in pages:
        output.show(f"\n— page {number} of {document.page_count} —", "bold")
        output.show(text)
    return None
