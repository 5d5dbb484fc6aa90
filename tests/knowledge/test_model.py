"""Random operations against a plain dictionary (model.py): a short history, and some thousands of operations."""

import pytest

from tests.knowledge import model

SLICES, OPERATIONS_A_SLICE = 4, 2_500


def test_whatever_is_done_each_caller_sees_exactly_what_it_may() -> None:
    assert model.run(50) >= 50


@pytest.mark.long
@pytest.mark.parametrize("part", range(SLICES))
def test_thousands_of_operations_show_nobody_more_or_less_than_they_may_see(part: int) -> None:
    """Other ones in each slice and each run: five runs of all slices are what `make model-test` does at once."""
    assert model.run(OPERATIONS_A_SLICE) >= OPERATIONS_A_SLICE
