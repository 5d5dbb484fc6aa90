"""A box under random load for a long time: `python -m tests.soak --seconds N [--quick]`.

A real daemon with two models. Clients chat with random lengths and cancel now and then, some with prompts that cannot
fit; meanwhile models are unloaded and loaded, and workers killed with -9. Every request must end in a Finish or in an
error that says why. At checkpoints all clients pause, both models must come back and answer, and nothing may be left
over: no page in use, no worker without a model, no growth of the daemon's memory or descriptors. Last line:
`N passed, N failed`; each request and each check counts once.
"""

import argparse
import collections
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import psutil

from appliance.client import Client
from appliance.errors import ApplianceError, Busy, PromptTooLong, WorkerDied
from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.gen.engine.v1 import engine_pb2_grpc as pb_grpc
from appliance.types import Finish, Message, ModelKind, ModelState, Sampling, Speaker
from tests import gguf_models
from tests.daemon import Daemon, eventually, running

CONTEXT, SEQUENCES, QUEUE = 2048, 3, 2
OPTIONS = (
    f"--model-context-tokens={CONTEXT}",
    f"--model-sequences={SEQUENCES}",
    f"--model-queue={QUEUE}",
    "--inference-threads=1",
    "--log-level=warning",
)
REQUEST_SECONDS = 180.0  # a request that takes longer is lost
SETTLE_SECONDS = 90.0  # the supervisor's longest backoff, and some
EVENT_SECONDS = 3.0  # between kills and swaps, in the mean
GROWTH_BYTES, GROWTH_DESCRIPTORS = 16 << 20, 4  # from the middle third of the checkpoints to the last


class Tally:
    """What passed and what failed; a failure is printed as it comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.failed = 0

    def add(self, what: str, problem: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            if problem:
                self.failed += 1
                print(f"FAILED {what}: {problem}", flush=True)

    @property
    def passed(self) -> int:
        return self.counts.total() - self.failed


class Gate:
    """Lets many threads work, or waits until all of them pause."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open, self._working = True, 0
        self.ended = False

    def rounds(self) -> Iterator[None]:
        """One for each piece of work that may begin, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open or self.ended)
                if self.ended:
                    return
                self._working += 1
            try:
                yield
            finally:
                with self._changed:
                    self._working -= 1
                    self._changed.notify_all()

    @contextlib.contextmanager
    def closed(self, *, for_good: bool = False) -> Iterator[None]:
        """Nobody works in the with block."""
        with self._changed:
            self._open, self.ended = False, for_good
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._working == 0)
        yield
        with self._changed:
            self._open = True
            self._changed.notify_all()


def chat(box: Daemon, models: Sequence[str], gate: Gate, tally: Tally, seed: int) -> None:
    """One client, until the gate's end."""
    rng = random.Random(seed)
    with box.client() as client:
        for _ in gate.rounds():
            try:
                tally.add(one_request(client, rng, rng.choice(models)))
            except Exception as error:
                tally.add("request", f"{type(error).__name__}: {error}")


def one_request(client: Client, rng: random.Random, model: str) -> str:
    """How it ended, where that is as it should be; else raises."""
    fits = rng.random() > 0.05
    sampling = Sampling(temperature=rng.choice([0.0, 1.0]), max_tokens=rng.randint(1, 96), seed=rng.randrange(1 << 32))
    cancel_after = rng.randint(0, 8) if rng.random() < 0.25 else -1
    stream = client.chat([prompt(rng, fits)], model=model, sampling=sampling, timeout_seconds=REQUEST_SECONDS)
    last: object = None
    try:
        with stream:
            if cancel_after == 0:
                time.sleep(rng.uniform(0, 0.1))  # gone before the first token, perhaps in mid-prefill
                return "cancelled"
            for count, piece in enumerate(stream, start=1):
                last = piece
                if count == cancel_after and not isinstance(piece, Finish):
                    return "cancelled"
    except PromptTooLong:
        if not fits:
            return "too long, and told so"
        raise
    except (Busy, WorkerDied) as error:
        time.sleep(rng.uniform(0, min(getattr(error, "retry_after_seconds", 0.1), 1.0)))
        return f"told {error.reason}"
    if not isinstance(last, Finish):
        raise AssertionError("the stream ended without a Finish and without an error")
    if not fits:
        raise AssertionError("a prompt that cannot fit was answered")
    return "answered"


def prompt(rng: random.Random, fits: bool) -> Message:
    """Few words mostly; half of them begin with what others begin with too."""
    count = int(2 ** rng.uniform(1, 9)) if fits else CONTEXT * 2
    shared = " ".join(gguf_models.word(at) for at in range(90)) + " " if rng.random() < 0.5 else ""
    return Message(Speaker.USER, shared + " ".join(gguf_models.word(rng.randrange(90)) for _ in range(count)))


