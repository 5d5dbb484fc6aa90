"""How much memory a model takes, decided before it is loaded rather than found out by running out of it."""

from dataclasses import dataclass

from appliance.types import MemoryPlan, ModelFile

PROCESS_BYTES = 128 << 20  # the worker itself: interpreter, libraries, buffers of its streams
MASK_BYTES = 6  # of a token of the step for each token of the context: the attention mask in f32 and f16
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by what they are for."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def plan(file: ModelFile, context_tokens: int, batch_tokens: int = 512) -> Plan:
    """What a worker with that context and step takes: an upper bound for llama.cpp with flash attention and f16 KV."""
    step = batch_tokens * (file.compute_bytes_per_token + MASK_BYTES * context_tokens)
    return Plan(file.size_bytes, context_tokens * file.kv_bytes_per_token, PROCESS_BYTES + step)


def admit(
    file: ModelFile,
    context_tokens: int,
    *,
    available_bytes: int,
    total_bytes: int,
    reserve_bytes: int,
    batch_tokens: int = 512,
) -> MemoryPlan:
    """What a model needs of what is free, and the problem where that is more. reserve_bytes: what is never given."""
    needed = plan(file, context_tokens, batch_tokens)
    free = max(0, available_bytes - reserve_bytes)
    problem = "" if needed.total_bytes <= free else _too_large(file, context_tokens, needed, free, reserve_bytes)
    return MemoryPlan(file.name, context_tokens, needed.total_bytes, free, total_bytes, problem)


def _too_large(file: ModelFile, context_tokens: int, needed: Plan, free_bytes: int, reserve_bytes: int) -> str:
    return (
        f"{file.name} needs {needed.total_bytes / GIB:.1f} of {free_bytes / GIB:.1f} GiB free: "
        f"{needed.weights_bytes / GIB:.1f} for weights, {needed.kv_bytes / GIB:.1f} for {context_tokens} tokens of "
        f"context; {reserve_bytes / GIB:.1f} more are kept for the rest of the box."
    )
