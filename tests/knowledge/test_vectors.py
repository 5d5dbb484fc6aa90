"""The index finds what an exact search finds, reads float16 rows only where it must, and refuses damage."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from appliance.errors import Broken, StoreDamaged
from appliance.knowledge.index.vector_index import Rows, VectorIndex
from appliance.knowledge.index.vectors import Codes, SegmentVectors, exact, to_sections
from appliance.types import Floats


def unit(rows: int, dim: int, seed: int = 0) -> Floats:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def index_of(stored: Floats, exact_below: int = 30_000) -> VectorIndex:
    return SegmentVectors.from_sections(to_sections(stored, exact_below), exact_below)


@pytest.mark.parametrize("dim", [64, 100])
def test_a_search_finds_what_an_exact_search_of_the_allowed_rows_finds(dim: int) -> None:
    stored = unit(3000, dim)
    index = index_of(stored)
    allowed = np.random.default_rng(1).random(3000) < 0.05
    for query in unit(20, dim, seed=2):
        for mask in (None, allowed):
            rows, scores = index.search(query, mask, 10)
            expected_rows, expected_scores = exact(stored, query, mask, 10)
            assert len(set(rows.tolist()) & set(expected_rows.tolist())) >= 9
            np.testing.assert_allclose(scores, expected_scores, atol=2e-3)
            assert mask is None or mask[rows].all()


def test_the_graph_finds_what_the_scan_finds_and_never_a_row_that_is_not_allowed() -> None:
    stored = unit(2500, 16)
    index = index_of(stored, exact_below=500)
    allowed = np.random.default_rng(1).random(2500) < 0.5
    agreed = 0
    for query in unit(20, 16, seed=2):
        for mask in (None, allowed):
            rows, scores = index.search(query, mask, 10)
            agreed += len(set(rows.tolist()) & set(exact(stored, query, mask, 10)[0].tolist()))
            assert np.all(np.diff(scores) <= 0)
            assert mask is None or mask[rows].all()
    assert agreed >= 0.98 * 400


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 1.0])
def test_what_a_filter_leaves_for_a_scan_is_ranked_exactly(share: float) -> None:
    """The rows and their order are those of an exact search in the precision that is stored."""
    stored = unit(4000, 96).astype(np.float16).astype(np.float32)
    index, draw = index_of(stored), np.random.default_rng(3)
    for query in unit(30, 96, seed=4):
        mask = draw.random(4000) < share
        rows, scores = index.search(query, mask, 10)
        expected_rows, expected_scores = exact(stored, query, mask, 10)
        assert rows.tolist() == expected_rows.tolist()
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_one_allowed_row_far_away_is_found_with_and_without_a_graph() -> None:
    stored = unit(2500, 16)
    for index in (index_of(stored), index_of(stored, exact_below=1)):
        for query in stored[:20]:
            allowed = np.zeros(2500, np.bool_)
            farthest = int(np.argmin(stored @ query))
            allowed[farthest] = True
            assert index.search(query, allowed, 10)[0].tolist() == [farthest]


def test_a_walk_that_reaches_too_few_rows_is_followed_by_a_scan() -> None:
    stored = np.repeat(unit(2, 8), 300, axis=0)
    rows, _ = index_of(stored, exact_below=100).search(stored[0], None, 500)
    assert sorted(rows.tolist()) == sorted(set(rows.tolist()))
    assert len(rows) == 500


def test_a_small_index_has_no_graph() -> None:
    assert set(to_sections(unit(50, 8))) == {"vec_i8", "vec_f16"}
    assert set(to_sections(np.zeros((0, 8), np.float32), exact_below=0)) == {"vec_i8", "vec_f16"}


def test_the_same_vectors_give_the_same_bytes() -> None:
    stored = unit(600, 16)
    first, second = (to_sections(stored, exact_below=100) for _ in range(2))
    assert first == second
    assert "graph" in first


def test_nothing_is_found_where_nothing_is_or_nothing_is_allowed() -> None:
    empty = index_of(np.zeros((0, 8), np.float32))
    assert empty.search(unit(1, 8)[0], None, 5)[0].size == 0
    assert empty.search(unit(1, 8)[0], np.zeros(0, np.bool_), 5)[0].size == 0
    for index in (index_of(unit(20, 8)), index_of(unit(20, 8), exact_below=0)):
        assert index.search(unit(1, 8)[0], np.zeros(20, np.bool_), 5)[0].size == 0
        assert index.search(unit(1, 8)[0], None, 0)[0].size == 0
        assert index.search(unit(1, 8)[0], None, -1)[0].size == 0
    assert exact(unit(20, 8), unit(1, 8)[0], np.zeros(20, np.bool_), 5)[0].size == 0


@pytest.mark.parametrize("exact_below", [1, 30_000])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_more_may_be_asked_for_than_there_is(rows: int, exact_below: int) -> None:
    stored = unit(rows, 8)
    found, scores = index_of(stored, exact_below).search(stored[0], None, 100)
    assert found[0] == 0
    assert sorted(found.tolist()) == list(range(rows))
    assert scores[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("exact_below", [1, 30_000])
def test_vectors_of_zeros_are_found_last_and_break_nothing(exact_below: int) -> None:
    stored = np.abs(unit(10, 8))
    stored[3] = 0
    rows, scores = index_of(stored, exact_below).search(stored[0], None, 10)
    assert (rows[0], rows[-1]) == (0, 3)
    assert scores[-1] == 0
    assert index_of(stored, exact_below).search(np.zeros(8, np.float32), None, 10)[1].tolist() == [0.0] * 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_number_is_refused_at_building_and_in_a_query(value: float) -> None:
    stored = unit(10, 8)
    stored[3, 2] = value
    with pytest.raises(Broken, match="no number"):
        to_sections(stored)
    for exact_below in (1, 30_000):
        with pytest.raises(Broken, match="no number"):
            index_of(unit(10, 8), exact_below).search(stored[3], None, 3)


def test_rows_are_scored_as_a_search_scores_them() -> None:
    stored = unit(200, 48)
    index, query = index_of(stored), unit(1, 48, seed=3)[0]
    rows, scores = index.search(query, None, 200)
    backwards = rows[::-1].copy()
    np.testing.assert_array_equal(index.score(query, backwards), scores[::-1])
    assert index.score(query, np.zeros(0, np.uint32)).size == 0
    with pytest.raises(ValueError, match="fit"):
        index.score(query, np.array([200], np.uint32))
    with pytest.raises(ValueError, match="fit"):
        index.score(query[:7], rows)


def test_what_was_found_stays_when_the_same_thread_searches_again() -> None:
    index, queries = index_of(unit(200, 16)), unit(2, 16, seed=3)
    rows, scores = index.search(queries[0], None, 10)
    before = rows.tolist(), scores.tolist()
    index.search(queries[1], None, 20)
    assert (rows.tolist(), scores.tolist()) == before


def test_only_the_rows_that_are_ranked_are_read_as_float16() -> None:
    stored = unit(5000, 16)
    sections = to_sections(stored)
    halves = np.frombuffer(sections["vec_f16"], np.uint8).reshape(5000, 32)
    asked: list[int] = []

    def read(rows: Rows) -> bytes:
        asked.extend(rows.tolist())
        return halves[rows].tobytes()

    index = SegmentVectors(Codes.from_sections(sections["vec_i8"]), read)
    assert index.search(stored[0], None, 10)[0][0] == 0
    assert 10 <= len(asked) <= 40


def test_many_threads_search_one_index() -> None:
    stored = unit(1500, 16)
    index = index_of(stored, exact_below=1000)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: int(index.search(stored[at], None, 3)[0][0]), range(200)))
    assert found == list(range(200))


def test_shapes_that_do_not_fit_are_refused() -> None:
    index = index_of(unit(10, 8))
    with pytest.raises(ValueError, match="fit"):
        index.search(np.zeros(7, np.float32), None, 3)
    with pytest.raises(ValueError, match="fit"):
        index.search(np.zeros(8, np.float32), np.ones(9, np.bool_), 3)


@pytest.mark.parametrize("section", ["vec_i8", "vec_f16", "graph"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_section_that_is_cut_short_is_refused(section: str, kept: float) -> None:
    sections = to_sections(unit(300, 8), exact_below=100)
    cut = sections | {section: sections[section][: int(kept * len(sections[section]))]}
    with pytest.raises(StoreDamaged):
        SegmentVectors.from_sections(cut, exact_below=100)


def test_a_graph_of_other_vectors_or_a_missing_section_is_refused() -> None:
    sections = to_sections(unit(300, 8), exact_below=100)
    other = to_sections(unit(301, 8), exact_below=100)
    with pytest.raises(StoreDamaged, match="graph"):
        SegmentVectors.from_sections(sections | {"graph": other["graph"]})
    with pytest.raises(StoreDamaged, match="vec_f16"):
        SegmentVectors.from_sections({"vec_i8": sections["vec_i8"]})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_no_number_is_refused(value: float) -> None:
    section = bytearray(to_sections(unit(30, 8))["vec_i8"])
    section[16:20] = np.float32(value).tobytes()
    with pytest.raises(StoreDamaged, match="no number"):
        Codes.from_sections(section)
