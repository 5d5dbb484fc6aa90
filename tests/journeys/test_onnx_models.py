"""Imported embedders and rerankers answer by their names, each in a process that a box outlives."""

import signal
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import openai
import psutil
import pytest

from appliance.client import Client
from appliance.errors import InvalidArgument, NotFound, WorkerDied
from appliance.types import AppScope, JobState, ModelKind, ModelState
from tests.daemon import Daemon, eventually, running
from tests.onnx_models import write_embedder, write_reranker

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("box")
    with running(folder / "data") as started:
        with started.client() as client:
            take_in(client, write_embedder(folder / "words"), ModelKind.EMBEDDING)
            take_in(client, write_reranker(folder / "judge"), ModelKind.RERANKER)
        yield started


@pytest.fixture
def client(box: Daemon) -> Iterator[Client]:
    with box.client() as opened:
        yield opened


def take_in(client: Client, folder: Path, kind: ModelKind) -> None:
    job = client.import_model(str(folder), "", kind)
    assert [seen.state for seen in client.watch_job(job.id)][-1] is JobState.SUCCEEDED


def processes(box: Daemon) -> list[psutil.Process]:
    return [child for child in psutil.Process(box.process.pid).children() if "onnx_worker" in " ".join(child.cmdline())]


def test_an_embedder_and_a_reranker_answer_by_their_names(client: Client) -> None:
    vectors = client.embed(["badge", "garden", "badge"], "words")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert client.rerank("badge", ["garden", "badge expires"], "judge").tolist() == [-1.0, 3.0]
    states = {model.name: (model.kind, model.state) for model in client.models()}
    assert states["words"] == (ModelKind.EMBEDDING, ModelState.READY)
    assert states["judge"] == (ModelKind.RERANKER, ModelState.READY)


def test_what_is_no_such_model_is_refused_by_its_field(client: Client) -> None:
    with pytest.raises(NotFound, match="no embedding model"):
        client.embed(["x"], "judge")
    with pytest.raises(NotFound, match="no reranker model"):
        client.rerank("x", ["x"], "words")
    with pytest.raises(InvalidArgument, match="model"):
        client.rerank("x", ["x"], "")
    with pytest.raises(InvalidArgument, match="documents: takes 1 to 256"):
        client.rerank("x", ["x"] * 257, "judge")
    with pytest.raises(InvalidArgument, match="query: must not be empty"):
        client.rerank(" ", ["x"], "judge")


def test_openais_client_embeds_by_an_imported_model_that_is_listed(box: Daemon, client: Client) -> None:
    _, token = client.create_app_key("crm", [AppScope.INFERENCE])
    trust = ssl.create_default_context(cafile=str(box.data_dir / "clients" / "local" / "ca.pem"))
    address = (box.data_dir / "http-endpoint").read_text()
    with httpx2.Client(verify=trust, trust_env=False, timeout=60) as connection:
        app = openai.OpenAI(base_url=f"https://{address}/v1", api_key=token, http_client=connection, max_retries=0)
        names = {model.id for model in app.models.list()}
        assert "words" in names
        assert "judge" not in names  # it answers Rerank, which OpenAI's protocol has not
        found = app.embeddings.create(model="words", input=["badge"], encoding_format="float").data[0].embedding
    np.testing.assert_allclose(found, client.embed(["badge"], "words")[0], atol=1e-6)


def test_a_process_that_dies_is_started_anew_by_the_next_call(box: Daemon, client: Client) -> None:
    client.embed(["badge"], "words")
    before = {process.pid for process in processes(box)}
    for process in processes(box):
        process.send_signal(signal.SIGKILL)
    with suppress(WorkerDied):  # of the call that finds it dead, unless the box found it first
        client.embed(["badge"], "words")
    assert client.embed(["badge"], "words").shape[0] == 1
    assert not {process.pid for process in processes(box)} & before


def test_a_model_is_loaded_unloaded_and_deleted_like_any(box: Daemon, client: Client, tmp_path: Path) -> None:
    take_in(client, write_embedder(tmp_path / "other", "last_hidden_state"), ModelKind.EMBEDDING)
    assert client.load_model("other").state is ModelState.READY
    count = len(processes(box))
    assert client.unload_model("other").state is ModelState.STORED
    assert len(processes(box)) == count - 1
    client.embed(["badge"], "other")
    client.delete_model("other")
    eventually(lambda: len(processes(box)) == count - 1)
    with pytest.raises(NotFound):
        client.embed(["badge"], "other")
