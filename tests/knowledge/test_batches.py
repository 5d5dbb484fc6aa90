"""Many documents added at once: what is embedded together, written in one go, and refused alone."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from threading import Event, Thread

import pytest

from appliance.errors import Broken, DiskFull, DocumentRefused, InvalidArgument, NotFound, RequestTooLarge
from appliance.infer.onnx import BATCH_TEXTS
from appliance.knowledge import intake
from appliance.knowledge.memtable import Memtable
from appliance.knowledge.storage.record import Entry
from appliance.types import Document, Floats, NewDocument
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document

CLOSED = frozenset({"role:admin"})


class Recording(WordEmbedder):
    """Remembers how many texts it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def embed(self, texts: Sequence[str]) -> Floats:
        self.sizes.append(len(texts))
        return super().embed(texts)


def added(shelf: Shelf, *documents: NewDocument) -> tuple[Document | DocumentRefused, ...]:
    return shelf.library.add_all("handbook", documents)


def stored(shelf: Shelf, *documents: NewDocument) -> list[Document]:
    found = added(shelf, *documents)
    assert not any(isinstance(one, DocumentRefused) for one in found)
    return [one for one in found if isinstance(one, Document)]


def numbered(count: int) -> list[NewDocument]:
    return [new_document(f"Badge {number} expires.", title=f"{number:03}") for number in range(count)]


def test_documents_of_one_call_are_there_in_their_order_and_after_a_start(shelf: Shelf) -> None:
    made = stored(shelf, *numbered(12))
    assert [one.title for one in made] == [f"{number:03}" for number in range(12)]
    wanted = {one.id: (f"Badge {number} expires.",) for number, one in enumerate(made)}
    assert shelf.contents() == wanted
    shelf.reopen(close=False)
    assert shelf.contents() == wanted
    shelf.compact()
    assert shelf.contents() == wanted
    assert shelf.search("badge 7 expires")[0] == "Badge 7 expires."


