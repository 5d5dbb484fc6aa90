"""A graph is flattened without loss, the same vectors give the same one, and a damaged one is refused, never walked."""

import struct
from dataclasses import dataclass, replace

import hnswlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import StoreDamaged
from appliance.knowledge.index import hnsw
from appliance.knowledge.index.kernels import Int8Rows
from appliance.types import Floats

MAGIC = b"GRAPH\x02\0\0"


def unit(rows: int, dim: int, seed: int = 0) -> Floats:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


STORED = unit(700, 8)
GRAPH = hnsw.build(STORED)


@dataclass(frozen=True)
class Level:
    rows: list[int]
    start: list[int]
    neighbours: list[int]


def read(graph: bytes) -> tuple[int, list[Level]]:
    """Entry and levels, from hnsw.py's docstring alone."""
    magic, rows, levels, entry = struct.unpack_from("<8sIII", graph)
    assert magic == MAGIC
    words = np.frombuffer(graph, "<u4", offset=20).tolist()
    found: list[Level] = []
    for level in range(levels):
        nodes, links = words[:2]
        del words[:2]
        own = list(range(rows)) if level == 0 else words[:nodes]
        del words[: nodes if level else 0]
        found.append(Level(own, words[: nodes + 1], words[nodes + 1 : nodes + 1 + links]))
        del words[: nodes + 1 + links]
    assert not words
    return entry, found


def write(entry: int, levels: list[Level], rows: int = len(STORED)) -> bytes:
    out = struct.pack("<8sIII", MAGIC, rows, len(levels), entry)
    for number, level in enumerate(levels):
        words = [len(level.rows), len(level.neighbours), *(level.rows if number else []), *level.start]
        out += np.array([*words, *level.neighbours], "<u4").tobytes()
    return out


def load(graph: bytes, rows: int = len(STORED)) -> Int8Rows:
    codes = np.rint(STORED[:rows] * 127).astype(np.int8)
    return Int8Rows(codes, np.ones(len(codes), np.float32), np.frombuffer(bytearray(graph), np.uint8))


def test_the_flattened_graph_has_the_links_that_hnswlib_made() -> None:
    index = hnswlib.Index("ip", 8)
    index.init_index(len(STORED), M=16, ef_construction=200, random_seed=1)
    index.add_items(STORED, np.arange(len(STORED)), num_threads=1)
    (state,) = index.__getstate__()
    record = int(state["size_data_per_element"])
    level_0 = np.asarray(state["data_level0"]).view(np.uint8).reshape(-1, record)
    entry, levels = read(GRAPH)
    for row in (0, 1, 350, 699):
        words = level_0[row].tobytes()
        count = struct.unpack_from("<H", words)[0]
        links = list(struct.unpack_from(f"<{count}I", words, 4))
        assert levels[0].neighbours[levels[0].start[row] : levels[0].start[row + 1]] == links
    assert len(levels) == state["max_level"] + 1 > 1
    assert levels[-1].rows[entry] == state["enterpoint_node"]
    for level in range(1, len(levels)):
        assert levels[level].rows == np.flatnonzero(np.asarray(state["element_levels"]) >= level).tolist()
    assert write(entry, levels) == GRAPH


def test_the_same_vectors_give_the_same_graph() -> None:
    assert hnsw.build(STORED) == GRAPH


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_a_graph_of_few_rows_finds_them_all(rows: int) -> None:
    stored = unit(rows, 8)
    graph = np.frombuffer(bytearray(hnsw.build(stored)), np.uint8)
    index = Int8Rows(np.rint(stored * 127).astype(np.int8), np.ones(rows, np.float32), graph)
    found, _ = index.walk(stored[0], None, rows, 2 * rows, 10_000)
    assert sorted(found.tolist()) == list(range(rows))


