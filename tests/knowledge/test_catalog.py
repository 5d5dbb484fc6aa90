"""The catalogue: rows through Parquet, readers, places, and a DuckDB that reaches nothing."""

import json
import os
import string
import struct
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidArgument, StoreDamaged
from appliance.knowledge import catalog as catalogue
from appliance.knowledge.acls import Acls
from appliance.knowledge.catalog import FACET_VALUES, MEMTABLE, Catalog, Row, Weight, to_parquet
from appliance.knowledge.chunk import Piece
from appliance.knowledge.search.filter import Condition, parse
from appliance.knowledge.storage.record import (
    Deletion,
    Entry,
    ReadersChange,
    Record,
    decode,
    document_to_json,
    encode,
    to_stored_precision,
    together,
)
from appliance.types import EVERYONE, Document, FacetCount, Span

ALL = frozenset({EVERYONE})


def document(id: str = "a" * 32, **fields: object) -> Document:
    made = Document(
        id=id,
        collection="handbook",
        title="badges.md",
        media_type="text/markdown",
        sha256="b" * 64,
        size_bytes=12,
        source="stick",
        parser="text/1",
        pipeline="v1",
        page_count=2,
        passage_count=3,
        readers=ALL,
        create_time=datetime(2026, 11, 20, 12, 30, 0, 123456, UTC),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


metadata = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=8),
    st.text(st.characters(codec="utf-8"), max_size=9)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False),
    max_size=4,
)
numbers = st.integers(0, 99)
pieces = st.builds(
    Piece,
    st.builds(Span, st.integers(1, 9), numbers, numbers),
    st.tuples(numbers, numbers),
    st.sampled_from(["", "Badges", "Türen › Nachts"]),
    st.sampled_from(["", "| a | b |"]),
)
documents = st.builds(
    document,
    id=st.text(string.hexdigits, min_size=1, max_size=8),
    title=st.text(st.characters(codec="utf-8")),
    source=st.text(st.characters(codec="utf-8")),
    size_bytes=st.integers(0, 1 << 62),
    readers=st.frozensets(st.text(st.characters(codec="utf-8"), max_size=5), max_size=4),
    metadata=metadata,
    create_time=st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001  (hypothesis adds the zone)
        timezones=st.just(UTC),
    ),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(documents, max_size=5, unique_by=lambda document: document.id), st.data())
def test_rows_come_back_from_parquet_as_they_were(made: list[Document], data: st.DataObject) -> None:
    sizes = st.lists(st.integers(0, 1 << 60), max_size=4).map(tuple)
    rows = [Row(document, 7, ordinal, ordinal, data.draw(sizes)) for ordinal, document in enumerate(made)]
    catalog = Catalog("handbook", {7: to_parquet(rows)})
    assert catalog.of_segment(7) == tuple(rows)
    assert catalog.weights([]) == ({7: Weight(sum(one.passage_count for one in made), 0)} if made else {})


@given(
    documents,
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=4),
    st.lists(pieces, min_size=1, max_size=4),
    st.sampled_from(["", "f" * 32]),
)
def test_a_record_of_the_log_comes_back_as_it_was(
    made: Document, pages: list[str], cut: list[Piece], replaces: str
) -> None:
    vectors = to_stored_precision(np.random.default_rng(1).standard_normal((len(cut), 8)).astype(np.float32))
    entry = Entry(replace(made, passage_count=len(cut)), tuple(pages), tuple(cut), vectors, replaces)
    (back,) = decode(encode(entry))
    assert isinstance(back, Entry)
    assert (back.document, back.pages, back.pieces, back.replaces) == (
        entry.document,
        entry.pages,
        tuple(cut),
        replaces,
    )
    assert np.array_equal(back.vectors, entry.vectors)
    others: list[Record] = [Deletion(made.id), ReadersChange(made.id, made.readers)]
    assert [decode(encode(other)) for other in others] == [(other,) for other in others]
    first, *rest = decode(together([encode(entry), *map(encode, others)]))
    assert isinstance(first, Entry)
    assert (encode(first), rest) == (encode(entry), others)


