"""A library on a disk that a test may damage."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.errors import Cancelled, NotFound
from appliance.knowledge.collection import Collection
from appliance.knowledge.embedders import built_in
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.knowledge.library import Library
from appliance.ports import Embedder
from appliance.types import EVERYONE, Document, NewDocument
from appliance.vault import FileKeyring, FileTenantKeys
from tests.fakes import WordEmbedder
from tests.searching import search

ALL = frozenset({EVERYONE})


class Shelf:
    """One collection, `handbook`, in a library that can be closed and opened again."""

    def __init__(self, root: Path, seal_passages: int = 1000) -> None:
        self.root = root
        self.seal_passages = seal_passages
        self.embedder = WordEmbedder()
        self.library = self._open()
        if not self.files.exists():
            self.library.create("handbook")

    @property
    def files(self) -> Path:
        return self.root / "knowledge" / "default" / "handbook"

    def file(self, folder: str) -> Path:
        """The only file of seg/, wal/ or mf/."""
        (found,) = (self.files / folder).iterdir()
        return found

    @property
    def collection(self) -> Collection:
        """What the library opened, for what its callers cannot see."""
        return self.library._open("handbook")

    def copy(self, name: str) -> "Shelf":
        """The same files elsewhere, as another library."""
        return Shelf(shutil.copytree(self.root, self.root.with_name(name)), self.seal_passages)

    def reopen(self, *, close: bool = True) -> Library:
        """Another library over the same files; a process that died closed nothing."""
        if close:
            self.library.close()
        self.library = self._open()
        return self.library

    def add(self, *pages: str, title: str = "", readers: frozenset[str] = ALL) -> Document:
        return self.library.add("handbook", new_document(*pages, title=title, readers=readers))

    def delete(self, document: Document) -> None:
        self.library.delete("handbook", document.id, ALL)

    def compact(self) -> None:
        self.library.compact("handbook")

    def search(self, query: str, groups: frozenset[str] = ALL, limit: int = 10) -> list[str]:
        """The texts that are found, best first."""
        return [passage.text for passage in search(self.library, "handbook", query, groups, limit).passages]

    def contents(self, groups: frozenset[str] = ALL) -> dict[str, tuple[str, ...]]:
        """Every document's pages by its id."""
        documents, _ = self.library.documents("handbook", groups)
        return {document.id: self.library.pages("handbook", document.id, groups) for document in documents}

    def contents_while_changing(self) -> list[tuple[str, ...]]:
        """The pages of what is listed, less what is deleted before it is read."""
        found = []
        for document in self.library.documents("handbook", ALL)[0]:
            with suppress(NotFound):
                found.append(self.library.pages("handbook", document.id, ALL))
        return found

    def _open(self) -> Library:
        self.libraries = open_libraries(self.root, self.embedder, self.seal_passages)
        return self.libraries.of("default")


class Steps:
    """Counts what is told, and stops at a step, if it is to."""

    def __init__(self, stops_at: int = -1) -> None:
        self.told: list[tuple[int, int]] = []
        self._stops_at = stops_at

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        if len(self.told) == self._stops_at:
            raise Cancelled("It was cancelled.")
        self.told.append((done, total))


def open_libraries(root: Path, embedder: Embedder, seal_passages: int = 1000) -> Libraries:
    """What a start opens: keys in <root>/vault, collections in <root>/knowledge."""
    keyring = FileKeyring.open(root / "vault", root / "knowledge")
    tenant_keys = FileTenantKeys(root / "vault" / "tenants", keyring)
    bounds = Bounds(hot_bytes=64 << 20, cache_bytes=4 << 20, seal_passages=seal_passages, seal_seconds=3600)
    return Libraries(root / "knowledge", root / "vault", keyring, tenant_keys, built_in(embedder), bounds)


def new_document(*pages: str, title: str = "", readers: frozenset[str] = ALL) -> NewDocument:
    digest = hashlib.sha256("\f".join((title, *pages)).encode("utf-8", "surrogatepass")).hexdigest()
    return NewDocument(title or digest[:8], "text/plain", digest, 10, "stick", "text/1", "v1", pages, readers)


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file; a negative offset counts from its end."""
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def make_shelf(tmp_path: Path) -> Iterator[Callable[..., Shelf]]:
    made: list[Shelf] = []

    def make(**options: int) -> Shelf:
        made.append(Shelf(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for shelf in made:
        shelf.library.close()


@pytest.fixture
def shelf(make_shelf: Callable[..., Shelf]) -> Shelf:
    return make_shelf()
