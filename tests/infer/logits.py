"""Logits of the same work under different attention, in a process of its own: `python -m tests.infer.logits FOLDER`.

The paged backend is registered for a whole process and for good, so pytest's own process stays without it. One line of
JSON a case and cache type: the error of stock and of paged attention against f32 arithmetic without flash attention,
and what the paged backend says that it computed. FOLDER keeps the models.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import llama_cpp as native
import numpy as np

from appliance.infer import paged
from appliance.types import Floats
from tests import gguf_models
from tests.gguf_models import Shape

CELLS, SEQUENCES, BATCH = 1024, 8, 256
KERNELS = ("avx512", "avx2")  # beside the best ones; those of other processors are left out
KV_TYPES = {"f16": native.GGML_TYPE_F16, "q8_0": native.GGML_TYPE_Q8_0}


class Error(NamedTuple):
    """Root mean square difference to the exact logits, over all rows and in the worst; the logits' own is 1."""

    all: float = 0.0
    worst: float = 0.0


class Outcome(NamedTuple):
    """served: paged, stock, mixed, or refused by llama.cpp itself. paged: of the kernels that do worst here. hole: the
    error that 16 lost cells would make."""

    kv: str
    served: str
    stock: Error = Error()
    paged: Error = Error()
    hole: Error = Error()


class Case(NamedTuple):
    """A model of a family. Attention differs between families and by head size and by query heads a KV head."""

    architecture: str
    shape: Shape


def _heads(size: int, queries: int, keys: int, **more: int) -> Shape:
    """Narrow but for the heads. Every token goes to all experts, as a choice of experts would jump at a tiny error."""
    wide = {"embedding": 64, "vocabulary": 512, "window": 48, "experts_used": gguf_models.TINY.experts} | more
    return Shape(head_size=size, heads=queries, kv_heads=keys, focus=3.0, **wide)


CASES = {
    "llama, heads of 16, 2 a KV head": Case("llama", _heads(16, 4, 2)),
    "llama, heads of 18, 2 a KV head": Case("llama", _heads(18, 4, 2)),
    "llama, heads of 32, 1 a KV head": Case("llama", _heads(32, 3, 3)),
    "llama, heads of 40, 3 a KV head": Case("llama", _heads(40, 6, 2)),
    "llama, heads of 64, 4 a KV head": Case("llama", _heads(64, 4, 1)),
    "llama, heads of 80, 7 a KV head": Case("llama", _heads(80, 7, 1)),
    "llama, heads of 128, 8 a KV head": Case("llama", _heads(128, 16, 2)),
    "llama, heads of 256, 2 a KV head": Case("llama", _heads(256, 4, 2)),
    "qwen2, heads of 64, 7 a KV head": Case("qwen2", _heads(64, 7, 1, embedding=448)),
    "qwen3, heads of 128, 2 a KV head": Case("qwen3", _heads(128, 4, 2)),
    "qwen3moe, heads of 128, 8 a KV head": Case("qwen3moe", _heads(128, 8, 1)),
    "gemma2, heads of 256, 2 a KV head, soft cap, window": Case("gemma2", _heads(256, 4, 2)),
    "gemma3, heads of 256, 4 a KV head, window": Case("gemma3", _heads(256, 4, 1)),
    "gemma4, heads of 64, 4 a KV head, window, shared KV layers": Case("gemma4", _heads(64, 4, 1, layers=8)),
    "phi3, heads of 96, 1 a KV head": Case("phi3", _heads(96, 2, 2, embedding=192)),
    "gpt-oss, heads of 64, 8 a KV head, sinks, window": Case("gpt-oss", _heads(64, 8, 1)),
    "mimo2, keys of 192, values of 128, 4 a KV head, window": Case("mimo2", _heads(192, 4, 1, value_size=128)),
    "refact, heads of 64, 1 a KV head, ALiBi": Case("refact", _heads(64, 4, 4)),
}


