"""An application with a key calls a real box by OpenAI's protocol and by MCP, with their real clients."""

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from mcp.client import Client as McpClient
from mcp.client.streamable_http import streamable_http_client

from appliance.types import AppScope, JobState
from tests import gguf_models
from tests.daemon import Daemon, running

pytestmark = pytest.mark.long
BADGE = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 99}, "colour": {"enum": ["red", "blue"]}},
    "required": ["days", "colour"],
    "additionalProperties": False,
}
NOTHING = {"type": "integer", "minimum": 5, "maximum": 4}
HELLO: Any = [{"role": "user", "content": "Good morning."}]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("box")
    with running(folder / "data", "--model-context-tokens=1024", "--inference-threads=1") as started:
        (folder / "badges.txt").write_text("Badges expire after 90 days. Visitors sign the book at the gate.")
        with started.client() as client:
            begun = client.ingest(str(folder / "badges.txt"), "handbook")
            assert [seen.state for seen in client.watch_job(begun.job)][-1] is JobState.SUCCEEDED
            job = client.import_model(str(gguf_models.write_llama(folder / "tiny.gguf", seed=1)))
            assert [seen.state for seen in client.watch_job(job.id)][-1] is JobState.SUCCEEDED
        yield started


def key(box: Daemon, *scopes: AppScope, tenant: str = "") -> str:
    with box.client() as client:
        return client.create_app_key("crm", scopes, tenant=tenant)[1]


def url(box: Daemon) -> str:
    return f"https://{(box.data_dir / 'http-endpoint').read_text()}"


def http(box: Daemon, token: str) -> httpx2.AsyncClient:
    trust = ssl.create_default_context(cafile=str(box.data_dir / "clients" / "local" / "ca.pem"))
    bearer = {"authorization": f"Bearer {token}"}
    return httpx2.AsyncClient(verify=trust, trust_env=False, headers=bearer, timeout=120)


def is_badge(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"days", "colour"} and 1 <= value["days"] <= 99 and value["colour"] in ("red", "blue")


@asynccontextmanager
async def application(box: Daemon, tenant: str = "") -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client with a key of the tenant, '' for the box's own."""
    token = key(box, AppScope.INFERENCE, tenant=tenant)
    async with http(box, token) as connection:
        yield openai.AsyncOpenAI(base_url=f"{url(box)}/v1", api_key=token, http_client=connection, max_retries=0)


async def test_openais_client_chats_streams_and_embeds(box: Daemon) -> None:
    async with application(box) as client:
        models = [model.id async for model in client.models.list()]
        chat, embedder = sorted(models, key=lambda name: "minilm" in name.lower())
        asked: Any = {"model": chat, "messages": HELLO, "temperature": 0, "max_tokens": 8}
        whole = await client.chat.completions.create(**asked)
        assert whole.usage is not None
        assert 0 < whole.usage.completion_tokens <= 8
        stream = await client.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == whole.choices[0].message.content
        response = await client.responses.create(model=chat, input="Good morning.", temperature=0, max_output_tokens=8)
        assert response.output_text == whole.choices[0].message.content
        vectors = await client.embeddings.create(model=embedder, input=["a badge", "a gate"])
        assert np.linalg.norm(np.array(vectors.data[0].embedding)) == pytest.approx(1, abs=1e-3)


