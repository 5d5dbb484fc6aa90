"""The door in front of every HTTP call: keys, rights, limits, clients that go or do not read, drain, TLS."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from structlog.testing import capture_logs

from appliance.access import ca
from appliance.access.roles import ALLOWED
from appliance.api import http_server
from appliance.api.http import SCOPES, Call, Limits
from appliance.errors import (
    DeadlineExceeded,
    DiskFull,
    Forbidden,
    KeyUnavailable,
    ModelDamaged,
    ModelMissing,
    PortInUse,
    SandboxUnavailable,
    SelfTestFailed,
    StoreDamaged,
)
from appliance.types import AppScope, Principal, Role, Text
from tests.api.http_box import STOP, HttpBox, eventually, serving

HELLO = {"model": "writer", "messages": [{"role": "user", "content": "Good morning."}]}
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def wire(served: HttpBox) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection."""
    host, _, port = served.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=served.trust())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def request(served: HttpBox, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.token}\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic YTpi", "Bearer nobody.secret", "Bearer é"])
async def test_a_call_without_a_good_key_is_unauthorised(served: HttpBox, authorization: str) -> None:
    headers = {b"authorization": authorization.encode("latin-1")} if authorization else {}
    async with served.http("") as client:
        answer = await client.post(CHAT, json=HELLO, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "key_refused")
    assert "appliance apps create" in error["message"]
    assert served.generator.asked == []


async def test_an_expired_key_is_refused(tmp_path: Path, served: HttpBox, monkeypatch: pytest.MonkeyPatch) -> None:
    token = served.key(AppScope.INFERENCE)
    monkeypatch.setattr(served.keys, "_clock", lambda: datetime.now(UTC) + timedelta(days=91))
    async with served.http(token) as client:
        answer = await client.post(CHAT, json=HELLO)
    assert (answer.status_code, "expired" in answer.text) == (401, True)


async def test_a_key_revoked_amid_a_stream_is_refused_at_the_next_call(served: HttpBox) -> None:
    token, go = served.key(AppScope.INFERENCE), asyncio.Event()
    served.generator.pieces.append([Text("one"), go, Text("two"), STOP])
    async with served.http(token) as client:
        async with client.stream("POST", CHAT, json=HELLO | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            assert "one" in await anext(lines)
            served.keys.revoke(token.partition(".")[0])
            go.set()
            assert "data: [DONE]" in [line async for line in lines]
        refused = await client.post(CHAT, json=HELLO)
    assert (refused.status_code, "revoked" in refused.text) == (401, True)


@pytest.mark.parametrize(
    ("scope", "opens"),
    [
        (AppScope.INFERENCE, {CHAT, "/v1/models"}),
        (AppScope.KNOWLEDGE, {"/mcp"}),
        (AppScope.METRICS, {"/metrics"}),
    ],
)
async def test_a_key_opens_its_scopes_and_no_other(served: HttpBox, scope: AppScope, opens: set[str]) -> None:
    served.generator.say("x")
    async with served.http(served.key(scope)) as client:
        answers = {
            CHAT: await client.post(CHAT, json=HELLO),
            "/v1/models": await client.get("/v1/models"),
            "/metrics": await client.get("/metrics"),
            "/mcp": await client.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}),
        }
    assert {path for path, answer in answers.items() if answer.status_code != 403} == opens


async def test_an_app_key_has_the_rights_of_an_app_and_no_more(served: HttpBox) -> None:
    opened = set()
    for method in ALLOWED:
        try:
            served.gate.admit(Headers({"authorization": f"Bearer {served.token}"}), Call(method))
            opened.add(method.rpartition("/")[2])
        except Forbidden:
            continue
    assert {"Chat", "Embed", "Search", "Ask", "ListModels", "GetStatus"} <= opened
    assert not opened & {"CreateAppKey", "DeleteCollection", "StartIngestion", "LoadModel", "WatchHealth", "ListJobs"}
    assert set(SCOPES.values()) == set(AppScope)


async def test_one_line_of_log_names_caller_method_and_outcome_and_no_content(served: HttpBox) -> None:
    served.generator.say("the answer's words")
    with capture_logs() as lines:
        async with served.http() as client:
            await client.post(CHAT, json=HELLO)
            await client.post(CHAT, json={"messages": "Good morning."})
    calls = [line for line in lines if line["event"] == "call"]
    assert [line["outcome"] for line in calls] == ["OK", "INVALID_ARGUMENT"]
    assert calls[0]["method"] == "/appliance.v1.InferenceService/Chat"
    assert calls[0]["who"] == f"tenants/default/users/crm (app) by key {served.token.partition('.')[0]}"
    told = json.dumps(lines, default=str)
    assert served.token.partition(".")[2] not in told
    assert "morning" not in told
    assert "answer's words" not in told


# --- how much ---------------------------------------------------------------------------------------------------------


async def test_a_path_or_verb_that_is_not_there_is_told_in_the_same_shape(served: HttpBox) -> None:
    async with served.http() as client:
        missing, verb = await client.get("/v1/files"), await client.get(CHAT)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (verb.status_code, verb.json()["error"]["type"]) == (405, "invalid_request_error")


