"""The index of one segment beside hnswlib's float32, one thread each, over the same graph, in turn.

Times are processor time of the thread: on an idle box the same as by the clock, and what else runs blurs it least.

Hot memory is int8 vectors and graph, which searches need whole. Float16 rows are read out of the cache of decrypted
chunks, 256 MiB for all collections and whatever they hold; at 100,000 chunks of 384 it holds them all. What a query
costs where the cache holds none of its rows is measured, too.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import hnswlib
import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.index import hnsw, kernels, vectors
from appliance.knowledge.index.vector_index import HalfRows, Rows
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.segment import SegmentFile, SegmentId, write_segment
from appliance.types import Bools, Floats
from appliance.vault.envelope import AesGcm
from tests.bench import report
from tests.bench.knowledge_corpus import DIM, Vectors

K = 10
RECALL = 0.99
WIDTHS = range(16, 400, 4)
_BLOCK = 50
_NEVER = 1 << 62
_CACHE_BYTES = 256 << 20  # the appliance's own default

Search = Callable[[Floats], NDArray[np.unsignedinteger]]


def build_peer(stored: Floats) -> hnswlib.Index:
    """hnswlib's index as `hnsw.build` makes it, kept for the next run."""
    path = report.cache_dir() / "bench" / f"hnsw-f16-{len(stored)}-{version('hnswlib')}.bin"
    index = hnswlib.Index("ip", DIM)
    if path.exists():
        index.load_index(str(path))
    else:
        index.init_index(len(stored), M=hnsw.LINKS, ef_construction=hnsw.BUILD_WIDTH, random_seed=1)
        index.add_items(stored, np.arange(len(stored)), num_threads=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        index.save_index(str(path))
    index.set_num_threads(1)
    return index


def truth(stored: Floats, queries: Floats, allowed: Sequence[Bools] | None = None) -> list[set[int]]:
    """The K nearest by float32, of the allowed rows of each query."""
    found = []
    for at, query in enumerate(queries):
        rows = np.arange(len(stored)) if allowed is None else np.flatnonzero(allowed[at])
        found.append(set(rows[np.argpartition(-(stored[rows] @ query), K)[:K]].tolist()))
    return found


def recall(found: Sequence[NDArray[np.unsignedinteger]], expected: Sequence[set[int]]) -> float:
    return float(np.mean([len(set(rows.tolist()) & best) / K for rows, best in zip(found, expected, strict=True)]))


def least_width(search: Callable[[int], Search], queries: Floats, expected: Sequence[set[int]]) -> tuple[int, float]:
    """The least width of a walk that reaches RECALL, and the recall."""
    for width in WIDTHS:
        one = search(width)
        if (reached := recall([one(query).copy() for query in queries], expected)) >= RECALL:
            return width, reached
    raise SystemExit(f"recall@{K} of {RECALL} is out of reach")


def seconds_each(
    searches: Mapping[str, Callable[[int], NDArray[np.unsignedinteger]]], queries: int, rounds: int
) -> dict[str, NDArray[np.float64]]:
    """Seconds by number of the query, of each search: float64 [rounds, queries]. In turn, a few queries at a time."""
    spent = {name: np.empty((rounds, queries)) for name in searches}
    for turn in range(rounds):
        for start in range(0, queries, _BLOCK):
            for name, search in searches.items():
                for at in range(start, min(start + _BLOCK, queries)):
                    begun = time.thread_time()
                    search(at)
                    spent[name][turn, at] = time.thread_time() - begun
    return spent


def sealed_halves(directory: Path, halves: bytes, cache_bytes: int) -> HalfRows:
    """The float16 rows in an encrypted segment, read through the cache of chunks as the appliance does."""
    cipher, segment = AesGcm(bytes(32)), SegmentId(bytes(16), bytes(16))
    layout = write_segment(directory, segment, cipher, {"vec_f16": halves})
    file = SegmentFile(directory, layout, segment, cipher, Memory.of(0, cache_bytes))
    return partial(file.rows_joined, "vec_f16", 2 * DIM)


def compare(known: Vectors, rounds: int) -> dict[str, float]:
    """The figures of an index without a filter and with one; prints as it goes."""
    peer = build_peer(known.rows)
    sections = vectors.to_sections(known.rows, exact_below=_NEVER) | {"graph": hnsw.flatten(peer)}
    codes = vectors.Codes.from_sections(sections["vec_i8"], sections["graph"])
    with TemporaryDirectory() as folder:
        sealed = sealed_halves(Path(folder), sections["vec_f16"], _CACHE_BYTES)
        uncached = sealed_halves(Path(folder), sections["vec_f16"], 0)
        figures = _unfiltered(known, peer, codes, sealed, uncached, sections, rounds)
        figures |= _filtered(known, peer, codes, sealed, int(figures["ef_hnswlib"]))
    return figures | _memory(peer, sections)


def _unfiltered(
    known: Vectors,
    peer: hnswlib.Index,
    codes: vectors.Codes,
    sealed: HalfRows,
    uncached: HalfRows,
    sections: dict[str, bytes],
    rounds: int,
) -> dict[str, float]:
    in_memory = np.frombuffer(sections["vec_f16"], np.uint8).reshape(-1, 2 * DIM)

    def by_hnswlib(width: int) -> Search:
        peer.set_ef(width)
        return lambda query: np.asarray(peer.knn_query(query, k=K, num_threads=1)[0][0])

    def by_us(halves: HalfRows, width: int) -> Search:
        index = vectors.SegmentVectors(codes, halves, exact_below=1, width=width)
        return lambda query: index.search(query, None, K)[0]

    def by_array(rows: Rows) -> bytes:
        return in_memory[rows].tobytes()

    expected = truth(known.rows, known.queries)
    peer_width, peer_recall = least_width(by_hnswlib, known.queries, expected)
    width, reached = least_width(partial(by_us, sealed), known.queries, expected)
    searches = {
        "hnswlib": by_hnswlib(peer_width),
        "ours": by_us(sealed, width),
        "ours, f16 in memory": by_us(by_array, width),
        "ours, f16 decrypted anew": by_us(uncached, width),
    }
    by_number = {name: lambda at, search=search: search(known.queries[at]) for name, search in searches.items()}
    mean = {name: float(spent.mean()) for name, spent in seconds_each(by_number, len(known.queries), rounds).items()}
    print(f"\nunfiltered, {len(known.rows)} rows   {'ef':>4}{'recall@10':>11}{'µs a query':>12}{'queries/s':>11}")
    for name, of in (
        ("hnswlib", (peer_width, peer_recall)),
        ("ours", (width, reached)),
        ("ours, f16 in memory", (width, reached)),
        ("ours, f16 decrypted anew", (width, reached)),
    ):
        print(f"{name:28}{of[0]:4}{of[1]:11.4f}{mean[name] * 1e6:12.1f}{1 / mean[name]:11.0f}", flush=True)
    return {
        "qps_vs_hnswlib": mean["hnswlib"] / mean["ours"],
        "qps_f16_in_memory_vs_hnswlib": mean["hnswlib"] / mean["ours, f16 in memory"],
        "qps_f16_decrypted_anew_vs_hnswlib": mean["hnswlib"] / mean["ours, f16 decrypted anew"],
        "recall": reached,
        "recall_hnswlib": peer_recall,
        "ef": width,
        "ef_hnswlib": peer_width,
    }


def _filtered(
    known: Vectors, peer: hnswlib.Index, codes: vectors.Codes, sealed: HalfRows, peer_width: int
) -> dict[str, float]:
    draw = np.random.default_rng(1)
    index = vectors.SegmentVectors(codes, sealed)
    figures: dict[str, float] = {}
    print(f"\nfiltered    {'':14}{'recall@10':>10}{'p50 ms':>9}{'p95 ms':>9}")
    for share in (0.01, 0.1, 0.5):
        queries = known.queries[: 200 if share < 0.1 else 50]
        allowed = [draw.random(len(known.rows)) < share for _ in range(10)]
        masks = [allowed[at % 10] for at in range(len(queries))]
        calls = [mask.tolist().__getitem__ for mask in allowed]
        expected = truth(known.rows, queries, masks)
        peer.set_ef(peer_width)
        searches: dict[str, Callable[[int], NDArray[np.unsignedinteger]]] = {
            "hnswlib's callback": lambda at, q=queries, c=calls: np.asarray(  # type: ignore[misc]
                peer.knn_query(q[at], k=K, num_threads=1, filter=c[at % 10])[0][0]
            ),
            "ours": lambda at, q=queries, m=masks: index.search(q[at], m[at], K)[0],  # type: ignore[misc]
        }
        found = {name: [search(at) for at in range(len(queries))] for name, search in searches.items()}
        spent = {name: times.ravel() for name, times in seconds_each(searches, len(queries), rounds=2).items()}
        p95 = {name: float(np.percentile(times, 95)) for name, times in spent.items()}
        for name, times in spent.items():
            reached = recall(found[name], expected)
            print(
                f"{share:6.0%}      {name:19}{reached:5.3f}{np.median(times) * 1e3:9.3f}{p95[name] * 1e3:9.3f}",
                flush=True,
            )
        if share == 0.01:
            figures["filtered_1pct_vs_hnswlib"] = p95["hnswlib's callback"] / p95["ours"]
            figures["filtered_1pct_recall"] = recall(found["ours"], expected)
    return figures


def _memory(peer: hnswlib.Index, sections: dict[str, bytes]) -> dict[str, float]:
    """Resident bytes a row of a process that has one index open and has searched it, beside the same without."""
    with TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        ours.mkdir()
        for name in ("vec_i8", "graph"):
            (ours / name).write_bytes(sections[name])
        peer.save_index(str(theirs))
        rows = peer.get_current_count()
        resident = {path.name: _resident_of_child(path) / rows for path in (ours, theirs)}
    print(f"\nmemory, bytes a row: hnswlib {resident['theirs']:.0f}, ours {resident['ours']:.0f}", flush=True)
    return {
        "hot_ram_vs_hnswlib": resident["ours"] / resident["theirs"],
        "hot_bytes_a_chunk": resident["ours"],
    }


def _resident_of_child(path: Path) -> float:
    run = subprocess.run([sys.executable, "-m", __name__, str(path)], check=True, capture_output=True, text=True)
    return float(json.loads(run.stdout)["bytes"])


def resident_bytes() -> int:
    """Of this process, without what only the allocator keeps."""
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def _open_and_tell(path: Path) -> None:
    query = np.eye(1, DIM, dtype=np.float32)[0]
    tiny = kernels.Int8Rows(np.ones((2, DIM), np.int8), np.ones(2, np.float32))  # the library is loaded before we count
    tiny.scan(query, None, 1, 1)
    before = resident_bytes()
    if path.is_dir():
        codes = vectors.Codes.from_sections((path / "vec_i8").read_bytes(), (path / "graph").read_bytes())
        codes.nearest(query, None, K, exact_below=1)
    else:
        index = hnswlib.Index("ip", DIM)
        index.load_index(str(path))
        index.knn_query(query, k=K, num_threads=1)
    print(json.dumps({"bytes": resident_bytes() - before}))


if __name__ == "__main__":
    _open_and_tell(Path(sys.argv[1]))
