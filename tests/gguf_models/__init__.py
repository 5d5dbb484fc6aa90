"""Random-weight GGUF models that llama.cpp loads, of several architectures: tiny for tests, any size for benches.

Speed and plumbing do not depend on the weights; what a model says is noise, but the same noise for the same seed. Keys
and tensors of a family are those that its file in llama.cpp's src/models/ reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tests.gguf_models.vocabularies import CONTROL, DEFINED, UNKNOWN, Vocabulary, add_bpe, add_spm
from tests.gguf_models.vocabularies import word as word

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
PHI3 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n"
HARMONY = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in elements. `window`, `experts`: only of families that have them. A family with a byte-level vocabulary
    has its own size of it.

    head_size, value_size: of a head's keys and values; 0 for embedding / heads, and for as large as the keys.
    focus: the standard deviation of attention scores: at 1 a long context averages out, at 4 a few tokens decide.
    """

    layers: int = 2
    embedding: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    vocabulary: int = 1024
    context: int = 8192
    head_size: int = 0
    value_size: int = 0
    window: int = 4096
    experts: int = 4
    experts_used: int = 2
    focus: float = 1.0

    @property
    def head(self) -> int:
        return self.head_size or self.embedding // self.heads

    @property
    def value(self) -> int:
        return self.value_size or self.head


TINY = Shape()


def write_llama(path: Path, shape: Shape = TINY, seed: int = 0, architecture: str = "llama") -> Path:
    """Llama architecture, SentencePiece vocabulary: `word(i)` are single tokens. It never ends by itself."""
    writer = _open(path, architecture, shape)
    writer.add_rope_dimension_count(shape.head)
    writer.add_chat_template(PLAIN)
    add_spm(writer, [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)], shape.vocabulary)
    weights = _Weights(writer, seed)
    weights.matrix("token_embd.weight", shape.vocabulary, shape.embedding, std=1.0)
    weights.fill("output_norm.weight", shape.embedding)
    weights.matrix("output.weight", shape.vocabulary, shape.embedding, zero_row=2)
    for block in _blocks(weights, shape):
        weights.fill(f"{block}.attn_norm.weight", shape.embedding)
        weights.fill(f"{block}.ffn_norm.weight", shape.embedding)
    return _close(writer, path)


