"""The checkpoint as GGUF: Llama architecture, gpt2-style BPE, matrices q8_0, norms f32."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from models.starter.model import Shape
from models.starter.tokenizer import CONTROL, END

TENSORS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


def export(checkpoint: Path, tokenizer: Path, out: Path) -> str:
    """Write out and the pin beside it (OUT's stem + .sha256); returns the sha256."""
    weights = torch.load(checkpoint, weights_only=True, map_location="cpu")["weights"]
    writer = gguf.GGUFWriter(out, "llama")
    _write_shape(writer, Shape())
    _write_vocabulary(writer, json.loads(tokenizer.read_text()))
    for name, tensor in weights.items():
        _write_tensor(writer, gguf_name(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    out.with_suffix(".sha256").write_text(f"{digest}  {out.name}\n")
    return digest


def gguf_name(name: str) -> str:
    """`layers.2.gate` is `blk.2.ffn_gate.weight` there."""
    if name in ("embedding", "final_norm"):
        return {"embedding": "token_embd.weight", "final_norm": "output_norm.weight"}[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{TENSORS[part]}.weight"


def _write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("starter pointer")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    kinds = [gguf.TokenType.CONTROL if i < len(CONTROL) else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)


def _write_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
