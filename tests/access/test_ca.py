import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.access import ca
from appliance.errors import KeyUnavailable

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DAY = timedelta(days=1)


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(certificate: x509.Certificate) -> list[str]:
    return [
        str(name.value) for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ]


def everything(data_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data_dir)): path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}


def test_the_first_start_makes_an_authority_a_server_and_the_local_user(tmp_path: Path) -> None:
    identity = ca.prepare(tmp_path, "127.0.0.1", NOW)
    assert sorted(everything(tmp_path)) == [
        "access/ca.key",
        "access/ca.pem",
        "access/server.key",
        "access/server.pem",
        "clients/local/ca.pem",
        "clients/local/cert.pem",
        "clients/local/key.pem",
    ]
    assert identity.certificate == (tmp_path / "access/server.pem").read_bytes()
    assert identity.client_authority == (tmp_path / "clients/local/ca.pem").read_bytes()
    assert b"KEY" not in repr(identity).encode()


def test_keys_and_their_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    for path in (tmp_path / "access", tmp_path / "clients/local"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for key in ("access/ca.key", "access/server.key", "clients/local/key.pem"):
        assert stat.S_IMODE((tmp_path / key).stat().st_mode) == 0o600


def test_certificates_say_what_they_are_for(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "192.0.2.7", NOW)
    authority, server = load(tmp_path / "access/ca.pem"), load(tmp_path / "access/server.pem")
    client = load(tmp_path / "clients/local/cert.pem")
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert authority.not_valid_after_utc - NOW == 3650 * DAY
    for leaf, usage in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (client, ExtendedKeyUsageOID.CLIENT_AUTH)):
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert leaf.not_valid_after_utc - NOW == 30 * DAY
        leaf.verify_directly_issued_by(authority)
    assert {"localhost", "127.0.0.1", "::1", "192.0.2.7"} <= set(names(server))
    user = ca.local_principal().user
    assert names(client) == [f"spiffe://appliance/tenant/default/user/{user}/role/admin"]


def test_listening_on_every_address_adds_no_name(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "0.0.0.0", NOW)
    assert "0.0.0.0" not in names(load(tmp_path / "access/server.pem"))


def test_a_restart_within_two_thirds_changes_nothing(tmp_path: Path) -> None:
    first = ca.prepare(tmp_path, "127.0.0.1", NOW)
    before = everything(tmp_path)
    assert ca.prepare(tmp_path, "127.0.0.1", NOW + 19 * DAY) == first
    assert everything(tmp_path) == before


def test_leaves_are_renewed_after_two_thirds_and_the_authority_stays(tmp_path: Path) -> None:
    first = ca.prepare(tmp_path, "127.0.0.1", NOW)
    before = everything(tmp_path)
    second = ca.prepare(tmp_path, "127.0.0.1", NOW + 20 * DAY)
    changed = {name for name, content in everything(tmp_path).items() if content != before[name]}
    assert changed == {"access/server.pem", "access/server.key", "clients/local/cert.pem", "clients/local/key.pem"}
    assert second.client_authority == first.client_authority
    assert load(tmp_path / "clients/local/cert.pem").not_valid_after_utc == NOW + 50 * DAY


def test_a_certificate_from_a_clock_that_ran_ahead_is_replaced(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW + 365 * DAY)
    for name in ("ca.pem", "ca.key"):
        (tmp_path / "access" / name).unlink()
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    assert load(tmp_path / "access/server.pem").not_valid_before_utc <= NOW


def test_another_host_name_gets_another_server_certificate(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    ca.prepare(tmp_path, "box.example", NOW)
    assert "box.example" in names(load(tmp_path / "access/server.pem"))


@pytest.mark.parametrize("name", ["access/server.pem", "access/server.key", "clients/local/cert.pem"])
def test_a_damaged_leaf_is_issued_anew(tmp_path: Path, name: str) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    (tmp_path / name).write_bytes(b"damaged")
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    assert (tmp_path / name).read_bytes().startswith(b"-----BEGIN")


def test_leaves_of_another_authority_are_replaced(tmp_path: Path) -> None:
    ca.prepare(tmp_path / "other", "127.0.0.1", NOW)
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    for name in ("server.pem", "server.key"):
        (tmp_path / "access" / name).write_bytes((tmp_path / "other/access" / name).read_bytes())
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    load(tmp_path / "access/server.pem").verify_directly_issued_by(load(tmp_path / "access/ca.pem"))


@pytest.mark.parametrize(("name", "content"), [("ca.key", None), ("ca.key", b"x"), ("ca.pem", None), ("ca.pem", b"x")])
def test_half_an_authority_is_not_replaced_in_silence(tmp_path: Path, name: str, content: bytes | None) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    path = tmp_path / "access" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(KeyUnavailable, match=r"ca\.(pem|key)"):
        ca.prepare(tmp_path, "127.0.0.1", NOW)


def test_a_key_of_another_authority_is_found(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    ca.prepare(tmp_path / "other", "127.0.0.1", NOW)
    (tmp_path / "access/ca.key").write_bytes((tmp_path / "other/access/ca.key").read_bytes())
    with pytest.raises(KeyUnavailable, match="does not fit together"):
        ca.prepare(tmp_path, "127.0.0.1", NOW)


def test_a_login_that_no_uri_can_hold_is_made_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "CORP\\jörg k")
    assert ca.local_principal().user == "CORP-j-rg-k"

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert ca.local_principal().user.startswith("uid-")


def test_renewals_at_the_same_time_leave_keys_that_fit(tmp_path: Path) -> None:
    ca.prepare(tmp_path, "127.0.0.1", NOW)
    later = NOW + 25 * DAY
    with ThreadPoolExecutor(8) as threads:
        identities = list(threads.map(lambda _: ca.prepare(tmp_path, "127.0.0.1", later), range(16)))
    assert len(set(identities)) == 1
    key = serialization.load_pem_private_key(identities[0].key, None)
    assert x509.load_pem_x509_certificate(identities[0].certificate).public_key() == key.public_key()
