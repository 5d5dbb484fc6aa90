"""The native scan equals numpy, the index finds what an exact search finds, and damage is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import Broken, StoreDamaged
from appliance.knowledge.index import vectors
from appliance.knowledge.index.vectors import VectorIndex, exact, scan
from appliance.types import Floats

PATHS = (0, 1, 2, -1)


def unit(rows: int, dim: int, seed: int = 0) -> Floats:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("path", PATHS)
@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 200),
    keep=st.integers(0, 50),
    seed=st.integers(0, 99),
    masked=st.booleans(),
)
def test_the_native_scan_is_the_same_as_numpy_for_any_shape(
    path: int, rows: int, dim: int, keep: int, seed: int, masked: bool
) -> None:
    draw = np.random.default_rng(seed)
    codes = draw.integers(-128, 128, (rows, dim)).astype(np.int8)
    scales = draw.choice(np.array([0.0, 0.5, 1.0, 2.0], np.float32), rows)
    query = draw.integers(-127, 128, dim).astype(np.float32)
    query[0] = 127  # its scale is 1: the codes are the values
    allowed = draw.random(rows) < 0.3 if masked else None
    try:
        found, scores = scan(codes, scales, query, allowed, keep, path)
    except Broken:
        pytest.skip("this machine has not that instruction set")
    expected = scales * (codes.astype(np.int32) @ query.astype(np.int32)).astype(np.float32)
    candidates = np.arange(rows) if allowed is None else np.flatnonzero(allowed)
    order = candidates[np.lexsort((candidates, -expected[candidates]))][:keep]
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(scores, expected[order])


def test_the_extremes_of_int8_do_not_overflow_on_any_path() -> None:
    codes = np.full((3, 4096), -128, np.int8)
    for path in PATHS:
        try:
            _, scores = scan(codes, np.ones(3, np.float32), np.full(4096, 127, np.float32), None, 3, path)
        except Broken:
            continue
        np.testing.assert_allclose(scores, -128 * 127 * 4096, rtol=1e-6)


def test_shapes_that_do_not_fit_never_reach_native_code() -> None:
    index = VectorIndex.build(unit(10, 8))
    with pytest.raises(ValueError, match="fit"):
        index.search(np.zeros(7, np.float32), None, 3)
    with pytest.raises(ValueError, match="fit"):
        index.search(np.zeros(8, np.float32), np.ones(9, np.bool_), 3)


def test_a_search_finds_what_an_exact_search_of_the_allowed_rows_finds() -> None:
    stored = unit(3000, 64)
    index = VectorIndex.from_sections(VectorIndex.build(stored).sections())
    allowed = np.random.default_rng(1).random(3000) < 0.05
    for query in unit(20, 64, seed=2):
        for mask in (None, allowed):
            rows, scores = index.search(query, mask, 10)
            expected_rows, expected_scores = exact(stored, query, mask, 10)
            assert len(set(rows.tolist()) & set(expected_rows.tolist())) >= 9
            np.testing.assert_allclose(scores, expected_scores, atol=2e-3)
            assert mask is None or mask[rows].all()


def test_the_graph_finds_what_the_scan_finds_and_never_a_row_that_is_not_allowed() -> None:
    stored = unit(2500, 16)
    built = VectorIndex.build(stored, exact_below=500)
    index = VectorIndex.from_sections(built.sections(), exact_below=500)
    assert "graph" in built.sections()
    allowed = np.random.default_rng(1).random(2500) < 0.5
    agreed = 0
    for query in unit(20, 16, seed=2):
        for mask in (None, allowed):
            rows, scores = index.search(query, mask, 10)
            agreed += len(set(rows.tolist()) & set(exact(stored, query, mask, 10)[0].tolist()))
            assert np.all(np.diff(scores) <= 0)
            assert mask is None or mask[rows].all()
    assert agreed >= 0.98 * 400


def test_a_walk_that_reaches_too_few_rows_is_followed_by_a_scan() -> None:
    stored = np.repeat(unit(2, 8), 300, axis=0)
    index = VectorIndex.build(stored, exact_below=100)
    rows, _ = index.search(stored[0], None, 500)
    assert len(rows) == 500


def test_a_small_index_has_no_graph() -> None:
    assert set(VectorIndex.build(unit(50, 8)).sections()) == {"vec_i8", "vec_f16"}


def test_the_same_vectors_give_the_same_bytes() -> None:
    stored = unit(600, 16)
    first, second = (VectorIndex.build(stored, exact_below=100).sections() for _ in range(2))
    assert first == second


def test_an_index_that_was_read_gives_the_bytes_that_it_was_read_from() -> None:
    sections = VectorIndex.build(unit(600, 16), exact_below=100).sections()
    assert VectorIndex.from_sections(sections, exact_below=100).sections() == sections


def test_nothing_is_found_where_nothing_is_or_nothing_is_allowed() -> None:
    empty = VectorIndex.from_sections(VectorIndex.build(np.zeros((0, 8), np.float32)).sections())
    assert empty.search(unit(1, 8)[0], None, 5)[0].size == 0
    index = VectorIndex.build(unit(20, 8))
    assert index.search(unit(1, 8)[0], np.zeros(20, np.bool_), 5)[0].size == 0
    assert index.search(unit(1, 8)[0], None, 0)[0].size == 0
    assert exact(unit(20, 8), unit(1, 8)[0], np.zeros(20, np.bool_), 5)[0].size == 0


def test_vectors_of_zeros_are_found_last_and_break_nothing() -> None:
    stored = unit(10, 8)
    stored[3] = 0
    rows, scores = VectorIndex.build(stored).search(stored[0], None, 10)
    assert rows[0] == 0
    assert scores[rows.tolist().index(3)] == 0
    assert VectorIndex.build(stored).search(np.zeros(8, np.float32), None, 10)[1].tolist() == [0.0] * 10


def test_a_vector_that_is_no_number_is_refused_at_building() -> None:
    stored = unit(10, 8)
    stored[3, 2] = np.nan
    with pytest.raises(Broken, match="no number"):
        VectorIndex.build(stored)


def test_many_threads_search_one_index() -> None:
    stored = unit(1500, 16)
    index = VectorIndex.build(stored, exact_below=1000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: int(index.search(stored[at], None, 3)[0][0]), range(200)))
    assert found == list(range(200))


@pytest.mark.parametrize("section", ["vec_i8", "vec_f16", "graph"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_section_that_is_cut_short_is_refused(section: str, kept: float) -> None:
    sections = VectorIndex.build(unit(300, 8), exact_below=100).sections()
    cut = sections | {section: sections[section][: int(kept * len(sections[section]))]}
    with pytest.raises(StoreDamaged):
        VectorIndex.from_sections(cut, exact_below=100)


def test_a_graph_of_other_vectors_or_a_missing_section_is_refused() -> None:
    sections = VectorIndex.build(unit(300, 8), exact_below=100).sections()
    other = VectorIndex.build(unit(301, 8), exact_below=100).sections()
    with pytest.raises(StoreDamaged, match="graph"):
        VectorIndex.from_sections(sections | {"graph": other["graph"]})
    with pytest.raises(StoreDamaged, match="vec_f16"):
        VectorIndex.from_sections({"vec_i8": sections["vec_i8"]})


def test_a_missing_native_library_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_LIBRARY", "appliance/libabsent.so")
    vectors._native.cache_clear()
    try:
        with pytest.raises(Broken, match="libabsent"):
            VectorIndex.build(unit(10, 8)).search(unit(1, 8)[0], None, 3)
    finally:
        vectors._native.cache_clear()
