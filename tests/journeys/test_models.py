"""A model dropped into the import folder serves; one that is no model says why; one that dies comes back."""

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from appliance.client import Client
from appliance.errors import Draining, ModelTooLarge, PromptTooLong, Unreachable, WorkerDied
from appliance.types import (
    AnswerMode,
    AskFinish,
    Citation,
    Finish,
    FinishReason,
    Message,
    ModelState,
    Passages,
    Sampling,
    Speaker,
    Text,
    Unsupported,
)
from tests import gguf_models
from tests.daemon import Daemon, eventually, running

pytestmark = pytest.mark.long
WRITERS = {
    "llama": gguf_models.write_llama,
    "qwen2": gguf_models.write_qwen2,
    "gemma2": gguf_models.write_gemma2,
}
HELLO = [Message(Speaker.USER, "Good morning, who are you?")]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("box")
    with running(folder / "data", "--model-context-tokens=1024", "--inference-threads=1") as started:
        yield started


@pytest.fixture
def client(box: Daemon) -> Iterator[Client]:
    with box.client() as opened:
        yield opened


def drop(box: Daemon, file: Path) -> None:
    """Put a file into the import folder as a careful writer does: whole at once, under its last name."""
    shutil.copy(file, box.data_dir / "import" / f".{file.name}")
    (box.data_dir / "import" / f".{file.name}").rename(box.data_dir / "import" / file.name)


def imported(box: Daemon, client: Client, file: Path, architecture: str) -> str:
    """Drop a model and wait until it is listed; its name."""
    before = {model.name for model in client.models()}
    drop(box, file)
    eventually(lambda: any(m.architecture == architecture and m.name not in before for m in client.models()))
    return next(m.name for m in client.models() if m.architecture == architecture and m.name not in before)


@pytest.mark.parametrize("architecture", WRITERS)
def test_a_dropped_gguf_serves_chat_and_generate_without_a_restart(
    box: Daemon, client: Client, tmp_path: Path, architecture: str
) -> None:
    file = WRITERS[architecture](tmp_path / f"{architecture}.gguf", seed=len(architecture))
    name = imported(box, client, file, architecture)
    sampling = Sampling(temperature=0.0, max_tokens=12)
    pieces = list(client.chat(HELLO, model=name, sampling=sampling))
    finish = pieces[-1]
    assert isinstance(finish, Finish)
    assert finish.usage.input_tokens > 5
    assert 0 < finish.usage.output_tokens <= 12
    assert client.model(name).state is ModelState.READY

    (tmp_path / "rules.txt").write_text("Badges expire after 90 days. The gate opens at six in the morning.")
    ingested = client.ingest(str(tmp_path / "rules.txt"), f"made-for-{architecture}")
    assert [job.done for job in client.watch_job(ingested.job)][-1] == 1
    asked = list(client.ask(f"made-for-{architecture}", "When do badges expire?", model=name, sampling=sampling))
    first, last = asked[0], asked[-1]
    assert isinstance(first, Passages)
    assert first.mode is AnswerMode.GENERATE
    assert "90 days" in first.passages[0].text
    assert isinstance(last, AskFinish)
    # random weights write nonsense: no sentence of it may pass as supported
    assert not any(isinstance(piece, Citation) for piece in asked)
    answer = "".join(piece.text for piece in asked if isinstance(piece, Text))
    assert any(isinstance(piece, Unsupported) for piece in asked) is bool(re.search(r"\w", answer))
    assert last.answered is False


def test_a_truncated_gguf_is_refused_with_the_fault_and_kept_aside(box: Daemon, client: Client, tmp_path: Path) -> None:
    whole = gguf_models.write_llama(tmp_path / "whole.gguf", seed=7).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    drop(box, tmp_path / "cut.gguf")
    eventually(lambda: any(model.state is ModelState.REFUSED for model in client.models()))
    refused = next(model for model in client.models() if model.state is ModelState.REFUSED)
    assert refused.detail
    assert (box.data_dir / "import" / "refused" / "cut.gguf").exists()
    eventually(lambda: "MODEL_REFUSED" in {finding.code for finding in client.health().findings})


def test_a_prompt_longer_than_the_context_says_both_numbers(box: Daemon, client: Client, tmp_path: Path) -> None:
    name = imported(box, client, gguf_models.write_llama(tmp_path / "long.gguf", seed=21), "llama")
    with pytest.raises(PromptTooLong, match="1024"):
        list(client.chat([Message(Speaker.USER, "badge " * 3000)], model=name))


def test_a_killed_worker_fails_its_calls_by_name_and_comes_back_while_others_go_on(
    box: Daemon, client: Client, tmp_path: Path
) -> None:
    one = imported(box, client, gguf_models.write_llama(tmp_path / "one.gguf", seed=31), "llama")
    two = imported(box, client, gguf_models.write_llama(tmp_path / "two.gguf", seed=32), "llama")
    client.load_model(two)
    before = set(psutil.Process(box.process.pid).children(recursive=True))
    client.load_model(one)
    (worker,) = set(psutil.Process(box.process.pid).children(recursive=True)) - before
    stream = client.chat(HELLO, model=one, sampling=Sampling(temperature=1.0, max_tokens=900))
    assert isinstance(next(stream), Text)
    threading.Timer(0.0, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerDied, match=one):
        list(stream)
    assert isinstance(list(client.chat(HELLO, model=two, sampling=Sampling(max_tokens=3)))[-1], Finish)
    eventually(lambda: client.model(one).state is ModelState.READY)
    last = list(client.chat(HELLO, model=one, sampling=Sampling(max_tokens=3)))[-1]
    assert isinstance(last, Finish)
    assert last.reason is FinishReason.LENGTH


def test_a_model_larger_than_memory_is_not_loaded_and_the_box_goes_on(tmp_path: Path) -> None:
    reserve = f"--memory-reserve-mib={psutil.virtual_memory().total >> 20}"
    with running(tmp_path / "data", reserve) as small, small.client() as client:
        name = imported(small, client, gguf_models.write_llama(tmp_path / "big.gguf"), "llama")
        with pytest.raises(ModelTooLarge, match=r"GiB free"):
            client.load_model(name)
        assert client.serving()


def test_sigterm_lets_a_running_answer_finish_and_refuses_new_calls(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--model-context-tokens=1024") as box, box.client() as client, box.client() as late:
        name = imported(box, client, gguf_models.write_llama(tmp_path / "drain.gguf"), "llama")
        stream = client.chat(HELLO, model=name, sampling=Sampling(max_tokens=800))
        assert isinstance(next(stream), Text)
        box.process.send_signal(signal.SIGTERM)
        eventually(lambda: "daemon.draining" in box.log())
        with pytest.raises((Draining, Unreachable)):
            late.status()
        last = list(stream)[-1]
        assert isinstance(last, Finish)
        assert last.usage.output_tokens == 800
        assert box.process.wait(timeout=60) == 0
