"""Manifest and key record: signed, bound to their place, and never quietly replaced by an older one."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import key
from appliance.knowledge.storage.manifest import Manifest, ManifestStore, SegmentEntry, WalEntry
from appliance.knowledge.storage.segment import Layout
from appliance.vault import FileKeyring
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
    return ManifestStore(tmp_path, KEYRING, key.create(tmp_path, "handbook", KEYRING))


def point_current_at(store: ManifestStore, generation: int) -> None:
    """What someone would write who may write files and has no key."""
    raw = (store.directory / "mf" / str(generation)).read_bytes()
    (store.directory / "CURRENT").write_text(f"{generation} {hashlib.sha256(raw).hexdigest()}\n")


def test_what_was_committed_is_loaded(store: ManifestStore) -> None:
    store.commit(MANIFEST)
    assert store.load() == MANIFEST


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
    other = ManifestStore(tmp_path / "other", KEYRING, key.create(tmp_path / "other", "other", KEYRING))
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
    made = key.create(tmp_path, "handbook", KEYRING)
    assert key.load(tmp_path, "handbook", KEYRING) == made
    assert made.secret.hex() not in repr(made)
    with pytest.raises(StoreDamaged, match="of another collection or box"):
        key.load(tmp_path, "handbooks", KEYRING)
    raw = (tmp_path / "key").read_bytes()
    for at in range(len(raw)):
        (tmp_path / "key").write_bytes(raw[:at] + bytes([raw[at] ^ 2]) + raw[at + 1 :])
        with pytest.raises(StoreDamaged, match=str(tmp_path / "key")):
            key.load(tmp_path, "handbook", KEYRING)


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
        target = kept.files / name
        target.unlink() if target.is_file() else shutil.rmtree(target)
        (shutil.copy if (old / name).is_file() else shutil.copytree)(old / name, target)
        if name == "wal":  # a stray log that no manifest names is no damage: it is removed
            assert len(kept.reopen().documents("handbook", ALL)) == 1
        else:
            with pytest.raises(StoreDamaged):
                kept.reopen().documents("handbook", ALL)


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
            with pytest.raises(StoreDamaged, match=str(copy.files)):
                copy.reopen().documents("handbook", ALL)
    assert shelf.reopen().documents("handbook", ALL)
    assert shelf.contents() == wanted
