"""What an ingestion is and how each of its files stands, durable: <directory>/<tenant>/<ingestion>/log, a SealedLog.

A record is compressed JSON: {"head": {…}, "files": [[…], …]}, either of which may be missing. The state is the fold of
all records: the last head, and of each file its last row. When an ingestion ends its log is written anew, a row a file,
with a head that holds the counts, so that a start reads one record of it.
"""

import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any

import structlog

from appliance.errors import ApplianceError, StoreDamaged, WrongState
from appliance.ingest.keys import IngestKeys
from appliance.ingest.remedies import remedy_for
from appliance.ingest.sealed_log import SealedLog
from appliance.types import Document, FileOutcome, FileState, Ingestion, IngestionState, Provenance, SourceKind

ROWS = 1000
"""Files in one record of a log that is written anew."""

_COLUMNS = 19
"""Of a file's row, see `_row`."""

_AT_WORK = (IngestionState.SCANNING, IngestionState.RUNNING)
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Item:
    """A file of an ingestion. number: its place in the ledger. name: as its source has it, or its container.

    container: the number of the file that it is a member of, -1 for none; depth: how many containers it lies in.
    replaced: the sha256 of the document that it took the place of. signer: of the manifest that lists it.

    within: the path of the container that it lay in, where that is of another ingestion, from which it was released.
    seen, seen_sha256: stamp, and digest if it was read, of the file that a watch found whole: no other is taken.

    While a file is HELD, its outcome's document is one that was made of it, and deleted before this could be told.
    """

    number: int
    name: str
    outcome: FileOutcome
    container: int = -1
    depth: int = 0
    replaced: str = ""
    signer: str = ""
    within: str = ""
    seen: str = ""
    seen_sha256: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it has not come to its end: what a preview says of a file is not that."""
        return self.outcome.time is None

    def changed(self, **fields: Any) -> "Item":
        """With another outcome."""
        return replace(self, outcome=replace(self.outcome, **fields))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a ledger knows of an ingestion besides. source: what to open again, '' where all files are held.

    listed: whether all its files are in the ledger. automatic: begun by a watch. groups, administers: of who began it,
    by which he is told of documents that are here already.
    """

    source: str
    listed: bool = False
    automatic: bool = False
    groups: frozenset[str] = frozenset()
    administers: bool = False


