"""The MCP endpoint by the real `mcp` client, over streamable HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from structlog.testing import capture_logs

from appliance.types import AppScope, NewDocument, Text
from tests.api.http_box import HttpBox, eventually


def add(
    served: HttpBox, text: str, title: str = "badges.md", readers: str = "everyone", collection: str = "handbook"
) -> None:
    if collection not in served.library.stored:
        served.library.create(collection)
    document = NewDocument(title, "text/plain", title, len(text), "stick", "p", "1", (text,), frozenset({readers}))
    served.library.add(collection, document)


@asynccontextmanager
async def connected(served: HttpBox, token: str = "", mode: Any = "auto", **headers: str) -> AsyncIterator[Client]:
    bearer = {"authorization": f"Bearer {token or served.token}"} | headers
    async with (
        httpx2.AsyncClient(verify=served.trust(), trust_env=False, headers=bearer) as http,
        Client(streamable_http_client(f"{served.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_tools_are_search_and_ask_in_either_generation_of_the_protocol(served: HttpBox, mode: str) -> None:
    add(served, "Badges expire after 90 days.")
    async with connected(served, mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["search", "ask"]
        found = await client.call_tool("search", {"query": "When do badges expire?", "collection": "handbook"})
    assert not found.is_error
    (passage,) = found.structured_content["passages"]
    assert passage["quote"] == "Badges expire after 90 days."
    assert (passage["title"], passage["page"], passage["start"], passage["end"]) == ("badges.md", 1, 0, 28)
    assert passage["document"].startswith("collections/handbook/documents/")


async def test_ask_answers_with_citations(served: HttpBox) -> None:
    add(served, "Badges expire after 90 days. Visitors sign the book.")
    served.generator.say("Badges expire after 90 days.")
    async with connected(served) as client:
        answer = await client.call_tool("ask", {"question": "When do badges expire?", "collection": "handbook"})
    told = answer.structured_content
    assert (told["mode"], told["answered"], told["answer"]) == ("generate", True, "Badges expire after 90 days.")
    (citation,) = told["citations"]
    assert (citation["quote"], citation["page"], citation["title"]) == ("Badges expire after 90 days.", 1, "badges.md")
    assert told["answer"][citation["answer_start"] : citation["answer_end"]] == citation["quote"]


async def test_a_document_for_others_does_not_exist_for_the_key(served: HttpBox) -> None:
    add(served, "Badges expire after 90 days.", "open.md")
    add(served, "Badges of the board never expire.", "board.md", readers="user:chair")
    add(served, "Badges of the crm expire daily.", "crm.md", readers="user:crm")
    async with connected(served) as client:
        found = await client.call_tool("search", {"query": "badges expire", "collection": "handbook"})
    assert {passage["title"] for passage in found.structured_content["passages"]} == {"open.md", "crm.md"}


async def test_a_key_for_one_collection_opens_no_other_and_need_not_name_it(served: HttpBox) -> None:
    add(served, "Badges expire after 90 days.")
    add(served, "Salaries rise.", collection="payroll")
    token = served.key(AppScope.KNOWLEDGE, collections=["handbook"])
    async with connected(served, token) as client:
        refused = await client.call_tool("search", {"query": "salaries", "collection": "payroll"})
        found = await client.call_tool("search", {"query": "badges"})
    assert refused.is_error
    assert "not for the collection payroll" in refused.content[0].text  # type: ignore[union-attr]
    assert len(found.structured_content["passages"]) == 1


@pytest.mark.parametrize(
    ("tool", "given", "problem"),
    [
        ("search", {"query": "x", "collection": "nothing"}, "no collection"),
        ("search", {"query": "x"}, "collection: is missing"),
        ("search", {"query": "x", "collection": "../etc"}, "collection"),
        ("search", {"query": " ", "collection": "handbook"}, "query"),
        ("search", {"query": "x" * 4001, "collection": "handbook"}, "query"),
        ("search", {"query": "x", "collection": "handbook", "limit": 101}, "limit"),
        ("search", {"query": 7, "collection": "handbook"}, "query"),
        ("ask", {"question": "", "collection": "handbook"}, "question"),
        ("ask", {"question": "x", "collection": "handbook", "as": "admin"}, "as: is not known"),
        ("drop", {}, "search and ask"),
    ],
)
async def test_a_wrong_call_is_told_to_the_model_in_words(
    served: HttpBox, tool: str, given: dict[str, Any], problem: str
) -> None:
    served.library.create("handbook")
    with capture_logs() as lines:
        async with connected(served) as client:
            answer = await client.call_tool(tool, given)
    assert answer.is_error
    assert problem in answer.content[0].text  # type: ignore[union-attr]
    outcomes = [line["outcome"] for line in lines if line["event"] == "call"]
    assert {"INVALID_ARGUMENT", "NOT_FOUND"} & set(outcomes)


@pytest.mark.parametrize("token", ["nobody.secret", "inference"])
async def test_without_a_key_for_knowledge_there_is_no_mcp(served: HttpBox, token: str) -> None:
    given = served.key(AppScope.INFERENCE) if token == "inference" else token
    async with served.http(given) as client:
        answer = await client.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert answer.status_code == (403 if token == "inference" else 401)
    assert answer.json()["error"]["code"] == -32000


@pytest.mark.parametrize(
    ("header", "status"), [({"host": "evil.example"}, 421), ({"origin": "https://evil.example"}, 403)]
)
async def test_a_page_of_another_origin_cannot_reach_it_through_a_browser(
    served: HttpBox, header: dict[str, str], status: int
) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    accept = {"accept": "application/json, text/event-stream"}
    async with served.http() as client:
        answer = await client.post("/mcp", json=body, headers=accept | header)
    assert answer.status_code == status


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_gone_amid_an_answer_frees_the_sequence(served: HttpBox, mode: str) -> None:
    add(served, "Badges expire after 90 days.")
    served.generator.pieces.append([Text("Badges "), asyncio.Event()])
    async with connected(served, mode=mode) as client:
        asked = asyncio.create_task(client.call_tool("ask", {"question": "When?", "collection": "handbook"}))
        await eventually(lambda: served.generator.asked)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await eventually(lambda: served.generator.closed == 1)


async def test_a_tool_call_is_one_line_of_log_under_its_grpc_name(served: HttpBox) -> None:
    add(served, "Badges expire after 90 days.")
    async with connected(served) as client:
        with capture_logs() as lines:
            await client.call_tool("search", {"query": "badges", "collection": "handbook"})
            await eventually(lambda: lines)
    assert ("/appliance.v1.KnowledgeService/Search", "OK") in [(line["method"], line["outcome"]) for line in lines]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"jsonrpc": "2.0", "id": 1, "method": "\\ud800"}', "INVALID_ARGUMENT"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"x": "\\ud800"}}', "INVALID_ARGUMENT"),
        (b"{", "INVALID_ARGUMENT"),
        (b"{}", "REFUSED"),
    ],
)
async def test_a_request_that_cannot_be_read_is_refused_and_logged_so(
    served: HttpBox, body: bytes, outcome: str
) -> None:
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    with capture_logs() as lines:
        async with served.http() as client:
            answer = await client.post("/mcp", content=body, headers=headers)
    assert answer.status_code == 400
    assert [line["outcome"] for line in lines if line["event"] == "call"] == [outcome]
