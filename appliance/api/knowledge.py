"""KnowledgeService: collections, documents, search and questions, each in the caller's own tenant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from appliance.access import roles
from appliance.access.callers import Callers
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument
from appliance.gen.v1 import knowledge_pb2 as pb
from appliance.gen.v1 import knowledge_pb2_grpc
from appliance.knowledge.answer.ask import Asker
from appliance.knowledge.libraries import Libraries
from appliance.knowledge.transfer.jobs import Transfers
from appliance.knowledge.upkeep import Upkeep
from appliance.ports import Retriever
from appliance.types import AnswerMode, Expand, Leg, Principal, Role, SearchOptions, Turn

DEFAULT_LIMIT = 8
MAX_LIMIT = 100
MAX_QUESTION_CHARACTERS = 4_000
MAX_TURNS = 100
MAX_FACETS = 8
MAX_PASSPHRASE_CHARACTERS = 1_000
MODES = {
    pb.ANSWER_MODE_UNSPECIFIED: None,
    pb.ANSWER_MODE_QUOTE: AnswerMode.QUOTE,
    pb.ANSWER_MODE_GENERATE: AnswerMode.GENERATE,
}
LEGS = {pb.LEG_WORDS: Leg.WORDS, pb.LEG_MEANING: Leg.MEANING}
EXPANDS = {pb.EXPAND_UNSPECIFIED: Expand.NONE, pb.EXPAND_SECTION: Expand.SECTION, pb.EXPAND_PAGE: Expand.PAGE}


@dataclass(frozen=True)
class KnowledgeService(knowledge_pb2_grpc.KnowledgeServiceServicer):
    callers: Callers
    libraries: Libraries
    retriever: Retriever
    asker: Asker
    upkeep: Upkeep
    transfers: Transfers

    # --- collections

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        library = self.libraries.of(self._caller(context).tenant)
        made = await asyncio.to_thread(library.create, requests.collection_id(request.collection_id))
        return pb.CreateCollectionResponse(collection=messages.collection(made, with_size=True))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        caller = self._caller(context)
        found = await asyncio.to_thread(self.libraries.of(caller.tenant).collections, caller.groups)
        items, token = requests.page(found, request.page_size, request.page_token)
        told = (messages.collection(item, with_size=caller.role in roles.WRITE) for item in items)
        return pb.ListCollectionsResponse(collections=told, next_page_token=token)

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        caller, name = self._caller(context), requests.collection(request.name)
        found = await asyncio.to_thread(self.libraries.of(caller.tenant).describe, name, caller.groups)
        told = messages.collection(found, with_size=caller.role in roles.WRITE)
        return pb.GetCollectionResponse(collection=told)

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        library = self.libraries.of(self._caller(context).tenant)
        proof = await asyncio.to_thread(library.drop, requests.collection(request.name))
        return pb.DeleteCollectionResponse(statement=proof.statement, signature=proof.signature)

    async def CompactCollection(
        self, request: pb.CompactCollectionRequest, context: Context
    ) -> pb.CompactCollectionResponse:
        caller, name = self._caller(context), requests.collection(request.name)
        library = self.libraries.of(caller.tenant)
        await asyncio.to_thread(library.compact, name)
        found = await asyncio.to_thread(library.describe, name, caller.groups)
        return pb.CompactCollectionResponse(collection=messages.collection(found, with_size=True))

    async def VerifyCollection(
        self, request: pb.VerifyCollectionRequest, context: Context
    ) -> pb.VerifyCollectionResponse:
        job = self.upkeep.verify(self._caller(context).tenant, requests.collection(request.name))
        return pb.VerifyCollectionResponse(job=messages.job(job))

    async def ListFaults(self, request: pb.ListFaultsRequest, context: Context) -> pb.ListFaultsResponse:
        found = self.upkeep.faults(self._caller(context).tenant, requests.collection(request.parent, "parent"))
        return pb.ListFaultsResponse(faults=map(messages.fault, found))

    async def ReembedCollection(
        self, request: pb.ReembedCollectionRequest, context: Context
    ) -> pb.ReembedCollectionResponse:
        name, model = requests.collection(request.name), requests.model_or_default(request.model)
        job = self.upkeep.reembed(self._caller(context).tenant, name, model)
        return pb.ReembedCollectionResponse(job=messages.job(job))

    async def RotateKeys(self, request: pb.RotateKeysRequest, context: Context) -> pb.RotateKeysResponse:
        count = await asyncio.to_thread(self.libraries.rotate, self._caller(context).tenant)
        return pb.RotateKeysResponse(collection_count=count)

    # --- copies

    async def ExportCollection(
        self, request: pb.ExportCollectionRequest, context: Context
    ) -> pb.ExportCollectionResponse:
        name, secret = requests.collection(request.name), _passphrase(request.passphrase)
        job = self.transfers.export(self._caller(context).tenant, name, request.path, secret)
        return pb.ExportCollectionResponse(job=messages.job(job))

    async def ImportCollection(
        self, request: pb.ImportCollectionRequest, context: Context
    ) -> pb.ImportCollectionResponse:
        name, secret = requests.collection_id(request.collection_id), _passphrase(request.passphrase)
        job = self.transfers.import_(self._caller(context).tenant, name, request.path, secret)
        return pb.ImportCollectionResponse(job=messages.job(job))

    async def BackupCollection(
        self, request: pb.BackupCollectionRequest, context: Context
    ) -> pb.BackupCollectionResponse:
        job = self.transfers.backup(self._caller(context).tenant, requests.collection(request.name), request.path)
        return pb.BackupCollectionResponse(job=messages.job(job))

    async def RestoreCollection(
        self, request: pb.RestoreCollectionRequest, context: Context
    ) -> pb.RestoreCollectionResponse:
        tenant, name = self._caller(context).tenant, requests.collection_id(request.collection_id)
        job = self.transfers.restore(tenant, name, request.path, replace=request.replace)
        return pb.RestoreCollectionResponse(job=messages.job(job))

    async def AcceptRollback(self, request: pb.AcceptRollbackRequest, context: Context) -> pb.AcceptRollbackResponse:
        caller, name = self._caller(context), requests.collection(request.name)
        library = self.libraries.of(caller.tenant)
        await asyncio.to_thread(library.accept_rollback, name)
        found = await asyncio.to_thread(library.describe, name, caller.groups)
        return pb.AcceptRollbackResponse(collection=messages.collection(found, with_size=True))

    async def ShredTenant(self, request: pb.ShredTenantRequest, context: Context) -> pb.ShredTenantResponse:
        tenant = self._caller(context).tenant
        if request.tenant != tenant:
            raise InvalidArgument.of("tenant", "must be the name of your own tenant; nothing was destroyed.")
        proofs = await asyncio.to_thread(self.libraries.shred_tenant, tenant)
        told = (pb.ShredProof(statement=proof.statement, signature=proof.signature) for proof in proofs)
        return pb.ShredTenantResponse(proofs=told)

    # --- documents

    async def ListDocuments(self, request: pb.ListDocumentsRequest, context: Context) -> pb.ListDocumentsResponse:
        caller, name = self._caller(context), requests.collection(request.parent, "parent")
        library, size = self.libraries.of(caller.tenant), requests.page_size_of(request.page_size)
        groups = _changes(caller) if request.all else caller.groups

        def listed() -> pb.ListDocumentsResponse:
            found, token = library.documents(name, groups, request.filter, request.page_token, size)
            return pb.ListDocumentsResponse(documents=map(messages.document, found), next_page_token=token)

        return await asyncio.to_thread(listed)

    async def GetDocument(self, request: pb.GetDocumentRequest, context: Context) -> pb.GetDocumentResponse:
        caller, where = self._caller(context), requests.document(request.name)
        library = self.libraries.of(caller.tenant)

        def read() -> pb.GetDocumentResponse:
            document = messages.document(library.get(*where, caller.groups), with_readers=caller.role in roles.WRITE)
            return pb.GetDocumentResponse(document=document, pages=library.pages(*where, caller.groups))

        return await asyncio.to_thread(read)

    async def SetDocumentReaders(
        self, request: pb.SetDocumentReadersRequest, context: Context
    ) -> pb.SetDocumentReadersResponse:
        caller, where = self._caller(context), requests.document(request.name)
        readers = requests.readers(request.readers, self.callers.groups.readers(caller.tenant))
        if not readers:
            raise InvalidArgument.of("readers", "must name somebody; delete the document if nobody is to read it.")
        library = self.libraries.of(caller.tenant)
        changed = await asyncio.to_thread(library.set_readers, *where, readers, _changes(caller))
        return pb.SetDocumentReadersResponse(document=messages.document(changed, with_readers=True))

    async def DeleteDocument(self, request: pb.DeleteDocumentRequest, context: Context) -> pb.DeleteDocumentResponse:
        caller, where = self._caller(context), requests.document(request.name)
        await asyncio.to_thread(self.libraries.of(caller.tenant).delete, *where, _changes(caller))
        return pb.DeleteDocumentResponse()

    # --- questions

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        collection = requests.collection(request.collection, "collection")
        query = requests.text(request.query, "query", MAX_QUESTION_CHARACTERS)
        if not 0 <= request.limit <= MAX_LIMIT:
            raise InvalidArgument.of("limit", f"must be between 1 and {MAX_LIMIT}, or 0 for {DEFAULT_LIMIT}.")
        found = await self.retriever.search(
            self._caller(context),
            collection,
            query,
            request.limit or DEFAULT_LIMIT,
            _options(request),
            request.page_token,
        )
        return messages.found(found)

    async def Ask(self, request: pb.AskRequest, context: Context) -> AsyncIterator[pb.AskResponse]:
        if request.mode not in MODES:
            raise InvalidArgument.of("mode", "must be quote or generate.")
        if len(request.history) > MAX_TURNS:
            raise InvalidArgument.of("history", f"takes at most {MAX_TURNS} turns; send the last ones.")
        pieces = self.asker.ask(
            self._caller(context),
            requests.collection(request.collection, "collection"),
            requests.text(request.question, "question", MAX_QUESTION_CHARACTERS),
            MODES[request.mode],
            requests.model_or_default(request.model),
            requests.sampling(request.sampling),
            requests.deadline_seconds(context.time_remaining()),
            history=tuple(Turn(turn.question, turn.answer) for turn in request.history),
            condition=request.filter,
            reranker=_reranker(request.reranker),
        )
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                yield messages.ask_piece(piece)

    def _caller(self, context: Context) -> Principal:
        return self.callers.by_certificate(context.auth_context())


def _changes(caller: Principal) -> frozenset[str] | None:
    """The groups whose documents the caller may share and delete; None: all, so that none is locked away for ever."""
    return None if caller.role is Role.ADMIN else caller.groups


def _options(request: pb.SearchRequest) -> SearchOptions:
    """Raises InvalidArgument, naming the field."""
    if any(leg not in LEGS for leg in request.legs):
        raise InvalidArgument.of("legs", "must be words or meaning, or none for both.")
    if request.expand not in EXPANDS:
        raise InvalidArgument.of("expand", "must be section or page, or unspecified for neither.")
    if not 0 <= request.diversity <= 1:  # also refuses NaN
        raise InvalidArgument.of("diversity", "must be between 0 and 1.")
    if len(request.facets) > MAX_FACETS:
        raise InvalidArgument.of("facets", f"takes at most {MAX_FACETS} fields.")
    return SearchOptions(
        filter=request.filter,
        legs=frozenset(LEGS[leg] for leg in request.legs) or frozenset(Leg),
        diversity=request.diversity,
        reranker=_reranker(request.reranker),
        expand=EXPANDS[request.expand],
        explain=request.explain,
        facets=tuple(request.facets),
    )


def _reranker(name: str) -> str:
    return requests.model(name, "reranker") if name else ""


def _passphrase(given: str) -> str:
    """Raises InvalidArgument, which does not say what was given."""
    if not 1 <= len(given) <= MAX_PASSPHRASE_CHARACTERS:
        raise InvalidArgument.of("passphrase", f"must have 1 to {MAX_PASSPHRASE_CHARACTERS} characters.")
    return given