def test_a_record_of_an_older_log_is_read() -> None:
    """Kind 1: spans of three numbers, no metadata; a passage is then in the section that its page is."""
    facts = document_to_json(document(passage_count=1, page_count=1)) | {"pages": [15]}
    del facts["metadata"]
    head = json.dumps(facts).encode()
    arrays = np.array([(1, 0, 6)], "<i4").tobytes() + np.ones((1, 4), "<f2").tobytes()
    (entry,) = decode(struct.pack(">BI", 1, len(head)) + head + b"Badges expire.." + arrays)
    assert isinstance(entry, Entry)
    assert entry.pages == ("Badges expire..",)
    assert entry.pieces == (Piece(Span(1, 0, 6), (0, 15), "", ""),)
    assert (entry.document.metadata, entry.replaces) == ({}, "")
    assert entry.vectors.tolist() == [[1.0] * 4]


def test_a_record_of_a_later_release_is_refused() -> None:
    for payload in (b"\x06{}", b"", together([b"\x06{}", encode(Deletion("a"))])):
        with pytest.raises(StoreDamaged, match="does not know"):
            decode(payload)


def test_rows_of_an_older_segment_are_read() -> None:
    """Without metadata, and with absolute ends of pages in place of the lengths of pages."""
    connection = duckdb.connect(":memory:")
    facts = "size_bytes, 's' AS source, 'p' AS parser, 'v1' AS pipeline, 2 AS page_count, 3 AS passage_count"
    descriptor = os.memfd_create("rows")
    with open(descriptor, "r+b", buffering=0) as file:
        path = f"/proc/self/fd/{descriptor}"
        connection.execute(
            f"COPY (SELECT 'a' AS id, 't' AS title, 'text/plain' AS media_type, 'b' AS sha256, 12::BIGINT AS {facts},"
            " ['everyone'] AS readers, 5::BIGINT AS create_time, 0 AS ordinal, [10, 15, 19]::BIGINT[] AS page_ends)"
            f" TO '{path}' (FORMAT parquet, USE_TMP_FILE false)"
        )
        parquet = Path(path).read_bytes()
        assert file.fileno() == descriptor
    (row,) = Catalog("handbook", {3: parquet}).of_segment(3)
    assert (row.text_start, row.page_bytes, row.document.metadata) == (10, (5, 4), {})
    assert row.document.readers == ALL


@pytest.fixture
def catalog() -> Catalog:
    rows = [
        Row(document("a", title="two", metadata={"year": 2020.0, "by": "ann"}), 3, 0, 0, (5,)),
        Row(document("b", title="one", readers=frozenset({"role:admin"}), metadata={"by": "root"}), 3, 1, 5, (4,)),
        Row(document("c", title="three", readers=frozenset({"user:ann", "user:bob"})), 3, 2, 9, (1,)),
    ]
    made = Catalog("handbook", {3: to_parquet(rows)})
    made.add(
        [
            Row(
                document("d", title="four", sha256="d" * 64, metadata={"by": "ann", "year": 2020.5}),
                MEMTABLE,
                0,
                0,
                (7,),
            )
        ]
    )
    return made


def listed(catalog: Catalog, groups: frozenset[str], **which: Any) -> tuple[Document, ...]:
    with catalog.instant(groups) as seen:
        return seen.documents(**which)


def facet(
    catalog: Catalog, field: str, groups: frozenset[str] = ALL, condition: Condition | None = None
) -> tuple[FacetCount, ...]:
    with catalog.instant(groups, condition, [field, field]) as seen:
        return seen.facets()[field]


def names(catalog: Catalog, groups: frozenset[str]) -> list[str]:
    return [document.id for document in listed(catalog, groups)]


