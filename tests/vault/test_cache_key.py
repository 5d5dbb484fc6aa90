from pathlib import Path

import pytest

from appliance.vault import FileKeyring, cache_key


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.open(tmp_path / "keys", tmp_path / "knowledge")


def test_the_key_is_the_same_at_every_start_and_lies_wrapped(tmp_path: Path, keyring: FileKeyring) -> None:
    path = tmp_path / "cache" / "key"
    key = cache_key.load(path, keyring)
    assert cache_key.load(path, FileKeyring.open(tmp_path / "keys", tmp_path / "knowledge")) == key
    assert key not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_lost_or_damaged_key_is_made_anew(tmp_path: Path, keyring: FileKeyring, damage: bytes | None) -> None:
    path = tmp_path / "cache" / "key"
    first = cache_key.load(path, keyring)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    second = cache_key.load(path, keyring)
    assert second != first
    assert cache_key.load(path, keyring) == second


def test_another_boxs_key_is_replaced(tmp_path: Path, keyring: FileKeyring) -> None:
    path = tmp_path / "cache" / "key"
    first = cache_key.load(path, FileKeyring.open(tmp_path / "other", tmp_path / "knowledge"))
    assert cache_key.load(path, keyring) != first


def test_where_nothing_can_be_kept_there_is_a_key_all_the_same(tmp_path: Path, keyring: FileKeyring) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    assert len(cache_key.load(tmp_path / "cache" / "key", keyring)) == 32


def test_purposes_and_tenants_have_keys_of_their_own() -> None:
    key = bytes(32)
    pairs = [("salt", "one"), ("salt", "two"), ("disk", "one"), ("disk", "")]
    made = {cache_key.derive(key, purpose, name) for purpose, name in pairs}
    assert len(made) == 4
    assert {len(one) for one in made} == {32}
