"""The Model Context Protocol over streamable HTTP: tools `search` and `ask` on the documents that a caller may read.

Alone to import mcp. Sessions are not kept: each request stands by its own app key.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any

import structlog
from mcp.server import Server, ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from appliance.api import requests
from appliance.api.fields import Fields, parse
from appliance.api.http import CALL_SCOPE, Answer, Call, in_words
from appliance.api.knowledge import DEFAULT_LIMIT, MAX_LIMIT, MAX_QUESTION_CHARACTERS
from appliance.errors import ApplianceError, InvalidArgument
from appliance.knowledge.answer.ask import Asker
from appliance.ports import Retriever
from appliance.types import AskFinish, Citation, Passage, Passages, Sampling, SearchOptions, Text, Unsupported

SERVICE = "/appliance.v1.KnowledgeService"
SEARCH, ASK = f"{SERVICE}/Search", f"{SERVICE}/Ask"
log = structlog.get_logger()

Json = dict[str, Any]
Context = ServerRequestContext[Any, Any]


def _schema(required: Sequence[str], **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_PLACE = {"document": _TEXT, "title": _TEXT, "page": _NUMBER, "start": _NUMBER, "end": _NUMBER, "quote": _TEXT}
_COLLECTION = {"type": "string", "description": "The collection of documents, such as handbook."}
_ONLY_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
TOOLS = (
    Tool(
        name="search",
        title="Search the documents",
        description="The passages of a collection that fit a query best, with their documents, pages and ranges.",
        input_schema=_schema(
            ("query",),
            query={"type": "string", "maxLength": MAX_QUESTION_CHARACTERS},
            collection=_COLLECTION,
            limit={"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        ),
        output_schema=_schema(
            ("passages",),
            passages={"type": "array", "items": _schema((*_PLACE, "score"), **_PLACE, score={"type": "number"})},
        ),
        annotations=_ONLY_READS,
    ),
    Tool(
        name="ask",
        title="Ask the documents",
        description="An answer from a collection, with a verified citation for each sentence that a document backs.",
        input_schema=_schema(
            ("question",),
            question={"type": "string", "maxLength": MAX_QUESTION_CHARACTERS},
            collection=_COLLECTION,
        ),
        output_schema=_schema(
            ("answer", "answered", "mode", "citations", "unsupported"),
            answer=_TEXT,
            answered={"type": "boolean"},
            mode=_TEXT,
            citations={
                "type": "array",
                "items": _schema(
                    (*_PLACE, "answer_start", "answer_end"), **_PLACE, answer_start=_NUMBER, answer_end=_NUMBER
                ),
            },
            unsupported={
                "type": "array",
                "items": _schema(("answer_start", "answer_end"), answer_start=_NUMBER, answer_end=_NUMBER),
            },
        ),
        annotations=_ONLY_READS,
    ),
)


@dataclass(frozen=True)
class _Tools:
    """What the tools do, with the caller's own rights."""

    retriever: Retriever
    asker: Asker

    async def search(self, call: Call, given: Fields) -> Json:
        call.require(SEARCH)
        query = requests.text(given.text("query"), "query", MAX_QUESTION_CHARACTERS)
        collection, limit = _collection(call, given), given.whole("limit", DEFAULT_LIMIT)
        if not 1 <= limit <= MAX_LIMIT:
            raise given.refusal("limit", f"must be between 1 and {MAX_LIMIT}.")
        given.finish()
        found = await self.retriever.search(call.principal, collection, query, limit, SearchOptions(paged=False))
        return {"passages": [_passage(passage) for passage in found.passages]}

    async def ask(self, call: Call, given: Fields) -> Json:
        call.require(ASK)
        question = requests.text(given.text("question"), "question", MAX_QUESTION_CHARACTERS)
        collection = _collection(call, given)
        given.finish()
        model = call.require_model("")
        pieces = self.asker.ask(call.principal, collection, question, None, model, Sampling(), call.deadline_seconds)
        return await _answer(pieces)


