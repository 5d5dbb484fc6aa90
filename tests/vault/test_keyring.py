"""Root key slot, wrapping, encryption, signing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import KeyUnavailable, StoreDamaged
from appliance.vault import FileKeyring, files
from appliance.vault.envelope import WRAPPED_BYTES, AesGcm


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def unlock(home: Path) -> FileKeyring:
    return FileKeyring.open(home / "vault", home / "knowledge")


def slot(home: Path) -> Path:
    return home / "vault" / "slots" / "file.key"


def with_data(home: Path) -> None:
    (home / "knowledge" / "handbook").mkdir(parents=True)


def test_the_first_start_makes_keys_that_only_their_owner_can_read(home: Path) -> None:
    unlock(home)
    assert {path.name: path.stat().st_mode & 0o777 for path in (home / "vault").rglob("*.key")} == {
        "file.key": 0o600,
        "signing.key": 0o600,
    }
    assert slot(home).parent.stat().st_mode & 0o077 == 0


def test_the_second_start_unlocks_the_same_keys(home: Path) -> None:
    first = unlock(home)
    key = first.new_key()
    wrapped, signature = first.wrap(key, b"here"), first.sign(b"message")
    with_data(home)
    second = unlock(home)
    assert second.unwrap(wrapped, b"here") == key
    second.verify(b"message", signature)


def test_a_missing_slot_beside_data_is_named_and_no_new_key_is_made(home: Path) -> None:
    unlock(home)
    with_data(home)
    slot(home).unlink()
    (home / "vault" / "signing.key").unlink()
    with pytest.raises(KeyUnavailable, match=r"file\.key is missing"):
        unlock(home)
    assert not slot(home).exists()


def test_a_missing_slot_beside_a_signing_key_is_named(home: Path) -> None:
    unlock(home)
    slot(home).unlink()
    with pytest.raises(KeyUnavailable, match=r"file\.key is missing"):
        unlock(home)


def test_a_missing_signing_key_beside_data_is_named(home: Path) -> None:
    unlock(home)
    with_data(home)
    (home / "vault" / "signing.key").unlink()
    with pytest.raises(KeyUnavailable, match=r"signing\.key is missing"):
        unlock(home)


def test_a_start_that_died_between_the_two_keys_is_finished_by_the_next(home: Path) -> None:
    unlock(home)
    (home / "vault" / "signing.key").unlink()
    unlock(home).sign(b"message")


def test_a_key_that_a_dead_writer_left_beside_its_name_is_removed(home: Path) -> None:
    unlock(home)
    left = [slot(home).with_name(".file.key.new"), home / "vault" / ".signing.key.new"]
    os.link(slot(home), left[0])
    left[1].write_bytes(b"half")
    unlock(home).sign(b"message")
    assert not any(path.exists() for path in left)


def test_every_folder_that_is_made_for_a_key_is_made_durable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    unlock(home)
    assert {home, home / "vault", home / "vault" / "slots"} <= set(synced)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_slot_that_others_may_open_is_refused(home: Path, mode: int) -> None:
    unlock(home)
    slot(home).chmod(mode)
    with pytest.raises(KeyUnavailable, match=r"open to other users .* make it 0600"):
        unlock(home)


@pytest.mark.parametrize("at", range(0, 76, 5))
def test_a_slot_with_a_flipped_bit_is_refused(home: Path, at: int) -> None:
    unlock(home)
    raw = bytearray(slot(home).read_bytes())
    raw[at] ^= 4
    slot(home).write_bytes(raw)
    with pytest.raises(KeyUnavailable, match=r"file\.key is damaged"):
        unlock(home)


@pytest.mark.parametrize("size", [0, 7, 40, 75])
def test_a_truncated_slot_is_refused(home: Path, size: int) -> None:
    unlock(home)
    os.truncate(slot(home), size)
    with pytest.raises(KeyUnavailable, match=r"file\.key is damaged"):
        unlock(home)


def test_a_slot_that_is_a_link_or_a_fifo_is_refused(home: Path) -> None:
    unlock(home)
    moved = slot(home).rename(home / "elsewhere")
    slot(home).symlink_to(moved)
    with pytest.raises(KeyUnavailable, match="cannot be opened"):
        unlock(home)
    slot(home).unlink()
    os.mkfifo(slot(home), 0o600)
    with pytest.raises(KeyUnavailable, match="not a regular file"):
        unlock(home)


def test_the_slot_of_another_box_does_not_open_this_one(home: Path, tmp_path: Path) -> None:
    unlock(home)
    unlock(tmp_path / "other")
    slot(home).write_bytes(slot(tmp_path / "other").read_bytes())
    with pytest.raises(KeyUnavailable, match="one is of another box"):
        unlock(home)


def test_no_key_shows_in_a_repr_or_an_error(home: Path) -> None:
    keyring = unlock(home)
    key = keyring.new_key()
    wrapped = keyring.wrap(key, b"here")
    with pytest.raises(StoreDamaged) as caught:
        keyring.unwrap(wrapped, b"there")
    shown = repr(keyring) + repr(keyring.cipher(key)) + repr(caught.value)
    assert key.hex() not in shown
    assert repr(key)[2:-1] not in shown


@given(context=st.binary(max_size=40), other=st.binary(max_size=40), flipped=st.integers(0, WRAPPED_BYTES * 8 - 1))
def test_a_key_unwraps_only_whole_under_its_key_and_for_its_context(context: bytes, other: bytes, flipped: int) -> None:
    keyring = FileKeyring(bytes(32), bytes(32))
    key, under = keyring.new_key(), keyring.new_key()
    wrapped = keyring.wrap(key, context, under=under)
    assert len(wrapped) == WRAPPED_BYTES
    assert keyring.unwrap(wrapped, context, under=under) == key
    damaged = bytearray(wrapped)
    damaged[flipped // 8] ^= 1 << flipped % 8
    attempts: list[Callable[[], object]] = [
        lambda: keyring.unwrap(wrapped, context),
        lambda: keyring.unwrap(bytes(damaged), context, under=under),
        lambda: keyring.unwrap(wrapped[:-1], context, under=under),
        lambda: keyring.unwrap(wrapped, context + b"x" if context == other else other, under=under),
    ]
    for attempt in attempts:
        with pytest.raises(StoreDamaged):
            attempt()


@given(plaintext=st.binary(max_size=200), aad=st.binary(max_size=30), flipped=st.integers(0, 1 << 16))
def test_a_cipher_opens_what_it_sealed_and_nothing_else(plaintext: bytes, aad: bytes, flipped: int) -> None:
    cipher = AesGcm(bytes(range(32)))
    nonce = bytes(12)
    sealed = cipher.seal(nonce, plaintext, aad)
    assert cipher.open(nonce, sealed, aad) == plaintext
    damaged = bytearray(sealed)
    damaged[flipped % len(sealed)] ^= 1
    attempts: list[Callable[[], object]] = [
        lambda: cipher.open(nonce, bytes(damaged), aad),
        lambda: cipher.open(nonce, sealed, aad + b"x"),
        lambda: cipher.open(bytes(11) + b"\1", sealed, aad),
        lambda: cipher.open(nonce, sealed[:10], aad),
    ]
    for attempt in attempts:
        with pytest.raises(StoreDamaged):
            attempt()


def test_a_key_of_the_wrong_length_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AesGcm(b"short")


def test_a_signature_over_other_bytes_or_of_another_box_is_refused() -> None:
    keyring, other = FileKeyring(bytes(32), bytes(32)), FileKeyring(bytes(32), bytes(range(32)))
    signature = keyring.sign(b"message")
    keyring.verify(b"message", signature)
    attempts: list[Callable[[], object]] = [
        lambda: keyring.verify(b"massage", signature),
        lambda: keyring.verify(b"message", signature[:63]),
        lambda: other.verify(b"message", signature),
    ]
    for attempt in attempts:
        with pytest.raises(StoreDamaged):
            attempt()
