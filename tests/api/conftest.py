from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.http_box import HttpBox, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[HttpBox]:
    async with serving(tmp_path) as box:
        yield box
