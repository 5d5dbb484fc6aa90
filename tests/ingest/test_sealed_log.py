"""A log that grows by encrypted records: cut short it loses its end alone, damaged it says so."""

import errno
import os
from itertools import pairwise
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
        zeros = bytes(len(whole) - size)  # the file system had grown the file first
        for tail in (b"", zeros) if len(zeros) >= 16 else (b"",):
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


def test_what_a_power_cut_leaves_of_the_last_record_is_cut_off_whichever_sectors_were_written(
    tmp_path: Path, keys: IngestKeys
) -> None:
    path = made(tmp_path, keys, b"one" * 300, b"two")
    before = path.stat().st_size
    log = SealedLog.open(path, keys, "clinic", CONTEXT)
    kept = list(log.records())
    log.append(os.urandom(1500))
    whole = path.read_bytes()
    borders = sorted({before, *range(-(-before // 512) * 512, len(whole), 512), len(whole)})
    sectors = list(pairwise(borders))
    assert len(sectors) >= 3
    for lost in range(1, 1 << len(sectors)):
        content = bytearray(whole)
        for place, (start, end) in enumerate(sectors):
            if lost >> place & 1:
                content[start:end] = bytes(end - start)
        path.write_bytes(content)
        assert read(path, keys) == kept, f"{lost:b}"


def test_damage_of_the_last_record_is_named_for_it_was_acknowledged(tmp_path: Path, keys: IngestKeys) -> None:
    path = made(tmp_path, keys, b"one", b"two" * 500)
    whole = path.read_bytes()
    for place in range(len(whole) - 1000, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StoreDamaged, match="log"):
            read(path, keys)


def test_a_lost_sector_of_an_acknowledged_record_is_damage(tmp_path: Path, keys: IngestKeys) -> None:
    path = made(tmp_path, keys, os.urandom(1500), b"acknowledged after it")
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES:512] = bytes(512 - HEADER_BYTES)
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="log"):
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
