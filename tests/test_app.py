from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from appliance import app
from appliance.app import options as told
from appliance.app import watch
from appliance.app.options import admission
from appliance.config import Config
from appliance.health import host
from appliance.health.metrics import Metrics
from appliance.infer.router import Router
from appliance.knowledge.quality.drift import SearchTallies
from appliance.types import (
    EngineStats,
    Ingestion,
    IngestionState,
    ModelFile,
    ModelKind,
    Provenance,
    SourceKind,
    Wall,
    Walls,
)

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


def test_what_the_configuration_gives_an_engine_is_in_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "sample", lambda _: NOW)
    file = replace(FILE, kv_bytes_per_token=1 << 20)
    small = Config(data_dir=tmp_path, kv_host_cache_mib=0)
    needed = admission(small)(file, 1024, 0).needed_bytes
    assert admission(replace(small, kv_host_cache_mib=100))(file, 1024, 0).needed_bytes == needed + (100 << 20)
    assert admission(replace(small, model_kv_type="q8_0"))(file, 1024, 0).needed_bytes == needed - GIB * 30 // 64
    assert admission(small)(file, 1024, 0, draft=FILE).needed_bytes > needed + FILE.size_bytes


def test_the_options_of_the_configuration_reach_the_engines(tmp_path: Path) -> None:
    config = Config(
        data_dir=tmp_path,
        model_attention="stock",
        model_speculate_below=0,
        model_draft="small",
        model_prefill_beside_streams=64,
    )
    options = told.engine_options(config, tmp_path, b"")
    assert (options.attention, options.speculate_below_streams) == ("stock", 0)
    assert (options.draft_model, options.prefill_beside_streams) == ("small", 64)


def test_a_wall_that_is_not_there_is_told_with_what_it_lacks() -> None:
    layers = (Wall("seccomp", True, True, "41 calls"), Wall("namespaces", False, False, "without user"))
    assert watch._missing_walls(Walls(layers, datetime.now(UTC))) == {"sandbox/namespaces": "without user"}
    assert watch._missing_walls(None) == {}


def test_stock_attention_that_nobody_asked_for_is_told_with_its_reason() -> None:
    engines = {
        "one": EngineStats(attention="paged (avx2)"),
        "two": EngineStats(attention="stock: another ggml"),
        "three": EngineStats(),
    }
    assert watch._stock_attention(Config(), engines) == {"models/two": "another ggml"}
    assert watch._stock_attention(Config(model_attention="stock"), engines) == {}


@dataclass
class Idle:
    """A router that runs nothing."""

    def stats(self) -> dict[str, EngineStats]:
        return {}


async def test_metrics_name_the_collections_of_one_tenant_alone(tmp_path: Path) -> None:
    tallies = SearchTallies()
    tallies.searched("acme", "handbook", None)
    tallies.searched("rival", "secrets", None)
    _, text = await app._metrics(Config(data_dir=tmp_path), Metrics(), cast(Router, Idle()), tallies, "acme")
    assert b'collection="handbook"' in text
    assert b"secrets" not in text


def test_a_damaged_collection_is_a_finding_of_its_tenant() -> None:
    assert watch._place("acme/handbook") == ("acme", "collections/handbook")


def test_a_cache_on_disk_that_fails_is_told_with_its_reason() -> None:
    engines = {"one": EngineStats(), "two": EngineStats(disk_fault="A file cannot be written.")}
    assert watch._failing_caches(engines) == {"models/two": "A file cannot be written."}


def test_an_ingestion_that_waits_and_one_that_stopped_are_told_of_with_their_tenants() -> None:
    where = Provenance(SourceKind.FOLDER, "/srv/drop")
    begun = Ingestion("1", "acme", "docs", frozenset(), where, "olga", IngestionState.WAITING, datetime.now(UTC))
    others = [
        replace(begun, id="2", state=IngestionState.FAILED, problem="The disk is full."),
        replace(begun, id="3", tenant="rival", state=IngestionState.INTERRUPTED, problem="It was pulled."),
        replace(begun, id="4", state=IngestionState.RUNNING),
    ]
    waiting, stopped = watch._waiting([begun, *others])
    assert waiting == {("acme", "ingestions/1"): "olga began it."}
    assert stopped == {
        ("acme", "ingestions/2"): "The disk is full.",
        ("rival", "ingestions/3"): "It was pulled.",
    }
