"""Manifest and key record: signed, bound to their place, and never quietly replaced by an older one."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Self

import pytest

from appliance.errors import DiskFull, StoreDamaged
from appliance.knowledge.storage import durable, key
from appliance.knowledge.storage.manifest import Manifest, ManifestStore, SegmentEntry, WalEntry
from appliance.knowledge.storage.mark import SLOT_BYTES, Mark, MarkFile
from appliance.knowledge.storage.segment import Layout
from appliance.knowledge.storage.tenant import Tenant
from appliance.vault import FileKeyring, FileTenantKeys
from tests.knowledge.conftest import ALL, Shelf, flip

KEYRING = FileKeyring(bytes(32), bytes(32))
OTHER_BOX = FileKeyring(bytes(32), bytes(range(32)))
LAYOUT = Layout("ab" * 32, 1000, 900, {"rows": (0, 10), "text": (64, 700)})
MANIFEST = Manifest(
    generation=3,
    embedder="e" * 64,
    dimension=384,
    next_seq=12,
    segments=(SegmentEntry(1, b"f" * 16, b"w" * 61, 2, 5, LAYOUT),),
    wals=(WalEntry(b"g" * 16, b"v" * 61, 7, 640), WalEntry(b"h" * 16, b"u" * 61, 9)),
    deleted=frozenset({"one", "two"}),
)


@pytest.fixture
def store(tmp_path: Path) -> ManifestStore:
    (tmp_path / "mf").mkdir()
    return ManifestStore(tmp_path, KEYRING, key.create(tmp_path, "handbook", tenant(tmp_path)))


def tenant(root: Path, name: str = "acme", keyring: FileKeyring = KEYRING) -> Tenant:
    keys = FileTenantKeys(root / "tenants", keyring)
    if not keys.epochs(name):
        keys.add(name)
    return Tenant(name, keyring, keys, root / "marks")


def point_current_at(store: ManifestStore, generation: int) -> None:
    """What someone would write who may write files and has no key."""
    raw = (store.directory / "mf" / str(generation)).read_bytes()
    (store.directory / "CURRENT").write_text(f"{generation} {hashlib.sha256(raw).hexdigest()}\n")


def test_what_was_committed_is_loaded(store: ManifestStore) -> None:
    digest = store.commit(MANIFEST)
    assert store.load() == (MANIFEST, digest)


def test_only_the_newest_manifest_is_kept(store: ManifestStore) -> None:
    store.commit(MANIFEST)
    store.commit(replace(MANIFEST, generation=4))
    assert [path.name for path in (store.directory / "mf").iterdir()] == ["4"]


def test_a_flipped_bit_anywhere_is_damage_and_names_the_manifest(store: ManifestStore) -> None:
    store.commit(MANIFEST)
    path = store.directory / "mf" / "3"
    raw = path.read_bytes()
    for at in range(0, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(StoreDamaged, match="mf/3 is damaged"):
            store.load()
        point_current_at(store, 3)
        with pytest.raises(StoreDamaged, match="mf/3 is damaged"):
            store.load()
        path.write_bytes(raw)
        point_current_at(store, 3)


def test_an_old_manifest_under_a_newer_number_is_refused(store: ManifestStore) -> None:
    store.commit(MANIFEST)
    mf = store.directory / "mf"
    (mf / "3").rename(mf / "4")
    point_current_at(store, 4)
    with pytest.raises(StoreDamaged, match=r"mf/4 is damaged: .*generation"):
        store.load()


def test_an_old_manifest_with_the_number_of_a_newer_one_written_into_it_is_refused(store: ManifestStore) -> None:
    store.commit(MANIFEST)
    mf = store.directory / "mf"
    raw = bytearray((mf / "3").read_bytes())
    raw[31] = 4
    (mf / "4").write_bytes(raw)
    point_current_at(store, 4)
    with pytest.raises(StoreDamaged, match=r"mf/4 is damaged: .*signature"):
        store.load()


def test_a_manifest_that_another_box_signed_is_refused(store: ManifestStore) -> None:
    replace(store, keyring=OTHER_BOX).commit(MANIFEST)
    with pytest.raises(StoreDamaged, match="signature"):
        store.load()


def test_the_manifest_of_another_collection_is_refused(store: ManifestStore, tmp_path: Path) -> None:
    (tmp_path / "other" / "mf").mkdir(parents=True)
    other = ManifestStore(tmp_path / "other", KEYRING, key.create(tmp_path / "other", "other", tenant(tmp_path)))
    other.commit(MANIFEST)
    store.commit(MANIFEST)
    shutil.copy(other.directory / "mf" / "3", store.directory / "mf" / "3")
    point_current_at(store, 3)
    with pytest.raises(StoreDamaged, match="of another collection"):
        store.load()


@pytest.mark.parametrize("content", [b"", b"3\n", b"3 zz\n", b"../key 00\n", b"\xff\xfe"])
def test_a_damaged_current_is_named(store: ManifestStore, content: bytes) -> None:
    store.commit(MANIFEST)
    (store.directory / "CURRENT").write_bytes(content)
    with pytest.raises(StoreDamaged, match="CURRENT is damaged"):
        store.load()


@pytest.mark.parametrize("name", ["CURRENT", "mf/3"])
def test_a_missing_file_is_named(store: ManifestStore, name: str) -> None:
    store.commit(MANIFEST)
    (store.directory / name).unlink()
    with pytest.raises(StoreDamaged, match=name):
        store.load()


def test_a_key_record_opens_only_under_its_name_and_whole(tmp_path: Path) -> None:
    owner = tenant(tmp_path)
    made = key.create(tmp_path, "handbook", owner)
    path = tmp_path / "key.1"
    assert key.load(tmp_path, "handbook", owner, 1) == made
    assert made.secret.hex() not in repr(made)
    for name, other in (("handbooks", owner), ("handbook", tenant(tmp_path, "rival"))):
        with pytest.raises(StoreDamaged, match=r"key\.1 is damaged, or of another collection, tenant or box"):
            key.load(tmp_path, name, other, 1)
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 2]) + raw[at + 1 :])
        with pytest.raises(StoreDamaged, match=str(path)):
            key.load(tmp_path, "handbook", owner, 1)


def test_a_fingerprint_tells_keys_apart_and_nothing_of_them(tmp_path: Path) -> None:
    owner = tenant(tmp_path)
    made = key.create(tmp_path, "handbook", owner)
    again = key.load(tmp_path, "handbook", owner, 1)
    assert made.fingerprint() == again.fingerprint()
    assert made.fingerprint() != hashlib.sha256(made.secret).hexdigest()
    assert key.add(tmp_path, "handbook", owner, made).fingerprint() != made.fingerprint()


def test_an_older_state_of_the_files_put_back_piecemeal_is_refused(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    shelf.add("Badges expire.")
    shelf.library.close()
    old = shelf.copy("old").files
    shelf.reopen()
    shelf.compact()
    shelf.library.close()
    for name in ("CURRENT", "mf", "wal", "seg"):
        kept = shelf.copy(f"with-old-{name}")
        kept.library.close()
        put_back(old / name, kept.files / name)
        kept.reopen()
        if name == "wal":  # a stray log that no manifest names is no damage: it is removed
            assert len(kept.contents()) == 1
        else:
            with pytest.raises(StoreDamaged):
                kept.contents()


def put_back(old: Path, target: Path) -> None:
    target.unlink() if target.is_file() else shutil.rmtree(target)
    (shutil.copy if old.is_file() else shutil.copytree)(old, target)


def test_a_whole_older_folder_put_back_is_refused_by_name_until_a_person_accepts_it(
    make_shelf: Callable[..., Shelf],
) -> None:
    shelf = make_shelf()
    shelf.add("Badges expire.")
    shelf.library.close()
    old = shelf.copy("old")
    old.library.close()
    shelf.reopen()
    shelf.add("Keys do not.")
    shelf.compact()
    shelf.library.close()
    put_back(old.files, shelf.files)
    shelf.reopen()
    with pytest.raises(StoreDamaged, match="handbook/CURRENT is damaged: an older state was put back"):
        shelf.contents()
    shelf.library.accept_rollback("handbook")
    assert list(shelf.contents().values()) == [("Badges expire.",)]
    shelf.add("Doors close.")
    shelf.reopen()
    assert len(shelf.contents()) == 2


def test_an_older_manifest_and_current_put_back_are_refused(make_shelf: Callable[..., Shelf]) -> None:
    """Deletion is undone by nobody who can only write files."""
    shelf = make_shelf()
    document = shelf.add("Badges expire.")
    shelf.compact()
    shelf.library.close()
    old = shelf.copy("old")
    old.library.close()
    shelf.reopen()
    shelf.delete(document)
    shelf.library.close()
    for name in ("CURRENT", "mf"):
        put_back(old.files / name, shelf.files / name)
    shelf.reopen()
    with pytest.raises(StoreDamaged, match="an older state was put back"):
        shelf.contents()


def test_a_log_swapped_for_an_older_copy_of_itself_is_refused(make_shelf: Callable[..., Shelf]) -> None:
    """The same generation with fewer records; what the mark has not seen yet cannot be told."""
    shelf = make_shelf()
    shelf.add("Badges expire.")
    older = shelf.file("wal").read_bytes()
    shelf.add("Keys do not.")
    shelf.library.close()
    shelf.file("wal").write_bytes(older)
    shelf.reopen()
    with pytest.raises(StoreDamaged, match=f"{shelf.file('wal').name} is damaged: 1 records that it held are missing"):
        shelf.contents()


def test_the_mark_follows_the_log_of_a_process_that_dies_later(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    shelf.add("Badges expire.")
    older = shelf.file("wal").read_bytes()
    shelf.add("Keys do not.")
    shelf.library.seal_where_old(3600)
    shelf.file("wal").write_bytes(older)
    shelf.reopen(close=False)
    with pytest.raises(StoreDamaged, match="missing at its end"):
        shelf.contents()


def mark_of(shelf: Shelf) -> Path:
    (found,) = (shelf.root / "vault" / "marks").iterdir()
    return found


def test_a_missing_or_foreign_mark_is_named(make_shelf: Callable[..., Shelf]) -> None:
    shelf, other = make_shelf(), make_shelf()
    for shelves in (shelf, other):
        shelves.library.close()
    path = mark_of(shelf)
    content = path.read_bytes()
    for damage in (None, b"", mark_of(other).read_bytes(), bytes(2 * SLOT_BYTES), content[: SLOT_BYTES + 88]):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        shelf.reopen()
        with pytest.raises(StoreDamaged, match=str(path)):
            shelf.contents()
        path.write_bytes(content)
    shelf.reopen()
    assert shelf.contents() == {}


def test_a_torn_mark_leaves_the_one_before(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    document = shelf.add("Badges expire.")
    shelf.compact()
    shelf.library.close()
    path = mark_of(shelf)
    raw = path.read_bytes()
    for at in (0, SLOT_BYTES):
        path.write_bytes(raw[:at] + bytes(SLOT_BYTES) + raw[at + SLOT_BYTES :])
        shelf.reopen(close=False)
        assert shelf.contents() == {document.id: ("Badges expire.",)}
        shelf.library.close()


def test_a_commit_whose_mark_did_not_come_is_taken_at_the_next_start(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf()
    document = shelf.add("Badges expire.")

    def full(*_: object) -> None:
        raise DiskFull("No space is left.")

    with monkeypatch.context() as patch:
        patch.setattr(MarkFile, "write", full)
        with pytest.raises(DiskFull):
            shelf.compact()
    shelf.reopen(close=False)
    assert shelf.contents() == {document.id: ("Badges expire.",)}
    shelf.compact()
    shelf.reopen()
    assert shelf.contents() == {document.id: ("Badges expire.",)}


def test_a_clock_that_is_set_back_breaks_nothing(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Earlier(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(1971, 1, 1, tzinfo=tz)

    shelf = make_shelf()
    first = shelf.add("Badges expire.")
    monkeypatch.setattr("appliance.knowledge.storage.key.datetime", Earlier)
    monkeypatch.setattr("appliance.knowledge.intake.datetime", Earlier)
    shelf.library.create("second")
    second = shelf.add("Keys do not.")
    shelf.library.seal_where_old(0)
    shelf.reopen()
    assert shelf.contents().keys() == {first.id, second.id}
    shelf.library.rotate()
    shelf.library.drop("second")
    shelf.reopen()
    assert shelf.contents().keys() == {first.id, second.id}


def read_all(shelf: Shelf) -> None:
    shelf.contents()
    shelf.search("badges")


def test_a_flipped_bit_in_any_file_of_a_collection_is_found(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    shelf.add("Badges expire.")
    shelf.compact()
    shelf.add("Keys do not.")
    wanted = shelf.contents()
    shelf.library.close()
    for path in [path for path in shelf.files.rglob("*") if path.is_file()]:
        for at in (0, 40, -1):
            copy = shelf.copy(f"{path.name[:8]}{at}")
            damaged = copy.files / path.relative_to(shelf.files)
            copy.library.close()
            flip(damaged, at)
            copy.reopen()
            with pytest.raises(StoreDamaged, match=str(copy.files)):
                read_all(copy)
    shelf.reopen()
    assert shelf.contents() == wanted


# --- commits that fail late, and marks that a crash left behind


def fails_at_the_folder(directory: Path) -> Callable[[Path], None]:
    """A disk on which the names in that folder cannot be made durable."""
    sync = durable.sync_directory

    def failing(path: Path) -> None:
        if path == directory:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    return failing


def test_a_commit_that_may_have_come_through_keeps_the_manifest_before_it(
    store: ManifestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(MANIFEST)
    before = (store.directory / "CURRENT").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_directory", fails_at_the_folder(store.directory))
        for generation in (4, 5, 6):
            with pytest.raises(StoreDamaged):
                store.commit(replace(MANIFEST, generation=generation))
    assert {path.name for path in (store.directory / "mf").iterdir()} == {"3", "4"}, "or each attempt leaves one"
    after = store.load()[0]
    (store.directory / "CURRENT").write_bytes(before)  # what a power cut may leave
    assert (after.generation, store.load()[0]) == (4, MANIFEST)
    store.commit(replace(MANIFEST, generation=7))
    assert [path.name for path in (store.directory / "mf").iterdir()] == ["7"]


def test_a_commit_that_certainly_did_not_come_through_leaves_no_manifest(
    store: ManifestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(MANIFEST)
    write = durable.write_file

    def full(path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise DiskFull("No space is left.")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        with pytest.raises(DiskFull):
            store.commit(replace(MANIFEST, generation=4))
    assert [path.name for path in (store.directory / "mf").iterdir()] == ["3"]
    assert store.load()[0] == MANIFEST


@pytest.mark.parametrize("late", ["mark", "folder"])
def test_embedding_anew_that_fails_at_its_end_unlinks_nothing_that_the_disk_may_name(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    shelf = make_shelf()
    document = shelf.add("Badges expire.")
    shelf.compact()

    def full(*_: object) -> None:
        raise DiskFull("No space is left.")

    with monkeypatch.context() as patch:
        if late == "mark":
            patch.setattr(MarkFile, "write", full)
        else:
            patch.setattr(durable, "sync_directory", fails_at_the_folder(shelf.files))
        with pytest.raises((DiskFull, StoreDamaged)):
            shelf.library.reembed("handbook", "", shelf.embedder, Quiet())
    assert shelf.contents() == {document.id: ("Badges expire.",)}
    assert shelf.copy("died").contents() == {document.id: ("Badges expire.",)}
    shelf.compact()
    shelf.add("Keys do not.")
    assert len(list((shelf.files / "seg").iterdir())) == 1, "the next commit removes what the failed one named"
    shelf.reopen()
    assert len(shelf.contents()) == 2


class Quiet:
    def update(self, done: int, total: int = 0, note: str = "") -> None:
        pass


def test_opening_brings_the_mark_up_to_date_so_that_the_state_before_is_refused_again(
    make_shelf: Callable[..., Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = make_shelf()
    document = shelf.add("Badges expire.")
    shelf.compact()
    shelf.library.close()
    older = shelf.copy("older")
    older.library.close()
    shelf.reopen()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MarkFile, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            shelf.delete(document)
    assert shelf.reopen(close=False).documents("handbook", ALL)[0]  # opened after the crash, and written to no more
    put_back(older.files, shelf.files)
    shelf.reopen(close=False)
    with pytest.raises(StoreDamaged, match="an older state was put back"):
        shelf.contents()


def test_a_mark_that_could_not_be_written_twice_is_not_torn_in_both_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MarkFile(tmp_path, b"c" * 16, KEYRING)
    file.create(Mark(1, bytes(32), 1))
    file.write(Mark(2, bytes(32), 1))

    def torn(descriptor: int, data: bytes, offset: int) -> None:
        os.pwrite(descriptor, data[: len(data) // 32], offset)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_at", torn)
        for _ in range(2):
            with pytest.raises(StoreDamaged):
                file.write(Mark(3, bytes(32), 1))
    assert MarkFile(tmp_path, b"c" * 16, KEYRING).read() == Mark(2, bytes(32), 1)
    file.write(Mark(3, bytes(32), 1))
    assert MarkFile(tmp_path, b"c" * 16, KEYRING).read() == Mark(3, bytes(32), 1)


def test_the_slots_of_a_mark_are_in_different_blocks_of_the_disk(tmp_path: Path) -> None:
    file = MarkFile(tmp_path, b"c" * 16, KEYRING)
    file.create(Mark(1, bytes(32), 1))
    file.write(Mark(2, bytes(32), 1))
    raw = bytearray(file.path.read_bytes())
    starts = [at for at in range(len(raw)) if raw[at : at + 4] == b"AKHW"]
    assert [at // 4096 for at in starts] == [0, 1]
    for block, kept in ((0, 1), (1, 2)):
        torn = bytearray(raw)
        torn[block * 4096 : (block + 1) * 4096] = bytes(4096)
        file.path.write_bytes(torn)
        assert MarkFile(tmp_path, b"c" * 16, KEYRING).read().generation == kept
