"""The life of a document: taken, shared, replaced, listed, counted, embedded anew, and gone."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import Broken, Cancelled, DiskFull, EmbedderChanged, InvalidArgument, NotFound
from appliance.knowledge.embedders import built_in
from appliance.knowledge.intake import MAX_READERS
from appliance.knowledge.library import Library
from appliance.knowledge.search import view
from appliance.knowledge.storage.segment import SegmentFile
from appliance.knowledge.storage.wal import WalReader
from appliance.types import EVERYONE, Document, Expand, Floats, Leg, MetadataValue, SearchOptions, Span
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document
from tests.knowledge.test_crash import Died, Disk, die
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
    prepared = make_shelf()
    sealed = prepared.add("Badges expire.")
    prepared.compact()
    fresh = prepared.add("Doors close.")
    prepared.library.close()
    disk, step, done = Disk(monkeypatch, die), 0, False
    while not done:
        shelf = prepared.copy(f"step{step}")
        acknowledged: list[Document] = []
        with disk.failing_at(step):
            try:
                for document in (sealed, fresh):
                    acknowledged.append(share(shelf, document, ANN))
                shelf.compact()
                done = True
            except Died:
                pass
        shelf.reopen(close=False)
        for document in acknowledged:
            assert document.id not in shelf.contents()
            assert document.id in shelf.contents(ANN)
        assert len(shelf.contents(ALL | ANN)) == 2
        step += 1
    assert step > 8


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
    prepared = make_shelf()
    old = prepared.add("Badges expire after 90 days.")
    prepared.library.close()
    disk, step, done = Disk(monkeypatch, die), 0, False
    while not done:
        shelf = prepared.copy(f"step{step}")
        with disk.failing_at(step):
            try:
                put(shelf, "Badges expire after 30 days.", replaces=old.id)
                done = True
            except Died:
                pass
        shelf.reopen(close=False)
        ((text,),) = shelf.contents().values()
        assert text == "Badges expire after 30 days." or not done
        step += 1
    assert step > 3


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


# --- sections, and text by range


@given(
    pages=st.lists(
        st.lists(st.sampled_from(["Badges é expire. ", "ключ 鍵🗝 ", "# Doors\n\n", "\n\n"]), max_size=300).map("".join),
        min_size=1,
        max_size=3,
    ),
    cuts=st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3000), st.integers(0, 80)), min_size=5, max_size=9),
)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_span_is_read_as_its_page_holds_it_and_no_other(
    shelf: Shelf, pages: list[str], cuts: list[tuple[int, int, int]]
) -> None:
    shelf.add("Doors close 🗝.", title="before")
    document = shelf.add("Badges.", *pages, title=f"{len(shelf.contents())} {hash(tuple(pages))}")
    every = ("Badges.", *pages)
    for state in STATES:
        state(shelf)
        for page, start, length in cuts:
            text = every[page - 1] if 1 <= page <= len(every) else ""
            spans = [Span(page, start, start + length), Span(page, max(0, len(text) - length), len(text))]
            for span in (*spans, Span(page, start, len(text) + 1)):
                if 1 <= page <= len(every) and 0 <= span.start <= span.end <= len(text):
                    assert shelf.library.text("handbook", document.id, span, ALL) == text[span.start : span.end]
                else:
                    with pytest.raises(NotFound):
                        shelf.library.text("handbook", document.id, span, ALL)


@pytest.mark.parametrize("state", STATES)
def test_what_stands_around_a_passage_is_read_without_the_rest_of_a_huge_page(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, state: Callable[[Shelf], object]
) -> None:
    line = "Die Tür schließt nachts um {} 🗝. "
    page = "".join(line.format(number) for number in range(6000)).replace("um 3000 ", "um Badges expire ")
    document = shelf.add("Doors.", page)
    state(shelf)
    read: list[int] = []
    whole = SegmentFile.read

    def counted(file: SegmentFile, section: str, start: int = 0, length: int | None = None) -> bytes:
        found = whole(file, section, start, length)
        read.append(len(found) if section == "text" else 0)
        return found

    monkeypatch.setattr(SegmentFile, "read", counted)
    for expand in (Expand.SECTION, Expand.PAGE):
        options = SearchOptions(expand=expand)
        (hit,) = search(shelf.library, "handbook", "badges expire", ALL, 1, options).passages
        at = page.index("Badges expire")
        assert hit.context == view.bounded(page, hit.span.start, hit.span.end)
        assert "Badges expire" in hit.context
    assert shelf.library.text("handbook", document.id, Span(2, at, at + 13), ALL) == "Badges expire"
    assert sum(read) < 200_000


def test_the_section_of_a_passage_and_its_headings_are_kept(shelf: Shelf) -> None:
    page = "# Türen\n\nSie schließen nachts.\n\n# Badges\n\nBadges expire after 90 days.\n\nLost ones are blocked."
    shelf.add(page)
    seen = []
    for state in STATES:
        state(shelf)
        units = shelf.collection._published.snapshot.units
        rows = [(unit, row) for unit in units for row in range(unit.rows)]
        seen.append([(unit.piece(row), unit.passage(row), unit.around(row, None, 1000)) for unit, row in rows])
    assert seen[0] == seen[1] == seen[2]
    for piece, (span, text), (around, at) in seen[0]:
        start, end = piece.section
        assert (piece.span, page[span.start : span.end]) == (span, text)
        assert (around, start + at) == (page[start:end], span.start)
    options = SearchOptions(expand=Expand.SECTION)
    (hit, *_) = search(shelf.library, "handbook", "badges expire", ALL, 1, options).passages
    assert "90 days" in hit.context
    assert "schließen" not in hit.context


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


# --- embedded anew


class Steps:
    """Counts what is told, and stops at a step, if it is to."""

    def __init__(self, stops_at: int = -1) -> None:
        self.told: list[tuple[int, int]] = []
        self._stops_at = stops_at

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        if len(self.told) == self._stops_at:
            raise Cancelled("It was cancelled.")
        self.told.append((done, total))


SECOND = WordEmbedder("second", dimension=48)


def with_second(shelf: Shelf) -> Shelf:
    """The same box, that has the second embedder too."""
    shelf.library._embedders = lambda name, identity: built_in(SECOND if name else shelf.embedder)("", identity)
    shelf.collection._embedders = shelf.library._embedders
    return shelf


def filled(shelf: Shelf) -> tuple[list[Document], list[str]]:
    documents = [shelf.add(f"Badge {number} expires.", f"Door {number}.") for number in range(6)]
    shelf.compact()
    documents += [shelf.add(f"Badge {number} expires.") for number in range(6, 9)]
    shelf.delete(documents[1])
    share(shelf, documents[2], ALL | ANN)
    return documents, sorted(shelf.search("badge expires", limit=50))


def assert_of(shelf: Shelf, embedder: WordEmbedder, found: list[str]) -> None:
    """Every vector is of that embedder, and all is found by meaning alone."""
    manifest = shelf.collection._store.manifest
    assert (manifest.embedder, manifest.dimension) == (embedder.identity, embedder.dimension)
    for unit in shelf.collection._published.snapshot.units:
        texts = [unit.piece(row).read(unit.passage(row)[1].rjust(unit.piece(row).span.end)) for row in range(unit.rows)]
        assert np.allclose(unit.vectors(np.arange(unit.rows, dtype=np.uint32)), embedder.embed(texts), atol=1e-3)
    by_meaning = search(shelf.library, "handbook", "badge", ALL, 50, SearchOptions(legs=frozenset({Leg.MEANING})))
    assert sorted(passage.text for passage in by_meaning.passages) == found


def test_all_vectors_are_of_the_other_embedder_at_once(make_shelf: Callable[..., Shelf]) -> None:
    shelf = with_second(make_shelf(seal_passages=5))
    documents, found = filled(shelf)
    contents, steps = shelf.contents(), Steps()
    shelf.library.reembed("handbook", "second", SECOND, steps)
    assert steps.told[-1][0] == steps.told[-1][1] > 0
    assert [done for done, _ in steps.told] == sorted(done for done, _ in steps.told)
    for again in (lambda: None, lambda: with_second(shelf).reopen() and with_second(shelf), shelf.compact):
        again()
        assert_of(shelf, SECOND, found)
        assert shelf.contents() == contents
    added = shelf.add("Badge new expires.")
    assert_of(shelf, SECOND, sorted([*found, "Badge new expires."]))
    assert shelf.library.get("handbook", added.id, ALL).create_time > documents[0].create_time
    shelf.library.reembed("handbook", "", shelf.embedder, Steps())
    assert_of(shelf, shelf.embedder, sorted([*found, "Badge new expires."]))


def test_searches_and_writes_go_on_while_all_is_embedded_anew(shelf: Shelf) -> None:
    with_second(shelf)
    documents, _ = filled(shelf)

    class Meddling(Steps):
        def update(self, done: int, total: int = 0, note: str = "") -> None:
            step = len(self.told)
            if step == 0:
                shelf.add("Badge meanwhile expires.")
                shelf.delete(documents[3])
                share(shelf, documents[4], ANN)
                assert "Badge meanwhile expires." in shelf.search("badge expires", limit=50)
            elif step == 1:
                put(shelf, "Badge instead expires.", replaces=documents[5].id)
            super().update(done, total, note)

    shelf.library.reembed("handbook", "second", SECOND, Meddling())
    found = shelf.search("badge expires", limit=50)
    assert {"Badge meanwhile expires.", "Badge instead expires."} <= set(found)
    assert not {f"Badge {number} expires." for number in (1, 3, 4, 5)} & set(found)
    assert shelf.search("badge", ANN, limit=50).count("Badge 4 expires.") == 1
    assert_of(shelf, SECOND, sorted(found))
    with_second(shelf).reopen()
    assert_of(with_second(shelf), SECOND, sorted(found))


def test_a_document_embedded_by_the_old_one_when_the_switch_comes_is_embedded_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_second(shelf)
    shelf.add("Doors close.")
    embed = shelf.embedder.embed
    switched: list[bool] = []

    def embed_then_switch(texts: list[str]) -> Floats:
        found = embed(texts)
        if not switched:
            switched.append(True)
            shelf.library.reembed("handbook", "second", SECOND, Steps())
        return found

    monkeypatch.setattr(shelf.embedder, "embed", embed_then_switch)
    shelf.add("Badges expire.")
    assert_of(shelf, SECOND, ["Badges expire.", "Doors close."])


def test_cancelling_leaves_everything_as_it_was_at_every_step(make_shelf: Callable[..., Shelf]) -> None:
    shelf = with_second(make_shelf(seal_passages=5))
    _, found = filled(shelf)
    shelf.compact()
    contents, step = shelf.contents(), 0
    files = sorted(path.name for path in (shelf.files / "seg").iterdir())
    while True:
        try:
            shelf.library.reembed("handbook", "second", SECOND, Steps(stops_at=step))
            break
        except Cancelled:
            assert sorted(path.name for path in (shelf.files / "seg").iterdir()) == files
            assert_of(shelf, shelf.embedder, found)
            assert shelf.contents() == contents
        step += 1
    assert step > 2
    assert_of(shelf, SECOND, found)


@pytest.mark.long
def test_dying_at_any_step_leaves_all_old_or_all_new(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = make_shelf(seal_passages=5)
    _, found = filled(prepared)
    contents = prepared.contents()
    prepared.library.close()
    disk, step, done, seen = Disk(monkeypatch, die), 0, False, set()
    while not done:
        shelf = prepared.copy(f"step{step}")
        with disk.failing_at(step):
            try:
                shelf.library.reembed("handbook", "second", SECOND, Steps())
                done = True
            except Died:
                pass
        shelf.reopen(close=False)
        with_second(shelf)
        is_new = shelf.collection._store.manifest.embedder == SECOND.identity
        assert is_new or not done
        seen.add(is_new)
        assert_of(shelf, SECOND if is_new else shelf.embedder, found)
        assert shelf.contents() == contents
        step += 1
    assert seen == {False, True}


def test_vectors_that_are_no_numbers_end_it_and_leave_everything(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with_second(shelf)
    _, found = filled(shelf)

    class Nan(WordEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            return super().embed(texts) * np.float32("nan")

    with pytest.raises(Broken, match="no number"):
        shelf.library.reembed("handbook", "second", Nan("nan"), Steps())
    assert_of(shelf, shelf.embedder, found)
    assert len(list((shelf.files / "seg").iterdir())) == 2


def test_a_box_without_the_embedder_says_how_to_go_on_and_goes_on_so(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    shelf.embedder = WordEmbedder("another")
    shelf.reopen()
    with pytest.raises(EmbedderChanged) as caught:
        shelf.search("badges")
    assert "appliance knowledge reembed" in caught.value.remedy
    shelf.library.reembed("handbook", "", shelf.embedder, Steps())
    assert shelf.search("badges") == ["Badges expire."]


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
        for number in range(100_000):
            library.add("handbook", replace(new_document("b"), sha256=f"{number:064x}", title=f"{number:06}"))
    assert library.describe("handbook", ALL).document_count == 100_000
    page, after = library.documents("handbook", ALL, limit=3)
    assert [one.title for one in page] == ["000000", "000001", "000002"]
    assert len(search(library, "handbook", "b", ALL, 10).passages) == 10
    library.delete("handbook", page[0].id, ALL)
    assert shelf.reopen().describe("handbook", ALL).document_count == 99_999
    assert shelf.library.documents("handbook", ALL, after=after, limit=1)[0][0].title == "000003"
    shelf.library.close()
