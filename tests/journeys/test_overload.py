"""More than a box can do, callers that leave or do not listen, caches without room: it serves on, and says what it
does not do."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from appliance.client import Client
from appliance.errors import QueueFull
from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.types import ChatPiece, EngineStats, Finish, JobState, Message, ModelKind, Sampling, Speaker, Text
from tests import gguf_models
from tests.daemon import Daemon, eventually, running
from tests.journeys.test_full_disk import fill, small_disk
from tests.soak import engine_state, is_idle, workers

pytestmark = pytest.mark.long
CONTEXT, BATCH, SEQUENCES, QUEUE = 8192, 32, 4, 8
OPTIONS = (
    f"--model-context-tokens={CONTEXT}",
    f"--model-batch-tokens={BATCH}",
    f"--model-sequences={SEQUENCES}",
    f"--model-queue={QUEUE}",
    "--inference-threads=1",
    "--log-level=warning",
)
FEW = Sampling(temperature=0.0, max_tokens=3)
MEMORY_BYTES = 200 << 20  # what ten thousand calls at once may take for a while, of daemon and worker together


def words(start: int, count: int) -> list[Message]:
    """A prompt of so many tokens, and some for its turn; another for each start."""
    return [Message(Speaker.USER, " ".join(gguf_models.word((start + at * at) % 90) for at in range(count)))]


def load(box: Daemon, file: Path) -> psutil.Process:
    """Import a model and start its worker, the box's only one."""
    with box.client() as client:
        assert [job.state for job in client.watch_job(client.import_model(str(file)).id)][-1] is JobState.SUCCEEDED
        client.load_model(next(model.name for model in client.models() if model.kind is ModelKind.CHAT))
        eventually(lambda: len(workers(box)) == 1)  # that of the self-test has gone
    (worker,) = workers(box)
    return worker


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("box")
    with running(folder / "data", *OPTIONS) as started:
        load(started, gguf_models.write_llama(folder / "tiny.gguf"))
        yield started


@pytest.fixture
def worker(box: Daemon) -> psutil.Process:
    (worker,) = workers(box)
    return worker


@pytest.fixture
def client(box: Daemon) -> Iterator[Client]:
    with box.client() as opened:
        yield opened


def outcome(stream: Iterator[ChatPiece]) -> str:
    """How a call ended: as it should, or as QUEUE_FULL with a time to come back."""
    try:
        return type(list(stream)[-1]).__name__
    except QueueFull as refused:
        assert 0 < refused.retry_after_seconds <= 60
        return refused.reason


def test_of_ten_thousand_requests_at_once_each_is_served_or_told_when_to_come_back(
    box: Daemon, client: Client, worker: psutil.Process
) -> None:
    processes = (psutil.Process(box.process.pid), worker)
    before = sum(process.memory_info().rss for process in processes)
    sampling = Sampling(temperature=0.0, max_tokens=200)
    streams = [client.chat(words(number, 20), sampling=sampling, timeout_seconds=120) for number in range(10_000)]
    ended = Counter(outcome(stream) for stream in streams)
    assert set(ended) == {"Finish", QueueFull.reason}
    assert ended["Finish"] >= SEQUENCES + QUEUE
    assert outcome(client.chat(words(0, 20), sampling=FEW)) == "Finish"
    eventually(lambda: is_idle(worker))
    assert sum(process.memory_info().rss for process in processes) - before < MEMORY_BYTES
    assert client.serving()
