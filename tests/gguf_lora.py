"""LoRA adapters in GGUF, made from a base model's own header: small random changes of its attention."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from appliance.models.gguf import read

CHANGED = ("attn_q.weight", "attn_v.weight", "ffn_down.weight")
EMBEDDING = "token_embd.weight"


def write_lora(
    path: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8.0,
    std: float = 0.5,
    name: str = "",
    changed: Sequence[str] = CHANGED,
    architecture: str = "",
    kind: str = "lora",
) -> Path:
    """An adapter that fits `base`: each tensor whose name ends as `changed` says gets a pair of factors of f16."""
    header = read(base)
    writer = gguf.GGUFWriter(str(path), architecture or header.architecture)
    writer.add_type("adapter")
    writer.add_name(name or f"lora {seed}")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", alpha)
    random = np.random.default_rng(seed)
    for tensor in header.tensors:
        if tensor.name.endswith(tuple(changed)):
            inner, outer, *more = tensor.dimensions
            low, high = (rank, inner), (outer, rank)
            if tensor.name == EMBEDDING:  # stored the other way round
                low, high = (outer, rank), (inner, rank)
            for suffix, shape in (("lora_a", low), ("lora_b", high)):
                values = random.standard_normal((*reversed(more), *shape), dtype=np.float32) * std
                writer.add_tensor(f"{tensor.name}.{suffix}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
