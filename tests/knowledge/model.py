"""The knowledge base against a plain dictionary, in random operations as several principals.

`python -m tests.knowledge.model --operations N` runs at least N of them and prints `N passed, 0 failed`: what an
operation gives must be exactly what the dictionary gives, so nothing across access lists, nothing after a delete, and
everything else.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from appliance.errors import DocumentRefused, EmbedderChanged, NotFound
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.knowledge.library import Library
from appliance.ports import Embedder
from appliance.types import EVERYONE, Document, Leg, MetadataValue, NewDocument, SearchOptions
from appliance.vault import FileKeyring, FileTenantKeys
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import new_document
from tests.knowledge.meanwhile import changing
from tests.searching import search

COLLECTION = "model"
STEPS = 50
CALLERS = (
    frozenset({EVERYONE, "user:ann", "group:staff"}),
    frozenset({EVERYONE, "user:bob"}),
    frozenset({"user:nobody"}),
    frozenset({EVERYONE, "role:admin", "group:staff", "user:ann"}),
)
EMBEDDERS: dict[str, Embedder] = {
    "": WordEmbedder("first", dimension=8),
    "second": WordEmbedder("second", dimension=12),
}
READERS = (EVERYONE, "user:ann", "user:bob", "group:staff", "role:admin")

callers = st.sampled_from(CALLERS)
readers = st.frozensets(st.sampled_from(READERS), min_size=1, max_size=2)
words = st.lists(st.sampled_from(["badge", "door", "ключ"]), min_size=1, max_size=3)
tags = st.dictionaries(st.sampled_from(["tag", "year"]), st.sampled_from(["x", "y", 3.0, True]), max_size=2)
legs = st.sampled_from([frozenset({Leg.WORDS}), frozenset({Leg.MEANING}), frozenset(Leg)])
places = st.integers(0, 1 << 16)


@dataclass(frozen=True)
class Known:
    """A document as the dictionary has it."""

    title: str
    text: str
    readers: frozenset[str]
    metadata: dict[str, MetadataValue]


def embedder(name: str, identity: str, *, background: bool = False) -> Embedder:
    found = EMBEDDERS[name]
    if identity not in ("", found.identity):
        raise EmbedderChanged(f"There is no embedder {name} {identity}.")
    return found


class Told:
    def update(self, done: int, total: int = 0, note: str = "") -> None:
        assert done <= total


class Model(RuleBasedStateMachine):
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="model-", dir=memory if memory.is_dir() else None))
        self.known: dict[str, Known] = {}
        self.made = 0
        self.libraries: list[Libraries] = []

    @initialize(seal_passages=st.sampled_from([2, 5, 1000]))
    def begin(self, seal_passages: int) -> None:
        self.seal_passages = seal_passages
        self.library = self.opened(seal_passages)
        self.library.create(COLLECTION)

    def check_listings(self) -> None:
        for groups in CALLERS:
            found, _ = self.library.documents(COLLECTION, groups)
            wanted = [(one, known.readers) for one, known in self.readable(groups).items()]
            assert sorted((one.id, one.readers) for one in found) == sorted(wanted)

    def teardown(self) -> None:
        if not sys.exc_info()[0]:
            self.library = self.opened(1000)
            self.check_listings()
        for libraries in self.libraries:
            libraries.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def opened(self, seal_passages: int) -> Library:
        keyring = FileKeyring.open(self.root / "vault", self.root / "knowledge")
        keys = FileTenantKeys(self.root / "vault" / "tenants", keyring)
        bounds = Bounds(hot_bytes=1 << 20, cache_bytes=1 << 20, seal_passages=seal_passages, seal_seconds=3600)
        self.libraries.append(Libraries(self.root / "knowledge", self.root / "vault", keyring, keys, embedder, bounds))
        return self.libraries[-1].of("default")

    def readable(self, groups: frozenset[str]) -> dict[str, Known]:
        return {document: known for document, known in self.known.items() if known.readers & groups}

    def some(self, place: int) -> str:
        return [*self.known][place % len(self.known)]  # by age: ids are random, and a history must repeat itself

    def anybody(self, document: str) -> frozenset[str]:
        return self.known[document].readers

    def counted(self) -> str:
        """Of each operation; the version of what it begins with."""
        type(self).operations += 1
        return self.library.version(COLLECTION)

    # --- writing

    def put(self, text: Sequence[str], who: frozenset[str], tag: dict[str, MetadataValue], replaces: str = "") -> None:
        before = self.counted()
        known, new = self.made_of(text, who, tag, replaces)
        document = self.library.add(COLLECTION, new)
        self.known.pop(replaces, None)
        self.known[document.id] = known
        assert self.library.version(COLLECTION) != before

    def made_of(
        self, text: Sequence[str], who: frozenset[str], tag: dict[str, MetadataValue], replaces: str
    ) -> tuple[Known, NewDocument]:
        self.made += 1
        known = Known(f"title {self.made % 3} {self.made}", " ".join([*text, f"number{self.made}"]), who, tag)
        new = new_document(known.text, title=known.title, readers=who)
        return known, replace(new, metadata=tag, replaces=replaces)

    @rule(text=words, who=readers, tag=tags)
    def add(self, text: list[str], who: frozenset[str], tag: dict[str, MetadataValue]) -> None:
        self.put(text, who, tag)

    @precondition(lambda self: self.known)
    @rule(text=words, who=readers, tag=tags, place=places)
    def replace(self, text: list[str], who: frozenset[str], tag: dict[str, MetadataValue], place: int) -> None:
        self.put(text, who, tag, self.some(place))

    @rule(texts=st.lists(words, max_size=4), who=readers, tag=tags, place=places, has_bad=st.booleans())
    def add_all(
        self, texts: list[list[str]], who: frozenset[str], tag: dict[str, MetadataValue], place: int, has_bad: bool
    ) -> None:
        before = self.counted()
        gone = self.some(place) if self.known and place % 2 else ""
        made = [self.made_of(text, who, tag, "" if at else gone) for at, text in enumerate(texts)]
        bad = [new_document("", title="bad")] if has_bad else []
        found = self.library.add_all(COLLECTION, [*(new for _, new in made), *bad])
        assert [isinstance(one, DocumentRefused) for one in found] == [False] * len(made) + [True] * len(bad)
        if texts:
            self.known.pop(gone, None)
        added = (one for one in found if isinstance(one, Document))
        self.known |= {document.id: known for document, (known, _) in zip(added, made, strict=True)}
        assert (self.library.version(COLLECTION) != before) == bool(texts)

    @precondition(lambda self: self.known)
    @rule(place=places)
    def delete(self, place: int) -> None:
        before, document = self.counted(), self.some(place)
        self.library.delete(COLLECTION, document, self.anybody(document))
        del self.known[document]
        assert self.library.version(COLLECTION) != before
        with pytest.raises(NotFound):
            self.put(["badge"], frozenset({EVERYONE}), {}, document)

    @precondition(lambda self: self.known)
    @rule(place=places, who=readers)
    def set_readers(self, place: int, who: frozenset[str]) -> None:
        before, document = self.counted(), self.some(place)
        changed = self.library.set_readers(COLLECTION, document, who, self.anybody(document))
        assert changed.readers == who
        same = self.known[document].readers == who
        assert (self.library.version(COLLECTION) == before) == same
        self.known[document] = replace(self.known[document], readers=who)

    @rule(first=places, second=places, who=readers, text=words, which=st.sampled_from(["all", "due", "old"]))
    def change_while_tidying(self, first: int, second: int, who: frozenset[str], text: list[str], which: str) -> None:
        """Where a segment is written: before its bytes, and behind them, before it is part of the collection."""

        def before() -> None:
            self.put(text, who, {})
            self.delete(first)

        def behind() -> None:
            if self.known:
                self.set_readers(second, who)
                if self.seal_passages > 2:  # else it would fill what takes over, and wait
                    self.put(text, who, {}, self.some(first))
            if self.known:
                self.delete(second)
            self.check_listings()

        with changing(before, behind):
            self.tidied(which)
        self.check_listings()

    # --- what changes nothing that anybody sees

    @rule(which=st.sampled_from(["all", "due", "old", "old"]))
    def tidy(self, which: str) -> None:
        before = self.counted()
        self.tidied(which)
        assert self.library.version(COLLECTION) == before

    def tidied(self, which: str) -> None:
        if which == "all":
            self.library.compact(COLLECTION)
        elif which == "due":
            self.library.compact_where_due()
        else:
            self.library.seal_where_old(-1.0)

    @rule(name=st.sampled_from(sorted(EMBEDDERS)))
    def reembed(self, name: str) -> None:
        self.counted()
        self.library.reembed(COLLECTION, name, EMBEDDERS[name], Told())

    @rule(closes=st.booleans())
    def reopen(self, closes: bool) -> None:
        before = self.counted()
        if closes:
            self.libraries[-1].close()
        self.library = self.opened(self.seal_passages)
        assert self.library.version(COLLECTION) == before
        self.check_listings()

    # --- reading

    @rule(groups=callers, word=st.sampled_from(["badge", "ключ door"]), by=legs)
    def search(self, groups: frozenset[str], word: str, by: frozenset[Leg]) -> None:
        self.counted()
        self.check_search(groups, word, by, "", self.readable(groups))

    @rule(groups=callers, by=legs)
    def search_filtered(self, groups: frozenset[str], by: frozenset[Leg]) -> None:
        self.counted()
        wanted = {one: known for one, known in self.readable(groups).items() if known.metadata.get("tag") == "x"}
        self.check_search(groups, "badge", by, 'tag = "x"', wanted)

    def check_search(
        self, groups: frozenset[str], query: str, by: frozenset[Leg], condition: str, readable: dict[str, Known]
    ) -> None:
        options = SearchOptions(condition, by, facets=("tag", "media_type"))
        found = search(self.library, COLLECTION, query, groups, 100, options)
        texts = {passage.document.rpartition("/")[2]: passage.text for passage in found.passages}
        holding = {one for one, known in readable.items() if set(query.split()) & set(known.text.split())}
        assert texts.items() <= {(one, known.text) for one, known in readable.items()}
        assert len(texts) == len(found.passages)
        assert texts.keys() == (holding if by == {Leg.WORDS} else readable.keys())
        counts = {count.value: count.documents for count in found.facets["tag"]}
        assert counts == self.counts("tag", readable)
        assert [count.documents for count in found.facets["media_type"]] == ([len(readable)] if readable else [])

    def counts(self, name: str, readable: dict[str, Known]) -> dict[str, int]:
        shown: dict[MetadataValue, str] = {3.0: "3", True: "true"}
        found: dict[str, int] = {}
        for known in readable.values():
            if name in known.metadata:
                value = known.metadata[name]
                value = shown.get(value, str(value))
                found[value] = found.get(value, 0) + 1
        return found

    @rule(groups=callers, size=st.integers(1, 5))
    def list(self, groups: frozenset[str], size: int) -> None:
        self.counted()
        wanted = sorted((known.title, one) for one, known in self.readable(groups).items())
        every, end = self.library.documents(COLLECTION, groups)
        assert ([(one.title, one.id) for one in every], end) == (wanted, "")
        found, after = self.library.documents(COLLECTION, groups, limit=size)
        while after:
            more, after = self.library.documents(COLLECTION, groups, after=after, limit=size)
            found += more
        assert found == every
        assert all(one.readers == self.known[one.id].readers for one in every)
        assert all(one.metadata == self.known[one.id].metadata for one in every)

    @rule(groups=callers)
    def count(self, groups: frozenset[str]) -> None:
        self.counted()
        described, readable = self.library.describe(COLLECTION, groups), len(self.readable(groups))
        assert (described.document_count, described.passage_count) == (readable, readable)

    @precondition(lambda self: self.known)
    @rule(groups=callers, place=places)
    def read(self, groups: frozenset[str], place: int) -> None:
        self.counted()
        document = self.some(place)
        if document in self.readable(groups):
            assert self.library.pages(COLLECTION, document, groups) == (self.known[document].text,)
            return
        for hidden in (self.library.pages, self.library.get, self.library.delete):
            with pytest.raises(NotFound):
                hidden(COLLECTION, document, groups)


def run(operations: int) -> int:
    """At least so many, in histories of STEPS; how many there were. Raises AssertionError where one is wrong."""

    class Counted(Model):
        operations = 0

    unhurried = settings(
        max_examples=max(1, operations // STEPS),
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while Counted.operations < operations:
        run_state_machine_as_test(Counted, settings=unhurried)
    return Counted.operations


def main(operations: Annotated[int, typer.Option(help="At least so many.")] = 50_000) -> None:
    """Random operations against a plain dictionary."""
    typer.echo(f"{run(operations)} passed, 0 failed")


if __name__ == "__main__":
    typer.run(main)
