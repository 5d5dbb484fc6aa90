import re
from dataclasses import replace

from appliance.models.plan import GIB, MASK_BYTES, PROCESS_BYTES, Engine, admit, plan
from appliance.types import MemoryPlan, ModelFile, ModelKind

BIG = ModelFile(
    name="qwen3-14b",
    kind=ModelKind.CHAT,
    path="/x",
    architecture="qwen3",
    sha256="0" * 64,
    size_bytes=8 * GIB,
    source="qwen3-14b.gguf",
    kv_bytes_per_token=160 << 10,
    compute_bytes_per_token=700_000,
)


def test_a_plan_is_weights_and_kv_and_the_buffers_of_a_step() -> None:
    found = plan(BIG, context_tokens=8192, engine=Engine(batch_tokens=256))
    assert found.weights_bytes == 8 * GIB
    assert found.kv_bytes == 8192 * (160 << 10)
    assert found.compute_bytes == PROCESS_BYTES + 256 * (700_000 + MASK_BYTES * 8192)
    assert found.total_bytes == found.weights_bytes + found.kv_bytes + found.compute_bytes


def offer(available_bytes: int, reserve_bytes: int = GIB) -> MemoryPlan:
    return admit(BIG, 8192, available_bytes=available_bytes, total_bytes=24 * GIB, reserve_bytes=reserve_bytes)


def test_a_model_that_fits_is_admitted_with_its_planned_bytes() -> None:
    needed = plan(BIG, 8192).total_bytes
    assert offer(needed + GIB) == MemoryPlan("qwen3-14b", 8192, needed, needed, 24 * GIB)


def test_a_model_one_byte_too_large_is_a_problem() -> None:
    needed = plan(BIG, 8192).total_bytes
    assert offer(needed + GIB - 1).problem


def test_a_problem_says_what_is_needed_and_what_is_free() -> None:
    assert re.match(
        r"qwen3-14b needs 9\.\d of 4\.1 GiB free: 8\.0 for weights, 1\.2 for 8192", offer(int(5.1 * GIB)).problem
    )


def test_a_reserve_above_what_is_available_leaves_nothing_free() -> None:
    assert "of 0.0 GiB free" in offer(GIB, reserve_bytes=2 * GIB).problem


def test_a_cache_in_eight_bits_takes_34_bytes_where_one_in_16_takes_64() -> None:
    assert plan(BIG, 8192, Engine(kv_type="q8_0")).kv_bytes == 8192 * (160 << 10) * 34 // 64


def test_idle_prefixes_and_kept_logits_take_memory_too() -> None:
    without, found = plan(BIG, 8192), plan(BIG, 8192, Engine(output_rows=40, host_cache_bytes=GIB))
    assert found.total_bytes - without.total_bytes == GIB + 40 * BIG.compute_bytes_per_token


def test_a_draft_model_takes_its_weights_a_context_in_16_bits_and_a_step() -> None:
    draft = replace(BIG, name="small", size_bytes=GIB, kv_bytes_per_token=1 << 10, compute_bytes_per_token=300_000)
    engine = Engine(batch_tokens=256, output_rows=40, kv_type="q8_0")
    without, found = plan(BIG, 8192, engine), plan(BIG, 8192, engine, draft)
    assert found.weights_bytes - without.weights_bytes == GIB
    assert found.kv_bytes - without.kv_bytes == 8192 << 10
    assert found.compute_bytes - without.compute_bytes == 296 * 300_000 + 256 * MASK_BYTES * 8192
    problem = admit(BIG, 8192, available_bytes=GIB, total_bytes=GIB, reserve_bytes=0, draft=draft).problem
    assert "needs 10." in problem
    assert "those of small" in problem
