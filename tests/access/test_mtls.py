"""Who gets through a real TLS server with this box's certificates."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.access import ca, roles
from appliance.types import Principal, Role

URI = x509.UniformResourceIdentifier("spiffe://appliance/tenant/default/user/eve/role/admin")


@dataclass
class Served:
    """A server that answers each call with the caller's name."""

    data_dir: Path
    port: int

    async def who(self, certificate: bytes | None, key: bytes | None, host: str = "localhost") -> str:
        """Call it as the owner of a certificate; AioRpcError where TLS lets nobody in."""
        trusted = (self.data_dir / "access/ca.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(f"{host}:{self.port}", credentials, options) as channel:
            who: Any = channel.unary_unary("/test.Test/Who")
            answer: bytes = await who(b"", timeout=10)
            return answer.decode()


async def _who(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return str(roles.principal(context.auth_context())).encode()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    identity = ca.prepare(tmp_path, "127.0.0.1")
    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(_who)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Who": handler}),))
    pair = [(identity.key, identity.certificate)]
    credentials = grpc.ssl_server_credentials(pair, identity.client_authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield Served(tmp_path, port)
    await server.stop(0)


async def refused(served: Served, certificate: bytes | None, key: bytes | None) -> bool:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.who(certificate, key)
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_the_local_user_gets_in_and_is_known_by_name(served: Served, host: str) -> None:
    local = served.data_dir / "clients/local"
    answer = await served.who((local / "cert.pem").read_bytes(), (local / "key.pem").read_bytes(), host)
    assert answer == str(Principal("default", ca.local_principal().user, Role.ADMIN))


async def test_a_client_without_a_certificate_does_not_get_in(served: Served) -> None:
    assert await refused(served, None, None)


async def test_a_certificate_of_another_authority_with_the_same_name_does_not_get_in(served: Served) -> None:
    now = datetime.now(UTC)
    real = ca.open_authority(served.data_dir / "access", now)
    forged = ca.Authority(real.certificate, ec.generate_private_key(ec.SECP256R1()))
    assert await refused(served, *forged.issue("local", [URI], ExtendedKeyUsageOID.CLIENT_AUTH, now))


async def test_a_server_certificate_is_no_good_as_a_client(served: Served) -> None:
    authority = ca.open_authority(served.data_dir / "access", datetime.now(UTC))
    assert await refused(served, *authority.issue("x", [URI], ExtendedKeyUsageOID.SERVER_AUTH, datetime.now(UTC)))


async def test_an_expired_certificate_does_not_get_in(served: Served) -> None:
    authority = ca.open_authority(served.data_dir / "access", datetime.now(UTC))
    past = datetime.now(UTC) - timedelta(days=31)
    assert await refused(served, *authority.issue("x", [URI], ExtendedKeyUsageOID.CLIENT_AUTH, past))


async def test_a_leaf_cannot_sign_another_leaf(served: Served) -> None:
    now = datetime.now(UTC)
    authority = ca.open_authority(served.data_dir / "access", now)
    certificate, key = authority.issue("x", [URI], ExtendedKeyUsageOID.CLIENT_AUTH, now)
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    leaf = ca.Authority(x509.load_pem_x509_certificate(certificate), private)
    second, second_key = leaf.issue("y", [URI], ExtendedKeyUsageOID.CLIENT_AUTH, now)
    assert await refused(served, second + certificate, second_key)
