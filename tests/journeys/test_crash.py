"""kill -9 of the whole box during ingest. `make crash-test KILLS=100` does the same for longer."""

from pathlib import Path

import pytest

from tests import crash
from tests.crash_box import BoxWorkload

pytestmark = pytest.mark.long


def test_what_was_committed_before_a_kill_is_there_afterwards_and_whole(tmp_path: Path) -> None:
    workload = BoxWorkload()
    try:
        assert list(crash.check(workload, tmp_path, kills=3, seed=3)) == [""] * 3
    finally:
        workload.close(tmp_path)
