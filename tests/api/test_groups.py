"""Groups over real connections: who is in one reads what names it, from the next call on and no longer than that."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from appliance.access import ca
from appliance.access.apps import AppKeys
from appliance.access.callers import Callers
from appliance.access.groups import MAX_USERS, GroupBook
from appliance.api.access import AccessService
from appliance.api.interceptors import Gate
from appliance.api.knowledge import KnowledgeService
from appliance.client import Client
from appliance.errors import InvalidArgument, NotFound
from appliance.gen.v1 import access_pb2, access_pb2_grpc, knowledge_pb2_grpc
from appliance.types import AppScope, Group, NewDocument, Principal, Role
from appliance.vault.keyring import FileKeyring
from tests.api.http_box import HttpBox
from tests.api.test_mcp import add, connected
from tests.fakes import LibraryRetriever, MemoryLibrary, OneLibrary

ME = ca.local_principal()
UNREACHED = cast(Any, None)


@dataclass
class Served:
    book: GroupBook
    library: MemoryLibrary
    client: Client

    def add(self, title: str, *readers: str) -> str:
        """A document's name."""
        document = NewDocument(title, "text/plain", title, 5, "s", "p", "1", (f"Pay of {title}.",), frozenset(readers))
        return self.library.add("handbook", document).name

    async def titles(self) -> set[str]:
        found = await asyncio.to_thread(self.client.search, "handbook", "Pay")
        return {passage.title for passage in found.passages}


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Served]:
    """One connection for all calls of a test."""
    identity = ca.prepare(tmp_path, "127.0.0.1")
    keyring = FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")
    book, library = GroupBook(tmp_path / "access" / "groups.json", keyring), MemoryLibrary()
    callers, keys = Callers(book), AppKeys(tmp_path / "access" / "apps.json", keyring)
    knowledge = KnowledgeService(
        callers, cast(Any, OneLibrary(library)), LibraryRetriever(library), UNREACHED, UNREACHED, UNREACHED
    )
    server = grpc.aio.server(interceptors=[Gate()])
    access_pb2_grpc.add_AccessServiceServicer_to_server(AccessService(callers, keys), server)
    knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(knowledge, server)
    pair = [(identity.key, identity.certificate)]
    credentials = grpc.ssl_server_credentials(pair, identity.client_authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    library.create("handbook")
    with Client.local(tmp_path, f"127.0.0.1:{port}") as client:
        yield Served(book, library, client)
    await server.stop(0)


async def test_a_group_is_made_shown_listed_changed_and_deleted(box: Served) -> None:
    client = box.client
    assert await asyncio.to_thread(client.set_group, "hr", ["ben", "ann"]) == Group("hr", frozenset({"ann", "ben"}))
    await asyncio.to_thread(client.set_group, "groups/hr", ["eve"])
    assert await asyncio.to_thread(client.group, "hr") == Group("hr", frozenset({"eve"}))
    assert box.book.of("default", "eve") == {"group:hr"}
    await asyncio.to_thread(client.delete_group, "hr")
    for call in (client.group, client.delete_group):
        with pytest.raises(NotFound, match="hr"):
            await asyncio.to_thread(call, "hr")


async def test_a_list_comes_in_pages_that_a_message_can_hold(box: Served) -> None:
    for number in range(12):
        box.book.set("default", f"g{number:02}", [f"user{number}"])
    box.book.set("rival", "secret", ["ann"])
    listed = await asyncio.to_thread(lambda: list(box.client.groups()))
    assert listed == list(box.book.list("default"))
    users = ["u" * 59 + f"{number:05}" for number in range(MAX_USERS)]
    largest = access_pb2.ListGroupsResponse(groups=[access_pb2.Group(name="groups/" + "g" * 64, users=users)] * 5)
    assert largest.ByteSize() < 4 << 20


@pytest.mark.parametrize(
    ("name", "users", "field"),
    [("", ["ann"], r"group\.name"), ("role:admin", ["ann"], r"group\.name"), ("hr", ["a/b"], r"group\.users")],
)
async def test_what_makes_no_sense_is_refused_by_its_field(
    box: Served, name: str, users: list[str], field: str
) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await asyncio.to_thread(box.client.set_group, name, users)
    assert box.book.list("default") == ()


async def test_a_membership_counts_from_the_next_call_on_and_no_longer_than_that(box: Served) -> None:
    document = box.add("pay.md", "group:hr")
    assert await box.titles() == set()
    await asyncio.to_thread(box.client.set_group, "hr", [ME.user])
    assert await box.titles() == {"pay.md"}
    assert (await asyncio.to_thread(box.client.document, document))[0].title == "pay.md"
    await asyncio.to_thread(box.client.set_group, "hr", ["ben"])
    assert await box.titles() == set()
    with pytest.raises(NotFound):
        await asyncio.to_thread(box.client.document, document)


async def test_a_group_of_another_tenant_opens_nothing_and_is_no_reader(box: Served) -> None:
    document = box.add("pay.md", "group:hr", f"user:{ME.user}")
    box.add("board.md", "group:hr")
    box.book.set("rival", "hr", [ME.user])
    assert await box.titles() == {"pay.md"}
    with pytest.raises(InvalidArgument, match="readers: 'group:hr'"):
        await asyncio.to_thread(box.client.set_readers, document, ["group:hr"])


async def test_a_document_can_be_given_only_to_groups_that_there_are(box: Served) -> None:
    document = box.add("pay.md", "everyone")
    with pytest.raises(InvalidArgument, match="readers: 'group:hr' names no group"):
        await asyncio.to_thread(box.client.set_readers, document, ["everyone", "group:hr"])
    await asyncio.to_thread(box.client.set_group, "hr", ["ben"])
    changed = await asyncio.to_thread(box.client.set_readers, document, ["group:hr"])
    assert changed.readers == {"group:hr"}
    assert await box.titles() == set()


async def test_an_app_key_reads_with_the_groups_of_its_user_and_no_longer(served: HttpBox) -> None:
    add(served, "Badges of the board never expire.", "board.md", readers="group:board")
    token = served.keys.create(Principal("default", "crm", Role.APP), [AppScope.KNOWLEDGE])[1]

    async with connected(served, token) as client:

        async def titles() -> list[str]:
            found = await client.call_tool("search", {"query": "Badges", "collection": "handbook"})
            return [passage["title"] for passage in found.structured_content["passages"]]

        served.groups.set("rival", "board", ["crm"])
        assert await titles() == []
        served.groups.set("default", "board", ["crm"])
        assert await titles() == ["board.md"]
        served.groups.set("default", "board", ["ben"])
        assert await titles() == []