def test_a_document_exists_only_for_its_readers(catalog: Catalog) -> None:
    assert names(catalog, ALL) == ["d", "a"]
    assert names(catalog, frozenset({"user:bob", "role:admin"})) == ["b", "c"]
    assert names(catalog, frozenset()) == []
    assert catalog.get("b", ALL) is None
    assert catalog.get("b", frozenset({"role:admin"})) is not None
    assert catalog.counts(ALL) == (2, 6)
    assert catalog.counts(None) == (4, 12)
    assert catalog.places(["a", "b", "x"], ALL) == {"a": ("two", 3, 0)}


def test_readers_change_at_once_also_those_of_a_row_that_was_just_added(catalog: Catalog) -> None:
    catalog.set_readers({"a": frozenset({"user:eve"}), "d": frozenset({"role:admin"}), "gone": ALL})
    assert names(catalog, ALL) == []
    assert names(catalog, frozenset({"user:eve"})) == ["a"]
    assert names(catalog, frozenset({"role:admin"})) == ["d", "b"]
    assert catalog.weights(["a", "d"]) == {3: Weight(9, 3), MEMTABLE: Weight(3, 3)}


def test_access_lists_that_no_document_has_any_more_are_let_go(catalog: Catalog) -> None:
    for number in range(1000):
        catalog.set_readers({"a": frozenset({f"user:{number}"})})
    assert len(catalog._acls) <= 66
    assert names(catalog, frozenset({"user:999"})) == ["a"]
    assert names(catalog, frozenset({"user:998"})) == []
    assert names(catalog, frozenset({"user:ann"})) == ["c"]


@given(st.lists(st.frozensets(st.sampled_from("abcd"), min_size=1), max_size=20), st.data())
def test_access_lists_are_found_by_any_of_their_readers(made: list[frozenset[str]], data: st.DataObject) -> None:
    acls = Acls()
    numbers = [acls.number(readers) for readers in made]
    kept = data.draw(st.frozensets(st.sampled_from(numbers))) if numbers else frozenset()
    acls.keep_only(kept)
    again = {acls.number(readers): readers for readers in made}
    assert len(acls) == len(again) == len(set(made))
    assert all(acls.readers(number) == readers for number, readers in again.items())
    for groups in (frozenset("a"), frozenset("bc"), frozenset()):
        assert acls.readable(groups) == sorted(number for number, readers in again.items() if readers & groups)


def test_a_listing_goes_on_behind_the_last_one_shown(catalog: Catalog) -> None:
    everyone = frozenset({"everyone", "role:admin", "user:ann"})
    assert [one.title for one in listed(catalog, everyone, limit=2)] == ["four", "one"]
    assert [one.title for one in listed(catalog, everyone, after=("one", "b"))] == ["three", "two"]
    assert [one.title for one in listed(catalog, everyone, after=("one", ""), limit=1)] == ["one"]
    assert listed(catalog, everyone, after=("two", "b")) == ()


def test_facets_count_what_may_be_read_and_passes_the_filter(catalog: Catalog) -> None:
    def counted(field: str, groups: frozenset[str] = ALL, condition: str = "") -> dict[str, int]:
        found = facet(catalog, field, groups, parse(condition) if condition else None)
        return {count.value: count.documents for count in found}

    assert counted("by") == {"ann": 2}
    assert counted("by", ALL | {"role:admin"}) == {"ann": 2, "root": 1}
    assert counted("year") == {"2020": 1, "2020.5": 1}
    assert counted("year", condition="year > 2020") == {"2020.5": 1}
    assert counted("media_type") == {"text/markdown": 2}
    assert counted("nothing") == counted("by", frozenset()) == {}


def test_of_many_values_a_facet_names_the_commonest() -> None:
    catalog = Catalog("handbook", {})
    for number in range(60):
        tags = {"tag": f"t{number % 30:02}" if number < 40 else "often", "odd": number % 2 == 1}
        catalog.add([Row(document(str(number), metadata=tags), MEMTABLE, number, 0, ())])
    found = facet(catalog, "tag")
    assert [(found[0].value, found[0].documents), found[1].documents, len(found)] == [("often", 20), 2, FACET_VALUES]
    assert [(one.value, one.documents) for one in facet(catalog, "odd")] == [("false", 30), ("true", 30)]


