"""The native search over int8 vectors, as Python calls it. This module alone knows `native/`'s vectors library.

Every path gives the same rows and scores. Shapes are checked here, the graph's links in native code when it is loaded.
A search costs tens of microseconds, and asking numpy for an address one: what needs one is kept, or passed as bytes.
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
_CANNOT_RUN = "This machine cannot run that path of the vector search."
_WORD_ROWS = 64


class Path(IntEnum):
    """A set of instructions; BEST is the fastest of this machine."""

    BEST = -1
    PORTABLE = 0
    AVX2 = 1
    VNNI = 2
    NEON = 3
    NEON_DOT = 4


class Allowed:
    """The rows that a search may find, as bits. Immutable; safe to use from many threads."""

    def __init__(self, mask: Bools, path: int = Path.BEST) -> None:
        """mask: bool [rows]; copied. Raises Broken where this machine has not that path."""
        mask = np.ascontiguousarray(mask, np.bool_)
        self.rows = len(mask)
        self.words = (ctypes.c_uint64 * (-(-self.rows // _WORD_ROWS)))()
        self.count: int = _native().allowed_bits(mask.ctypes.data, self.rows, self.words, path)
        if self.count == _NO_PATH:
            raise Broken(_CANNOT_RUN)


class _Rows(ctypes.Structure):
    """dot_i8.h's Rows."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("vectors", "scales", "graph")),
        *((name, ctypes.c_uint64) for name in ("rows", "dim")),
    )


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
        graph_at = self._graph.ctypes.data
        if graph_at % 4:
            raise ValueError("a graph must begin at a multiple of 4")
        if graph is not None and (fault := _native().check_graph(graph_at, len(graph), self.rows)):
            raise StoreDamaged(f"The graph of a segment {_FAULTS[fault]}.")
        self._native = _Rows(self._codes.ctypes.data, self._scales.ctypes.data, graph_at, self.rows, self.dim)
        self._at = ctypes.addressof(self._native)

    def scan(
        self, query: Floats, allowed: Allowed | None, k: int, width: int, path: int = Path.BEST
    ) -> tuple[Rows, Floats]:
        """The allowed rows that may be the k best: uint32 [n], float32 [n], by int8 dot product, equal scores by row.

        They are the k best by that, and of the following those that it cannot tell from them, `width` in all at most.
        query: float32 [dim]; allowed: of as many rows, None for all. What is returned is good until this thread's next
        search. Raises Broken where this machine has not that path, or a value of the query is no number.
        """
        self._require_fit(query, allowed)
        width = min(width, self.rows)
        desk = _desk.with_room(width)
        count = _native().scan_i8(
            *(self._at, allowed.words if allowed else None, _bytes(query), k, width),
            *(desk.rows_at, desk.scores_at, path),
        )
        return desk.first(count)

    def walk(
        self, query: Floats, allowed: Allowed | None, k: int, width: int, budget: int, path: int = Path.BEST
    ) -> tuple[Rows, Floats]:
        """As `scan`, of the rows that a walk of the graph meets; may be fewer than k.

        width: how many candidates the walk holds (HNSW's ef). budget: about how many rows it may compare before it
        gives up.
        """
        assert self.has_graph
        self._require_fit(query, allowed)
        width = min(width, self.rows)
        desk = _desk.with_room(width)
        count = _native().search_graph(
            *(self._at, allowed.words if allowed else None, _bytes(query), k, width, budget),
            *(desk.rows_at, desk.scores_at, path),
        )
        return desk.first(count)

    def _require_fit(self, query: Floats, allowed: Allowed | None) -> None:
        if query.shape != (self.dim,) or (allowed is not None and allowed.rows != self.rows):
            raise ValueError(f"query {query.shape} and allowed must fit {self.rows} rows of {self.dim}")


def rescore(rows: Rows, halves: bytes, query: Floats, keep: int, path: int = Path.BEST) -> tuple[Rows, Floats]:
    """The best `keep` of the rows by dot product with the query, as `Int8Rows.scan` gives them.

    rows: may be what `scan` gave; halves: little-endian float16 [len(rows), dim]; query: float32 [dim].
    """
    if len(halves) != 2 * len(query) * len(rows) or rows.dtype != np.uint32:
        raise ValueError(f"{len(halves)} bytes of halves must fit rows {rows.shape} and query {query.shape}")
    keep = min(keep, len(rows))
    desk = _desk.with_room(keep)
    count = _native().rescore_f16(
        *(rows.tobytes(), halves, len(rows), len(query), _bytes(query), keep, desk.rows_at, desk.scores_at, path)
    )
    return desk.first(count)


def _bytes(query: Floats) -> bytes:
    """A copy costs a tenth of what asking numpy for an address does."""
    return np.asarray(query, np.float32).tobytes()


class _Desk(threading.local):
    """Where a thread finds its answer; grows to the largest."""

    def __init__(self) -> None:
        self._rows, self._scores = np.empty(0, np.uint32), np.empty(0, np.float32)
        self.rows_at = self.scores_at = 0

    def with_room(self, keep: int) -> "_Desk":
        """For that many rows."""
        if len(self._rows) < keep:
            self._rows, self._scores = np.empty(keep, np.uint32), np.empty(keep, np.float32)
            self.rows_at, self.scores_at = self._rows.ctypes.data, self._scores.ctypes.data
        return self

    def first(self, count: int) -> tuple[Rows, Floats]:
        """What was written there. Raises Broken where nothing could be."""
        if count == _NO_PATH:
            raise Broken(_CANNOT_RUN)
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
    library.allowed_bits.argtypes = (array, size, array, path)
    library.check_graph.argtypes = (array, size, size)
    library.scan_i8.argtypes = (array, array, array, size, size, array, array, path)
    library.search_graph.argtypes = (array, array, array, size, size, size, array, array, path)
    library.rescore_f16.argtypes = (array, array, size, size, array, size, array, array, path)
    calls = (library.allowed_bits, library.check_graph, library.scan_i8, library.search_graph, library.rescore_f16)
    for call in calls:
        call.restype = ctypes.c_int64
    return library