class McpServer:
    """An endpoint of the HTTP port. hosts: the names that clients may call this machine by (against DNS rebinding)."""

    def __init__(self, retriever: Retriever, asker: Asker, hosts: Sequence[str], version: str) -> None:
        tools = _Tools(retriever, asker)
        self._tools: Mapping[str, Callable[[Call, Fields], Awaitable[Json]]] = {
            "search": tools.search,
            "ask": tools.ask,
        }
        server: Server[Any] = Server(
            "appliance", version=version, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        self._manager = StreamableHTTPSessionManager(server, stateless=True, security_settings=_security(hosts))

    def running(self) -> AbstractAsyncContextManager[None]:
        """Enter it once, before the first call, in the task that leaves it."""
        return self._manager.run()

    async def __call__(self, call: Call) -> Answer:
        if call.body:
            parse(call.body)
        return self._manager.handle_request

    async def _list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=list(TOOLS))

    async def _call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        assert context.request is not None  # over HTTP there always is one
        call: Call = context.request.scope[CALL_SCOPE]
        try:
            if params.name not in self._tools:
                raise InvalidArgument.of("name", "there are the tools search and ask.")
            told = await self._tools[params.name](call, Fields(params.arguments or {}))
        except ApplianceError as error:
            call.outcome = error.reason
            return _failed(error)
        except Exception as error:
            call.outcome = ApplianceError.reason
            log.exception("call.crashed", method=call.method)
            return _failed(ApplianceError(f"The daemon failed inside: {type(error).__name__}."))
        return CallToolResult(content=[TextContent(type="text", text=json.dumps(told))], structured_content=told)


def shape(error: ApplianceError) -> Json:
    """An error of the call itself as JSON-RPC 2.0 says it; its request was not read, so it has no id."""
    return {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": in_words(error)}}


def _failed(error: ApplianceError) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=in_words(error))], is_error=True)


def _collection(call: Call, given: Fields) -> str:
    """The collection that is named; else the key's own, where it opens exactly one."""
    assert call.key is not None
    only = next(iter(call.key.collections)) if len(call.key.collections) == 1 else None
    named = given.text("collection", only)
    return call.require_collection(
        requests.collection(f"collections/{named.removeprefix('collections/')}", "collection")
    )


def _passage(passage: Passage) -> Json:
    return {
        "document": passage.document,
        "title": passage.title,
        "page": passage.span.page,
        "start": passage.span.start,
        "end": passage.span.end,
        "quote": passage.text,
        "score": passage.score,
    }


def _citation(citation: Citation) -> Json:
    return {
        "document": citation.document,
        "title": citation.title,
        "page": citation.span.page,
        "start": citation.span.start,
        "end": citation.span.end,
        "quote": citation.quote,
        "answer_start": citation.answer_start,
        "answer_end": citation.answer_end,
    }


async def _answer(pieces: AsyncIterator[Any]) -> Json:
    """All of an answer; closing the pieces closes the generation."""
    texts: list[str] = []
    told: Json = {"answer": "", "answered": False, "mode": "", "citations": [], "unsupported": []}
    async with aclosing(pieces) as answer:  # type: ignore[type-var]
        async for piece in answer:
            match piece:
                case Passages():
                    told["mode"] = piece.mode.value
                case Text():
                    texts.append(piece.text)
                case Citation():
                    told["citations"].append(_citation(piece))
                case Unsupported():
                    told["unsupported"].append({"answer_start": piece.answer_start, "answer_end": piece.answer_end})
                case AskFinish():
                    told["answered"] = piece.answered
    return told | {"answer": "".join(texts)}


def _security(hosts: Sequence[str]) -> TransportSecuritySettings:
    named = [f"[{host}]" if ":" in host else host for host in hosts]
    return TransportSecuritySettings(
        allowed_hosts=[*named, *(f"{host}:*" for host in named)],
        allowed_origins=[origin for host in named for origin in (f"https://{host}", f"https://{host}:*")],
    )