@pytest.mark.parametrize("size", [9_000, 20_000, 200_000])
async def test_too_many_header_bytes_are_refused(served: HttpBox, size: int) -> None:
    head = request(served, HELLO).replace(b"host: x", b"host: x\r\nx-padding: " + b"a" * size)
    async with wire(served) as (reader, writer):
        writer.write(head)
        status = await reader.readline()
        assert status.split()[1] in (b"400", b"413")
    assert served.generator.asked == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024

    async with serving(tmp_path, Limits(body_bytes=32 << 10)) as served, served.http() as client:
        answer = await client.post(CHAT, content=chunks() if chunked else b"x" * (64 << 10))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_large_bodies_together_have_a_budget_and_small_ones_go_on(tmp_path: Path) -> None:
    limits = Limits(all_bodies_bytes=100_000, small_body_bytes=1_000)
    large = HELLO | {"messages": [{"role": "user", "content": "x" * 60_000}]}
    async with serving(tmp_path, limits) as served, served.http() as client:
        async with wire(served) as (_, writer):
            writer.write(request(served, large)[:-5])
            await eventually(lambda: served.gate._bodies_bytes > 50_000)
            refused = await client.post(CHAT, json=large)
            served.generator.say("x")
            small = await client.post(CHAT, json=HELLO)
        await eventually(lambda: served.gate._bodies_bytes == 0)
        served.generator.say("x")
        later = await client.post(CHAT, json=large)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert "retry-after" in refused.headers
    assert (small.status_code, later.status_code) == (200, 200)


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(body_seconds=0.05)) as served, wire(served) as (reader, writer):
        writer.write(request(served, HELLO)[:-5])
        assert b"504" in await reader.readline()


