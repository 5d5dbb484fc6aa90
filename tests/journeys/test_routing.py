"""A new model goes live behind a name: canaried, taken back by itself, rolled back, promoted; idle, pinned models."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.client import Client
from appliance.errors import AdapterMismatch, ApplianceError, ModelInUse
from appliance.types import Finish, Job, JobState, Message, ModelKind, ModelState, Sampling, Speaker, Target, Text
from tests import gguf_models
from tests.daemon import Daemon, eventually, running
from tests.gguf_lora import write_lora

pytestmark = pytest.mark.long
HELLO = [Message(Speaker.USER, "Good morning, who are you?")]
SHORT = Sampling(temperature=0.0, max_tokens=3)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path / "data", "--model-context-tokens=1024", "--inference-threads=1") as started:
        yield started


@pytest.fixture
def client(box: Daemon) -> Iterator[Client]:
    with box.client() as opened:
        yield opened


def finished(client: Client, job: Job) -> Job:
    return list(client.watch_job(job.id))[-1]


def answer(client: Client, model: str) -> str:
    *texts, finish = client.chat(HELLO, model=model, sampling=SHORT)
    assert isinstance(finish, Finish)
    return "".join(piece.text for piece in texts if isinstance(piece, Text))


def damage(box: Daemon, sha256: str) -> None:
    blob = box.data_dir / "models" / "blobs" / sha256
    blob.chmod(0o600)
    with open(blob, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def test_a_canary_goes_live_fails_is_taken_back_and_the_old_state_can_be_had_again(
    box: Daemon, client: Client, tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    base = gguf_models.write_llama(stick / "stable.gguf")
    gguf_models.write_llama(stick / "zcanary.gguf", seed=1)
    job = finished(client, client.import_model(str(stick)))
    assert (job.state, job.note) == (JobState.SUCCEEDED, "2 imported, 0 refused")
    stable, canary = (file.model for file in client.imported_files(job.id))

    client.set_alias("assistant", [Target(stable)])
    client.set_alias("assistant", [Target(stable, 1), Target(canary, 1)])
    assert answer(client, "assistant") in {answer(client, stable), answer(client, canary)}
    with pytest.raises(ModelInUse, match="assistant"):
        client.delete_model(canary)

    client.unload_model(canary)
    damage(box, client.model(canary).sha256)
    for _ in range(400):
        if not client_weight(client, canary):
            break
        with suppress(ApplianceError):
            answer(client, "assistant")
    assert client_weight(client, canary) == 0
    eventually(lambda: "CANARY_DEMOTED" in {finding.code for finding in client.health().findings})
    assert all(answer(client, "assistant") == answer(client, stable) for _ in range(5))

    assert client.rollback_alias("assistant").targets == (Target(stable),)  # not what the rule has just taken back
    assert client.promote_alias("assistant", stable).targets == (Target(stable),)
    eventually(lambda: "CANARY_DEMOTED" not in {finding.code for finding in client.health().findings})

    write_lora(tmp_path / "style.gguf", base, name="style")
    wrong = finished(client, client.import_model(str(tmp_path / "style.gguf")))
    assert (wrong.state, wrong.error_reason) == (JobState.FAILED, AdapterMismatch.reason)  # it fits both
    assert finished(client, client.import_model(str(tmp_path / "style.gguf"), base=stable)).state is JobState.SUCCEEDED
    assert client.model("style").kind is ModelKind.ADAPTER
    assert answer(client, "style") != answer(client, stable)

    small = finished(client, client.quantize_model(stable, "Q8_0"))
    assert (small.state, small.note) == (JobState.SUCCEEDED, f"models/{stable}-q8_0")
    assert answer(client, f"{stable}-q8_0")


def client_weight(client: Client, canary: str) -> int:
    (alias,) = client.aliases()
    return next(target.weight for target in alias.targets if target.model == canary)


def test_an_idle_model_gives_its_memory_back_and_a_pinned_one_stays_also_after_a_restart(tmp_path: Path) -> None:
    options = ("--model-context-tokens=1024", "--inference-threads=1", "--model-idle-seconds=1")
    with running(tmp_path / "data", *options) as box, box.client() as client:
        for seed in (1, 2):
            path = gguf_models.write_llama(tmp_path / f"m{seed}.gguf", seed=seed)
            assert finished(client, client.import_model(str(path))).state is JobState.SUCCEEDED
        one, two = (model.name for model in client.models() if model.kind is ModelKind.CHAT)
        assert client.pin_model(one).pinned
        for name in (one, two):
            assert client.load_model(name).state is ModelState.READY
        engines = client.watch_engines()
        assert set(next(engines)) <= {one, two}  # the present state at once
        stream = client.chat(HELLO, model=two, sampling=Sampling(max_tokens=900))
        assert isinstance(list(stream)[-1], Finish)  # longer than the idle time, and not cut off
        eventually(lambda: client.model(two).state is ModelState.STORED)
        eventually(lambda: set(next(engines)) == {one})
        assert client.model(one).state is ModelState.READY
        assert answer(client, two)
    with running(tmp_path / "data", *options) as box, box.client() as client:
        assert client.model(one).pinned
        assert not client.pin_model(one, False).pinned
