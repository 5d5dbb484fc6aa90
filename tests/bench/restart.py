"""Warm prefixes: `python -m tests.bench.restart [--rounds N] [--quick]`.

A prompt of 4,096 tokens and 32 of its own, asked cold; then, on the same worker, the second turn of that conversation;
then the worker is ended as a daemon ends it (SIGTERM), and a new one with the same encrypted disk tier is asked a
prompt that begins with the same 4,096 tokens. Figures are times to the first token: warm over cold, of prompts equally
long, in the same round; the median over rounds.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.bench import peer
from tests.bench.peer import Options, Prompt, Reply, Worker


@dataclass(frozen=True, slots=True)
class Size:
    prefix: int = 4096
    own: int = 32
    out: int = 64

    @property
    def context(self) -> int:
        """Room for two such conversations."""
        return 2 * (-(-(self.prefix + 4 * self.own + 2 * self.out) // 256) * 256)


QUICK = Size(prefix=512, out=16)


@dataclass(frozen=True, slots=True)
class Run:
    """Replies to: the prompt, cold; a second turn, cold and warm; the prompt's prefix again, after a restart."""

    cold: Reply
    turn_cold: Reply
    turn: Reply
    disk: Reply


async def measure(path: Path, size: Size, options: Options, seed: int) -> Run:
    random = np.random.default_rng(seed)
    prefix = peer.words(random, size.prefix)

    def prompt(before: str, count: int) -> Prompt:
        return peer.prompts(path, [f"{before} {peer.words(random, count)}"])[0]

    async def asked(engine: Worker, question: Prompt) -> Reply:
        return await engine.ask(question, size.out)

    with tempfile.TemporaryDirectory() as disk:
        cold_start = partial(peer.worker, path, context=size.context, sequences=2, threads=options.threads)
        with_disk = partial(cold_start, disk_cache_directory=disk, disk_cache_bytes=8 << 30, host_cache_bytes=1 << 30)
        async with with_disk() as engine:
            await peer.warm_up(engine, path)
            cold = await asked(engine, first := prompt(prefix, size.own))
            second = prompt(f"{first.text}{cold.text}", size.own)
            turn = await asked(engine, second)
            await engine.end()
        async with cold_start() as engine:
            await peer.warm_up(engine, path)
            turn_cold = await asked(engine, second)
        async with with_disk() as engine:
            await peer.warm_up(engine, path)
            disk_reply = await asked(engine, prompt(prefix, size.own))
    assert cold.cached_tokens == turn_cold.cached_tokens == 0
    return Run(cold, turn_cold, turn, disk_reply)


async def bench(options: Options) -> list[Run]:
    size, path = QUICK if options.quick else Size(), peer.model(options.quick)
    runs = list[Run]()
    for number in range(options.rounds):
        runs.append(run := await measure(path, size, options, seed=number))
        named = {"cold": run.cold, "second turn, cold": run.turn_cold, "second turn": run.turn, "from disk": run.disk}
        for name, reply in named.items():
            print(
                f"{number + 1:>5}  {name:<20}{reply.input_tokens:>13}{reply.cached_tokens:>14}"
                f"{reply.first_token_seconds:>10.3f}",
                flush=True,
            )
    return runs


def main() -> None:
    options = peer.options(__doc__)
    print("round  prompt               input tokens  cached tokens    ttft s", flush=True)
    runs = asyncio.run(bench(options))
    first = {
        "ttft_disk_vs_cold": ([run.disk for run in runs], [run.cold for run in runs]),
        "ttft_turn_vs_cold": ([run.turn for run in runs], [run.turn_cold for run in runs]),
    }
    ratios = {
        key: peer.median_ratio(*([reply.first_token_seconds for reply in replies] for replies in pair))
        for key, pair in first.items()
    }
    peer.finish("restart", ratios)


if __name__ == "__main__":
    main()
