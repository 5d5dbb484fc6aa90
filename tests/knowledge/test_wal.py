"""The log: what comes back, what is cut, what is damage."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import StoreDamaged
from appliance.knowledge.storage.wal import HEADER_BYTES, SECTOR_BYTES, WalId, WalReader, WalWriter
from appliance.vault.envelope import AesGcm
from tests.knowledge.conftest import Shelf, flip

WAL = WalId(b"c" * 16, b"f" * 16)
CIPHER = AesGcm(bytes(32))
PAYLOADS = [b"first", b"second" * 40, b"", b"fourth" * 700]


def write(directory: Path, payloads: list[bytes], wal: WalId = WAL) -> tuple[Path, list[int]]:
    """The file, and where each record ends."""
    writer = WalWriter(directory, wal, CIPHER, first_seq=7)
    ends = [HEADER_BYTES]
    for payload in payloads:
        writer.append(payload)
        ends.append(writer.end_bytes)
    writer.close()
    return writer.path, ends


def read(directory: Path, end_bytes: int | None = None, wal: WalId = WAL, first_seq: int = 7) -> list[bytes]:
    return list(WalReader(directory, wal, CIPHER, first_seq).records(end_bytes))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(payloads=st.lists(st.binary(max_size=2000), max_size=6))
def test_what_was_appended_comes_back_in_order(tmp_path: Path, payloads: list[bytes]) -> None:
    write(tmp_path, payloads)
    assert read(tmp_path) == payloads


def test_no_payload_is_readable_in_the_file(tmp_path: Path) -> None:
    path, _ = write(tmp_path, PAYLOADS)
    assert b"second" not in path.read_bytes()


def test_a_file_cut_at_any_byte_gives_back_every_record_before_the_cut(tmp_path: Path) -> None:
    path, ends = write(tmp_path, [b"first", b"second", b"third"])
    raw = path.read_bytes()
    for size in range(HEADER_BYTES, len(raw)):
        path.write_bytes(raw[:size])
        reader = WalReader(tmp_path, WAL, CIPHER, 7)
        whole = sum(end <= size for end in ends) - 1
        assert list(reader.records(None)) == [b"first", b"second", b"third"][:whole]
        assert (reader.end_bytes, reader.next_seq) == (ends[whole], 7 + whole)
        assert reader.cut_bytes == size - ends[whole]


def test_a_flipped_bit_anywhere_is_damage_and_names_the_file(tmp_path: Path) -> None:
    path, _ = write(tmp_path, [b"first", b"second", b"third"])
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        with pytest.raises(StoreDamaged, match=path.name):
            read(tmp_path)


@pytest.mark.parametrize("sector", [2, 3, 7])
def test_a_last_record_that_lacks_a_sector_is_a_torn_write(tmp_path: Path, sector: int) -> None:
    path, _ = write(tmp_path, [b"first", b"x" * 5000])
    raw = bytearray(path.read_bytes())
    raw[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = bytes(SECTOR_BYTES)
    path.write_bytes(raw)
    assert read(tmp_path) == [b"first"]


def test_a_grown_file_whose_record_never_came_is_a_torn_write(tmp_path: Path) -> None:
    path, ends = write(tmp_path, [b"first", b"x" * 5000])
    raw = path.read_bytes()
    path.write_bytes(raw[: ends[1]] + bytes(len(raw) - ends[1]))
    assert read(tmp_path) == [b"first"]


def test_a_missing_head_before_the_rest_of_a_torn_record_is_a_torn_write(tmp_path: Path) -> None:
    path, ends = write(tmp_path, [b"x" * 900, b"y" * 5000])
    raw = bytearray(path.read_bytes())
    raw[ends[1] : 2048] = bytes(2048 - ends[1])
    path.write_bytes(raw)
    assert read(tmp_path) == [b"x" * 900]


def test_a_missing_sector_before_a_later_record_is_damage(tmp_path: Path) -> None:
    path, _ = write(tmp_path, [b"first", b"x" * 5000, b"third"])
    raw = bytearray(path.read_bytes())
    for start in (SECTOR_BYTES * 3, 0):
        copy = bytearray(raw)
        at = start or HEADER_BYTES + 48
        copy[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)
        path.write_bytes(copy)
        with pytest.raises(StoreDamaged, match=path.name):
            read(tmp_path)


def test_a_closed_log_that_is_shorter_than_its_manifest_says_is_damage(tmp_path: Path) -> None:
    path, ends = write(tmp_path, [b"first", b"second"])
    assert read(tmp_path, ends[-1]) == [b"first", b"second"]
    path.write_bytes(path.read_bytes()[: ends[1]])
    with pytest.raises(StoreDamaged, match=path.name):
        read(tmp_path, ends[-1])


def test_what_lies_behind_the_end_of_a_closed_log_is_not_read(tmp_path: Path) -> None:
    _, ends = write(tmp_path, [b"first", b"second"])
    assert read(tmp_path, ends[1]) == [b"first"]


def test_records_swapped_removed_or_repeated_are_damage(tmp_path: Path) -> None:
    path, ends = write(tmp_path, [b"aa", b"bb", b"cc"])
    raw = path.read_bytes()
    header, a, b, c = raw[:HEADER_BYTES], *(raw[s:e] for s, e in pairwise(ends))
    for order in ([b, a, c], [a, c], [b, c], [a, a, b, c], [a, b, c, c], [c]):
        path.write_bytes(header + b"".join(order))
        with pytest.raises(StoreDamaged, match=path.name):
            read(tmp_path)


def test_the_log_of_another_collection_or_under_another_name_is_damage(tmp_path: Path) -> None:
    path, _ = write(tmp_path, PAYLOADS)
    other = WalId(b"d" * 16, WAL.file_id)
    with pytest.raises(StoreDamaged, match="header"):
        read(tmp_path, wal=other)
    renamed = WalId(WAL.collection, b"g" * 16)
    path.rename(tmp_path / renamed.name)
    with pytest.raises(StoreDamaged, match="header"):
        read(tmp_path, wal=renamed)


def test_records_do_not_open_in_a_log_with_a_forged_header(tmp_path: Path) -> None:
    path, _ = write(tmp_path, PAYLOADS)
    other = WalId(b"d" * 16, WAL.file_id)
    path.write_bytes(other.header + path.read_bytes()[HEADER_BYTES:])
    with pytest.raises(StoreDamaged, match=path.name):
        read(tmp_path, wal=other)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match=WAL.name):
        read(tmp_path)


@pytest.mark.parametrize("record", [0, 1, 2])
def test_a_collection_with_a_flipped_bit_in_its_log_refuses_to_open(shelf: Shelf, record: int) -> None:
    for number in range(3):
        shelf.add(f"Badge {number} expires.")
    shelf.library.close()
    size = shelf.file("wal").stat().st_size
    flip(shelf.file("wal"), HEADER_BYTES + (size - HEADER_BYTES) // 3 * record + 100)
    with pytest.raises(StoreDamaged, match=str(shelf.file("wal"))):
        shelf.reopen().documents("handbook", frozenset())


def test_a_collection_cuts_a_torn_record_and_goes_on_in_a_new_log(shelf: Shelf) -> None:
    kept = shelf.add("Badge one expires.")
    shelf.add("Badge two expires.")
    torn = shelf.file("wal")
    torn.write_bytes(torn.read_bytes()[:-5])
    shelf.reopen(close=False)
    assert shelf.contents() == {kept.id: ("Badge one expires.",)}
    new = shelf.add("Badge three expires.")
    assert len(list((shelf.files / "wal").iterdir())) == 2
    shelf.reopen()
    assert shelf.contents() == {kept.id: ("Badge one expires.",), new.id: ("Badge three expires.",)}
    torn.write_bytes(torn.read_bytes()[: HEADER_BYTES + 20])
    with pytest.raises(StoreDamaged, match=torn.name):
        shelf.reopen().documents("handbook", frozenset())
