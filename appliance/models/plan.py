"""How much memory a model takes, decided before it is loaded rather than found out by running out of it."""

from dataclasses import dataclass

from appliance.types import MemoryPlan, ModelFile

PROCESS_BYTES = 128 << 20  # the worker itself: interpreter, libraries, buffers of its streams
MASK_BYTES = 6  # of a token of the step for each token of the context: the attention mask in f32 and f16
KV_BLOCK_BYTES = {"f16": 64, "q8_0": 34}  # of 32 elements
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Engine:
    """How workers are started, as far as that takes memory; see config.py. output_rows: of a step, that give logits."""

    batch_tokens: int = 512
    output_rows: int = 0
    kv_type: str = "f16"
    host_cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by what they are for."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    host_cache_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.host_cache_bytes


def plan(file: ModelFile, context_tokens: int, engine: Engine = Engine(), draft: ModelFile | None = None) -> Plan:
    """What a worker with that context takes: an upper bound for llama.cpp with flash attention.

    draft: the model that drafts for it, with as long a context, in f16.
    """
    kv = context_tokens * file.kv_bytes_per_token * KV_BLOCK_BYTES[engine.kv_type] // KV_BLOCK_BYTES["f16"]
    found = Plan(
        file.size_bytes, kv, PROCESS_BYTES + _step_bytes(file, context_tokens, engine), engine.host_cache_bytes
    )
    if draft is None:
        return found
    return Plan(
        found.weights_bytes + draft.size_bytes,
        found.kv_bytes + context_tokens * draft.kv_bytes_per_token,
        found.compute_bytes + _step_bytes(draft, context_tokens, engine),
        found.host_cache_bytes,
    )


def admit(
    file: ModelFile,
    context_tokens: int,
    *,
    available_bytes: int,
    total_bytes: int,
    reserve_bytes: int,
    engine: Engine = Engine(),
    draft: ModelFile | None = None,
) -> MemoryPlan:
    """What a model needs of what is free, and the problem where that is more. reserve_bytes: what is never given."""
    needed = plan(file, context_tokens, engine, draft)
    free = max(0, available_bytes - reserve_bytes)
    problem = "" if needed.total_bytes <= free else _too_large(file, context_tokens, needed, free, reserve_bytes, draft)
    return MemoryPlan(file.name, context_tokens, needed.total_bytes, free, total_bytes, problem)


def _step_bytes(file: ModelFile, context_tokens: int, engine: Engine) -> int:
    """Activations, logits and mask of a step, and the logits that are kept until the next."""
    rows = engine.batch_tokens + engine.output_rows
    return rows * file.compute_bytes_per_token + engine.batch_tokens * MASK_BYTES * context_tokens


def _too_large(
    file: ModelFile, context_tokens: int, needed: Plan, free_bytes: int, reserve_bytes: int, draft: ModelFile | None
) -> str:
    drafting = f", those of {draft.name} that drafts for it among them" if draft else ""
    return (
        f"{file.name} needs {needed.total_bytes / GIB:.1f} of {free_bytes / GIB:.1f} GiB free: "
        f"{needed.weights_bytes / GIB:.1f} for weights{drafting}, {needed.kv_bytes / GIB:.1f} for {context_tokens} "
        f"tokens of context, {needed.compute_bytes / GIB:.1f} to compute, {needed.host_cache_bytes / GIB:.1f} for idle "
        f"prefixes; {reserve_bytes / GIB:.1f} more are kept for the rest of the box."
    )
