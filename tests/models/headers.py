"""GGUF headers for tests: sound ones by the `gguf` package, hostile ones byte by byte."""

import struct
from pathlib import Path

import gguf
import numpy as np

UINT32, INT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 7, 8, 9, 10
F32 = 0
CONTROL, NORMAL = 3, 1


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, dimensions: tuple[int, ...], storage: int = F32, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return string(name) + shape + struct.pack("<IQ", storage, offset)


def header(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
    data_bytes: int = 0,
    alignment: int = 32,
) -> bytes:
    """A file whose counts may lie."""
    pairs, tensors = pairs or [], tensors or []
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data_bytes)


def write_chat(
    path: Path,
    *,
    name: str = "Tiny Chat",
    architecture: str = "llama",
    template: str = "",
    control: tuple[str, ...] = ("<s>", "</s>"),
    seed: int = 0,
    kv_heads: int | list[int] = 2,
    **more: int | str,
) -> Path:
    """A sound header with little behind it: two layers, width 16, four heads. `more`: more keys, __ for dots."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(name)
    writer.add_context_length(512)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv_heads)
    tokens = [*control, *(f"t{i}" for i in range(40 - len(control)))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * len(control) + [NORMAL] * (40 - len(control)))
    if template:
        writer.add_chat_template(template)
    for key, value in more.items():
        dotted = key.replace("__", ".")
        _ = writer.add_string(dotted, value) if isinstance(value, str) else writer.add_uint32(dotted, value)
    random = np.random.default_rng(seed)
    writer.add_tensor("token_embd.weight", random.standard_normal((40, 16)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
