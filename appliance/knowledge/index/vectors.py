"""Nearest neighbours over the unit vectors of one sealed segment, and exactly over a memtable.

Each row is kept twice: as int8 with a scale, which is scanned, and as float16, from which the best of the scan are
scored again. Up to EXACT_ROWS allowed rows the native scan reads them all: recall is 1 but for int8 ties at the edge,
and a row outside `allowed` costs next to nothing. Above, an HNSW graph (Malkov and Yashunin, 2018) is walked with the
filter inside the walk. This module alone knows hnswlib and `native/scan_i8.cpp`.

Sections, little endian:
    vec_i8    magic "VECI8\\x01\\0\\0", u32 rows, u32 dim, f32 scale[rows], i8 [rows, dim]
    vec_f16   f16 [rows, dim]
    graph     hnswlib's own index file; only from EXACT_ROWS rows on
"""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from typing import Any, Self

import hnswlib
import numpy as np
from numpy.typing import NDArray

from appliance.errors import Broken, StoreDamaged
from appliance.ports import Buffer
from appliance.types import Bools, Floats

EXACT_ROWS = 30_000

_MAGIC = b"VECI8\x01\0\0"
_HEADER = struct.Struct("<8sII")
_LIBRARY = "appliance/libscan_i8.so"
_LINKS = 16
_BUILD_WIDTH = 200
_SEARCH_WIDTH = 96
_GRAPH_HEADER = struct.Struct(
    "<7Q"
)  # hnswlib's saveIndex: level 0, capacity, rows, bytes a row, label, data, top level
_RESCORED_PER_HIT = 4
_RESCORED_LEAST = 64

Rows = NDArray[np.uint32]


class VectorIndex:
    """The vectors of one sealed segment. Immutable; safe to search from many threads."""

    def __init__(
        self, scales: Floats, codes: NDArray[np.int8], halves: NDArray[np.float16], graph: Any | None, exact_below: int
    ) -> None:
        self._scales = scales
        self._codes = codes
        self._halves = halves
        self._graph = graph
        self._exact_below = exact_below

    @classmethod
    def build(cls, vectors: Floats, exact_below: int = EXACT_ROWS) -> Self:
        """The index of unit vectors, float32 [rows, dim]; the same vectors give the same bytes.

        exact_below: from how many rows on a graph is built and walked. Raises Broken where a value is not finite.
        """
        if not np.isfinite(vectors).all():
            raise Broken("The embedder gave a vector with a value that is no number.")
        codes, scales = _quantize(vectors)
        graph = _build_graph(vectors) if len(vectors) >= exact_below else None
        return cls(scales, codes, vectors.astype("<f2"), graph, exact_below)

    @classmethod
    def from_sections(cls, sections: Mapping[str, Buffer], exact_below: int = EXACT_ROWS) -> Self:
        """The index that `sections` described; the buffers are kept, not copied. Raises StoreDamaged."""
        try:
            data, halves = memoryview(sections["vec_i8"]), sections["vec_f16"]
        except KeyError as missing:
            raise StoreDamaged(f"A segment has no section {missing}.") from None
        magic, rows, dim = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (b"", 0, 0)
        sound = magic == _MAGIC and len(data) == _HEADER.size + rows * (4 + dim) and len(halves) == 2 * rows * dim
        if not sound:
            raise StoreDamaged("The vectors of a segment are not as large as they say.")
        scales = np.frombuffer(data, "<f4", rows, _HEADER.size)
        codes = np.frombuffer(data, np.int8, rows * dim, _HEADER.size + 4 * rows).reshape(rows, dim)
        half_rows = np.frombuffer(halves, "<f2").reshape(rows, dim)
        graph = _load_graph(sections["graph"], rows, dim) if len(sections.get("graph", b"")) else None
        return cls(scales, codes, half_rows, graph, exact_below)

    def sections(self) -> dict[str, bytes]:
        """vec_i8, vec_f16, and graph where there is one, in the module's format."""
        header = _HEADER.pack(_MAGIC, *self._codes.shape)
        found = {
            "vec_i8": header + self._scales.astype("<f4").tobytes() + self._codes.tobytes(),
            "vec_f16": self._halves.tobytes(),
        }
        return found | ({"graph": _save_graph(self._graph)} if self._graph is not None else {})

    @property
    def rows(self) -> int:
        return len(self._codes)

    def search(self, query: Floats, allowed: Bools | None, k: int) -> tuple[Rows, Floats]:
        """The k best rows by cosine, best first: uint32 [n], float32 [n], n <= k.

        query: float32 [dim], unit norm. allowed: bool [rows], None for all; applied before the best are chosen.
        """
        count = self.rows if allowed is None else int(np.count_nonzero(allowed))
        keep = min(count, max(k * _RESCORED_PER_HIT, _RESCORED_LEAST))
        if k <= 0 or keep == 0:
            return np.zeros(0, np.uint32), np.zeros(0, np.float32)
        near = self._walk(query, allowed, keep) if self._graph is not None and count >= self._exact_below else None
        if near is None:
            near = scan(self._codes, self._scales, query, allowed, keep)[0]
        scores = self._halves[near].astype(np.float32) @ query.astype(np.float32)
        order = np.lexsort((near, -scores))[:k]
        return near[order], scores[order]

    def _walk(self, query: Floats, allowed: Bools | None, keep: int) -> Rows | None:
        """The walk's `keep` nearest rows; None where it did not reach as many."""
        assert self._graph is not None
        accept = None if allowed is None else np.ascontiguousarray(allowed).data.__getitem__
        try:
            labels, _ = self._graph.knn_query(query, k=keep, num_threads=1, filter=accept)
        except RuntimeError:
            return None
        return np.asarray(labels[0], dtype=np.uint32)