def test_places_give_the_readable_documents_of_a_stretch(catalog: Catalog) -> None:
    with catalog.instant(frozenset({EVERYONE, "user:ann"})) as seen:
        places = seen.places()
    assert places.mask(3, 0, 3).tolist() == [True, False, True]
    assert places.mask(3, 1, 2).tolist() == [False, True]
    assert places.mask(MEMTABLE, 0, 2).tolist() == [True, False]
    assert places.mask(9, 0, 1).tolist() == [False]


def test_an_instant_stays_as_it_was_whatever_is_written_meanwhile(catalog: Catalog) -> None:
    groups = frozenset({EVERYONE, "user:ann"})
    before = listed(catalog, groups)
    with catalog.instant(groups, parse('title != "x"'), ["by"]) as seen:
        catalog.remove(["a"])
        catalog.add([Row(document("new"), MEMTABLE, 9, 0, ())])
        for number in range(99):  # so that access lists are let go, and their numbers given anew
            catalog.set_readers({"b": frozenset({f"user:{number}"})})
        catalog.stage([Row(document("c"), 8, 0, 0, (1,))])
        catalog.move()
        assert seen.documents() == before
        assert len(seen.places().segments) == len(before)
        assert 8 not in seen.places().segments
        assert sum(count.documents for count in seen.facets()["by"]) <= len(before)
    assert {one.id for one in listed(catalog, groups)} == ({one.id for one in before} - {"a", "b"}) | {"new"}


@pytest.mark.parametrize(("condition", "facets", "blamed"), [("by : *", [], "filter"), ("", ["by"], "facets")])
def test_what_takes_too_long_is_ended_by_name_and_the_catalogue_goes_on(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, condition: str, facets: list[str], blamed: str
) -> None:
    monkeypatch.setattr(catalogue, "QUERY_SECONDS", 0.05)
    with catalog.instant(ALL, parse(condition) if condition else None, facets) as seen:
        endless = "SELECT count(*) FROM range(1000000000000) WHERE {where}"
        seen._where, seen._values = "range % 7 = 3", []
        with pytest.raises(InvalidArgument, match=f"{blamed}: takes longer than 0.05 seconds"):
            seen._run(endless)
        with pytest.raises(InvalidArgument, match=blamed):
            seen.places()
    monkeypatch.undo()
    assert len(listed(catalog, ALL)) > 1
    assert len(facet(catalog, "by")) == 1


def test_a_moved_document_keeps_all_but_its_place_and_a_deleted_one_stays_deleted(catalog: Catalog) -> None:
    catalog.remove(["d"])
    catalog.set_readers({"a": frozenset({"user:eve"})})
    catalog.stage([Row(document("d"), 4, 0, 0, (7,)), Row(document("a", title="two"), 4, 1, 7, (5,))])
    assert catalog.of_segment(4) == ()
    catalog.move()
    (row,) = catalog.of_segment(4)
    assert (row.document.id, row.ordinal, row.text_start, row.page_bytes) == ("a", 1, 7, (5,))
    assert row.document.readers == frozenset({"user:eve"})
    assert catalog.counts(None)[0] == 3


def test_a_document_is_found_by_what_it_was_made_from(catalog: Catalog) -> None:
    found = catalog.find("d" * 64, "v1")
    assert found is not None
    assert found.document.id == "d"
    assert catalog.find("d" * 64, "v2") is None
    catalog.remove(["d"])
    assert catalog.find("d" * 64, "v1") is None


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY documents TO '/tmp/appliance-leak.csv'",
        "ATTACH '/tmp/appliance-leak.duckdb'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET autoinstall_known_extensions = true",
        "RESET lock_configuration",
    ],
)
def test_duckdb_reaches_no_file_and_cannot_be_told_to(catalog: Catalog, statement: str) -> None:
    with pytest.raises(duckdb.Error):
        catalog._connection.execute(statement)
    assert not list(Path("/tmp").glob("appliance-leak*"))
