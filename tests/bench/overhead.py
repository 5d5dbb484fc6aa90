"""What a step costs outside llama_decode: `python -m tests.bench.overhead [--rounds N] [--quick]`.

8 streams decode at once on the real worker. scheduler_share: of the engine thread's steps, all but llama_decode, by the
engine's own clocks. rpc_share: processor time that a step's tokens take on their way through gRPC, at both ends (the
worker's event loop and gRPC's threads; all of this process), as a share of the step.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench import peer
from tests.bench.peer import Options, Prompt, Worker


@dataclass(frozen=True, slots=True)
class Size:
    streams: int = 8
    prompt: int = 256
    out: int = 128


QUICK = Size(out=32)


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds over all steps; tokens and steps in them."""

    step_seconds: float
    compute_seconds: float
    worker_rpc_seconds: float
    client_rpc_seconds: float
    steps: int
    tokens: int

    @property
    def scheduler_share(self) -> float:
        return 1 - self.compute_seconds / self.step_seconds

    @property
    def rpc_share(self) -> float:
        return (self.worker_rpc_seconds + self.client_rpc_seconds) / self.step_seconds


def rpc_cpu_seconds(pid: int) -> float:
    """Processor time of the worker's event loop, which is its main thread, and of gRPC's own threads; those that
    compute bear the process's name, as Linux threads do unless they are named."""
    process = Path(f"/proc/{pid}")
    own = (process / "comm").read_text()
    threads = [
        task for task in (process / "task").iterdir() if task.name == str(pid) or (task / "comm").read_text() != own
    ]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


async def measure(engine: Worker, path: Path, work: Sequence[Prompt], size: Size) -> Run:
    """All prompts are read in the steps before; the steps that count are decodes."""
    await peer.warm_up(engine, path)
    for prompt in work:
        await engine.ask(prompt, 1)
    before, worker, client = await engine.stats(), rpc_cpu_seconds(engine.pid), time.process_time()
    replies = await asyncio.gather(*(engine.ask(prompt, size.out) for prompt in work))
    worker, client = rpc_cpu_seconds(engine.pid) - worker, time.process_time() - client
    after = await engine.stats()
    return Run(
        after.step_seconds_total - before.step_seconds_total,
        after.compute_seconds_total - before.compute_seconds_total,
        worker,
        client,
        after.steps_total - before.steps_total,
        sum(reply.output_tokens for reply in replies),
    )


async def bench(options: Options) -> list[Run]:
    size, path = QUICK if options.quick else Size(), peer.model(options.quick)
    random = np.random.default_rng(4)
    work = peer.prompts(path, [peer.words(random, size.prompt) for _ in range(size.streams)])
    context, runs = size.streams * (size.prompt + size.out + 64), list[Run]()
    for number in range(options.rounds):
        async with peer.worker(path, context=context, sequences=size.streams, threads=options.threads) as engine:
            runs.append(await measure(engine, path, work, size))
        run = runs[-1]
        milliseconds = [
            1000 * seconds / run.steps
            for seconds in (run.step_seconds, run.compute_seconds, run.worker_rpc_seconds, run.client_rpc_seconds)
        ]
        columns = "".join(f"{value:>16.3f}" for value in milliseconds)
        print(f"{number + 1:>5}{run.steps:>7}{run.tokens:>8}{columns}", flush=True)
    return runs


def main() -> None:
    options = peer.options(__doc__)
    print("round  steps  tokens         step ms       decode ms   worker rpc ms   client rpc ms", flush=True)
    runs = asyncio.run(bench(options))
    shares = {
        "scheduler_share": round(statistics.median(run.scheduler_share for run in runs), 4),
        "rpc_share": round(statistics.median(run.rpc_share for run in runs), 4),
    }
    peer.finish("overhead", shares)


if __name__ == "__main__":
    main()
