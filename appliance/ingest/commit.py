"""The commit of a batch: documents into the library at once, then what became of each file into the ledger.

Between the two a crash may come: the files are read again then, and found to be committed. What a container held is in
the quarantine before the container's end is in the ledger, both in the ledger at once.

What is unpacked of a file of a source is counted over all levels. One container too many, or one that holds itself,
ends all that it lies in: the outermost is refused, in place of having been unpacked, and what was still to be read of
it is LEFT, its bytes destroyed. Documents that were committed before stay: they are sound, and were told of.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

from appliance.errors import Cancelled, DocumentRefused, NotFound
from appliance.ingest.caps import is_bomb
from appliance.ingest.judge import Judge, ended, left_within, refused, source_of
from appliance.ingest.ledger import Item, Ledger
from appliance.ingest.memfd import memfd_of
from appliance.ingest.preview import look_at, new_outcome
from appliance.ingest.quarantine import Quarantine
from appliance.ingest.remedies import MEMBER_PROBLEMS
from appliance.ingest.sources.found import Found, printable
from appliance.ports import Library
from appliance.types import Document, Extracted, FileState, Member, NewDocument

MAX_DEPTH = 3
"""Containers in containers: what lies deeper is refused, so that unpacking comes to an end."""

MAX_MEMBERS, MAX_MEMBER_BYTES = 10_000, 1 << 30
"""In a file of a source and in all that lies in it; it may have fewer bytes, by its own size (caps.is_bomb)."""


@dataclass(frozen=True, slots=True)
class Read:
    """A file as it is before its commit: extracted; or refused or known, and then the item says so."""

    item: Item
    extracted: Extracted | None = None
    seconds: float = 0.0


@dataclass
class _Batch:
    """ended: by number, files that were read, and others that end with them."""

    ended: dict[int, Item] = field(default_factory=dict)
    waiting: list[tuple[Read, Item, NewDocument]] = field(default_factory=list)

    def holds(self, item: Item) -> bool:
        """Whether a document waits that this file may turn out to be the same as, or to take the place of."""
        return any(
            one.outcome.sha256 == item.outcome.sha256 or one.outcome.path == item.outcome.path
            for _, one, _ in self.waiting
        )


class Commit:
    """Of one ingestion. Blocking, but for `stop` and `end_of`; one call at a time."""

    def __init__(
        self, ledger: Ledger, library: Library, judge: Judge, quarantine: Quarantine, max_bytes: int, max_ratio: int
    ) -> None:
        """max_bytes: of a document. max_ratio: how many times its size a file may unpack to, over all levels."""
        self._ledger, self._library, self._judge = ledger, library, judge
        self._quarantine, self._max_bytes, self._max_ratio = quarantine, max_bytes, max_ratio
        self._stopped = Event()
        self._items = {item.number: item for item in ledger.items()}
        self._next = max(self._items, default=-1) + 1
        self._roots: dict[int, tuple[int, int]] = {}
        self._members: dict[int, list[int]] = {}
        for item in self._items.values():
            self._count(item)

    def commit(self, reads: Sequence[Read]) -> tuple[list[Item], list[Item]]:
        """The ends of these files, durable, in their order; and those of their members that are to be read next.

        Raises NotFound (the collection), DiskFull, StoreDamaged, KeyUnavailable; Cancelled once `stop` was called, and
        then no document is added after that.
        """
        batch, members = _Batch(), list[Item]()
        try:
            for read in reads:
                self._decide(read, batch)
            self._add(batch)
        except Cancelled:
            whole = {read.item.number for read in reads if not (read.extracted and read.extracted.members)}
            added = [one for one in batch.ended.values() if one.outcome.state is FileState.COMMITTED]
            if done := [one for one in added if one.number in whole]:
                self._write(done, [])
            raise
        for read in reads:
            end = batch.ended[read.item.number]
            if read.extracted and end.outcome.state not in (FileState.QUARANTINED, FileState.LEFT):
                members += self._hold(end, read.extracted.members)
        self._write(batch.ended.values(), members)
        ends = [self._items[read.item.number] for read in reads]
        return ends, [item for item in members if item.is_open]

    def stop(self) -> None:
        """Let what is being committed come to nothing, unless it is being written in this moment. Does not block."""
        self._stopped.set()

    def end_of(self, item: Item) -> Item | None:
        """What became of it since it was handed over to be read, for what it lies in was refused. Does not block."""
        now = self._items[item.number]
        return None if now.is_open else now

    def touches(self, reads: Sequence[Read]) -> frozenset[tuple[str, str]]:
        """What no other commit may judge or change at the same time: the bytes and the sources of what may be added."""
        ingestion = self._ledger.ingestion
        items = [read.item for read in reads if read.extracted]
        keys = {item.outcome.sha256 for item in items} | {source_of(ingestion, item) for item in items}
        return frozenset((ingestion.collection, key) for key in keys)

    def _decide(self, read: Read, batch: _Batch) -> None:
        self._check_wanted()
        if batch.holds(read.item):
            self._add(batch)
        item = read.item
        if item.number in batch.ended:
            return
        if end := self.end_of(item):
            batch.ended[item.number] = end
        elif read.extracted is None:
            batch.ended[item.number] = item
        elif refusal := self._too_much(item, read.extracted.members):
            self._refuse_outermost(item, refusal, batch)
        elif known := self._judge.known(item, is_read=True):
            batch.ended[item.number] = known
        elif not any(page.strip() for page in read.extracted.pages) and read.extracted.members:
            batch.ended[item.number] = item.changed(state=FileState.UNPACKED)
        else:
            item, document = self._judge.document(item, read.extracted, self._container(item))
            if document:
                batch.waiting.append((read, item, document))
            else:
                batch.ended[item.number] = item

    def _add(self, batch: _Batch) -> None:
        waiting, batch.waiting = batch.waiting, []
        if not waiting:
            return
        try:
            results = self._add_all(waiting)
        except NotFound:  # what one replaces was deleted just now, or the collection
            fresh = [self._judge.document(item, _extracted(read), self._container(item)) for read, item, _ in waiting]
            again = [(read, item, new) for (read, _, _), (item, new) in zip(waiting, fresh, strict=True) if new]
            batch.ended |= {item.number: item for item, new in fresh if not new}
            waiting, results = again, self._add_all(again)
        for (read, item, _), result in zip(waiting, results, strict=True):
            batch.ended[item.number] = _added(read, item, result)

    def _add_all(self, waiting: Sequence[tuple[Read, Item, NewDocument]]) -> Sequence[Document | DocumentRefused]:
        documents = [document for _, _, document in waiting]
        return self._library.add_all(self._ledger.ingestion.collection, documents, self._stopped.is_set)

    def _check_wanted(self) -> None:
        if self._stopped.is_set():
            raise Cancelled("The ingestion was cancelled.")

    def _too_much(self, container: Item, members: Sequence[Member]) -> DocumentRefused | None:
        if not members:
            return None
        around = self._around(container)
        count, unpacked_bytes = self._roots.get(around[-1].number, (0, 0))
        unpacked_bytes += sum(len(member.content) for member in members)
        if count + len(members) > MAX_MEMBERS:
            why = f"More than {MAX_MEMBERS} files are in it and in what it holds."
            return DocumentRefused("TOO_MANY_MEMBERS", why)
        if is_bomb(around[-1].outcome.size_bytes, unpacked_bytes, self._max_ratio):
            why = f"It and what it holds unpack to more than {self._max_ratio} times its size, as bombs do."
            return DocumentRefused("ZIP_BOMB", why)
        if unpacked_bytes > MAX_MEMBER_BYTES:
            why = f"It and what it holds unpack to more than {MAX_MEMBER_BYTES >> 20} MiB."
            return DocumentRefused("ARCHIVE_TOO_LARGE", why)
        if any(_is_same(outer, member.content) for outer in around for member in members):
            return DocumentRefused("ZIP_BOMB", "It holds itself, so that unpacking it never ends.")
        return None

    def _around(self, item: Item) -> list[Item]:
        """It, what it lies in, what that lies in, and so on to the file of the source."""
        around = [item]
        while item.container >= 0:
            item = self._items[item.container]
            around.append(item)
        return around

    def _within(self, number: int) -> Iterator[Item]:
        for member in self._members.get(number, ()):
            yield self._items[member]
            yield from self._within(member)

    def _refuse_outermost(self, container: Item, refusal: DocumentRefused, batch: _Batch) -> None:
        """What only was unpacked, that is: a mail whose words were committed stays, and what else it carries does."""
        unpacked = (one for one in reversed(self._around(container)) if one.outcome.state is FileState.UNPACKED)
        outer = refused(next(unpacked, container), refusal)
        waiting = {item.number for _, item, _ in batch.waiting} | batch.ended.keys()
        for item in self._within(outer.number):
            if item.is_open and item.number not in waiting:
                batch.ended[item.number] = left_within(item, outer)
        batch.ended[outer.number] = outer

    def _hold(self, container: Item, members: Iterable[Member]) -> Iterator[Item]:
        ingestion = self._ledger.ingestion
        for member in members:
            number, self._next = self._next, self._next + 1
            item = self._member(number, container, member)
            if item.outcome.state is FileState.QUARANTINED:
                yield ended(item)
                continue
            memfd = memfd_of(member.content)
            try:
                self._quarantine.hold(ingestion.tenant, ingestion.id, number, memfd)
            finally:
                os.close(memfd)
            sha256 = hashlib.sha256(member.content).hexdigest()
            yield item.changed(state=FileState.HELD, sha256=sha256)
        self._quarantine.settle(ingestion.tenant, ingestion.id)

    def _member(self, number: int, container: Item, member: Member) -> Item:
        path = f"{container.outcome.path}/{printable(member.path)}"
        outcome = new_outcome(self._ledger.ingestion, number, path, len(member.content))
        depth = container.depth + 1
        item = Item(number, path, outcome, container.number, depth, signer=container.signer)
        if member.problem:
            return refused(item, DocumentRefused(member.problem, MEMBER_PROBLEMS.get(member.problem, "")))
        if depth > MAX_DEPTH:
            return refused(item, DocumentRefused("TOO_DEEP", f"It lies in more than {MAX_DEPTH} containers."))
        return look_at(item, Found(path, len(member.content)), self._max_bytes)

    def _write(self, ends: Iterable[Item], members: Sequence[Item]) -> None:
        """ends: open still, but for those that have been written before."""
        ingestion = self._ledger.ingestion
        ends = [ended(one) for one in ends if one is not self.end_of(one)]
        self._ledger.write([*ends, *members])
        for item in (*ends, *members):
            self._items[item.number] = item
        for item in members:
            self._count(item)
        going = [item.number for item in ends if item.outcome.state is not FileState.QUARANTINED]
        self._quarantine.destroy(ingestion.tenant, ingestion.id, going)

    def _count(self, item: Item) -> None:
        if item.container >= 0:
            root = self._around(item)[-1].number
            count, size_bytes = self._roots.get(root, (0, 0))
            self._roots[root] = count + 1, size_bytes + item.outcome.size_bytes
            self._members.setdefault(item.container, []).append(item.number)

    def _container(self, item: Item) -> str:
        return self._items[item.container].outcome.path if item.container >= 0 else item.within


def _is_same(outer: Item, content: bytes) -> bool:
    size_bytes, sha256 = outer.outcome.size_bytes, outer.outcome.sha256
    return len(content) == size_bytes and hashlib.sha256(content).hexdigest() == sha256


def _extracted(read: Read) -> Extracted:
    assert read.extracted
    return read.extracted


def _added(read: Read, item: Item, result: Document | DocumentRefused) -> Item:
    if isinstance(result, Document):
        return item.changed(state=FileState.COMMITTED, document=result.name)
    if _extracted(read).members:
        return item.changed(state=FileState.UNPACKED)  # a mail without words that has attachments
    return refused(item, result)
