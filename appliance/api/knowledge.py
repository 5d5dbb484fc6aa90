"""KnowledgeService: collections, documents, search and questions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from appliance.access import roles
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument
from appliance.gen.v1 import knowledge_pb2 as pb
from appliance.gen.v1 import knowledge_pb2_grpc
from appliance.knowledge.answer.ask import Asker
from appliance.ports import Library
from appliance.types import AnswerMode, Principal

DEFAULT_LIMIT = 8
MAX_LIMIT = 100
MAX_QUESTION_CHARACTERS = 4_000
MODES = {
    pb.ANSWER_MODE_UNSPECIFIED: None,
    pb.ANSWER_MODE_QUOTE: AnswerMode.QUOTE,
    pb.ANSWER_MODE_GENERATE: AnswerMode.GENERATE,
}


@dataclass(frozen=True)
class KnowledgeService(knowledge_pb2_grpc.KnowledgeServiceServicer):
    library: Library
    asker: Asker

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        made = await asyncio.to_thread(self.library.create, request.collection_id)
        return pb.CreateCollectionResponse(collection=messages.collection(made))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        found = await asyncio.to_thread(self.library.collections)
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListCollectionsResponse(collections=map(messages.collection, items), next_page_token=token)

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        await asyncio.to_thread(self.library.drop, requests.collection(request.name))
        return pb.DeleteCollectionResponse()

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Context) -> pb.ListDocumentsResponse:
        collection = requests.collection(request.parent, "parent")
        found = await asyncio.to_thread(self.library.documents, collection, _caller(context).groups)
        items, token = requests.page(found, request.page_size, request.page_token)
        return pb.ListDocumentsResponse(documents=map(messages.document, items), next_page_token=token)

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        where, groups = requests.document(request.name), _caller(context).groups
        document = await asyncio.to_thread(self.library.get, *where, groups)
        pages = await asyncio.to_thread(self.library.pages, *where, groups)
        return pb.GetDocumentResponse(document=messages.document(document), pages=pages)

    async def DeleteDocument(self, request: pb.DeleteDocumentRequest, context: Context) -> pb.DeleteDocumentResponse:
        where = requests.document(request.name)
        await asyncio.to_thread(self.library.delete, *where, _caller(context).groups)
        return pb.DeleteDocumentResponse()

    async def CompactCollection(
        self, request: pb.CompactCollectionRequest, context: Context
    ) -> pb.CompactCollectionResponse:
        compacted = await asyncio.to_thread(self.library.compact, requests.collection(request.name))
        return pb.CompactCollectionResponse(collection=messages.collection(compacted))

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        collection = requests.collection(request.collection, "collection")
        query = requests.text(request.query, "query", MAX_QUESTION_CHARACTERS)
        if not 0 <= request.limit <= MAX_LIMIT:
            raise InvalidArgument.of("limit", f"must be between 1 and {MAX_LIMIT}, or 0 for {DEFAULT_LIMIT}.")
        limit = request.limit or DEFAULT_LIMIT
        found = await asyncio.to_thread(self.library.search, collection, query, _caller(context).groups, limit)
        return pb.SearchResponse(passages=map(messages.passage, found.passages))

    async def Ask(self, request: pb.AskRequest, context: Context) -> AsyncIterator[pb.AskResponse]:
        if request.mode not in MODES:
            raise InvalidArgument.of("mode", "must be quote or generate.")
        pieces = self.asker.ask(
            _caller(context),
            requests.collection(request.collection, "collection"),
            requests.text(request.question, "question", MAX_QUESTION_CHARACTERS),
            MODES[request.mode],
            requests.model_or_default(request.model),
            requests.sampling(request.sampling),
            requests.deadline_seconds(context.time_remaining()),
        )
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                yield messages.ask_piece(piece)


def _caller(context: Context) -> Principal:
    return roles.principal(context.auth_context())
