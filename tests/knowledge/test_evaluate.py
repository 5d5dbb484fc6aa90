"""Metrics against figures worked out by hand, and files that are not what they should be."""

import math
from pathlib import Path

import pytest

from appliance.errors import InvalidArgument
from appliance.knowledge.quality.evaluate import evaluate, mean, read_qrels, read_queries, scores

JUDGED = {"a": 3, "b": 2, "c": 1, "d": 0, "e": -1}


def test_a_perfect_ranking_scores_one() -> None:
    found = scores(["a", "b", "c"], JUDGED, 10)
    assert (found.recall, found.mrr, found.ndcg) == (1.0, 1.0, 1.0)


def test_a_ranking_that_holds_nothing_relevant_scores_nothing() -> None:
    for ranking in ([], ["d", "e", "x"]):
        found = scores(ranking, JUDGED, 10)
        assert (found.recall, found.mrr, found.ndcg) == (0.0, 0.0, 0.0)


def test_graded_gains_are_discounted_by_the_logarithm_of_the_rank() -> None:
    found = scores(["x", "b", "d", "a"], JUDGED, 10)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert found.recall == pytest.approx(2 / 3)
    assert found.mrr == pytest.approx(1 / 2)
    assert found.ndcg == pytest.approx((2 / math.log2(3) + 3 / math.log2(5)) / ideal)


def test_only_the_first_k_count_in_the_ranking_and_in_the_best_there_could_be() -> None:
    found = scores(["x", "a", "b"], JUDGED, 2)
    assert found.recall == pytest.approx(1 / 3)
    assert found.mrr == 0.5
    assert found.ndcg == pytest.approx((3 / math.log2(3)) / (3 / math.log2(2) + 2 / math.log2(3)))
    assert scores(["x", "a"], JUDGED, 1).mrr == 0.0


def test_queries_are_averaged_and_those_without_a_relevant_document_left_out() -> None:
    qrels = {"1": {"a": 1}, "2": {"b": 1, "c": 1}, "3": {"d": 0}}
    found = evaluate({"1": ["a"], "2": ["x", "b"], "3": ["d"], "4": ["a"]}, qrels, 10)
    assert list(found.queries) == ["1", "2"]
    assert found.recall.mean == pytest.approx(0.75)
    assert found.mrr.mean == pytest.approx(0.75)
    assert found.mrr.low <= found.mrr.mean <= found.mrr.high
    with pytest.raises(InvalidArgument, match="judged relevant"):
        evaluate({"3": ["d"], "4": ["a"]}, qrels, 10)


def test_the_interval_is_the_percentile_bootstrap() -> None:
    values = [0.0, 1.0] * 200
    found = mean(values)
    # the normal approximation: 0.5 ± 1.96 * 0.5 / sqrt(400)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.451, abs=0.01)
    assert found.high == pytest.approx(0.549, abs=0.01)
    assert mean(values) == found
    assert mean([0.3]).low == mean([0.3]).high == 0.3


def test_files_are_read_as_trec_writes_them(tmp_path: Path) -> None:
    qrels, queries = tmp_path / "qrels", tmp_path / "queries.tsv"
    qrels.write_bytes(b"\xef\xbb\xbf1 0 a.txt 2\r\n\r\n1\tQ0\tb.txt\t-1\n2 0 collections/h/documents/5f 1")
    queries.write_text("1\tWhen do badges expire?\n\n2\tWas\tkostet das?\n")
    assert read_qrels(qrels) == {"1": {"a.txt": 2, "b.txt": -1}, "2": {"collections/h/documents/5f": 1}}
    assert read_queries(queries) == {"1": "When do badges expire?", "2": "Was\tkostet das?"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 0 a 1\n1 0 b\n", "line 2: must have four fields"),
        ("1 0 a 1 x\n", "line 1: must have four fields"),
        ("1 0 a one\n", "line 1: the grade must be a whole number"),
        ("1 0 a 1.5\n", "line 1: the grade"),
        ("1 0 a ١\n", "line 1: the grade"),
        (f"1 0 a {'9' * 5000}\n", "line 1: the grade"),
        ("1 0 a 1\n2 0 a 0\n1 0 a 2\n", "line 3: the document has another grade"),
        ("\n\n", "no judgement"),
    ],
)
def test_a_wrong_judgement_is_named_by_file_and_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "judged.qrels"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=problem) as caught:
        read_qrels(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1\tWhen?\nWhy?\n", "line 2: must be a query's id, a tab"),
        ("1\t \n", "line 1: must be"),
        ("\tWhen?\n", "line 1: must be"),
        ("1\tWhen?\n1\tWhy?\n", "line 2: the id has another text"),
        ("", "no query"),
    ],
)
def test_a_wrong_query_is_named_by_file_and_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "queries.tsv"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=problem) as caught:
        read_queries(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"1\tStra\xdfe\n")
    for name, problem in (("absent", "cannot be read"), ("latin1", "not UTF-8"), (".", "cannot be read")):
        with pytest.raises(InvalidArgument, match=problem):
            read_queries(tmp_path / name)


def test_the_same_judgement_twice_is_one(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("".join(f"{n % 100} 0 d{n} 1\n" for n in range(20_000)) * 2)
    assert sum(map(len, read_qrels(path).values())) == 20_000
