"""The catalogue: rows through Parquet, readers, places, and a DuckDB that reaches nothing."""

import string
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.knowledge.catalog import MEMTABLE, Catalog, Row, to_parquet
from appliance.knowledge.storage.record import Deletion, Entry, decode, encode, to_stored_precision
from appliance.types import EVERYONE, Document, Span

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


documents = st.builds(
    document,
    id=st.text(string.hexdigits, min_size=1, max_size=8),
    title=st.text(st.characters(codec="utf-8")),
    source=st.text(st.characters(codec="utf-8")),
    size_bytes=st.integers(0, 1 << 62),
    readers=st.frozensets(st.text(st.characters(codec="utf-8"), max_size=5), max_size=4),
    create_time=st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001  (hypothesis adds the zone)
        timezones=st.just(UTC),
    ),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(documents, max_size=5, unique_by=lambda document: document.id), st.data())
def test_rows_come_back_from_parquet_as_they_were(made: list[Document], data: st.DataObject) -> None:
    ends = st.lists(st.integers(0, 1 << 60), max_size=4).map(tuple)
    rows = [Row(document, 7, ordinal, data.draw(ends)) for ordinal, document in enumerate(made)]
    catalog = Catalog("handbook", {7: to_parquet(rows)}, frozenset())
    assert catalog.of_segment(7) == tuple(rows)
    assert catalog.passages_of_segments() == ({7: sum(one.passage_count for one in made)} if made else {})


@given(
    documents,
    st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=4),
    st.lists(st.builds(Span, st.integers(1, 9), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=4),
)
def test_a_record_of_the_log_comes_back_as_it_was(made: Document, pages: list[str], spans: list[Span]) -> None:
    vectors = to_stored_precision(np.random.default_rng(1).standard_normal((len(spans), 8)).astype(np.float32))
    entry = Entry(replace(made, passage_count=len(spans)), tuple(pages), tuple(spans), vectors)
    back = decode(encode(entry))
    assert isinstance(back, Entry)
    assert (back.document, back.pages, back.spans) == (entry.document, entry.pages, entry.spans)
    assert np.array_equal(back.vectors, entry.vectors)
    assert decode(encode(Deletion(made.id))) == Deletion(made.id)


@pytest.fixture
def catalog() -> Catalog:
    rows = [
        Row(document("a", title="two"), 3, 0, (0, 5)),
        Row(document("b", title="one", readers=frozenset({"role:admin"})), 3, 1, (5, 9)),
        Row(document("c", title="three", readers=frozenset({"user:ann", "user:bob"})), 3, 2, (9, 10)),
    ]
    made = Catalog("handbook", {3: to_parquet(rows)}, frozenset())
    made.add([Row(document("d", title="four", sha256="d" * 64), MEMTABLE, 0)])
    return made


def test_a_document_exists_only_for_its_readers(catalog: Catalog) -> None:
    assert [document.id for document in catalog.list(ALL)] == ["d", "a"]
    assert [document.id for document in catalog.list(frozenset({"user:bob", "role:admin"}))] == ["b", "c"]
    assert catalog.list(frozenset()) == ()
    assert catalog.get("b", ALL) is None
    assert catalog.get("b", frozenset({"role:admin"})) is not None


def test_places_give_the_readable_documents_of_a_stretch(catalog: Catalog) -> None:
    places = catalog.readable(frozenset({EVERYONE, "user:ann"}))
    assert places.mask(3, 0, 3).tolist() == [True, False, True]
    assert places.mask(3, 1, 2).tolist() == [False, True]
    assert places.mask(MEMTABLE, 0, 2).tolist() == [True, False]
    assert places.mask(9, 0, 1).tolist() == [False]


def test_deleted_documents_of_a_segment_are_not_loaded() -> None:
    rows = [Row(document("a"), 1, 0), Row(document("b"), 1, 1)]
    catalog = Catalog("handbook", {1: to_parquet(rows)}, frozenset({"a"}))
    assert [document.id for document in catalog.list(ALL)] == ["b"]
    assert catalog.counts() == (1, 3)


def test_a_moved_document_keeps_all_but_its_place_and_a_deleted_one_stays_deleted(catalog: Catalog) -> None:
    catalog.remove(["d"])
    catalog.move([Row(document("d"), 4, 0, (0, 1)), Row(document("a", title="two"), 4, 1, (1, 2))])
    assert [(row.document.id, row.ordinal) for row in catalog.of_segment(4)] == [("a", 1)]
    assert catalog.counts()[0] == 3


def test_a_document_is_found_by_what_it_was_made_from(catalog: Catalog) -> None:
    found = catalog.find("d" * 64, "v1")
    assert found is not None
    assert found.document.id == "d"
    assert catalog.find("d" * 64, "v2") is None


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
