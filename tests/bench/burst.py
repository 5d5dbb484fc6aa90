"""A burst of cold requests beside llama-server: `python -m tests.bench.burst [--rounds N] [--quick]`.

8 requests at once in an engine that has seen none of them: 2,048 tokens that all share, 128 of their own, 16 out. How
many prompt tokens were computed, by each engine's own account, and how long the first tokens took. Peer: llama-server
with its best flags for this load (streams). Figures are ratios within a round, the median over rounds.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench import peer
from tests.bench.peer import Engine, Options, Prompt


@dataclass(frozen=True, slots=True)
class Size:
    requests: int = 8
    shared: int = 2048
    own: int = 128
    out: int = 16

    @property
    def context(self) -> int:
        """In whole pages, and equally large slots for llama-server."""
        return self.requests * (-(-(self.shared + self.own + self.out + 8) // 256) * 256)


QUICK = Size(requests=4, shared=256, own=64, out=4)


@dataclass(frozen=True, slots=True)
class Run:
    prefilled_tokens: int
    ttft_p50: float
    ttft_p95: float


def prompts(path: Path, size: Size) -> list[Prompt]:
    random = np.random.default_rng(2)
    shared = peer.words(random, size.shared)
    return peer.prompts(path, [f"{shared} {peer.words(random, size.own)}" for _ in range(size.requests)])


async def measure(engine: Engine, path: Path, work: Sequence[Prompt], size: Size) -> Run:
    await peer.warm_up(engine, path)
    replies = await asyncio.gather(*(engine.ask(prompt, size.out) for prompt in work))
    assert [reply.input_tokens for reply in replies] == [len(prompt.tokens) for prompt in work]
    first = [reply.first_token_seconds for reply in replies]
    prefilled = sum(reply.prefilled_tokens for reply in replies)
    return Run(prefilled, float(np.percentile(first, 50)), float(np.percentile(first, 95)))


async def bench(options: Options) -> tuple[list[Run], list[Run]]:
    size, path = QUICK if options.quick else Size(), peer.model(options.quick)
    work = prompts(path, size)
    ours, theirs = list[Run](), list[Run]()
    for number in range(options.rounds):
        async with peer.worker(path, context=size.context, sequences=size.requests, threads=options.threads) as engine:
            ours.append(await measure(engine, path, work, size))
        show(number, "appliance worker", ours[-1])
        async with peer.server(
            path, context=size.context, parallel=size.requests, threads=options.threads, flags=peer.STREAMS
        ) as engine_of_peer:
            theirs.append(await measure(engine_of_peer, path, work, size))
        show(number, "llama-server streams", theirs[-1])
    return ours, theirs


def show(number: int, name: str, run: Run) -> None:
    print(
        f"{number + 1:>5}  {name:<22}{run.prefilled_tokens:>16}{run.ttft_p50:>12.2f}{run.ttft_p95:>12.2f}", flush=True
    )


def main() -> None:
    options = peer.options(__doc__)
    print("round  engine                prefilled tokens  ttft p50 s  ttft p95 s", flush=True)
    ours, theirs = asyncio.run(bench(options))
    prefilled = peer.median_ratio([run.prefilled_tokens for run in ours], [run.prefilled_tokens for run in theirs])
    first = peer.median_ratio([run.ttft_p95 for run in ours], [run.ttft_p95 for run in theirs])
    peer.finish("burst", {"prefilled_vs_best": prefilled, "ttft_p95_vs_best": first})


if __name__ == "__main__":
    main()