def write_refact(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Refact architecture: as Llama, with ALiBi instead of rotary positions."""
    return write_llama(path, shape, seed, architecture="refact")


def write_qwen2(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Qwen2 architecture, byte-level BPE, ChatML control tokens and user-defined ones as Qwen2 has them."""
    writer = _open(path, "qwen2", shape)
    weights = _Weights(writer, seed)
    _add_ends(weights, shape, _add_chatml(writer))
    for block in _blocks(weights, shape):
        weights.fill(f"{block}.attn_norm.weight", shape.embedding)
        weights.fill(f"{block}.ffn_norm.weight", shape.embedding)
        _add_qkv_biases(weights, block, shape)
    return _close(writer, path)


def write_qwen3(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Qwen3 architecture: heads of their own size, normed queries and keys."""
    return _write_qwen3(path, "qwen3", shape, seed)


def write_qwen3moe(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Qwen3 MoE architecture: as Qwen3, a few of many experts a token."""
    return _write_qwen3(path, "qwen3moe", shape, seed)


def write_gemma2(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Gemma 2 architecture: tied output, soft-capped logits, a sliding window in every other layer, adds a BOS."""
    writer = _open(path, "gemma2", shape)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(shape.window)
    weights = _add_gemma(writer, shape, seed)
    for block in _blocks(weights, shape):
        _add_gemma_norms(weights, block, shape)
    return _close(writer, path)


def write_gemma3(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Gemma 3 architecture: as Gemma 2, normed queries and keys instead of soft caps, a rope base for the window."""
    writer = _open(path, "gemma3", shape)
    writer.add_sliding_window(shape.window)
    writer.add_sliding_window_pattern(2)  # Gemma 3 itself has one full layer in six
    writer.add_rope_freq_base_swa(10_000.0)
    weights = _add_gemma(writer, shape, seed)
    for block in _blocks(weights, shape, focus=1.0):
        _add_gemma_norms(weights, block, shape)
        _add_qk_norms(weights, block, shape)
    return _close(writer, path)


def write_gemma4(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Gemma 4 architecture, dense: as Gemma 3; layers from the fifth on read the KV cache of the two before them."""
    writer = _open(path, "gemma4", shape)
    writer.add_sliding_window(shape.window)
    writer.add_sliding_window_pattern([layer % 2 == 0 for layer in range(shape.layers)])
    writer.add_shared_kv_layers(max(0, shape.layers - 4))
    writer.add_embedding_length_per_layer_input(0)
    writer.add_key_length_swa(shape.head)
    writer.add_value_length_swa(shape.head)
    writer.add_rope_freq_base_swa(10_000.0)
    weights = _add_gemma(writer, shape, seed)
    weights.fill("rope_freqs.weight", shape.head // 2)
    for block in _blocks(weights, shape, focus=1.0):
        _add_gemma_norms(weights, block, shape)
        weights.fill(f"{block}.attn_q_norm.weight", shape.head, shape.focus * shape.head**-0.5)  # scores have no scale
        weights.fill(f"{block}.attn_k_norm.weight", shape.head)
    return _close(writer, path)


def write_phi3(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Phi-3 architecture: one matrix for queries, keys and values, one for gate and up. Heads of embedding / heads."""
    assert shape.heads * shape.head == shape.embedding
    writer = _open(path, "phi3", shape)
    writer.add_rope_dimension_count(shape.head)
    writer.add_chat_template(PHI3)
    specials: Vocabulary = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<|endoftext|>", CONTROL)]
    specials += [(text, CONTROL) for text in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")]
    add_spm(writer, specials, shape.vocabulary, eos=3)
    weights = _Weights(writer, seed)
    _add_ends(weights, shape, shape.vocabulary)
    width = shape.embedding
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        queries, rest = shape.heads * shape.head, 2 * shape.kv_heads * shape.head
        weights.matrix(f"{block}.attn_qkv.weight", queries + rest, width, std=(shape.focus / width) ** 0.5)
        weights.matrix(f"{block}.attn_output.weight", width, width)
        weights.matrix(f"{block}.ffn_up.weight", 2 * shape.feed_forward, width)
        weights.matrix(f"{block}.ffn_down.weight", width, shape.feed_forward)
        weights.fill(f"{block}.attn_norm.weight", width)
        weights.fill(f"{block}.ffn_norm.weight", width)
    return _close(writer, path)


def write_gpt_oss(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """gpt-oss architecture: attention sinks, a window in every other layer, experts and biases everywhere."""
    writer = _open(path, "gpt-oss", shape)
    writer.add_rope_dimension_count(shape.head)
    writer.add_sliding_window(shape.window)
    _add_expert_counts(writer, shape)
    ends = ["<|endoftext|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
    weights = _Weights(writer, seed)
    _add_ends(weights, shape, add_bpe(writer, HARMONY, ends, (), eos="<|return|>"))
    for block in _blocks(weights, shape, moe=True):
        weights.fill(f"{block}.attn_norm.weight", shape.embedding)
        weights.fill(f"{block}.post_attention_norm.weight", shape.embedding)
        weights.fill(f"{block}.attn_output.bias", shape.embedding, 0.0)
        weights.vector(f"{block}.attn_sinks.weight", shape.heads, std=shape.focus)
        _add_qkv_biases(weights, block, shape)
        weights.vector(f"{block}.ffn_gate_inp.bias", shape.experts)
        for name, size in (("gate", shape.feed_forward), ("up", shape.feed_forward), ("down", shape.embedding)):
            weights.vector(f"{block}.ffn_{name}_exps.bias", shape.experts, size, std=0.1)
    return _close(writer, path)


def write_mimo2(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """MiMo-V2 architecture with dense layers: keys and values may differ in size; a window in every other layer."""
    writer = _open(path, "mimo2", shape)
    writer.add_sliding_window(shape.window)
    writer.add_sliding_window_pattern([layer % 2 == 0 for layer in range(shape.layers)])
    writer.add_expert_feed_forward_length(shape.feed_forward)
    weights = _Weights(writer, seed)
    _add_ends(weights, shape, _add_chatml(writer))
    for block in _blocks(weights, shape):
        weights.fill(f"{block}.attn_norm.weight", shape.embedding)
        weights.fill(f"{block}.ffn_norm.weight", shape.embedding)
    return _close(writer, path)


ARCHITECTURES = {
    "llama": write_llama,
    "qwen2": write_qwen2,
    "qwen3": write_qwen3,
    "qwen3moe": write_qwen3moe,
    "gemma2": write_gemma2,
    "gemma3": write_gemma3,
    "gemma4": write_gemma4,
    "phi3": write_phi3,
    "gpt-oss": write_gpt_oss,
    "mimo2": write_mimo2,
    "refact": write_refact,
}


class _Weights:
    """Seeded tensors, added to a writer as they are drawn."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer, self._random = writer, np.random.default_rng(seed)

    def matrix(self, name: str, *shape: int, std: float = 0.0, zero_row: int = -1) -> None:
        """shape: [rows, columns], of experts [experts, rows, columns]. Left alone it keeps a vector's variance."""
        values = self._random.standard_normal(shape, dtype=np.float32) * (std or shape[-1] ** -0.5)
        if zero_row >= 0:
            values[zero_row] = 0
        self._writer.add_tensor(name, values.astype(np.float16))

    def vector(self, name: str, *shape: int, std: float = 1.0) -> None:
        self._writer.add_tensor(name, self._random.standard_normal(shape, dtype=np.float32) * np.float32(std))

    def fill(self, name: str, size: int, value: float = 1.0) -> None:
        self._writer.add_tensor(name, np.full(size, value, np.float32))


def _open(path: Path, architecture: str, shape: Shape) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f"random {architecture}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    return writer


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _blocks(weights: _Weights, shape: Shape, *, focus: float = 0.0, moe: bool = False) -> Iterator[str]:
    """Write each layer's matrices; the caller adds its norms and biases. focus: other than the shape's."""
    width, queries, kv_heads = shape.embedding, shape.heads * shape.head, shape.kv_heads
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        weights.matrix(f"{block}.attn_q.weight", queries, width, std=(focus or shape.focus) * width**-0.5)
        weights.matrix(f"{block}.attn_k.weight", kv_heads * shape.head, width)
        weights.matrix(f"{block}.attn_v.weight", kv_heads * shape.value, width)
        weights.matrix(f"{block}.attn_output.weight", width, shape.heads * shape.value)
        many, experts = ((shape.experts,), "_exps") if moe else ((), "")
        weights.matrix(f"{block}.ffn_gate{experts}.weight", *many, shape.feed_forward, width)
        weights.matrix(f"{block}.ffn_up{experts}.weight", *many, shape.feed_forward, width)
        weights.matrix(f"{block}.ffn_down{experts}.weight", *many, width, shape.feed_forward)
        if moe:
            weights.matrix(f"{block}.ffn_gate_inp.weight", shape.experts, width)
        yield block


def _write_qwen3(path: Path, architecture: str, shape: Shape, seed: int) -> Path:
    moe = architecture == "qwen3moe"
    writer = _open(path, architecture, shape)
    if moe:
        _add_expert_counts(writer, shape)
    weights = _Weights(writer, seed)
    _add_ends(weights, shape, _add_chatml(writer))
    for block in _blocks(weights, shape, focus=1.0, moe=moe):
        weights.fill(f"{block}.attn_norm.weight", shape.embedding)
        weights.fill(f"{block}.ffn_norm.weight", shape.embedding)
        _add_qk_norms(weights, block, shape)
    return _close(writer, path)


def _add_ends(weights: _Weights, shape: Shape, vocabulary: int) -> None:
    """Embedding, last norm and output."""
    weights.matrix("token_embd.weight", vocabulary, shape.embedding, std=1.0)
    weights.fill("output_norm.weight", shape.embedding)
    weights.matrix("output.weight", vocabulary, shape.embedding)


def _add_qk_norms(weights: _Weights, block: str, shape: Shape) -> None:
    weights.fill(f"{block}.attn_q_norm.weight", shape.head, shape.focus)
    weights.fill(f"{block}.attn_k_norm.weight", shape.head)


def _add_qkv_biases(weights: _Weights, block: str, shape: Shape) -> None:
    weights.fill(f"{block}.attn_q.bias", shape.heads * shape.head, 0.0)
    weights.fill(f"{block}.attn_k.bias", shape.kv_heads * shape.head, 0.0)
    weights.fill(f"{block}.attn_v.bias", shape.kv_heads * shape.value, 0.0)


def _add_expert_counts(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_used)
    writer.add_expert_feed_forward_length(shape.feed_forward)


def _add_gemma(writer: gguf.GGUFWriter, shape: Shape, seed: int) -> _Weights:
    """Gemma's turns, vocabulary, tied embedding and last norm."""
    writer.add_chat_template(GEMMA)
    specials: Vocabulary = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
    specials += [("<start_of_turn>", CONTROL), ("<end_of_turn>", CONTROL), ("<table>", DEFINED)]
    add_spm(writer, specials, shape.vocabulary, bos=2, eos=1, unknown=3, add_bos=True)
    weights = _Weights(writer, seed)
    weights.matrix("token_embd.weight", shape.vocabulary, shape.embedding, std=0.3)
    weights.fill("output_norm.weight", shape.embedding)
    return weights


def _add_gemma_norms(weights: _Weights, block: str, shape: Shape) -> None:
    for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        weights.fill(f"{block}.{norm}.weight", shape.embedding)


def _add_chatml(writer: gguf.GGUFWriter) -> int:
    """Qwen's vocabulary in small, with user-defined tokens as it has them; its size."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    defined = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "  ", "\n\n")
    return add_bpe(writer, CHATML, specials, defined, eos="<|im_end|>")
