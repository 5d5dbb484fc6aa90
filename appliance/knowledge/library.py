"""`ports.Library`: the collections of one tenant below one directory, each opened at its first use.

    <name>/           a collection: key.<epoch>, CURRENT, mf/, seg/, wal/ (docs/reference/storage-format.md)
    .new-<random>/    one being made; the rename to its name is its commit
    .dropped-<name>/  one being shredded; the rename to this name is the commit, and a start finishes what was begun

A damaged collection says so to whoever uses it, and is named by `damaged`; the others serve.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
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
    InvalidArgument,
    KeyUnavailable,
    NotFound,
    StoreDamaged,
)
from appliance.knowledge.collection import Collection
from appliance.knowledge.embedders import Embedders
from appliance.knowledge.storage import durable, key, shred, store
from appliance.knowledge.storage.durable import Pace
from appliance.knowledge.storage.mark import MarkFile
from appliance.knowledge.storage.pin import Pinned
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.tenant import Tenant
from appliance.knowledge.storage.verify import verify
from appliance.ports import Embedder, Progress
from appliance.types import Document, Fault, Found, NewDocument, Passage, Ranking, SearchOptions, ShredProof, Span

log = structlog.get_logger()

NAME = re.compile(r"[a-z0-9-]{1,63}")
_DROPPED = ".dropped-"


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
    ) -> None:
        """Opens no collection yet. memory: of all libraries together. pace: of writing that nobody waits for.

        Raises DiskFull, KeyUnavailable.
        """
        self._directory, self._tenant, self._embedders = directory, tenant, embedders
        self._seal_passages, self._memory, self._pace = seal_passages, memory, pace
        self._lock = Lock()
        self._keys = RLock()  # one at a time makes, wraps or destroys keys of this tenant
        self._being_made: dict[Path, str] = {}
        self._opening: dict[str, RLock] = {}
        self._collections: dict[str, Collection] = {}
        self._damaged: dict[str, str] = {}
        with durable.disk_errors(directory):
            durable.make_directory(directory)
        self._finish_what_was_begun()

    def create(self, collection: str) -> types.Collection:
        """Raises AlreadyExists, InvalidArgument, DiskFull."""
        with self._making(collection) as directory:
            self._create(directory, collection)
        return self.describe(collection)

    def require(self, collection: str) -> None:
        """Raises NotFound where there is none of that name."""
        self._check_exists(collection)

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
        with self._staged(collection) as directory:
            self._check_adoptable(collection, uid, replace)
            fill(directory)
            with self._opening_of(collection), self._keys:
                self._check_adoptable(collection, uid, replace)
                with self._lock:
                    opened = self._collections.pop(collection, None)
                put = partial(self._put, directory, collection, backed_up_as)
                opened.drop(put) if opened else put()
        return self.describe(collection)

    def _put(self, directory: Path, name: str, backed_up_as: str) -> None:
        """Files of a backup become the collection, in place of one that may be there and that nobody writes to."""
        store.adopt(directory, name, backed_up_as, self._tenant)
        self._load(directory, name)  # reads what is there, and writes nothing
        with durable.disk_errors(directory):
            durable.sync_directory(directory)
            if self._exists(name):
                durable.exchange(directory, self._directory / name)
                durable.sync_directory(self._directory)
                shutil.rmtree(directory, ignore_errors=True)
            else:
                self._install(directory, name)
        store.mark_as_newest(self._directory / name, name, self._tenant)

    def _check_adoptable(self, name: str, uid: bytes, replace: bool) -> None:
        twin = self._named_by(uid)
        if twin not in ("", name):
            raise AlreadyExists(f"The collection that was backed up is {twin} now; two with its keys cannot be.")
        if not self._exists(name):
            return
        if not twin:
            with suppress(StoreDamaged):
                if key.uid_of(self._directory / name):
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
        self._check_exists(collection)
        with self._lock:
            live = collection in self._collections
        data = self._directory.parent.parent
        return verify(self._directory / collection, collection, self._tenant, data, progress, live)

    def accept_rollback(self, collection: str) -> None:
        """Take the state that the disk holds for the newest, though an older one was put back: what a person decides.

        Raises NotFound, StoreDamaged where it is damaged otherwise, DiskFull, KeyUnavailable.
        """
        self._check_exists(collection)
        with self._opening_of(collection):
            with self._lock:
                opened = self._collections.pop(collection, None)
            if opened:
                opened.close()
            store.accept_rollback(self._directory / collection, collection, self._tenant)

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
        for name in self._names():
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
        going = self._directory / f"{_DROPPED}{collection}"
        if not (NAME.fullmatch(collection) and going.is_dir()):
            self._check_exists(collection)
        with self._opening_of(collection), self._keys:
            if not going.is_dir():
                self._check_exists(collection)
                self._withdraw(collection, going)
            shredded = shred.destroy(going, collection, self._tenant, self._homes())
        log.info("collection_shredded", tenant=self._tenant.name, collection=collection, uid=shredded.uid)
        return shred.prove(shredded, self._tenant)

    def shred(self) -> tuple[ShredProof, ...]:
        """Every collection, then the tenant's keys; a proof a collection. Raises as `drop`; call it again then."""
        proofs: list[ShredProof] = []
        while True:
            names = {path.name.removeprefix(_DROPPED) for path in self._directory.glob(f"{_DROPPED}*")}
            for name in sorted({*names, *self._names()}):
                with suppress(NotFound):
                    proofs.append(self.drop(name))
            with self._keys:
                if not self._homes():
                    for epoch in self._tenant.keys.epochs(self._tenant.name):
                        self._tenant.keys.destroy(self._tenant.name, epoch)
                    return tuple(proofs)

    def rotate(self) -> int:
        """New keys for the tenant and each of its collections, the old ones destroyed; how many collections.

        No data is written anew. Raises DiskFull, KeyUnavailable, StoreDamaged naming a record that cannot be read; both
        keys are kept then where it stopped, and rotating again goes on.
        """
        names = self._names()
        with self._keys:
            if names or self._being_made:
                shred.rotate(self._tenant, self._homes())
        for name in names:
            with suppress(NotFound), self._using(name) as opened, self._keys:
                opened.rotate()
        return len(names)

    def find(self, collection: str, sha256: str, pipeline: str) -> Document | None:
        with self._using(collection) as opened:
            return opened.find(sha256, pipeline)

    def add(self, collection: str, document: NewDocument) -> Document:
        with self._using(collection) as opened:
            return opened.add(document)

    def set_readers(self, collection: str, document: str, readers: frozenset[str], groups: frozenset[str]) -> Document:
        with self._using(collection) as opened:
            return opened.set_readers(document, readers, groups)

    def documents(
        self, collection: str, groups: frozenset[str], condition: str = "", after: str = "", limit: int = 0
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

    def delete(self, collection: str, document: str, groups: frozenset[str]) -> None:
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

    def search(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> Found:
        with self._using(collection, clears=True) as opened:
            return opened.search(query, groups, limit, options)

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
                if self._exists(name):  # else it was dropped
                    self._damaged[name] = str(error)
            raise
        if clears and name in self._damaged:
            with self._lock:
                self._damaged.pop(name, None)

    def _open(self, name: str) -> Collection:
        with self._lock:
            if name in self._collections:
                return self._collections[name]
        self._check_exists(name)
        with self._opening_of(name):
            with self._lock:
                if name in self._collections:
                    return self._collections[name]
            self._check_exists(name)
            opened = self._load(self._directory / name, name)
            with self._lock:
                self._collections[name] = opened
                self._damaged.pop(name, None)
            return opened

    def _load(self, directory: Path, name: str) -> Collection:
        files = store.Store(directory, name, self._tenant, self._memory, self._pace)
        return Collection(name, files, self._embedders, self._seal_passages)

    @contextmanager
    def _making(self, name: str) -> Iterator[Path]:
        """A folder that becomes the collection when the context ends well, and is removed when it does not."""
        if NAME.fullmatch(name):
            self._check_free(name)
        with self._staged(name) as making:
            yield making
            with self._opening_of(name), self._keys:
                self._install(making, name)

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        """A folder for a collection of that name, which is removed when the context does not end well."""
        if not NAME.fullmatch(name):
            raise InvalidArgument.of("collection_id", "must be 1 to 63 of the characters a-z, 0-9 and -.")
        making = self._directory / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
        self._being_made[making] = name
        try:
            with durable.disk_errors(making):
                making.mkdir(mode=0o700)
            yield making
        except Exception:
            self._discard(making)
            raise
        finally:
            with self._keys:
                del self._being_made[making]

    def _install(self, making: Path, name: str) -> None:
        made = self._directory / name
        self._check_free(name)
        try:
            with durable.disk_errors(made):
                making.rename(made)
                durable.sync_directory(self._directory)
        except ApplianceError:
            self._discard(made)
            raise

    def _check_free(self, name: str) -> None:
        if (self._directory / name).exists():
            raise AlreadyExists(f"There is a collection {name} already.")

    def _exists(self, name: str) -> bool:
        return bool(NAME.fullmatch(name)) and (self._directory / name).is_dir()

    def _check_exists(self, name: str) -> None:
        if not self._exists(name):
            raise NotFound(f"There is no collection {name}.")

    @contextmanager
    def _opening_of(self, name: str) -> Iterator[None]:
        """One at a time opens, makes or drops a collection; others need not wait for a long replay."""
        with self._lock:
            lock = self._opening.setdefault(name, RLock())
        with lock:
            yield

    def _names(self) -> list[str]:
        with durable.disk_errors(self._directory):
            return sorted(
                path.name for path in self._directory.iterdir() if path.is_dir() and NAME.fullmatch(path.name)
            )

    def _create(self, directory: Path, name: str) -> None:
        """The files of an empty collection, under the tenant's key, which the first one makes."""
        with self._keys:
            if not self._tenant.keys.epochs(self._tenant.name):
                if self._names():
                    raise KeyUnavailable(f"The key of tenant {self._tenant.name} is missing; its collections need it.")
                self._tenant.keys.add(self._tenant.name)
            store.create(directory, name, self._tenant, self._embedders("", ""))

    def _homes(self) -> dict[Path, str]:
        """Where key records lie, of collections and of those that are being made."""
        making = {path: name for path, name in self._being_made.items() if path.is_dir()}
        return {self._directory / name: name for name in self._names()} | making

    def _named_by(self, uid: bytes) -> str:
        """The collection of that uid, '' for none."""
        return next((name for name in self._names() if key.uid_of(self._directory / name) == uid), "")

    def _withdraw(self, name: str, going: Path) -> None:
        """Nobody uses the collection from now on, and the next start shreds it. Raises DiskFull, StoreDamaged."""
        directory = self._directory / name

        def move() -> None:
            with durable.disk_errors(directory):
                os.rename(directory, going)
                durable.sync_directory(self._directory)

        with self._lock:
            opened = self._collections.pop(name, None)
            self._damaged.pop(name, None)
        opened.drop(move) if opened else move()

    def _discard(self, directory: Path) -> None:
        """What was being made and did not come to be, or what a backup replaced."""
        with suppress(ApplianceError):
            if (uid := key.uid_of(directory)) and self._named_by(uid) in ("", directory.name):
                MarkFile(self._tenant.marks, uid, self._tenant.keyring).remove()
        shutil.rmtree(directory, ignore_errors=True)

    def _finish_what_was_begun(self) -> None:
        """Collections that were being made or dropped, and keys that were being rotated, when the process died."""
        with durable.disk_errors(self._directory):
            paths = sorted(self._directory.iterdir())
        for path in paths:
            if path.name.startswith(durable.TEMPORARY):
                self._discard(path)
        try:
            shred.finish(self._tenant, self._homes())
            for path in paths:
                if path.name.startswith(_DROPPED):
                    shred.destroy(path, path.name.removeprefix(_DROPPED), self._tenant, self._homes())
        except ApplianceError as error:  # the old keys stay; the next start or rotation goes on
            log.error("rotation_unfinished", tenant=self._tenant.name, reason=error.reason, error=str(error))