async def test_an_answer_keeps_to_the_schema_the_tools_and_the_stop_strings_that_were_asked_for(box: Daemon) -> None:
    async with application(box) as client:
        chat: Any = partial(client.chat.completions.create, model="", messages=HELLO, temperature=1.0, seed=5)
        form: Any = {"type": "json_schema", "json_schema": {"name": "badge", "schema": BADGE, "strict": True}}
        formed = await chat(response_format=form, max_tokens=300)
        assert is_badge(formed.choices[0].message.content or "")

        tool: Any = {"type": "function", "function": {"name": "issue", "parameters": BADGE}}
        called = await chat(tools=[tool], tool_choice="required", max_tokens=300)
        (call,) = called.choices[0].message.tool_calls
        assert (called.choices[0].finish_reason, call.function.name) == ("tool_calls", "issue")
        assert is_badge(call.function.arguments)

        whole = (await chat(max_tokens=40)).choices[0].message.content or ""
        stop = whole[len(whole) // 2 :][:3]
        cut = (await chat(max_tokens=40, stop=[stop])).choices[0]
        assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


async def test_log_probabilities_belong_to_the_tokens_of_the_text_and_a_stream_ends_with_its_usage(box: Daemon) -> None:
    async with application(box) as client:
        chat: Any = partial(client.chat.completions.create, model="", messages=HELLO, temperature=0, max_tokens=12)
        whole = await chat(logprobs=True, top_logprobs=3)
        (choice,) = whole.choices
        tokens = choice.logprobs.content
        spelled = bytes(byte for token in tokens for byte in token.bytes)
        assert spelled.decode(errors="replace") == choice.message.content
        assert all(token.logprob == max(other.logprob for other in token.top_logprobs) for token in tokens)  # greedy
        assert {len(token.top_logprobs) for token in tokens} == {3}

        chunks = [chunk async for chunk in await chat(stream=True, stream_options={"include_usage": True})]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == len(tokens) == 12


async def test_one_tenant_cannot_learn_from_the_cache_what_another_asked(box: Daemon) -> None:
    secret: Any = [{"role": "user", "content": " ".join(gguf_models.word(at) for at in range(3, 80)) * 4}]

    async def ask(client: openai.AsyncOpenAI) -> tuple[int, str]:
        """Cached prompt tokens, and the answer."""
        answer = await client.chat.completions.create(model="", messages=secret, temperature=0, max_tokens=4)
        assert answer.usage
        assert answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens or 0, answer.choices[0].message.content or ""

    async with application(box, "acme") as acme, application(box, "acme") as same, application(box, "evil") as other:
        cold, said = await ask(acme)
        assert cold == 0
        assert await ask(other) == (0, said)
        warm, _ = await ask(acme)
        assert warm >= 64
        assert await ask(same) == (warm, said)  # another key of the tenant
        assert await ask(other) == (warm, said)  # by now its own


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": NOTHING}}}, "minimum"),
        ({"messages": [{"role": "user", "content": "badge " * 3000}]}, "1024"),
    ],
)
async def test_what_the_engine_cannot_do_is_a_bad_request_that_says_why(
    box: Daemon, options: dict[str, Any], names: str
) -> None:
    async with application(box) as client:
        with pytest.raises(openai.BadRequestError, match=names):
            await client.chat.completions.create(**({"model": "", "messages": HELLO} | options))
        assert (await client.chat.completions.create(model="", messages=HELLO, max_tokens=2)).usage


async def test_an_mcp_client_finds_and_asks_with_citations(box: Daemon) -> None:
    async with (
        http(box, key(box, AppScope.KNOWLEDGE)) as connection,
        McpClient(streamable_http_client(f"{url(box)}/mcp", http_client=connection)) as client,
    ):
        found = await client.call_tool("search", {"query": "When do badges expire?", "collection": "handbook"})
        assert "90 days" in found.structured_content["passages"][0]["quote"]
        answer = await client.call_tool("ask", {"question": "When do badges expire?", "collection": "handbook"})
        assert not answer.is_error
        assert answer.structured_content["mode"] == "generate"


async def test_metrics_tell_what_was_served(box: Daemon) -> None:
    async with http(box, key(box, AppScope.METRICS)) as connection:
        answer = await connection.get(f"{url(box)}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "appliance_request_success_total{" in answer.text
    assert "appliance_num_requests_running{" in answer.text
    assert "appliance_host_memory_available_bytes" in answer.text


def test_the_command_line_makes_lists_and_revokes_a_key_that_is_refused_from_then_on(box: Daemon) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "appliance.cli.main", f"--data-dir={box.data_dir}", "apps", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    async def status() -> int:
        async with http(box, token) as connection:
            return (await connection.get(f"{url(box)}/v1/models")).status_code

    token = run("create", "crm").strip()
    assert asyncio.run(status()) == 200
    id = token.partition(".")[0]
    assert id in {found["id"] for found in json.loads(run("list", "--json"))["keys"]}
    run("revoke", id, "--yes")
    assert asyncio.run(status()) == 401
    assert token.partition(".")[2] not in box.log()
