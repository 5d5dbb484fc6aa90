"""More than a box can do, callers that leave or do not listen, caches without room: it serves on, and says what it
does not do."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from appliance.client import Client
from appliance.errors import QueueFull
from appliance.infer.protocol import LaunchSpec
from appliance.infer.supervisor import Supervisor
from appliance.types import ChatPiece, Finish, JobState, Message, ModelKind, Sampling, Speaker, Text
from tests import gguf_models
from tests.daemon import Daemon, eventually, running
from tests.infer.conftest import greedy
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
KV_BYTES_PER_TOKEN = 2 * gguf_models.TINY.layers * gguf_models.TINY.kv_heads * gguf_models.TINY.head * 2  # K and V, f16
FEW = Sampling(temperature=0.0, max_tokens=3)
MEMORY_BYTES = 100 << 20  # what a flood may take for a while, of daemon and worker together


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
        return told(refused)


def told(refused: QueueFull) -> str:
    return refused.reason if 0 < refused.retry_after_seconds <= 60 else "no time to come back"


@contextmanager
def bounded_memory(box: Daemon, worker: psutil.Process) -> Iterator[None]:
    """What is done inside leaves daemon and worker not much larger."""
    processes = (psutil.Process(box.process.pid), worker)
    before = sum(process.memory_info().rss for process in processes)
    yield
    assert sum(process.memory_info().rss for process in processes) - before < MEMORY_BYTES


async def test_each_of_ten_thousand_requests_to_a_worker_is_served_or_told_when_to_come_back(tmp_path: Path) -> None:
    model, socket_path = gguf_models.write_llama(tmp_path / "tiny.gguf"), str(tmp_path / "e.sock")
    spec = LaunchSpec(str(model), socket_path, CONTEXT, SEQUENCES, queue=QUEUE, threads=1, log_level="warning")
    supervisor = Supervisor("tiny", spec)
    request = greedy(gguf_models.word(1) * 20, max_tokens=200)

    async def outcome() -> str:
        try:
            *_, last = [piece async for piece in supervisor.generate(request)]
            return type(last).__name__
        except QueueFull as refused:
            return told(refused)

    await supervisor.start()
    try:
        ended = Counter(await asyncio.gather(*(outcome() for _ in range(10_000))))
        assert set(ended) == {"Finish", QueueFull.reason}
        assert ended["Finish"] >= SEQUENCES + QUEUE
        assert await outcome() == "Finish"
        left = await supervisor.describe()
        assert (left.running, left.waiting, left.kv_cells_used) == (0, 0, 0)
    finally:
        await supervisor.stop()


def test_of_a_flood_of_calls_the_box_refuses_what_it_must_with_a_time_to_come_back_and_goes_on(
    box: Daemon, client: Client, worker: psutil.Process
) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=200)
    with bounded_memory(box, worker):
        streams = [client.chat(words(number, 20), sampling=sampling, timeout_seconds=120) for number in range(2_000)]
        ended = Counter(outcome(stream) for stream in streams)
    assert set(ended) == {"Finish", QueueFull.reason}
    assert ended["Finish"] >= SEQUENCES + QUEUE
    assert outcome(client.chat(words(0, 20), sampling=FEW)) == "Finish"
    eventually(lambda: is_idle(worker))
    assert client.serving()


def test_streams_that_nobody_reads_hold_up_nobody_and_lose_nothing(
    box: Daemon, client: Client, worker: psutil.Process
) -> None:
    sampling, before = Sampling(temperature=1.0, seed=1, max_tokens=900), engine_state(worker).requests_total
    with bounded_memory(box, worker):
        unread = [client.chat(words(number, 20), sampling=sampling, top_logprobs=20) for number in range(SEQUENCES)]
        eventually(lambda: engine_state(worker).requests_total == before + SEQUENCES)
        assert outcome(client.chat(words(0, 20), sampling=FEW)) == "Finish"  # they have all sequences, and let one go
        eventually(lambda: is_idle(worker))
    *texts, finish = unread[0]
    assert isinstance(finish, Finish)
    assert finish.usage.output_tokens == 900
    assert sum(len(piece.choices) for piece in texts if isinstance(piece, Text)) == 900
    for stream in unread[1:]:
        stream.cancel()


def test_a_client_gone_in_mid_prefill_leaves_no_page_behind(client: Client, worker: psutil.Process) -> None:
    prompt, steps = words(7, CONTEXT - 100), engine_state(worker).steps_total
    stream = client.chat(prompt, sampling=FEW)
    eventually(lambda: engine_state(worker).pages_used > 0)
    stream.cancel()
    eventually(lambda: is_idle(worker))
    assert engine_state(worker).steps_total - steps < CONTEXT // BATCH - 4  # it was in the middle
    assert outcome(client.chat(prompt, sampling=FEW)) == "Finish"


def test_a_box_whose_cache_tiers_and_disk_are_full_serves_on(tmp_path: Path) -> None:
    data, tiers = tmp_path / "data", ("--kv-host-cache-mib=1", "--kv-disk-cache-mib=1", "--model-context-tokens=1024")
    disk = small_disk(data, mib=640)  # of which a cache leaves half a GiB to others
    with running(data, *tiers, "--inference-threads=1", launcher=disk) as box, box.client() as client:
        file = gguf_models.write_llama(tmp_path / "tiny.gguf")
        worker, page = load(box, file), 64 * KV_BYTES_PER_TOKEN
        pages = box.files / "cache" / "kv"

        def kept() -> int:
            return sum(path.stat().st_size for path in pages.rglob("*.page"))

        for number in range(30):
            assert outcome(client.chat(words(number, 300), sampling=FEW)) == "Finish"
        state = engine_state(worker)
        assert 0 < state.host_pages * page <= 1 << 20 < 30 * 4 * page
        assert 0 < kept() <= 1 << 20

        fill(box, leave_bytes=0)
        for number in range(30, 50):
            assert outcome(client.chat(words(number, 300), sampling=FEW)) == "Finish"
        eventually(lambda: is_idle(worker))
        assert kept() <= 1 << 20
        assert worker.is_running()
        eventually(lambda: "free" in engine_state(worker).disk_fault)  # what health tells of, once it lasts
