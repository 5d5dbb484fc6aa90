"""A collection's files in a folder, as of one instant, and back: whole, of this box and tenant, or refused by name."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread

import pytest

from appliance.errors import (
    AlreadyExists,
    BackupRefused,
    Busy,
    Cancelled,
    InvalidArgument,
    NotFound,
    StoreDamaged,
)
from appliance.knowledge.storage import durable
from appliance.knowledge.transfer import backup
from tests.knowledge.conftest import ALL, Shelf, flip, new_document
from tests.knowledge.test_transfer_export import Told, filled, folders, keyring_of, whole

__all__ = ["filled"]  # a fixture


def back_up(shelf: Shelf, folder: Path, told: Told | None = None) -> Path:
    backup.backup(shelf.library, "default", "handbook", folder, keyring_of(shelf), told or Told())
    return folder


def restore(shelf: Shelf, folder: Path, collection: str = "handbook", told: Told | None = None) -> None:
    backup.restore(shelf.library, "default", collection, folder, keyring_of(shelf), told or Told())


def lose(shelf: Shelf) -> None:
    """The collection's folder is gone, as after a disk was replaced; its keys' owner is not."""
    shelf.library.close()
    shutil.rmtree(shelf.files)
    shelf.reopen(close=False)


def statement(folder: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((folder / "backup.json").read_bytes())["statement"]
    return facts


def sign_anew(shelf: Shelf, folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """As only this box itself could."""
    facts = statement(folder)
    change(facts)
    raw = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    signature = keyring_of(shelf).sign(b"appliance backup 1\x00" + raw).hex().encode()
    (folder / "backup.json").write_bytes(b'{"signature":"' + signature + b'","statement":' + raw + b"}\n")


def test_a_lost_collection_comes_back_as_it_was(filled: Shelf, tmp_path: Path) -> None:
    before, told = whole(filled), Told()
    folder = back_up(filled, tmp_path / "backup", told)
    size_bytes = sum(path.stat().st_size for path in (folder / "files").iterdir())
    assert told.updates[0] == (0, size_bytes)
    assert told.updates[-1] == (size_bytes, size_bytes)
    lose(filled)
    assert folders(filled) == []
    told = Told()
    restore(filled, folder, told=told)
    assert told.updates[-1] == (size_bytes, size_bytes)
    assert whole(filled) == before
    filled.reopen()
    assert whole(filled) == before
    filled.add("More.", title="z")
    filled.compact()
    filled.reopen()
    assert len(whole(filled)) == len(before) + 1


def test_it_comes_back_under_another_name(filled: Shelf, tmp_path: Path) -> None:
    before, folder = whole(filled), back_up(filled, tmp_path / "backup")
    lose(filled)
    restore(filled, folder, "manual")
    filled.reopen()
    assert folders(filled) == ["manual"]
    assert whole(filled, "manual") == before


def test_an_older_state_comes_back_though_the_box_knows_a_newer_one(filled: Shelf, tmp_path: Path) -> None:
    before, folder = whole(filled), back_up(filled, tmp_path / "backup")
    for number in range(3):
        filled.add(f"Later {number}.", title=f"later {number}")
        filled.compact()
    lose(filled)
    restore(filled, folder)
    filled.reopen()
    assert whole(filled) == before


def test_a_backup_shows_nothing_of_its_documents(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    for path in folder.rglob("*"):
        assert path.is_dir() or b"Badges" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_the_next_backup_copies_what_is_new(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    (segment,) = (path for path in (folder / "files").iterdir() if path.name == filled.file("seg").name)
    first = segment.stat()
    filled.add("New.", title="new")
    back_up(filled, folder)
    assert segment.stat().st_ino == first.st_ino
    assert segment.stat().st_mtime_ns == first.st_mtime_ns
    files = statement(folder)["files"]
    assert isinstance(files, dict)
    assert {path.name for path in (folder / "files").iterdir()} == {file["sha256"] for file in files.values()}
    before = whole(filled)
    lose(filled)
    restore(filled, folder)
    assert whole(filled) == before


def test_the_next_backup_mends_a_file_that_the_first_has_no_longer(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    segment = folder / "files" / filled.file("seg").name
    flip(segment, 100)
    back_up(filled, folder)
    segment.unlink()
    (tmp_path / "elsewhere").write_bytes(b"mine")
    segment.symlink_to(tmp_path / "elsewhere")
    back_up(filled, folder)
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    before = whole(filled)
    lose(filled)
    restore(filled, folder)
    assert whole(filled) == before


@pytest.mark.long
def test_a_backup_during_writes_is_of_one_instant(shelf: Shelf, tmp_path: Path) -> None:
    """Each document comes before the one before it goes, so at any instant there are one or two, neighbours."""
    stop, began, copies = Event(), Event(), 5

    def write() -> None:
        before, number = shelf.add("word 0", title="0"), 0
        while not stop.is_set():
            number += 1
            now = shelf.add(f"word {number}", title=str(number))
            shelf.delete(before)
            before = now
            if number % 5 == 0:
                shelf.compact()
            began.set()

    writer = Thread(target=write)
    writer.start()
    try:
        assert began.wait(20)
        for copy in range(copies):
            back_up(shelf, tmp_path / f"backup-{copy % 2}")
            shutil.copytree(tmp_path / f"backup-{copy % 2}", tmp_path / f"copy-{copy}")
    finally:
        stop.set()
        writer.join()
    for copy in range(copies):
        lose(shelf)
        restore(shelf, tmp_path / f"copy-{copy}")
        numbers = sorted(int(document.title) for document in whole(shelf))
        assert numbers in ([numbers[0]], [numbers[0], numbers[0] + 1])


def test_a_damaged_collection_is_replaced(filled: Shelf, tmp_path: Path) -> None:
    before, folder = whole(filled), back_up(filled, tmp_path / "backup")
    for damage in ("CURRENT", "key.1", "seg"):
        filled.add("Later.", title="later")
        filled.library.close()
        path = filled.files / damage if damage != "seg" else filled.file("seg")
        os.truncate(path, path.stat().st_size - 1)
        filled.reopen(close=False)
        restore(filled, folder)
        assert whole(filled) == before, damage
        filled.reopen()
        assert whole(filled) == before, damage
        assert folders(filled) == ["handbook"]
        assert filled.library.damaged() == {}


def test_a_sound_collection_is_replaced_by_those_who_say_so(filled: Shelf, tmp_path: Path) -> None:
    before, folder = whole(filled), back_up(filled, tmp_path / "backup")
    filled.add("Later.", title="later")
    filled.compact()
    present = whole(filled)
    with pytest.raises(BackupRefused, match="handbook is there and sound"):
        restore(filled, folder)
    assert whole(filled) == present
    library, opened = filled.library, filled.collection
    backup.restore(library, "default", "handbook", folder, keyring_of(filled), Told(), replace=True)
    with pytest.raises(NotFound):
        opened.add(new_document("Too late."))
    assert whole(filled) == before
    filled.add("Otherwise.", title="otherwise")
    filled.reopen()
    assert len(whole(filled)) == len(before) + 1


def test_no_version_means_two_contents_after_a_restore(filled: Shelf, tmp_path: Path) -> None:
    """Else an answer that was kept for what was undone would be given for what is there."""
    folder, seen = back_up(filled, tmp_path / "backup"), []
    for word in ("One", "Another"):
        filled.add(f"{word} truth.", title=word)
        seen.append(filled.library.version("handbook"))
        filled.reopen()
        assert filled.library.version("handbook") == seen[-1]
        backup.restore(filled.library, "default", "handbook", folder, keyring_of(filled), Told(), replace=True)
        seen.append(filled.library.version("handbook"))
    assert len(set(seen)) == len(seen)


def test_a_restore_that_fails_leaves_the_present_collection(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    filled.library.rotate()
    filled.add("Later.", title="later")
    present = whole(filled)
    with pytest.raises(BackupRefused, match="rotated since"):
        backup.restore(filled.library, "default", "handbook", folder, keyring_of(filled), Told(), replace=True)
    assert whole(filled) == present
    filled.add("Latest.", title="latest")
    filled.reopen()
    assert len(whole(filled)) == len(present) + 1


def test_only_another_name_is_taken_as_taken(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    filled.library.create("second")
    with pytest.raises(AlreadyExists, match="handbook now"):
        restore(filled, folder, "second")
    with pytest.raises(AlreadyExists, match="handbook"):
        restore(filled, folder, "beside")  # two with the same keys
    with pytest.raises(InvalidArgument, match="collection_id"):
        restore(filled, folder, "../beside")
    lose(filled)
    with pytest.raises(AlreadyExists, match="second already, another"):
        restore(filled, folder, "second")
    assert folders(filled) == ["second"]


def test_a_folder_of_something_else_is_left_alone(filled: Shelf, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("Dear")
    with pytest.raises(AlreadyExists, match=r"letter\.txt"):
        back_up(filled, mine)
    assert [path.name for path in mine.iterdir() if path.name != "files"] == ["letter.txt"]
    filled.library.create("second")
    backup.backup(filled.library, "default", "second", tmp_path / "second", keyring_of(filled), Told())
    with pytest.raises(BackupRefused, match="another collection, second"):
        back_up(filled, tmp_path / "second")
    (tmp_path / "link").symlink_to(tmp_path / "second")
    with pytest.raises(BackupRefused, match="link"):
        back_up(filled, tmp_path / "link")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises((BackupRefused, StoreDamaged), match="file"):
        back_up(filled, tmp_path / "file")


def test_another_box_refuses_it(filled: Shelf, make_shelf: Callable[..., Shelf], tmp_path: Path) -> None:
    folder, other = back_up(filled, tmp_path / "backup"), make_shelf()
    with pytest.raises(BackupRefused, match="is of another box"):
        restore(other, folder, "copy")
    with pytest.raises(BackupRefused, match="is of another box"):
        back_up(other, folder)
    assert folders(other) == ["handbook"]


def test_another_tenant_is_refused_it(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    library = filled.libraries.of("other")
    with pytest.raises(BackupRefused, match="another tenant"):
        backup.restore(library, "other", "handbook", folder, keyring_of(filled), Told())
    sign_anew(filled, folder, lambda facts: facts.update(tenant="other"))
    with pytest.raises(BackupRefused):
        backup.restore(library, "other", "handbook", folder, keyring_of(filled), Told())
    assert library.collections(ALL) == ()


def test_a_shredded_collection_does_not_come_back(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    filled.library.drop("handbook")
    with pytest.raises(BackupRefused, match="tenant was shredded"):
        restore(filled, folder)
    assert folders(filled) == []


def test_a_shredded_tenant_does_not_come_back(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    filled.libraries.shred_tenant("default")
    filled.library.create("new-life")
    with pytest.raises(BackupRefused, match="tenant was shredded"):
        restore(filled, folder)
    assert folders(filled) == ["new-life"]


def a_file(folder: Path) -> Path:
    return min((folder / "files").iterdir())


def edit(folder: Path) -> None:
    path = folder / "backup.json"
    path.write_bytes(path.read_bytes().replace(b'"handbook"', b'"cookbook"'))


def link(path: Path) -> None:
    path.rename(path.with_name("aside"))
    shutil.move(path.with_name("aside"), path.parent.parent.parent / "aside")
    path.symlink_to(path.parent.parent.parent / "aside")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (edit, "backup.json was changed"),
    "a bit flipped": (lambda folder: flip(a_file(folder), 50), "is not what was backed up"),
    "cut": (lambda folder: os.truncate(a_file(folder), a_file(folder).stat().st_size - 1), "not what was backed up"),
    "longer": (lambda folder: a_file(folder).write_bytes(a_file(folder).read_bytes() + b"x"), "not what was backed up"),
    "missing": (lambda folder: a_file(folder).unlink(), "is missing"),
    "no statement": (lambda folder: (folder / "backup.json").unlink(), "backup.json is missing"),
    "half a statement": (lambda folder: os.truncate(folder / "backup.json", 100), "backup.json is damaged"),
    "an extra file": (lambda folder: (folder / "run.sh").write_text("x"), "run.sh"),
    "an extra file inside": (lambda folder: (folder / "files" / "run.sh").write_text("x"), "run.sh"),
    "a link": (lambda folder: link(a_file(folder)), "is a link"),
    "a pipe": (lambda folder: pipe(a_file(folder)), "no regular file"),
    "a linked statement": (lambda folder: link(folder / "backup.json"), "is a link"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_backup_that_was_tampered_with_is_refused_by_name(filled: Shelf, tmp_path: Path, name: str) -> None:
    change, told = DAMAGE[name]
    folder = back_up(filled, tmp_path / "place" / "backup")
    lose(filled)
    change(folder)
    with pytest.raises(BackupRefused, match=told):
        restore(filled, folder)
    assert folders(filled) == []


def test_a_linked_folder_is_refused(filled: Shelf, tmp_path: Path) -> None:
    folder = back_up(filled, tmp_path / "backup")
    lose(filled)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BackupRefused, match="link"):
        restore(filled, tmp_path / "link")
    (folder / "files").rename(tmp_path / "files")
    (folder / "files").symlink_to(tmp_path / "files")
    with pytest.raises(BackupRefused, match="files"):
        restore(filled, folder)
    with pytest.raises(NotFound, match="nowhere"):
        restore(filled, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../key.1", "/etc/passwd", "seg/../../x", "seg/..", ".new-x", "a/b/c", "", "seg/"])
def test_a_name_that_leads_elsewhere_is_refused_though_the_box_signed_it(
    filled: Shelf, tmp_path: Path, name: str
) -> None:
    folder = back_up(filled, tmp_path / "backup")
    lose(filled)

    def change(facts: dict[str, object]) -> None:
        files = facts["files"]
        assert isinstance(files, dict)
        files[name] = files.pop("CURRENT")

    sign_anew(filled, folder, change)
    with pytest.raises(BackupRefused, match="which no collection has"):
        restore(filled, folder)
    assert folders(filled) == []


def test_a_damaged_segment_is_named_and_not_backed_up(filled: Shelf, tmp_path: Path) -> None:
    flip(filled.file("seg"), -20)
    with pytest.raises(StoreDamaged, match="seg/"):
        back_up(filled, tmp_path / "backup")
    assert not (tmp_path / "backup" / "backup.json").exists()


def test_a_collection_that_is_deleted_meanwhile_is_not_backed_up(filled: Shelf, tmp_path: Path) -> None:
    class Dropping(Told):
        def update(self, done: int, total: int = 0, note: str = "") -> None:
            if done == 0:
                filled.library.drop("handbook")
                filled.library.create("handbook")

    with pytest.raises(NotFound, match="was deleted while"):
        back_up(filled, tmp_path / "backup", Dropping())
    assert not (tmp_path / "backup" / "backup.json").exists()


def test_a_cancelled_backup_leaves_the_one_before_it(filled: Shelf, tmp_path: Path) -> None:
    folder, before = back_up(filled, tmp_path / "backup"), whole(filled)
    filled.add("Later.", title="later")
    for updates in range(1, 4):
        with pytest.raises(Cancelled):
            back_up(filled, folder, Told(cancelled_after=updates))
    lose(filled)
    for updates in range(3):
        with pytest.raises(Cancelled):
            restore(filled, folder, told=Told(cancelled_after=updates))
        assert folders(filled) == []
    restore(filled, folder)
    assert whole(filled) == before


class Meanwhile(Told):
    """Something happens after each update, so many times."""

    def __init__(self, happens: Callable[[], object], times: int = 1) -> None:
        super().__init__()
        self._happens, self._times = happens, times

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        if done and done == total and self._times:
            self._times -= 1
            self._happens()
        super().update(done, total, note)


def test_a_backup_during_which_keys_are_rotated_is_copied_again_and_can_be_restored(
    filled: Shelf, tmp_path: Path
) -> None:
    before = whole(filled)
    filled.library.create("other")
    meanwhile: list[Callable[[], object]] = [filled.library.rotate, partial(filled.library.drop, "other")]
    for number, happens in enumerate(meanwhile):
        folder = back_up(filled, tmp_path / f"backup-{number}", Meanwhile(happens))
        lose(filled)
        restore(filled, folder)
        assert whole(filled) == before


def test_a_backup_during_which_keys_are_rotated_all_the_time_is_busy(filled: Shelf, tmp_path: Path) -> None:
    with pytest.raises(Busy, match="rotated"):
        back_up(filled, tmp_path / "backup", Meanwhile(filled.library.rotate, times=100))
    assert not (tmp_path / "backup" / "backup.json").exists()


def test_a_folder_in_which_a_user_keeps_files_is_left_alone(filled: Shelf, tmp_path: Path) -> None:
    (tmp_path / "mine" / "files").mkdir(parents=True)
    (tmp_path / "mine" / "files" / "thesis.docx").write_bytes(b"years of work")
    with pytest.raises(AlreadyExists, match=r"files/thesis\.docx"):
        back_up(filled, tmp_path / "mine")
    assert (tmp_path / "mine" / "files" / "thesis.docx").read_bytes() == b"years of work"


def test_one_backup_at_a_time_uses_a_folder(filled: Shelf, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    refused: list[object] = []

    def another() -> None:
        for use in (back_up, restore):
            with pytest.raises(Busy, match="Another backup"):
                use(filled, folder)
            refused.append(use)

    before = whole(filled)
    back_up(filled, folder, Meanwhile(another))
    assert refused == [back_up, restore]
    lose(filled)
    restore(filled, folder)
    assert whole(filled) == before


def test_what_the_boxs_own_disk_fails_with_is_not_laid_to_the_backup(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = back_up(filled, tmp_path / "backup")
    lose(filled)

    def broken(path: Path) -> bytes:
        with durable.disk_errors(path):
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "read_file", broken)
        with pytest.raises(StoreDamaged, match="Input/output error"):
            restore(filled, folder)
    restore(filled, folder)
