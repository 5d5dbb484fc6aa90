from dataclasses import replace
from pathlib import Path

import pytest

from appliance.app import admission
from appliance.config import Config
from appliance.health import host
from appliance.types import ModelFile, ModelKind

GIB = 1 << 30
FILE = ModelFile("big", ModelKind.CHAT, "/nowhere", "llama", "0" * 64, 10 * GIB, "a stick")
NOW = host.Host(
    memory_total_bytes=16 * GIB,
    memory_available_bytes=15 * GIB,
    memory_used_bytes=GIB,
    disk_total_bytes=GIB,
    disk_free_bytes=GIB,
)


def test_a_model_that_still_loads_counts_although_its_memory_looks_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "sample", lambda _: NOW)
    admit = admission(Config(data_dir=tmp_path, memory_reserve_mib=1024))
    plan = admit(FILE, 1024, 0)
    assert (plan.problem, plan.total_bytes) == ("", NOW.memory_total_bytes)
    assert plan.needed_bytes >= FILE.size_bytes
    assert "big needs" in admit(FILE, 1024, plan.needed_bytes).problem


def test_memory_that_others_take_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "sample", lambda _: replace(NOW, memory_available_bytes=4 * GIB))
    admit = admission(Config(data_dir=tmp_path, memory_reserve_mib=1024))
    assert "3.0 GiB free" in admit(FILE, 1024, 0).problem
    assert "5.0 GiB free" in admit(FILE, 1024, 0, freed_bytes=2 * GIB).problem
