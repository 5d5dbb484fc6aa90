import json
from pathlib import Path

import pytest

from appliance.gen.v1 import knowledge_pb2
from tests.box import Box
from tests.cli.answers import Cli

QUERIES = "1\tWhen do badges expire?\n2\tWhat does the pump weigh?\n3\tWho?\n"
QRELS = "1 0 badges.md 1\n2 0 5f 2\n2 0 collections/handbook/documents/60 1\n"


def passage(document: str, title: str, page: int = 1) -> knowledge_pb2.Passage:
    name = f"collections/handbook/documents/{document}"
    return knowledge_pb2.Passage(document=name, title=title, page=page, start=0, end=3, text="...")


FOUND = {
    "When do badges expire?": [passage("1", "other.md"), passage("1", "other.md", 2), passage("2", "badges.md")],
    "What does the pump weigh?": [passage("60", "pump.md"), passage("5f", "pump.pdf")],
}


def search(request: knowledge_pb2.SearchRequest, context: object) -> knowledge_pb2.SearchResponse:
    """A passage a page."""
    at = int(request.page_token or 0)
    rest = FOUND[request.query][at:]
    return knowledge_pb2.SearchResponse(passages=rest[:1], next_page_token=str(at + 1) if rest[1:] else "")


@pytest.fixture
def files(tmp_path: Path, box: Box) -> tuple[str, ...]:
    box.answers["Search"] = search
    (tmp_path / "queries.tsv").write_text(QUERIES)
    (tmp_path / "qrels").write_text(QRELS)
    return "--queries", str(tmp_path / "queries.tsv"), "--qrels", str(tmp_path / "qrels")


def test_a_collection_is_measured_over_documents_by_title_or_name(box: Box, cli: Cli, files: tuple[str, ...]) -> None:
    result = cli("knowledge", "evaluate", "handbook", *files, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["collection"], shown["skipped"], shown["evaluation"]["k"]) == ("handbook", 1, 10)
    first, second = shown["evaluation"]["queries"]["1"], shown["evaluation"]["queries"]["2"]
    assert (first["recall"], first["mrr"]) == (1.0, 0.5)  # two passages of one document are one document
    assert (second["recall"], second["mrr"]) == (1.0, 1.0)
    assert second["ndcg"] == pytest.approx(0.8597, abs=1e-4)
    assert shown["evaluation"]["mrr"]["mean"] == 0.75
    assert {call.request.collection for call in box.calls} == {"collections/handbook"}


def test_only_k_documents_are_asked_for_and_shown(box: Box, cli: Cli, files: tuple[str, ...]) -> None:
    shown = cli("knowledge", "evaluate", "handbook", *files, "-k", "1").stdout
    assert "recall@1" in shown
    assert "nDCG@1" in shown
    assert "2 queries; 1 without a relevant document were left out." in shown
    assert len(box.calls) == 2


def test_a_wrong_file_is_refused_before_the_box_is_asked(
    box: Box, cli: Cli, files: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "qrels").write_text("1 0 a\n")
    result = cli("knowledge", "evaluate", "handbook", *files)
    assert result.exit_code == 3
    assert "qrels, line 1: must have four fields" in result.stderr
    assert box.calls == []


def test_judgements_of_other_queries_are_refused(box: Box, cli: Cli, files: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q1 0 badges.md 1\n")
    result = cli("knowledge", "evaluate", "handbook", *files)
    assert result.exit_code == 3
    assert "compare the queries' ids" in result.stderr