def disturb(box: Daemon, models: Sequence[str], gate: Gate, tally: Tally, seed: int) -> None:
    """Kills and swaps, until the gate's end."""
    rng = random.Random(seed)
    with box.client() as client:
        for _ in gate.rounds():
            time.sleep(min(rng.expovariate(1 / EVENT_SECONDS), 10.0))
            model = rng.choice(models)
            try:
                if rng.random() < 0.4 and (alive := workers(box)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        rng.choice(alive).send_signal(signal.SIGKILL)
                    tally.add("kill -9")
                elif rng.random() < 0.5:
                    client.unload_model(model)
                    tally.add("unload")
                else:
                    client.load_model(model)
                    tally.add("load")
            except (Busy, WorkerDied) as error:
                tally.add(f"swap told {error.reason}")
            except ApplianceError as error:
                tally.add("swap", f"{error.reason}: {error}")


def workers(box: Daemon) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(box.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "appliance.infer.worker" in child.cmdline():
                found.append(child)
    return found


class Checkpoints:
    """What must hold whenever nobody asks for anything."""

    def __init__(self, box: Daemon, models: Sequence[str], tally: Tally) -> None:
        self._box, self._models, self._tally = box, models, tally
        self._rss: list[int] = []
        self._descriptors: list[int] = []

    def run(self) -> None:
        with self._box.client() as client:
            for model in self._models:
                self._expect(f"{model} comes back", lambda model=model: serves(client, model))  # type: ignore[misc]
        count = len(self._models)
        self._expect("no worker without a model", lambda: len(workers(self._box)) == count)
        for worker in workers(self._box):
            self._expect("no page in use", lambda worker=worker: is_idle(worker))  # type: ignore[misc]
        daemon = psutil.Process(self._box.process.pid)
        self._rss.append(daemon.memory_info().rss)
        self._descriptors.append(daemon.num_fds())
        print(f"{self._rss[-1] >> 20:>9} MiB{self._descriptors[-1]:>8} fds  {dict(self._tally.counts)}", flush=True)

    def finish(self) -> None:
        """The trends, after the last checkpoint."""
        memory, descriptors = growth(self._rss), growth(self._descriptors)
        self._tally.add("memory", f"the daemon grew by {memory / 2**20:.1f} MiB" if memory > GROWTH_BYTES else "")
        self._tally.add("descriptors", f"{descriptors:g} more are open" if descriptors > GROWTH_DESCRIPTORS else "")

    def _expect(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            eventually(condition, SETTLE_SECONDS)
        except TimeoutError:
            self._tally.add(what, "not within the time")
        else:
            self._tally.add(what)


def serves(client: Client, model: str) -> bool:
    with contextlib.suppress(Busy, WorkerDied):
        client.load_model(model)
        if client.model(model).state is ModelState.READY:
            hello = [Message(Speaker.USER, "hello")]
            return isinstance(list(client.chat(hello, model=model, sampling=Sampling(max_tokens=2)))[-1], Finish)
    return False


def is_idle(worker: psutil.Process) -> bool:
    state = engine_state(worker)
    return (state.running, state.waiting, state.preempted, state.pages_used) == (0, 0, 0, 0)


def engine_state(worker: psutil.Process) -> pb.WatchResponse:
    """By the worker's own account, now."""
    (path,) = {item.laddr for item in worker.net_connections("unix") if str(item.laddr).endswith(".sock")}
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call = pb_grpc.EngineServiceStub(channel).Watch(pb.WatchRequest(), timeout=10)
        state: pb.WatchResponse = next(call)
        call.cancel()
    return state


def growth(samples: Sequence[int]) -> float:
    """From the median of the middle third to that of the last; the first third is warming up."""
    third = len(samples) // 3
    return statistics.median(samples[-third:]) - statistics.median(samples[third:-third]) if third else 0.0


def soak(box: Daemon, models: Sequence[str], seconds: float, clients: int, seed: int, tally: Tally) -> None:
    gate, checkpoints = Gate(), Checkpoints(box, models, tally)
    checkpoints.run()
    threads = [threading.Thread(target=chat, args=(box, models, gate, tally, seed + at)) for at in range(clients)]
    threads.append(threading.Thread(target=disturb, args=(box, models, gate, tally, seed - 1)))
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, max(5.0, seconds / 15)))
        with gate.closed():
            checkpoints.run()
    with gate.closed(for_good=True):
        checkpoints.finish()
    for thread in threads:
        thread.join()


def imported(box: Daemon, folder: Path) -> list[str]:
    """Two small models, in the box's store."""
    with box.client() as client:
        for architecture in ("llama", "qwen2"):
            path = gguf_models.ARCHITECTURES[architecture](folder / f"{architecture}.gguf")
            job = list(client.watch_job(client.import_model(str(path)).id))[-1]
            if job.error_message:
                raise SystemExit(job.error_message)
        return [model.name for model in client.models() if model.kind is ModelKind.CHAT]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--quick", action="store_true", help="20 seconds: shows that it runs")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch) / "data", *OPTIONS) as box:
        models = imported(box, Path(scratch))
        soak(box, models, 20 if given.quick else given.seconds, given.clients, given.seed, tally)
        left = workers(box)
        code = box.stop()
        tally.add("a clean end", f"exit code {code}" if code else "")
        orphans = [process.pid for process in left if process.is_running() and os.path.exists(f"/proc/{process.pid}")]
        tally.add("no worker outlives the daemon", f"{len(orphans)} do" if orphans else "")
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
