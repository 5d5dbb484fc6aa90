"""The native search over int8 vectors, as Python calls it. This module alone knows `native/`'s vectors library.

Every path gives the same rows and scores. Arrays are C-contiguous; sizes are checked here, contents in native code.
"""

import ctypes
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


def scan(
    codes: NDArray[np.int8], scales: Floats, query: Floats, allowed: Bools | None, keep: int, path: int = Path.BEST
) -> tuple[Rows, Floats]:
    """The best `keep` allowed rows by int8 dot product, best first, equal scores by row.

    codes: int8 [rows, dim]; scales: float32 [rows], a row is codes * scale; query: float32 [dim].
    Raises Broken where this machine has not that path, or a value of the query is no number.
    """
    rows, dim = codes.shape
    query, mask = _checked(codes, scales, query, allowed)
    keep = min(keep, rows)
    found, scores = np.empty(keep, np.uint32), np.empty(keep, np.float32)
    count = _native().scan_i8(
        codes.ctypes.data,
        scales.ctypes.data,
        None if mask is None else mask.ctypes.data,
        rows,
        dim,
        query.ctypes.data,
        keep,
        found.ctypes.data,
        scores.ctypes.data,
        path,
    )
    return _first(count, found, scores)


def check_graph(graph: NDArray[np.uint8], rows: int) -> None:
    """Raises StoreDamaged where the bytes are no graph of that many rows: what passes can be walked safely."""
    if fault := _native().check_graph(graph.ctypes.data, len(graph), rows):
        raise StoreDamaged(f"The graph of a segment {_FAULTS[fault]}.")


def search_graph(
    graph: NDArray[np.uint8],
    codes: NDArray[np.int8],
    scales: Floats,
    query: Floats,
    allowed: Bools | None,
    width: int,
    keep: int,
    budget: int,
    path: int = Path.BEST,
) -> tuple[Rows, Floats]:
    """The best `keep` allowed rows that a walk of the graph meets, as `scan` gives them; may be fewer.

    graph: that `check_graph` let pass for these rows. width: how many candidates the walk holds (HNSW's ef). budget:
    about how many rows it may compare before it gives up. Raises as `scan`.
    """
    rows, dim = codes.shape
    query, mask = _checked(codes, scales, query, allowed)
    keep = min(keep, rows)
    found, scores = np.empty(keep, np.uint32), np.empty(keep, np.float32)
    count = _native().search_graph(
        graph.ctypes.data,
        codes.ctypes.data,
        scales.ctypes.data,
        None if mask is None else mask.ctypes.data,
        rows,
        dim,
        query.ctypes.data,
        width,
        keep,
        budget,
        found.ctypes.data,
        scores.ctypes.data,
        path,
    )
    return _first(count, found, scores)


def rescore(
    rows: Rows, addresses: NDArray[np.uint64], query: Floats, keep: int, path: int = Path.BEST
) -> tuple[Rows, Floats]:
    """The best `keep` of the rows by dot product with their float16 [dim] at those addresses, as `scan` gives them."""
    if rows.shape != addresses.shape or (rows.dtype, addresses.dtype) != (np.uint32, np.uint64):
        raise ValueError(f"addresses {addresses.shape} must fit rows {rows.shape}")
    query = np.ascontiguousarray(query, np.float32)
    keep = min(keep, len(rows))
    found, scores = np.empty(keep, np.uint32), np.empty(keep, np.float32)
    count = _native().rescore_f16(
        rows.ctypes.data,
        addresses.ctypes.data,
        len(rows),
        len(query),
        query.ctypes.data,
        keep,
        found.ctypes.data,
        scores.ctypes.data,
        path,
    )
    return _first(count, found, scores)


def _checked(
    codes: NDArray[np.int8], scales: Floats, query: Floats, allowed: Bools | None
) -> tuple[Floats, Bools | None]:
    rows, dim = codes.shape
    if query.shape != (dim,) or scales.shape != (rows,) or (allowed is not None and allowed.shape != (rows,)):
        raise ValueError(f"query {query.shape}, scales {scales.shape} and allowed must fit codes {codes.shape}")
    mask = None if allowed is None else np.ascontiguousarray(allowed, np.bool_)
    return np.ascontiguousarray(query, np.float32), mask


def _first(count: int, found: Rows, scores: Floats) -> tuple[Rows, Floats]:
    if count == _NO_PATH:
        raise Broken("This machine cannot run that path of the vector search.")
    if count == _NOT_FINITE:
        raise Broken("The embedder gave a vector with a value that is no number.")
    return found[:count], scores[:count]


@cache
def _native() -> ctypes.CDLL:
    """The library as it was installed beside the package, editable or not. Raises Broken."""
    try:
        library = ctypes.CDLL(str(metadata.distribution("appliance").locate_file(_LIBRARY)))
    except (metadata.PackageNotFoundError, OSError) as error:
        raise Broken(f"The vector search {_LIBRARY} is not installed: build the package with `pip install`.") from error
    array, size, path = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32
    library.scan_i8.argtypes = (array, array, array, size, size, array, size, array, array, path)
    library.check_graph.argtypes = (array, size, size)
    library.search_graph.argtypes = (
        *(array, array, array, array, size, size, array),
        *(size, size, size, array, array, path),
    )
    library.rescore_f16.argtypes = (array, array, size, size, array, size, array, array, path)
    for call in (library.scan_i8, library.check_graph, library.search_graph, library.rescore_f16):
        call.restype = ctypes.c_int64
    return library
