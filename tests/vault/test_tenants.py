"""Tenants' keys by epoch."""

import os
from pathlib import Path

import pytest

from appliance.errors import KeyUnavailable
from appliance.vault import FileKeyring, FileTenantKeys


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.open(tmp_path / "keys", tmp_path / "knowledge")


@pytest.fixture
def keys(tmp_path: Path, keyring: FileKeyring) -> FileTenantKeys:
    return FileTenantKeys(tmp_path / "keys" / "tenants", keyring)


def path_of(tmp_path: Path, tenant: str, epoch: int) -> Path:
    return tmp_path / "keys" / "tenants" / tenant / str(epoch)


def test_a_tenant_has_no_key_before_its_first(keys: FileTenantKeys) -> None:
    assert keys.epochs("acme") == ()
    assert keys.add("acme") == 1
    assert keys.epochs("acme") == (1,)
    assert keys.epochs("other") == ()


def test_a_key_is_the_same_at_every_start_and_lies_wrapped(
    tmp_path: Path, keyring: FileKeyring, keys: FileTenantKeys
) -> None:
    keys.add("acme")
    key = keys.get("acme", 1)
    assert FileTenantKeys(tmp_path / "keys" / "tenants", keyring).get("acme", 1) == key
    raw = path_of(tmp_path, "acme", 1).read_bytes()
    assert key not in raw
    assert path_of(tmp_path, "acme", 1).stat().st_mode & 0o777 == 0o600


def test_each_epoch_has_a_key_of_its_own_and_the_newest_is_last(keys: FileTenantKeys) -> None:
    assert [keys.add("acme") for _ in range(11)] == list(range(1, 12))
    assert keys.epochs("acme") == tuple(range(1, 12))
    assert len({keys.get("acme", epoch) for epoch in keys.epochs("acme")}) == 11


def test_a_destroyed_key_is_overwritten_before_it_is_unlinked(tmp_path: Path, keys: FileTenantKeys) -> None:
    keys.add("acme")
    keys.add("acme")
    kept = tmp_path / "another name of the same bytes"
    os.link(path_of(tmp_path, "acme", 1), kept)
    keys.destroy("acme", 1)
    assert not any(kept.read_bytes())
    assert keys.epochs("acme") == (2,)
    with pytest.raises(KeyUnavailable, match="acme/1 is missing"):
        keys.get("acme", 1)
    keys.destroy("acme", 1)  # again: nothing to do


def test_a_destruction_that_died_between_overwriting_and_unlinking_is_done(
    tmp_path: Path, keys: FileTenantKeys
) -> None:
    keys.add("acme")
    path = path_of(tmp_path, "acme", 1)
    path.write_bytes(bytes(path.stat().st_size))
    assert keys.epochs("acme") == ()
    assert keys.add("acme") == 1
    assert len(keys.get("acme", 1)) == 32


def test_a_key_of_another_tenant_epoch_or_box_does_not_open(tmp_path: Path, keys: FileTenantKeys) -> None:
    keys.add("acme")
    keys.add("acme")
    keys.add("rival")
    other_box = FileKeyring.open(tmp_path / "other", tmp_path / "knowledge")
    foreign = FileTenantKeys(tmp_path / "foreign", other_box)
    foreign.add("acme")
    target = path_of(tmp_path, "acme", 2)
    for source in (
        path_of(tmp_path, "rival", 1),
        path_of(tmp_path, "acme", 1),
        tmp_path / "foreign" / "acme" / "1",
        tmp_path / "keys" / "signing.key",
    ):
        target.write_bytes(source.read_bytes())
        with pytest.raises(KeyUnavailable, match="acme/2"):
            keys.get("acme", 2)


def test_a_flipped_bit_anywhere_names_the_file(tmp_path: Path, keys: FileTenantKeys) -> None:
    keys.add("acme")
    path = path_of(tmp_path, "acme", 1)
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        with pytest.raises(KeyUnavailable, match=str(path)):
            keys.get("acme", 1)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_open_is_refused(tmp_path: Path, keys: FileTenantKeys, mode: int) -> None:
    keys.add("acme")
    path_of(tmp_path, "acme", 1).chmod(mode)
    with pytest.raises(KeyUnavailable, match="open to other users"):
        keys.get("acme", 1)
