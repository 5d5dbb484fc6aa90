"""Compaction: which segments, and what is left of deleted documents."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import Busy, DiskFull, NotFound
from appliance.knowledge import rewrite
from appliance.knowledge.compact import DEAD_RATIO, Shape, asked, due
from appliance.knowledge.storage.record import Entry
from tests.knowledge.conftest import ALL, Shelf, new_document

FULL = 100


def test_a_full_segment_without_anything_dead_is_left_alone() -> None:
    assert asked([Shape(1, 90, 90)], FULL) == due([Shape(1, 90, 90)], FULL) == ()


def test_a_lone_small_segment_is_left_alone() -> None:
    assert asked([Shape(1, 9, 9)], FULL) == ()


def test_small_segments_are_put_together() -> None:
    assert asked([Shape(1, 9, 9), Shape(2, 90, 90), Shape(3, 9, 9)], FULL) == ((1, 3),)


def test_a_segment_with_something_dead_is_rewritten_when_asked_however_full() -> None:
    assert asked([Shape(1, 100, 99)], FULL) == ((1,),)
    assert asked([Shape(1, 100, 100, 1)], FULL) == ((1,),)
    assert asked([Shape(1, 10, 0)], FULL) == ((1,),)


shapes = st.lists(
    st.integers(1, 2 * FULL).flatmap(
        lambda passages: st.integers(0, passages).flatmap(
            lambda live: st.tuples(st.just(passages), st.just(live), st.integers(0, live))
        )
    ),
    max_size=12,
)


@given(shapes, st.sampled_from([asked, due]))
def test_no_plan_takes_a_segment_twice_or_makes_one_too_full(
    sizes: list[tuple[int, int, int]], plan: Callable[..., tuple[tuple[int, ...], ...]]
) -> None:
    segments = [Shape(number, *size) for number, size in enumerate(sizes, 1)]
    chosen = [number for group in plan(segments, FULL) for number in group]
    assert len(chosen) == len(set(chosen))
    live = {segment.number: segment.live_passages for segment in segments}
    assert all(len(group) == 1 or sum(live[number] for number in group) <= FULL for group in plan(segments, FULL))
    must = DEAD_RATIO if plan is due else 0
    dead = [segment.number for segment in segments if segment.dead_passages > must * segment.passages]
    assert set(dead) <= set(chosen)


def test_little_that_is_dead_or_small_is_not_rewritten_unasked() -> None:
    assert due([Shape(1, 100, 90)], FULL) == ()
    assert due([Shape(1, 100, 79)], FULL) == ((1,),)
    assert due([Shape(1, 100, 100, 21)], FULL) == ((1,),)
    few = [Shape(number, 9, 9) for number in range(3)]
    assert due(few, FULL) == ()
    assert due([*few, Shape(3, 9, 9)], FULL) == ((0, 1, 2, 3),)
    assert due([*few, Shape(3, 49, 49)], FULL) == ()


def test_a_passage_is_rewritten_about_as_often_as_its_segment_doubles_twice() -> None:
    segments: list[Shape] = []
    rewritten, sealed = 0, 1024
    for number in range(1, sealed + 1):
        segments.append(Shape(number * 1000, 20, 20))
        while groups := due(segments, 20 * sealed):
            for group in groups:
                merged = sum(one.live_passages for one in segments if one.number in group)
                segments = [one for one in segments if one.number not in group]
                segments.append(Shape(max(group) + 1, merged, merged))
                rewritten += merged
    assert rewritten <= 6 * 20 * sealed
    assert len(segments) < 4 * 6


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

    def full(*_: object, **__: object) -> None:
        raise DiskFull("No space is left.")

    monkeypatch.setattr(shelf.collection._rewriter, "_write", full)
    shelf.library.compact_where_due()
    assert len(list((shelf.files / "seg").iterdir())) == 4
    assert len(list((shelf.files.with_name("second") / "seg").iterdir())) == 1


def test_a_collection_that_is_compacted_already_is_left_alone(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(seal_passages=1)
    for number in range(4):
        shelf.add(f"Badge {number} expires.")
    with shelf.collection._rewriter._rewriting:
        shelf.library.compact_where_due()
    assert len(list((shelf.files / "seg").iterdir())) == 4


def test_a_collection_that_is_rewritten_already_says_so_instead_of_holding_a_thread(shelf: Shelf) -> None:
    shelf.delete(shelf.add("Badges expire."))
    with shelf.collection._rewriter._rewriting, pytest.raises(Busy, match="handbook is being rewritten") as caught:
        shelf.compact()
    assert caught.value.retry_after_seconds > 1
    shelf.compact()
    assert not list((shelf.files / "wal").iterdir())


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
    assert shelf.reopen().documents("handbook", ALL) == ((), "")


def test_a_document_deleted_in_the_memtable_is_not_sealed(shelf: Shelf) -> None:
    kept = shelf.add("Badges expire.")
    shelf.delete(shelf.add("Keys do not."))
    shelf.compact()
    assert shelf.contents() == {kept.id: ("Badges expire.",)}
    shelf.reopen()
    assert shelf.contents() == {kept.id: ("Badges expire.",)}


def while_rewriting(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """From now on `change` happens after a segment's successor was written, and before it takes the segment's place."""
    rewriter = shelf.collection._rewriter
    write = rewriter._write

    def write_then_change(entries: list[Entry], *, background: bool) -> object:
        written = write(entries, background=background)
        if entries:
            change()
        return written

    monkeypatch.setattr(rewriter, "_write", write_then_change)


def test_a_document_deleted_while_its_segment_is_rewritten_stays_deleted(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (shelf.add(f"Badge {number} expires.") for number in range(3))
    shelf.compact()
    shelf.delete(first)
    while_rewriting(shelf, monkeypatch, lambda: shelf.delete(second))
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
    snapshot = collection._published.snapshot
    shelf.delete(shelf.add("Keys do not."))
    shelf.add("Doors close.")
    shelf.compact()
    assert snapshot.segments[0].passage(0)[1] == "Badges expire."


def test_readers_that_change_while_a_segment_is_rewritten_stay_changed(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, meanwhile, gone = (shelf.add(f"Badge {number} expires.") for number in range(3))
    shelf.compact()
    ann, bob = frozenset({"user:ann"}), frozenset({"user:bob"})
    shelf.delete(gone)
    shelf.library.set_readers("handbook", before.id, ann, ALL)
    while_rewriting(shelf, monkeypatch, lambda: shelf.library.set_readers("handbook", meanwhile.id, bob, ALL | bob))
    shelf.compact()
    monkeypatch.undo()
    for again in (lambda: None, shelf.reopen, shelf.compact, shelf.reopen):
        again()
        assert shelf.contents() == {}
        assert shelf.search("badge expires") == []
        assert list(shelf.contents(ann)) == [before.id]
        assert shelf.search("badge expires", bob) == ["Badge 1 expires."]
    assert shelf.collection._store.manifest.readers == {}


def test_a_document_whose_readers_changed_is_dead_weight_until_its_segment_says_so(
    make_shelf: Callable[..., Shelf],
) -> None:
    shelf = make_shelf(seal_passages=10)
    documents = [shelf.add(f"Badge {number} expires.") for number in range(10)]
    secret = frozenset({"role:admin"})
    for document in documents[:2]:
        shelf.library.set_readers("handbook", document.id, secret, ALL)
    before = shelf.file("seg")
    shelf.library.compact_where_due()
    assert shelf.file("seg") == before
    shelf.library.set_readers("handbook", documents[2].id, secret, ALL)
    shelf.library.compact_where_due()
    assert shelf.file("seg") != before
    assert shelf.collection._rewriter.amendments.readers == {}
    shelf.reopen()
    assert shelf.contents(secret).keys() == {document.id for document in documents[:3]}
    assert shelf.contents().keys() == {document.id for document in documents[3:]}


def test_a_deletion_that_is_replayed_after_its_segment_was_rewritten_is_not_kept_for_ever(
    make_shelf: Callable[..., Shelf],
) -> None:
    shelf = make_shelf(seal_passages=4)
    documents = [shelf.add(f"Badge {number} expires.") for number in range(4)]
    shelf.library.set_readers("handbook", documents[0].id, frozenset({"user:ann"}), ALL)
    shelf.delete(documents[1])
    shelf.delete(documents[2])
    shelf.library.compact_where_due()  # the log still tells of both
    shelf.reopen()
    assert shelf.collection._rewriter.amendments.deleted == set()
    shelf.compact()
    assert shelf.collection._store.manifest.deleted == frozenset()
    shelf.reopen()
    assert list(shelf.contents()) == [documents[3].id]


def test_a_compaction_that_a_drop_overtakes_leaves_nothing_in_the_next_collection_of_that_name(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [shelf.add(f"Badge {number} expires.") for number in range(2)]
    shelf.compact()
    shelf.delete(documents[0])
    rewriter = shelf.collection._rewriter
    write = rewriter._write

    def overtaken(entries: list[Entry], *, background: bool) -> object:
        if not entries:
            return write(entries, background=background)
        shelf.library.drop("handbook")
        shelf.library.create("handbook")
        return write(entries, background=background)

    monkeypatch.setattr(rewriter, "_write", overtaken)
    with pytest.raises(NotFound):
        rewriter.compact()
    assert list((shelf.files / "seg").iterdir()) == []


class Busily:
    """Writes to the collection while it is embedded anew: so many documents in each round."""

    def __init__(self, shelf: Shelf, rounds: list[int]) -> None:
        self.shelf, self.rounds = shelf, rounds
        self.added = 0

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        if done == total and self.rounds:
            for _ in range(self.rounds.pop(0)):
                self.added += 1
                self.shelf.add(f"Key {self.added}.")


def test_a_collection_written_to_faster_than_it_is_embedded_anew_stays_as_it_is(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "_LAST_PASSAGES", 2)
    shelf.add("Badges expire.")
    with pytest.raises(Busy, match="written to faster"):
        shelf.library.reembed("handbook", "", shelf.embedder, Busily(shelf, [3] * 100))
    assert len(list((shelf.files / "seg").iterdir())) == len(shelf.collection._store.manifest.segments)
    assert len(shelf.contents()) > 8


def test_what_is_embedded_while_writers_wait_is_little_and_not_paced(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "_LAST_PASSAGES", 2)
    shelf.add("Badges expire.")
    rewriter = shelf.collection._rewriter
    write, written = rewriter._write, list[tuple[int, bool]]()

    def watched(entries: list[Entry], *, background: bool) -> object:
        written.append((len(entries), background))
        return write(entries, background=background)

    monkeypatch.setattr(rewriter, "_write", watched)
    shelf.library.reembed("handbook", "", shelf.embedder, Busily(shelf, [3, 3, 3, 2]))
    assert written[-1] == (2, False)
    assert len(shelf.contents()) == 12
