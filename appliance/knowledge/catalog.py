"""The documents of one collection as rows, in DuckDB in memory: who may read what, and where it lies.

DuckDB holds no file, reaches no file once the rows are loaded, and can't be told otherwise: external access is off, no
extension is installed or loaded by itself, and the configuration is locked. On disk the rows are a Parquet section of
each segment, which goes through a memfd, because DuckDB reads and writes Parquet by name only.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.search.filter import Condition
from appliance.knowledge.storage.record import from_micros, to_micros
from appliance.types import Document

MEMTABLE = 0
"""The segment number of documents that are in no segment yet."""

_COLUMNS = {
    "id": "VARCHAR",
    "title": "VARCHAR",
    "media_type": "VARCHAR",
    "sha256": "VARCHAR",
    "size_bytes": "BIGINT",
    "source": "VARCHAR",
    "parser": "VARCHAR",
    "pipeline": "VARCHAR",
    "page_count": "INTEGER",
    "passage_count": "INTEGER",
    "readers": "VARCHAR[]",
    "create_time": "BIGINT",
    "ordinal": "INTEGER",
    "page_ends": "BIGINT[]",
}
_NAMES = ", ".join(_COLUMNS)
_CREATE = f"CREATE TABLE documents ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())}, segment INTEGER)"
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A document and its place: the ordinal in its segment, and where each page ends in the segment's text section.

    page_ends: byte offsets, one more than there are pages, the first being the start of page 1; empty in the memtable.
    """

    document: Document
    segment: int
    ordinal: int
    page_ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Places:
    """Documents by place. segments, ordinals: int32 [n]."""

    segments: NDArray[np.int32]
    ordinals: NDArray[np.int32]

    def mask(self, segment: int, first_ordinal: int, count: int) -> NDArray[np.bool_]:
        """bool [count]: which of a segment's documents from `first_ordinal` on are among these."""
        ordinals = self.ordinals[self.segments == segment] - first_ordinal
        found = np.zeros(count, np.bool_)
        found[ordinals[(ordinals >= 0) & (ordinals < count)]] = True
        return found


