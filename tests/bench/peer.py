"""What benches against llama-server share: the real worker over its socket, and llama-server, asked in the same way.

Both take the same prompts and give a Reply with the time of every piece of text. Each is a fresh process for the length
of a with block, so that nothing is warm unless the bench makes it so.
"""

import argparse
import asyncio
import json
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import httpx
import numpy as np
import psutil
import structlog

from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.gen.engine.v1 import engine_pb2_grpc as pb_grpc
from appliance.infer import llama, protocol
from appliance.infer.protocol import LaunchSpec
from appliance.infer.supervisor import Backoff, Supervisor
from appliance.types import Adapter, EngineStats, Finish, Generation, Origin, Sampling, Segment
from tests import gguf_models
from tests.bench import llama_server, report, serving

STREAMS = ("--no-kv-unified", "--flash-attn", "on")
QUICK = gguf_models.Shape(vocabulary=32_000, context=131_072)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and the tokens that it is, so that both engines read the same."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request went. times: of each piece of text, in seconds since the request; seconds: to its end.
    cached_tokens: of the input."""

    text: str
    times: tuple[float, ...]
    seconds: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def first_token_seconds(self) -> float:
        return self.times[0]

    @property
    def prefilled_tokens(self) -> int:
        return self.input_tokens - self.cached_tokens


Heard = Callable[[], None]


def _unheard() -> None:
    pass


class Engine(Protocol):
    pid: int

    async def ask(self, prompt: Prompt, out: int, heard: Heard = _unheard) -> Reply:
        """A greedy answer of `out` tokens at most. heard: called at each piece. Cancelling it cancels the request."""


class Worker:
    """Our engine: a supervisor with its worker."""

    def __init__(self, supervisor: Supervisor) -> None:
        assert supervisor.pid
        self.pid, self._supervisor = supervisor.pid, supervisor

    async def ask(
        self,
        prompt: Prompt,
        out: int,
        heard: Heard = _unheard,
        *,
        adapter: Adapter | None = None,
        salt: bytes = b"",
    ) -> Reply:
        sampling = Sampling(temperature=0.0, max_tokens=out)
        segments = (Segment(Origin.USER, prompt.text),)
        start, times, text = time.perf_counter(), list[float](), ""
        async for piece in self._supervisor.generate(Generation(segments, sampling, prefix_salt=salt, adapter=adapter)):
            if isinstance(piece, Finish):
                usage = piece.usage
                return Reply(
                    text,
                    tuple(times),
                    time.perf_counter() - start,
                    usage.input_tokens,
                    usage.cached_input_tokens,
                    usage.output_tokens,
                )
            times.append(time.perf_counter() - start)
            text += piece.text
            heard()
        raise RuntimeError("the stream had no end")

    async def end(self) -> None:
        """SIGTERM, as a daemon that stops: what is warm goes to disk. Returns when the process is gone."""
        process = psutil.Process(self.pid)
        process.terminate()
        await asyncio.to_thread(process.wait)

    async def stats(self) -> EngineStats:
        """The worker's state at this moment, from the worker itself."""
        async with grpc.aio.insecure_channel(f"unix:{self._supervisor.spec.socket_path}") as channel:
            async for state in pb_grpc.EngineServiceStub(channel).Watch(pb.WatchRequest()):
                return protocol.stats_from_pb(state)
        raise RuntimeError("the worker told nothing of itself")


class Server:
    """llama-server."""

    def __init__(self, pid: int, client: httpx.AsyncClient) -> None:
        self.pid, self._client = pid, client

    async def ask(self, prompt: Prompt, out: int, heard: Heard = _unheard) -> Reply:
        body = {"prompt": list(prompt.tokens), "n_predict": out, "ignore_eos": True, "stream": True}
        body |= {"cache_prompt": True, "temperature": 0.0, "samplers": ["temperature"]}
        start, times, text = time.perf_counter(), list[float](), ""
        async with self._client.stream("POST", "/completion", json=body) as response:
            async for line in response.aiter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if event.get("content"):
                    times.append(time.perf_counter() - start)
                    text += event["content"]
                    heard()
                if event.get("stop"):
                    read = int(event["tokens_evaluated"])
                    cached = read - int(event["timings"]["prompt_n"])
                    return Reply(
                        text, tuple(times), time.perf_counter() - start, read, cached, int(event["tokens_predicted"])
                    )
        raise RuntimeError("the stream had no end")


@asynccontextmanager
async def worker(path: Path, *, context: int, **options: int | str) -> AsyncIterator[Worker]:
    """options: of the LaunchSpec. It is not restarted when it ends."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = LaunchSpec(
            model_path=str(path),
            socket_path=f"{scratch}/engine.sock",
            context_tokens=context,
            log_level="warning",
            model_sha256=path.name,
            disk_cache_key=bytes(32).hex(),
            **options,  # type: ignore[arg-type]
        )
        supervisor = Supervisor("bench", spec, backoff=Backoff(3600.0, 3600.0, most_failed_loads=1))
        try:
            await supervisor.start()
            yield Worker(supervisor)
        finally:
            await supervisor.stop()


@asynccontextmanager
async def server(
    path: Path, *, context: int, parallel: int, threads: int, flags: Sequence[str]
) -> AsyncIterator[Server]:
    """context: of all slots together. flags: beyond these."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sizes = {"--ctx-size": context, "--parallel": parallel, "--threads": threads, "--threads-batch": threads}
    numbers = [str(part) for pair in sizes.items() for part in pair]
    command = [
        str(llama_server.binary()),
        "--model",
        str(path),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--offline",
    ]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, *numbers, *flags, stdout=quiet, stderr=quiet)
    limits = httpx.Limits(max_keepalive_connections=0)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=None, limits=limits, trust_env=False
        ) as client:
            await _until_healthy(process, client)
            yield Server(process.pid, client)
    finally:
        process.kill()
        await process.wait()


async def _until_healthy(process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
    for _ in range(1200):
        if process.returncode is not None:
            raise RuntimeError(f"llama-server exited with code {process.returncode}")
        try:
            if (await client.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("llama-server did not get ready in two minutes")


def model(quick: bool) -> Path:
    """The serving bench's model, or a tiny one with the same vocabulary."""
    if not quick:
        return serving.model()
    path = report.cache_dir() / "bench" / "llama-quick.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".new")
        gguf_models.write_llama(made, QUICK).rename(path)
    return path


def words(random: np.random.Generator, count: int) -> str:
    """Words that are one token each in the benches' vocabulary."""
    return " ".join(gguf_models.word(int(index)) for index in random.integers(90, 90 + 90 * 89, count))


def prompts(path: Path, texts: Sequence[str]) -> list[Prompt]:
    llama.init()
    opened = llama.Model(str(path))
    try:
        encode = opened.vocabulary.encode
        return [Prompt(text, tuple(encode([Segment(Origin.USER, text)]))) for text in texts]
    finally:
        opened.close()


async def warm_up(engine: Engine, path: Path) -> None:
    """A short request of other words than any bench's: the first step reserves and touches memory."""
    (prompt,) = prompts(path, [" ".join(gguf_models.word(index) for index in range(40))])
    await engine.ask(prompt, 8)


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    threads: int
    quick: bool


def options(doc: str | None, rounds: int = 2) -> Options:
    """From the command line; the log is kept quiet."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="passes over the work, all engines in each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny model and little work: shows that it runs")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    return Options(given.rounds, given.threads, given.quick)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the ratios within each round."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4)


def finish(bench: str, figures: Mapping[str, float]) -> None:
    report.finish(bench, figures, ("llama-cpp-python",), python=platform.python_version())
