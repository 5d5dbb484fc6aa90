"""Verification: every byte of a collection, with nothing raised for damage and all of it named."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import Cancelled, KeyUnavailable, NotFound, StoreDamaged
from appliance.knowledge import soundness
from appliance.knowledge.sealed import PASSAGE, Sealed
from appliance.knowledge.storage.manifest import SegmentEntry
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.segment import SegmentFile, SegmentId, write_segment
from appliance.types import Fault
from appliance.vault.envelope import AesGcm
from tests.knowledge.conftest import Shelf, flip

PAGES = ("Badges expire after 90 days. Größe zählt.", "", "На третьей странице 日本語 too.")


@pytest.fixture
def full(make_shelf: Callable[..., Shelf]) -> Shelf:
    """Two segments, a deletion, a log with a document."""
    shelf = make_shelf()
    for title in ("one", "two"):
        shelf.add(*PAGES, title=title)
        shelf.add("Doors close.", title=f"{title} more")
        shelf.library.seal_where_old(0)
    shelf.delete(next(document for document in [shelf.add("Gone.")]))
    shelf.add("Keys do not.")
    return shelf


def faults(shelf: Shelf) -> tuple[Fault, ...]:
    return shelf.library.verify("handbook")


def test_a_sound_collection_has_no_faults_open_closed_and_compacted(full: Shelf) -> None:
    assert faults(full) == ()
    full.reopen()
    assert faults(full) == ()
    full.contents()
    full.compact()
    assert faults(full) == ()
    full.library.rotate()
    assert faults(full) == ()


def test_progress_is_told_by_file_and_may_end_it(full: Shelf) -> None:
    seen: list[tuple[int, int]] = []

    class Told:
        def update(self, done: int, total: int = 0, note: str = "") -> None:
            seen.append((done, total))
            if len(seen) == 8:
                raise Cancelled("Enough.")

    assert full.library.verify("handbook", Told()) == ()
    assert seen == [(done, 6) for done in range(1, 7)]
    with pytest.raises(Cancelled):
        full.library.verify("handbook", Told())


def test_an_unknown_collection_is_not_found(full: Shelf) -> None:
    with pytest.raises(NotFound):
        full.library.verify("none")


FLIP_SLICES = 4


@pytest.mark.long
@pytest.mark.parametrize("nth", range(FLIP_SLICES))
def test_a_flip_in_each_byte_of_each_file_is_named(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """One bit of it, of all that a small collection is on disk, with its mark and its keys: by verification or, of the
    box's own keys, by opening them.
    """
    shelf = make_shelf()
    document = shelf.add(*PAGES, title="one")
    shelf.add("Doors close.")
    shelf.compact()
    shelf.delete(document)
    shelf.reopen()  # another log
    shelf.add("Keys do not.")
    shelf.reopen()
    # of a segment of which every byte is what was written it says the same each time
    monkeypatch.setattr("appliance.knowledge.storage.verify.problems", remembered(soundness.problems))
    assert faults(shelf) == ()
    data = [path for path in shelf.root.rglob("*") if path.is_file()]
    assert {path.parent.name for path in data} >= {"handbook", "mf", "seg", "wal", "marks", "slots", "vault"}
    for path in data:
        raw, is_key = path.read_bytes(), "vault" in path.parts and path.parent.name != "marks"
        for at in range(nth, len(raw), FLIP_SLICES):
            path.write_bytes(flipped(raw, at))
            try:
                if is_key:
                    shelf.reopen()
                told = [f"{fault.file} {fault.problem}" for fault in faults(shelf)]
            except KeyUnavailable as error:
                told = [str(error)]
            assert any(names(one, path) for one in told), f"{path} {at}: {told}"
        path.write_bytes(raw)
    shelf.reopen()
    assert faults(shelf) == ()


@pytest.mark.long
def test_of_some_200_flipped_bits_each_is_named_and_a_reader_is_refused_or_told_the_truth(
    full: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every file, at equal distances."""
    wanted = full.contents()
    found = full.search("badges expire days")
    full.library.close()
    monkeypatch.setattr("appliance.knowledge.storage.verify.problems", remembered(soundness.problems))
    data = [path for path in full.root.rglob("*") if path.is_file()]
    step = 1 + sum(path.stat().st_size for path in data) // 150
    for path in data:
        raw = path.read_bytes()
        for at in range(0, len(raw), min(step, 1 + len(raw) // 10)):
            path.write_bytes(flipped(raw, at))
            try:
                full.reopen(close=False)
                assert any(names(f"{fault.file} {fault.problem}", path) for fault in faults(full)), f"{path} {at}"
                assert full.contents() == wanted, f"{path} {at}"
                assert full.search("badges expire days") == found, f"{path} {at}"
            except (StoreDamaged, KeyUnavailable) as error:
                assert names(str(error), path), f"{path} {at}"  # noqa: PT017
            finally:
                full.library.close()
                path.write_bytes(raw)


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :]


def names(told: str, path: Path) -> bool:
    """Whether it names that file, with its folder: a file may be called `1`."""
    return "/".join(path.parts[-2:]) in told


Problems = Callable[[SegmentFile, SegmentEntry, int], Iterator[str]]


def remembered(real: Problems) -> Problems:
    known: dict[str, list[str]] = {}

    def problems(file: SegmentFile, entry: SegmentEntry, dimension: int) -> Iterator[str]:
        asked = repr((entry, dimension))
        if asked not in known:
            known[asked] = list(real(file, entry, dimension))
        return iter(known[asked])

    return problems


def test_damage_in_several_files_is_named_file_by_file_though_nothing_opens(full: Shelf) -> None:
    full.library.close()
    damaged = [full.file("mf"), *(full.files / "seg").iterdir()]
    for path in damaged:
        flip(path, -20)
    full.reopen()
    assert {fault.file for fault in faults(full)} == {str(path.relative_to(full.root)) for path in damaged}
    assert {fault.collection for fault in faults(full)} == {"handbook"}


@pytest.mark.parametrize("name", ["CURRENT", "mf", "key.1", "seg", "wal", "mark"])
def test_what_is_missing_is_named(full: Shelf, name: str) -> None:
    full.library.close()
    path = next((full.root / "vault" / "marks").iterdir()) if name == "mark" else full.files / name
    path = next(path.iterdir()) if path.is_dir() else path
    path.unlink()
    full.reopen()
    assert any(path.name in f"{fault.file} {fault.problem}" for fault in faults(full))


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_named(full: Shelf, share: float) -> None:
    full.library.close()
    for folder in ("seg", "mf", "wal"):
        path = sorted((full.files / folder).iterdir())[-1]
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * share)])
        full.reopen()
        assert any(path.name in f"{fault.file} {fault.problem}" for fault in faults(full))
        path.write_bytes(raw)
    assert faults(full) == ()


