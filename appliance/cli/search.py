"""`appliance search`: the passages that a question finds."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from appliance.cli.session import CollectionOption, Session, command, complete_model

if TYPE_CHECKING:
    from appliance.types import Found, Passage

_SPACES = re.compile(r"\s+")
FilterOption = Annotated[
    str, typer.Option("--filter", "-f", help='Only documents for which this holds: year >= 2020 AND source : "usb".')
]
RerankerOption = Annotated[
    str, typer.Option("--reranker", help="A reranker model that orders the best anew.", autocompletion=complete_model)
]


def add_to(app: typer.Typer) -> None:
    command(app)(search)


def search(
    session: Session,
    query: Annotated[str, typer.Argument(help='What to look for; "words in quotes" stand together.')],
    collection: CollectionOption = "default",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, max=100, help="How many; 0: the box chooses.")] = 0,
    condition: FilterOption = "",
    leg: Annotated[
        Literal["words", "meaning"] | None, typer.Option("--leg", help="Find by words or by meaning alone.")
    ] = None,
    diversity: Annotated[
        float, typer.Option("--diversity", min=0, max=1, help="How much being unlike those above counts.")
    ] = 0.0,
    reranker: RerankerOption = "",
    around: Annotated[
        Literal["none", "section", "page"], typer.Option("--around", help="Show the text around each passage.")
    ] = "none",
    explain: Annotated[bool, typer.Option("--explain", help="Show why each passage stands where it does.")] = False,
    facet: Annotated[list[str] | None, typer.Option("--facet", help="Count the values of this field.")] = None,
    page: Annotated[str, typer.Option("--page", help="Go on where the same search ended before.")] = "",
) -> None:
    """Show the passages that fit best."""
    from appliance.cli import output
    from appliance.types import Expand, Leg, SearchOptions

    options = SearchOptions(
        filter=condition,
        legs=frozenset({Leg(leg)}) if leg else frozenset(Leg),
        diversity=diversity,
        reranker=reranker,
        expand=Expand(around),
        explain=explain,
        facets=tuple(facet or ()),
    )
    with session.connect() as client:
        found = client.search(collection, query, limit, options, page)
    return output.show_json(found) if session.json else _show(found)


def _show(found: "Found") -> None:
    from appliance.cli import output

    if not found.passages:
        output.show("Nothing was found.")
    for number, passage in enumerate(found.passages, 1):
        _show_passage(number, passage)
    for field, counts in found.facets.items():
        output.show(output.printable(field), "bold")
        output.show_table(("value", "#documents"), ((item.value, str(item.documents)) for item in counts))
    if found.next_page:
        output.show(f"There is more: --page {found.next_page}", "dim")


def _show_passage(number: int, passage: "Passage") -> None:
    from appliance.cli import output

    span = passage.span
    output.show(f"{number}. {output.printable(passage.title)}, page {span.page}, {span.start}–{span.end}", "bold")
    if why := passage.explanation:
        legs = ((name, leg) for name, leg in (("words", why.words), ("meaning", why.meaning)))
        told = [f"{name} {leg.score:.3f}" + (f" (#{leg.rank})" if leg.rank else "") for name, leg in legs]
        reranked = "" if why.reranked is None else f", reranked {why.reranked:.3f}"
        output.show(
            f"{', '.join(told)}, weight of meaning {why.meaning_weight:.2f}, together {why.fused:.3f}{reranked}", "dim"
        )
    if passage.context or not passage.snippet.text:
        output.show((passage.context or passage.text).strip())
    else:
        output.show_marked(in_lines(passage.snippet.text, passage.text), passage.snippet.highlights)
    output.show()


def in_lines(snippet: str, passage: str) -> str:
    """A snippet, each of whose spaces is for any white space of its passage, with a new line for those that hold an
    empty one: no heading runs into its text. Every place in it stays where it is.
    """
    lines = _SPACES.sub(lambda run: "\n" if run[0].count("\n") > 1 else " ", passage)
    inside = snippet.removeprefix("… ").removesuffix(" …")
    begin, at = snippet.find(inside), lines.replace("\n", " ").find(inside)
    if at < 0:
        return snippet
    return f"{snippet[:begin]}{lines[at : at + len(inside)]}{snippet[begin + len(inside) :]}"
