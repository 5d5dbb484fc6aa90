"""The library as its callers see it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest

from appliance.errors import (
    AlreadyExists,
    Busy,
    DiskFull,
    DocumentRefused,
    InvalidArgument,
    NotFound,
)
from appliance.knowledge.embedders import built_in
from appliance.knowledge.intake import to_entries
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.knowledge.storage import durable
from appliance.knowledge.storage.record import Entry
from appliance.types import Block, BlockKind, Document, Span
from appliance.vault import FileKeyring, FileTenantKeys
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document
from tests.searching import search

PAGES = ("Badges expire after 90 days. Größe zählt.", "", "На третьей странице 日本語 too.")


@pytest.mark.parametrize("name", ["a", "hand-book", "0", "x" * 63])
def test_a_collection_of_a_good_name_is_made(shelf: Shelf, name: str) -> None:
    assert shelf.library.create(name).name == f"collections/{name}"


@pytest.mark.parametrize("name", ["", "Hand", "a_b", "a/b", "..", ".new-1", "-docs", "docs-", "x" * 64, "a\n", "ä"])
def test_a_bad_name_is_refused_by_field(shelf: Shelf, name: str) -> None:
    with pytest.raises(InvalidArgument, match="collection_id"):
        shelf.library.create(name)
    with pytest.raises(NotFound):
        shelf.library.documents(name, ALL)


def test_every_folder_that_is_made_for_the_library_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_directory", synced.append)
    durable.make_directory(tmp_path / "data" / "knowledge")
    assert synced == [tmp_path, tmp_path / "data"]
    durable.make_directory(tmp_path / "data" / "knowledge")
    assert len(synced) == 2


def test_a_name_is_given_once(shelf: Shelf) -> None:
    with pytest.raises(AlreadyExists):
        shelf.library.create("handbook")
    assert shelf.library.collections()[0].document_count == 0


def test_everything_is_the_same_from_the_memtable_from_a_segment_and_after_reopening(shelf: Shelf) -> None:
    document = shelf.add(*PAGES, title="badges.md")
    spans = [Span(1, 0, 6), Span(3, 3, 10), Span(3, 22, 25), Span(2, 0, 0), Span(1, 29, 40)]

    def seen() -> list[object]:
        texts = [shelf.library.text("handbook", document.id, span, ALL) for span in spans]
        found = search(shelf.library, "handbook", "Badges expire", ALL, 5).passages
        hits = [(hit.document, hit.span, hit.text) for hit in found]
        return [shelf.contents(), shelf.library.get("handbook", document.id, ALL), texts, hits]

    first = seen()
    assert first[0] == {document.id: PAGES}
    assert first[1] == document
    assert first[2] == [PAGES[span.page - 1][span.start : span.end] for span in spans]
    changes: list[Callable[[], object]] = [shelf.reopen, shelf.compact, shelf.reopen]
    for change in changes:
        change()
        assert seen() == first


def test_a_passage_is_the_text_of_its_span(shelf: Shelf) -> None:
    shelf.add(*PAGES)
    changes: list[Callable[[], object]] = [lambda: None, shelf.compact]
    for change in changes:
        change()
        hits = search(shelf.library, "handbook", "Badges странице", ALL, 5).passages
        assert len(hits) == 2
        for hit in hits:
            document = hit.document.rpartition("/")[2]
            assert hit.text == shelf.library.text("handbook", document, hit.span, ALL)
            assert hit.text == PAGES[hit.span.page - 1][hit.span.start : hit.span.end]


def test_the_same_bytes_by_the_same_pipeline_are_one_document(shelf: Shelf) -> None:
    first = shelf.add("Badges expire.")
    assert shelf.add("Badges expire.") == first
    assert shelf.library.find("handbook", first.sha256, "v1") == first
    assert shelf.library.find("handbook", first.sha256, "v2") is None
    assert len(shelf.contents()) == 1


def test_the_same_document_from_many_threads_is_one_document(shelf: Shelf) -> None:
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda _: shelf.add("Badges expire."), range(12)))
    assert len({document.id for document in found}) == 1
    assert len(shelf.contents()) == 1


def test_a_deleted_document_can_be_added_again(shelf: Shelf) -> None:
    shelf.delete(shelf.add("Badges expire."))
    again = shelf.add("Badges expire.")
    changes: list[Callable[[], object]] = [lambda: None, shelf.reopen, shelf.compact, shelf.reopen]
    for change in changes:
        change()
        assert shelf.contents() == {again.id: ("Badges expire.",)}


@pytest.mark.parametrize("pages", [(), ("",), ("  \n\t", "\f")])
def test_a_document_without_text_is_refused(shelf: Shelf, pages: tuple[str, ...]) -> None:
    with pytest.raises(DocumentRefused, match="no text") as caught:
        shelf.add(*pages)
    assert caught.value.file_reason == "NO_TEXT"
    assert shelf.contents() == {}


def test_text_that_is_no_unicode_is_refused(shelf: Shelf) -> None:
    with pytest.raises(DocumentRefused) as caught:
        shelf.add("a lone \ud800 surrogate")
    assert caught.value.file_reason == "NOT_UNICODE"
    assert shelf.contents() == {}


def test_a_document_of_one_huge_page_is_stored_and_read_by_passage(shelf: Shelf) -> None:
    page = "Badges expire after 90 days für alle. " * 3000
    document = shelf.add(page)
    shelf.compact()
    assert shelf.library.pages("handbook", document.id, ALL) == (page,)
    hit = search(shelf.library, "handbook", "badges expire", ALL, 1).passages[0]
    assert hit.text == page[hit.span.start : hit.span.end]


def test_what_a_caller_may_not_read_does_not_exist_for_it(shelf: Shelf) -> None:
    secret = shelf.add("Badges expire.", readers=frozenset({"role:admin"}))
    assert shelf.contents(frozenset({"role:admin"})) == {secret.id: ("Badges expire.",)}
    assert shelf.contents() == {}
    calls: list[Callable[[], object]] = [
        lambda: shelf.library.get("handbook", secret.id, ALL),
        lambda: shelf.library.pages("handbook", secret.id, ALL),
        lambda: shelf.library.text("handbook", secret.id, Span(1, 0, 1), ALL),
        lambda: shelf.library.delete("handbook", secret.id, ALL),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()


@pytest.mark.parametrize("span", [Span(0, 0, 1), Span(4, 0, 1), Span(1, -1, 2), Span(1, 5, 4), Span(1, 0, 1000)])
def test_a_span_outside_the_document_is_not_found(shelf: Shelf, span: Span) -> None:
    document = shelf.add(*PAGES)
    changes: list[Callable[[], object]] = [lambda: None, shelf.compact]
    for change in changes:
        change()
        with pytest.raises(NotFound):
            shelf.library.text("handbook", document.id, span, ALL)


def test_unknown_names_are_not_found(shelf: Shelf) -> None:
    for call in (
        lambda: shelf.library.get("handbook", "f" * 32, ALL),
        lambda: shelf.library.delete("handbook", "f" * 32, ALL),
        lambda: shelf.library.documents("none", ALL),
        lambda: shelf.library.add("none", new_document("Badges.")),
        lambda: search(shelf.library, "none", "badges", ALL, 1),
        lambda: shelf.library.drop("none"),
    ):
        with pytest.raises(NotFound):
            call()


def test_a_dropped_collection_is_gone_with_its_key_and_its_name_is_free(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    shelf.library.drop("handbook")
    assert shelf.library.collections() == ()
    assert list(shelf.files.parent.iterdir()) == []
    assert list((shelf.root / "vault" / "marks").iterdir()) == []
    shelf.library.create("handbook")
    assert shelf.contents() == {}


def test_who_still_holds_a_dropped_collection_cannot_write_to_it(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    held = shelf.collection
    shelf.library.drop("handbook")
    with pytest.raises(NotFound):
        held.add(new_document("Keys do not."))


def test_names_that_are_not_there_leave_nothing_behind(shelf: Shelf) -> None:
    for name in ("none", "../..", "x" * 100):
        for call in (lambda name=name: shelf.library.documents(name, ALL), lambda name=name: shelf.library.drop(name)):
            with pytest.raises(NotFound):
                call()
    assert list(shelf.library._opening) == ["handbook"]


def test_a_page_is_read_from_the_memtable_and_from_a_segment(shelf: Shelf) -> None:
    document = shelf.add(*PAGES)
    changes: list[Callable[[], object]] = [lambda: None, shelf.compact]
    for change in changes:
        change()
        assert tuple(shelf.library.page("handbook", document.id, page, ALL) for page in (1, 2, 3)) == PAGES
        for page in (0, 4):
            with pytest.raises(NotFound, match=f"no page {page}"):
                shelf.library.page("handbook", document.id, page, ALL)


def test_a_document_longer_than_a_record_of_the_log_is_refused(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.knowledge.storage.store.LONGEST_PAYLOAD", 1000)
    with pytest.raises(DocumentRefused) as caught:
        shelf.add("Badges expire. " * 100)
    assert caught.value.file_reason == "TOO_LARGE"
    shelf.add("Badges.")
    assert len(shelf.contents()) == 1


def test_the_memtable_is_sealed_when_it_is_full(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(seal_passages=4)
    documents = [shelf.add(f"Badge {number} expires.") for number in range(10)]
    assert len(list((shelf.files / "seg").iterdir())) == 2
    assert len(list((shelf.files / "wal").iterdir())) == 1
    shelf.reopen()
    assert shelf.contents().keys() == {document.id for document in documents}


def test_a_document_that_is_in_the_log_is_added_though_sealing_finds_the_disk_full(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf(seal_passages=2)
    shelf.add("Badge one expires.")
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise DiskFull("No space is left.")

        patch.setattr("appliance.knowledge.storage.store.write_segment", full)
        shelf.add("Badge two expires.")
    assert len(shelf.contents()) == 2
    shelf.add("Badge three expires.")
    assert len(list((shelf.files / "seg").iterdir())) == 1
    shelf.reopen()
    assert len(shelf.contents()) == 3


def test_a_search_does_not_wait_for_a_document_that_is_being_written(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add("Badges expire.")
    store = shelf.collection._store
    writing, go_on = Event(), Event()
    append = store.append

    def slow(payloads: Sequence[bytes]) -> None:
        writing.set()
        assert go_on.wait(10)
        append(payloads)

    monkeypatch.setattr(store, "append", slow)
    with ThreadPoolExecutor(1) as threads:
        adding = threads.submit(shelf.add, "Badges open doors.")
        assert writing.wait(10)
        assert shelf.search("badges") == ["Badges expire."]
        go_on.set()
        adding.result()
    assert len(shelf.search("badges")) == 2


def test_readers_and_writers_together_never_see_half_a_document(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(seal_passages=8)

    def write(number: int) -> None:
        document = shelf.add(f"Badge {number} expires.", f"Badge {number} opens doors.")
        if number % 3 == 0:
            shelf.delete(document)
        if number % 10 == 0:
            with suppress(Busy):  # another does it just now
                shelf.compact()

    def read(number: int) -> None:
        for pages in shelf.contents_while_changing():
            assert len(pages) == 2
        assert len(shelf.search("badge expires", limit=40)) <= 80

    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(write, number) for number in range(30)]
        jobs += [threads.submit(read, number) for number in range(15)]
        for job in jobs:
            job.result()
    contents = shelf.contents()
    assert len(contents) == 20
    shelf.reopen()
    assert shelf.contents() == contents


def test_who_administers_may_share_and_delete_what_it_may_not_read_and_reads_nothing(shelf: Shelf) -> None:
    document = shelf.add("Badges expire.", title="a", readers=frozenset({"user:typo"}))
    assert shelf.library.documents("handbook", ALL)[0] == ()
    assert [one.id for one in shelf.library.documents("handbook", None)[0]] == [document.id]
    with pytest.raises(NotFound):
        shelf.library.set_readers("handbook", document.id, ALL, ALL)
    with pytest.raises(NotFound):
        shelf.library.delete("handbook", document.id, ALL)
    shelf.library.set_readers("handbook", document.id, ALL, None)
    assert shelf.search("badges") == ["Badges expire."]
    shelf.library.delete("handbook", document.id, None)
    assert shelf.contents() == {}


def test_a_document_is_found_by_its_file_until_another_takes_its_place(shelf: Shelf) -> None:
    def find(title: str) -> Document | None:
        return shelf.library.find_file("handbook", "stick", title)

    assert find("a") is None
    old = shelf.add("Badges expire.", title="a")
    assert find("a") == old
    shelf.compact()
    shelf.reopen()
    assert (find("a"), find("b")) == (old, None)
    new = shelf.library.add("handbook", replace(new_document("Badges last.", title="a"), replaces=old.id))
    assert find("a") == new
    assert shelf.search("badges") == ["Badges last."]
    assert shelf.library.find_file("handbook", "elsewhere", "a") is None


def test_what_a_parser_saw_is_kept_in_the_log_in_segments_and_with_other_vectors(shelf: Shelf) -> None:
    text = "Leave\nTwo days.\nPay\nMonthly."
    blocks = (
        Block(BlockKind.HEADING, 1, 0, 5, 1),
        Block(BlockKind.LIST, 1, 6, 15),
        Block(BlockKind.HEADING, 1, 16, 19, 2),
        Block(BlockKind.TABLE, 1, 20, 28),
    )
    shelf.add("No blocks.", title="a")
    shelf.library.add("handbook", replace(new_document(text, title="b"), blocks=blocks))
    shelf.add("None here.", title="c")

    def kept() -> dict[str, tuple[Block, ...]]:
        return {one.title: one.blocks for one in shelf.library.export("handbook")[1]}

    expected = {"a": (), "b": blocks, "c": ()}
    assert kept() == expected
    shelf.reopen()
    assert kept() == expected
    shelf.compact()
    assert kept() == expected
    shelf.library.reembed("handbook", "", shelf.embedder, Silent())
    assert kept() == expected
    shelf.add("One more.", title="d")
    shelf.compact()
    assert kept() == expected | {"d": ()}


def test_running_text_overlaps_as_far_as_the_box_is_told_to(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {number} says something of its own." for number in range(200))
    starts = []
    for overlap in (0, 20):
        embedder = WordEmbedder()
        (entry,) = to_entries("handbook", [new_document(text)], embedder, overlap)
        assert isinstance(entry, Entry)
        starts.append([(one.span.start, one.span.end) for one in entry.pieces])
    plain, overlapping = starts
    assert all(end <= start for (_, end), (start, _) in pairwise(plain))
    assert any(end > start for (_, end), (start, _) in pairwise(overlapping))
    bounds = Bounds(1 << 20, 1 << 20, 1000, 3600.0, overlap_tokens=20)
    keyring = FileKeyring.open(tmp_path / "vault", tmp_path / "knowledge")
    keys = FileTenantKeys(tmp_path / "vault" / "tenants", keyring)
    libraries = Libraries(tmp_path / "knowledge", tmp_path / "vault", keyring, keys, built_in(WordEmbedder()), bounds)
    library = libraries.of("default")
    library.create("handbook")
    assert library.add("handbook", new_document(text)).passage_count == len(overlapping)
    libraries.close()


def test_what_is_remembered_of_a_collection_is_forgotten_when_it_goes_or_scores_otherwise(shelf: Shelf) -> None:
    forgotten: list[tuple[str, str]] = []
    shelf.library._forget = lambda *place: forgotten.append(place)
    shelf.add("Badges expire.")
    shelf.compact()
    assert forgotten == []
    shelf.library.reembed("handbook", "", shelf.embedder, Silent())
    shelf.library.drop("handbook")
    assert forgotten == [("default", "handbook")] * 2


def test_a_collection_says_whose_vectors_it_holds(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    assert shelf.library.describe("handbook", ALL).embedder == ""
    shelf.library._embedders = lambda name, identity, background=False: shelf.embedder
    shelf.collection._embedders = shelf.library._embedders
    shelf.library.reembed("handbook", "other", shelf.embedder, Silent())
    assert shelf.library.describe("handbook", ALL).embedder == "other"


class Silent:
    """`ports.Progress` that nobody listens to."""

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        """Say nothing."""