def test_files_of_another_collection_are_named(full: Shelf, make_shelf: Callable[..., Shelf]) -> None:
    other = make_shelf()
    other.add("Other.")
    other.compact()
    other.add("More.")
    full.library.close()
    other.library.close()
    for folder in ("seg", "mf", "wal"):
        path, foreign = sorted((full.files / folder).iterdir())[-1], other.file(folder)
        raw = path.read_bytes()
        shutil.copy(foreign, path)
        full.reopen()
        assert any(path.name in f"{fault.file} {fault.problem}" for fault in faults(full))
        path.write_bytes(raw)


def test_strays_are_named_while_the_collection_is_closed(full: Shelf) -> None:
    full.library.close()
    for folder in ("seg", "wal", "mf"):
        (full.files / folder / "stray").write_bytes(b"left")
    full.reopen()
    assert [fault.file.rpartition("/")[2] for fault in faults(full)] == ["stray"] * 3
    assert all("Nothing names it" in fault.problem for fault in faults(full))
    full.contents()  # opening removes them
    assert faults(full) == ()


def test_no_fault_quotes_a_document(full: Shelf) -> None:
    full.library.close()
    for path in full.files.rglob("*"):
        if path.is_file():
            flip(path, -5)
    full.reopen()
    told = " ".join(f"{fault.file} {fault.problem}" for fault in faults(full))
    assert "Badges" not in told
    assert "Keys" not in told


# --- what was written wrongly, though every byte of it is authentic


