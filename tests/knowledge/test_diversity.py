"""Maximal marginal relevance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.knowledge.search.diversity import diverse_order
from appliance.types import Floats


def unit(*rows: tuple[float, ...]) -> Floats:
    vectors = np.array(rows, np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


SCORES = np.array([0.9, 0.89, 0.5], np.float32)
TWINS_AND_ANOTHER = unit((1, 0), (1, 0.01), (0, 1))


def test_without_diversity_the_order_is_by_score_and_equal_scores_stay() -> None:
    scores = np.array([0.1, 0.7, 0.1, 0.7], np.float32)
    assert diverse_order(scores, np.ones((4, 2), np.float32), 0.0).tolist() == [1, 3, 0, 2]


def test_a_near_copy_of_the_first_gives_way_to_something_else() -> None:
    assert diverse_order(SCORES, TWINS_AND_ANOTHER, 0.0).tolist() == [0, 1, 2]
    assert diverse_order(SCORES, TWINS_AND_ANOTHER, 0.7).tolist() == [0, 2, 1]


def test_the_scale_of_scores_does_not_matter() -> None:
    for scale in (1e-3, 1.0, 1e3):
        assert diverse_order(SCORES * scale - scale, TWINS_AND_ANOTHER, 0.7).tolist() == [0, 2, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_of_none_or_one_there_is_one_order(count: int) -> None:
    assert diverse_order(np.ones(count, np.float32), np.ones((count, 2), np.float32), 0.5).tolist() == [*range(count)]


def plain(scores: Floats, vectors: Floats, diversity: float) -> list[float]:
    """What each choice of the order gained, by the paper's formula, step by step."""
    relevance = (scores - scores.min()) / ((scores.max() - scores.min()) or 1.0)
    chosen: list[int] = []
    gains = []
    for at in diverse_order(scores, vectors, diversity).tolist():
        gain = [
            (1 - diversity) * float(relevance[one])
            - diversity * max((max(0.0, float(vectors[one] @ vectors[other])) for other in chosen), default=0.0)
            for one in range(len(scores))
            if one not in chosen
        ]
        own = (1 - diversity) * float(relevance[at]) - diversity * max(
            (max(0.0, float(vectors[at] @ vectors[other])) for other in chosen), default=0.0
        )
        gains.append(max(gain) - own)
        chosen.append(at)
    return gains


@given(st.integers(2, 12), st.floats(0.05, 1.0), st.integers(0, 2**32 - 1))
def test_each_choice_is_the_best_that_was_left(count: int, diversity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores: Floats = rng.random(count, np.float32)
    vectors = unit(*(tuple(row) for row in rng.standard_normal((count, 4))))
    order: NDArray[np.intp] = diverse_order(scores, vectors, diversity)
    assert sorted(order.tolist()) == list(range(count))
    assert max(plain(scores, vectors, diversity)) <= 1e-5
