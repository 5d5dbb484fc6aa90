import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.infer.tiers import OVERHEAD_BYTES, DiskTier, Tiers
from appliance.ports import Buffer
from appliance.vault.envelope import AesGcm

KEY = bytes(range(32))
CIPHER = AesGcm(KEY)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def page(number: int, size: int = 1000) -> bytes:
    return bytes([number % 256]) * size


def disk(directory: Path, most_bytes: int = 1 << 20, identity: bytes = b"model") -> DiskTier:
    return DiskTier(directory, CIPHER, identity, most_bytes)


class Warnings:
    """Names of the warnings that were logged so far."""

    def __init__(self, logs: list[MutableMapping[str, Any]]) -> None:
        self._logs = logs

    @property
    def events(self) -> list[str]:
        return [log["event"] for log in self._logs if log["log_level"] == "warning"]


@pytest.fixture
def warnings() -> Iterator[Warnings]:
    with structlog.testing.capture_logs() as logs:
        yield Warnings(logs)


def test_what_is_written_is_read_also_by_the_next_process(tmp_path: Path) -> None:
    disk(tmp_path).write(key(1), page(1))
    again = disk(tmp_path)
    assert key(1) in again
    assert again.read(key(1)) == page(1)
    assert again.read(key(2)) is None


def test_nothing_readable_lies_on_the_disk(tmp_path: Path) -> None:
    disk(tmp_path).write(key(1), b"the badge expires" * 50)
    [file] = tmp_path.iterdir()
    assert b"badge" not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", [0, 8, 12, 30, -1])
def test_a_damaged_file_is_dropped_with_a_warning(tmp_path: Path, place: int, warnings: Warnings) -> None:
    tier = disk(tmp_path)
    tier.write(key(1), page(1))
    [file] = tmp_path.iterdir()
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)
    assert tier.read(key(1)) is None
    assert key(1) not in tier
    assert not list(tmp_path.iterdir())
    assert warnings.events == ["kv_disk.dropped"]


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_file_that_was_cut_or_has_grown_is_dropped(tmp_path: Path, size: int, warnings: Warnings) -> None:
    tier = disk(tmp_path)
    tier.write(key(1), page(1))
    tier.write(key(2), page(2))
    path = tmp_path / f"{key(1).hex()}.page"
    os.truncate(path, size)
    assert tier.read(key(1)) is None
    assert disk(tmp_path).read(key(1)) is None
    with (tmp_path / f"{key(2).hex()}.page").open("ab") as file:
        file.write(b"x")
    assert tier.read(key(2)) is None


def test_a_page_is_not_taken_for_another_ones_or_another_models(tmp_path: Path, warnings: Warnings) -> None:
    tier = disk(tmp_path)
    tier.write(key(1), page(1))
    path = tmp_path / f"{key(1).hex()}.page"
    path.rename(tmp_path / f"{key(2).hex()}.page")
    assert disk(tmp_path).read(key(2)) is None
    tier.write(key(3), page(3))
    assert disk(tmp_path, identity=b"another").read(key(3)) is None
    assert DiskTier(tmp_path, AesGcm(bytes(32)), b"model", 1 << 20).read(key(3)) is None


def test_the_disk_is_bounded_and_what_was_used_last_stays(tmp_path: Path) -> None:
    tier = disk(tmp_path, most_bytes=3 * (1000 + OVERHEAD_BYTES))
    for number in range(3):
        tier.write(key(number), page(number))
    tier.read(key(0))
    tier.write(key(3), page(3))
    assert [number for number in range(4) if key(number) in tier] == [0, 2, 3]
    assert len(list(tmp_path.iterdir())) == 3
    tier.write(key(9), page(9, 5000))
    assert key(9) not in tier
    assert len(tier) == 3


