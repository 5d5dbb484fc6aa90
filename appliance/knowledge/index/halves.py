"""Float16 rows where they lie: in one array, or read when they are asked for. Both are HalfRows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.index.vector_index import Rows


class ArrayHalves:
    """Rows of one array, float16 [rows, dim]."""

    def __init__(self, halves: NDArray[np.float16]) -> None:
        self._halves = np.ascontiguousarray(halves)
        self._first, self._step = self._halves.ctypes.data, self._halves.strides[0]

    def addresses(self, rows: Rows) -> tuple[NDArray[np.uint64], object]:
        return rows * np.uint64(self._step) + np.uint64(self._first), self._halves


class ReadHalves:
    """Rows that `read` copies out of a file: uint8 [len(rows), 2 * dim], C-contiguous."""

    def __init__(self, read: Callable[[Rows], NDArray[np.uint8]]) -> None:
        self._read = read

    def addresses(self, rows: Rows) -> tuple[NDArray[np.uint64], object]:
        found = np.ascontiguousarray(self._read(rows))
        places = np.arange(len(rows), dtype=np.uint64) * np.uint64(found.strides[0])
        return places + np.uint64(found.ctypes.data), found
