"""What the service adds to a library: who may do what to which document, and what of it is told to whom."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from appliance.api.knowledge import KnowledgeService
from appliance.errors import InvalidArgument, NotFound
from appliance.gen.v1 import knowledge_pb2 as pb
from appliance.jobs import JobRunner
from appliance.knowledge.embedders import built_in
from appliance.knowledge.upkeep import Upkeep
from appliance.types import Document, Fault, Principal, Role
from tests.knowledge.conftest import Shelf, make_shelf, shelf

__all__ = ["make_shelf", "shelf"]  # fixtures

ADMIN = Principal("default", "ann", Role.ADMIN)
OPERATOR = Principal("default", "ben", Role.OPERATOR)
APP = Principal("default", "crm", Role.APP)
UNREACHED = cast(Any, None)


@dataclass
class Caller:
    """`Callers` of a box on which everybody is the same, and there are no groups."""

    principal: Principal = ADMIN

    @property
    def groups(self) -> "Caller":
        return self

    def by_certificate(self, auth_context: object) -> Principal:
        return self.principal

    def readers(self, tenant: str) -> frozenset[str]:
        return frozenset()


class Context:
    """A call's context, as far as the service looks at it."""

    def auth_context(self) -> object:
        return {}


CONTEXT = cast(Any, Context())


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture
def service(shelf: Shelf, caller: Caller) -> KnowledgeService:
    upkeep = Upkeep(shelf.libraries, built_in(shelf.embedder), JobRunner())
    return KnowledgeService(cast(Any, caller), shelf.libraries, UNREACHED, UNREACHED, upkeep, UNREACHED)


def locked_away(shelf: Shelf) -> Document:
    return shelf.add("Pay of the board.", title="pay.md", readers=frozenset({"user:typo"}))


async def listed(service: KnowledgeService, **more: Any) -> list[str]:
    request = pb.ListDocumentsRequest(parent="collections/handbook", **more)
    return [item.title for item in (await service.ListDocuments(request, CONTEXT)).documents]


async def test_an_administrator_shares_anew_what_was_locked_away_and_reads_it_only_then(
    service: KnowledgeService, shelf: Shelf
) -> None:
    name = locked_away(shelf).name
    assert await listed(service) == []
    assert await listed(service, all=True) == ["pay.md"]
    with pytest.raises(NotFound):
        await service.GetDocument(pb.GetDocumentRequest(name=name), CONTEXT)
    await service.SetDocumentReaders(pb.SetDocumentReadersRequest(name=name, readers=["user:ann"]), CONTEXT)
    answer = await service.GetDocument(pb.GetDocumentRequest(name=name), CONTEXT)
    assert (list(answer.pages), list(answer.document.readers)) == (["Pay of the board."], ["user:ann"])


async def test_an_administrator_deletes_what_was_locked_away(service: KnowledgeService, shelf: Shelf) -> None:
    name = locked_away(shelf).name
    await service.DeleteDocument(pb.DeleteDocumentRequest(name=name), CONTEXT)
    assert await listed(service, all=True) == []


async def test_nobody_else_finds_or_changes_what_it_may_not_read(
    service: KnowledgeService, shelf: Shelf, caller: Caller
) -> None:
    name, caller.principal = locked_away(shelf).name, OPERATOR
    assert await listed(service, all=True) == []
    with pytest.raises(NotFound):
        await service.DeleteDocument(pb.DeleteDocumentRequest(name=name), CONTEXT)
    with pytest.raises(NotFound):
        await service.SetDocumentReaders(pb.SetDocumentReadersRequest(name=name, readers=["everyone"]), CONTEXT)


async def test_who_may_read_a_document_is_told_to_those_who_may_change_it_and_in_no_listing(
    service: KnowledgeService, shelf: Shelf, caller: Caller
) -> None:
    readers = frozenset({"everyone", *(f"user:u{number}" for number in range(10_000 - 1))})
    name = shelf.add("Badges expire.", readers=readers).name
    (found,) = (await service.ListDocuments(pb.ListDocumentsRequest(parent="collections/handbook"), CONTEXT)).documents
    assert not found.readers
    for principal, told in ((ADMIN, 10_000), (OPERATOR, 10_000), (APP, 0)):
        caller.principal = principal
        answer = await service.GetDocument(pb.GetDocumentRequest(name=name), CONTEXT)
        assert len(answer.document.readers) == told


MAKE: dict[str, Callable[[KnowledgeService], Any]] = {
    "create": lambda service: service.CreateCollection(pb.CreateCollectionRequest(collection_id="-docs-"), CONTEXT),
    "import": lambda service: service.ImportCollection(
        pb.ImportCollectionRequest(collection_id="-docs-", path="/a", passphrase="x" * 12), CONTEXT
    ),
    "restore": lambda service: service.RestoreCollection(
        pb.RestoreCollectionRequest(collection_id="-docs-", path="/a"), CONTEXT
    ),
}


@pytest.mark.parametrize("way", MAKE)
async def test_no_collection_is_made_under_a_name_that_no_call_can_use(service: KnowledgeService, way: str) -> None:
    with pytest.raises(InvalidArgument, match="collection_id"):
        await MAKE[way](service)


async def test_faults_are_those_of_the_last_verification_and_go_with_the_collection(
    service: KnowledgeService, shelf: Shelf
) -> None:
    shelf.add("Badges expire.")
    fault = Fault("handbook", "knowledge/default/handbook/seg/1", "is damaged")
    service.upkeep._keep(("default", "handbook"), (fault,))
    assert service.upkeep.faults("default", "handbook") == (fault,)
    service.upkeep.verify("default", "handbook")
    assert service.upkeep.faults("default", "handbook") == ()
    service.upkeep._keep(("default", "handbook"), (fault,))
    shelf.library._forget = service.upkeep.forget
    shelf.library.drop("handbook")
    shelf.library.create("handbook")
    assert service.upkeep.faults("default", "handbook") == ()


async def test_a_tenant_is_shredded_by_those_who_name_it(service: KnowledgeService, shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    for name in ("", "other"):
        with pytest.raises(InvalidArgument, match="tenant"):
            await service.ShredTenant(pb.ShredTenantRequest(tenant=name), CONTEXT)
    assert shelf.contents()
    answer = await service.ShredTenant(pb.ShredTenantRequest(tenant="default"), CONTEXT)
    assert ["handbook" in proof.statement for proof in answer.proofs] == [True]
    assert shelf.library.collections() == ()


async def test_a_collection_that_was_put_back_is_accepted_by_name(service: KnowledgeService, shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    answer = await service.AcceptRollback(pb.AcceptRollbackRequest(name="collections/handbook"), CONTEXT)
    assert (answer.collection.name, answer.collection.document_count) == ("collections/handbook", 1)
    with pytest.raises(NotFound):
        await service.AcceptRollback(pb.AcceptRollbackRequest(name="collections/other"), CONTEXT)