def damaged_graphs() -> dict[str, bytes]:
    entry, levels = read(GRAPH)
    low, high = levels[0], levels[1]

    def with_low(**change: list[int]) -> bytes:
        return write(entry, [replace(low, **change), *levels[1:]])

    def with_high(**change: list[int]) -> bytes:
        return write(entry, [low, replace(high, **change), *levels[2:]])

    far = [len(STORED), *low.neighbours[1:]]
    falling = [*low.start[:5], low.start[5] + 10_000_000, *low.start[6:]]
    return {
        "one byte": b"G",
        "header alone": GRAPH[:20],
        "no levels": struct.pack("<8sIII", MAGIC, len(STORED), 0, 0),
        "too many levels": struct.pack("<8sIII", MAGIC, len(STORED), 1 << 31, entry) + GRAPH[20:],
        "one level more than there is": struct.pack("<8sIII", MAGIC, len(STORED), len(levels) + 1, 0) + GRAPH[20:],
        "one level fewer": struct.pack("<8sIII", MAGIC, len(STORED), len(levels) - 1, 0) + GRAPH[20:],
        "entry past the level": write(len(levels[-1].rows), levels),
        "entry far away": write(0xFFFFFFFF, levels),
        "other rows": write(entry, levels, rows=len(STORED) + 1),
        "a byte more": GRAPH + b"\0",
        "a word more": GRAPH + b"\0\0\0\0",
        "a word fewer": GRAPH[:-4],
        "a neighbour past the last": with_low(neighbours=far),
        "a neighbour far away": with_low(neighbours=[0xFFFFFFFF, *low.neighbours[1:]]),
        "starts that fall": with_low(start=falling),
        "starts that do not begin at 0": with_low(start=[1, *low.start[1:]]),
        "starts that end early": with_low(start=[*low.start[:-1], low.start[-1] - 1]),
        "starts that wrap around": with_low(start=[0, 0xFFFFFFFF, *low.start[2:]]),
        "an upper row twice": with_high(rows=[high.rows[0], high.rows[0], *high.rows[2:]]),
        "an upper row past the last": with_high(rows=[*high.rows[:-1], len(STORED)]),
        "an upper neighbour past its level": with_high(neighbours=[len(high.rows), *high.neighbours[1:]]),
        "a node with all the links": with_low(start=[0, *[70_000] * len(STORED)], neighbours=[1] * 70_000),
        "sizes that overflow": GRAPH[:20] + struct.pack("<II", len(STORED), 0xFFFFFFFF) + GRAPH[28:],
        "no nodes": write(0, [low, Level([], [0], [])]),
    }


@pytest.mark.parametrize("name", damaged_graphs())
def test_a_damaged_graph_is_refused(name: str) -> None:
    with pytest.raises(StoreDamaged, match="The graph of a segment"):
        load(damaged_graphs()[name])


def test_a_row_above_that_is_missing_below_is_refused() -> None:
    _, levels = read(GRAPH)
    missing = max(set(range(len(STORED))) - set(levels[1].rows))
    top = Level([levels[1].rows[0], missing], [0, 0, 0], [])
    with pytest.raises(StoreDamaged, match="impossible"):
        load(write(0, [levels[0], levels[1], top]))


def test_the_graph_that_hnswlib_writes_itself_is_another_format() -> None:
    with pytest.raises(StoreDamaged, match="another format"):
        load(struct.pack("<7Q", 0, 700, 700, 172, 164, 132, 2) + GRAPH)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_graph_with_any_words_changed_is_refused_or_walked_safely(data: st.DataObject) -> None:
    words = np.frombuffer(GRAPH, "<u4").copy()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(words) - 1)))
        words[at] = data.draw(st.one_of(st.integers(0, 800), st.integers(0, 0xFFFFFFFF)))
    try:
        index = load(words.tobytes())
    except StoreDamaged:
        return
    found, _ = index.walk(STORED[0], None, 20, 50, 10_000)
    assert len(set(found.tolist())) == len(found)
    assert all(row < len(STORED) for row in found.tolist())


@given(kept=st.integers(0, len(GRAPH) - 1))
def test_a_graph_that_is_cut_anywhere_is_refused(kept: int) -> None:
    with pytest.raises(StoreDamaged):
        load(GRAPH[:kept])
