"""Decoding over long contexts beside llama.cpp: `python -m tests.bench.decode [--rounds N] [--threads N]`.

8 sequences of 4k tokens and 16 of 2k, one token each a step, f16 KV: over pages, over llama.cpp's streams and over its
unified cache, all in the same engine library; and over an attention that costs nothing, so that the difference is what
attention takes. A context is computed once and copied by its state, so that no two sequences share a cell. Every
measurement is a process of its own; processor time decides, as wall time hears of the neighbours.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time

import llama_cpp as native
import numpy as np
import structlog

from appliance.infer import llama, paged
from tests.bench import report, serving

SHAPES = {"8x4k": (8, 4096), "16x2k": (16, 2048)}
MODES = ("pages", "pages q8_0", "streams", "unified", "nothing")
STEPS, BATCH = 12, 512
READ_BYTES = 1 << 30


def step_seconds(mode: str, sequences: int, context_tokens: int, threads: int) -> float:
    """The fastest step's processor time."""
    llama.init()
    if mode in ("pages", "pages q8_0", "nothing"):
        assert paged.register().startswith(paged.PAGED)
        paged.leave_out(mode == "nothing")
    model = native.llama_model_load_from_file(str(serving.model()).encode(), native.llama_model_default_params())
    each = (context_tokens + STEPS + 1 + 255) // 256 * 256
    params = native.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = each * sequences, sequences, BATCH, BATCH
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified, params.flash_attn_type = mode != "streams", native.LLAMA_FLASH_ATTN_TYPE_ENABLED
    if mode == "pages q8_0":
        params.type_k = params.type_v = native.GGML_TYPE_Q8_0
    context = native.llama_init_from_model(model, params)
    batch = native.llama_batch_init(BATCH, 0, 1)

    def compute(rows: list[tuple[int, int, int]]) -> None:
        """rows: (token, position, sequence)"""
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, 0
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[len(rows) - 1], batch.n_tokens = 1, len(rows)
        if native.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        native.llama_synchronize(context)

    for start in range(0, context_tokens, BATCH):
        compute([(300 + at * 7 % 20_000, at, 0) for at in range(start, start + BATCH)])
    size = native.llama_state_seq_get_size(context, 0)
    state = (ctypes.c_uint8 * size)()
    native.llama_state_seq_get_data(context, state, size, 0)
    for sequence in range(1, sequences):
        assert native.llama_state_seq_set_data(context, state, size, sequence) == size
    seconds = []
    for step in range(STEPS):
        began = time.process_time()
        compute([(400 + step * 31 + sequence, context_tokens + step, sequence) for sequence in range(sequences)])
        seconds.append(time.process_time() - began)
    return min(seconds[2:])


def read_seconds(threads: int) -> float:
    """Processor time of a plain read of READ_BYTES, the fastest of five."""
    data = np.ones(READ_BYTES // 8, np.int64)
    library = paged.library()
    assert library
    seconds = []
    for _ in range(5):
        began = time.process_time()
        library.paged_attention_read(data.ctypes.data, READ_BYTES, threads)
        seconds.append(time.process_time() - began)
    return min(seconds)


def kv_bytes(sequences: int, context_tokens: int) -> int:
    shape = serving.SHAPE
    return sequences * context_tokens * shape.layers * shape.kv_heads * shape.head * 2 * 2


def measured(*arguments: str) -> float:
    command = [sys.executable, "-m", "tests.bench.decode", "--measure", *arguments]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if arguments.measure:
        mode, *numbers = arguments.measure
        found = read_seconds(int(numbers[0])) if mode == "read" else step_seconds(mode, *map(int, numbers))
        print(json.dumps(found))
        return
    serving.model()
    threads = str(arguments.threads)
    figures: dict[str, list[float]] = {}
    print("round  shape  over          step, cpu ms   tokens/cpu s   KV GB/cpu s", flush=True)
    for number in range(arguments.rounds):
        read_rate = READ_BYTES / measured("read", threads)
        print(
            f"{number + 1:>5}         a plain read                                 {read_rate / 1e9:>8.1f}", flush=True
        )
        for shape, (sequences, tokens) in SHAPES.items():
            steps = {mode: measured(mode, str(sequences), str(tokens), threads) for mode in MODES}
            for mode, seconds in steps.items():
                attention = seconds - steps["nothing"]
                rate = kv_bytes(sequences, tokens) / attention / 1e9 if attention > 0 else float("nan")
                line = f"{seconds * 1e3:>11.1f}{sequences / seconds:>15.1f}{rate:>13.1f}"
                print(f"{number + 1:>5}  {shape:<6} {mode:<14}{line}", flush=True)
            share = kv_bytes(sequences, tokens) / (steps["pages"] - steps["nothing"]) / read_rate
            figures.setdefault(f"decode_{shape}_vs_streams", []).append(steps["streams"] / steps["pages"])
            figures.setdefault(f"decode_{shape}_vs_unified", []).append(steps["unified"] / steps["pages"])
            figures.setdefault(f"decode_{shape}_q8_0_vs_streams", []).append(steps["streams"] / steps["pages q8_0"])
            figures.setdefault("kv_bandwidth_share", []).append(share)
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    report.finish("decode", medians, ("llama-cpp-python",))


if __name__ == "__main__":
    main()
