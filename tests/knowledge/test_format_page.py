"""docs/reference/storage-format.md says what lies on the disk: a reader made from the page reads what was added."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import StoreDamaged
from appliance.knowledge.index import postings, vectors
from appliance.knowledge.index.inversion import Row
from appliance.knowledge.index.languages import NUMBERS
from appliance.types import Block, BlockKind, MetadataValue, NewDocument
from appliance.vault import FileKeyring, FileTenantKeys
from tests.knowledge.conftest import Shelf, new_document
from tests.knowledge.format_reader import Collection, Document, Index, Keys, Passage
from tests.knowledge.test_keys import Box
from tests.knowledge.test_upgrade import WAS, version_1

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "storage-format.md"
ADMINS = frozenset({"role:admin"})


def structured(title: str = "Access — Größe") -> NewDocument:
    """With headings, a table that is cut, so that its head is repeated, and an empty page."""
    parts = [
        (BlockKind.HEADING, "Doors", 1),
        (BlockKind.PARAGRAPH, "Badges expire after 90 days. Größe zählt.", 0),
        (BlockKind.HEADING, "Floors 日本", 2),
        (BlockKind.TABLE, "room | key\n--- | ---\n" + "\n".join(f"r{at} | key{at} of it" for at in range(120)), 0),
        (BlockKind.LIST, "- one\n- two", 0),
        (BlockKind.CODE, "open(door)", 0),
    ]
    page, blocks = "", []
    for kind, text, level in parts:
        blocks.append(Block(kind, 1, len(page), len(page) + len(text), level))
        page += f"{text}\n\n"
    made = new_document(page, "", "На третьей странице 日本語 too.", title=title)
    metadata: dict[str, MetadataValue] = {"floor": 3.5, "area": "north", "locked": True}
    return replace(made, blocks=tuple(blocks), metadata=metadata, readers=ADMINS | {"user:ann"})


def read(shelf: Shelf) -> Collection:
    return Collection(Keys(shelf.root / "vault"), shelf.files)


def check_all(shelf: Shelf) -> Collection:
    """The reader reads what the library lists, and its pages; its vectors are those of its texts."""
    found = read(shelf)
    assert not found.is_older_than_its_mark()
    listed, _ = shelf.library.documents("handbook", None)
    assert found.documents.keys() == {one.id for one in listed}
    for one in listed:
        document = found.documents[one.id]
        own = {name: document.facts[name] for name in document.facts if name != "create_time"}
        assert own == {name: getattr(one, name) for name in own}
        assert {"id", "title", "media_type", "sha256", "size_bytes", "source", "parser", "pipeline"} <= own.keys()
        assert document.facts["create_time"] == round(one.create_time.timestamp() * 1e6)
        assert (document.readers, document.metadata) == (one.readers, one.metadata)
        assert document.pages == shelf.library.pages("handbook", one.id, one.readers)
        assert len(document.passages) == one.passage_count > 0
        check_vectors(shelf, document)
    return found


def embedded(document: Document, passage: Passage) -> str:
    return "\n".join(filter(None, (passage.heading, passage.repeated, document.text(passage))))


def check_vectors(shelf: Shelf, document: Document) -> None:
    exact = shelf.embedder.embed([embedded(document, passage) for passage in document.passages])
    np.testing.assert_array_equal([one.vector for one in document.passages], exact.astype(np.float16))


@pytest.fixture
def filled(make_shelf: Callable[..., Shelf]) -> Shelf:
    """Segments and logs in which each thing is said that either can say."""
    shelf = make_shelf()
    library = shelf.library
    library.add("handbook", structured())
    old = [shelf.add(f"Badge {at} expires.", title=f"old {at}") for at in range(5)]
    shelf.compact()
    for at in range(3):
        shelf.add("Keys of the third floor.", "Doors close." * 90, title=f"more {at}")
    library.seal_where_old(-1.0)
    shelf.delete(old[0])
    library.set_readers("handbook", old[1].id, ADMINS, None)
    shelf.add("Something for a seal.")
    library.seal_where_old(-1.0)  # what was said of old documents is in the manifest now
    library.add("handbook", structured("in the log"))
    shelf.delete(old[2])
    library.set_readers("handbook", old[3].id, ADMINS, None)
    added = library.add_all(
        "handbook", [new_document("One of two."), replace(new_document("New."), replaces=old[4].id)]
    )
    assert len(added) == 2
    shelf.reopen()  # another log
    shelf.delete(shelf.add("Gone at once."))
    return shelf


def test_every_document_passage_and_vector_is_read(filled: Shelf) -> None:
    found = check_all(filled)
    assert len(found.segments) == 3
    assert len(found.manifest["deleted"]) == 1
    assert len(found.manifest["readers"]) == 1
    assert len(found.manifest["wals"]) == 2
    assert found.records == 6
    filled.library.close()
    assert read(filled).marked_seq == found.next_seq


@pytest.mark.parametrize("sealed", [False, True])
def test_structure_is_read_from_segments_and_from_logs(shelf: Shelf, sealed: bool) -> None:
    made = structured()
    shelf.library.add("handbook", made)
    if sealed:
        shelf.compact()
    found = check_all(shelf)
    assert bool(found.segments) is sealed
    (document,) = found.documents.values()
    wanted = [(one.kind.value, one.page, one.start, one.end, one.level) for one in made.blocks]
    assert list(document.blocks) == wanted
    under_floors = [one for one in document.passages if one.heading == "Doors › Floors 日本"]
    assert next(one.repeated for one in under_floors if one.repeated) == "room | key\n--- | ---"
    assert len({one.section for one in document.passages}) > 1
    text = "".join(document.text(one) for one in document.passages)
    assert all(f"key{at}" in text for at in range(120))


def test_it_is_read_after_every_key_was_rotated(filled: Shelf) -> None:
    before = read(filled).documents.keys()
    filled.libraries.rotate("default")
    assert check_all(filled).documents.keys() == before
    filled.library.close()
    keyring = FileKeyring.open(filled.root / "vault", filled.root / "knowledge")
    keyring.rotate([FileTenantKeys(filled.root / "vault" / "tenants", keyring).rewrap])
    assert read(filled).documents.keys() == before


def test_int8_and_float16_are_the_same_vectors(filled: Shelf) -> None:
    for segment in read(filled).segments:
        vectors = segment.halves
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
        steps = abs(vectors).max(axis=1, keepdims=True) / 127
        assert (abs(segment.int8() - vectors) <= 0.51 * steps + 1e-6).all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("left", [1, 15, 16, 600])
def test_a_torn_write_at_the_end_is_left_out_and_what_the_mark_has_seen_is_missed(
    shelf: Shelf, zeros: bool, left: int
) -> None:
    """left: the bytes of the last record that came through; zeros: the file had grown before."""
    kept = shelf.add("Badges expire.")
    size = shelf.file("wal").stat().st_size
    shelf.add("Doors close." * 400)
    crashed = shelf.copy("crashed")
    raw = crashed.file("wal").read_bytes()
    shelf.library.close()
    for torn in (crashed, shelf):
        torn.file("wal").write_bytes(raw[: size + left].ljust(len(raw) if zeros else 0, b"\0"))
        found = Collection(Keys(torn.root / "vault"), torn.files)
        assert found.documents.keys() == {kept.id}
        assert found.is_older_than_its_mark() is (torn is shelf)
    assert crashed.contents().keys() == {kept.id}
    crashed.library.close()
    with pytest.raises(StoreDamaged):
        shelf.reopen(close=False).documents("handbook", None)


# --- the inverted index


UNSPACED = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]+")


def words(text: str) -> list[str]:
    found = []
    for word in re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()):
        if UNSPACED.fullmatch(word):
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        else:
            found.append(word)
    return found


def test_each_position_of_each_row_is_that_of_its_word(filled: Shelf) -> None:
    """Each word of each passage has its place in the list of one term that begins as it does, and nothing else has."""
    for segment in read(filled).segments:
        index, rows = segment.index(), [(one, passage) for one in segment.documents for passage in one.passages]
        assert index.rows == len(rows)
        for row, (document, passage) in enumerate(rows):
            body = words(f"{passage.repeated}\n{document.text(passage)}")
            heading = words(f"{document.facts['title']}\n{passage.heading}")
            wanted = dict(enumerate([*body, "", *heading, "", *heading]))
            held = {at: term for term in index.terms for at in index.postings[term].get(row, ())}
            assert held.keys() == {at for at, word in wanted.items() if word}
            assert index.lengths[row] == len(body) + 2 * len(heading)
            for at, term in held.items():
                if term[0] == 0:
                    assert term[1:].decode() == wanted[at]
                else:
                    assert term[1:].decode()[:2] == wanted[at][:2]
                    assert len(term[1:].decode()) <= 8
            assert sum(index.counts[term].get(row, 0) for term in index.terms) == len(held)


def test_a_term_has_the_number_of_its_language_and_the_stem(shelf: Shelf) -> None:
    shelf.add("The badges of the doors are expiring and they are not for you.", title="A")
    shelf.add("Größe", "Zugangsberechtigungen sind nicht für die Türen und werden von der Größe bestimmt.", title="B")
    shelf.add("Badges 90 日本語", title="C")
    shelf.compact()
    (segment,) = read(shelf).segments
    index = segment.index()
    for term in (b"\2badg", b"\2expir", b"\3zugangsb", b"\1badge", b"\x0090", "\0日本".encode(), "\0本語".encode()):
        assert len(index.postings[term]) == 1, term


def test_the_page_names_the_languages_in_the_order_of_their_numbers() -> None:
    (listed,) = re.findall(r"^Languages, from 2 on: (.*?)\.$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert re.split(r",\s+", listed) == list(NUMBERS)
    assert NUMBERS["english"] == 2


def test_every_kind_of_list_and_every_width_is_read() -> None:
    """A term for each: gaps of 1, 2 and 4 bytes, with counts and without; one that is there 300 times; a dense one."""
    texts = [""] * 66_000
    texts[0] = "one1 two1 two1 four1 four2 four2" + " often1" * 300 + " x1 " * 300 + " y1"
    texts[1] = "word1 " * 66_000 + " z1"
    texts[9] += " one1 one2 one2"
    texts[300] += " two1 wide1"
    texts[65_900] += " four1 four2 four2"
    sections = postings.to_sections([Row(text) for text in texts])
    index = Index(sections["postings"], sections["positions"])
    kinds = {term[1:].decode(): kind for term, kind in zip(index.terms, index.kinds, strict=True)}
    named = {name: kinds[name] for name in ("one1", "one2", "wide1", "two1", "four1", "four2")}
    assert named == {"one1": 1, "one2": 9, "wide1": 2, "two1": 10, "four1": 4, "four2": 12}
    assert index.widths == {1, 2, 4}
    assert index.postings[b"\0four2"] == {0: [4, 5], 65_900: [1, 2]}
    assert index.counts[b"\0often1"] == {0: 255}
    assert index.postings[b"\0often1"][0] == list(range(6, 6 + 255))
    assert index.postings[b"\0y1"] == {0: [606]}
    assert index.postings[b"\0z1"] == {1: [66_000]}
    sections = postings.to_sections([Row(text) for text in ("dense1", "dense1 dense1", "", "dense1")])
    dense = Index(sections["postings"], sections["positions"])
    assert list(dense.kinds) == [0]
    assert dense.counts == {b"\0dense1": {0: 1, 1: 2, 3: 1}}
    assert index.lengths[:2] == [607, 66_001]


# --- the graph


def test_the_graph_leads_from_its_entry_to_every_row_and_to_the_nearest(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "to_sections", partial(vectors.to_sections, exact_below=1))
    shelf.library.add_all("handbook", [new_document(f"Badge {at} of {at % 7} and {at * at}.") for at in range(400)])
    shelf.compact()
    (segment,) = read(shelf).segments
    graph, rows = segment.graph(), segment.halves
    assert graph.rows == len(rows) == 400
    assert len(graph.levels) > 1
    for level, below in zip(graph.levels[1:], graph.levels, strict=False):
        assert 0 < len(level) < len(below)
        assert level.keys() <= below.keys()
    met, left = {graph.entry}, [graph.entry]
    while left:
        left = list({row for here in left for row in graph.levels[0][here]} - met)
        met.update(left)
    assert len(met) == 400
    hits = 0
    for query in rows[::40]:
        hits += len({*graph.search(query, rows, 20)[:10]} & {*np.argsort(-(rows @ query))[:10].tolist()})
    assert hits >= 90


# --- the version before


def test_segments_of_version_1_are_read(tmp_path: Path) -> None:
    box = Box(version_1(tmp_path))
    box.libraries.close()
    versions = []
    for name in ("handbook", "default"):
        found = Collection(Keys(tmp_path / "vault"), tmp_path / "knowledge" / "default" / name)
        assert sorted(one.pages for one in found.documents.values()) == WAS
        versions += [entry["layout"].get("version", 1) for entry in found.manifest["segments"]]
    assert set(versions) == {1}