class Ledger:
    """One ingestion's. Blocking; safe to use from many threads."""

    def __init__(self, folder: Path, keys: IngestKeys, ingestion: Ingestion, plan: Plan, log: SealedLog | None) -> None:
        """log: with its records read, None where they are to be read first."""
        self.folder, self._keys, self._log = folder, keys, log
        self._ingestion, self.plan = ingestion, plan
        self._items: dict[int, Item] | None = {} if log else None
        self._tallies = _Tallies()
        self._order: list[int] | None = None
        self._told: dict[str, Any] = {}
        self._lock = RLock()

    @classmethod
    def create(
        cls, folder: Path, keys: IngestKeys, ingestion: Ingestion, plan: Plan, items: Sequence[Item] = ()
    ) -> "Ledger":
        """With its first files: durable on return, all of it or nothing. Raises DiskFull, KeyUnavailable."""
        records = [_record(_head(ingestion, plan)), *(_record(None, rows) for rows in _batched(items, ROWS))]
        context = _context(ingestion.tenant, ingestion.id)
        made = cls(
            folder, keys, ingestion, plan, SealedLog.create(folder / "log", keys, ingestion.tenant, context, *records)
        )
        for item in items:
            made._put(item)
        return made

    @classmethod
    def open(cls, folder: Path, keys: IngestKeys, tenant: str) -> "Ledger":
        """Of an ended one its head alone is read. Raises StoreDamaged, KeyUnavailable."""
        log = SealedLog.open(folder / "log", keys, tenant, _context(tenant, folder.name))
        raw = next(log.records(), None)
        if raw is None:
            raise StoreDamaged(f"{log.path} is damaged: it has lost its first record.")
        first = json.loads(zlib.decompress(raw))
        ingestion, plan = _read_head(first["head"], tenant, folder.name)
        ledger = cls(folder, keys, ingestion, plan, None)
        if not ingestion.state.ended:
            ledger.items()
        return ledger

    @property
    def ingestion(self) -> Ingestion:
        """As it is now, counts included."""
        with self._lock:
            return replace(self._ingestion, **self._tallies.fields()) if self._items is not None else self._ingestion

    @property
    def write_time(self) -> datetime:
        """When anything was written of it last; now, where it is gone."""
        try:
            return datetime.fromtimestamp((self.folder / "log").stat().st_mtime, UTC)
        except FileNotFoundError:
            return datetime.now(UTC)

    def items(self) -> Sequence[Item]:
        """Every file, by number. Raises StoreDamaged, KeyUnavailable."""
        with self._lock:
            self._load()
            return tuple((self._items or {}).values())

    def item(self, number: int) -> Item:
        """One file as it is now. Raises StoreDamaged, KeyUnavailable."""
        with self._lock:
            self._load()
            return (self._items or {})[number]

    def page(self, after: int, limit: int, states: Collection[FileState] = ()) -> list[Item]:
        """Files in family order (see `family_order`) from behind the one of number `after`, -1: from the first on; of
        these states only, none given: all.

        Raises StoreDamaged, KeyUnavailable.
        """
        with self._lock:
            self._load()
            items = self._items or {}
            if self._order is None:
                self._order = [item.number for item in family_order(items.values())]
            start = self._order.index(after) + 1 if after in items else 0 if after < 0 else len(self._order)
            wanted = (items[number] for number in islice(self._order, start, None))
            return list(islice((one for one in wanted if not states or one.outcome.state in states), limit))

    def unload(self) -> None:
        """Forget the files of one that nothing works on, until they are asked for."""
        with self._lock:
            if self._items is not None and self._ingestion.state not in _AT_WORK:
                self._ingestion = self.ingestion
                self._items = self._log = self._order = None

    def write(self, items: Iterable[Item] = (), *, listed: bool | None = None, **changes: Any) -> Ingestion:
        """Durable on return, or nothing has changed. changes: of the ingestion.

        Raises DiskFull, StoreDamaged; WrongState where it has ended: of that one its files alone may be written.
        """
        with self._lock:
            self._load()
            if (changes or listed is not None) and self._ingestion.state.ended:
                raise WrongState(f"{self._ingestion.name} is {self._ingestion.state.value} already.")
            written = tuple(items)
            ingestion = replace(self._ingestion, **changes)
            plan = self.plan if listed is None else replace(self.plan, listed=listed)
            head = _head(ingestion, plan) if changes or listed is not None else None
            assert self._log is not None
            self._log.append(_record(head, written))
            self._ingestion, self.plan = ingestion, plan
            self._told = {name: value for name, value in self._told.items() if name not in changes}
            for item in written:
                self._put(item)
            return self.ingestion

    def note_document(self, document: Document) -> None:
        """It is about to be deleted. Where it was made of a file that is still held, that is durable on return: a
        crash, or a full disk, kept it from being written before. Raises DiskFull, StoreDamaged, KeyUnavailable.
        """
        with self._lock:
            if self._ingestion.state.ended:
                return
            was_loaded, of = self._items is not None, (document.title, document.sha256)
            made = [
                item.changed(document=document.name)
                for item in self.items()
                if item.outcome.state is FileState.HELD and (item.outcome.path, item.outcome.sha256) == of
            ]
            if made:
                self.write(made)
            if not was_loaded:
                self.unload()

    def tell(self, **changes: Any) -> Ingestion:
        """Change it in memory alone: what a restart finds out anew, or what a full disk does not take."""
        with self._lock:
            self._told |= changes
            self._ingestion = replace(self._ingestion, **changes)
            return self.ingestion

    def close(self, items: Iterable[Item] = (), **changes: Any) -> Ingestion:
        """As `write`, of the last changes: the log is written anew where the disk has room. Raises as `write`."""
        with self._lock:
            self.write(items, **changes)
            done = self.ingestion
            records = (_record(None, rows) for rows in _batched(self.items(), ROWS))
            context = _context(done.tenant, done.id)
            head = _record(_head(done, self.plan, counted=True))
            try:
                self._log = SealedLog.create(self.folder / "log", self._keys, done.tenant, context, head, *records)
            except ApplianceError as error:  # the long log says the same
                log.warning("ingest.log_not_rewritten", ingestion=done.id, reason=error.reason)
            return done

    def _load(self) -> None:
        if self._items is not None:
            return
        tenant, ingestion = self._ingestion.tenant, self._ingestion.id
        log = SealedLog.open(self.folder / "log", self._keys, tenant, _context(tenant, ingestion))
        items: dict[int, Item] = {}
        self._tallies, self._items, self._order = _Tallies(), items, None
        try:
            for raw in log.records():
                record = json.loads(zlib.decompress(raw))
                if head := record.get("head"):
                    found, self.plan = _read_head(head, tenant, ingestion)
                    self._ingestion = replace(found, **self._told)
                for row in record.get("files", ()):
                    self._put(_read_row(row, tenant, ingestion))
        except BaseException:
            self._items = None
            raise
        self._log = log

    def _put(self, item: Item) -> None:
        assert self._items is not None
        if item.number not in self._items:
            self._order = None
        self._tallies.change(self._items.get(item.number), item)
        self._items[item.number] = item


