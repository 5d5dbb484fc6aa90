"""A log that grows by encrypted records: cut short it loses its end alone, damaged it says so."""

import errno
import os
from pathlib import Path

import pytest

from appliance.errors import DiskFull, StoreDamaged
from appliance.ingest.keys import IngestKeys
from appliance.ingest.sealed_log import HEADER_BYTES, SealedLog
from appliance.vault import FileKeyring, FileTenantKeys

CONTEXT = b"a log\x00clinic"


@pytest.fixture
def keys(tmp_path: Path) -> IngestKeys:
    keyring = FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")
    tenant_keys = FileTenantKeys(tmp_path / "keys" / "tenants", keyring)
    tenant_keys.add("clinic")
    keys = IngestKeys(tmp_path / "ingest", keyring, tenant_keys)
    keys.prepare("clinic")
    return keys


def made(tmp_path: Path, keys: IngestKeys, *records: bytes) -> Path:
    log = SealedLog.create(tmp_path / "log", keys, "clinic", CONTEXT)
    for record in records:
        log.append(record)
    return log.path


def read(path: Path, keys: IngestKeys, context: bytes = CONTEXT) -> list[bytes]:
    return list(SealedLog.open(path, keys, "clinic", context).records())


def test_records_come_back_in_their_order_and_more_may_follow(tmp_path: Path, keys: IngestKeys) -> None:
    path = made(tmp_path, keys, b"one", b"", b"three" * 1000)
    log = SealedLog.open(path, keys, "clinic", CONTEXT)
    assert list(log.records()) == [b"one", b"", b"three" * 1000]
    log.append(b"four")
    assert read(path, keys)[-1] == b"four"
    assert b"three" not in path.read_bytes()


def test_a_log_cut_at_any_byte_keeps_every_record_before(tmp_path: Path, keys: IngestKeys) -> None:
    path = made(tmp_path, keys, b"one", b"two")
    whole = path.read_bytes()
    second = (len(whole) - HEADER_BYTES) // 2 + HEADER_BYTES
    for size in range(HEADER_BYTES, len(whole)):
        for tail in (b"", bytes(len(whole) - size)):  # zeros: the file system had grown the file first
            path.write_bytes(whole[:size] + tail)
            log = SealedLog.open(path, keys, "clinic", CONTEXT)
            left = list(log.records())
            assert left == ([b"one"] if size >= second else []), size
            log.append(b"next")
            assert read(path, keys) == [*left, b"next"]


def test_damage_before_the_last_record_is_named_at_every_byte(tmp_path: Path, keys: IngestKeys) -> None:
    path = made(tmp_path, keys, b"one", b"two")
    whole = path.read_bytes()
    second = (len(whole) - HEADER_BYTES) // 2 + HEADER_BYTES
    for place in range(second):
        if 69 <= place < HEADER_BYTES:
            continue  # zeros that fill up the header say nothing
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StoreDamaged, match=r"log|wrapped|written"):
            read(path, keys)


def test_records_that_change_places_or_logs_do_not_open(tmp_path: Path, keys: IngestKeys) -> None:
    path = made(tmp_path, keys, b"one", b"two", b"six")
    whole = path.read_bytes()
    size = (len(whole) - HEADER_BYTES) // 3
    first, second, third = (whole[HEADER_BYTES + size * n :][:size] for n in range(3))
    for swapped in (second + first + third, first + third + second, second + third, first + third):
        path.write_bytes(whole[:HEADER_BYTES] + swapped)
        with pytest.raises(StoreDamaged):
            read(path, keys)
    path.write_bytes(whole)
    with pytest.raises(StoreDamaged):
        read(path, keys, b"a log\x00rival")


def test_a_full_disk_is_told_and_leaves_nothing_of_the_record(
    tmp_path: Path, keys: IngestKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path, keys, b"one")
    log = SealedLog.open(path, keys, "clinic", CONTEXT)
    assert list(log.records()) == [b"one"]

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(DiskFull, match="log"):
            log.append(b"two")
    log.append(b"three")
    assert read(path, keys) == [b"one", b"three"]
