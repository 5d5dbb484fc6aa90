"""The native search over int8 vectors, as Python calls it. This module alone knows `native/`'s vectors library.

Every path gives the same rows and scores. Shapes are checked here, the graph's links in native code when it is loaded.
A search costs tens of microseconds, so what each call would make anew, arrays and their addresses, a thread keeps.
"""

import ctypes
import threading
from enum import IntEnum
from functools import cache
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from appliance.errors import Broken, StoreDamaged
from appliance.knowledge.index.vector_index import Rows
from appliance.types import Bools, Floats

_LIBRARY = "appliance/libvectors.so"
_FAULTS = {1: "has another format", 2: "does not fit its vectors, or is cut short", 3: "has an impossible link"}
_NO_PATH = -1
_NOT_FINITE = -2


class Path(IntEnum):
    """A set of instructions; BEST is the fastest of this machine."""

    BEST = -1
    PORTABLE = 0
    AVX2 = 1
    VNNI = 2
    NEON = 3
    NEON_DOT = 4


class Int8Rows:
    """Rows to search, and the graph over them where there is one. Immutable; safe to search from many threads."""

    def __init__(self, codes: NDArray[np.int8], scales: Floats, graph: NDArray[np.uint8] | None = None) -> None:
        """codes: int8 [rows, dim]; scales: float32 [rows], finite; a row is codes * scale. graph: hnsw.py's bytes.

        Raises StoreDamaged where the graph is none of that many rows.
        """
        if codes.ndim != 2 or scales.shape != codes.shape[:1]:
            raise ValueError(f"scales {scales.shape} must fit codes {codes.shape}")
        self.rows, self.dim = (int(size) for size in codes.shape)
        self.has_graph = graph is not None
        self._codes, self._scales = np.ascontiguousarray(codes, np.int8), np.ascontiguousarray(scales, np.float32)
        self._graph = np.zeros(0, np.uint8) if graph is None else np.require(graph, np.uint8, ["C", "A"])
        self._graph_at, self._codes_at, self._scales_at = (
            array.ctypes.data for array in (self._graph, self._codes, self._scales)
        )
        if self._graph_at % 4:
            raise ValueError("a graph must begin at a multiple of 4")
        if graph is not None and (fault := _native().check_graph(self._graph_at, len(graph), self.rows)):
            raise StoreDamaged(f"The graph of a segment {_FAULTS[fault]}.")

    def scan(
        self, query: Floats, allowed: Bools | None, k: int, width: int, path: int = Path.BEST
    ) -> tuple[Rows, Floats]:
        """The allowed rows that may be the k best: uint32 [n], float32 [n], by int8 dot product, equal scores by row.

        They are the k best by that, and of the following those that it cannot tell from them, `width` in all at most.
        query: float32 [dim]; allowed: bool [rows], None for all. What is returned is good until this thread's next
        search. Raises Broken where this machine has not that path, or a value of the query is no number.
        """
        mask, width = self._mask(query, allowed), min(width, self.rows)
        desk = _desk.of(query, width)
        count = _native().scan_i8(
            *(self._codes_at, self._scales_at, None if mask is None else mask.ctypes.data, self.rows, self.dim),
            *(desk.query_at, k, width, desk.rows_at, desk.scores_at, path),
        )
        return desk.first(count)

    def walk(
        self, query: Floats, allowed: Bools | None, k: int, width: int, budget: int, path: int = Path.BEST
    ) -> tuple[Rows, Floats]:
        """As `scan`, of the rows that a walk of the graph meets; may be fewer than k.

        width: how many candidates the walk holds (HNSW's ef). budget: about how many rows it may compare before it
        gives up.
        """
        assert self.has_graph
        mask, width = self._mask(query, allowed), min(width, self.rows)
        desk = _desk.of(query, width)
        count = _native().search_graph(
            *(self._graph_at, self._codes_at, self._scales_at, None if mask is None else mask.ctypes.data),
            *(self.rows, self.dim, desk.query_at, k, width, budget, desk.rows_at, desk.scores_at, path),
        )
        return desk.first(count)

    def _mask(self, query: Floats, allowed: Bools | None) -> Bools | None:
        if query.shape != (self.dim,) or (allowed is not None and allowed.shape != (self.rows,)):
            raise ValueError(f"query {query.shape} and allowed must fit {self.rows} rows of {self.dim}")
        return None if allowed is None else np.ascontiguousarray(allowed, np.bool_)


def rescore(
    rows: Rows, halves: NDArray[np.uint8], query: Floats, keep: int, path: int = Path.BEST
) -> tuple[Rows, Floats]:
    """The best `keep` of the rows by dot product with the query, as `Int8Rows.scan` gives them.

    rows: may be what `scan` gave; halves: uint8 [len(rows), 2 * dim], their float16; query: float32 [dim].
    """
    if halves.shape != (len(rows), 2 * len(query)) or rows.dtype != np.uint32 or halves.dtype != np.uint8:
        raise ValueError(f"halves {halves.shape} must fit rows {rows.shape} and query {query.shape}")
    keep = min(keep, len(rows))
    halves = np.ascontiguousarray(halves)
    desk = _desk.of(query, keep)
    count = _native().rescore_f16(
        *(rows.ctypes.data, halves.ctypes.data, len(rows), len(query), desk.query_at, keep),
        *(desk.rows_at, desk.scores_at, path),
    )
    return desk.first(count)


class _Desk(threading.local):
    """Where a thread puts its query and finds its answer; grows to the largest."""

    def __init__(self) -> None:
        self._query = np.empty(0, np.float32)
        self._rows, self._scores = np.empty(0, np.uint32), np.empty(0, np.float32)
        self.query_at = self.rows_at = self.scores_at = 0

    def of(self, query: Floats, keep: int) -> "_Desk":
        """With the query on it, and room for that many rows."""
        if len(self._query) != len(query):
            self._query = np.empty(len(query), np.float32)
            self.query_at = self._query.ctypes.data
        if len(self._rows) < keep:
            self._rows, self._scores = np.empty(keep, np.uint32), np.empty(keep, np.float32)
            self.rows_at, self.scores_at = self._rows.ctypes.data, self._scores.ctypes.data
        self._query[:] = query
        return self

    def first(self, count: int) -> tuple[Rows, Floats]:
        """What was written there. Raises Broken where nothing could be."""
        if count == _NO_PATH:
            raise Broken("This machine cannot run that path of the vector search.")
        if count == _NOT_FINITE:
            raise Broken("The embedder gave a vector with a value that is no number.")
        return self._rows[:count], self._scores[:count]


_desk = _Desk()


@cache
def _native() -> ctypes.CDLL:
    """The library as it was installed beside the package, editable or not. Raises Broken."""
    try:
        library = ctypes.CDLL(str(metadata.distribution("appliance").locate_file(_LIBRARY)))
    except (metadata.PackageNotFoundError, OSError) as error:
        raise Broken(f"The vector search {_LIBRARY} is not installed: build the package with `pip install`.") from error
    array, size, path = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32
    library.scan_i8.argtypes = (array, array, array, size, size, array, size, size, array, array, path)
    library.check_graph.argtypes = (array, size, size)
    library.search_graph.argtypes = (
        *(array, array, array, array, size, size, array),
        *(size, size, size, array, array, path),
    )
    library.rescore_f16.argtypes = (array, array, size, size, array, size, array, array, path)
    for call in (library.scan_i8, library.check_graph, library.search_graph, library.rescore_f16):
        call.restype = ctypes.c_int64
    return library
