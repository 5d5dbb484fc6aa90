"""How well searches find what people judged relevant. Pure, but for the reading of two files.

Judgements are TREC qrels: a line a judgement, `query iteration document grade`, parted by white space; a grade above 0
is relevant, and what was not judged is not (trec_eval, https://github.com/usnistgov/trec_eval). Queries: `id<TAB>text`.

recall@k   relevant documents among the first k, of all that are relevant
MRR@k      1 / rank of the first relevant document among the first k, else 0 (Voorhees, TREC-8 QA, 1999)
nDCG@k     sum of grade / log2(rank + 1) over the first k, divided by that of the best order there could be
           (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002)

A mean's interval is the percentile bootstrap over queries (Efron and Tibshirani, 1993): resampled with one fixed seed,
so that equal figures have equal intervals.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.errors import InvalidArgument

RESAMPLES = 2_000
CONFIDENCE = 0.95
MAX_GRADE = 1_000_000
_SEED = 2002

Judgements = Mapping[str, int]
"""Grades of one query by document."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one query, each 0 to 1."""

    recall: float
    mrr: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric over all queries; [low, high] holds it with 95% confidence."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """queries: by id, in the order they were given."""

    k: int
    recall: Mean
    mrr: Mean
    ndcg: Mean
    queries: Mapping[str, Scores]


def scores(ranking: Sequence[str], judged: Judgements, k: int) -> Scores:
    """ranking: documents, best first, each once. judged: with at least one relevant document."""
    gains = [max(0, judged.get(document, 0)) for document in ranking[:k]]
    relevant = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
    hits = [rank for rank, gain in enumerate(gains, 1) if gain]
    return Scores(len(hits) / len(relevant), 1 / hits[0] if hits else 0.0, _dcg(gains) / _dcg(relevant[:k]))


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def evaluate(rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Judgements], k: int) -> Evaluation:
    """Every ranked query that has a relevant document. Raises InvalidArgument where none has one."""
    found = {query: scores(ranking, qrels[query], k) for query, ranking in rankings.items() if is_judged(query, qrels)}
    if not found:
        raise InvalidArgument.of("qrels", "no query has a document that was judged relevant; compare the queries' ids.")
    return Evaluation(
        k,
        mean([one.recall for one in found.values()]),
        mean([one.mrr for one in found.values()]),
        mean([one.ndcg for one in found.values()]),
        found,
    )


def is_judged(query: str, qrels: Mapping[str, Judgements]) -> bool:
    """Whether the query has a relevant document."""
    return any(grade > 0 for grade in qrels.get(query, {}).values())


def mean(values: Sequence[float]) -> Mean:
    """The mean of at least one value, and its bootstrap interval."""
    sample, random = np.asarray(values, np.float64), np.random.default_rng(_SEED)
    means = [sample[random.integers(len(sample), size=len(sample))].mean() for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Mean(float(sample.mean()), float(low), float(high))


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades by query, then document. Raises InvalidArgument naming the file and the line."""
    found: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 4:
            raise _refusal(path, number, "must have four fields: query, iteration, document, grade.")
        query, _, document, text = fields
        grade = _grade(text)
        if grade is None:
            raise _refusal(path, number, "the grade must be a whole number.")
        if found.setdefault(query, {}).setdefault(document, grade) != grade:
            raise _refusal(path, number, "the document has another grade for this query further up.")
    if not found:
        raise InvalidArgument(f"{path}: there is no judgement in it.")
    return found


def read_queries(path: Path) -> dict[str, str]:
    """Texts by id, in the order of the file. Raises InvalidArgument naming the file and the line."""
    found: dict[str, str] = {}
    for number, line in _lines(path):
        query, _, text = (part.strip() for part in line.partition("\t"))
        if not query or not text:
            raise _refusal(path, number, "must be a query's id, a tab, and its text.")
        if found.setdefault(query, text) != text:
            raise _refusal(path, number, "the id has another text further up.")
    if not found:
        raise InvalidArgument(f"{path}: there is no query in it.")
    return found


def _grade(text: str) -> int | None:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_GRADE)):
        return None
    return int(text)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1. Raises InvalidArgument where there is no such text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: is not UTF-8, at byte {error.start}.") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _refusal(path: Path, line: int, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{path}, line {line}: {problem}")
