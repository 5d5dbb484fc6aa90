"""Collections, documents, search and questions."""

from collections.abc import Iterator, Sequence
from typing import Any

from appliance import types
from appliance.client import messages as convert
from appliance.client.calls import WORK_SECONDS, Calls, Stream
from appliance.client.messages import named
from appliance.gen.v1 import knowledge_pb2
from appliance.gen.v1.knowledge_pb2_grpc import KnowledgeServiceStub


class KnowledgeCalls(Calls):
    """Collections, documents, search and questions."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._knowledge = KnowledgeServiceStub(self._channel)

    def ask(
        self,
        collection: str,
        question: str,
        mode: types.AnswerMode | None = None,
        model: str = "",
        sampling: types.Sampling | None = None,
        timeout_seconds: float = WORK_SECONDS,
        *,
        history: Sequence[types.Turn] = (),
        condition: str = "",
        reranker: str = "",
    ) -> Stream[types.AskPiece]:
        """Passages, then Text, then Citation and Unsupported, then one AskFinish. Without `mode` the box chooses.

        history: what was asked and answered before, oldest first. condition: a filter over documents.
        """
        request = knowledge_pb2.AskRequest(
            collection=named("collections", collection),
            question=question,
            mode=knowledge_pb2.AnswerMode.Value(f"ANSWER_MODE_{mode.name if mode else 'UNSPECIFIED'}"),
            model=named("models", model),
            sampling=convert.sampling(sampling),
            history=(knowledge_pb2.Turn(question=turn.question, answer=turn.answer) for turn in history),
            filter=condition,
            reranker=named("models", reranker),
        )
        return self._stream(self._knowledge.Ask, request, convert.ask_piece, timeout_seconds)

    def search(
        self,
        collection: str,
        query: str,
        limit: int = 0,
        options: types.SearchOptions | None = None,
        page: str = "",
    ) -> types.Found:
        """The best passages, best first; limit 0: the box chooses. page: `next_page` of the answer before."""
        wanted = options or types.SearchOptions()
        request = knowledge_pb2.SearchRequest(
            collection=named("collections", collection),
            query=query,
            limit=limit,
            filter=wanted.filter,
            legs=sorted(knowledge_pb2.Leg.Value(f"LEG_{leg.name}") for leg in wanted.legs),
            diversity=wanted.diversity,
            reranker=named("models", wanted.reranker),
            expand=knowledge_pb2.Expand.Value(f"EXPAND_{_EXPAND[wanted.expand]}"),
            explain=wanted.explain,
            facets=wanted.facets,
            page_token=page,
        )
        return convert.found(self._call(self._knowledge.Search, request))

    # --- collections

    def collections(self) -> Iterator[types.Collection]:
        request = knowledge_pb2.ListCollectionsRequest()
        return map(convert.collection, self._pages(self._knowledge.ListCollections, request, "collections"))

    def collection(self, collection: str) -> types.Collection:
        request = knowledge_pb2.GetCollectionRequest(name=named("collections", collection))
        return convert.collection(self._call(self._knowledge.GetCollection, request).collection)

    def create_collection(self, collection: str) -> types.Collection:
        request = knowledge_pb2.CreateCollectionRequest(collection_id=collection.removeprefix("collections/"))
        return convert.collection(self._call(self._knowledge.CreateCollection, request).collection)

    def delete_collection(self, collection: str) -> types.ShredProof:
        """Destroys the collection's keys, then its files: no copy of them opens afterwards."""
        request = knowledge_pb2.DeleteCollectionRequest(name=named("collections", collection))
        answer = self._call(self._knowledge.DeleteCollection, request, WORK_SECONDS)
        return types.ShredProof(answer.statement, answer.signature)

    def compact(self, collection: str) -> types.Collection:
        request = knowledge_pb2.CompactCollectionRequest(name=named("collections", collection))
        return convert.collection(self._call(self._knowledge.CompactCollection, request, WORK_SECONDS).collection)

    def verify_collection(self, collection: str) -> types.Job:
        """Start to read and check every byte of it; `faults` tells what was found."""
        request = knowledge_pb2.VerifyCollectionRequest(name=named("collections", collection))
        return convert.job(self._call(self._knowledge.VerifyCollection, request).job)

    def faults(self, collection: str) -> tuple[types.Fault, ...]:
        """What the last verification found damaged."""
        request = knowledge_pb2.ListFaultsRequest(parent=named("collections", collection))
        name = collection.removeprefix("collections/")
        found = self._call(self._knowledge.ListFaults, request).faults
        return tuple(types.Fault(name, fault.file, fault.problem) for fault in found)

    def reembed_collection(self, collection: str, model: str = "") -> types.Job:
        """Start to make its vectors anew by another embedder, '' for the built-in one."""
        request = knowledge_pb2.ReembedCollectionRequest(
            name=named("collections", collection), model=named("models", model)
        )
        return convert.job(self._call(self._knowledge.ReembedCollection, request).job)

    def rotate_keys(self) -> int:
        """New keys for the caller's tenant and each of its collections; how many there are."""
        answer = self._call(self._knowledge.RotateKeys, knowledge_pb2.RotateKeysRequest(), WORK_SECONDS)
        return int(answer.collection_count)

    def export_collection(self, collection: str, path: str, passphrase: str) -> types.Job:
        """Start to write it as one new file of the box, which the passphrase opens anywhere."""
        request = knowledge_pb2.ExportCollectionRequest(
            name=named("collections", collection), path=path, passphrase=passphrase
        )
        return convert.job(self._call(self._knowledge.ExportCollection, request).job)

    def import_collection(self, collection: str, path: str, passphrase: str) -> types.Job:
        """Start to read such a file into a new collection."""
        name = collection.removeprefix("collections/")
        request = knowledge_pb2.ImportCollectionRequest(collection_id=name, path=path, passphrase=passphrase)
        return convert.job(self._call(self._knowledge.ImportCollection, request).job)

    def backup_collection(self, collection: str, path: str) -> types.Job:
        """Start to copy its encrypted files into a folder of the box, as they are at one instant."""
        request = knowledge_pb2.BackupCollectionRequest(name=named("collections", collection), path=path)
        return convert.job(self._call(self._knowledge.BackupCollection, request).job)

    def restore_collection(self, collection: str, path: str, *, replace: bool = False) -> types.Job:
        """Start to make a collection of such a folder. replace: also where it is there and sound."""
        name = collection.removeprefix("collections/")
        request = knowledge_pb2.RestoreCollectionRequest(collection_id=name, path=path, replace=replace)
        return convert.job(self._call(self._knowledge.RestoreCollection, request).job)

    def accept_rollback(self, collection: str) -> types.Collection:
        """Take what the disk holds for its newest state, though an older one was put back."""
        request = knowledge_pb2.AcceptRollbackRequest(name=named("collections", collection))
        return convert.collection(self._call(self._knowledge.AcceptRollback, request, WORK_SECONDS).collection)

    def shred_tenant(self, tenant: str) -> tuple[types.ShredProof, ...]:
        """Destroy all collections of the caller's tenant, and its keys; a proof a collection. tenant: its name."""
        request = knowledge_pb2.ShredTenantRequest(tenant=tenant)
        answer = self._call(self._knowledge.ShredTenant, request, WORK_SECONDS)
        return tuple(types.ShredProof(proof.statement, proof.signature) for proof in answer.proofs)

    # --- documents

    def documents(self, collection: str, condition: str = "", *, all_: bool = False) -> Iterator[types.Document]:
        """By title, without their readers. condition: a filter over documents. all_: an administrator's look also at
        what it may not read."""
        request = knowledge_pb2.ListDocumentsRequest(
            parent=named("collections", collection), filter=condition, all=all_
        )
        return map(convert.document, self._pages(self._knowledge.ListDocuments, request, "documents"))

    def document(self, name: str) -> tuple[types.Document, tuple[str, ...]]:
        """A document and its text by page: what citations are ranges of."""
        answer = self._call(self._knowledge.GetDocument, knowledge_pb2.GetDocumentRequest(name=name))
        return convert.document(answer.document), tuple(answer.pages)

    def set_readers(self, name: str, readers: Sequence[str]) -> types.Document:
        """Who may read a document, from the next query on."""
        request = knowledge_pb2.SetDocumentReadersRequest(name=name, readers=readers)
        return convert.document(self._call(self._knowledge.SetDocumentReaders, request).document)

    def delete_document(self, name: str) -> None:
        self._call(self._knowledge.DeleteDocument, knowledge_pb2.DeleteDocumentRequest(name=name))


_EXPAND = {types.Expand.NONE: "UNSPECIFIED", types.Expand.SECTION: "SECTION", types.Expand.PAGE: "PAGE"}
