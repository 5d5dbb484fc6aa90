"""The native search equals its definition in numpy, on every path that this machine has."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path as FilePath
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.errors import Broken
from appliance.knowledge.index import hnsw, kernels
from appliance.knowledge.index.kernels import Allowed, Int8Rows, Path, rescore
from appliance.knowledge.index.vector_index import Rows
from appliance.types import Bools, Floats

T = TypeVar("T")


def unit(rows: int, dim: int, seed: int = 0) -> Floats:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def with_graph(vectors: Floats) -> Int8Rows:
    codes = np.rint(vectors * 127).astype(np.int8)
    return Int8Rows(codes, np.full(len(vectors), 1 / 127, np.float32), np.frombuffer(hnsw.build(vectors), np.uint8))


def on_every_path(run: Callable[[Path], T]) -> list[T]:
    found: list[T] = []
    for path in Path:
        try:
            found.append(run(path))
        except Broken:
            continue
    assert len(found) >= 2, "at least the portable path and the best"
    return found


def found_by(search: Callable[..., tuple[Rows, Floats]], *asked: object) -> tuple[bytes, bytes]:
    return bytes_of(search(*asked))


def bytes_of(found: tuple[Rows, Floats]) -> tuple[bytes, bytes]:
    return found[0].tobytes(), found[1].tobytes()


def expected_scan(
    codes: NDArray[np.int8], scales: Floats, query: Floats, allowed: Bools | None, keep: int
) -> NDArray[np.int64]:
    scores = scales * (codes.astype(np.int32) @ query.astype(np.int32)).astype(np.float32)
    candidates = np.arange(len(codes)) if allowed is None else np.flatnonzero(allowed)
    return candidates[np.lexsort((candidates, -scores[candidates]))][:keep]


def paths_here() -> list[Path]:
    one = Int8Rows(np.ones((1, 1), np.int8), np.ones(1, np.float32))
    return on_every_path(lambda path: (one.scan(np.ones(1, np.float32), None, 1, 1, path), path)[1])


@pytest.mark.parametrize("path", paths_here())
@given(
    rows=st.integers(0, 80),
    dim=st.integers(1, 200),
    keep=st.integers(0, 100),
    seed=st.integers(0, 99),
    share=st.sampled_from([None, 0.0, 0.02, 0.3, 1.0]),
)
def test_a_scan_is_the_same_as_numpy_for_any_shape(
    path: Path, rows: int, dim: int, keep: int, seed: int, share: float | None
) -> None:
    draw = np.random.default_rng(seed)
    codes = draw.integers(-128, 128, (rows, dim)).astype(np.int8)
    scales = draw.choice(np.array([0.0, 0.5, 1.0, 2.0], np.float32), rows)
    query = draw.integers(-127, 128, dim).astype(np.float32)
    query[0] = 127  # its scale is 1: the codes are the values
    allowed = None if share is None else draw.random(rows) < share
    filter_ = None if allowed is None else Allowed(allowed, path)
    found, scores = Int8Rows(codes, scales).scan(query, filter_, keep, keep, path)
    order = expected_scan(codes, scales, query, allowed, keep)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(scores, (scales * (codes.astype(np.int32) @ query.astype(np.int32)))[order])


@pytest.mark.parametrize("path", paths_here())
@given(rows=st.integers(0, 400), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), seed=st.integers(0, 99))
def test_a_filter_has_the_bits_of_its_mask_and_their_count(path: Path, rows: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(rows) < share
    allowed = Allowed(mask, path)
    bits = np.unpackbits(np.frombuffer(bytes(allowed.words), np.uint8), bitorder="little")
    assert (allowed.rows, allowed.count) == (rows, int(np.count_nonzero(mask)))
    np.testing.assert_array_equal(bits[:rows], mask)
    assert not bits[rows:].any()


def test_a_mask_that_is_a_view_with_gaps_is_read_as_numpy_reads_it() -> None:
    mask = np.random.default_rng(1).random(300) < 0.5
    assert bytes(Allowed(mask[::3]).words) == bytes(Allowed(mask[::3].copy()).words)


def test_the_least_query_there_is_overflows_no_code() -> None:
    """Its scale is subnormal, too, and rounded by more than a code."""
    rows = Int8Rows(np.full((2, 4), 127, np.int8), np.ones(2, np.float32))
    for units in (1, 100, 190, 191, 1000):
        query = np.full(4, units, np.uint32).view(np.float32)
        assert all(np.all(rows.scan(query, None, 2, 2, path)[1] >= 0) for path in paths_here())


def test_the_extremes_of_int8_do_not_overflow_on_any_path() -> None:
    rows = Int8Rows(np.full((5, 4096), -128, np.int8), np.ones(5, np.float32))
    query = np.full(4096, 127, np.float32)
    for scores in on_every_path(lambda path: rows.scan(query, None, 5, 5, path)[1].copy()):
        np.testing.assert_array_equal(scores, np.full(5, -128 * 127 * 4096, np.float32))


@pytest.mark.parametrize("dim", [1, 3, 16, 63, 64, 65, 100, 384])
def test_scan_walk_and_rescore_give_the_same_bits_on_every_path(dim: int) -> None:
    stored, allowed = unit(400, dim), Allowed(np.random.default_rng(1).random(400) < 0.5)
    rows, halves, every = with_graph(stored), stored.astype("<f2").tobytes(), np.arange(400, dtype=np.uint32)
    for query in unit(5, dim, seed=2):
        for mask in (None, allowed):
            assert len(set(on_every_path(partial(found_by, rows.scan, query, mask, 30, 60)))) == 1
            assert len(set(on_every_path(partial(found_by, rows.walk, query, mask, 30, 40, 400)))) == 1
        assert len(set(on_every_path(partial(found_by, rescore, every, halves, query, 400)))) == 1


@given(dim=st.integers(0, 130), count=st.integers(0, 20), keep=st.integers(0, 25), seed=st.integers(0, 99))
def test_rescoring_ranks_by_the_dot_product_of_the_halves(dim: int, count: int, keep: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    halves, query = draw.normal(size=(count, dim)).astype("<f2"), draw.normal(size=dim).astype(np.float32)
    rows = draw.permutation(1000)[:count].astype(np.uint32)
    found, scores = rescore(rows, halves.tobytes(), query, keep)
    exact = halves.astype(np.float64) @ query.astype(np.float64)
    of_row = dict(zip(rows.tolist(), exact.tolist(), strict=True))
    assert len(found) == min(keep, count)
    np.testing.assert_allclose(scores, [of_row[row] for row in found.tolist()], atol=1e-4)
    np.testing.assert_allclose(scores, sorted(exact, reverse=True)[:keep], atol=1e-4)


def test_every_float16_is_read_as_numpy_reads_it_and_what_is_no_number_comes_last() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view("<f2").reshape(-1, 1)
    rows = np.arange(1 << 16, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        expected = np.where(np.isnan(every), -np.inf, every).astype(np.float32).ravel()
    one = np.ones(1, np.float32)
    for found, scores in on_every_path(lambda path: rescore(rows, every.tobytes(), one, len(rows), path)):
        np.testing.assert_array_equal(scores, expected[found])
    wide = np.repeat(every[np.isfinite(every)].reshape(-1, 1), 16, axis=1)  # as many as the vector paths read at once
    query, some = np.eye(16, dtype=np.float32)[7], rows[: len(wide)]
    for found, scores in on_every_path(lambda path: rescore(some, wide.tobytes(), query, len(some), path)):
        np.testing.assert_array_equal(scores, wide[found, 7].astype(np.float32))


def test_equal_scores_are_ordered_by_row() -> None:
    rows = Int8Rows(np.ones((50, 8), np.int8), np.ones(50, np.float32))
    assert rows.scan(np.ones(8, np.float32), None, 7, 7)[0].tolist() == list(range(7))
    backwards = np.arange(50, dtype=np.uint32)[::-1].copy()
    halves = np.ones((50, 8), "<f2").tobytes()
    assert rescore(backwards, halves, np.ones(8, np.float32), 7)[0].tolist() == list(range(7))


def test_a_walk_stops_when_its_budget_is_spent_and_says_what_it_has() -> None:
    stored = unit(3000, 16)
    rows = with_graph(stored)
    mask = np.zeros(3000, np.bool_)
    assert len(rows.walk(stored[0], Allowed(mask), 10, 50, 3000)[0]) == 0
    mask[rows.scan(-stored[0], None, 1, 1)[0][0]] = True
    one = Allowed(mask)
    assert len(rows.walk(stored[0], one, 10, 50, budget=100)[0]) == 0
    assert rows.walk(stored[0], one, 10, 50, budget=10_000)[0].tolist() == np.flatnonzero(mask).tolist()


def test_a_thread_that_searched_many_times_still_visits_every_row() -> None:
    stored = unit(300, 8)
    rows = with_graph(stored)
    first = bytes_of(rows.walk(stored[7], None, 300, 300, 10_000))
    assert all(bytes_of(rows.walk(stored[7], None, 300, 300, 10_000)) == first for _ in range(600))


def test_indices_of_other_sizes_searched_in_turn_do_not_disturb_one_another() -> None:
    indices = [with_graph(unit(rows, dim, seed=rows)) for rows, dim in ((500, 16), (20, 64), (1500, 8))]
    queries = [unit(1, index.dim, seed=9)[0] for index in indices]

    def search(at: int) -> tuple[bytes, bytes]:
        return bytes_of(indices[at % 3].walk(queries[at % 3], None, 10, 20, 2000))

    alone = [search(at) for at in range(3)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(search, range(300))) == alone * 100


def test_shapes_that_do_not_fit_never_reach_native_code() -> None:
    rows = Int8Rows(np.ones((10, 8), np.int8), np.ones(10, np.float32))
    with pytest.raises(ValueError, match="fit"):
        rows.scan(np.zeros(7, np.float32), None, 3, 3)
    with pytest.raises(ValueError, match="fit"):
        rows.scan(np.zeros(8, np.float32), Allowed(np.ones(9, np.bool_)), 3, 3)
    with pytest.raises(ValueError, match="fit"):
        Int8Rows(np.ones((10, 8), np.int8), np.ones(9, np.float32))
    for size in (2 * 16, 3 * 16 - 1, 4 * 16):
        with pytest.raises(ValueError, match="fit"):
            rescore(np.arange(3, dtype=np.uint32), bytes(size), np.zeros(8, np.float32), 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 99])
def test_a_query_that_is_no_number_is_refused(value: float, at: int) -> None:
    rows, query = with_graph(unit(50, 100)), unit(1, 100)[0]
    query[at] = value
    with pytest.raises(Broken, match="no number"):
        rows.scan(query, None, 3, 3)
    with pytest.raises(Broken, match="no number"):
        rows.walk(query, None, 3, 10, 50)


def test_a_missing_native_library_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_LIBRARY", "appliance/libabsent.so")
    kernels._native.cache_clear()
    try:
        with pytest.raises(Broken, match="libabsent"):
            Int8Rows(np.ones((10, 8), np.int8), np.ones(10, np.float32)).scan(unit(1, 8)[0], None, 3, 3)
    finally:
        kernels._native.cache_clear()


@pytest.mark.long
def test_the_search_touches_nothing_else_under_sanitizers() -> None:
    check = FilePath(__file__).parents[1] / "native" / "vectors_check.sh"
    done = subprocess.run([check, "native"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.startswith("the same on paths 0 ")
