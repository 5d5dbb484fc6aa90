"""What a real box tells of its engines right after an answer, and what it keeps of warm prompts on its disk."""

import shutil
import ssl
import time
from pathlib import Path

import httpx2
import pytest

from appliance.client import Client
from appliance.types import AppScope, Finish, Message, ModelKind, Sampling, Speaker
from tests import gguf_models
from tests.daemon import Daemon, eventually, running

pytestmark = pytest.mark.long
PROMPT = [Message(Speaker.USER, " ".join(gguf_models.word(index % 90) for index in range(450)))]
OPTIONS = ("--model-context-tokens=1024", "--inference-threads=1")


def imported(box: Daemon, client: Client, tmp_path: Path) -> str:
    gguf_models.write_llama(tmp_path / "tiny.gguf", seed=1)
    shutil.copy(tmp_path / "tiny.gguf", box.data_dir / "import" / ".tiny.gguf")
    (box.data_dir / "import" / ".tiny.gguf").rename(box.data_dir / "import" / "tiny.gguf")
    eventually(lambda: any(model.kind is ModelKind.CHAT for model in client.models()))
    return next(model.name for model in client.models() if model.kind is ModelKind.CHAT)


def answer(client: Client, model: str) -> Finish:
    *_, finish = client.chat(PROMPT, model=model, sampling=Sampling(temperature=0.0, max_tokens=8))
    assert isinstance(finish, Finish)
    return finish


def scrape(box: Daemon, token: str, model: str) -> dict[str, float]:
    """The model's counters by name."""
    trust = ssl.create_default_context(cafile=str(box.data_dir / "clients" / "local" / "ca.pem"))
    url = f"https://{(box.data_dir / 'http-endpoint').read_text()}/metrics"
    text = httpx2.get(url, verify=trust, trust_env=False, headers={"authorization": f"Bearer {token}"}).text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if f'{{model_name="{model}"}}' in line)
    return {name.partition("{")[0]: float(value) for name, value in lines}


def test_metrics_and_watchers_know_of_an_answer_within_a_second(tmp_path: Path) -> None:
    with running(tmp_path / "data", *OPTIONS) as box, box.client() as client:
        model = imported(box, client, tmp_path)
        token = client.create_app_key("monitoring", [AppScope.METRICS])[1]
        cold, warm = answer(client, model), answer(client, model)
        assert (cold.usage.cached_input_tokens, warm.usage.cached_input_tokens) == (0, 448)
        time.sleep(1.0)
        found = scrape(box, token, model)
        read = 2 * cold.usage.input_tokens
        assert found["appliance_prefix_cache_queries_total"] == found["appliance_prompt_tokens_total"] == read
        assert found["appliance_prefix_cache_hits_total"] == 448
        assert found["appliance_generation_tokens_total"] == 16
        with client.watch_engines() as states:
            state = next(iter(states))[model]
        assert (state.prompt_tokens_total, state.cached_tokens_total) == (read, 448)
        assert (state.generated_tokens_total, state.requests_total, state.running) == (16, 2, 0)


def test_warm_prompts_outlive_the_daemon_but_not_their_model(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    orphan = folder / "cache" / "kv" / ("0" * 64)
    with running(folder, *OPTIONS) as box, box.client() as client:
        model = imported(box, client, tmp_path)
        answer(client, model)
        sha256 = client.model(model).sha256
        assert box.stop() == 0
    kept = folder / "cache" / "kv" / sha256
    assert len(list(kept.glob("*.page"))) == 7
    orphan.mkdir()
    (orphan / "a.page").write_bytes(b"nobody's")
    with running(folder, *OPTIONS) as box, box.client() as client:
        eventually(lambda: not orphan.exists())
        assert answer(client, model).usage.cached_input_tokens == 448
        client.delete_model(model)
        assert not kept.exists()
        assert "goaway" not in box.log()