class _Tallies:
    """Counts that follow the changes of files."""

    def __init__(self) -> None:
        self._states: Counter[FileState] = Counter()
        self._formats: Counter[str] = Counter()
        self._bytes = 0

    def change(self, before: Item | None, after: Item) -> None:
        for item, sign in ((before, -1), (after, 1)):
            if item:
                self._states[item.outcome.state] += sign
                self._formats[item.outcome.format] += sign
                self._bytes += sign * item.outcome.size_bytes * (item.container < 0)

    def fields(self) -> dict[str, Any]:
        """What an Ingestion calls them."""
        formats = {name: count for name, count in sorted(self._formats.items()) if name and count}
        states = {state: self._states[state] for state in FileState if self._states[state]}
        return {"counts": states, "by_format": formats, "size_bytes": self._bytes}


def family_order(pending: Iterable[Item], items: Iterable[Item] = ()) -> list[Item]:
    """A container's members right after it, though their numbers are later. items: all there are, if more."""
    files = sorted(pending, key=lambda item: item.number)
    if all(item.container < 0 for item in files):
        return files
    by_number = {item.number: item for item in (*items, *files)}

    def place(item: Item) -> tuple[int, ...]:
        above = place(by_number[item.container]) if item.container >= 0 else ()
        return (*above, item.number)

    return sorted(files, key=place)


def _batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    left = iter(items)
    while some := tuple(islice(left, size)):
        yield some


def _context(tenant: str, ingestion: str) -> bytes:
    return b"ledger\x00" + f"{tenant}\x00{ingestion}".encode()


def _record(head: Mapping[str, Any] | None, items: Iterable[Item] = ()) -> bytes:
    record = ({"head": head} if head else {}) | {"files": [_row(item) for item in items]}
    return zlib.compress(json.dumps(record, separators=(",", ":")).encode(), 1)


def _head(ingestion: Ingestion, plan: Plan, *, counted: bool = False) -> dict[str, Any]:
    origin = ingestion.provenance
    head: dict[str, Any] = {
        "collection": ingestion.collection,
        "readers": sorted(ingestion.readers),
        "provenance": [origin.kind.value, origin.path, origin.serial, origin.volume, origin.label, origin.signer],
        "operator": ingestion.operator,
        "approver": ingestion.approver,
        "state": ingestion.state.value,
        "problem": ingestion.problem,
        "create_time": ingestion.create_time.isoformat(),
        "end_time": ingestion.end_time.isoformat() if ingestion.end_time else "",
        "plan": [plan.source, plan.listed, plan.automatic, sorted(plan.groups), plan.administers],
    }
    if counted:
        counts = {state.value: count for state, count in ingestion.counts.items()}
        head |= {"counts": counts, "by_format": dict(ingestion.by_format), "size_bytes": ingestion.size_bytes}
    return head


def _read_head(head: Mapping[str, Any], tenant: str, ingestion: str) -> tuple[Ingestion, Plan]:
    kind, *origin = head["provenance"]
    found = Ingestion(
        id=ingestion,
        tenant=tenant,
        collection=head["collection"],
        readers=frozenset(head["readers"]),
        provenance=Provenance(SourceKind(kind), *origin),
        operator=head["operator"],
        state=IngestionState(head["state"]),
        create_time=datetime.fromisoformat(head["create_time"]),
        approver=head["approver"],
        problem=head["problem"],
        counts={FileState(state): count for state, count in head.get("counts", {}).items()},
        by_format=head.get("by_format", {}),
        size_bytes=head.get("size_bytes", 0),
        end_time=datetime.fromisoformat(head["end_time"]) if head["end_time"] else None,
    )
    source, listed, automatic, groups, administers = head["plan"]
    return found, Plan(source, listed, automatic, frozenset(groups), administers)


def _row(item: Item) -> list[Any]:
    """A file's, without what is empty at its end."""
    one = item.outcome
    row = [
        item.number,
        item.name,
        "" if one.path == item.name else one.path,
        one.state.value,
        one.size_bytes,
        one.format,
        one.sha256,
        one.time.timestamp() if one.time else 0,
        one.document,
        one.reason,
        one.detail,
        item.container + 1,
        item.depth,
        item.replaced,
        item.signer,
        int(one.released),
        item.within,
        item.seen,
        item.seen_sha256,
    ]
    while not row[-1]:
        row.pop()
    return row


def _read_row(row: Sequence[Any], tenant: str, ingestion: str) -> Item:
    full = [*row, *([0] * (_COLUMNS - len(row)))]
    number, name, path, state, size, form, sha256, seconds = full[:8]
    document, reason, detail, container, depth, replaced, signer, released = full[8:16]
    within, seen, seen_sha256 = (value or "" for value in full[16:])
    outcome = FileOutcome(
        path=path or name,
        state=FileState(state),
        reason=reason or "",
        detail=detail or "",
        document=document or "",
        sha256=sha256 or "",
        size_bytes=size,
        ingestion=ingestion,
        time=datetime.fromtimestamp(seconds, UTC) if seconds else None,
        tenant=tenant,
        id=f"{ingestion}-{number}",
        remedy=remedy_for(reason or ""),
        format=form or "",
        released=bool(released),
    )
    return Item(number, name, outcome, container - 1, depth, replaced or "", signer or "", within, seen, seen_sha256)
