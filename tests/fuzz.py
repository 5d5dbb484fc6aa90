"""Hostile GGUF files: sound headers, mutated, fed to all that reads a header, and those that pass to a real worker.

    make fuzz FUZZ=1000000     or  python -m tests.fuzz --mutations N [--loads N] [--seed S] [--only NUMBER]

Mutation NUMBER of a seed is always the same bytes. A reader must give a Header or raise Refused, whatever it is fed: no
other exception, no more than MOST_SECONDS of processor time, no more than MOST_BYTES of address space. A worker may
abort or crash on what passes; its supervisor must say so and go on.
"""

import argparse
import asyncio
import os
import random
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from appliance.errors import ApplianceError, ModelRestarting, Refused
from appliance.infer.protocol import LaunchSpec
from appliance.infer.supervisor import Backoff, Supervisor
from appliance.models import adapters, architectures, gguf, scaffold
from appliance.types import Finish, Generation, Origin, Sampling, Segment
from tests import gguf_models
from tests.gguf_lora import write_lora

MOST_SECONDS = 10.0
MOST_BYTES = 512 << 20
LOAD_SECONDS = 120.0
BATCH = 5000
SMALL = replace(gguf_models.TINY, layers=1, vocabulary=400)
# where a reader that trusts a length, count, type or offset would go wrong
EDGES = (0, 1, 2, 3, 5, 8, 9, 31, 32, 63, 64, 127, 255, 256, 0x7FFF, 0xFFFF, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 62)


@dataclass(frozen=True, slots=True)
class Field:
    """A number of a header that says how to read what follows."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A sound header, its numbers, and the length of the whole file."""

    name: str
    header: bytes
    fields: tuple[Field, ...]
    size_bytes: int


def samples(folder: Path) -> list[Sample]:
    """Headers of every architecture of the tests' models, and of an adapter, made in `folder`."""
    writers = sorted(gguf_models.ARCHITECTURES.items())
    paths = [write(folder / f"{name}.gguf", SMALL) for name, write in writers]
    paths.append(write_lora(folder / "lora.gguf", folder / "llama.gguf"))
    return [_sample(path) for path in paths]


def mutate(seed: int, number: int, known: Sequence[Sample]) -> tuple[Sample, bytes, int]:
    """Mutation `number` of a seed: of which sample, the header's new bytes, and the length of the file."""
    drawn = random.Random(f"{seed}/{number}")
    sample = drawn.choice(known)
    content = bytearray(sample.header)
    size = sample.size_bytes
    for _ in range(drawn.choice((1, 1, 1, 2, 4))):
        size = drawn.choice(MUTATIONS)(drawn, content, size, sample, known)
    return sample, bytes(content), max(size, 0)


Mutation = Callable[[random.Random, bytearray, int, Sample, Sequence[Sample]], int]


def flip(drawn: random.Random, content: bytearray, size: int, sample: Sample, known: Sequence[Sample]) -> int:
    for _ in range(drawn.choice((1, 1, 2, 8))):
        if content:
            content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    return size


def renumber(drawn: random.Random, content: bytearray, size: int, sample: Sample, known: Sequence[Sample]) -> int:
    """A length, count, type or offset becomes another, near or absurd."""
    field = drawn.choice(sample.fields)
    old = content[field.start : field.start + field.size]
    if len(old) == field.size:
        value = int.from_bytes(old, "little")
        new = drawn.choice(
            (drawn.choice(EDGES), value + drawn.choice((-1, 1, 8)), value * 2, -1, drawn.getrandbits(64))
        )
        content[field.start : field.start + field.size] = (new % (1 << 8 * field.size)).to_bytes(field.size, "little")
    return size


def truncate(drawn: random.Random, content: bytearray, size: int, sample: Sample, known: Sequence[Sample]) -> int:
    """The file ends within its header, or within its tensors."""
    if drawn.random() < 0.5:
        del content[drawn.randrange(len(content) + 1) :]
        return len(content)
    return drawn.randrange(len(content), max(size, len(content) + 1))


