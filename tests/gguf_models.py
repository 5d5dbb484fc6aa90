"""Random-weight GGUF models that llama.cpp loads, of several architectures: tiny for tests, any size for benches.

Speed and plumbing do not depend on the weights; what a model says is noise, but the same noise for the same seed.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import gguf
import numpy as np

SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
WORDS = ["the", "box", "badge", "expires", "after", "ninety", "days", "hello", "world", "start", "system", "user"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"

Vocabulary = list[tuple[str, gguf.TokenType]]


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int = 2
    embedding: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    vocabulary: int = 1024
    context: int = 8192

    @property
    def head(self) -> int:
        return self.embedding // self.heads


TINY = Shape()


def write_llama(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Llama architecture, SentencePiece vocabulary: `word(i)` are single tokens. It never ends by itself."""
    writer = _open(path, "llama", shape)
    writer.add_rope_dimension_count(shape.head)
    writer.add_chat_template(PLAIN)
    _add_spm(writer, [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)], shape.vocabulary)
    weights = _Weights(writer, seed)
    weights.matrix("token_embd.weight", shape.vocabulary, shape.embedding, std=1.0)
    weights.ones("output_norm.weight", shape.embedding)
    weights.matrix("output.weight", shape.vocabulary, shape.embedding, zero_row=2)
    for block in _blocks(weights, shape):
        weights.ones(f"{block}.attn_norm.weight", shape.embedding)
        weights.ones(f"{block}.ffn_norm.weight", shape.embedding)
    return _close(writer, path)


