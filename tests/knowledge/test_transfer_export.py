"""A collection out of one box and into another: all of it, as of one instant, or nothing that looks whole."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import (
    AlreadyExists,
    ArchiveRefused,
    Cancelled,
    DiskFull,
    InvalidArgument,
    NotFound,
    PassphraseWrong,
    StoreDamaged,
)
from appliance.knowledge.storage.durable import NewFile
from appliance.knowledge.transfer.archive import ArchiveWriter
from appliance.knowledge.transfer.content import ContentWriter, Header
from appliance.knowledge.transfer.export import export, import_
from appliance.types import EVERYONE, Block, BlockKind, NewDocument, PassphraseCost
from appliance.vault import FileKeyring
from tests.knowledge.conftest import ALL, Shelf, flip, new_document
from tests.knowledge.disk_faults import Died, Disk, die, run_full
from tests.searching import search

WORDS = "correct horse battery staple"
CHEAP = PassphraseCost(memory_kib=8, passes=1, lanes=1)
TIME = datetime(2026, 3, 1, 12, 30, 15, 123456, UTC)


class Told:
    """`ports.Progress` that keeps what it is told, and is cancelled after so many updates."""

    def __init__(self, cancelled_after: int = 1 << 60) -> None:
        self.updates: list[tuple[int, int]] = []
        self._cancelled_after = cancelled_after

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        if len(self.updates) == self._cancelled_after:
            raise Cancelled("The job was cancelled.")
        self.updates.append((done, total))


def keyring_of(shelf: Shelf) -> FileKeyring:
    return FileKeyring.open(shelf.root / "vault", shelf.root / "knowledge")


def export_to(shelf: Shelf, path: Path, told: Told | None = None, collection: str = "handbook") -> Path:
    export(shelf.library, collection, path, WORDS, keyring_of(shelf), told or Told(), CHEAP)
    return path


def import_from(
    shelf: Shelf,
    path: Path,
    collection: str = "copy",
    told: Told | None = None,
    passphrase: str = WORDS,
    groups: frozenset[str] = frozenset(),
) -> None:
    import_(shelf.library, collection, path, passphrase, keyring_of(shelf), groups, told or Told())


def whole(shelf: Shelf, collection: str = "handbook") -> list[NewDocument]:
    return sorted(shelf.library.export(collection)[1], key=lambda document: document.title)


def folders(shelf: Shelf) -> list[str]:
    return sorted(path.name for path in (shelf.files.parent).iterdir())


DOCUMENTS = [
    replace(new_document("Badges expire after 90 days.", "", "Größe 日本", title="a"), create_time=TIME),
    replace(
        new_document("Salaries are secret.", title="b", readers=frozenset({"role:hr", "user:ann"})), create_time=TIME
    ),
    replace(
        new_document("Doors close at nine.", title="c"),
        metadata={"year": 2026.5, "draft": True, "by": "Zoë"},
        blocks=(Block(BlockKind.HEADING, 1, 0, 5, 1), Block(BlockKind.PARAGRAPH, 1, 6, 20)),
    ),
]


@pytest.fixture
def filled(shelf: Shelf) -> Shelf:
    """Two documents in a segment, one in the log, one deleted."""
    for document in DOCUMENTS[:2]:
        shelf.library.add("handbook", document)
    gone = shelf.add("Gone.", title="gone")
    shelf.compact()
    shelf.library.add("handbook", DOCUMENTS[2])
    shelf.delete(gone)
    return shelf


def test_every_document_arrives_in_another_box_with_all_that_was_known_of_it(
    filled: Shelf, make_shelf: Callable[..., Shelf], tmp_path: Path
) -> None:
    path, other = export_to(filled, tmp_path / "handbook.export"), make_shelf()
    import_from(other, path)
    assert whole(other, "copy") == whole(filled)
    assert [document.pages for document in whole(other, "copy")] == [document.pages for document in DOCUMENTS]
    assert [document.create_time for document in whole(other, "copy")][:2] == [TIME, TIME]
    assert whole(other, "copy")[2].metadata == DOCUMENTS[2].metadata
    other.reopen()
    assert whole(other, "copy") == whole(filled)


def test_who_may_not_read_a_document_here_may_not_read_it_there(
    filled: Shelf, make_shelf: Callable[..., Shelf], tmp_path: Path
) -> None:
    path, other = export_to(filled, tmp_path / "handbook.export"), make_shelf()
    import_from(other, path, "copy")

    def found(groups: frozenset[str]) -> set[str]:
        return {passage.title for passage in search(other.library, "copy", "Salaries are secret.", groups, 9).passages}

    assert "b" not in found(ALL)
    assert "b" in found(frozenset({"user:ann"}))


def test_an_export_counts_documents_and_is_private(filled: Shelf, tmp_path: Path) -> None:
    told = Told()
    path = export_to(filled, tmp_path / "handbook.export", told)
    assert told.updates == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"Badges" not in path.read_bytes()
    told = Told()
    import_from(filled, path, told=told)
    assert told.updates == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_empty_collection_is_exported_and_imported(shelf: Shelf, tmp_path: Path) -> None:
    import_from(shelf, export_to(shelf, tmp_path / "empty.export"))
    assert whole(shelf, "copy") == []


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.long
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.tuples(_text, st.lists(_text, max_size=6), st.frozensets(st.sampled_from(["user:a", "role:b", EVERYONE])))
    )
)
def test_any_documents_come_back(
    shelf: Shelf, tmp_path: Path, drawn: list[tuple[str, list[str], frozenset[str]]]
) -> None:
    shelf.library.create("drawn")
    try:
        for number, (title, pages, readers) in enumerate(drawn):
            document = new_document(f"word {number}", *pages, title=title, readers=readers or ALL)
            shelf.library.add("drawn", document)
            if number == 3:
                shelf.library.compact("drawn")
        path = export_to(shelf, tmp_path / "drawn.export", collection="drawn")
        import_from(shelf, path)

        def documents(collection: str) -> list[NewDocument]:
            return sorted(shelf.library.export(collection)[1], key=lambda document: document.sha256)

        assert documents("copy") == documents("drawn")
        path.unlink()
        shelf.library.drop("copy")
    finally:
        shelf.library.drop("drawn")


def test_a_name_or_a_file_that_is_taken_stays_as_it_is(filled: Shelf, tmp_path: Path) -> None:
    path = export_to(filled, tmp_path / "handbook.export")
    before = path.read_bytes()
    with pytest.raises(AlreadyExists, match=r"handbook\.export"):
        export_to(filled, path)
    assert path.read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AlreadyExists, match="link"):
        export_to(filled, tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(AlreadyExists, match="collection handbook"):
        import_from(filled, path, "handbook")
    with pytest.raises(InvalidArgument, match="collection_id"):
        import_from(filled, path, "../handbook")
    assert folders(filled) == ["handbook"]
    assert not list(tmp_path.glob(".new-*"))


def test_what_is_not_there_is_not_exported_or_imported(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing"):
        export_to(shelf, tmp_path / "a", collection="nothing")
    with pytest.raises(NotFound, match="file"):
        import_from(shelf, tmp_path / "a")
    assert list(tmp_path.iterdir()) == [shelf.root]


def test_a_collection_that_is_deleted_meanwhile_is_not_exported(filled: Shelf, tmp_path: Path) -> None:
    class Dropping(Told):
        def update(self, done: int, total: int = 0, note: str = "") -> None:
            if done == 1:
                filled.library.drop("handbook")

    with pytest.raises(NotFound):
        export_to(filled, tmp_path / "handbook.export", Dropping())
    assert list(tmp_path.iterdir()) == [filled.root]


def test_a_damaged_segment_is_named_and_nothing_is_exported(filled: Shelf, tmp_path: Path) -> None:
    filled.library.close()
    flip(filled.file("seg"), -20)
    filled.reopen()
    with pytest.raises(StoreDamaged, match="seg"):
        export_to(filled, tmp_path / "handbook.export")
    assert list(tmp_path.iterdir()) == [filled.root]


@pytest.mark.parametrize("updates", range(4))
def test_a_cancelled_export_leaves_nothing(filled: Shelf, tmp_path: Path, updates: int) -> None:
    with pytest.raises(Cancelled):
        export_to(filled, tmp_path / "handbook.export", Told(cancelled_after=updates))
    assert list(tmp_path.iterdir()) == [filled.root]


@pytest.mark.parametrize("updates", range(4))
def test_a_cancelled_import_leaves_nothing(filled: Shelf, tmp_path: Path, updates: int) -> None:
    path = export_to(filled, tmp_path / "handbook.export")
    with pytest.raises(Cancelled):
        import_from(filled, path, told=Told(cancelled_after=updates))
    assert folders(filled) == ["handbook"]
    import_from(filled, path)
    assert whole(filled, "copy") == whole(filled)


def test_an_import_is_not_seen_before_it_is_whole(filled: Shelf, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Looking(Told):
        def update(self, done: int, total: int = 0, note: str = "") -> None:
            with pytest.raises(NotFound):
                filled.library.find("copy", "x", "v1")
            seen.append([path.name for path in filled.files.parent.iterdir() if not path.name.startswith(".")])

    import_from(filled, export_to(filled, tmp_path / "handbook.export"), told=Looking())
    assert seen == [["handbook"]] * 4
    assert folders(filled) == ["copy", "handbook"]


def test_a_wrong_passphrase_and_a_damaged_file_leave_nothing(filled: Shelf, tmp_path: Path) -> None:
    path = export_to(filled, tmp_path / "handbook.export")
    with pytest.raises(PassphraseWrong):
        import_from(filled, path, passphrase="correct horse battery stable")
    flip(path, -1)
    with pytest.raises(ArchiveRefused):
        import_from(filled, path)
    assert folders(filled) == ["handbook"]


def forge(shelf: Shelf, path: Path, documents: list[NewDocument]) -> Path:
    """An archive that nobody exported."""
    with NewFile(path.parent) as file:
        archive = ArchiveWriter(file, keyring_of(shelf), WORDS, CHEAP)
        content = ContentWriter(archive, Header("handbook", len(documents), TIME, TIME))
        for document in documents:
            content.add(document)
        content.finish()
        archive.finish()
        file.publish(path.name)
    return path


def test_an_archive_that_holds_a_document_twice_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    path = forge(shelf, tmp_path / "forged", [DOCUMENTS[0], DOCUMENTS[0]])
    with pytest.raises(ArchiveRefused, match="twice"):
        import_from(shelf, path)
    assert folders(shelf) == ["handbook"]


@pytest.mark.long
def test_an_export_during_writes_is_of_one_instant(shelf: Shelf, tmp_path: Path) -> None:
    """Each document comes before the one before it goes, so at any instant there are one or two, neighbours."""
    stop, began = Event(), Event()

    def write() -> None:
        before, number = shelf.add("word 0", title="0"), 0
        while not stop.is_set():
            number += 1
            now = shelf.add(f"word {number}", title=str(number))
            shelf.delete(before)
            before = now
            if number % 7 == 0:
                shelf.compact()
            began.set()

    writer = Thread(target=write)
    writer.start()
    try:
        assert began.wait(20)
        for attempt in range(6):
            path = export_to(shelf, tmp_path / f"{attempt}.export")
            import_from(shelf, path, f"copy-{attempt}")
    finally:
        stop.set()
        writer.join()
    for attempt in range(6):
        numbers = sorted(int(document.title) for document in whole(shelf, f"copy-{attempt}"))
        assert numbers in ([numbers[0]], [numbers[0], numbers[0] + 1])


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, run_full])
def test_an_export_is_whole_or_not_there_whatever_happens(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    disk, step, done = Disk(monkeypatch, fault), 0, False
    path = tmp_path / "handbook.export"
    while not done:
        with disk.failing_at(step), suppress(Died, DiskFull):
            export_to(filled, path)
            done = True
        if fault is run_full and not done:
            assert list(tmp_path.iterdir()) == [filled.root]
        if path.exists():
            import_from(filled, path)
            assert whole(filled, "copy") == whole(filled)
            filled.library.drop("copy")
            if not done:
                path.unlink()
        step += 1
    assert step > 4


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, run_full])
def test_an_import_is_whole_or_not_there_whatever_happens(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    disk, step, done = Disk(monkeypatch, fault), 0, False
    path, wanted = export_to(filled, tmp_path / "handbook.export"), whole(filled)
    while not done:
        with disk.failing_at(step), suppress(Died, DiskFull):
            import_from(filled, path)
            done = True
        filled.reopen(close=False)
        if "copy" in folders(filled):
            assert whole(filled, "copy") == wanted
            if not done:
                filled.library.drop("copy")
        assert folders(filled) == (["copy", "handbook"] if done else ["handbook"])
        step += 1
    assert step > 10


def test_an_archive_whose_readers_are_a_group_that_there_is_not_is_refused_and_leaves_nothing(
    filled: Shelf, tmp_path: Path
) -> None:
    filled.add("Salaries.", title="z", readers=frozenset({"group:hr", "user:ann"}))
    path = export_to(filled, tmp_path / "a.export")
    with pytest.raises(InvalidArgument, match=r"readers: a document of .*'group:hr' names no group"):
        import_from(filled, path, groups=frozenset({"group:board"}))
    assert [one.id for one in filled.library.collections()] == ["handbook"]
    import_from(filled, path, groups=frozenset({"group:hr", "group:board"}))
    assert whole(filled, "copy") == whole(filled)
