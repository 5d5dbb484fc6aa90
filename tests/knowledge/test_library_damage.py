"""The library where something is damaged, missing or in the way."""

import errno

import pytest

from appliance.errors import (
    Broken,
    Busy,
    DiskFull,
    EmbedderChanged,
    NotFound,
    StoreDamaged,
)
from appliance.types import Floats
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, flip, new_document
from tests.searching import search


def test_after_a_drop_that_failed_nothing_is_acknowledged_and_it_can_be_dropped_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("Badges expire.")
    held = shelf.collection

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("appliance.knowledge.storage.key.destroy", broken)
        with pytest.raises(OSError, match="Input/output"):
            shelf.library.drop("handbook")
    with pytest.raises(NotFound):
        held.add(new_document("Keys do not."))
    with pytest.raises(NotFound):
        shelf.add("Doors close.")
    shelf.library.drop("handbook")
    assert shelf.library.damaged() == {}
    shelf.library.create("handbook")


def test_a_drop_that_failed_before_it_was_committed_changes_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = shelf.add("Badges expire.")
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("appliance.knowledge.folders.os.rename", full)
        with pytest.raises(DiskFull):
            shelf.library.drop("handbook")
    other = shelf.add("Doors close.")
    assert shelf.contents().keys() == {document.id, other.id}


def test_what_is_added_while_a_rollback_is_accepted_is_refused_or_kept(shelf: Shelf) -> None:
    first = shelf.add("Badges expire.")
    held = shelf.collection
    shelf.library.accept_rollback("handbook")
    with pytest.raises(NotFound):  # what it acknowledged would be in a log that no manifest names
        held.add(new_document("Keys do not."))
    second = shelf.add("Doors close.")
    shelf.reopen()
    assert shelf.contents().keys() == {first.id, second.id}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR])
def test_a_box_short_of_files_or_memory_is_busy_not_damaged(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shelf.add("Badges expire.")
    shelf.compact()
    shelf.reopen()

    def short(*_: object) -> None:
        raise OSError(number, "Too many")

    with monkeypatch.context() as patch:
        patch.setattr("appliance.knowledge.storage.durable.os.pread", short)
        with pytest.raises(Busy, match="cannot be opened or read just now"):
            shelf.contents()
    assert shelf.library.damaged() == {}
    assert len(shelf.contents()) == 1


def test_damage_is_forgotten_when_what_failed_can_be_read_again_and_not_before(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = shelf.add("Badges expire.")
    segment = type(shelf.collection._published.snapshot.memtable)

    def broken(*_: object) -> None:
        raise StoreDamaged("handbook/seg/1: Input/output error.")

    with monkeypatch.context() as patch:
        patch.setattr(segment, "entry", broken)
        with pytest.raises(StoreDamaged):
            shelf.library.pages("handbook", document.id, ALL)
    shelf.library.collections()
    assert list(shelf.library.damaged()) == ["handbook"]
    assert shelf.library.page("handbook", document.id, 1, ALL) == "Badges expire."
    assert shelf.library.damaged() == {}


def test_damage_of_a_dropped_collection_is_not_remembered(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    document = shelf.add("Badges expire.")

    def dropped_meanwhile(*_: object) -> None:
        shelf.library.drop("handbook")
        raise StoreDamaged("handbook/seg/1: No such file.")

    monkeypatch.setattr(shelf.collection, "pages", dropped_meanwhile)
    with pytest.raises(StoreDamaged):
        shelf.library.pages("handbook", document.id, ALL)
    assert shelf.library.damaged() == {}


def test_a_damaged_collection_is_named_and_the_others_serve(shelf: Shelf) -> None:
    shelf.library.create("second")
    shelf.library.add("second", new_document("Keys do not expire."))
    shelf.add("Badges expire.")
    shelf.library.close()
    flip(shelf.file("wal"), 100)
    library = shelf.reopen()
    with pytest.raises(StoreDamaged, match="handbook/wal"):
        shelf.search("badges")
    with pytest.raises(StoreDamaged, match="handbook/wal"):
        shelf.add("Doors close.")
    assert [collection.id for collection in library.collections()] == ["second"]
    assert search(library, "second", "keys", ALL, 1).passages
    assert list(library.damaged()) == ["handbook"]
    assert str(shelf.file("wal")) in library.damaged()["handbook"]
    flip(shelf.file("wal"), 100)
    assert len(shelf.contents()) == 1
    assert library.damaged() == {}


def test_a_damaged_collection_can_be_dropped(shelf: Shelf) -> None:
    shelf.library.close()
    (shelf.files / "CURRENT").unlink()
    library = shelf.reopen()
    assert library.collections() == ()
    assert list(library.damaged()) == ["handbook"]
    library.drop("handbook")
    assert library.damaged() == {}
    library.create("handbook")


def test_another_embedder_is_refused_by_both_names_and_the_text_stays_readable(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    made_with = shelf.embedder.identity
    shelf.embedder = WordEmbedder("another")
    shelf.reopen()
    for call in (lambda: shelf.search("badges"), lambda: shelf.add("Keys do not.")):
        with pytest.raises(EmbedderChanged, match=f"{made_with[:16]}.*{shelf.embedder.identity[:16]}"):
            call()
    assert list(shelf.contents().values()) == [("Badges expire.",)]


def test_a_vector_that_is_no_number_is_not_stored(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(texts: list[str]) -> Floats:
        return WordEmbedder().embed(texts) * float("nan")

    monkeypatch.setattr(shelf.embedder, "embed", broken)
    with pytest.raises(Broken, match="no number"):
        shelf.add("Badges expire.")
    assert shelf.contents() == {}
