"""`appliance knowledge evaluate`: how well a collection's search finds what people judged relevant."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli.session import Session, complete_collection

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.knowledge.quality.evaluate import Evaluation

PASSAGES = 100  # a call; documents are ranked by their best passage
MOST_CALLS = 10  # a query: a document of many passages may fill a page


def evaluate(
    session: Session,
    collection: Annotated[str, typer.Argument(help="A collection.", autocompletion=complete_collection)],
    queries: Annotated[Path, typer.Option("--queries", help="A file of queries, a line each: id, tab, text.")],
    qrels: Annotated[Path, typer.Option("--qrels", help="A file of judgements in TREC's format.")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many documents count.")] = 10,
) -> None:
    """Measure a collection's search against judgements.

    Documents are named in the judgements by their title, their resource name or its last part, without white space.
    """
    from appliance.cli import output
    from appliance.knowledge.quality import evaluate as quality

    asked, judged = quality.read_queries(queries), quality.read_qrels(qrels)
    counted = {query: text for query, text in asked.items() if quality.is_judged(query, judged)}
    rankings: dict[str, list[str]] = {}
    with session.connect() as client:
        for number, (query, text) in enumerate(counted.items(), 1):
            rankings[query] = _ranking(client, collection, text, judged[query].keys(), k)
            if number % 100 == 0:
                output.note(f"{number} of {len(counted)} queries")
    found = quality.evaluate(rankings, judged, k)
    if session.json:
        return output.show_json({"collection": collection, "skipped": len(asked) - len(counted), "evaluation": found})
    return _show(found, len(asked) - len(counted))


def _ranking(client: "Client", collection: str, query: str, judged: Collection[str], k: int) -> list[str]:
    """The k best documents, each by its best passage, as the judgements name them, else by resource name."""
    ranked: dict[str, None] = {}
    page = ""
    for _ in range(MOST_CALLS):
        found = client.search(collection, query, PASSAGES, page=page)
        for passage in found.passages:
            names = _names(passage.document, passage.title)
            ranked.setdefault(next((name for name in names if name in judged), passage.document))
        page = found.next_page
        if not page or len(ranked) >= k:
            break
    return list(ranked)[:k]


def _names(document: str, title: str) -> Iterator[str]:
    """What judgements may call a document."""
    yield title
    yield document
    yield document.rpartition("/")[2]


def _show(found: "Evaluation", skipped: int) -> None:
    from appliance.cli import output

    rows = ((f"recall@{found.k}", found.recall), (f"MRR@{found.k}", found.mrr), (f"nDCG@{found.k}", found.ndcg))
    output.show_table(
        ("metric", "#mean", "#95% from", "#to"),
        ((name, f"{one.mean:.4f}", f"{one.low:.4f}", f"{one.high:.4f}") for name, one in rows),
    )
    without = f"; {skipped} without a relevant document were left out" if skipped else ""
    output.show(f"{len(found.queries)} queries{without}.", "dim")