def test_passages_of_all_documents_are_embedded_together_in_full_batches(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedder makes batches of what it is given at once: only the last of all may be short."""
    assert intake.EMBEDDED_TEXTS % BATCH_TEXTS == 0
    monkeypatch.setattr(intake, "EMBEDDED_TEXTS", 16)
    recording = Recording()
    entries = intake.to_entries("handbook", numbered(40), recording)
    assert recording.sizes == [16, 16, 8]
    assert len(entries) == 40
    one_by_one = [intake.to_entries("handbook", [one], WordEmbedder())[0] for one in numbered(40)]
    for together, alone in zip(entries, one_by_one, strict=True):
        assert isinstance(together, Entry)
        assert isinstance(alone, Entry)
        assert (together.vectors == alone.vectors).all()


def test_documents_of_a_batch_lie_in_memory_as_if_they_had_come_one_by_one() -> None:
    entries = [one for one in intake.to_entries("handbook", numbered(230), WordEmbedder()) if isinstance(one, Entry)]
    alone = together = Memtable()
    for entry in entries:
        alone = alone.with_entries([entry])
    for start, end in pairwise([0, 130, 131, 140, 230]):
        together = together.with_entries(entries[start:end])
    assert [block.entries for block in together.blocks] == [block.entries for block in alone.blocks]
    assert [block.first_ordinal for block in together.blocks] == [block.first_ordinal for block in alone.blocks]
    assert [len(block.entries) for block in together.blocks[:4]] == [64, 64, 64, 8]
    frozen = together.freeze()
    more = frozen.with_entries(entries)
    assert more.blocks[: frozen.frozen] == together.blocks
    assert [*more.entries] == list(range(460))
    assert [one.document.title for one in more.entries.values()] == [one.document.title for one in [*entries, *entries]]


def test_a_batch_costs_one_write_and_one_sync(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.add("The log is there.")
    calls: list[str] = []
    for name in ("pwrite", "fdatasync", "fsync"):
        real = getattr(os, name)

        def counted(*arguments: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, counted)
    stored(shelf, *numbered(20))
    assert calls == ["pwrite", "fdatasync"]


def test_what_is_no_document_is_refused_in_its_place_and_spoils_nothing(shelf: Shelf) -> None:
    good = numbered(3)
    bad = [new_document("  "), new_document("Bad \ud800."), new_document("")]
    found = added(shelf, bad[0], good[0], bad[1], good[1], good[2], bad[2])
    reasons = [one.file_reason if isinstance(one, DocumentRefused) else one.title for one in found]
    assert reasons == ["NO_TEXT", "000", "NOT_UNICODE", "001", "002", "NO_TEXT"]
    assert len(shelf.contents()) == 3
    assert [type(one) for one in added(shelf, *bad)] == [DocumentRefused] * 3
    assert added(shelf) == ()
    shelf.reopen()
    assert len(shelf.contents()) == 3


def test_a_document_too_long_for_the_log_is_refused_and_so_are_too_many_at_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.knowledge.storage.store.LONGEST_PAYLOAD", 2000)
    long, short = new_document("Badges expire. " * 200), numbered(10)
    refused, made = added(shelf, long, short[0])
    assert isinstance(refused, DocumentRefused)
    assert refused.file_reason == "TOO_LARGE"
    assert isinstance(made, Document)
    with pytest.raises(RequestTooLarge):
        added(shelf, *short[1:])
    assert list(shelf.contents()) == [made.id]


def test_one_like_a_present_document_is_that_one_and_two_alike_are_both_added(shelf: Shelf) -> None:
    first, second, third = numbered(3)
    present = shelf.library.add("handbook", first)
    made = stored(shelf, first, second, second, third)
    assert made[0] == present
    assert len({one.id for one in made}) == 4
    assert len(shelf.contents()) == 4
    assert stored(shelf, first)[0] == present


def test_a_batch_replaces_documents_in_the_same_instant(shelf: Shelf) -> None:
    old = stored(shelf, *numbered(4))
    shelf.compact()
    old += stored(shelf, *[new_document(f"Door {number} opens.", title=f"door {number}") for number in range(2)])
    new = [
        replace(new_document("Badge 0 never expires."), replaces=old[0].id),
        replace(new_document("Door 0 closes."), replaces=old[4].id),
        new_document("A new door."),
    ]
    made = stored(shelf, *new)
    kept = {old[1].id, old[2].id, old[3].id, old[5].id}
    assert shelf.contents().keys() == kept | {one.id for one in made}
    shelf.reopen(close=False)
    assert shelf.contents().keys() == kept | {one.id for one in made}
    shelf.compact()
    assert shelf.contents().keys() == kept | {one.id for one in made}


def test_what_is_replaced_by_a_copy_of_a_present_document_goes_and_that_one_stays(shelf: Shelf) -> None:
    kept, gone = stored(shelf, *numbered(2))
    made = stored(shelf, replace(numbered(1)[0], replaces=gone.id), new_document("Another."))
    assert made[0] == kept
    assert shelf.contents().keys() == {kept.id, made[1].id}
    shelf.reopen(close=False)
    assert shelf.contents().keys() == {kept.id, made[1].id}


def test_what_cannot_be_done_leaves_nothing_of_the_whole_batch(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = stored(shelf, new_document("Old."))
    first, second, third = numbered(3)
    version = shelf.library.version("handbook")
    with pytest.raises(NotFound):
        added(shelf, first, replace(second, replaces="f" * 32))
    with pytest.raises(NotFound):
        added(shelf, replace(first, replaces=old.id), replace(second, replaces=old.id))
    with pytest.raises(InvalidArgument):
        added(shelf, first, replace(second, readers=frozenset()), third)

    class Nan(WordEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            return super().embed(texts) * float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(shelf.embedder, "embed", Nan().embed)
        with pytest.raises(Broken):
            added(shelf, first, second)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(DiskFull):
            added(shelf, first, second)
    assert shelf.library.version("handbook") == version
    assert list(shelf.contents()) == [old.id]
    shelf.reopen(close=False)
    assert list(shelf.contents()) == [old.id]
    assert len(stored(shelf, first, second)) == 2


def test_time_and_metadata_of_a_document_survive_that_it_replaces_another(shelf: Shelf) -> None:
    made = datetime(2020, 5, 17, 12, 30, tzinfo=UTC)
    old = shelf.library.add("handbook", replace(new_document("Old."), metadata={"year": 1.0, "tag": "old"}))
    new = replace(new_document("New."), replaces=old.id, create_time=made, metadata={"year": 2.0, "is_new": True})
    document = shelf.library.add("handbook", new)
    for change in (lambda: None, shelf.reopen, shelf.compact, shelf.reopen):
        change()
        (found,), _ = shelf.library.documents("handbook", ALL)
        assert (found.id, found.create_time) == (document.id, made)
        assert found.metadata == {"year": 2.0, "is_new": True}
        assert shelf.library.documents("handbook", ALL, "year = 2")[0] == (found,)
        assert shelf.library.documents("handbook", ALL, "year = 1")[0] == ()


def test_embedding_a_batch_keeps_nobody_waiting(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, third = stored(shelf, *numbered(3))
    embedding, go_on = Event(), Event()

    class Slow(WordEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            embedding.set()
            assert go_on.wait(30)
            return super().embed(texts)

    query = shelf.embedder

    def choose(name: str, identity: str, *, background: bool = False) -> WordEmbedder:
        return Slow() if background else query

    monkeypatch.setattr(shelf.collection, "_embedders", choose)
    adding = Thread(target=stored, args=(shelf, new_document("Slowly."), new_document("And slower.")))
    adding.start()
    try:
        assert embedding.wait(30)
        shelf.delete(one)
        shelf.library.set_readers("handbook", other.id, CLOSED, ALL)
        assert shelf.search("badge") == ["Badge 2 expires."]
        shelf.compact()
        assert shelf.contents().keys() == {third.id}
    finally:
        go_on.set()
        adding.join()
    assert len(shelf.contents()) == 3
