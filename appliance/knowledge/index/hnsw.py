"""The graph of a sealed segment: built by hnswlib, kept as plain arrays. This module alone knows hnswlib.

HNSW (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable small
world graphs", 2018): every row is a node of level 0, and each level above holds about one in M of the level below. A
search goes down from `entry`, always to the best neighbour, and looks around on level 0. `native/graph_i8.cpp` does it.

Section `graph`, little endian; nothing but sizes and positions, which `kernels.check_graph` proves to be in range:
    magic "GRAPH\\x02\\0\\0", u32 rows, u32 levels, u32 entry (a position in the topmost level), then a level from 0 up:
    u32 nodes, u32 links
    u32 row[nodes]             which row each node is, ascending; not at level 0, where node i is row i
    u32 start[nodes + 1]       where each node's neighbours begin; the last is `links`
    u32 neighbour[links]       positions of nodes in this level
Each row of a level is in the level below, too. Format 1 was hnswlib's own file and is refused as damaged; a segment
file of version 1, where it belongs, is searched without it, by a scan, until compaction rewrites it.
"""

import struct
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from appliance.types import Floats

_MAGIC = b"GRAPH\x02\0\0"
_HEADER = struct.Struct("<8sIII")
LINKS = 16
BUILD_WIDTH = 200
_SEED = 1

Links = NDArray[np.uint32]
State = dict[str, Any]  # what hnswlib pickles


def build(vectors: Floats) -> bytes:
    """The graph of unit vectors, float32 [rows, dim], rows > 0; one thread and a fixed seed: the same give the same.

    While it runs it holds the vectors three times over.
    """
    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=LINKS, ef_construction=BUILD_WIDTH, random_seed=_SEED)
    index.add_items(vectors, np.arange(len(vectors)), num_threads=1)
    return flatten(index)


def flatten(index: hnswlib.Index) -> bytes:
    """The graph of an index whose rows were added in order, by one thread, none deleted."""
    (state,) = index.__getstate__()
    levels = np.asarray(state["element_levels"])
    nodes = np.arange(len(levels))
    parts = [_level(nodes, *_level_0(state, len(levels)), lowest=True)]
    for level in range(1, int(state["max_level"]) + 1):
        nodes = np.flatnonzero(levels >= level)
        parts.append(_level(nodes, *_upper(state, levels, nodes, level), lowest=False))
    entry = int(np.searchsorted(nodes, state["enterpoint_node"]))
    return _HEADER.pack(_MAGIC, len(levels), len(parts), entry) + b"".join(parts)


def _level_0(state: State, rows: int) -> tuple[Links, Links]:
    """Counts [rows] and neighbours [rows, slots] out of hnswlib's memory."""
    slots = int(state["max_M0"])
    records = np.asarray(state["data_level0"]).view(np.uint8)
    records = records.reshape(-1, int(state["size_data_per_element"]))[:rows]
    start = int(state["offset_level0"])
    return _count_and_links(records[:, start : start + 4 + 4 * slots])


def _upper(state: State, levels: NDArray[np.int32], nodes: NDArray[np.int64], level: int) -> tuple[Links, Links]:
    """The same of one upper level: its records lie node by node, and of a node level by level."""
    size = 4 + 4 * int(state["max_M"])
    records = np.asarray(state["link_lists"]).view(np.uint8).reshape(-1, size)
    first = np.cumsum(levels) - levels
    return _count_and_links(records[first[nodes] + level - 1])


def _count_and_links(records: NDArray[np.uint8]) -> tuple[Links, Links]:
    words = np.ascontiguousarray(records).view(np.uint32)
    return words[:, 0] & np.uint32(0xFFFF), words[:, 1:]


def _level(nodes: NDArray[np.int64], counts: Links, links: Links, *, lowest: bool) -> bytes:
    used = np.arange(links.shape[1]) < counts[:, None]
    neighbours = np.searchsorted(nodes, links[used])
    start = np.concatenate([[0], np.cumsum(counts, dtype=np.uint64)])
    rows = b"" if lowest else nodes.astype("<u4").tobytes()
    sizes = struct.pack("<II", len(nodes), len(neighbours))
    return sizes + rows + start.astype("<u4").tobytes() + neighbours.astype("<u4").tobytes()
