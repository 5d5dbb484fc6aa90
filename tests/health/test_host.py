import asyncio
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.health import host
from appliance.health.findings import DISK_ALMOST_FULL, MEMORY_LOW
from appliance.health.host import MIB, Host, judge
from appliance.health.monitor import Monitor

GIB = 1 << 30
WELL = Host(
    memory_total_bytes=24 * GIB,
    memory_available_bytes=10 * GIB,
    memory_used_bytes=2 * GIB,
    disk_total_bytes=100 * GIB,
    disk_free_bytes=50 * GIB,
)


def test_a_box_with_room_has_no_findings() -> None:
    assert judge(WELL, "/data") == {DISK_ALMOST_FULL: {}, MEMORY_LOW: {}}


def test_a_disk_below_a_twentieth_free_is_almost_full() -> None:
    found = judge(replace(WELL, disk_free_bytes=5 * GIB - 1), "/data")
    assert found[DISK_ALMOST_FULL] == {"/data": "5119 of 102400 MiB are free."}
    assert judge(replace(WELL, disk_free_bytes=5 * GIB), "/data")[DISK_ALMOST_FULL] == {}


def test_memory_below_a_twentieth_is_low() -> None:
    assert judge(replace(WELL, memory_available_bytes=GIB), "/data")[MEMORY_LOW] == {
        "memory": "1024 of 24576 MiB are available."
    }
    assert judge(replace(WELL, memory_available_bytes=int(1.3 * GIB)), "/data")[MEMORY_LOW] == {}


def test_a_small_disk_that_is_mostly_free_is_not_almost_full() -> None:
    assert judge(replace(WELL, disk_total_bytes=GIB, disk_free_bytes=900 * MIB), "/data")[DISK_ALMOST_FULL] == {}
    assert judge(replace(WELL, disk_total_bytes=GIB, disk_free_bytes=200 * MIB), "/data")[DISK_ALMOST_FULL] != {}


@pytest.mark.parametrize("declared", [DISK_ALMOST_FULL, MEMORY_LOW])
def test_a_value_that_swings_around_its_limit_does_not_flicker(declared: object) -> None:
    better = replace(WELL, disk_free_bytes=int(5.5 * GIB), memory_available_bytes=int(1.3 * GIB))
    well = replace(WELL, disk_free_bytes=int(6.1 * GIB), memory_available_bytes=int(1.5 * GIB))
    shown = frozenset({DISK_ALMOST_FULL, MEMORY_LOW})
    assert {kind: bool(subjects) for kind, subjects in judge(better, "/d", shown).items()}[declared] is True  # type: ignore[index]
    assert {kind: bool(subjects) for kind, subjects in judge(well, "/d", shown).items()}[declared] is False  # type: ignore[index]


def test_a_sample_of_this_machine_adds_up(tmp_path: Path) -> None:
    taken = host.sample(tmp_path)
    assert 0 < taken.memory_used_bytes < taken.memory_total_bytes
    assert 0 < taken.memory_available_bytes <= taken.memory_total_bytes
    assert 0 <= taken.disk_free_bytes <= taken.disk_total_bytes


def test_children_count_as_memory_of_the_daemon(tmp_path: Path) -> None:
    before = host.sample(tmp_path).memory_used_bytes
    hold = "import sys; block = bytearray(64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert host.sample(tmp_path).memory_used_bytes > before + (48 << 20)
        child.communicate()


async def test_the_monitor_raises_and_clears_what_the_samples_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [replace(WELL, disk_free_bytes=GIB)]
    samples = itertools.count()

    def sample(data_dir: Path) -> Host:
        if next(samples) == 0:
            raise FileNotFoundError(2, "No such file or directory")
        return now[0]

    monkeypatch.setattr(host, "sample", sample)
    monotonic = itertools.count(step=60)  # so that nothing waits to become visible
    monitor = Monitor(lambda: float(next(monotonic)))
    watching = asyncio.create_task(monitor.watch_host(tmp_path, every_seconds=0.001))
    async with asyncio.timeout(10):
        async for report in monitor.watch():
            if [finding.code for finding in report.findings] == ["DISK_ALMOST_FULL"]:
                now[0] = WELL
            elif now[0] is WELL:
                break
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
