"""`ports.Library`: the collections below one directory, each opened at its first use.

    <name>/           a collection: key, CURRENT, mf/, seg/, wal/ (docs/reference/knowledge-format.md)
    .new-<random>/    one being made; the rename to its name is its commit
    .dropped-<random>/  one being removed; its key is destroyed already

A damaged collection says so to whoever uses it, and is named by `damaged`; the others serve.
"""

import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, RLock

import structlog

from appliance import types
from appliance.errors import AlreadyExists, ApplianceError, InvalidArgument, NotFound, StoreDamaged
from appliance.knowledge.collection import Collection
from appliance.knowledge.storage import durable, key, store
from appliance.ports import Embedder, Keyring
from appliance.types import Document, Found, NewDocument, Passage, Ranking, SearchOptions, Span

log = structlog.get_logger()

_NAME = re.compile(r"[a-z0-9-]{1,63}")
_DROPPED = ".dropped-"


class Library:
    """See `ports.Library`. One process at a time may have the directory open: the daemon's lock sees to it."""

    def __init__(
        self, directory: Path, keyring: Keyring, embedder: Embedder, *, seal_passages: int, cache_bytes: int
    ) -> None:
        """Opens no collection yet. cache_bytes: decrypted text kept in memory, a collection. Raises DiskFull."""
        self._directory, self._keyring, self._embedder = directory, keyring, embedder
        self._seal_passages, self._cache_bytes = seal_passages, cache_bytes
        self._lock = Lock()
        self._opening: dict[str, RLock] = {}
        self._collections: dict[str, Collection] = {}
        self._damaged: dict[str, str] = {}
        with durable.disk_errors(directory):
            durable.make_directory(directory)
        self._finish_what_was_begun()

    def create(self, collection: str) -> types.Collection:
        """Raises AlreadyExists, InvalidArgument, DiskFull."""
        if not _NAME.fullmatch(collection):
            raise InvalidArgument.of("collection_id", "must be 1 to 63 of the characters a-z, 0-9 and -.")
        making, made = self._directory / f"{durable.TEMPORARY}{secrets.token_hex(8)}", self._directory / collection
        with self._opening_of(collection):
            if made.exists():
                raise AlreadyExists(f"There is a collection {collection} already.")
            try:
                with durable.disk_errors(making):
                    making.mkdir(mode=0o700)
                store.create(making, collection, self._keyring, self._embedder)
                with durable.disk_errors(made):
                    making.rename(made)
                    durable.sync_directory(self._directory)
            except ApplianceError:
                shutil.rmtree(making, ignore_errors=True)
                shutil.rmtree(made, ignore_errors=True)
                raise
        return self._describe(collection)

    def collections(self) -> tuple[types.Collection, ...]:
        """By name, without those that are damaged."""
        found: list[types.Collection] = []
        for name in self._names():
            with suppress(StoreDamaged, NotFound):
                found.append(self._describe(name))
        return tuple(found)

    def damaged(self) -> Mapping[str, str]:
        """By name of the collections that were found damaged, what is wrong: the file is named."""
        with self._lock:
            return dict(self._damaged)

    def drop(self, collection: str) -> None:
        """Destroys the wrapped keys first, then the files. Raises NotFound, DiskFull, StoreDamaged.

        After a failure the collection is what the disk holds of it, and can be dropped again.
        """
        self._check_exists(collection)
        with self._opening_of(collection):
            try:
                opened = self._open(collection)
            except StoreDamaged:
                self._destroy(collection)
            else:
                try:
                    opened.drop(lambda: self._destroy(collection))
                finally:
                    with self._lock:
                        self._collections.pop(collection, None)
            with self._lock:
                self._damaged.pop(collection, None)

    def find(self, collection: str, sha256: str, pipeline: str) -> Document | None:
        with self._using(collection) as opened:
            return opened.find(sha256, pipeline)

    def add(self, collection: str, document: NewDocument) -> Document:
        with self._using(collection) as opened:
            return opened.add(document)

    def documents(self, collection: str, groups: frozenset[str]) -> tuple[Document, ...]:
        with self._using(collection) as opened:
            return opened.documents(groups)

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
        with self._lock:
            names = sorted(self._collections.keys() - self._damaged.keys())
        for name in names:
            try:
                with self._using(name) as opened:
                    opened.compact_if_due()
            except NotFound:  # dropped meanwhile
                continue
            except ApplianceError as error:
                log.warning("compaction_failed", collection=name, reason=error.reason, error=str(error))

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

    def close(self) -> None:
        """Closes the files. Nothing is lost without it."""
        with self._lock:
            for collection in self._collections.values():
                collection.close()
            self._collections.clear()

    def _describe(self, collection: str) -> types.Collection:
        with self._using(collection) as opened:
            return opened.describe()

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
            files = store.Store(self._directory / name, name, self._keyring, self._cache_bytes)
            opened = Collection(name, files, self._embedder, self._seal_passages)
            with self._lock:
                self._collections[name] = opened
                self._damaged.pop(name, None)
            return opened

    def _exists(self, name: str) -> bool:
        return bool(_NAME.fullmatch(name)) and (self._directory / name).is_dir()

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
                path.name for path in self._directory.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)
            )

    def _destroy(self, name: str) -> None:
        directory = self._directory / name
        if (directory / key.NAME).exists():
            key.destroy(directory)
        gone = self._directory / f"{_DROPPED}{secrets.token_hex(8)}"
        with durable.disk_errors(directory):
            directory.rename(gone)
            durable.sync_directory(self._directory)
        shutil.rmtree(gone, ignore_errors=True)

    def _finish_what_was_begun(self) -> None:
        """Collections that were being made or dropped when the process died."""
        with durable.disk_errors(self._directory):
            for path in self._directory.iterdir():
                if path.name.startswith((durable.TEMPORARY, _DROPPED)):
                    shutil.rmtree(path, ignore_errors=True)
                elif _NAME.fullmatch(path.name) and key.is_destroyed(path):
                    self._destroy(path.name)
