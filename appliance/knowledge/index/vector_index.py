"""What a search over one unit's vectors promises, and what it needs of float16 rows that are not kept in memory."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.types import Bools, Floats

Rows = NDArray[np.uint32]


class VectorIndex(Protocol):
    """Nearest neighbours over the unit vectors of one sealed segment. Immutable; safe to search from many threads."""

    @property
    def rows(self) -> int: ...

    def search(self, query: Floats, allowed: Bools | None, k: int) -> tuple[Rows, Floats]:
        """The k best rows by cosine, best first, equal ones by row: uint32 [n], float32 [n], n <= k.

        query: float32 [dim], unit norm. allowed: bool [rows], None for all; applied before the best are chosen, so that
        a row outside it costs no recall. n < k only where fewer than k rows are allowed.
        Raises ValueError for shapes that don't fit, Broken where a value of the query is no number, StoreDamaged.
        """

    def score(self, query: Floats, rows: Rows) -> Floats:
        """The cosine of each of those rows, float32 [len(rows)], as `search` gives it. Raises as `search`."""


class HalfRows(Protocol):
    """Reads float16 rows of one unit, wherever they lie. Safe to call from many threads."""

    def __call__(self, rows: Rows) -> bytes:
        """The little-endian float16 of each of those rows, one row after another.

        rows: in any order, each below the unit's count. Raises StoreDamaged.
        """
