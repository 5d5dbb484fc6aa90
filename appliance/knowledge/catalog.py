"""The documents of one collection as rows, in DuckDB in memory: who may read what, and where it lies.

DuckDB holds no file, reaches no file once the rows are loaded, and can't be told otherwise: external access is off, no
extension is installed or loaded by itself, and the configuration is locked. On disk the rows are a Parquet section of
each segment, which goes through a memfd, because DuckDB reads and writes Parquet by name only.

What a caller filters by is SQL over the table `documents` with bound values (`Condition`): the columns title,
media_type, source and so on, and metadata in three maps: texts, numbers, flags.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from threading import Event, Thread
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from appliance.errors import InvalidArgument, StoreDamaged
from appliance.knowledge.acls import Acls
from appliance.knowledge.search.filter import Condition
from appliance.knowledge.storage.record import from_micros, to_micros
from appliance.types import Document, FacetCount, MetadataValue

MEMTABLE = 0
"""The segment number of documents that are in no segment yet."""

FACET_VALUES = 20
QUERY_SECONDS = 5.0
_INTERRUPTED_SECONDS = 0.1
_KEPT_ASIDE = 256
_PLACES_BYTES = 4096  # their own objects, and the filter that they are kept under
_INSERTED_ROWS = 1024
_FACET_COLUMNS = ("media_type", "source")

_FACTS = {
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
    "create_time": "BIGINT",
    "ordinal": "INTEGER",
    "text_start": "BIGINT",
    "page_bytes": "BIGINT[]",
}
_MAPS = {"texts": "VARCHAR", "numbers": "DOUBLE", "flags": "BOOLEAN"}
_SHARED = {**_FACTS, **{name: f"MAP(VARCHAR, {kind})" for name, kind in _MAPS.items()}}
_NAMES = ", ".join(_SHARED)
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A document and its place: the ordinal in its segment, and where its text starts in the segment's text section.

    page_bytes: the UTF-8 length of each page; pages follow one another.
    """

    document: Document
    segment: int
    ordinal: int
    text_start: int
    page_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Documents by place. segments, ordinals: int32 [n]."""

    segments: NDArray[np.int32]
    ordinals: NDArray[np.int32]

    @property
    def size_bytes(self) -> int:
        return self.segments.nbytes + self.ordinals.nbytes + _PLACES_BYTES

    def mask(self, segment: int, first_ordinal: int, count: int) -> NDArray[np.bool_]:
        """bool [count]: which of a segment's documents from `first_ordinal` on are among these."""
        ordinals = self.ordinals[self.segments == segment] - first_ordinal
        found = np.zeros(count, np.bool_)
        found[ordinals[(ordinals >= 0) & (ordinals < count)]] = True
        return found


@dataclass(frozen=True, slots=True)
class Weight:
    """Passages of a segment: of documents that still exist, and of those whose readers it no longer says."""

    live: int
    changed: int