def test_a_smaller_bound_holds_from_the_start_and_leftovers_go(tmp_path: Path) -> None:
    tier = disk(tmp_path)
    for number in range(4):
        tier.write(key(number), page(number))
        os.utime(tmp_path / f"{key(number).hex()}.page", (number, number))
    (tmp_path / f"{key(7).hex()}.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    assert len(disk(tmp_path, most_bytes=2 * (1000 + OVERHEAD_BYTES))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {f"{key(2).hex()}.page", f"{key(3).hex()}.page", "notes.txt"}


def test_a_full_disk_costs_the_page_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Warnings
) -> None:
    tier = disk(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        tier.write(key(1), page(1))
    assert key(1) not in tier
    assert not list(tmp_path.iterdir())
    assert warnings.events == ["kv_disk.not_written"]
    assert Tiers(0, tier).disk_fault == "A file cannot be written: No space left on device."
    tier.write(key(1), page(1))
    assert tier.read(key(1)) == page(1)
    assert Tiers(0, tier).disk_fault == ""


def test_a_directory_that_cannot_be_made_is_only_a_warning(tmp_path: Path, warnings: Warnings) -> None:
    (tmp_path / "file").write_text("")
    tier = disk(tmp_path / "file" / "kv")
    tier.write(key(1), page(1))
    assert tier.read(key(1)) is None
    assert warnings.events == ["kv_disk.unusable", "kv_disk.not_written"]


def test_host_memory_is_bounded_and_what_was_used_last_stays() -> None:
    tiers = Tiers(3000)
    for number in range(3):
        tiers.put(key(number), page(number))
    assert tiers.get(key(0)) == page(0)
    tiers.put(key(3), page(3))
    assert [number for number in range(4) if tiers.holds(key(number))] == [0, 2, 3]
    tiers.put(key(9), page(9, 4000))
    assert tiers.host_pages == 3
    tiers.close()


def test_what_falls_out_of_memory_is_read_from_the_disk_again(tmp_path: Path) -> None:
    tiers = Tiers(2000, disk(tmp_path))
    for number in range(10):
        tiers.put(key(number), page(number))
    assert [tiers.get(key(number)) for number in range(10)] == [page(number) for number in range(10)]
    tiers.close()
    assert (tiers.host_pages, tiers.disk_pages) == (2, 10)


def test_closing_writes_all_that_was_put(tmp_path: Path) -> None:
    tiers = Tiers(0, disk(tmp_path))
    for number in range(20):
        tiers.put(key(number), page(number))
    tiers.close()
    assert len(disk(tmp_path)) == 20


def test_warming_brings_leading_pages_into_memory(tmp_path: Path) -> None:
    first = Tiers(0, disk(tmp_path))
    for number in (0, 1, 3):
        first.put(key(number), page(number))
    first.close()
    tiers = Tiers(100_000, disk(tmp_path))
    tiers.warm(map(key, range(4)))
    assert tiers.host_pages == 2, "what follows a gap is of no use"
    tiers.close()


@settings(max_examples=30, deadline=None)
@given(puts=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 900)), max_size=30))
def test_host_memory_never_holds_more_than_its_bound(puts: list[tuple[int, int]]) -> None:
    tiers = Tiers(2000)
    for number, size in puts:
        tiers.put(key(number), page(number, size))
        assert tiers._host_bytes == sum(map(len, tiers._host.values())) <= 2000
    tiers.close()


def test_what_makes_room_in_a_prefix_that_was_asked_for_is_its_end() -> None:
    tiers = Tiers(3000)
    for number in range(3):
        tiers.put(key(number), page(number))
    tiers.warm(map(key, range(3)))
    tiers.put(key(9), page(9))
    assert [number for number in range(3) if tiers.holds(key(number))] == [0, 1]
    tiers.close()


def test_a_cache_leaves_the_last_of_the_disk_to_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.infer.tiers.LEAST_FREE_BYTES", 1 << 60)
    tier = disk(tmp_path)
    tier.write(key(1), page(1))
    assert key(1) not in tier
    assert "less than" in tier.fault


