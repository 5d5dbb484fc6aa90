"""One stream with speculation beside the same without: `python -m tests.bench.speculative [--rounds N] [--threads N]`.

A prompt of 2k tokens, made-up sentences; the answer is held to sentences of the prompt by a grammar, as no trained chat
model is at hand that would quote by itself. Plain: a token a step, drawn under the grammar. With speculation: what the
grammar forces is appended at once (jump-forward), what was said before is guessed at (prompt lookup), or both. The same
engine, model, seed and request, in turns within each round; tokens a second are of the answer alone, after the prompt,
and per processor second too, which other work on the machine moves less.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import structlog

from appliance.infer import engine, llama, paged
from appliance.infer.answer import Answer
from appliance.types import Constraint, ConstraintKind, Finish, Generation, Origin, Sampling, Segment, Text
from tests import gguf_models
from tests.bench import report, serving

PROMPT_TOKENS, SENTENCE_TOKENS, OUT = 2048, (8, 24), 256
CONTEXT = 4096
PLAIN, BOTH = "plain", "jump-forward + lookup"
LEGS = {PLAIN: (False, 0), "jump-forward": (True, 0), "prompt lookup": (False, 1), BOTH: (True, 1)}


@dataclass(frozen=True, slots=True)
class Run:
    tokens_per_s: float
    tokens_per_cpu_s: float
    steps: int
    drafted: int
    accepted: int
    text: str


def sentences() -> list[str]:
    """Of words that are one token each, all the prompt together."""
    random = np.random.default_rng(2)
    made: list[str] = []
    left = PROMPT_TOKENS
    while left > 0:
        count = int(random.integers(*SENTENCE_TOKENS))
        made.append(" ".join(gguf_models.word(int(index)) for index in random.integers(90, 90 + 90 * 89, count)) + ".")
        left -= count + 1
    return made


def request(lines: list[str], seed: int) -> Generation:
    """Draws as a sharp model would, from a model that is noise: the constraint makes it quote."""
    choices = " | ".join(f'" {line}"' for line in lines)
    return Generation(
        (Segment(Origin.USER, " ".join(lines)),),
        Sampling(temperature=0.8, seed=seed, max_tokens=OUT),
        constraint=Constraint(ConstraintKind.GBNF, f"root ::= sentence+\nsentence ::= {choices}"),
    )


def post(made: list[tuple[engine.Deliver, engine.Piece]]) -> None:
    for deliver, piece in made:
        deliver(piece)


@contextmanager
def opened(model: llama.Model, threads: int, speculate_below: int) -> Iterator[engine.Engine]:
    made = engine.Engine(
        model,
        cells=CONTEXT,
        sequences=1,
        batch_tokens=512,
        queue=4,
        threads=threads,
        post=post,
        attention=paged.PAGED if paged.registered() else paged.STOCK,
        speculate_below_streams=speculate_below,
    )
    try:
        yield made
    finally:
        made.close()


def measure(model: llama.Model, threads: int, leg: str, generation: Generation) -> Run:
    jumps, speculate_below = LEGS[leg]
    pieces: list[engine.Piece] = []
    cpu: list[float] = []

    def deliver(piece: engine.Piece) -> None:
        pieces.append(piece)
        cpu.append(time.process_time())

    with (
        opened(model, threads, speculate_below) as run,
        mock.patch.object(engine, "Answer", partial(Answer, jumps=jumps)),
    ):
        run.submit(generation, deliver)
        run.run_until_idle()
        stats = run.stats
    finish = next(piece for piece in pieces if isinstance(piece, Finish))
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    return Run(
        tokens_per_s=(finish.usage.output_tokens - 1) / finish.timings.decode_seconds,
        tokens_per_cpu_s=(finish.usage.output_tokens - 1) / (cpu[-1] - cpu[0]),
        steps=stats.steps_total,
        drafted=stats.drafted_tokens_total,
        accepted=stats.accepted_tokens_total,
        text=text,
    )


def bench(path: Path, rounds: int, threads: int) -> dict[str, list[Run]]:
    llama.init()
    print(f"Attention: {paged.register()}; {threads} threads", flush=True)
    model, lines = llama.Model(str(path)), sentences()
    runs: dict[str, list[Run]] = {leg: [] for leg in LEGS}
    measure(model, threads, BOTH, request(lines, 99))  # warms up pages of the file and the grammar's tokenizer
    print("round  leg                    tokens/s  tokens/cpu s   steps  drafted  accepted", flush=True)
    for number in range(rounds):
        generation = request(lines, number)
        for leg, taken in runs.items():
            run = measure(model, threads, leg, generation)
            taken.append(run)
            known = all(sentence + "." in lines for sentence in run.text.strip().split(". ")[:-1])
            assert known, "the answer is made of the prompt's sentences"
            drafts = f"{run.steps:>8}{run.drafted:>9}{run.accepted:>10}"
            print(
                f"{number + 1:>5}  {leg:<22}{run.tokens_per_s:>9.1f}{run.tokens_per_cpu_s:>14.1f}{drafts}",
                flush=True,
            )
    model.close()
    return runs


def figures(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Ratios within a round; the median over rounds."""

    def ratio(leg: str, of: Callable[[Run], float]) -> float:
        pairs = zip(runs[leg], runs[PLAIN], strict=True)
        return round(statistics.median(of(run) / of(plain) for run, plain in pairs), 3)

    def wall(run: Run) -> float:
        return run.tokens_per_s

    same = [run.text == plain.text for run, plain in zip(runs["prompt lookup"], runs[PLAIN], strict=True)]
    return {
        "tokens_per_s_vs_plain": ratio(BOTH, wall),
        "tokens_per_cpu_s_vs_plain": ratio(BOTH, lambda run: run.tokens_per_cpu_s),
        "jump_forward_vs_plain": ratio("jump-forward", wall),
        "prompt_lookup_vs_plain": ratio("prompt lookup", wall),
        "same_text_share": round(sum(same) / len(same), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3, help="requests, each with and without speculation")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    start = time.perf_counter()
    runs = bench(serving.model(), arguments.rounds, arguments.threads)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    report.finish("speculative", figures(runs), ("llama-cpp-python", "llguidance"), python=platform.python_version())


if __name__ == "__main__":
    main()
