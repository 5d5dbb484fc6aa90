"""The knowledge base beside hnswlib, beside itself without encryption, and as it grows.

`make bench-knowledge`, or `python -m tests.bench.knowledge [--quick] [--rows N] [--growth N …] [--plot FILE]`. One
thread each, in turn:

  the index of one segment beside hnswlib's float32: queries a second at recall@10 >= 0.99 of both, the least width of
    the walk that reaches it; with 1% of the rows allowed, beside hnswlib's callback; resident bytes a chunk
  the whole library, encrypted, beside the same code with a cipher that does nothing: ingest, query p95
  the encrypted library as it grows: reopening, queries cold and warm, memory
  qdrant-client's local mode, where it can be imported; it is no dependency of ours:
      pip install --target PEER qdrant-client && PYTHONPATH=PEER python -m tests.bench.knowledge

A million chunks are about a million insertions into graphs, which take most of some forty minutes. `--folder` keeps the
growing library, and the next run goes on from what it holds. Prints tables, progress on stderr, and last one JSON line.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bench import knowledge_library as library
from tests.bench import report
from tests.bench.knowledge_corpus import DIM, Vectors, vectors
from tests.bench.knowledge_index import K, compare, recall, truth
from tests.bench.knowledge_plot import svg

QUERIES = 500  # of the index
_MILLION = 1_000_000
_GROWTH = [10_000, 30_000, 100_000, 300_000, _MILLION]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-knowledge")
    parser.add_argument("--rows", type=int, default=100_000, help="chunks of the comparisons")
    parser.add_argument("--growth", type=int, nargs="*", default=_GROWTH, help="chunks, rising")
    parser.add_argument("--queries", type=int, default=200, help="queries of the library")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of queries of the index")
    parser.add_argument("--plot", type=Path, help="an SVG of growth")
    parser.add_argument("--folder", type=Path, help="where libraries are built and left; by default they are not")
    parser.add_argument("--quick", action="store_true", help="5,000 chunks, growth to 10,000")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.growth, options.rounds, options.queries = 5_000, [2_500, 10_000], 2, 50
    return options


def beside_qdrant(known: Vectors) -> dict[str, float]:
    """qdrant-client's local mode: exact, in numpy. Empty where it is not installed."""
    try:
        from qdrant_client import QdrantClient, models
    except ImportError:
        print("\nqdrant-client is absent: `pip install --target PEER qdrant-client`, and PYTHONPATH=PEER brings it in.")
        return {}
    client = QdrantClient(":memory:")
    client.create_collection("bench", vectors_config=models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    client.upload_collection("bench", vectors=known.rows, ids=range(len(known.rows)))
    queries, spent, found = known.queries[:50], [], []
    for query in queries:
        begun = time.perf_counter()
        points = client.query_points("bench", query=query.tolist(), limit=K).points
        spent.append(time.perf_counter() - begun)
        found.append(np.array([point.id for point in points], np.uint32))
    p50, p95 = np.percentile(spent, [50, 95]) * 1e3
    reached = recall(found, truth(known.rows, queries))
    print(f"\nqdrant-client, local mode: recall@10 {reached:.3f}, p50 {p50:.2f} ms, p95 {p95:.2f} ms", flush=True)
    return {"qdrant_local_p50_ms": float(p50), "qdrant_local_p95_ms": float(p95)}


def growth(folder: Path, sizes: Sequence[int], queries: int, plot: Path | None) -> dict[str, float]:
    known = vectors(max(sizes), queries + 50)
    measured = library.grow(folder, sizes, known, queries)
    if plot:
        plot.write_text(svg(measured))
    last = measured[-1]
    figures = {f"query_p95_ms_{size.chunks}": size.p95 for size in measured}
    figures |= {f"resident_bytes_a_chunk_{size.chunks}": size.resident_bytes_a_chunk for size in measured}
    return figures | ({"reopen_1m_s": last.reopen_s} if last.chunks == _MILLION else {"reopen_s": last.reopen_s})


def run(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    known = vectors(options.rows, QUERIES + 50)
    figures = compare(Vectors(known.rows, known.queries[:QUERIES]), options.rounds)
    figures |= beside_qdrant(known)
    figures |= library.encrypted_beside_plain(folder / "beside", known, options.queries)
    if options.growth:
        figures |= growth(folder / "growing", options.growth, options.queries, options.plot)
    return figures


def main() -> None:
    options = parse()
    with TemporaryDirectory() as scratch:
        figures = run(options, options.folder or Path(scratch))
    rounded = {name: round(value, 4) for name, value in figures.items()}
    report.finish("knowledge", rounded, ("hnswlib", "numpy", "duckdb", "cryptography"))


if __name__ == "__main__":
    main()