class Catalog:
    """Not safe to use from many threads: its collection locks. Beside all else may run `stage`, and every Instant."""

    def __init__(self, collection: str, parquets: Mapping[int, bytes]) -> None:
        """The rows of each segment by its number. Raises StoreDamaged."""
        self._collection = collection
        self._acls = Acls()
        self._added: list[tuple[Row, int]] = []
        self._connection = duckdb.connect(":memory:", config=_CONFIG)
        self._connection.execute(f"CREATE TABLE documents ({_columns(_SHARED)}, segment INTEGER, acl INTEGER)")
        for segment, parquet in parquets.items():
            self._load(segment, parquet)
        made = self._connection.execute("SELECT DISTINCT sha256, pipeline FROM documents").fetchall()
        files = self._connection.execute("SELECT DISTINCT source, title FROM documents").fetchall()
        self._seen = set(map(hash, (*made, *files)))  # what is not in it need not be looked for
        self._staging = self._connection.cursor()
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def _load(self, segment: int, parquet: bytes) -> None:
        """Raises StoreDamaged."""
        try:
            self._load_rows(segment, parquet)
        except duckdb.Error as error:  # whose text may quote what it read
            raise StoreDamaged(f"The rows of segment {segment} cannot be read: {type(error).__name__}.") from None

    def _load_rows(self, segment: int, parquet: bytes) -> None:
        with _memfd(parquet) as path:
            run = self._connection.execute
            found = {row[0] for row in run(f"DESCRIBE FROM read_parquet('{path}')").fetchall()}
            if "page_bytes" in found:
                columns = f"{_NAMES}, readers"
            else:  # of a release without metadata, with absolute ends of pages
                old = ", ".join(name for name in _FACTS if name not in ("text_start", "page_bytes"))
                lengths = "[page_ends[i + 1] - page_ends[i] for i in range(1, len(page_ends))]"
                maps = ", ".join(f"MAP {{}} AS {name}" for name in _MAPS)
                columns = f"{old}, page_ends[1] AS text_start, {lengths} AS page_bytes, {maps}, readers"
            run(f"CREATE TEMP TABLE loading AS SELECT {columns} FROM read_parquet('{path}')")  # noqa: S608
        sets = [row[0] for row in run("SELECT DISTINCT readers FROM loading").fetchall()]
        numbers = [self._acls.number(frozenset(readers)) for readers in sets]
        made = "SELECT unnest(?::VARCHAR[][]) AS readers, unnest(?::INTEGER[]) AS acl"
        run(f"CREATE TEMP TABLE numbered AS {made}", [sets, numbers])
        run(f"INSERT INTO documents SELECT {_NAMES}, {segment}, acl FROM loading JOIN numbered USING (readers)")  # noqa: S608
        run("DROP TABLE loading; DROP TABLE numbered")

    # --- writing

    def add(self, rows: Sequence[Row]) -> None:
        """Rows are kept aside, and put into the table together: by the next who asks, or when they are many."""
        self._added += [(row, self._acls.number(row.document.readers)) for row in rows]
        for document in (row.document for row in rows):
            self._seen |= {hash((document.sha256, document.pipeline)), hash((document.source, document.title))}
        if len(self._added) >= _KEPT_ASIDE:
            self._flush()

    def _flush(self) -> None:
        if self._added:
            rows, acls = zip(*self._added, strict=True)
            self._added = []
            segments = [row.segment for row in rows]
            _insert(self._connection, rows, {"segment INTEGER": segments, "acl INTEGER": acls})

    def remove(self, documents: Sequence[str]) -> None:
        if documents:
            self._run("DELETE FROM documents WHERE id IN (SELECT unnest(?::VARCHAR[]))", list(documents))

    def set_readers(self, changed: Mapping[str, frozenset[str]]) -> None:
        """By document; of those that do not exist nothing is said."""
        acls = [self._acls.number(readers) for readers in changed.values()]
        self._run(
            "UPDATE documents SET acl = changed.acl FROM"
            " (SELECT unnest(?::VARCHAR[]) AS id, unnest(?::INTEGER[]) AS acl) AS changed"
            " WHERE documents.id = changed.id",
            list(changed),
            acls,
        )
        if len(self._acls) > 64 and self._acls_are_mostly_unused():
            self._acls.keep_only(self._used_acls())

    def _acls_are_mostly_unused(self) -> bool:
        (used,) = self._run("SELECT count(DISTINCT acl) FROM documents").fetchall()[0]
        return len(self._acls) > 2 * int(used)

    def _used_acls(self) -> frozenset[int]:
        return frozenset(row[0] for row in self._run("SELECT DISTINCT acl FROM documents").fetchall())

    def stage(self, rows: Sequence[Row]) -> None:
        """Prepare `move`; may take a while, and readers need not wait."""
        self._staging.execute(
            "CREATE OR REPLACE TABLE moved AS SELECT unnest(?::VARCHAR[]) AS id, unnest(?::INTEGER[]) AS segment,"
            " unnest(?::INTEGER[]) AS ordinal, unnest(?::BIGINT[]) AS text_start",
            [
                [row.document.id for row in rows],
                [row.segment for row in rows],
                [row.ordinal for row in rows],
                [row.text_start for row in rows],
            ],
        )

    def move(self) -> None:
        """Give the staged documents their new places; those that were deleted meanwhile stay deleted."""
        self._run(
            "UPDATE documents SET segment = moved.segment, ordinal = moved.ordinal, text_start = moved.text_start"
            " FROM moved WHERE documents.id = moved.id"
        )
        self._run("DELETE FROM moved")

    # --- reading

    def get(self, document: str, groups: frozenset[str] | None) -> Row | None:
        where, values = self._where(groups, None)
        return self._one(f"id = ? AND {where}", document, *values)

    def places(self, documents: Sequence[str], groups: frozenset[str]) -> dict[str, tuple[str, int, int]]:
        """Title, segment and ordinal by document id, of those that exist and that the groups may read."""
        if not documents:
            return {}
        listed = ", ".join("?" * len(documents))  # twice as fast as a list to unnest, and as to compare acl there
        query = f"SELECT id, title, segment, ordinal, acl FROM documents WHERE id IN ({listed})"  # noqa: S608
        readable = frozenset(self._acls.readable(groups))
        found = self._run(query, *documents).fetchall()
        return {
            document: (title, segment, ordinal) for document, title, segment, ordinal, acl in found if acl in readable
        }

    def find(self, sha256: str, pipeline: str) -> Row | None:
        if hash((sha256, pipeline)) not in self._seen:
            return None
        return self._one("sha256 = ? AND pipeline = ?", sha256, pipeline)

    def find_file(self, source: str, title: str) -> Row | None:
        """The newest document of that source and title."""
        if hash((source, title)) not in self._seen:
            return None
        return self._one("source = ? AND title = ? ORDER BY create_time DESC", source, title)

    def exists(self, document: str) -> bool:
        return bool(self._run("SELECT 1 FROM documents WHERE id = ?", document).fetchall())

    def counts(self, groups: frozenset[str] | None) -> tuple[int, int]:
        """Documents and passages that the groups may read; None: all."""
        where, values = self._where(groups, None)
        query = f"SELECT count(*), coalesce(sum(passage_count), 0)::BIGINT FROM documents WHERE {where}"  # noqa: S608
        documents, passages = self._run(query, *values).fetchall()[0]
        return documents, passages

    def of_segment(self, segment: int) -> tuple[Row, ...]:
        """In the order of their ordinals."""
        return self._select("segment = ? ORDER BY ordinal", segment)

    def weights(self, changed: Sequence[str]) -> dict[int, Weight]:
        """By segment number, without segments of which nothing exists. changed: documents whose readers changed."""
        query = (
            "SELECT segment, sum(passage_count)::BIGINT,"
            " coalesce(sum(passage_count) FILTER (id IN (SELECT unnest(?::VARCHAR[]))), 0)::BIGINT"
            " FROM documents GROUP BY segment"
        )
        return {segment: Weight(*counts) for segment, *counts in self._run(query, list(changed)).fetchall()}

    def instant(
        self, groups: frozenset[str] | None, condition: Condition | None = None, facets: Sequence[str] = ()
    ) -> "Instant":
        """What the groups may read and the condition holds of, as it is now. Facets: the fields to count values of."""
        self._flush()
        where, values = self._where(groups, condition)
        asks = "filter" if condition else "facets" if facets else ""
        row = partial(_row, self._collection, self._acls.copy())
        return Instant(self._connection.cursor(), where, values, row, tuple(dict.fromkeys(facets)), asks)

    def _where(self, groups: frozenset[str] | None, condition: Condition | None) -> tuple[str, list[Any]]:
        where, values = ("true", []) if groups is None else (_READABLE, [self._acls.readable(groups)])
        if condition is None:
            return where, values
        return f"{where} AND ({condition.sql})", [*values, *condition.values]

    def _one(self, condition: str, *values: Any) -> Row | None:
        return next(iter(self._select(condition, *values)), None)

    def _select(self, condition: str, *values: Any) -> tuple[Row, ...]:
        query = f"SELECT {_NAMES}, segment, acl FROM documents WHERE {condition}"  # noqa: S608  (our own text)
        row = partial(_row, self._collection, self._acls)
        return tuple(map(row, self._run(query, *values).fetchall()))

    def _run(self, query: str, *values: Any) -> duckdb.DuckDBPyConnection:
        self._flush()
        return self._connection.execute(query, list(values))