async def test_a_call_that_takes_too_long_ends_and_frees_its_sequence(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(call_seconds=0.2)) as served:
        served.generator.pieces.append([asyncio.Event()])
        served.generator.pieces.append([Text("one"), asyncio.Event()])
        async with served.http() as client:
            early = await client.post(CHAT, json=HELLO)
            late = await client.post(CHAT, json=HELLO | {"stream": True})
    assert (early.status_code, early.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert late.status_code == 200
    assert json.loads(late.text.split("data: ")[-1])["error"]["code"] == "deadline_exceeded"
    assert served.generator.closed == 2
    assert served.generator.asked[0].deadline_seconds == 0.2


# --- clients that go, or do not read ----------------------------------------------------------------------------------


async def test_a_client_gone_amid_a_stream_frees_the_sequence(served: HttpBox) -> None:
    served.generator.pieces.append([Text("one"), asyncio.Event()])
    with capture_logs() as lines:
        async with served.http() as client, client.stream("POST", CHAT, json=HELLO | {"stream": True}) as answer:
            assert "one" in await anext(answer.aiter_lines())
        await eventually(lambda: served.generator.closed == 1)
        await eventually(lambda: any(line["event"] == "call" for line in lines))
    assert [line["outcome"] for line in lines if line["event"] == "call"] == ["CANCELLED"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_gone_before_the_first_piece_frees_the_sequence(served: HttpBox, stream: bool) -> None:
    served.generator.pieces.append([asyncio.Event()])
    async with wire(served) as (_, writer):
        writer.write(request(served, HELLO | {"stream": stream}))
        await eventually(lambda: served.generator.asked)
    await eventually(lambda: served.generator.closed == 1)


async def test_a_client_that_never_reads_its_stream_is_let_go(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(stall_seconds=0.2)) as served:
        served.generator.pieces.append([*(Text("x" * 100_000) for _ in range(1000)), STOP])
        async with wire(served) as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            with capture_logs() as lines:
                writer.write(request(served, HELLO | {"stream": True}))
                await eventually(lambda: any(line["event"] == "call" for line in lines))
    assert served.generator.closed == 1
    assert [line["outcome"] for line in lines if line["event"] == "call"] == ["CANCELLED"]


async def test_who_connects_and_sends_no_request_is_let_go(served: HttpBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.1)
    async with wire(served) as (silent, _), wire(served) as (slow, writer):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n")
        async with asyncio.timeout(20):
            assert await silent.read() == b""
            assert await slow.read() == b""


async def test_connections_that_never_say_hello_hold_few_files_and_not_for_long(
    served: HttpBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = served.server._server.servers[0].sockets[0]._sock  # type: ignore[attr-defined]
    assert 0 < listener.most <= http_server.MOST_CONNECTIONS
    monkeypatch.setattr(listener, "most", 16)
    host, _, port = served.server.address.rpartition(":")
    bare = [await asyncio.open_connection(host, int(port)) for _ in range(30)]
    await eventually(lambda: sum(reader.at_eof() for reader, _ in bare) == 22)
    assert listener.open == {host: 8}
    for _, writer in bare:
        writer.close()
    await eventually(lambda: not listener.open)
    async with served.http() as client:
        assert (await client.get("/v1/models")).status_code == 200
    await eventually(lambda: not listener.open)


async def test_a_handshake_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HANDSHAKE_SECONDS", 0.1)
    async with serving(tmp_path) as served:
        host, _, port = served.server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


# --- stopping, and certificates ---------------------------------------------------------------------------------------


async def test_draining_lets_a_stream_finish_and_takes_no_new_call(served: HttpBox) -> None:
    go = asyncio.Event()
    served.generator.pieces.append([Text("one"), go, Text("two"), STOP])
    async with served.http() as client, client.stream("POST", CHAT, json=HELLO | {"stream": True}) as answer:
        lines = answer.aiter_lines()
        assert "one" in await anext(lines)
        drained = asyncio.create_task(served.server.drain(20))
        await asyncio.sleep(0.3)
        assert not drained.done()
        async with served.http() as other:
            with pytest.raises(httpx.ConnectError):
                await other.get("/v1/models")
        go.set()
        assert "data: [DONE]" in [line async for line in lines]
        await drained


async def test_a_stream_that_outlasts_the_grace_is_ended_and_freed(served: HttpBox) -> None:
    served.generator.pieces.append([Text("one"), asyncio.Event()])
    async with served.http() as client, client.stream("POST", CHAT, json=HELLO | {"stream": True}) as answer:
        assert "one" in await anext(answer.aiter_lines())
        began = time.monotonic()
        await served.server.drain(0)
        assert time.monotonic() - began < 20
    assert served.generator.closed == 1


async def test_a_renewed_certificate_is_shown_to_the_next_connection(served: HttpBox) -> None:
    async def serial() -> int:
        async with wire(served) as (_, writer):
            shown = writer.get_extra_info("ssl_object").getpeercert()
            return int(shown["serialNumber"], 16)

    first = await serial()
    ca.server_files(served.data_dir)[0].unlink()
    ca.prepare(served.data_dir, "127.0.0.1")
    served.server.renew()
    assert await serial() != first


async def test_a_client_that_trusts_another_authority_does_not_get_in(served: HttpBox) -> None:
    async with httpx.AsyncClient(base_url=served.url, trust_env=False, verify=ssl.create_default_context()) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get("/v1/models")


async def test_metrics_are_told_as_a_scraper_reads_them(served: HttpBox) -> None:
    served.generator.say("x")
    async with served.http() as client:
        await client.post(CHAT, json=HELLO)
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'appliance_request_success_total{finished_reason="stop",model_name="writer"} 1.0' in answer.text
    assert 'appliance_kv_cache_usage_perc{model_name="writer"} 0.25' in answer.text


async def test_metrics_of_collections_are_those_of_the_tenant_of_the_key(served: HttpBox) -> None:
    token = served.keys.create(Principal("rival", "prometheus", Role.APP), [AppScope.METRICS])[1]
    async with served.http(token) as client:
        answer = await client.get("/metrics")
    assert 'appliance_knowledge_searches_total{collection="rival"} 1.0' in answer.text


async def test_small_pieces_are_sent_at_once(served: HttpBox) -> None:
    served.generator.pieces.append([Text("one"), asyncio.Event()])
    async with wire(served) as (reader, writer):
        writer.write(request(served, HELLO | {"stream": True}))
        await reader.readuntil(b"one")
        (connection,) = served.server._server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_port_in_use_is_named(served: HttpBox, tmp_path: Path) -> None:
    files = ca.server_files(tmp_path)
    other = http_server.HttpServer([], None, None, None, *files)  # type: ignore[arg-type]
    with pytest.raises(PortInUse, match=served.server.address):
        await other.start(served.server.address)


# --- what an error tells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SelfTestFailed("x"), 500),
        (SandboxUnavailable("x"), 500),
        (KeyUnavailable("x"), 500),
        (StoreDamaged("/srv/box/models/index.json is damaged."), 500),
        (DiskFull("x"), 507),
        (DeadlineExceeded("x"), 504),
        (ModelDamaged("x"), 400),
        (ModelMissing("/srv/box/models/blobs/ab cannot be opened."), 404),
    ],
)
async def test_what_is_wrong_with_the_box_is_told_as_such_and_names_no_file(
    served: HttpBox, error: Exception, status: int
) -> None:
    served.generator.pieces.append([error])
    async with served.http() as client:
        answer = await client.post(CHAT, json=HELLO)
    assert answer.status_code == status
    assert (answer.json()["error"]["type"] == "server_error") is (status >= 500)
    assert "/srv" not in answer.text


async def test_a_long_error_is_cut(served: HttpBox) -> None:
    asked = HELLO | {"tools": [{"type": "function", "function": {"name": "f"}}]}
    async with served.http() as client:
        choice = {"type": "function", "function": {"name": "x" * 1_000_000}}
        answer = await client.post(CHAT, json=asked | {"tool_choice": choice})
    assert answer.status_code == 400
    assert len(answer.content) < 2_000


async def test_a_key_that_does_not_open_it_is_told_to_ask_for_another_key(served: HttpBox) -> None:
    async with served.http(served.key(AppScope.METRICS)) as client:
        message = (await client.post(CHAT, json=HELLO)).json()["error"]["message"]
    assert "app key that opens this" in message
    assert "certificate" not in message
