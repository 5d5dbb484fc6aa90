"""Nearest neighbours over the unit vectors of one sealed segment, and exactly over a memtable.

Each row is kept twice: as int8 with a scale, which is searched and stays in memory, and as float16, by which those that
int8 cannot tell apart are ranked; of these only the few that may be among the best are read, where they lie. Up to
EXACT_ROWS allowed rows the native scan reads them all: recall is 1, and a row outside `allowed` costs next to nothing.
Above, a graph is walked with the filter inside the walk (hnsw.py), and where that has met too few rows when it has cost
as much as a scan, a scan follows.

Sections, little endian:
    vec_i8    magic "VECI8\\x01\\0\\0", u32 rows, u32 dim, f32 scale[rows], i8 [rows, dim]
    vec_f16   f16 [rows, dim]
    graph     hnsw.py's; only from EXACT_ROWS rows on
"""

import struct
from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from appliance.errors import Broken, StoreDamaged
from appliance.knowledge.index import hnsw
from appliance.knowledge.index.kernels import Allowed, Int8Rows, rescore
from appliance.knowledge.index.vector_index import HalfRows, Rows
from appliance.ports import Buffer
from appliance.types import Bools, Floats

EXACT_ROWS = 30_000

_MAGIC = b"VECI8\x01\0\0"
_HEADER = struct.Struct("<8sII")
_LINE_BYTES = 64
_WALK_WIDTH = 64
_HELD_PER_HIT = 2
_WALKED_COST = 8  # rows that a scan compares in the time of one on a walk
_WALKED_PER_HELD = 32  # twice as many rows as an unfiltered walk compares for each candidate that it holds


class Codes:
    """The int8 rows of a segment, and its graph where it has one: what of its vectors stays in memory. Immutable."""

    def __init__(self, rows: Int8Rows) -> None:
        self._rows = rows

    @classmethod
    def from_sections(cls, vec_i8: Buffer, graph: Buffer = b"") -> Self:
        """What those sections say; the buffers are copied. Raises StoreDamaged."""
        magic, rows, dim = _HEADER.unpack_from(vec_i8) if len(vec_i8) >= _HEADER.size else (b"", 0, 0)
        if magic != _MAGIC or len(vec_i8) != _HEADER.size + rows * (4 + dim):
            raise StoreDamaged("The vectors of a segment are not as large as they say.")
        scales = np.frombuffer(vec_i8, "<f4", rows, _HEADER.size).copy()
        if not np.isfinite(scales).all():
            raise StoreDamaged("The vectors of a segment have a scale that is no number.")
        codes = _aligned(np.frombuffer(vec_i8, np.uint8, rows * dim, _HEADER.size + 4 * rows))
        links = _aligned(np.frombuffer(graph, np.uint8)) if len(graph) else None
        return cls(Int8Rows(codes.view(np.int8).reshape(rows, dim), scales, links))

    @property
    def rows(self) -> int:
        return self._rows.rows

    @property
    def dim(self) -> int:
        return self._rows.dim

    def nearest(
        self, query: Floats, allowed: Bools | None, k: int, exact_below: int = EXACT_ROWS, width: int = _WALK_WIDTH
    ) -> Rows:
        """The rows that may be the k best, as `Int8Rows.scan` says; fewer than k only where fewer are allowed.

        exact_below: of allowed rows; from there on the graph is walked, holding `width` candidates. What is returned is
        good until this thread's next search. Raises as VectorIndex.search.
        """
        filter_ = None if allowed is None else Allowed(allowed)
        count = self.rows if filter_ is None else filter_.count
        k = min(k, count)
        if self._rows.has_graph and count >= exact_below:
            width = max(width, _HELD_PER_HIT * k)
            budget = max(count // _WALKED_COST, _WALKED_PER_HELD * width)
            found, _ = self._rows.walk(query, filter_, k, width, budget)
            if len(found) >= k:
                return found
        return self._rows.scan(query, filter_, k, max(_WALK_WIDTH, _HELD_PER_HIT * k))[0]


class SegmentVectors:
    """A VectorIndex: finds by int8, and ranks what it found by float16."""

    def __init__(self, codes: Codes, halves: HalfRows, exact_below: int = EXACT_ROWS, width: int = _WALK_WIDTH) -> None:
        """exact_below, width: as Codes.nearest."""
        self._codes, self._halves, self._exact_below, self._width = codes, halves, exact_below, width

    @classmethod
    def from_sections(cls, sections: Mapping[str, Buffer], exact_below: int = EXACT_ROWS) -> Self:
        """With all of it in memory. Raises StoreDamaged."""
        try:
            codes = Codes.from_sections(sections["vec_i8"], sections.get("graph", b""))
            halves = sections["vec_f16"]
        except KeyError as missing:
            raise StoreDamaged(f"A segment has no section {missing}.") from None
        if len(halves) != 2 * codes.rows * codes.dim:
            raise StoreDamaged("The vectors of a segment are not as large as they say.")
        rows = np.frombuffer(halves, np.uint8).reshape(codes.rows, 2 * codes.dim)
        return cls(codes, lambda wanted: rows[wanted].tobytes(), exact_below)

    @property
    def rows(self) -> int:
        return self._codes.rows

    def search(self, query: Floats, allowed: Bools | None, k: int) -> tuple[Rows, Floats]:
        k = max(k, 0)
        near = self._codes.nearest(query, allowed, k, self._exact_below, self._width)
        rows, scores = rescore(near, self._halves(near), query, k)
        return rows.copy(), scores.copy()

    def score(self, query: Floats, rows: Rows) -> Floats:
        if query.shape != (self._codes.dim,) or (len(rows) and int(rows.max()) >= self.rows):
            raise ValueError(f"query {query.shape} and rows must fit {self.rows} rows of {self._codes.dim}")
        order, scores = rescore(np.arange(len(rows), dtype=np.uint32), self._halves(rows), query, len(rows))
        found = np.empty(len(rows), np.float32)
        found[order] = scores
        return found


def to_sections(vectors: Floats, exact_below: int = EXACT_ROWS) -> dict[str, bytes]:
    """vec_i8, vec_f16, and graph where there is one, of unit vectors float32 [rows, dim]; the same give the same bytes.

    exact_below: from how many rows on a graph is built. Raises Broken where a value is not finite.
    """
    if not np.isfinite(vectors).all():
        raise Broken("The embedder gave a vector with a value that is no number.")
    codes, scales = _quantize(vectors)
    sections = {
        "vec_i8": _HEADER.pack(_MAGIC, *codes.shape) + scales.astype("<f4").tobytes() + codes.tobytes(),
        "vec_f16": vectors.astype("<f2").tobytes(),
    }
    return sections | ({"graph": hnsw.build(vectors)} if len(vectors) >= max(exact_below, 1) else {})


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


def _quantize(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """int8 [rows, dim] and float32 [rows] such that codes * scale is nearest the vectors; symmetric, a scale a row."""
    scales = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    codes = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
    return codes, scales


def _aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy that begins with a line of the cache; numpy asks for huge pages where it is large, which walks need."""
    room = np.empty(len(data) + _LINE_BYTES, np.uint8)
    start = -room.ctypes.data % _LINE_BYTES
    room[start : start + len(data)] = data
    return room[start : start + len(data)]
