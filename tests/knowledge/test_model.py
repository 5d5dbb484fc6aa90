"""Random operations against a plain dictionary (model.py): a short history, and some thousands of operations."""

import pytest

from tests.knowledge import model


def test_whatever_is_done_each_caller_sees_exactly_what_it_may() -> None:
    assert model.run(50) >= 50


@pytest.mark.long
def test_thousands_of_operations_show_nobody_more_or_less_than_they_may_see() -> None:
    assert model.run(3000) >= 3000