def write_qwen2(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Qwen2 architecture, byte-level BPE, ChatML control tokens and user-defined ones as Qwen2 has them."""
    writer = _open(path, "qwen2", shape)
    writer.add_chat_template(CHATML)
    tokens: Vocabulary = [(char, _NORMAL) for char in _byte_alphabet()]
    merges: list[str] = []
    for form in [form for plain in WORDS for form in ("Ġ" + plain, plain)]:
        for cut in range(1, len(form)):
            pair, made = f"{form[:cut]} {form[cut]}", form[: cut + 1]
            if (made, _NORMAL) not in tokens:
                tokens.append((made, _NORMAL))
                merges.append(pair)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens += [(text, _CONTROL) for text in specials]
    tokens += [(text, _DEFINED) for text in ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "  ", "\n\n")]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    _add_tokens(writer, tokens)
    writer.add_token_merges(merges)
    ids = {text: i for i, (text, _) in enumerate(tokens)}
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    weights = _Weights(writer, seed)
    weights.matrix("token_embd.weight", len(tokens), shape.embedding, std=1.0)
    weights.ones("output_norm.weight", shape.embedding)
    weights.matrix("output.weight", len(tokens), shape.embedding)
    for block in _blocks(weights, shape):
        weights.ones(f"{block}.attn_norm.weight", shape.embedding)
        weights.ones(f"{block}.ffn_norm.weight", shape.embedding)
        weights.zeros(f"{block}.attn_q.bias", shape.embedding)
        weights.zeros(f"{block}.attn_k.bias", shape.kv_heads * shape.head)
        weights.zeros(f"{block}.attn_v.bias", shape.kv_heads * shape.head)
    return _close(writer, path)


def write_gemma2(path: Path, shape: Shape = TINY, seed: int = 0) -> Path:
    """Gemma 2 architecture: tied output, soft-capped logits, a sliding window in every other layer, adds a BOS."""
    writer = _open(path, "gemma2", shape)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(4096)
    writer.add_chat_template(GEMMA)
    specials: Vocabulary = [("<pad>", _CONTROL), ("<eos>", _CONTROL), ("<bos>", _CONTROL), ("<unk>", _UNKNOWN)]
    specials += [("<start_of_turn>", _CONTROL), ("<end_of_turn>", _CONTROL), ("<table>", _DEFINED)]
    _add_spm(writer, specials, shape.vocabulary, bos=2, eos=1, unknown=3, add_bos=True)
    weights = _Weights(writer, seed)
    weights.matrix("token_embd.weight", shape.vocabulary, shape.embedding, std=0.3)
    weights.ones("output_norm.weight", shape.embedding)
    for block in _blocks(weights, shape):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            weights.ones(f"{block}.{norm}.weight", shape.embedding)
    return _close(writer, path)


ARCHITECTURES = {"llama": write_llama, "qwen2": write_qwen2, "gemma2": write_gemma2}


def word(index: int) -> str:
    """A made-up word that is one token (with the blank before it) in the SentencePiece vocabularies here."""
    count = len(SYLLABLES)
    return SYLLABLES[index % count] if index < count else SYLLABLES[index // count % count] + SYLLABLES[index % count]


_UNKNOWN, _CONTROL = gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL
_NORMAL, _DEFINED, _BYTE = gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED, gguf.TokenType.BYTE


class _Weights:
    """Seeded tensors, added to a writer as they are drawn."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer, self._random = writer, np.random.default_rng(seed)

    def matrix(self, name: str, rows: int, columns: int, std: float = 0.0, zero_row: int = -1) -> None:
        values = self._random.standard_normal((rows, columns), dtype=np.float32) * (std or columns**-0.5)
        if zero_row >= 0:
            values[zero_row] = 0
        self._writer.add_tensor(name, values.astype(np.float16))

    def ones(self, name: str, size: int) -> None:
        self._writer.add_tensor(name, np.ones(size, np.float32))

    def zeros(self, name: str, size: int) -> None:
        self._writer.add_tensor(name, np.zeros(size, np.float32))


def _open(path: Path, architecture: str, shape: Shape) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f"random {architecture}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
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


def _blocks(weights: _Weights, shape: Shape) -> Iterator[str]:
    """Write each layer's matrices; the caller adds its norms and biases."""
    width, kv = shape.embedding, shape.kv_heads * shape.head
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name, rows in (("attn_q", width), ("attn_k", kv), ("attn_v", kv), ("attn_output", width)):
            weights.matrix(f"{block}.{name}.weight", rows, width)
        weights.matrix(f"{block}.ffn_gate.weight", shape.feed_forward, width)
        weights.matrix(f"{block}.ffn_up.weight", shape.feed_forward, width)
        weights.matrix(f"{block}.ffn_down.weight", width, shape.feed_forward)
        yield block


def _add_spm(
    writer: gguf.GGUFWriter,
    specials: Vocabulary,
    size: int,
    *,
    bos: int = 1,
    eos: int = 2,
    unknown: int = 0,
    add_bos: bool = False,
) -> None:
    """Specials, bytes, characters, syllables, and words of two and three syllables until there are `size`."""
    tokens = specials + [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    seen = {text for text, _ in tokens}
    for text in _spm_texts():
        if len(tokens) == size:
            break
        if text not in seen:
            seen.add(text)
            tokens.append((text, _NORMAL))
    assert len(tokens) == size
    writer.add_tokenizer_model("llama")
    _add_tokens(writer, tokens)
    writer.add_token_scores([0.0 if i < len(specials) else -float(i) for i in range(size)])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(unknown)
    writer.add_add_bos_token(add_bos)


def _spm_texts() -> Iterator[str]:
    yield "▁"
    yield from string.printable.strip()
    yield from SYLLABLES
    yield from ("▁" + syllable for syllable in SYLLABLES)
    for first, second in product(SYLLABLES, SYLLABLES):
        yield first + second
        yield "▁" + first + second
    for parts in product(SYLLABLES, repeat=3):
        yield "▁" + "".join(parts)


def _add_tokens(writer: gguf.GGUFWriter, tokens: Vocabulary) -> None:
    writer.add_vocab_size(len(tokens))
    writer.add_token_list([text.encode() for text, _ in tokens])
    writer.add_token_types([int(kind) for _, kind in tokens])


def _byte_alphabet() -> list[str]:
    """GPT-2's 256 printable characters for bytes, in byte order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(spare)) for byte in range(256)]
