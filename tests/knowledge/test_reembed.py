"""A collection embedded anew by another embedder: at once, beside all else, and not at all where it fails."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from appliance.errors import Broken, Cancelled, EmbedderChanged
from appliance.knowledge.embedders import built_in
from appliance.types import Document, Floats, Leg, SearchOptions
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, Steps
from tests.knowledge.disk_faults import Died, Disk, die
from tests.knowledge.test_documents import ANN, put, share
from tests.searching import search

SECOND = WordEmbedder("second", dimension=48)


def with_second(shelf: Shelf) -> Shelf:
    """The same box, that has the second embedder too."""
    shelf.library._embedders = lambda name, identity, background=False: built_in(SECOND if name else shelf.embedder)(
        "", identity
    )
    shelf.collection._embedders = shelf.library._embedders
    return shelf


def filled(shelf: Shelf) -> tuple[list[Document], list[str]]:
    documents = [shelf.add(f"Badge {number} expires.", f"Door {number}.") for number in range(6)]
    shelf.compact()
    documents += [shelf.add(f"Badge {number} expires.") for number in range(6, 9)]
    shelf.delete(documents[1])
    share(shelf, documents[2], ALL | ANN)
    return documents, sorted(shelf.search("badge expires", limit=50))


def assert_of(shelf: Shelf, embedder: WordEmbedder, found: list[str]) -> None:
    """Every vector is of that embedder, and all is found by meaning alone."""
    manifest = shelf.collection._store.manifest
    assert (manifest.embedder, manifest.dimension) == (embedder.identity, embedder.dimension)
    for unit in shelf.collection._published.snapshot.units:
        texts = [unit.piece(row).read(unit.passage(row)[1].rjust(unit.piece(row).span.end)) for row in range(unit.rows)]
        assert np.allclose(unit.vectors(np.arange(unit.rows, dtype=np.uint32)), embedder.embed(texts), atol=1e-3)
    by_meaning = search(shelf.library, "handbook", "badge", ALL, 50, SearchOptions(legs=frozenset({Leg.MEANING})))
    assert sorted(passage.text for passage in by_meaning.passages) == found


def test_all_vectors_are_of_the_other_embedder_at_once(make_shelf: Callable[..., Shelf]) -> None:
    shelf = with_second(make_shelf(seal_passages=5))
    documents, found = filled(shelf)
    contents, steps = shelf.contents(), Steps()
    shelf.library.reembed("handbook", "second", SECOND, steps)
    assert steps.told[-1][0] == steps.told[-1][1] > 0
    assert [done for done, _ in steps.told] == sorted(done for done, _ in steps.told)
    for again in (lambda: None, lambda: with_second(shelf).reopen() and with_second(shelf), shelf.compact):
        again()
        assert_of(shelf, SECOND, found)
        assert shelf.contents() == contents
    added = shelf.add("Badge new expires.")
    assert_of(shelf, SECOND, sorted([*found, "Badge new expires."]))
    assert shelf.library.get("handbook", added.id, ALL).create_time > documents[0].create_time
    shelf.library.reembed("handbook", "", shelf.embedder, Steps())
    assert_of(shelf, shelf.embedder, sorted([*found, "Badge new expires."]))


def test_searches_and_writes_go_on_while_all_is_embedded_anew(shelf: Shelf) -> None:
    with_second(shelf)
    documents, _ = filled(shelf)

    class Meddling(Steps):
        def update(self, done: int, total: int = 0, note: str = "") -> None:
            step = len(self.told)
            if step == 0:
                shelf.add("Badge meanwhile expires.")
                shelf.delete(documents[3])
                share(shelf, documents[4], ANN)
                assert "Badge meanwhile expires." in shelf.search("badge expires", limit=50)
            elif step == 1:
                put(shelf, "Badge instead expires.", replaces=documents[5].id)
            super().update(done, total, note)

    shelf.library.reembed("handbook", "second", SECOND, Meddling())
    found = shelf.search("badge expires", limit=50)
    assert {"Badge meanwhile expires.", "Badge instead expires."} <= set(found)
    assert not {f"Badge {number} expires." for number in (1, 3, 4, 5)} & set(found)
    assert shelf.search("badge", ANN, limit=50).count("Badge 4 expires.") == 1
    assert_of(shelf, SECOND, sorted(found))
    with_second(shelf).reopen()
    assert_of(with_second(shelf), SECOND, sorted(found))


def test_a_document_embedded_by_the_old_one_when_the_switch_comes_is_embedded_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_second(shelf)
    shelf.add("Doors close.")
    embed = shelf.embedder.embed
    switched: list[bool] = []

    def embed_then_switch(texts: list[str]) -> Floats:
        found = embed(texts)
        if not switched:
            switched.append(True)
            shelf.library.reembed("handbook", "second", SECOND, Steps())
        return found

    monkeypatch.setattr(shelf.embedder, "embed", embed_then_switch)
    shelf.add("Badges expire.")
    assert_of(shelf, SECOND, ["Badges expire.", "Doors close."])


def test_cancelling_leaves_everything_as_it_was_at_every_step(make_shelf: Callable[..., Shelf]) -> None:
    shelf = with_second(make_shelf(seal_passages=5))
    _, found = filled(shelf)
    shelf.compact()
    contents, step = shelf.contents(), 0
    files = sorted(path.name for path in (shelf.files / "seg").iterdir())
    while True:
        try:
            shelf.library.reembed("handbook", "second", SECOND, Steps(stops_at=step))
            break
        except Cancelled:
            assert sorted(path.name for path in (shelf.files / "seg").iterdir()) == files
            assert_of(shelf, shelf.embedder, found)
            assert shelf.contents() == contents
        step += 1
    assert step > 2
    assert_of(shelf, SECOND, found)


@pytest.mark.long
def test_dying_at_any_step_leaves_all_old_or_all_new(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = make_shelf(seal_passages=5)
    _, found = filled(prepared)
    contents = prepared.contents()
    prepared.library.close()
    disk, step, done, seen = Disk(monkeypatch, die), 0, False, set()
    while not done:
        shelf = prepared.copy(f"step{step}")
        with disk.failing_at(step):
            try:
                shelf.library.reembed("handbook", "second", SECOND, Steps())
                done = True
            except Died:
                pass
        shelf.reopen(close=False)
        with_second(shelf)
        is_new = shelf.collection._store.manifest.embedder == SECOND.identity
        assert is_new or not done
        seen.add(is_new)
        assert_of(shelf, SECOND if is_new else shelf.embedder, found)
        assert shelf.contents() == contents
        step += 1
    assert seen == {False, True}


def test_vectors_that_are_no_numbers_end_it_and_leave_everything(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with_second(shelf)
    _, found = filled(shelf)

    class Nan(WordEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            return super().embed(texts) * np.float32("nan")

    with pytest.raises(Broken, match="no number"):
        shelf.library.reembed("handbook", "second", Nan("nan"), Steps())
    assert_of(shelf, shelf.embedder, found)
    assert len(list((shelf.files / "seg").iterdir())) == 2


def test_a_box_without_the_embedder_says_how_to_go_on_and_goes_on_so(shelf: Shelf) -> None:
    shelf.add("Badges expire.")
    shelf.embedder = WordEmbedder("another")
    shelf.reopen()
    with pytest.raises(EmbedderChanged) as caught:
        shelf.search("badges")
    assert "appliance knowledge reembed" in caught.value.remedy
    shelf.library.reembed("handbook", "", shelf.embedder, Steps())
    assert shelf.search("badges") == ["Badges expire."]
