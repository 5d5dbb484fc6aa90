import errno
import json
import stat
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.access.apps import DEFAULT_LIFETIME, AppKeys
from appliance.errors import DiskFull, InvalidArgument, KeyRefused, NotFound, StoreDamaged
from appliance.types import AppScope, Principal, Role
from appliance.vault.keyring import FileKeyring

OWNER = Principal("default", "crm", Role.APP)
INFERENCE = [AppScope.INFERENCE]


@dataclass
class Clock:
    now: datetime = field(default_factory=lambda: datetime(2026, 11, 20, 12, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, keyring: FileKeyring, clock: Clock) -> AppKeys:
    return AppKeys(tmp_path / "apps.json", keyring, clock)


def test_a_token_proves_who_its_owner_is_and_what_it_opens(keys: AppKeys, clock: Clock) -> None:
    made, token = keys.create(OWNER, [AppScope.KNOWLEDGE], collections=["handbook"], models=["writer"])
    found = keys.authenticate(token)
    assert (found.tenant, found.user) == (OWNER.tenant, OWNER.user)
    assert found.scopes == {AppScope.KNOWLEDGE}
    assert found.collections == {"handbook"}
    assert found.models == {"writer"}
    assert made.expire_time == clock.now + DEFAULT_LIFETIME


def test_the_secret_is_nowhere_on_disk_and_the_file_is_private(keys: AppKeys, tmp_path: Path) -> None:
    _, token = keys.create(OWNER, INFERENCE)
    secret = token.partition(".")[2]
    assert len(secret) == 43
    assert secret not in (tmp_path / "apps.json").read_text()
    assert stat.S_IMODE((tmp_path / "apps.json").stat().st_mode) == 0o600


def test_keys_their_restrictions_and_revocations_outlive_a_restart(
    keys: AppKeys, tmp_path: Path, keyring: FileKeyring, clock: Clock
) -> None:
    kept, token = keys.create(OWNER, list(AppScope), collections=["a", "b"], models=["m"])
    gone, other = keys.create(OWNER, INFERENCE)
    keys.revoke(gone.id)
    again = AppKeys(tmp_path / "apps.json", keyring, clock)
    assert again.authenticate(token).id == kept.id
    assert {key.id for key in again.list()} == {kept.id, gone.id}
    with pytest.raises(KeyRefused, match="revoked"):
        again.authenticate(other)


@pytest.mark.parametrize("wrong", ["", ".", "x", "nobody.secret", "{id}.", "{id}.wrong", "{id}", "{id}.\udcff"])
def test_a_wrong_token_is_refused_in_words_that_tell_nothing(keys: AppKeys, wrong: str) -> None:
    made, _ = keys.create(OWNER, INFERENCE)
    with pytest.raises(KeyRefused, match="not one of this box") as refused:
        keys.authenticate(wrong.replace("{id}", made.id))
    assert "secret" not in str(refused.value)


def test_a_secret_of_another_key_does_not_fit(keys: AppKeys) -> None:
    first, _ = keys.create(OWNER, INFERENCE)
    _, second = keys.create(OWNER, INFERENCE)
    with pytest.raises(KeyRefused):
        keys.authenticate(f"{first.id}.{second.partition('.')[2]}")


def test_an_expired_key_is_refused_from_its_second_on(keys: AppKeys, clock: Clock) -> None:
    _, token = keys.create(OWNER, INFERENCE, lifetime=timedelta(days=1))
    clock.now += timedelta(days=1) - timedelta(seconds=1)
    keys.authenticate(token)
    clock.now += timedelta(seconds=1)
    with pytest.raises(KeyRefused, match="expired on 2026-11-21"):
        keys.authenticate(token)


def test_a_revoked_key_is_refused_at_once_and_stays_listed(keys: AppKeys, clock: Clock) -> None:
    made, token = keys.create(OWNER, INFERENCE)
    revoked = keys.revoke(made.id)
    assert revoked.revoke_time == clock.now
    clock.now += timedelta(hours=2)
    assert keys.revoke(made.id) == revoked
    assert keys.list() == (revoked,)
    with pytest.raises(KeyRefused, match="revoked"):
        keys.authenticate(token)


def test_a_key_that_is_not_there_cannot_be_revoked(keys: AppKeys) -> None:
    with pytest.raises(NotFound, match="abc"):
        keys.revoke("abc")


def test_the_time_of_last_use_is_coarse_and_saved_when_asked(
    keys: AppKeys, tmp_path: Path, keyring: FileKeyring, clock: Clock
) -> None:
    _, token = keys.create(OWNER, INFERENCE)
    first = clock.now
    keys.authenticate(token)
    clock.now += timedelta(minutes=59)
    assert keys.authenticate(token).last_use_time == first
    clock.now += timedelta(minutes=1)
    assert keys.authenticate(token).last_use_time == clock.now
    assert AppKeys(tmp_path / "apps.json", keyring, clock).list()[0].last_use_time is None
    keys.save()
    assert AppKeys(tmp_path / "apps.json", keyring, clock).list()[0].last_use_time == clock.now


@pytest.mark.parametrize(
    ("owner", "scopes", "days", "field"),
    [
        (OWNER, [], 1, "scopes"),
        (OWNER, INFERENCE, 0, "lifetime"),
        (OWNER, INFERENCE, 367, "lifetime"),
        (OWNER, INFERENCE, -1, "lifetime"),
        (Principal("default", "", Role.APP), INFERENCE, 1, "user"),
        (Principal("default", "a b", Role.APP), INFERENCE, 1, "user"),
        (Principal("De/fault", "crm", Role.APP), INFERENCE, 1, "tenant"),
    ],
)
def test_what_makes_no_sense_makes_no_key(
    keys: AppKeys, owner: Principal, scopes: list[AppScope], days: int, field: str
) -> None:
    with pytest.raises(InvalidArgument, match=field):
        keys.create(owner, scopes, lifetime=timedelta(days=days))
    assert keys.list() == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"hash_key": "AA==", "keys": [{}]}', b'{"keys": 1}', b"\xff"])