class Catalog:
    """Not safe to use from many threads: its collection locks."""

    def __init__(self, collection: str, parquets: Mapping[int, bytes], deleted: frozenset[str]) -> None:
        """The rows of each segment by its number, without the deleted ones."""
        self._collection = collection
        self._connection = duckdb.connect(":memory:", config=_CONFIG)
        run = self._connection.execute
        run(_CREATE)
        for segment, parquet in parquets.items():
            with _memfd(parquet) as path:
                run(f"INSERT INTO documents SELECT {_NAMES}, ? FROM read_parquet('{path}')", [segment])  # noqa: S608
        if deleted:
            run("DELETE FROM documents WHERE id IN (SELECT unnest(?::VARCHAR[]))", [sorted(deleted)])
        run("SET enable_external_access = false")
        run("SET lock_configuration = true")

    def add(self, rows: Sequence[Row]) -> None:
        _insert(self._connection, rows)

    def remove(self, documents: Sequence[str]) -> None:
        self._connection.execute("DELETE FROM documents WHERE id IN (SELECT unnest(?::VARCHAR[]))", [list(documents)])

    def move(self, rows: Sequence[Row]) -> None:
        """Give documents a new place; those that were deleted meanwhile stay deleted."""
        ids = [row.document.id for row in rows]
        held = self._connection.execute(
            "SELECT id FROM documents WHERE id IN (SELECT unnest(?::VARCHAR[]))", [ids]
        ).fetchall()
        present = {row[0] for row in held}
        self.remove(ids)
        self.add([row for row in rows if row.document.id in present])

    def get(self, document: str, groups: frozenset[str]) -> Row | None:
        return self._one("id = ? AND list_has_any(readers, ?)", document, sorted(groups))

    def places(self, documents: Sequence[str], groups: frozenset[str]) -> dict[str, tuple[str, int, int]]:
        """Title, segment and ordinal by document id, of those that exist and that the groups may read."""
        query = (
            "SELECT id, title, segment, ordinal, list_has_any(readers, ?) FROM documents"
            " WHERE id IN (SELECT unnest(?::VARCHAR[]))"
        )
        found = self._connection.execute(query, [sorted(groups), list(documents)]).fetchall()
        return {document: (title, segment, ordinal) for document, title, segment, ordinal, may_read in found if may_read}

    def find(self, sha256: str, pipeline: str) -> Row | None:
        return self._one("sha256 = ? AND pipeline = ?", sha256, pipeline)

    def list(self, groups: frozenset[str]) -> tuple[Document, ...]:
        """What the groups may read, by title."""
        rows = self._select("list_has_any(readers, ?) ORDER BY title, id", sorted(groups))
        return tuple(row.document for row in rows)

    def of_segment(self, segment: int) -> tuple[Row, ...]:
        """In the order of their ordinals."""
        return self._select("segment = ? ORDER BY ordinal", segment)

    def passages_of_segments(self) -> dict[int, int]:
        """By segment number, of the documents that still exist; a segment without any is not named."""
        query = "SELECT segment, CAST(sum(passage_count) AS BIGINT) FROM documents GROUP BY segment"
        return dict(self._connection.execute(query).fetchall())

    def readable(self, groups: frozenset[str], condition: Condition | None = None) -> Places:
        """Where the documents lie that the groups may read and the condition lets pass."""
        where, values = (f" AND {condition.sql}", condition.values) if condition else ("", ())
        found = self._connection.execute(
            f"SELECT segment, ordinal FROM documents WHERE list_has_any(readers, ?){where}",  # noqa: S608  (bound)
            [sorted(groups), *values],
        ).fetchnumpy()
        return Places(np.asarray(found["segment"], np.int32), np.asarray(found["ordinal"], np.int32))

    def counts(self) -> tuple[int, int]:
        """Documents, passages."""
        found = self._connection.execute("SELECT count(*), coalesce(sum(passage_count), 0) FROM documents").fetchone()
        return (int(found[0]), int(found[1])) if found else (0, 0)

    def _one(self, condition: str, *values: Any) -> Row | None:
        rows = self._select(f"{condition} LIMIT 1", *values)
        return rows[0] if rows else None

    def _select(self, condition: str, *values: Any) -> tuple[Row, ...]:
        query = f"SELECT {_NAMES}, segment FROM documents WHERE {condition}"  # noqa: S608  (our own text)
        return tuple(self._row(row) for row in self._connection.execute(query, list(values)).fetchall())

    def _row(self, values: Sequence[Any]) -> Row:
        facts = dict(zip((*_COLUMNS, "segment"), values, strict=True))
        place = {name: facts.pop(name) for name in ("segment", "ordinal")}
        page_ends = tuple(facts.pop("page_ends"))
        facts |= {"readers": frozenset(facts["readers"]), "create_time": from_micros(facts["create_time"])}
        return Row(Document(collection=self._collection, **facts), **place, page_ends=page_ends)


def to_parquet(rows: Sequence[Row]) -> bytes:
    """The rows of one segment, as `Catalog` reads them again."""
    connection = duckdb.connect(":memory:", config=_CONFIG)
    try:
        connection.execute(_CREATE)
        _insert(connection, rows)
        with _memfd(b"") as path:
            connection.execute(
                f"COPY (SELECT {_NAMES} FROM documents ORDER BY ordinal) TO '{path}'"  # noqa: S608
                " (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
            )
            with open(path, "rb") as file:
                return file.read()
    finally:
        connection.close()


def _insert(connection: duckdb.DuckDBPyConnection, rows: Sequence[Row]) -> None:
    if rows:
        columns = [list(column) for column in zip(*map(_values, rows), strict=True)]
        unnested = ", ".join(f"unnest(?::{kind}[])" for kind in (*_COLUMNS.values(), "INTEGER"))
        connection.execute(f"INSERT INTO documents SELECT {unnested}", columns)


def _values(row: Row) -> tuple[Any, ...]:
    """In the order of the columns."""
    own = {
        "readers": sorted(row.document.readers),
        "create_time": to_micros(row.document.create_time),
        "ordinal": row.ordinal,
        "page_ends": list(row.page_ends),
    }
    return (*(own[name] if name in own else getattr(row.document, name) for name in _COLUMNS), row.segment)


@contextmanager
def _memfd(content: bytes) -> Iterator[str]:
    """The path of a file that lies in memory alone, holding `content`."""
    descriptor = os.memfd_create("rows", os.MFD_CLOEXEC)
    with open(descriptor, "r+b", buffering=0) as file:
        file.write(content)
        yield f"/proc/self/fd/{descriptor}"