def splice(drawn: random.Random, content: bytearray, size: int, sample: Sample, known: Sequence[Sample]) -> int:
    """A piece of another header replaces or joins one here."""
    other = drawn.choice(known).header
    start = drawn.randrange(len(other))
    piece = other[start : start + drawn.choice((4, 8, 16, 64, 1024))]
    at = drawn.randrange(len(content) + 1)
    content[at : at + drawn.choice((0, len(piece)))] = piece
    return size + drawn.choice((0, len(piece)))


def cut(drawn: random.Random, content: bytearray, size: int, sample: Sample, known: Sequence[Sample]) -> int:
    """Some bytes are left out or there twice."""
    at, count = drawn.randrange(len(content) + 1), drawn.choice((1, 4, 8, 24, 200))
    if drawn.random() < 0.5:
        content[at:at] = content[at : at + count]
    else:
        del content[at : at + count]
    return size


def value(drawn: random.Random, content: bytearray, size: int, sample: Sample, known: Sequence[Sample]) -> int:
    """Some byte of a value, a text or a name: what often passes as sound."""
    if content:
        content[drawn.randrange(len(content))] = drawn.choice((0, 1, 2, 4, 9, 0x2E, 0x41, 0x7F, 0xFF))
    return size


MUTATIONS: tuple[Mutation, ...] = (flip, renumber, renumber, truncate, splice, cut, value)


class Feeder:
    """Reads mutated headers from one file in memory."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("fuzz")
        self._base = architectures_of_base()

    def verdict(self, content: bytes, size_bytes: int) -> gguf.Header | None:
        """The header where all readers take it, None where they refuse it. Raises what else they raise."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, content, 0)
        os.ftruncate(self._fd, size_bytes)
        try:
            with open(self._fd, "rb", closefd=False) as file:
                file.seek(0)
                header = gguf.parse(file)
            if header.type == adapters.ADAPTER:
                adapters.check(header, self._base)
            else:
                architectures.describe(header)
                scaffold.detect(header)
        except Refused as error:
            str(error).encode()  # and the message can be sent
            return None
        return header


def architectures_of_base() -> gguf.Header:
    """The header of the model that the adapter of the samples belongs to."""
    with tempfile.TemporaryDirectory() as folder:
        return gguf.read(gguf_models.write_llama(Path(folder) / "base.gguf", SMALL))


