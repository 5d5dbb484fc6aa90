"""Segments: read by range, and nothing that was moved, cut, changed or borrowed is read at all."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import StoreDamaged
from appliance.knowledge.storage.segment import (
    CHUNK_BYTES,
    HEADER_BYTES,
    ChunkCache,
    Layout,
    SegmentFile,
    SegmentId,
    write_segment,
)
from appliance.vault.envelope import AesGcm
from tests.knowledge.conftest import ALL, Shelf, flip

SEGMENT = SegmentId(b"c" * 16, b"f" * 16)
CIPHER = AesGcm(bytes(32))
SEALED_CHUNK = CHUNK_BYTES + 16


def open_file(directory: Path, layout: Layout, segment: SegmentId = SEGMENT, cache_bytes: int = 1 << 24) -> SegmentFile:
    return SegmentFile(directory, layout, segment, CIPHER, ChunkCache(cache_bytes))


def renamed(directory: Path, layout: Layout) -> Layout:
    """The layout as it would be if the manifest named the damaged file: only the encryption is left to notice."""
    import hashlib

    raw = (directory / layout.file).read_bytes()
    name = hashlib.sha256(raw).hexdigest()
    (directory / layout.file).rename(directory / name)
    return Layout(name, len(raw), layout.plaintext_bytes, layout.sections)


@pytest.fixture
def large(tmp_path: Path) -> Layout:
    """Three and a half chunks."""
    return write_segment(tmp_path, SEGMENT, CIPHER, {"text": os.urandom(CHUNK_BYTES * 7 // 2), "rows": b"rows"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    sections=st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=300), max_size=6),
    sizes=st.lists(st.integers(0, 2 * CHUNK_BYTES + 100), max_size=2),
)
def test_sections_come_back_whole_and_by_range(tmp_path: Path, sections: dict[str, bytes], sizes: list[int]) -> None:
    sections |= {f"large{number}": bytes([number + 1]) * size for number, size in enumerate(sizes)}
    file = open_file(tmp_path, write_segment(tmp_path, SEGMENT, CIPHER, sections))
    for name, data in sections.items():
        assert file.read(name) == data
        assert file.size(name) == len(data)
        middle = len(data) // 2
        assert file.read(name, middle, min(10, len(data) - middle)) == data[middle : middle + 10]
    assert file.read("none") == b""


def test_only_the_chunks_of_a_range_are_decrypted(tmp_path: Path, large: Layout) -> None:
    opened: list[int] = []

    class Watched(AesGcm):
        def open(self, nonce: bytes, ciphertext: bytes | bytearray | memoryview, aad: bytes) -> bytes:
            opened.append(int.from_bytes(nonce, "big"))
            return super().open(nonce, ciphertext, aad)

    file = SegmentFile(tmp_path, large, SEGMENT, Watched(bytes(32)), ChunkCache(1 << 24))
    file.read("text", CHUNK_BYTES * 2 - 5, 10)
    assert opened == [1, 2]
    file.read("text", CHUNK_BYTES + 5, 10)
    assert opened == [1, 2]


def test_the_cache_holds_no_more_than_it_may(tmp_path: Path, large: Layout) -> None:
    cache = ChunkCache(2 * CHUNK_BYTES)
    file = SegmentFile(tmp_path, large, SEGMENT, CIPHER, cache)
    whole = file.read("text")
    assert whole == file.read("text")
    assert [cache.get((SEGMENT.file_id, number)) is not None for number in range(4)] == [False, False, True, True]


def test_a_segment_is_named_by_its_content_and_tells_nothing_of_it(tmp_path: Path) -> None:
    layout = write_segment(tmp_path, SEGMENT, CIPHER, {"text": b"secret words"})
    raw = (tmp_path / layout.file).read_bytes()
    assert b"secret" not in raw
    assert len(raw) == layout.size_bytes
    assert [path.name for path in tmp_path.iterdir()] == [layout.file]


@pytest.mark.parametrize("at", [0, 5, 30, HEADER_BYTES, HEADER_BYTES + CHUNK_BYTES, -1])
def test_a_flipped_bit_is_found_at_opening_and_names_the_file(tmp_path: Path, large: Layout, at: int) -> None:
    flip(tmp_path / large.file, at)
    with pytest.raises(StoreDamaged, match=large.file):
        open_file(tmp_path, large)


def test_a_bit_that_flips_while_the_segment_is_open_is_found_at_reading(tmp_path: Path, large: Layout) -> None:
    file = open_file(tmp_path, large)
    with open(tmp_path / large.file, "r+b") as raw:
        raw.seek(HEADER_BYTES + 2 * SEALED_CHUNK + 9)
        raw.write(b"\0\0\0\0\0\0\0\0")
    file.read("text", 0, 2 * CHUNK_BYTES)
    with pytest.raises(StoreDamaged, match=f"{large.file} is damaged in chunk 2"):
        file.read("text")


def test_swapped_chunks_fail_even_under_the_right_name(tmp_path: Path, large: Layout) -> None:
    raw = (tmp_path / large.file).read_bytes()
    first, second = HEADER_BYTES + SEALED_CHUNK, HEADER_BYTES + 2 * SEALED_CHUNK
    swapped = raw[:HEADER_BYTES] + raw[first:second] + raw[HEADER_BYTES:first] + raw[second:]
    (tmp_path / large.file).write_bytes(swapped)
    with pytest.raises(StoreDamaged, match=large.file):
        open_file(tmp_path, large)
    with pytest.raises(StoreDamaged, match="chunk 0"):
        open_file(tmp_path, renamed(tmp_path, large)).read("text")


@pytest.mark.parametrize("size", [0, 10, HEADER_BYTES, HEADER_BYTES + SEALED_CHUNK, HEADER_BYTES + SEALED_CHUNK * 3])
def test_a_truncated_segment_fails_even_under_the_right_name(tmp_path: Path, large: Layout, size: int) -> None:
    os.truncate(tmp_path / large.file, size)
    with pytest.raises(StoreDamaged, match=large.file):
        open_file(tmp_path, large)
    with pytest.raises(StoreDamaged, match="damaged"):
        open_file(tmp_path, renamed(tmp_path, large)).read("text")


def test_the_segment_of_another_collection_is_not_opened(tmp_path: Path, large: Layout) -> None:
    other = SegmentId(b"d" * 16, SEGMENT.file_id)
    with pytest.raises(StoreDamaged, match="header"):
        open_file(tmp_path, large, other)
    raw = (tmp_path / large.file).read_bytes()
    (tmp_path / large.file).write_bytes(other.header(large.plaintext_bytes) + raw[HEADER_BYTES:])
    with pytest.raises(StoreDamaged, match="chunk 0"):
        open_file(tmp_path, renamed(tmp_path, large), other).read("text")


def test_a_missing_segment_is_named(tmp_path: Path, large: Layout) -> None:
    (tmp_path / large.file).unlink()
    with pytest.raises(StoreDamaged, match=large.file):
        open_file(tmp_path, large)


def test_a_range_outside_its_section_is_refused(tmp_path: Path, large: Layout) -> None:
    file = open_file(tmp_path, large)
    for start, length in ((0, 5), (4, 1), (-1, 2), (2, -1)):
        with pytest.raises(StoreDamaged, match="outside its own section"):
            file.read("rows", start, length)


def test_an_unlinked_segment_is_read_on_by_who_holds_it(tmp_path: Path, large: Layout) -> None:
    file = open_file(tmp_path, large)
    (tmp_path / large.file).unlink()
    assert len(file.read("text")) == CHUNK_BYTES * 7 // 2


def sealed_shelf(shelf: Shelf) -> Path:
    shelf.add("Badges expire after 90 days.")
    shelf.compact()
    shelf.library.close()
    return shelf.file("seg")


@pytest.mark.parametrize("at", [3, 70, -1])
def test_a_collection_with_a_flipped_bit_in_a_segment_refuses_to_open(shelf: Shelf, at: int) -> None:
    path = sealed_shelf(shelf)
    flip(path, at)
    with pytest.raises(StoreDamaged, match=str(path)):
        shelf.reopen().documents("handbook", ALL)


def test_a_collection_that_lacks_a_segment_refuses_to_open(shelf: Shelf) -> None:
    path = sealed_shelf(shelf)
    path.unlink()
    with pytest.raises(StoreDamaged, match=str(path)):
        shelf.reopen().documents("handbook", ALL)
