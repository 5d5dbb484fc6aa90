"""Compaction: which segments, and what is left of deleted documents."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DiskFull
from appliance.knowledge.compact import Shape, due, plan
from tests.knowledge.conftest import ALL, Shelf, new_document

FULL = 100


def test_a_full_segment_without_deleted_documents_is_left_alone() -> None:
    assert plan([Shape(1, 90, 90)], FULL) == ()


def test_a_lone_small_segment_is_left_alone() -> None:
    assert plan([Shape(1, 9, 9)], FULL) == ()


def test_small_segments_are_put_together() -> None:
    assert plan([Shape(1, 9, 9), Shape(2, 90, 90), Shape(3, 9, 9)], FULL) == ((1, 3),)


def test_a_segment_with_deleted_documents_is_rewritten_however_full() -> None:
    assert plan([Shape(1, 100, 99)], FULL) == ((1,),)
    assert plan([Shape(1, 10, 0)], FULL) == ((1,),)


@given(st.lists(st.integers(1, 2 * FULL).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=12))
def test_a_plan_takes_every_deleted_document_and_makes_nothing_too_full(sizes: list[tuple[int, int]]) -> None:
    segments = [Shape(number, passages, live) for number, (passages, live) in enumerate(sizes, 1)]
    groups = plan(segments, FULL)
    chosen = [number for group in groups for number in group]
    assert len(chosen) == len(set(chosen))
    assert all(segment.number in chosen for segment in segments if segment.live_passages < segment.passages)
    live = {segment.number: segment.live_passages for segment in segments}
    assert all(len(group) == 1 or sum(live[number] for number in group) <= FULL for group in groups)


def test_little_that_is_deleted_or_small_is_not_rewritten_unasked() -> None:
    assert plan([Shape(1, 100, 90)], FULL, due) == ()
    assert plan([Shape(1, 100, 79)], FULL, due) == ((1,),)
    few = [Shape(number, 9, 9) for number in range(3)]
    assert plan(few, FULL, due) == ()
    assert plan([*few, Shape(3, 9, 9)], FULL, due) == ((0, 1, 2, 3),)


def test_what_is_due_is_compacted_unasked_and_nothing_else(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(seal_passages=10)
    documents = [shelf.add(f"Badge {number} expires.") for number in range(10)]
    before = shelf.file("seg")
    shelf.library.compact_where_due()
    for document in documents[:2]:
        shelf.delete(document)
    shelf.library.compact_where_due()
    assert shelf.file("seg") == before
    shelf.delete(documents[2])
    shelf.library.compact_where_due()
    assert shelf.file("seg") != before
    assert shelf.contents().keys() == {document.id for document in documents[3:]}
    shelf.reopen()
    assert shelf.contents().keys() == {document.id for document in documents[3:]}


def test_one_collection_that_cannot_be_compacted_does_not_keep_the_others_from_it(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf(seal_passages=1)
    shelf.library.create("second")
    for number in range(4):
        shelf.library.add("second", new_document(f"Key {number}."))
        shelf.add(f"Badge {number} expires.")

    def full(*_: object) -> None:
        raise DiskFull("No space is left.")

    monkeypatch.setattr(shelf.collection, "_rewrite", full)
    shelf.library.compact_where_due()
    assert len(list((shelf.files / "seg").iterdir())) == 4
    assert len(list((shelf.files.with_name("second") / "seg").iterdir())) == 1


def test_a_collection_that_is_compacted_already_is_left_alone(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(seal_passages=1)
    for number in range(4):
        shelf.add(f"Badge {number} expires.")
    with shelf.collection._compacting:
        shelf.library.compact_where_due()
    assert len(list((shelf.files / "seg").iterdir())) == 4


def test_compaction_changes_nothing_that_a_reader_sees(shelf: Shelf) -> None:
    documents = [shelf.add(f"Badge {number} expires.", "", f"Seite {number} für alle.") for number in range(6)]
    shelf.compact()
    documents += [shelf.add(f"Badge {number} expires.", f"Ключ {number}.") for number in range(6, 9)]
    shelf.delete(documents[1])
    contents, found = shelf.contents(), shelf.search("Badge 3 expires", limit=30)
    shelf.compact()
    assert shelf.contents() == contents
    assert sorted(shelf.search("Badge 3 expires", limit=30)) == sorted(found)
    assert len(list((shelf.files / "seg").iterdir())) == 1
    assert not list((shelf.files / "wal").iterdir())
    shelf.reopen()
    assert shelf.contents() == contents


def test_a_deleted_document_is_in_no_file_after_compaction(shelf: Shelf) -> None:
    document = shelf.add("Badges expire after 90 days.")
    shelf.compact()
    before = shelf.file("seg").name
    shelf.delete(document)
    shelf.compact()
    assert shelf.library.collections()[0].passage_count == 0
    assert not [path for path in (shelf.files / "seg").iterdir() if path.name == before]
    assert not list((shelf.files / "wal").iterdir())
    assert shelf.collection._store.manifest.deleted == frozenset()
    assert shelf.reopen().documents("handbook", ALL) == ()


def test_a_document_deleted_in_the_memtable_is_not_sealed(shelf: Shelf) -> None:
    kept = shelf.add("Badges expire.")
    shelf.delete(shelf.add("Keys do not."))
    shelf.compact()
    assert shelf.contents() == {kept.id: ("Badges expire.",)}
    shelf.reopen()
    assert shelf.contents() == {kept.id: ("Badges expire.",)}


def test_a_document_deleted_while_its_segment_is_rewritten_stays_deleted(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (shelf.add(f"Badge {number} expires.") for number in range(3))
    shelf.compact()
    shelf.delete(first)
    collection = shelf.collection
    write = collection._write

    def write_while_another_deletes(entries: list[object]) -> object:
        written = write(entries)  # type: ignore[arg-type]
        if entries:
            shelf.delete(second)
        return written

    monkeypatch.setattr(collection, "_write", write_while_another_deletes)
    shelf.compact()
    monkeypatch.undo()
    assert list(shelf.contents()) == [third.id]
    assert shelf.search("badge expires") == ["Badge 2 expires."]
    shelf.reopen()
    assert list(shelf.contents()) == [third.id]
    shelf.compact()
    assert shelf.collection._store.manifest.deleted == frozenset()


def test_a_reader_that_began_before_a_compaction_reads_on(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    shelf.compact()
    collection = shelf.collection
    snapshot = collection._snapshot
    shelf.delete(shelf.add("Keys do not."))
    shelf.add("Doors close.")
    shelf.compact()
    assert snapshot.segments[0].passage(0)[1] == "Badges expire."