class Sealing:
    """A cipher that fails to seal now and then."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def seal(self, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes:
        if self.error:
            raise self.error
        return CIPHER.seal(nonce, plaintext, aad)

    def open(self, nonce: bytes, ciphertext: Buffer, aad: bytes) -> bytes:
        return CIPHER.open(nonce, ciphertext, aad)


def test_whatever_fails_in_writing_costs_the_page_and_is_told(tmp_path: Path, warnings: Warnings) -> None:
    cipher = Sealing()
    tier = DiskTier(tmp_path, cipher, b"model", 1 << 20)
    cipher.error = OverflowError("Data or associated data too long")
    first = Tiers(0, tier)
    first.put(key(1), page(1))
    first.close()
    assert first.disk_fault == "A file cannot be written: OverflowError."
    assert warnings.events == ["kv_disk.not_written"]
    cipher.error = None
    tiers = Tiers(0, tier)
    tiers.put(key(2), page(2))
    tiers.close()
    assert (tiers.disk_pages, tiers.disk_fault) == (1, "")


class Guarded(OrderedDict[bytes, int]):
    """Fails where its order is read while others may change it."""

    def __init__(self, tier: DiskTier) -> None:
        super().__init__(tier._sizes)
        self._lock = tier._lock

    def __iter__(self) -> Iterator[bytes]:
        assert self._lock.locked()
        return super().__iter__()

    def popitem(self, last: bool = True) -> tuple[bytes, int]:
        assert self._lock.locked()
        return super().popitem(last)


def test_what_makes_room_on_disk_is_chosen_while_no_reader_changes_the_order(tmp_path: Path) -> None:
    tier = disk(tmp_path, most_bytes=2 * (1000 + OVERHEAD_BYTES))
    tier._sizes = Guarded(tier)
    for number in range(4):
        tier.write(key(number), page(number))
    assert tier.fault == ""
    assert [number for number in range(4) if key(number) in tier] == [2, 3]
    assert len(list(tmp_path.iterdir())) == 2


class Stuck(DiskTier):
    """A disk that writes nothing until it may."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, CIPHER, b"model", 1 << 20)
        self.may = threading.Event()

    def write(self, key: bytes, data: Buffer) -> None:
        self.may.wait()
        super().write(key, data)


@pytest.mark.parametrize("host_bytes", [0, 2000, 5000])
def test_a_slow_disk_makes_memory_hold_no_more_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_bytes: int
) -> None:
    monkeypatch.setattr("appliance.infer.tiers.LEAST_UNWRITTEN_BYTES", 3000)
    slow = Stuck(tmp_path)
    tiers = Tiers(host_bytes, slow)
    for number in (turn // 2 for turn in range(60)):
        tiers.put(key(number), page(number))
        for hot in range(4):
            tiers.get(key(hot))
        held = {**tiers._host, **tiers._leaving}
        assert sum(map(len, held.values())) == tiers._host_bytes + tiers._leaving_bytes <= max(host_bytes, 3000)
        assert tiers._unwritten.keys() <= held.keys()
    slow.may.set()
    tiers.close()
    assert tiers.disk_pages >= max(host_bytes, 3000) // 1000
    assert (tiers._leaving_bytes, len(tiers._leaving), tiers.host_pages) == (0, 0, host_bytes // 1000)


def test_a_link_in_a_pages_place_is_neither_read_nor_written_through(tmp_path: Path, warnings: Warnings) -> None:
    tier, outside = disk(tmp_path / "kv"), tmp_path / "outside"
    tier.write(key(1), page(1))
    path = tmp_path / "kv" / f"{key(1).hex()}.page"
    path.rename(outside)
    path.symlink_to(outside)
    content = outside.read_bytes()
    assert tier.read(key(1)) is None
    assert key(1) not in tier
    (tmp_path / "kv" / f"{key(2).hex()}.part").symlink_to(outside)
    tier.write(key(2), page(2))
    assert key(2) not in tier
    assert outside.read_bytes() == content
    assert warnings.events == ["kv_disk.dropped", "kv_disk.not_written"]
