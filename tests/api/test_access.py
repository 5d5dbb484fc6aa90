"""AccessService over a real TLS connection: the client makes, lists and revokes app keys."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from appliance.access import ca
from appliance.access.apps import AppKeys
from appliance.access.callers import Callers
from appliance.access.groups import GroupBook
from appliance.api.access import AccessService
from appliance.api.interceptors import Gate
from appliance.client import Client
from appliance.errors import InvalidArgument, KeyRefused, NotFound
from appliance.gen.v1 import access_pb2_grpc
from appliance.types import AppScope
from appliance.vault.keyring import FileKeyring


@dataclass
class Served:
    keys: AppKeys
    client: Client


@pytest.fixture
async def access(tmp_path: Path) -> AsyncIterator[Served]:
    identity = ca.prepare(tmp_path, "127.0.0.1")
    keyring = FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")
    keys = AppKeys(tmp_path / "access" / "apps.json", keyring)
    server = grpc.aio.server(interceptors=[Gate()])
    callers = Callers(GroupBook(tmp_path / "access" / "groups.json", keyring))
    access_pb2_grpc.add_AccessServiceServicer_to_server(AccessService(callers, keys), server)
    pair = [(identity.key, identity.certificate)]
    credentials = grpc.ssl_server_credentials(pair, identity.client_authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    with Client.local(tmp_path, f"127.0.0.1:{port}") as client:
        yield Served(keys, client)
    await server.stop(0)


async def test_a_key_is_made_listed_and_revoked(access: Served) -> None:
    client = access.client
    key, token = await asyncio.to_thread(
        client.create_app_key, "crm", [AppScope.KNOWLEDGE], ["handbook"], ["writer"], "", timedelta(days=30)
    )
    assert (key.tenant, key.user) == ("default", "crm")
    assert (key.collections, key.models) == (frozenset({"handbook"}), frozenset({"writer"}))
    assert timedelta(days=29) < key.expire_time - datetime.now(UTC) <= timedelta(days=30)
    assert access.keys.authenticate(token).id == key.id
    revoked = await asyncio.to_thread(client.revoke_app_key, key.id)
    assert revoked.revoke_time is not None
    assert await asyncio.to_thread(lambda: list(client.app_keys())) == list(access.keys.list())
    with pytest.raises(KeyRefused):
        access.keys.authenticate(token)


async def test_a_key_may_be_another_tenants_and_lasts_90_days_by_default(access: Served) -> None:
    key, _ = await asyncio.to_thread(access.client.create_app_key, "crm", [AppScope.INFERENCE], (), (), "lab-7")
    assert key.tenant == "lab-7"
    assert key.expire_time - key.create_time == timedelta(days=90)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"user": "crm", "scopes": []}, "scopes"),
        ({"user": "", "scopes": [AppScope.METRICS]}, "user"),
        ({"user": "crm", "scopes": [AppScope.METRICS], "collections": ["../x"]}, r"collections\[0\]"),
        ({"user": "crm", "scopes": [AppScope.METRICS], "models": ["a b"]}, r"models\[0\]"),
        ({"user": "crm", "scopes": [AppScope.METRICS], "lifetime": timedelta(days=1000)}, "lifetime"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_field(
    access: Served, given: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await asyncio.to_thread(access.client.create_app_key, **given)  # type: ignore[arg-type]
    assert access.keys.list() == ()


async def test_a_key_that_is_not_there_cannot_be_revoked(access: Served) -> None:
    with pytest.raises(NotFound):
        await asyncio.to_thread(access.client.revoke_app_key, "abc")
    with pytest.raises(InvalidArgument, match="appKeys"):
        await asyncio.to_thread(access.client.revoke_app_key, "../abc")
