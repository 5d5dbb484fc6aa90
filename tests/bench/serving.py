"""The serving workload beside llama-server: `python -m tests.bench.serving [--rounds N] [--threads N …]`.

16 requests, 8 at once: a 512-token prefix that all share, 512 to 1024 tokens of their own, 64 tokens out, f16 KV. Our
side is the real worker over its socket, also with q8_0 KV, and with an attention that costs nothing and says nothing
(the floor); both again with ggml's own matrix products, so that attention is seen apart. The peer is llama-server
linked to the same libraries, once as it comes (a unified cache) and once with its best flags (streams). Rounds are
interleaved, every run starts a fresh process, and processor time is the server process's own, from /proc, so that the
clients' cost counts for neither.
"""

import argparse
import asyncio
import ctypes
import http.client
import json
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import llama_cpp as native
import numpy as np
import structlog

from appliance.infer import llama
from appliance.infer.protocol import LaunchSpec
from appliance.infer.supervisor import Supervisor
from appliance.types import Finish, Generation, Origin, Sampling, Segment, Text
from tests import gguf_models
from tests.bench import llama_server, report

SHAPE = gguf_models.Shape(
    layers=24, embedding=1024, heads=16, kv_heads=4, feed_forward=2816, vocabulary=32_000, context=131_072
)
REQUESTS, AT_ONCE, SHARED, OWN, OUT = 16, 8, 512, (512, 1024), 64
CONTEXT = AT_ONCE * 2048
SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=1, max_tokens=OUT)
SERVERS = {
    "llama-server unified": ["--kv-unified"],
    "llama-server streams": ["--no-kv-unified", "--flash-attn", "on"],
}
OURS, Q8, FLOOR = "appliance", "appliance, q8_0 KV", "its floor"
GGML, GGML_FLOOR = "with ggml's products", "their floor"
WORKERS: dict[str, dict[str, object]] = {
    OURS: {},
    Q8: {"kv_type": "q8_0"},
    FLOOR: {"attention": "none"},
    GGML: {"products": False},
    GGML_FLOOR: {"products": False, "attention": "none"},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One engine's figures for one pass over the workload."""

    wall_seconds: float
    cpu_seconds: float
    first_token_seconds: tuple[float, ...]
    input_tokens: int
    output_tokens: int

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.output_tokens / self.cpu_seconds

    @property
    def ttft_p50(self) -> float:
        return statistics.median(self.first_token_seconds)


# a request: words, and the tokens that they are -> (seconds to the first token, input tokens, output tokens)
Ask = Callable[[str, Sequence[int]], Awaitable[tuple[float, int, int]]]


def model() -> Path:
    """The bench's GGUF in the user's cache: random weights in Q4_0, made at the first call (a minute)."""
    place = report.cache_dir() / "bench"
    path = place / f"llama-{SHAPE.layers}x{SHAPE.embedding}-q4_0.gguf"
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            plain, made = gguf_models.write_llama(Path(scratch) / "f16.gguf", SHAPE), Path(scratch) / "q4_0.gguf"
            llama.init()
            params = native.llama_model_quantize_default_params()
            params.nthread, params.ftype = os.cpu_count() or 1, native.LLAMA_FTYPE_MOSTLY_Q4_0
            if native.llama_model_quantize(str(plain).encode(), str(made).encode(), ctypes.byref(params)):
                raise RuntimeError("llama.cpp could not quantize the bench's model")
            made.rename(path)
    return path


def prompts() -> list[str]:
    """Words that are one token each: the shared ones, then each request's own."""
    random = np.random.default_rng(1)

    def text(count: int) -> str:
        return " ".join(gguf_models.word(int(index)) for index in random.integers(90, 90 + 90 * 89, count))

    shared = text(SHARED)
    return [f"{shared} {text(int(random.integers(OWN[0], OWN[1] + 1)))}" for _ in range(REQUESTS)]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(pid: int, ask: Ask, work: Sequence[tuple[str, Sequence[int]]]) -> Run:
    """The workload, closed loop, so many at once. A short request of other words warms the engine up first."""
    await ask(" ".join(gguf_models.word(90 + index) for index in range(40)), list(range(400, 440)))
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(text: str, ids: Sequence[int]) -> tuple[float, int, int]:
        async with slots:
            return await ask(text, ids)

    cpu, wall = cpu_seconds(pid), time.perf_counter()
    answers = await asyncio.gather(*(one(text, ids) for text, ids in work))
    wall, cpu = time.perf_counter() - wall, cpu_seconds(pid) - cpu
    first, inputs, outputs = zip(*answers, strict=True)
    return Run(wall, cpu, first, sum(inputs), sum(outputs))


async def run_ours(
    path: Path, texts: Sequence[str], threads: int, options: dict[str, object]
) -> tuple[Run, list[list[int]]]:
    """The worker's figures, and the workload's token ids for the peer."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = LaunchSpec(
            str(path), f"{scratch}/engine.sock", CONTEXT, sequences=AT_ONCE, threads=threads, log_level="warning"
        )
        spec = replace(spec, **options)  # type: ignore[arg-type]
        supervisor = Supervisor("bench", spec)

        async def ask(text: str, ids: Sequence[int]) -> tuple[float, int, int]:
            start, first = time.perf_counter(), 0.0
            async for piece in supervisor.generate(Generation((Segment(Origin.USER, text),), SAMPLING)):
                if isinstance(piece, Text) and not first:
                    first = time.perf_counter() - start
                if isinstance(piece, Finish):
                    return first, piece.usage.input_tokens, piece.usage.output_tokens
            raise RuntimeError("the stream had no end")

        try:
            await supervisor.start()
            tokens = [list(await supervisor.tokenize([Segment(Origin.USER, text)])) for text in texts]
            assert supervisor.pid
            return await measure(supervisor.pid, ask, list(zip(texts, tokens, strict=True))), tokens
        finally:
            await supervisor.stop()


async def run_server(path: Path, work: Sequence[tuple[str, Sequence[int]]], threads: int, flags: list[str]) -> Run:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "--model": path,
        "--port": port,
        "--host": "127.0.0.1",
        "--parallel": AT_ONCE,
        "--ctx-size": CONTEXT,
        "--threads": threads,
        "--threads-batch": threads,
    }
    command = [str(llama_server.binary()), *(str(part) for pair in options.items() for part in pair), "--offline"]
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(*command, *flags, stdout=quiet, stderr=quiet)

    async def ask(text: str, ids: Sequence[int]) -> tuple[float, int, int]:
        return await asyncio.to_thread(_complete, port, ids)

    try:
        await _until_healthy(server, port)
        return await measure(server.pid, ask, work)
    finally:
        server.kill()
        await server.wait()


async def _until_healthy(server: asyncio.subprocess.Process, port: int) -> None:
    for _ in range(1200):
        if server.returncode is not None:
            raise RuntimeError(f"llama-server exited with code {server.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("llama-server did not get ready in two minutes")


def _complete(port: int, ids: Sequence[int]) -> tuple[float, int, int]:
    """One streamed completion of token ids."""
    body = {
        "prompt": list(ids),
        "n_predict": OUT,
        "ignore_eos": True,
        "stream": True,
        "cache_prompt": True,
        "temperature": SAMPLING.temperature,
        "top_k": SAMPLING.top_k,
        "top_p": SAMPLING.top_p,
        "min_p": SAMPLING.min_p,
        "seed": SAMPLING.seed,
        "samplers": ["top_k", "top_p", "min_p", "temperature"],
    }
    start, first = time.perf_counter(), 0.0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if event.get("content") and not first:
            first = time.perf_counter() - start
        if event.get("stop"):
            return first, int(event["tokens_evaluated"]), int(event["tokens_predicted"])
    raise RuntimeError("the stream had no end")


async def bench(rounds: int, threads: int) -> dict[str, list[Run]]:
    path, texts = model(), prompts()
    runs: dict[str, list[Run]] = {name: [] for name in (*WORKERS, *SERVERS)}
    work: list[tuple[str, list[int]]] = []

    def note(name: str, run: Run) -> None:
        assert (run.input_tokens, run.output_tokens) == (sum(len(ids) for _, ids in work), REQUESTS * OUT), name
        runs[name].append(run)
        line = f"{run.tokens_per_cpu_s:>14.1f}{run.output_tokens / run.wall_seconds:>16.1f}{run.ttft_p50:>12.2f}"
        print(f"{len(runs[name]):>5} {threads:>7}  {name:<22}{line}", flush=True)

    for _ in range(rounds):
        for name, options in WORKERS.items():
            run, tokens = await run_ours(path, texts, threads, options)
            work = list(zip(texts, tokens, strict=True))
            note(name, run)
        for name, flags in SERVERS.items():
            note(name, await run_server(path, work, threads, flags))
    return runs


def figures(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Ratios within a round; the median over rounds."""
    ratios: dict[str, list[float]] = {}

    def note(figure: str, ratio: float) -> None:
        ratios.setdefault(figure, []).append(ratio)

    for index in range(len(runs[OURS])):
        rate = {name: found[index].tokens_per_cpu_s for name, found in runs.items()}
        best = max(SERVERS, key=rate.__getitem__)
        note("tokens_per_cpu_s_vs_best", rate[OURS] / rate[best])
        note("tokens_per_cpu_s_vs_unified", rate[OURS] / rate["llama-server unified"])
        note("q8_0_tokens_per_cpu_s_vs_best", rate[Q8] / rate[best])
        note("share_of_floor", rate[OURS] / rate[FLOOR])
        note("share_of_floor_ggml_products", rate[GGML] / rate[GGML_FLOOR])
        note("tokens_per_cpu_s_vs_best_ggml_products", rate[GGML] / rate[best])
        note("ttft_p50_vs_best", runs[OURS][index].ttft_p50 / runs[best][index].ttft_p50)
    return {figure: round(statistics.median(found), 3) for figure, found in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2, help="passes over the workload, all engines in each")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="the figures are the first's")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    print(f"Building what is needed: {llama_server.binary()}, {model()}", flush=True)
    print("round threads  engine                tokens/cpu s   tokens/s wall    ttft p50 s", flush=True)
    runs = [asyncio.run(bench(arguments.rounds, threads)) for threads in arguments.threads]
    report.finish("serving", figures(runs[0]), ("llama-cpp-python",), python=platform.python_version())


if __name__ == "__main__":
    main()