def test_a_damaged_file_is_named_and_not_replaced(tmp_path: Path, keyring: FileKeyring, content: bytes) -> None:
    path = tmp_path / "apps.json"
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"apps\.json"):
        AppKeys(path, keyring)
    assert path.read_bytes() == content


def test_a_hash_key_that_is_not_of_this_box_is_refused(keys: AppKeys, tmp_path: Path, keyring: FileKeyring) -> None:
    path = tmp_path / "apps.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"hash_key": content["hash_key"][::-1].replace("=", "A")}))
    with pytest.raises(StoreDamaged):
        AppKeys(path, keyring)


def test_a_key_that_could_not_be_written_is_no_key(keys: AppKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("appliance.access.signed.write_private", full)
    with pytest.raises(DiskFull, match="No space left"):
        keys.create(OWNER, INFERENCE)
    assert keys.list() == ()


def test_a_revocation_that_finds_no_room_holds_and_is_written_later(
    keys: AppKeys, tmp_path: Path, keyring: FileKeyring, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made, token = keys.create(OWNER, INFERENCE)
    with monkeypatch.context() as patch:
        patch.setattr("appliance.access.ca.os.fsync", full)
        with pytest.raises(DiskFull):
            keys.revoke(made.id)
        with pytest.raises(DiskFull):
            keys.revoke(made.id)
    with pytest.raises(KeyRefused, match="revoked"):
        keys.authenticate(token)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["apps.json"]
    keys.save()
    with pytest.raises(KeyRefused, match="revoked"):
        AppKeys(tmp_path / "apps.json", keyring, clock).authenticate(token)


def test_a_call_does_not_wait_for_the_disk(keys: AppKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    _, token = keys.create(OWNER, INFERENCE)
    keys.authenticate(token)
    writing, go = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        writing.set()
        assert go.wait(20)

    monkeypatch.setattr("appliance.access.signed.write_private", slow)
    saver = threading.Thread(target=keys.save)
    saver.start()
    assert writing.wait(20)
    assert keys.authenticate(token).user == OWNER.user
    assert saver.is_alive()
    go.set()
    saver.join()


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "victim"},
        {"scopes": ["knowledge"]},
        {"revoke_time": None},
        {"expire_time": "2099-01-01T00:00:00+00:00"},
    ],
)
def test_a_key_that_was_edited_on_disk_opens_nothing(
    keys: AppKeys, tmp_path: Path, keyring: FileKeyring, change: dict[str, Any]
) -> None:
    keys.revoke(keys.create(OWNER, INFERENCE)[0].id)
    path = tmp_path / "apps.json"
    content = json.loads(path.read_text())
    content["keys"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(StoreDamaged, match=r"apps\.json"):
        AppKeys(path, keyring)
