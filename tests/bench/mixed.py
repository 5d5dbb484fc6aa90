"""A long prompt beside running streams: `python -m tests.bench.mixed [--rounds N] [--quick]`.

4 tenants stream; then a prompt of 8,192 tokens comes. How long the tenants wait from one piece of text to the next
until its first token is there. Peer: llama-server `-b 2048`, with streams. The figure is the ratio of the 99th
percentiles within a round, the median over rounds.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.bench import peer
from tests.bench.peer import Engine, Options, Prompt


@dataclass(frozen=True, slots=True)
class Size:
    tenants: int = 4
    prompt: int = 64
    long: int = 8192
    out: int = 2048  # more than the tenants get to: they are cancelled
    warm: int = 8  # pieces that each tenant has heard when the long prompt comes

    @property
    def slot(self) -> int:
        return -(-(self.long + 64) // 256) * 256


QUICK = Size(tenants=2, long=2048, out=1024)


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds between pieces of text, p50 and p99, and until the long prompt's first token."""

    itl_p50: float
    itl_p99: float
    long_first_token: float


def prompts(path: Path, size: Size) -> list[Prompt]:
    """The tenants', and last the long one."""
    random = np.random.default_rng(3)
    return peer.prompts(path, [peer.words(random, count) for count in [size.prompt] * size.tenants + [size.long]])


async def measure(engine: Engine, path: Path, work: Sequence[Prompt], size: Size) -> Run:
    await peer.warm_up(engine, path)
    tenants = [_Tenant(engine, prompt, size) for prompt in work[:-1]]
    for tenant in tenants:
        await tenant.warm.wait()
    start = time.perf_counter()
    long = await engine.ask(work[-1], 1)
    end = start + long.first_token_seconds
    ended = [tenant.stream.done() for tenant in tenants]
    for tenant in tenants:
        tenant.stream.cancel()
    await asyncio.wait([tenant.stream for tenant in tenants])
    assert not any(ended), "a tenant's stream ended before the long prompt was read: it needs a larger Size.out"
    assert long.prefilled_tokens == size.long
    gaps = [gap for tenant in tenants for gap in tenant.gaps(start, end)]
    return Run(float(np.percentile(gaps, 50)), float(np.percentile(gaps, 99)), long.first_token_seconds)


class _Tenant:
    """A stream, and when its pieces came."""

    def __init__(self, engine: Engine, prompt: Prompt, size: Size) -> None:
        self.warm = asyncio.Event()
        self._times: list[float] = []
        self._warm_pieces = size.warm
        self.stream = asyncio.create_task(engine.ask(prompt, size.out, self._heard))

    def gaps(self, start: float, end: float) -> list[float]:
        """Between pieces, where they touch [start, end]."""
        return [later - sooner for sooner, later in pairwise(self._times) if later > start and sooner < end]

    def _heard(self) -> None:
        self._times.append(time.perf_counter())
        if len(self._times) == self._warm_pieces:
            self.warm.set()


async def bench(options: Options) -> tuple[list[Run], list[Run]]:
    size, path = QUICK if options.quick else Size(), peer.model(options.quick)
    work, parallel = prompts(path, size), size.tenants + 1
    ours, theirs = list[Run](), list[Run]()
    for number in range(options.rounds):
        cells = size.slot + size.tenants * (size.prompt + size.out + 64)
        async with peer.worker(path, context=cells, sequences=parallel, threads=options.threads) as engine:
            ours.append(await measure(engine, path, work, size))
        show(number, "appliance worker", ours[-1])
        flags = (*peer.STREAMS, "--batch-size", "2048")
        async with peer.server(
            path, context=parallel * size.slot, parallel=parallel, threads=options.threads, flags=flags
        ) as engine_of_peer:
            theirs.append(await measure(engine_of_peer, path, work, size))
        show(number, "llama-server -b 2048", theirs[-1])
    return ours, theirs


def show(number: int, name: str, run: Run) -> None:
    print(
        f"{number + 1:>5}  {name:<22}{run.itl_p50:>10.3f}{run.itl_p99:>11.3f}{run.long_first_token:>18.2f}", flush=True
    )


def main() -> None:
    options = peer.options(__doc__)
    print("round  engine                itl p50 s  itl p99 s  long one's ttft s", flush=True)
    ours, theirs = asyncio.run(bench(options))
    ratio = peer.median_ratio([run.itl_p99 for run in ours], [run.itl_p99 for run in theirs])
    peer.finish("mixed", {"itl_p99_vs_server": ratio})


if __name__ == "__main__":
    main()
