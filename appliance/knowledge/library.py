"""`ports.Library`: the collections of one tenant below one directory (folders.py), each opened at its first use.

A damaged collection says so to whoever uses it, and is named by `damaged`; the others serve.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock, RLock

import structlog

from appliance import types
from appliance.errors import (
    AlreadyExists,
    ApplianceError,
    BackupRefused,
    DocumentRefused,
    KeyUnavailable,
    NotFound,
    StoreDamaged,
)
from appliance.knowledge.collection import Collection
from appliance.knowledge.embedders import Embedders
from appliance.knowledge.folders import Folders
from appliance.knowledge.intake import Stop, never
from appliance.knowledge.storage import durable, key, shred, store
from appliance.knowledge.storage.durable import Pace
from appliance.knowledge.storage.mark import Mark, MarkFile
from appliance.knowledge.storage.pin import Pinned
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.tenant import Tenant
from appliance.knowledge.storage.verify import verify
from appliance.ports import Embedder, Progress
from appliance.types import Document, Fault, NewDocument, Passage, Ranking, SearchOptions, ShredProof, Span

log = structlog.get_logger()

Forget = Callable[[str, str], None]
"""Told of a tenant and a collection of which nothing that was remembered holds: it went, came, or scores otherwise."""


def nothing(tenant: str, collection: str) -> None:
    """Where nothing is remembered."""


class Library:
    """See `ports.Library`. One process at a time may have the directory open: the daemon's lock sees to it."""

    def __init__(
        self,
        directory: Path,
        tenant: Tenant,
        embedders: Embedders,
        *,
        seal_passages: int,
        memory: Memory,
        pace: Pace = durable.unpaced,
        overlap_tokens: int = 0,
        forget: Forget = nothing,
        before_delete: Callable[[Document], None] = lambda document: None,
    ) -> None:
        """Opens no collection yet. memory: of all libraries together. pace: of writing that nobody waits for.

        overlap_tokens: of running text, see `chunk.pieces`. forget, before_delete: called from any thread; what the
        latter raises, `delete` does. Raises DiskFull, KeyUnavailable.
        """
        self._tenant, self._embedders, self._forget = tenant, embedders, forget
        self._seal_passages, self._memory, self._pace = seal_passages, memory, pace
        self._overlap_tokens, self._before_delete = overlap_tokens, before_delete
        self._folders = Folders(directory, tenant)
        self._lock = Lock()
        self._opening: dict[str, RLock] = {}
        self._collections: dict[str, Collection] = {}
        self._damaged: dict[str, str] = {}

    def create(self, collection: str) -> types.Collection:
        """Raises AlreadyExists, InvalidArgument, DiskFull."""
        with self._making(collection) as directory:
            self._create(directory, collection)
        return self.describe(collection)

    def require(self, collection: str) -> None:
        """Raises NotFound where there is none of that name."""
        self._folders.check_exists(collection)

    @contextmanager
    def building(self, collection: str) -> Iterator[Collection]:
        """A new collection that nobody else sees before the context ends well; if it does not, nothing of it stays.

        Raises AlreadyExists, InvalidArgument, DiskFull.
        """
        with self._making(collection) as directory:
            self._create(directory, collection)
            built = self._load(directory, collection)
            try:
                yield built
            finally:
                built.close()

    def adopt(
        self, collection: str, backed_up_as: str, uid: bytes, fill: Callable[[Path], None], *, replace: bool = False
    ) -> types.Collection:
        """A collection of the files that `fill` puts into an empty folder; it is read before anyone else sees it.

        backed_up_as, uid: what it was when the files were copied. Where it is still there under this name, the files
        take its place in one instant if it is damaged, or if `replace`. Raises AlreadyExists, BackupRefused where it is
        there and sound, InvalidArgument, DiskFull, KeyUnavailable, StoreDamaged; what was there is there then.
        """
        with self._folders.staged(collection, adopts=True) as directory:
            self._check_adoptable(collection, uid, replace)
            fill(directory)
            with self._opening_of(collection), self._folders.keys:
                self._check_adoptable(collection, uid, replace)
                with self._lock:
                    opened = self._collections.pop(collection, None)
                put = partial(self._put, directory, collection, backed_up_as, uid)
                opened.drop(put) if opened else put()
        self._forget(self._tenant.name, collection)
        return self.describe(collection)

    def _put(self, directory: Path, name: str, backed_up_as: str, uid: bytes) -> None:
        """Files of a backup become the collection, in place of one that may be there and that nobody writes to."""
        marks, before = MarkFile(self._tenant.marks, uid, self._tenant.keyring), None
        with suppress(StoreDamaged):
            before = marks.read()
        aside = dataclasses.replace(self._tenant, marks=directory / f"{durable.TEMPORARY}marks")
        try:
            store.adopt(directory, name, backed_up_as, aside)
            self._load(directory, name, aside)  # reading brings a mark up to date, and this is not yet the collection
            with durable.disk_errors(directory):
                shutil.rmtree(aside.marks)
                durable.sync_directory(directory)
            marks.create(Mark(0, bytes(32), 0))  # tells nothing: from here on either of the two opens
            with self._folders.swapped(directory, name):
                store.mark_as_newest(self._folders.of(name), name, self._tenant)
        except Exception:
            if before:
                shutil.rmtree(directory, ignore_errors=True)  # first, where the disk is full
                with suppress(ApplianceError):
                    marks.create(before)
            raise
        shutil.rmtree(directory, ignore_errors=True)

    def _check_adoptable(self, name: str, uid: bytes, replace: bool) -> None:
        if self._folders.is_going(uid):
            raise BackupRefused("The collection that was backed up is being shredded; drop it again to finish that.")
        twin = self._folders.named_by(uid)
        if twin not in ("", name):
            raise AlreadyExists(f"The collection that was backed up is {twin} now; two with its keys cannot be.")
        if not self._folders.exists(name):
            return
        if not twin:
            with suppress(StoreDamaged):
                if key.uid_of(self._folders.of(name)):
                    raise AlreadyExists(f"There is a collection {name} already, another than was backed up.")
        if not replace and self._is_sound(name):
            raise BackupRefused(
                f"Collection {name} is there and sound; a backup in its place would undo what was written since."
            )

    def _is_sound(self, name: str) -> bool:
        """As far as is known: what was found damaged since is not."""
        with suppress(StoreDamaged):
            self._open(name)
            return name not in self._damaged
        return False

    def verify(self, collection: str, progress: Progress | None = None) -> tuple[Fault, ...]:
        """Reads and checks every byte; all that is wrong, also of a collection that does not open. Raises NotFound.

        progress: in files; may raise.
        """
        self._folders.check_exists(collection)
        with self._lock:
            live = collection in self._collections
        directory = self._folders.of(collection)
        return verify(directory, collection, self._tenant, directory.parent.parent.parent, progress, live)

    def accept_rollback(self, collection: str) -> None:
        """Take the state that the disk holds for the newest, though an older one was put back: what a person decides.

        Raises NotFound, StoreDamaged where it is damaged otherwise, DiskFull, KeyUnavailable.
        """
        self._folders.check_exists(collection)
        with self._opening_of(collection):
            with self._lock:
                opened = self._collections.pop(collection, None)
            accept = partial(store.accept_rollback, self._folders.of(collection), collection, self._tenant)
            opened.drop(accept) if opened else accept()

    def export(self, collection: str) -> tuple[types.Collection, Iterator[NewDocument]]:
        """What it is, and all its documents as of this instant, whoever may read them. Raises NotFound, StoreDamaged.

        Iterating raises StoreDamaged, and NotFound once the collection was dropped.
        """
        with self._using(collection) as opened:
            return opened.export()

    def pin_files(self, collection: str) -> Pinned:
        """The files that it consists of as of this instant, open. Raises NotFound, DiskFull, StoreDamaged."""
        with self._using(collection) as opened:
            return opened.pin_files()

    def collections(self, groups: frozenset[str] | None = None) -> tuple[types.Collection, ...]:
        """By name, without those that are damaged. Counts are of what the groups may read; None: of all there is."""
        found: list[types.Collection] = []
        for name in self._folders.names():
            with suppress(StoreDamaged, NotFound):
                found.append(self.describe(name, groups))
        return tuple(found)

    def damaged(self) -> Mapping[str, str]:
        """By name of the collections that were found damaged, what is wrong: the file is named."""
        with self._lock:
            return dict(self._damaged)

    def drop(self, collection: str) -> ShredProof:
        """Destroys the keys, then the files; copies of the files open with no key that remains.

        Raises NotFound, DiskFull, KeyUnavailable, StoreDamaged naming what stands in the way. When it raises, the
        collection is there as before, or is gone and its shredding not finished: drop it again.
        """
        return self._drop(collection)[-1]

    def _drop(self, name: str) -> list[ShredProof]:
        """All of that name: what an earlier attempt left, then what is there."""
        if name not in self._folders.going().values():
            self._folders.check_exists(name)
        try:
            with self._opening_of(name), self._folders.keys:
                proofs = self._folders.destroy(name)
                if not proofs:
                    self._folders.check_exists(name)
                if self._folders.exists(name):
                    self._withdraw(name)
                    proofs += self._folders.destroy(name)
                return proofs
        finally:
            self._forget(self._tenant.name, name)

    def shred(self) -> tuple[ShredProof, ...]:
        """Every collection, then the tenant's keys; a proof a collection.

        Raises Busy while one is being made or restored, and as `drop`; call it again then.
        """
        proofs: list[ShredProof] = []
        while True:
            self._folders.check_none_is_made()
            for name in sorted({*self._folders.going().values(), *self._folders.names()}):
                with suppress(NotFound):
                    proofs += self._drop(name)
            with self._folders.keys:
                self._folders.check_none_is_made()
                if not self._folders.names():
                    for epoch in self._tenant.keys.epochs(self._tenant.name):
                        self._tenant.keys.destroy(self._tenant.name, epoch)
                    return tuple(proofs)

    def rotate(self) -> int:
        """New keys for the tenant and each of its collections, the old ones destroyed; how many collections.

        No data is written anew. Raises DiskFull, KeyUnavailable, StoreDamaged naming a record that cannot be read; both
        keys are kept then where it stopped, and rotating again goes on. One collection that fails stops no other's.
        """
        names = self._folders.names()
        with self._folders.keys:
            if homes := self._folders.homes():
                shred.rotate(self._tenant, homes)
        failures: list[ApplianceError] = []
        for name in names:
            try:
                with suppress(NotFound), self._using(name) as opened, self._folders.keys:
                    opened.rotate()
            except ApplianceError as error:
                log.error("rotation_failed", tenant=self._tenant.name, collection=name, reason=error.reason)
                failures.append(error)
        if failures:
            raise failures[0]
        return len(names)

    def find(self, collection: str, sha256: str, pipeline: str) -> Document | None:
        with self._using(collection) as opened:
            return opened.find(sha256, pipeline)

    def find_file(self, collection: str, source: str, title: str) -> Document | None:
        with self._using(collection) as opened:
            return opened.find_file(source, title)

    def add(self, collection: str, document: NewDocument) -> Document:
        with self._using(collection) as opened:
            return opened.add(document)

    def add_all(
        self, collection: str, documents: Sequence[NewDocument], stop: Stop = never
    ) -> tuple[Document | DocumentRefused, ...]:
        with self._using(collection) as opened:
            return opened.add_all(documents, stop)

    def set_readers(
        self, collection: str, document: str, readers: frozenset[str], groups: frozenset[str] | None
    ) -> Document:
        with self._using(collection) as opened:
            return opened.set_readers(document, readers, groups)

    def documents(
        self, collection: str, groups: frozenset[str] | None, condition: str = "", after: str = "", limit: int = 0
    ) -> tuple[tuple[Document, ...], str]:
        with self._using(collection) as opened:
            return opened.documents(groups, condition, after, limit)

    def version(self, collection: str) -> str:
        with self._using(collection) as opened:
            return opened.version()

    def reembed(self, collection: str, name: str, embedder: Embedder, report: Progress) -> None:
        """Vectors by another embedder, as `Collection.reembed`. Raises NotFound, Broken, DiskFull, StoreDamaged."""
        with self._using(collection, clears=True) as opened:
            opened.reembed(name, embedder, report)
        self._forget(self._tenant.name, collection)

    def get(self, collection: str, document: str, groups: frozenset[str]) -> Document:
        with self._using(collection) as opened:
            return opened.get(document, groups)

    def pages(self, collection: str, document: str, groups: frozenset[str]) -> tuple[str, ...]:
        with self._using(collection, clears=True) as opened:
            return opened.pages(document, groups)

    def page(self, collection: str, document: str, page: int, groups: frozenset[str]) -> str:
        with self._using(collection, clears=True) as opened:
            return opened.page(document, page, groups)

    def text(self, collection: str, document: str, span: Span, groups: frozenset[str]) -> str:
        with self._using(collection, clears=True) as opened:
            return opened.text(document, span, groups)

    def delete(self, collection: str, document: str, groups: frozenset[str] | None) -> None:
        with self._using(collection) as opened:
            going = opened.get(document, groups)
        self._before_delete(going)
        with self._using(collection) as opened:
            opened.delete(document, groups)

    def compact(self, collection: str) -> types.Collection:
        with self._using(collection, clears=True) as opened:
            opened.compact()
            return opened.describe()

    def compact_where_due(self) -> None:
        """Rewrite where enough is deleted or small, in the collections that are open and sound; elsewhere do little.

        A collection that cannot be rewritten is logged, and the others go on.
        """
        self._tend("compaction_failed", Collection.compact_if_due)

    def _tend(self, failure: str, work: Callable[[Collection], None]) -> None:
        with self._lock:
            names = sorted(self._collections.keys() - self._damaged.keys())
        for name in names:
            try:
                with self._using(name) as opened:
                    work(opened)
            except NotFound:  # dropped meanwhile
                continue
            except ApplianceError as error:
                log.warning(failure, tenant=self._tenant.name, collection=name, reason=error.reason, error=str(error))

    def rank(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> Ranking:
        with self._using(collection, clears=True) as opened:
            return opened.rank(query, groups, limit, options)

    def show(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        ranking: Ranking,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> tuple[Passage, ...]:
        with self._using(collection, clears=True) as opened:
            return opened.show(query, groups, ranking, options)

    def seal_where_old(self, seconds: float) -> None:
        """Seal what has been in a log for longer, in the collections that are open and sound; marks follow the logs.

        A collection that cannot be sealed is logged, and the others go on.
        """
        self._tend("seal_failed", lambda opened: opened.seal_if_old(seconds))

    def close(self) -> None:
        """Closes the files. Nothing is lost without it."""
        with self._lock:
            for collection in self._collections.values():
                collection.close()
            self._collections.clear()

    def describe(self, collection: str, groups: frozenset[str] | None = None) -> types.Collection:
        with self._using(collection) as opened:
            return opened.describe(groups)

    @contextmanager
    def _using(self, name: str, *, clears: bool = False) -> Iterator[Collection]:
        """The open collection; damage that its use finds is remembered until a use succeeds that `clears` it.

        clears: whether the use reads what may be damaged, which the catalogue in memory is not.
        """
        try:
            yield self._open(name)
        except StoreDamaged as error:
            log.error("collection_damaged", collection=name, error=str(error))
            with self._lock:
                if self._folders.exists(name):  # else it was dropped
                    self._damaged[name] = str(error)
            raise
        if clears and name in self._damaged:
            with self._lock:
                self._damaged.pop(name, None)

    def _open(self, name: str) -> Collection:
        with self._lock:
            if name in self._collections:
                return self._collections[name]
        self._folders.check_exists(name)
        with self._opening_of(name):
            with self._lock:
                if name in self._collections:
                    return self._collections[name]
            self._folders.check_exists(name)
            opened = self._load(self._folders.of(name), name)
            with self._lock:
                self._collections[name] = opened
                self._damaged.pop(name, None)
            return opened

    def _load(self, directory: Path, name: str, tenant: Tenant | None = None) -> Collection:
        files = store.Store(directory, name, tenant or self._tenant, self._memory, self._pace)
        return Collection(name, files, self._embedders, self._seal_passages, self._overlap_tokens)

    @contextmanager
    def _making(self, name: str) -> Iterator[Path]:
        """A folder that becomes the collection when the context ends well, and is removed when it does not."""
        self._folders.check_free(name)
        with self._folders.staged(name) as making:
            yield making
            with self._opening_of(name), self._folders.keys:
                self._folders.install(making, name)

    @contextmanager
    def _opening_of(self, name: str) -> Iterator[None]:
        """One at a time opens, makes or drops a collection; others need not wait for a long replay."""
        with self._lock:
            lock = self._opening.setdefault(name, RLock())
        with lock:
            yield

    def _create(self, directory: Path, name: str) -> None:
        """The files of an empty collection, under the tenant's key, which the first one makes."""
        with self._folders.keys:
            if not self._tenant.keys.epochs(self._tenant.name):
                if self._folders.names():
                    raise KeyUnavailable(f"The key of tenant {self._tenant.name} is missing; its collections need it.")
                self._tenant.keys.add(self._tenant.name)
            store.create(directory, name, self._tenant, self._embedders("", ""))

    def _withdraw(self, name: str) -> None:
        """Nobody uses the collection from now on, and the next start shreds it. Raises DiskFull, StoreDamaged."""
        withdraw = partial(self._folders.withdraw, name)
        with self._lock:
            opened = self._collections.pop(name, None)
            self._damaged.pop(name, None)
        opened.drop(withdraw) if opened else withdraw()