class Cache:
    """A context of one model, fed by hand: sequences share, lose and get cells as the engine makes them do."""

    def __init__(self, model: object, kv_type: int, flash: int) -> None:
        """flash: a LLAMA_FLASH_ATTN_TYPE. Raises ValueError where llama.cpp refuses the combination."""
        params = native.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = CELLS, SEQUENCES, BATCH, BATCH
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified, params.flash_attn_type = True, flash
        params.type_k = params.type_v = kv_type
        self._native = native.llama_init_from_model(model, params)
        if not self._native:
            raise ValueError("llama.cpp refuses this context")
        self._memory = native.llama_get_memory(self._native)
        self._batch = native.llama_batch_init(BATCH, 0, 1)
        self._vocabulary = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
        self._random = np.random.default_rng(0)
        self._lengths = [0] * SEQUENCES
        self.logits: list[Floats] = []

    def feed(self, *counts: tuple[int, int]) -> None:
        """So many further tokens to each of these sequences, in one batch; keeps every row's logits."""
        rows = [(sequence, self._lengths[sequence] + at) for sequence, count in counts for at in range(count)]
        for row, (sequence, position) in enumerate(rows):
            self._batch.token[row] = int(self._random.integers(self._vocabulary))
            self._batch.pos[row], self._batch.n_seq_id[row] = position, 1
            self._batch.seq_id[row][0], self._batch.logits[row] = sequence, True
        self._batch.n_tokens = len(rows)
        if code := native.llama_decode(self._native, self._batch):
            raise RuntimeError(f"llama_decode failed with code {code}")
        for row, (sequence, position) in enumerate(rows):
            address = native.llama_get_logits_ith(self._native, row)
            self.logits.append(np.ctypeslib.as_array(address, (self._vocabulary,)).copy())
            self._lengths[sequence] = position + 1

    def share(self, source: int, target: int, tokens: int) -> None:
        native.llama_memory_seq_cp(self._memory, source, target, 0, tokens)
        self._lengths[target] = tokens

    def trim(self, sequence: int, tokens: int) -> None:
        native.llama_memory_seq_rm(self._memory, sequence, tokens, -1)
        self._lengths[sequence] = tokens

    def lose(self, sequence: int, start: int, end: int) -> None:
        native.llama_memory_seq_rm(self._memory, sequence, start, end)

    def close(self) -> None:
        native.llama_batch_free(self._batch)
        native.llama_free(self._native)


def work(cache: Cache, *, hole: bool = False) -> Floats:
    """Logits [rows, vocabulary] of all that an engine's cache goes through: chunks, shared prefixes, holes, decodes.

    hole: a run of 16 cells is lost on the way, which a comparison must see.
    """
    cache.feed((0, 150))
    cache.share(0, 1, 100)
    cache.share(0, 2, 64)
    cache.feed((0, 1), (1, 30), (2, 50))
    cache.feed((3, 80))
    cache.trim(3, 40)
    cache.trim(1, 110)
    if hole:
        cache.lose(0, 130, 146)
    cache.feed((0, 1), (1, 1), (2, 1), (3, 1), (4, 90))  # a prefill chunk that fills the holes, beside decodes
    for _ in range(3):
        cache.feed((0, 1), (1, 1), (2, 1), (3, 1), (4, 1))
    return np.array(cache.logits)


def error(logits: Floats, exact: Floats) -> Error:
    rows = np.sqrt(((logits - exact) ** 2).mean(axis=1)) / np.sqrt((exact**2).mean())
    return Error(float(np.sqrt((rows**2).mean())), float(rows.max()))


def compute(model: object, kv_type: int, flash: int, *, hole: bool = False) -> Floats:
    """Raises ValueError where llama.cpp refuses the combination."""
    cache = Cache(model, kv_type, flash)
    try:
        return work(cache, hole=hole)
    finally:
        cache.close()


def compare(model: object, registered: bool) -> Iterator[Outcome]:
    """A model's outcomes, one a cache type. registered: else only stock attention is there."""
    exact = compute(model, native.GGML_TYPE_F32, native.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    hole = error(compute(model, native.GGML_TYPE_F32, native.LLAMA_FLASH_ATTN_TYPE_DISABLED, hole=True), exact)

    def measure(kv_type: int, *, enabled: bool) -> Error:
        if registered:
            paged.enable(enabled)
        return error(compute(model, kv_type, native.LLAMA_FLASH_ATTN_TYPE_ENABLED), exact)

    for name, kv_type in KV_TYPES.items():
        try:
            stock = measure(kv_type, enabled=False)
        except ValueError:
            yield Outcome(name, "refused")
            continue
        if not registered:
            yield Outcome(name, "stock", stock, stock, hole)
            continue
        before = paged.counters()
        best = measure(kv_type, enabled=True)
        claimed, fell = (paged.counters()[key] - before[key] for key in ("claimed", "fell_through"))
        others = [measure(kv_type, enabled=True) for kernels in KERNELS if paged.use(kernels)]
        paged.use("")
        worst = Error(*map(max, zip(best, *others, strict=True)))
        yield Outcome(name, _served(claimed, fell), stock, worst, hole)


def _served(claimed: int, fell_through: int) -> str:
    if claimed and fell_through:
        return "mixed"
    return "paged" if claimed else "stock"


def main(folder: Path) -> None:
    native.llama_log_set(_silence, ctypes.c_void_p(0))
    native.llama_backend_init()
    said = paged.register()
    print(json.dumps({"attention": said}), flush=True)
    registered = said.startswith(paged.PAGED)
    for number, (name, case) in enumerate(CASES.items()):
        path = gguf_models.ARCHITECTURES[case.architecture](folder / f"{number}.gguf", case.shape)
        model = native.llama_model_load_from_file(str(path).encode(), native.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp does not load {name}")
        for outcome in compare(model, registered):
            print(json.dumps({"case": name, "outcome": outcome}), flush=True)
        native.llama_model_free(model)
        path.unlink()


@native.llama_log_callback  # type: ignore[untyped-decorator]
def _silence(level: int, text: bytes, _: object) -> None:
    pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