def feed(seed: int, numbers: Sequence[int]) -> tuple[int, int, list[str]]:
    """How many mutations passed as sound or were refused, how many passed as sound, and what else went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        known = samples(Path(folder))
    feeder, sound, faults = Feeder(), 0, []
    for number in numbers:
        sample, content, size = mutate(seed, number, known)
        try:
            with _limit(MOST_SECONDS):
                sound += feeder.verdict(content, size) is not None
        except Exception as error:
            faults.append(f"mutation {number} of seed {seed} ({sample.name}): {type(error).__name__}: {error}")
    return len(numbers) - len(faults), sound, faults


def passing(seed: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """Mutated models that our readers take for sound though they say something else; weights are random bytes."""
    models = [sample for sample in samples(folder) if sample.name != "lora"]
    before = {sample.name: gguf.read(folder / f"{sample.name}.gguf") for sample in models}
    feeder = Feeder()
    for number in range(1 << 62):
        sample, content, size = mutate(seed, number, models)
        header, sound = feeder.verdict(content, size), before[sample.name]
        # other token texts alone change nothing that native code stands on
        if header and (header.metadata, header.tensors) != (sound.metadata, sound.tensors):
            path = folder / f"{number}.gguf"
            weights = random.Random(number).randbytes(max(0, size - len(content)))
            path.write_bytes((content + weights)[:size])
            yield number, path
            path.unlink()


async def load(path: Path, socket: Path) -> str:
    """How a real worker took a file: 'served', or the reason of its error. Raises what is no ApplianceError."""
    spec = LaunchSpec(str(path), str(socket), context_tokens=256, sequences=1, batch_tokens=64, threads=1)
    supervisor = Supervisor(path.stem, replace(spec, log_level="error"), backoff=Backoff(0.01, most_failed_loads=1))
    prompt = Generation((Segment(Origin.USER, "hello"),), Sampling(temperature=0.0, max_tokens=2))
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            await supervisor.start()
            pieces = [piece async for piece in supervisor.generate(prompt)]
        assert isinstance(pieces[-1], Finish)
    except ModelRestarting:
        raise AssertionError("the caller was not told how it died") from None
    except ApplianceError as error:
        return error.reason
    finally:
        await supervisor.stop()
    assert supervisor.pid is None
    return "served"


def load_many(seed: int, count: int) -> tuple[dict[str, int], list[str]]:
    """Load so many mutated models: how often each outcome, and what went wrong on the daemon's side."""
    outcomes: dict[str, int] = {}
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        models = passing(seed, Path(folder))
        for _ in range(count):
            number, path = next(models)
            try:
                outcome = asyncio.run(load(path, Path(folder) / "e" / "s"))
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            except Exception as error:
                faults.append(f"load of mutation {number} of seed {seed}: {type(error).__name__}: {error}")
        models.close()  # type: ignore[attr-defined]
    return outcomes, faults


def main() -> None:
    """Exit 1 where anything failed; the last line counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--loads", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="Feed one mutation and show its end.")
    options = parser.parse_args()
    if options.only is not None:
        print(feed(options.seed, [options.only]))
        return
    passed, sound, faults = _feed_all(options.seed, options.mutations)
    print(f"{options.mutations} headers: {sound} sound, {passed - sound} refused, {len(faults)} otherwise")
    outcomes, more = load_many(options.seed, options.loads)
    print(f"{options.loads} loads by a worker: {outcomes}")
    for fault in faults + more:
        print(fault)
    print(f"{passed + sum(outcomes.values())} passed, {len(faults) + len(more)} failed")
    sys.exit(bool(faults or more))


def _feed_all(seed: int, count: int) -> tuple[int, int, list[str]]:
    batches = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    passed, sound, faults = 0, 0, list[str]()
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_bound_memory) as pool:
        for done, taken, wrong in pool.map(feed, [seed] * len(batches), batches):
            passed, sound, faults = passed + done, sound + taken, faults + wrong
            print(f"\r{passed} of {count}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return passed, sound, faults


def _bound_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Processor time of a block, after which TimeoutError is raised in it."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s of processor time")

    old = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)


def _sample(path: Path) -> Sample:
    with open(path, "rb") as file:
        content = file.read()
    fields: list[Field] = []
    end = _walk(content, fields)
    return Sample(path.stem, content[:end], tuple(fields), len(content))


def _walk(content: bytes, fields: list[Field]) -> int:
    """Note where each number of a sound header lies that says how to read on; where the header ends."""
    at = 4

    def number(size: int) -> int:
        nonlocal at
        fields.append(Field(at, size))
        at += size
        return int.from_bytes(content[at - size : at], "little")

    def text() -> None:
        nonlocal at
        length = number(8)
        at += length

    def skip(kind: int) -> None:
        nonlocal at
        if kind == gguf.STRING:
            text()
        elif kind == gguf.ARRAY:
            inner, count = number(4), number(8)
            for _ in range(count):
                skip(inner)
        else:
            fields.append(Field(at, struct.calcsize(gguf.FORMATS[kind])))
            at += struct.calcsize(gguf.FORMATS[kind])

    number(4)
    tensors, pairs = number(8), number(8)
    for _ in range(pairs):
        text()
        skip(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return at


if __name__ == "__main__":
    main()
