"""The life of a document: taken, shared, replaced, listed, counted, embedded anew, and gone."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from appliance.errors import DiskFull, InvalidArgument, NotFound
from appliance.knowledge.intake import MAX_READERS
from appliance.knowledge.library import Library
from appliance.knowledge.storage.segment import SegmentFile
from appliance.knowledge.storage.wal import WalReader
from appliance.types import EVERYONE, Document, Floats, MetadataValue, SearchOptions, Span
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, Steps, new_document
from tests.knowledge.disk_faults import left_by_kills
from tests.searching import search

ANN, BOB = frozenset({"user:ann"}), frozenset({"user:bob"})
STATES: list[Callable[[Shelf], object]] = [lambda shelf: None, Shelf.compact, Shelf.reopen]


def put(shelf: Shelf, text: str, **fields: object) -> Document:
    return shelf.library.add("handbook", replace(new_document(text), **fields))  # type: ignore[arg-type]


def share(shelf: Shelf, document: Document, readers: frozenset[str], groups: frozenset[str] = ALL) -> Document:
    return shelf.library.set_readers("handbook", document.id, readers, groups)


def titles(shelf: Shelf, condition: str = "", groups: frozenset[str] = ALL) -> list[str]:
    return [document.title for document in shelf.library.documents("handbook", groups, condition)[0]]


# --- readers


@pytest.mark.parametrize("state", STATES)
def test_who_is_no_longer_a_reader_finds_nothing_from_the_next_call_on(
    shelf: Shelf, state: Callable[[Shelf], object]
) -> None:
    document = shelf.add("Badges expire.")
    state(shelf)
    found = shelf.library.rank("handbook", "badges", ALL, 5)
    assert share(shelf, document, ANN).readers == ANN
    assert shelf.library.show("handbook", "badges", ALL, found) == ()
    for again in STATES:
        again(shelf)
        assert shelf.search("badges") == [] == titles(shelf)
        assert shelf.library.describe("handbook", ALL).document_count == 0
        assert shelf.search("badges", ANN) == ["Badges expire."]
        assert shelf.library.get("handbook", document.id, ANN).readers == ANN
        with pytest.raises(NotFound):
            share(shelf, document, ALL)


@pytest.mark.long
def test_a_change_of_readers_survives_a_process_that_dies_at_any_step(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf()
    sealed = shelf.add("Badges expire.")
    shelf.compact()
    fresh = shelf.add("Doors close.")
    shelf.reopen()
    assert len(shelf.contents()) == 2

    def write(acknowledged: list[str]) -> None:
        for document in (sealed, fresh):
            acknowledged.append(share(shelf, document, ANN).id)
        shelf.compact()

    left = left_by_kills(monkeypatch, shelf.root, write)
    assert len({len(acknowledged) for _, acknowledged in left}) == 3
    assert len(left) > 20
    for root, acknowledged in left:
        killed = Shelf(root)
        for_all, for_ann = killed.contents(), killed.contents(ANN)
        assert not for_all.keys() & acknowledged
        assert for_ann.keys() >= set(acknowledged)
        assert for_all.keys() | for_ann.keys() == {sealed.id, fresh.id}
        killed.library.close()


def test_a_change_of_readers_that_finds_the_disk_full_changes_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = shelf.add("Badges expire.")

    def full(*_: object) -> None:
        raise DiskFull("No space is left.")

    before = shelf.library.version("handbook")
    with monkeypatch.context() as patch:
        patch.setattr(shelf.collection._store, "append", full)
        with pytest.raises(DiskFull):
            share(shelf, document, ANN)
    assert shelf.library.version("handbook") == before
    assert list(shelf.contents()) == [document.id]


def test_an_access_list_of_a_million_is_refused_with_what_to_do_instead(shelf: Shelf) -> None:
    crowd = frozenset(f"user:{number}" for number in range(1_000_000))
    document = shelf.add("Badges expire.")
    calls: list[Callable[[], object]] = [
        lambda: share(shelf, document, crowd),
        lambda: put(shelf, "Doors close.", readers=crowd),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=r"1,000,000.*10,000.*use a group"):
            call()
    assert list(shelf.contents()) == [document.id]


def test_a_document_may_have_ten_thousand_readers(shelf: Shelf) -> None:
    crowd = frozenset(f"user:{number}" for number in range(MAX_READERS))
    document = shelf.add("Badges expire.", readers=crowd)
    for again in STATES:
        again(shelf)
        assert list(shelf.contents(frozenset({"user:9999"}))) == [document.id]
        assert shelf.contents(frozenset({"user:10000"})) == {}


@pytest.mark.parametrize("reader", ["", "x" * 201, "user:\n", "user:\x00", "\ud800"])
def test_a_reader_that_is_no_name_is_refused(shelf: Shelf, reader: str) -> None:
    document = shelf.add("Badges expire.")
    calls: list[Callable[[], object]] = [
        lambda: share(shelf, document, ANN | {reader}),
        lambda: share(shelf, document, frozenset()),
        lambda: put(shelf, "Doors close.", readers=frozenset({reader})),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="readers"):
            call()
    assert list(shelf.contents()) == [document.id]


# --- replacing


@pytest.mark.parametrize("state", STATES)
def test_a_replaced_document_is_gone_in_the_same_instant(shelf: Shelf, state: Callable[[Shelf], object]) -> None:
    old = shelf.add("Badges expire after 90 days.")
    state(shelf)
    new = put(shelf, "Badges expire after 30 days.", replaces=old.id)
    for again in STATES:
        again(shelf)
        assert shelf.contents() == {new.id: ("Badges expire after 30 days.",)}
        assert shelf.search("badges expire") == ["Badges expire after 30 days."]
    assert shelf.library.find("handbook", old.sha256, "v1") is None


def test_a_search_sees_the_old_or_the_new_and_never_neither(shelf: Shelf) -> None:
    document = shelf.add("Badges expire 0.")
    stop, seen = Event(), []

    def search() -> None:
        while not stop.is_set():
            seen.append(len(shelf.search("badges expire")))

    thread = Thread(target=search)
    thread.start()
    for number in range(1, 40):
        document = put(shelf, f"Badges expire {number}.", replaces=document.id)
        if number % 10 == 0:
            shelf.compact()
    stop.set()
    thread.join()
    assert set(seen) == {1}


def test_what_does_not_exist_or_lies_elsewhere_cannot_be_replaced(shelf: Shelf) -> None:
    shelf.library.create("second")
    elsewhere = shelf.library.add("second", new_document("Keys."))
    gone = shelf.add("Doors close.")
    shelf.delete(gone)
    before = shelf.library.version("handbook")
    for document in ("f" * 32, elsewhere.id, gone.id, "x"):
        with pytest.raises(NotFound, match="to replace"):
            put(shelf, "Badges expire.", replaces=document)
    assert shelf.contents() == {}
    assert shelf.library.version("handbook") == before


def test_a_document_may_be_replaced_by_the_same_bytes_with_other_facts(shelf: Shelf) -> None:
    old = shelf.add("Badges expire.")
    new = put(shelf, "Badges expire.", replaces=old.id, metadata={"year": 2026}, readers=ANN)
    assert shelf.contents() == {}
    assert shelf.library.get("handbook", new.id, ANN).metadata == {"year": 2026.0}


def test_a_document_replaced_by_one_that_is_there_already_leaves_that_one(shelf: Shelf) -> None:
    old, other = shelf.add("Badges expire."), shelf.add("Doors close.")
    assert put(shelf, "Doors close.", replaces=old.id).id == other.id
    shelf.reopen()
    assert list(shelf.contents()) == [other.id]


@pytest.mark.long
def test_a_replacement_that_dies_at_any_step_leaves_one_of_the_two(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf()
    old = shelf.add("Badges expire after 90 days.")
    shelf.reopen()
    assert len(shelf.contents()) == 1

    def write(acknowledged: list[str]) -> None:
        acknowledged.append(put(shelf, "Badges expire after 30 days.", replaces=old.id).id)

    left = left_by_kills(monkeypatch, shelf.root, write)
    for root, acknowledged in left:
        killed = Shelf(root)
        ((document, pages),) = killed.contents().items()
        assert pages[0] == "Badges expire after 30 days." or not acknowledged
        assert document in acknowledged or not acknowledged
        killed.library.close()
    assert len(left) > 6
    assert acknowledged


# --- metadata, listing, facets


@pytest.mark.parametrize("state", STATES)
def test_metadata_is_kept_filtered_by_and_counted(shelf: Shelf, state: Callable[[Shelf], object]) -> None:
    facts: dict[str, MetadataValue] = {"dept": "Größe", "year": 2026, "public": True, "ratio": 0.5}
    document = put(shelf, "Badges expire.", title="a", metadata=facts)
    put(shelf, "Badges open doors.", title="b", metadata={"dept": "it", "year": 2025})
    put(shelf, "Badges of the board.", title="c", metadata={"dept": "board"}, readers=ANN)
    state(shelf)
    assert shelf.library.get("handbook", document.id, ALL).metadata == facts
    assert titles(shelf, "year >= 2026 AND public = true") == ["a"]
    assert titles(shelf, 'dept IN ("it", "board")') == ["b"]
    options = SearchOptions("year > 2000", facets=("dept", "year", "public", "media_type", "none"))
    found = search(shelf.library, "handbook", "badges", ALL, 5, options)
    counts = {name: {one.value: one.documents for one in counted} for name, counted in found.facets.items()}
    assert counts == {
        "dept": {"Größe": 1, "it": 1},
        "year": {"2025": 1, "2026": 1},
        "public": {"true": 1},
        "media_type": {"text/plain": 2},
        "none": {},
    }


@pytest.mark.parametrize(
    "metadata",
    [
        {"Year": 1},
        {"": 1},
        {"1st": 1},
        {"a" * 65: 1},
        {"a b": 1},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 10**400},
        {"a": "x" * 1001},
        {"a": "\ud800"},
        {"a": None},
        {"a": [1]},
        {f"n{number}": 1 for number in range(65)},
    ],
)
def test_metadata_that_will_not_do_is_refused(shelf: Shelf, metadata: object) -> None:
    with pytest.raises(InvalidArgument, match="metadata"):
        put(shelf, "Badges expire.", metadata=metadata)
    assert shelf.contents() == {}


@pytest.mark.parametrize("field", ["readers", "Dept", "dept]", "texts['a']", "a;--", ""])
def test_who_may_read_is_no_facet_and_neither_is_anything_that_is_no_name(shelf: Shelf, field: str) -> None:
    with pytest.raises(InvalidArgument, match="facets"):
        shelf.library.rank("handbook", "badges", ALL, 1, SearchOptions(facets=(field,)))


def test_a_listing_shifts_nothing_when_documents_come_and_go(shelf: Shelf) -> None:
    made = {title: put(shelf, f"Badge {title}.", title=title) for title in "bdfhj"}
    first, after = shelf.library.documents("handbook", ALL, limit=2)
    shelf.delete(made["b"])
    shelf.delete(made["d"])  # the last one shown
    put(shelf, "Badge a.", title="a")
    put(shelf, "Badge e.", title="e")
    second, after = shelf.library.documents("handbook", ALL, after=after, limit=2)
    third, end = shelf.library.documents("handbook", ALL, after=after, limit=2)
    assert [one.title for one in (*first, *second, *third)] == ["b", "d", "e", "f", "h", "j"]
    assert end == ""


def test_a_token_shows_nobody_more_than_the_listing_and_no_other_is_taken(shelf: Shelf) -> None:
    for title in "abc":
        put(shelf, f"Badge {title}.", title=title)
    put(shelf, "Badge secret.", title="bb", readers=ANN)
    _, after = shelf.library.documents("handbook", ALL | ANN, limit=1)
    rest, _ = shelf.library.documents("handbook", ALL, after=after)
    assert [one.title for one in rest] == ["b", "c"]
    for token in ("x", "AAAA", after[:-2], after[1:], f"{after}A", "ü", "=" * 9, after.swapcase()):
        with pytest.raises(InvalidArgument, match="page_token"):
            shelf.library.documents("handbook", ALL, after=token)
    with pytest.raises(InvalidArgument, match="page_token"):
        shelf.library.documents("handbook", ALL, 'title = "a"', after=after)


def test_the_version_changes_with_what_may_change_an_answer_and_with_nothing_else(shelf: Shelf) -> None:
    seen = [shelf.library.version("handbook")]
    document = shelf.add("Badges expire.")
    changes: list[Callable[[], object]] = [
        lambda: share(shelf, document, ALL | ANN),
        lambda: shelf.add("Doors close."),
        lambda: shelf.delete(document),
        lambda: shelf.library.reembed("handbook", "second", WordEmbedder("second"), Steps()),
    ]
    for change in changes:
        seen.append(shelf.library.version("handbook"))
        change()
        shelf.compact()
        assert shelf.library.version("handbook") not in seen
    now = shelf.library.version("handbook")
    shelf.reopen(close=False)
    assert shelf.library.version("handbook") == now


# --- sealing by age


def test_what_lies_in_the_log_for_long_is_sealed(shelf: Shelf) -> None:
    document = shelf.add("Badges expire.")
    shelf.collection.seal_if_old(3600)
    assert len(list((shelf.files / "wal").iterdir())) == 1
    shelf.collection.seal_if_old(0)
    assert list((shelf.files / "wal").iterdir()) == []
    assert list(shelf.contents()) == [document.id]
    before = shelf.collection._store.manifest.generation
    shelf.collection.seal_if_old(0)
    assert shelf.collection._store.manifest.generation == before


# --- gone from the disk


def decrypted(shelf: Shelf) -> Iterator[bytes]:
    """Every byte of every file of the collection, as its keys open it."""
    store = shelf.collection._store
    named = {f"seg/{entry.layout.file}" for entry in store.manifest.segments}
    for segment in shelf.collection._published.snapshot.segments:
        file: SegmentFile = segment._file
        yield from (file.read(section) for section in file._layout.sections)
    for entry in store.manifest.wals:
        cipher = store._cipher(b"log", entry.file_id, entry.wrapped_key)
        wal = WalReader(shelf.files / "wal", store._wal_id(entry), cipher, entry.first_seq)
        yield from wal.records(None)
        named.add(f"wal/{entry.file_id.hex()}")
    manifest, _ = store._manifests.load()
    yield json.dumps(sorted(manifest.deleted) + sorted(manifest.readers)).encode()
    lying = {path.relative_to(shelf.files).as_posix() for path in shelf.files.rglob("*") if path.is_file()}
    assert {name for name in lying if name.startswith(("seg/", "wal/"))} == named


@pytest.mark.parametrize("state", STATES)
def test_a_deleted_document_is_in_no_decrypted_byte_after_compaction(
    shelf: Shelf, state: Callable[[Shelf], object]
) -> None:
    kept = put(shelf, "Doors close zanzibar.", title="kept")
    gone = put(
        shelf, "# Xylophon\n\nThe quokka expires.", title="wombat.md", source="numbat", metadata={"by": "axolotl"}
    )
    replaced = put(shelf, "Marmosets expire.", title="lemur.md", readers=frozenset({EVERYONE, "user:okapi"}))
    state(shelf)
    secrets = [b"quokka", b"wombat", b"numbat", b"axolotl", b"xylophon", b"marmoset", b"lemur", b"okapi"]
    secrets += [identity.encode() for document in (gone, replaced) for identity in (document.id, document.sha256)]
    secrets += [bytes.fromhex(document.id) for document in (gone, replaced)]
    assert any(b"quokka" in raw for raw in decrypted(shelf))
    shelf.delete(gone)
    put(shelf, "Something else.", title="other", replaces=replaced.id)
    shelf.compact()
    everything = [raw.lower() for raw in decrypted(shelf)]
    assert any(b"zanzibar" in raw for raw in everything)
    for secret in secrets:
        assert not any(secret.lower() in raw for raw in everything), secret
    assert kept.id in shelf.contents()


# --- much, and small


def test_a_line_of_ten_megabytes_is_a_document(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(texts: Sequence[str]) -> Floats:
        return np.full((len(texts), shelf.embedder.dimension), shelf.embedder.dimension**-0.5, np.float32)

    monkeypatch.setattr(shelf.embedder, "embed", alike)
    line = "Größe zählt nicht. badge " * 390_000
    document = shelf.add(line)
    shelf.compact()
    assert shelf.library.text("handbook", document.id, Span(1, len(line) - 6, len(line)), ALL) == "badge "
    (hit,) = search(shelf.library, "handbook", "badge", ALL, 1).passages
    assert hit.text == line[hit.span.start : hit.span.end]


@pytest.mark.long
def test_a_hundred_thousand_documents_of_one_byte(tmp_path: Path) -> None:
    """Without fdatasync, whose time is the disk's."""
    shelf = Shelf(tmp_path, seal_passages=20_000)
    library: Library = shelf.library
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.knowledge.storage.wal.os.fdatasync", lambda _: None)
        one = new_document("b")
        made = (replace(one, sha256=f"{number:064x}", title=f"{number:06}") for number in range(100_000))
        while batch := list(islice(made, 1000)):  # to add each alone takes twice as long
            library.add_all("handbook", batch[:-10])
            for document in batch[-10:]:
                library.add("handbook", document)
    assert library.describe("handbook", ALL).document_count == 100_000
    page, after = library.documents("handbook", ALL, limit=3)
    assert [one.title for one in page] == ["000000", "000001", "000002"]
    assert len(search(library, "handbook", "b", ALL, 10).passages) == 10
    library.delete("handbook", page[0].id, ALL)
    assert shelf.reopen().describe("handbook", ALL).document_count == 99_999
    assert shelf.library.documents("handbook", ALL, after=after, limit=1)[0][0].title == "000003"
    shelf.library.close()
