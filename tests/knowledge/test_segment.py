"""Segments: read by range, and nothing that was moved, cut, changed or borrowed is read at all."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable
from appliance.knowledge.storage.resident import Memory, Resident
from appliance.knowledge.storage.segment import (
    CHUNK_BYTES,
    HEADER_BYTES,
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
    return SegmentFile(directory, layout, segment, CIPHER, Memory.of(1 << 24, cache_bytes))


def renamed(directory: Path, layout: Layout) -> Layout:
    """The layout as it would be if the manifest named the damaged file: only the encryption is left to notice."""
    raw = (directory / layout.file).read_bytes()
    name = hashlib.sha256(raw).hexdigest()
    (directory / layout.file).rename(directory / name)
    return replace(layout, file=name, size_bytes=len(raw))


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

    file = SegmentFile(tmp_path, large, SEGMENT, Watched(bytes(32)), Memory.of(1 << 24, 1 << 24))
    file.read("text", CHUNK_BYTES * 2 - 5, 10)
    assert opened == [1, 2]
    file.read("text", CHUNK_BYTES + 5, 10)
    assert opened == [1, 2]


def test_the_cache_holds_no_more_than_it_may(tmp_path: Path, large: Layout) -> None:
    memory = Memory.of(1 << 20, 2 * CHUNK_BYTES)
    file = SegmentFile(tmp_path, large, SEGMENT, CIPHER, memory)
    whole = file.read("text")
    assert whole == file.read("text")
    assert [memory.chunks.holds((SEGMENT.file_id, number)) for number in range(4)] == [False, False, True, True]
    assert memory.chunks.used_bytes <= 2 * CHUNK_BYTES


def test_a_read_of_a_large_section_pushes_nothing_out_of_the_cache(tmp_path: Path) -> None:
    layout = write_segment(tmp_path, SEGMENT, CIPHER, {"rows": b"rows", "text": bytes(20 * CHUNK_BYTES)})
    memory = Memory.of(1 << 20, 4 * CHUNK_BYTES)
    file = SegmentFile(tmp_path, layout, SEGMENT, CIPHER, memory)
    file.read("rows")
    assert file.read("text") == bytes(20 * CHUNK_BYTES)
    assert memory.chunks.holds((SEGMENT.file_id, 0))
    assert memory.chunks.used_bytes == CHUNK_BYTES


def test_a_segment_is_named_by_its_content_and_tells_nothing_of_it(tmp_path: Path) -> None:
    layout = write_segment(tmp_path, SEGMENT, CIPHER, {"text": b"secret words"})
    raw = (tmp_path / layout.file).read_bytes()
    assert b"secret" not in raw
    assert len(raw) == layout.size_bytes
    assert [path.name for path in tmp_path.iterdir()] == [layout.file]


@pytest.mark.parametrize("at", [0, 5, 30, HEADER_BYTES - 1])
def test_a_flipped_bit_in_the_header_is_found_at_opening_and_names_the_file(
    tmp_path: Path, large: Layout, at: int
) -> None:
    flip(tmp_path / large.file, at)
    with pytest.raises(StoreDamaged, match=large.file):
        open_file(tmp_path, large)


@pytest.mark.parametrize("at", [HEADER_BYTES, HEADER_BYTES + CHUNK_BYTES, HEADER_BYTES + 2 * SEALED_CHUNK, -1])
def test_a_flipped_bit_in_a_chunk_is_found_when_it_is_read_and_names_the_file(
    tmp_path: Path, large: Layout, at: int
) -> None:
    flip(tmp_path / large.file, at)
    file = open_file(tmp_path, large)
    with pytest.raises(StoreDamaged, match=large.file):
        file.read("text") + file.read("rows")
    problems = list(file.check())
    assert len(problems) == 2
    assert problems[0].startswith(f"Chunk {(at % large.size_bytes - HEADER_BYTES) // SEALED_CHUNK} ")


def test_a_whole_segment_has_no_problems(tmp_path: Path, large: Layout) -> None:
    assert list(open_file(tmp_path, large).check()) == []


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
    with pytest.raises(StoreDamaged, match="chunk 0"):
        open_file(tmp_path, large).read("text")
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
def test_a_flipped_bit_in_a_segment_of_a_collection_is_named(shelf: Shelf, at: int) -> None:
    path = sealed_shelf(shelf)
    flip(path, at)
    shelf.reopen()
    with pytest.raises(StoreDamaged, match=str(path)):
        shelf.contents()


def test_a_collection_that_lacks_a_segment_refuses_to_open(shelf: Shelf) -> None:
    path = sealed_shelf(shelf)
    path.unlink()
    with pytest.raises(StoreDamaged, match=str(path)):
        shelf.reopen().documents("handbook", ALL)


def test_rows_are_read_one_by_one_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    row_bytes, rows = 48, 4000
    data = os.urandom(row_bytes * rows)
    layout = write_segment(tmp_path, SEGMENT, CIPHER, {"odd": b"x" * 100, "rows": data})
    file = open_file(tmp_path, layout)
    wanted = np.array([3999, 0, 1363, 1364, 1365, 1366, 0, 2730], np.uint32)
    found = file.rows("rows", row_bytes, wanted)
    assert [row.tobytes() for row in found] == [data[row_bytes * row : row_bytes * (row + 1)] for row in wanted]
    assert file.rows("rows", row_bytes, wanted[:0]).shape == (0, row_bytes)
    with pytest.raises(StoreDamaged, match="outside its own section"):
        file.rows("rows", row_bytes, np.array([rows]))


def test_a_segment_of_version_1_is_read(tmp_path: Path) -> None:
    """As the release wrote it that made chunks of 1 MiB."""
    text = os.urandom((1 << 20) + 1000)
    header = SEGMENT.header(len(text), chunk_bytes=1 << 20, version=1)
    chunks = [text[: 1 << 20], text[1 << 20 :]]
    sealed = [CIPHER.seal(n.to_bytes(12, "big"), c, header + n.to_bytes(4, "big")) for n, c in enumerate(chunks)]
    raw = header + b"".join(sealed)
    layout = Layout(hashlib.sha256(raw).hexdigest(), len(raw), len(text), {"text": (0, len(text))})
    (tmp_path / layout.file).write_bytes(raw)
    file = open_file(tmp_path, layout)
    assert file.version == 1
    assert file.read("text") == text
    assert file.read("text", (1 << 20) - 3, 10) == text[(1 << 20) - 3 : (1 << 20) + 7]
    assert list(file.check()) == []


def test_what_is_hot_is_loaded_once_and_let_go_with_the_file(tmp_path: Path, large: Layout) -> None:
    memory, loads = Memory.of(1 << 20, 1 << 20), []

    def load() -> list[int]:
        loads.append(1)
        return [7]

    file = SegmentFile(tmp_path, large, SEGMENT, CIPHER, memory)
    assert file.hot("numbers", 100, load) is file.hot("numbers", 100, load)
    assert (len(loads), memory.hot.used_bytes) == (1, 100)
    del file
    assert memory.hot.used_bytes == 0


def test_what_was_not_used_for_longest_is_let_go_first_and_loaded_again_when_it_is_needed() -> None:
    resident = Resident(250)
    for name in ("a", "b", "a", "c"):
        resident.get((b"file", name), 100, name.upper)
    assert [resident.holds((b"file", name)) for name in "abc"] == [True, False, True]
    assert resident.get((b"file", "b"), 100, lambda: "again") == "again"
    assert resident.used_bytes == 200


def test_a_value_that_was_let_go_is_gone_for_those_who_know_where_it_was_and_their_use_counts() -> None:
    resident = Resident(250)
    first, second = (resident.keep((b"file", name), 100, name.upper)[1] for name in ("a", "b"))
    first.used = True
    assert resident.keep((b"file", "c"), 100, lambda: "C")[0] == "C"
    assert (first.value, second.value) == ("A", None)
    assert resident.keep((b"file", "a"), 100, lambda: "again") == ("A", first)
    resident.forget(b"file")
    assert first.value is None


def test_a_read_counts_as_use_and_finds_a_chunk_again_that_was_let_go(tmp_path: Path, large: Layout) -> None:
    memory = Memory.of(1 << 20, 2 * CHUNK_BYTES)
    file = SegmentFile(tmp_path, large, SEGMENT, CIPHER, memory)
    at = [file.read("text", number * CHUNK_BYTES, 10) for number in (0, 1)]
    assert file.read("text", 0, 10) == at[0]
    file.read("text", 2 * CHUNK_BYTES, 10)
    assert [memory.chunks.holds((SEGMENT.file_id, number)) for number in range(3)] == [True, False, True]
    assert [file.read("text", number * CHUNK_BYTES, 10) for number in (0, 1)] == at
    assert memory.chunks.used_bytes == 2 * CHUNK_BYTES


def test_a_value_larger_than_the_bound_is_kept_alone() -> None:
    resident = Resident(10)
    resident.get((b"file", 1), 5, lambda: 1)
    resident.get((b"file", 2), 500, lambda: 2)
    assert [resident.holds((b"file", number)) for number in (1, 2)] == [False, True]
    resident.get((b"file", 3), 5, lambda: 3)
    assert resident.used_bytes == 5


def test_of_many_threads_one_loads_and_after_a_failure_the_next_tries(tmp_path: Path) -> None:
    resident, loads, go_on = Resident(1000), [], Event()

    def load() -> int:
        loads.append(1)
        assert go_on.wait(10)
        if len(loads) == 1:
            raise StoreDamaged("once")
        return 5

    def get() -> object:
        try:
            return resident.get((b"file", 0), 8, load)
        except StoreDamaged as error:
            return str(error)

    with ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(get) for _ in range(6)]
        go_on.set()
        found = [item.result() for item in waiting]
    assert sorted(map(str, found)) == ["5"] * 5 + ["once"]
    assert len(loads) == 2


def test_a_file_that_is_collected_while_another_value_is_kept_is_forgotten_without_waiting() -> None:
    resident = Resident(100)

    class Dies:
        def __del__(self) -> None:
            resident.forget(b"second")

    resident.get((b"first", 0), 60, Dies)
    resident.get((b"second", 0), 60, lambda: 2)  # lets the first go, whose end forgets the second
    resident.get((b"third", 0), 10, lambda: 3)
    assert [resident.holds((name, 0)) for name in (b"first", b"second", b"third")] == [False, False, True]
    assert resident.used_bytes == 10


def test_paced_writing_keeps_to_its_rate_and_unpaced_writing_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    now = [100.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("appliance.knowledge.storage.durable.time.sleep", sleep)
    bucket = durable.TokenBucket(1000, clock=lambda: now[0])
    for _ in range(50):
        bucket(200)
    assert now[0] - 100.0 == pytest.approx(50 * 200 / 1000 - 1.0)  # a burst of a second's worth is free
    now[0] += 60
    waits.clear()
    bucket(900)
    assert waits == []


def test_nothing_that_was_decrypted_of_a_segment_outlives_it(tmp_path: Path, large: Layout) -> None:
    memory = Memory.of(1 << 20, 1 << 20)
    file = SegmentFile(tmp_path, large, SEGMENT, CIPHER, memory)
    file.read("rows")
    assert memory.chunks.used_bytes == CHUNK_BYTES
    del file
    assert memory.chunks.used_bytes == 0
    assert not memory.chunks.holds((SEGMENT.file_id, 3))


def test_a_value_that_two_threads_loaded_counts_once() -> None:
    """One waits for a load that fails, another comes just after it: each loads for itself."""
    resident, first_fails, both_load = Resident(100), Event(), Event()
    started: list[str] = []

    def fail() -> int:
        started.append("first")
        assert first_fails.wait(10)
        raise StoreDamaged("once")

    def load() -> int:
        started.append("load")
        if len(started) == 3:
            both_load.set()
        assert both_load.wait(10)
        return 5

    with ThreadPoolExecutor(3) as threads:
        failing = threads.submit(resident.get, (b"file", 0), 60, fail)
        while not resident._loading:
            pass
        waiting = threads.submit(resident.get, (b"file", 0), 60, load)
        first_fails.set()
        assert isinstance(failing.exception(10), StoreDamaged)
        while len(started) < 2:
            pass
        newcomer = threads.submit(resident.get, (b"file", 0), 60, load)
        assert (waiting.result(10), newcomer.result(10)) == (5, 5)
    assert resident.used_bytes == 60
    assert resident._loading == {}
    resident.forget(b"file")
    assert resident.used_bytes == 0


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    resident = Resident(100)
    with pytest.raises(ZeroDivisionError):
        resident.get((b"file", 0), 8, lambda: 1 // 0)
    assert resident._loading == {}
