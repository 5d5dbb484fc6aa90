"""Adapters side by side: `python -m tests.bench.adapters [--rounds N] [--quick]`.

4 LoRA adapters of one base model, 2 sequences each, all at once. llama.cpp applies an adapter to a whole context, so
their steps take turns: none may fall behind. An adapter's rate is its tokens over the time until its last answer has
ended. The figure is the slowest adapter's over the fastest's; the median over rounds.
"""

import asyncio
import hashlib
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.types import Adapter
from tests.bench import peer
from tests.bench.peer import Options, Prompt, Worker
from tests.gguf_lora import write_lora


@dataclass(frozen=True, slots=True)
class Size:
    adapters: int = 4
    sequences: int = 2  # of each
    prompt: int = 256
    out: int = 128

    @property
    def context(self) -> int:
        return self.adapters * self.sequences * (-(-(self.prompt + self.out) // 256) * 256)


QUICK = Size(prompt=64, out=32)


def write_adapters(folder: Path, base: Path, count: int) -> list[Adapter]:
    made = [write_lora(folder / f"{number}.gguf", base, seed=number, std=0.02) for number in range(count)]
    return [Adapter(path.stem, str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in made]


async def measure(engine: Worker, adapters: list[Adapter], work: list[Prompt], size: Size) -> list[float]:
    """Each adapter's tokens a second."""
    replies = await asyncio.gather(
        *(engine.ask(prompt, size.out, adapter=adapters[number % size.adapters]) for number, prompt in enumerate(work))
    )
    groups = [replies[number :: size.adapters] for number in range(size.adapters)]
    return [sum(reply.output_tokens for reply in group) / max(reply.seconds for reply in group) for group in groups]


async def bench(options: Options) -> list[list[float]]:
    size, path = QUICK if options.quick else Size(), peer.model(options.quick)
    random, streams = np.random.default_rng(5), size.adapters * size.sequences
    work = peer.prompts(path, [peer.words(random, size.prompt) for _ in range(streams)])
    rates = list[list[float]]()
    with tempfile.TemporaryDirectory() as scratch:
        adapters = write_adapters(Path(scratch), path, size.adapters)
        for number in range(options.rounds):
            async with peer.worker(path, context=size.context, sequences=streams, threads=options.threads) as engine:
                await peer.warm_up(engine, path)
                rates.append(await measure(engine, adapters, work, size))
            print(f"{number + 1:>5}" + "".join(f"{rate:>14.1f}" for rate in rates[-1]), flush=True)
    return rates


def main() -> None:
    options = peer.options(__doc__)
    print("tokens a second of each adapter, by round", flush=True)
    rates = asyncio.run(bench(options))
    figure = statistics.median(min(each) / max(each) for each in rates)
    peer.finish("adapters", {"slowest_vs_fastest": round(figure, 3)})


if __name__ == "__main__":
    main()
