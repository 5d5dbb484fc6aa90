"""What was proven at the start is proven again each hour, each part for itself."""

import asyncio
from typing import Any

import pytest

from appliance.app import App
from appliance.errors import SandboxUnavailable


class Locked:
    """A part with walls that fell, or that stand."""

    def __init__(self, fell: bool) -> None:
        self.fell, self.proofs, self.often = fell, 0, asyncio.Event()

    async def prove(self) -> None:
        self.proofs += 1
        if self.proofs == 3:
            self.often.set()
        if self.fell:
            raise SandboxUnavailable("A wall fell.")


async def test_each_part_is_proven_hour_after_hour_also_where_the_walls_of_another_fell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, waited = asyncio.sleep, list[float]()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    app: Any = object.__new__(App)
    app.extractor, app.volumes = Locked(fell=True), Locked(fell=False)
    proving = asyncio.create_task(App._prove_sandbox_hourly(app))
    await asyncio.wait_for(asyncio.gather(app.extractor.often.wait(), app.volumes.often.wait()), 5)
    proving.cancel()
    await asyncio.gather(proving, return_exceptions=True)
    assert set(waited) == {3600.0}