class Instant:
    """A part of the catalogue as it was at one instant, while its collection changes: a transaction of DuckDB's.

    It is made under the collection's lock and used by one thread without it, as a context. What a caller chooses, a
    filter or facets, is interrupted after QUERY_SECONDS in all, and InvalidArgument names it.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        where: str,
        values: list[Any],
        row: Callable[[Sequence[Any]], Row],
        facets: tuple[str, ...],
        asks: str,
    ) -> None:
        """connection: of its own. asks: the field that is to blame where it takes too long, '' for none."""
        self._connection, self._where, self._values, self._to_row = connection, where, values, row
        self._facets, self._asks = facets, asks
        self._ends = time.monotonic() + QUERY_SECONDS
        self._closing = Event()
        self._watch = Thread(target=self._interrupt_when_late, daemon=True)
        connection.execute("BEGIN TRANSACTION")
        connection.execute("SELECT 1 FROM documents LIMIT 0")  # it sees what there is at its first statement

    def __enter__(self) -> "Instant":
        if self._asks:
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._asks:
            self._closing.set()
            self._watch.join()  # so that it never interrupts what is closed
        self._connection.close()

    def _interrupt_when_late(self) -> None:
        """An interrupt ends a query that runs, and is lost on one that begins just then: so it comes again."""
        while not self._closing.wait(max(_INTERRUPTED_SECONDS, self._ends - time.monotonic())):
            self._connection.interrupt()

    def places(self) -> Places:
        """Where the documents lie."""
        found = self._run("SELECT segment, ordinal FROM documents WHERE {where}").fetchnumpy()
        return Places(np.asarray(found["segment"], np.int32), np.asarray(found["ordinal"], np.int32))

    def documents(self, after: tuple[str, str] | None = None, limit: int = 0) -> tuple[Document, ...]:
        """By title and id; after: only what is behind that title and id; limit 0: all."""
        behind, place = (" AND (title, id) > (?, ?)", after) if after is not None else ("", ())
        limited = f" LIMIT {limit:d}" if limit else ""
        query = f"SELECT {_NAMES}, segment, acl FROM documents WHERE {{where}}{behind} ORDER BY title, id{limited}"  # noqa: S608
        return tuple(self._to_row(values).document for values in self._run(query, after=place).fetchall())

    def of_segment(self, segment: int) -> tuple[Row, ...]:
        """In the order of their ordinals."""
        query = f"SELECT {_NAMES}, segment, acl FROM documents WHERE {{where}} AND segment = ? ORDER BY ordinal"  # noqa: S608
        return tuple(map(self._to_row, self._run(query, after=[segment]).fetchall()))

    def facets(self) -> dict[str, tuple[FacetCount, ...]]:
        """By field, the FACET_VALUES commonest values of a column or of metadata."""
        if self._facets and self._asks == "filter" and self._values:
            self._run("CREATE TEMP TABLE passing AS SELECT rowid AS row FROM documents WHERE {where}")
            self._where, self._values = "rowid IN (SELECT row FROM passing)", []  # the condition is looked at once
        return {field: self._facet(field) for field in self._facets}

    def _facet(self, field: str) -> tuple[FacetCount, ...]:
        of, bound = ([field], []) if field in _FACET_COLUMNS else ([f"{name}[?]" for name in _MAPS], [field])
        found: list[FacetCount] = []
        for expression in of:
            query = (
                f"SELECT {expression} AS value, count(*) FROM documents WHERE {{where}} GROUP BY value"  # noqa: S608
                f" HAVING value IS NOT NULL ORDER BY count(*) DESC, value LIMIT {FACET_VALUES}"
            )
            rows = self._run(query, before=bound).fetchall()
            found += [FacetCount(_shown(value), documents) for value, documents in rows]
        return tuple(sorted(found, key=lambda count: (-count.documents, count.value))[:FACET_VALUES])

    def _run(self, query: str, before: Sequence[Any] = (), after: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
        """before, after: the values on either side of those of `where`."""
        try:
            if not self._asks or time.monotonic() < self._ends:
                return self._connection.execute(query.format(where=self._where), [*before, *self._values, *after])
        except duckdb.InterruptException:
            pass
        problem = f"takes longer than {QUERY_SECONDS:g} seconds here; ask for less in one call."
        raise InvalidArgument.of(self._asks, problem)


def _row(collection: str, acls: Acls, values: Sequence[Any]) -> Row:
    facts = dict(zip((*_SHARED, "segment", "acl"), values, strict=True))
    place = {name: facts.pop(name) for name in ("segment", "ordinal", "text_start")}
    page_bytes = tuple(facts.pop("page_bytes"))
    metadata = {name: value for column in _MAPS for name, value in facts.pop(column).items()}
    readers = acls.readers(facts.pop("acl"))
    facts |= {"readers": readers, "metadata": metadata, "create_time": from_micros(facts["create_time"])}
    return Row(Document(collection=collection, **facts), **place, page_bytes=page_bytes)


_READABLE = "acl IN (SELECT unnest(?::INTEGER[]))"


def to_parquet(rows: Sequence[Row]) -> bytes:
    """The rows of one segment, as `Catalog` reads them again."""
    connection = _parquet_database().cursor()
    try:
        connection.execute(f"CREATE TEMP TABLE documents ({_columns(_SHARED)}, readers VARCHAR[])")
        _insert(connection, rows, {"readers VARCHAR[]": [sorted(row.document.readers) for row in rows]})
        with _memfd(b"") as path:
            connection.execute(
                f"COPY (FROM documents ORDER BY ordinal) TO '{path}'"
                " (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
            )
            with open(path, "rb") as file:
                return file.read()
    finally:
        connection.close()


@cache
def _parquet_database() -> duckdb.DuckDBPyConnection:
    """Empty; what is in it is a cursor's own. To make one takes longer than to write a small segment's rows."""
    return duckdb.connect(":memory:", config=_CONFIG)


def _columns(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in kinds.items())


def _insert(connection: duckdb.DuckDBPyConnection, rows: Sequence[Row], more: Mapping[str, Sequence[Any]]) -> None:
    """more: further columns, as "name TYPE"."""
    for first in range(0, len(rows), _INSERTED_ROWS):  # DuckDB's time for one list is more than linear
        part = slice(first, first + _INSERTED_ROWS)
        every = _to_columns(rows[part]) | {name: values[part] for name, values in more.items()}
        unnested = ", ".join(f"unnest(?::{kind}[]) AS {name}" for name, kind in map(str.split, every))
        made = ", ".join(f"map({name}_keys, {name}_values)" for name in _MAPS)
        extra = ", ".join(name.split()[0] for name in more)
        connection.execute(
            f"INSERT INTO documents SELECT {', '.join(_FACTS)}, {made}, {extra} FROM (SELECT {unnested})",  # noqa: S608
            list(every.values()),
        )


def _to_columns(rows: Sequence[Row]) -> dict[str, Sequence[Any]]:
    """By "name TYPE": what is common to the catalogue and Parquet, with keys and values of maps apart."""
    facts = (list(values) for values in zip(*map(_values, rows), strict=True))
    columns: dict[str, Sequence[Any]] = dict(
        zip((f"{name} {kind}" for name, kind in _FACTS.items()), facts, strict=True)
    )
    for name, kind in _MAPS.items():
        held = [_of_kind(row.document.metadata, kind) for row in rows]
        columns[f"{name}_keys VARCHAR[]"] = [list(one) for one in held]
        columns[f"{name}_values {kind}[]"] = [list(one.values()) for one in held]
    return columns


def _values(row: Row) -> tuple[Any, ...]:
    """In the order of _FACTS."""
    own = {
        "create_time": to_micros(row.document.create_time),
        "ordinal": row.ordinal,
        "text_start": row.text_start,
        "page_bytes": list(row.page_bytes),
    }
    return tuple(own[name] if name in own else getattr(row.document, name) for name in _FACTS)


def _of_kind(metadata: Mapping[str, MetadataValue], kind: str) -> dict[str, MetadataValue]:
    wanted = {"VARCHAR": str, "DOUBLE": float, "BOOLEAN": bool}[kind]
    return {name: value for name, value in metadata.items() if type(value) is wanted}


def _shown(value: MetadataValue) -> str:
    """A value as a facet names it, and as a filter would: 3, 3.5, true, text as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


@contextmanager
def _memfd(content: bytes) -> Iterator[str]:
    """The path of a file that lies in memory alone, holding `content`."""
    descriptor = os.memfd_create("rows", os.MFD_CLOEXEC)
    with open(descriptor, "r+b", buffering=0) as file:
        file.write(content)
        yield f"/proc/self/fd/{descriptor}"