def exact(vectors: Floats, query: Floats, allowed: Bools | None, k: int) -> tuple[Rows, Floats]:
    """As VectorIndex.search, over float32 [rows, dim] as they are: for a memtable."""
    scores = (vectors @ query).astype(np.float32)
    rows = np.arange(len(scores), dtype=np.uint32) if allowed is None else np.flatnonzero(allowed).astype(np.uint32)
    scores = scores[rows]
    if 0 < k < len(scores):
        best = np.argpartition(-scores, k - 1)[:k]
        rows, scores = rows[best], scores[best]
    order = np.lexsort((rows, -scores))[: max(k, 0)]
    return rows[order], scores[order]


def scan(
    codes: NDArray[np.int8], scales: Floats, query: Floats, allowed: Bools | None, keep: int, path: int = -1
) -> tuple[Rows, Floats]:
    """The best `keep` allowed rows by int8 dot product, best first, equal scores by row.

    codes: int8 [rows, dim]; scales: float32 [rows], a row is codes * scale; query: float32 [dim].
    path: -1 the best of this machine, 0 portable, 1 AVX2, 2 AVX-512 VNNI. Raises Broken where it has not that path.
    """
    rows, dim = codes.shape
    if query.shape != (dim,) or scales.shape != (rows,) or (allowed is not None and allowed.shape != (rows,)):
        raise ValueError(f"query {query.shape}, scales {scales.shape} and allowed must fit codes {codes.shape}")
    (query_codes,), (query_scale,) = _quantize(query[None].astype(np.float32))
    mask = None if allowed is None else np.ascontiguousarray(allowed, np.bool_)
    found = np.empty(keep, np.uint32)
    scores = np.empty(keep, np.float32)
    arrays = (np.ascontiguousarray(codes), np.ascontiguousarray(scales, np.float32), np.ascontiguousarray(query_codes))
    count = _native().scan_i8(
        arrays[0].ctypes.data,
        arrays[1].ctypes.data,
        None if mask is None else mask.ctypes.data,
        rows,
        dim,
        arrays[2].ctypes.data,
        keep,
        found.ctypes.data,
        scores.ctypes.data,
        path,
    )
    if count < 0:
        raise Broken(f"This machine cannot run path {path} of the vector scan.")
    return found[:count], scores[:count] * query_scale


def _quantize(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """int8 [rows, dim] and float32 [rows] such that codes * scale is nearest the vectors; symmetric, a scale a row."""
    scales = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    codes = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
    return codes, scales


@cache
def _native() -> ctypes.CDLL:
    """The scan as it was installed beside the package, editable or not. Raises Broken."""
    try:
        library = ctypes.CDLL(str(metadata.distribution("appliance").locate_file(_LIBRARY)))
    except (metadata.PackageNotFoundError, OSError) as error:
        raise Broken(f"The vector scan {_LIBRARY} is not installed: build the package with `pip install`.") from error
    pointer, size = ctypes.c_void_p, ctypes.c_uint64
    library.scan_i8.argtypes = (pointer, pointer, pointer, size, size, pointer, size, pointer, pointer, ctypes.c_int32)
    library.scan_i8.restype = ctypes.c_int64
    return library


def _build_graph(vectors: Floats) -> Any:
    """One thread and a fixed seed: the same vectors give the same graph."""
    graph = hnswlib.Index("ip", vectors.shape[1])
    graph.init_index(len(vectors), M=_LINKS, ef_construction=_BUILD_WIDTH, random_seed=1)
    graph.add_items(vectors, np.arange(len(vectors)), num_threads=1)
    graph.set_ef(_SEARCH_WIDTH)
    return graph


def _save_graph(graph: Any) -> bytes:
    with _memory_file() as path:
        graph.save_index(path)
        with open(path, "rb") as file:
            return file.read()


def _load_graph(data: Buffer, rows: int, dim: int) -> Any:
    """hnswlib trusts its file: the numbers that it will step by are compared with the segment's first."""
    header = _GRAPH_HEADER.unpack_from(data) if len(data) >= _GRAPH_HEADER.size else (0,) * 7
    _, capacity, count, row_bytes, label_at, data_at, _ = header
    links_bytes = 4 + 4 * 2 * _LINKS
    if (capacity, count, row_bytes, label_at, data_at) != (
        rows,
        rows,
        links_bytes + 4 * dim + 8,
        links_bytes + 4 * dim,
        links_bytes,
    ):
        raise StoreDamaged("The graph of a segment does not fit its vectors.")
    graph = hnswlib.Index("ip", dim)
    with _memory_file() as path:
        with open(path, "wb") as file:
            file.write(data)
        try:
            graph.load_index(path)
        except RuntimeError as error:
            raise StoreDamaged("The graph of a segment is cut short or damaged.") from error
    graph.set_ef(_SEARCH_WIDTH)
    return graph


@contextmanager
def _memory_file() -> Iterator[str]:
    """A path to anonymous memory: hnswlib reads and writes paths only, and no plaintext may touch the disk."""
    fd = os.memfd_create("graph", os.MFD_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