def rewritten(tmp_path: Path, shelf: Shelf, change: Callable[[dict[str, bytes]], None]) -> list[str]:
    """The problems of a segment like the shelf's first, after a change to its plaintext."""
    store = shelf.collection._store
    entry = store.manifest.segments[0]
    file = store.open_segment(entry)._file
    sections = {name: file.read(name) for name in entry.layout.sections}
    change(sections)
    cipher, segment = AesGcm(bytes(32)), SegmentId(b"c" * 16, b"f" * 16)
    layout = write_segment(tmp_path, segment, cipher, sections)
    made = SegmentFile(tmp_path, layout, segment, cipher, Memory.of(1 << 20, 1 << 20))
    like = SegmentEntry(1, b"f" * 16, b"", entry.documents, entry.passages, layout)
    return list(soundness.problems(made, like, store.manifest.dimension))


def test_sections_that_agree_have_no_problems(full: Shelf, tmp_path: Path) -> None:
    assert rewritten(tmp_path, full, lambda sections: None) == []


def _shift(sections: dict[str, bytes], section: str, field: str, by: int) -> None:
    passages = np.frombuffer(sections[section], PASSAGE).copy()
    passages[field] = passages[field].astype(np.int64) + by
    sections[section] = passages.tobytes()


CHANGES: dict[str, Callable[[dict[str, bytes]], None]] = {
    "ids": lambda s: s.update(ids=s["ids"][:16] * (len(s["ids"]) // 16)),
    "rows": lambda s: s.update(text=s["text"] + b"more"),
    "owners": lambda s: s.update(owners=np.frombuffer(s["owners"], "<u4")[::-1].tobytes()),
    "owners too": lambda s: s.update(owners=(np.frombuffer(s["owners"], "<u4") + 900).astype("<u4").tobytes()),
    "passages": lambda s: _shift(s, "passages", "text_end", 10_000),
    "passages too": lambda s: _shift(s, "passages", "end", 1),
    "passages again": lambda s: _shift(s, "passages", "heading_end", 1 << 20),
    "postings": lambda s: s.update(postings=s["postings"][:-1]),
    "postings too": lambda s: s.update(positions=s["positions"][:-1]),
    "vectors": lambda s: s.update(vec_f16=bytes(len(s["vec_f16"]))),
    "vectors too": lambda s: s.update(vec_f16=b"\x00\x7e" * (len(s["vec_f16"]) // 2)),
    "vectors again": lambda s: s.update(vec_i8=s["vec_i8"][:-1]),
}


@pytest.mark.parametrize("section", CHANGES)
def test_sections_that_contradict_one_another_are_named(full: Shelf, tmp_path: Path, section: str) -> None:
    found = rewritten(tmp_path, full, CHANGES[section])
    assert found, "nothing was noticed"
    name = section.split()[0].replace("ids", "rows")
    assert any(problem.startswith(f"Section {name}") for problem in found), found


def test_rows_that_are_authentic_and_wrong_are_named_by_verification_and_by_opening(
    full: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rewritten(tmp_path, full, lambda sections: sections.update(rows=b"no Parquet at all"))
    assert [problem for problem in found if problem.startswith("Section rows: ")], found
    path = full.files / "seg" / full.collection._store.manifest.segments[1].layout.file
    parquet = Sealed.parquet
    monkeypatch.setattr(Sealed, "parquet", lambda self: b"none" if self.path == path else parquet(self))
    full.reopen()
    with pytest.raises(StoreDamaged, match=f"{path} is damaged"):
        full.contents()
    full.library.collections()
    assert "handbook" in full.library.damaged()


def test_a_text_of_many_blocks_is_checked_a_block_at_a_time(
    full: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks so small that characters and passages lie across their borders."""
    read, longest = SegmentFile.read, [0]

    def watched(self: SegmentFile, section: str, start: int = 0, length: int | None = None) -> bytes:
        found = read(self, section, start, length)
        longest[0] = max(longest[0], len(found) if section == "text" else 0)
        return found

    for block_bytes in (1, 3, 7):
        monkeypatch.setattr(soundness, "_BLOCK_BYTES", block_bytes)
        assert rewritten(tmp_path, full, lambda sections: None) == []
        with monkeypatch.context() as patch:
            patch.setattr(SegmentFile, "read", watched)
            soundness_of(full)
        assert longest == [block_bytes]
        longest[0] = 0
        for field in ("end", "text_start", "section_text_end"):
            assert rewritten(tmp_path, full, partial(_shift, section="passages", field=field, by=1))


def soundness_of(shelf: Shelf) -> list[str]:
    store = shelf.collection._store
    entry = store.manifest.segments[0]
    return list(soundness.problems(store.open_segment(entry)._file, entry, store.manifest.dimension))
