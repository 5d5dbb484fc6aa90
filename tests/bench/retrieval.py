"""Search on XQuAD in three languages: words alone, meaning alone, both as the appliance fuses them.

`make bench-retrieval`. A passage of the question's paragraph is right;
mean reciprocal rank at 10 over the paragraphs of the language. Prints a table, and last one JSON line.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from appliance.infer.onnx import OnnxEmbedder
from appliance.knowledge.chunk import pieces
from appliance.knowledge.memtable import Block
from appliance.knowledge.search.rank import Query, Unit, best_passages
from appliance.knowledge.storage.record import Entry, to_stored_precision
from appliance.types import EVERYONE, Bools, Document
from tests.bench import report

LANGUAGES = ("en", "de", "ru")
_DEPTH = 10
_PASSAGES = 40  # a paragraph may be several passages


def read(path: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Paragraphs, and questions with the number of their paragraph."""
    paragraphs: list[str] = []
    questions: list[tuple[str, int]] = []
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            questions += [(item["question"], len(paragraphs)) for item in paragraph["qas"]]
            paragraphs.append(paragraph["context"])
    return paragraphs, questions


def index(embedder: OnnxEmbedder, paragraphs: Sequence[str]) -> Block:
    """Each paragraph as a document of one page."""
    entries: list[Entry] = []
    for number, paragraph in enumerate(paragraphs):
        cut = tuple(pieces([paragraph], (), embedder))
        vectors = to_stored_precision(embedder.embed([piece.read(paragraph) for piece in cut]))
        document = Document(
            id=f"{number:032x}",
            collection="xquad",
            title="",
            media_type="text/plain",
            sha256="",
            size_bytes=0,
            source="",
            parser="",
            pipeline="",
            page_count=1,
            passage_count=len(cut),
            readers=frozenset({EVERYONE}),
            create_time=datetime.now(UTC),
        )
        entries.append(Entry(document, (paragraph,), cut, vectors))
    return Block(tuple(entries), 0, 0)


def reciprocal_rank(block: Block, query: Query, paragraph: int) -> float:
    def everything(unit: Unit) -> Bools:
        return np.ones(unit.documents, np.bool_)

    ranked: list[int] = []
    for hit in best_passages([block], everything, query, _PASSAGES):
        owner = int(block.owners[hit.row])
        if owner not in ranked:
            ranked.append(owner)
    ranked = ranked[:_DEPTH]
    return 1 / (ranked.index(paragraph) + 1) if paragraph in ranked else 0.0


def measure(embedder: OnnxEmbedder, path: Path) -> dict[str, float]:
    """Mean reciprocal rank at 10 by leg."""
    paragraphs, questions = read(path)
    block = index(embedder, paragraphs)
    vectors = embedder.embed([question for question, _ in questions])
    ranks: dict[str, list[float]] = {"words": [], "meaning": [], "hybrid": []}
    for (question, paragraph), vector in zip(questions, vectors, strict=True):
        query = Query.of(question, vector, embedder.count_tokens([question]))
        for leg, asked in {
            "words": replace(query, meaning_weight=0.0),
            "meaning": replace(query, meaning_weight=1.0),
            "hybrid": query,
        }.items():
            ranks[leg].append(reciprocal_rank(block, asked, paragraph))
    return {leg: float(np.mean(found)) for leg, found in ranks.items()}


def main() -> None:
    data, embedder = report.data_folder(), report.embedder()
    figures: dict[str, float] = {}
    shares: list[float] = []
    print(f"{'':4}{'words':>9}{'meaning':>9}{'hybrid':>9}   MRR@10")
    for language in LANGUAGES:
        found = measure(embedder, data / "xquad" / f"xquad.{language}.json")
        print(f"{language:4}{found['words']:9.3f}{found['meaning']:9.3f}{found['hybrid']:9.3f}", flush=True)
        figures[f"mrr_{language}"] = round(found["hybrid"], 4)
        shares.append(found["hybrid"] / max(found["words"], found["meaning"]))
    figures["hybrid_vs_best_leg_min"] = round(min(shares), 4)
    report.finish("retrieval", figures, ("numpy", "onnxruntime", "hnswlib"))


if __name__ == "__main__":
    main()
