"""Tenants, keys at every level, what is left when one is destroyed, and the layout of the release before."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import Busy, DiskFull, InvalidArgument, KeyUnavailable, NotFound, StoreDamaged
from appliance.knowledge.libraries import Libraries
from appliance.knowledge.storage import key, shred, store
from appliance.knowledge.storage.manifest import ManifestStore
from appliance.knowledge.storage.tenant import Tenant
from appliance.vault import FileKeyring, FileTenantKeys
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, Shelf, new_document, open_libraries
from tests.searching import search


class Box:
    """The libraries of all tenants on one disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.libraries = self.open()

    def open(self) -> Libraries:
        self.libraries = open_libraries(self.root, WordEmbedder())
        return self.libraries

    def add(self, tenant: str, collection: str, *pages: str) -> str:
        library = self.libraries.of(tenant)
        if collection not in [path.name for path in (self.root / "knowledge" / tenant).iterdir()]:
            library.create(collection)
        return library.add(collection, new_document(*pages)).id

    def texts(self, tenant: str, collection: str) -> list[tuple[str, ...]]:
        library = self.libraries.of(tenant)
        listed, _ = library.documents(collection, ALL)
        return sorted(library.pages(collection, document.id, ALL) for document in listed)

    @property
    def keys(self) -> FileTenantKeys:
        return FileTenantKeys(
            self.root / "vault" / "tenants", FileKeyring.open(self.root / "vault", self.root / "none")
        )


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "box")
    yield made
    made.libraries.close()


def opens_anything(box: Box, tenant: str, collection: str, copy: Path) -> bool:
    """Whether any key that the box has opens a copy of a collection's files, by any record in it."""
    keyring = FileKeyring.open(box.root / "vault", box.root / "none")
    keys = FileTenantKeys(box.root / "vault" / "tenants", keyring)
    names = [path.name for path in (box.root / "vault" / "tenants").iterdir()]
    for path in copy.glob("key.*"):
        raw = path.read_bytes()
        context = b"collection key\x00" + tenant.encode() + b"\x00" + collection.encode() + b"\x00" + raw[:40]
        every = [keys.get(name, epoch) for name in names for epoch in keys.epochs(name)]
        for under in (None, *every):
            try:
                keyring.unwrap(raw[40:], context, under=under)
            except StoreDamaged:
                continue
            return True
    return False


# --- tenants


def test_tenants_have_collections_of_the_same_name_and_nothing_of_one_another(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.add("rival", "handbook", "Keys do not.")
    box.add("rival", "secret", "Nobody knows.")
    assert box.texts("acme", "handbook") == [("Badges expire.",)]
    assert box.texts("rival", "handbook") == [("Keys do not.",)]
    acme = box.libraries.of("acme")
    for call in (
        lambda: acme.documents("secret", ALL),
        lambda: search(acme, "secret", "nobody", ALL, 3),
        lambda: acme.drop("secret"),
        lambda: acme.verify("secret"),
        lambda: acme.drop("../rival/secret"),
    ):
        with pytest.raises(NotFound):
            call()
    box.open()
    assert box.texts("rival", "secret") == [("Nobody knows.",)]


@pytest.mark.parametrize("tenant", ["", "..", "a/b", ".dropped-a", "A", "x" * 64])
def test_a_name_that_no_tenant_has_is_refused(box: Box, tenant: str) -> None:
    with pytest.raises(InvalidArgument, match="tenant"):
        box.libraries.of(tenant)


def test_a_tenant_that_only_asked_leaves_no_key(box: Box) -> None:
    with pytest.raises(NotFound):
        box.libraries.of("acme").documents("handbook", ALL)
    assert box.keys.epochs("acme") == ()


def test_a_folder_moved_to_another_tenant_or_name_is_damage(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.add("rival", "other", "Keys do not.")
    box.libraries.close()
    knowledge = box.root / "knowledge"
    shutil.copytree(knowledge / "acme" / "handbook", knowledge / "rival" / "handbook")
    shutil.copytree(knowledge / "acme" / "handbook", knowledge / "acme" / "handbook2")
    box.open()
    for tenant, name in (("rival", "handbook"), ("acme", "handbook2")):
        with pytest.raises(StoreDamaged, match=rf"{tenant}/{name}/key\.1 is damaged, or of another collection, tenant"):
            box.texts(tenant, name)
        assert f"{tenant}/{name}" in box.libraries.damaged()
    assert box.texts("acme", "handbook") == [("Badges expire.",)]


@pytest.mark.parametrize("name", ["CURRENT", "mf", "seg", "wal", "key.1"])
def test_a_file_swapped_between_tenants_is_damage(box: Box, name: str) -> None:
    for tenant in ("acme", "rival"):
        box.add(tenant, "handbook", f"Badges of {tenant} expire.")
        box.libraries.of(tenant).compact("handbook")
        box.add(tenant, "handbook", f"Keys of {tenant} do not.")
    box.libraries.close()
    mine, theirs = (box.root / "knowledge" / tenant / "handbook" / name for tenant in ("acme", "rival"))
    pairs = [(mine, theirs)] if mine.is_file() else [(next(mine.iterdir()), next(theirs.iterdir()))]
    for path, foreign in pairs:
        shutil.copy(foreign, path)
    box.open()
    with pytest.raises(StoreDamaged, match="acme/handbook"):
        box.texts("acme", "handbook")
    assert len(box.texts("rival", "handbook")) == 2


def test_a_missing_tenant_key_is_named_and_none_is_made_in_its_place(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.libraries.close()
    shutil.rmtree(box.root / "vault" / "tenants" / "acme")
    box.open()
    with pytest.raises(StoreDamaged, match=r"key\.1 .*epoch 1 of tenant acme's key, which is no more"):
        box.texts("acme", "handbook")
    with pytest.raises(KeyUnavailable, match="The key of tenant acme is missing"):
        box.libraries.of("acme").create("second")
    assert box.keys.epochs("acme") == ()


# --- rotation


def test_rotation_replaces_every_key_and_no_file_of_data(box: Box) -> None:
    for name in ("handbook", "second"):
        box.add("acme", name, "Badges expire.")
        box.libraries.of("acme").compact(name)
        box.add("acme", name, "Keys do not.")
    box.add("rival", "handbook", "Others.")
    knowledge = box.root / "knowledge" / "acme"

    def data() -> dict[Path, bytes]:
        return {path: path.read_bytes() for folder in ("seg", "wal") for path in knowledge.glob(f"*/{folder}/*")}

    before, records = data(), {path: path.read_bytes() for path in knowledge.glob("*/key.*")}
    copy = shutil.copytree(knowledge, box.root / "copy")
    assert box.libraries.rotate("acme") == 2
    assert data() == before
    assert box.keys.epochs("acme") == (2,)
    assert box.keys.epochs("rival") == (1,)
    assert sorted(path.name for path in knowledge.glob("*/key.*")) == ["key.2", "key.2"]
    assert not records.keys() & set(knowledge.glob("*/key.*"))
    for _ in range(2):
        for name in ("handbook", "second"):
            assert box.texts("acme", name) == [("Badges expire.",), ("Keys do not.",)]
            assert not opens_anything(box, "acme", name, copy / name)
        assert box.texts("rival", "handbook") == [("Others.",)]
        box.open()
    box.add("acme", "handbook", "Doors close.")
    box.libraries.of("acme").compact("handbook")
    box.open()
    assert len(box.texts("acme", "handbook")) == 3


def test_a_log_that_is_open_goes_on_after_a_rotation(box: Box) -> None:
    for number in range(3):
        box.add("acme", "handbook", f"Badge {number}.")
        box.libraries.rotate("acme")
    box.open()
    assert len(box.texts("acme", "handbook")) == 3


def test_a_segment_that_is_written_while_keys_are_rotated_is_committed_under_the_new_one(
    make_shelf: Callable[..., Shelf],
) -> None:
    shelf = make_shelf()
    shelf.add("Badges expire.")
    opened = shelf.collection._store
    write = opened.write_segment

    def rotating(*arguments: object, **options: object) -> object:
        written = write(*arguments, **options)  # type: ignore[arg-type]
        opened.rotate()
        return written

    opened.write_segment = rotating  # type: ignore[method-assign,assignment]
    shelf.compact()
    assert list(shelf.contents().values()) == [("Badges expire.",)]
    shelf.reopen()
    assert list(shelf.contents().values()) == [("Badges expire.",)]


def test_a_record_that_cannot_be_wrapped_anew_stops_the_rotation_and_loses_nothing(box: Box) -> None:
    box.add("acme", "damaged", "Badges expire.")
    box.add("acme", "sound", "Keys do not.")
    box.libraries.close()
    record = box.root / "knowledge" / "acme" / "damaged" / "key.1"
    raw = record.read_bytes()
    record.write_bytes(raw[:-1] + b"\0")
    box.open()
    with pytest.raises(StoreDamaged, match=r"damaged/key\.1"):
        box.libraries.rotate("acme")
    assert box.keys.epochs("acme") == (1, 2)
    box.open()  # it is tried again, and told in the log
    assert box.texts("acme", "sound") == [("Keys do not.",)]
    record.write_bytes(raw)
    box.open()
    assert box.texts("acme", "damaged") == [("Badges expire.",)]
    assert box.keys.epochs("acme") == (2,)


# --- crypto-shredding


def test_no_key_that_remains_opens_a_copy_of_a_shredded_collection(box: Box) -> None:
    """A copy of everything, the old key record with it, and every key that is there afterwards."""
    for name in ("handbook", "second"):
        box.add("acme", name, "Badges expire.")
        box.libraries.of("acme").compact(name)
        box.add("acme", name, "Keys do not.")
    box.add("rival", "handbook", "Others.")
    copy = shutil.copytree(box.root / "knowledge", box.root / "copy")
    assert opens_anything(box, "acme", "handbook", copy / "acme" / "handbook")
    box.libraries.of("acme").drop("handbook")
    assert not opens_anything(box, "acme", "handbook", copy / "acme" / "handbook")
    shutil.copytree(copy / "acme" / "handbook", box.root / "knowledge" / "acme" / "handbook")
    box.open()
    with pytest.raises(StoreDamaged, match=r"key\.1 .*which is no more"):
        box.texts("acme", "handbook")
    assert len(box.texts("acme", "second")) == 2
    assert box.texts("rival", "handbook") == [("Others.",)]


def test_the_proof_states_what_was_destroyed_and_is_signed(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.add("acme", "second", "Keys do not.")
    directory = box.root / "knowledge" / "acme" / "handbook"
    keyring = FileKeyring.open(box.root / "vault", box.root / "none")
    owner = Tenant("acme", keyring, box.keys, box.root / "vault" / "marks")
    secret = store.load_key(directory, "handbook", owner)
    files = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("key.")]
    proof = box.libraries.of("acme").drop("handbook")
    keyring.verify(proof.statement.encode(), proof.signature)
    stated = json.loads(proof.statement)
    assert stated["format"] == "appliance shred proof 1"
    assert (stated["tenant"], stated["collection"], stated["uid"]) == ("acme", "handbook", secret.collection.hex())
    assert stated["key_fingerprint"] == secret.fingerprint()
    assert stated["files_removed"] == len(files)
    assert stated["tenant_epochs_destroyed"] == [1]
    assert secret.secret.hex() not in proof.statement
    with pytest.raises(StoreDamaged):
        keyring.verify(proof.statement.replace("handbook", "second").encode(), proof.signature)


def test_a_collection_that_does_not_open_is_shredded_all_the_same(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.libraries.close()
    record = box.root / "knowledge" / "acme" / "handbook" / "key.1"
    record.write_bytes(b"damaged")
    box.open()
    stated = json.loads(box.libraries.of("acme").drop("handbook").statement)
    assert stated["key_fingerprint"] == ""
    assert box.libraries.of("acme").collections(ALL) == ()


def test_shredding_a_tenant_leaves_neither_collection_nor_key(box: Box) -> None:
    for name in ("handbook", "second"):
        box.add("acme", name, "Badges expire.")
    box.add("rival", "handbook", "Others.")
    copy = shutil.copytree(box.root / "knowledge", box.root / "copy")
    proofs = box.libraries.shred_tenant("acme")
    assert [json.loads(proof.statement)["collection"] for proof in proofs] == ["handbook", "second"]
    assert box.keys.epochs("acme") == ()
    assert not any(opens_anything(box, "acme", name, copy / "acme" / name) for name in ("handbook", "second"))
    assert len(list((box.root / "vault" / "marks").iterdir())) == 1
    assert box.texts("rival", "handbook") == [("Others.",)]
    box.add("acme", "handbook", "Anew.")
    assert not opens_anything(box, "acme", "second", copy / "acme" / "second")
    assert box.texts("acme", "handbook") == [("Anew.",)]


def test_a_shredding_that_another_record_stands_in_the_way_of_is_finished_later(box: Box) -> None:
    box.add("acme", "damaged", "Badges expire.")
    box.add("acme", "handbook", "Keys do not.")
    copy = shutil.copytree(box.root / "knowledge" / "acme" / "handbook", box.root / "copy")
    record = box.root / "knowledge" / "acme" / "damaged" / "key.1"
    raw = record.read_bytes()
    record.write_bytes(raw[:-1] + b"\0")
    acme = box.libraries.of("acme")
    with pytest.raises(StoreDamaged, match=r"damaged/key\.1"):
        acme.drop("handbook")
    assert [one.id for one in acme.collections(ALL)] == ["damaged"]  # open since before
    record.write_bytes(raw)
    proof = acme.drop("handbook")
    assert json.loads(proof.statement)["collection"] == "handbook"
    assert not opens_anything(box, "acme", "handbook", copy)
    box.open()
    assert box.texts("acme", "damaged") == [("Badges expire.",)]


def full(*_: object) -> None:
    raise DiskFull("No space is left.")


def files_of(box: Box) -> list[str]:
    """What is left of collections of tenant acme."""
    folder = box.root / "knowledge" / "acme"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def kept_proofs(box: Box) -> list[dict[str, object]]:
    """The statements, each signed by the box."""
    keyring = FileKeyring.open(box.root / "vault", box.root / "none")
    kept = [json.loads(path.read_bytes()) for path in sorted((box.root / "vault" / "proofs").iterdir())]
    for proof in kept:
        keyring.verify(proof["statement"].encode(), bytes.fromhex(proof["signature"]))
    return [json.loads(proof["statement"]) for proof in kept]


def test_a_name_that_was_given_anew_while_its_shredding_was_unfinished_is_shredded_with_it(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.add("acme", "handbook", "Old.")
    acme = box.libraries.of("acme")
    with monkeypatch.context() as patch:
        patch.setattr(FileTenantKeys, "add", full)
        with pytest.raises(DiskFull):
            acme.drop("handbook")
    box.add("acme", "handbook", "New.")
    uid = key.uid_of(box.root / "knowledge" / "acme" / "handbook").hex()
    proof = acme.drop("handbook")
    assert json.loads(proof.statement)["uid"] == uid
    assert acme.collections() == ()
    assert len({stated["uid"] for stated in kept_proofs(box)}) == 2
    with pytest.raises(NotFound):
        acme.drop("handbook")


@pytest.mark.parametrize("room_for_a_note", [True, False])
def test_a_full_disk_keeps_neither_the_keys_nor_the_files_of_what_is_dropped(
    box: Box, monkeypatch: pytest.MonkeyPatch, room_for_a_note: bool
) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.add("acme", "second", "Keys do not.")
    acme = box.libraries.of("acme")
    with monkeypatch.context() as patch:
        patch.setattr(FileTenantKeys, "add", full)
        if not room_for_a_note:
            patch.setattr(shred, "_write_note", full)
        with pytest.raises(DiskFull):
            acme.drop("handbook")
    left = [name for name in files_of(box) if not name.startswith("second/")]
    assert [Path(name).name for name in left] == (["shredding"] if room_for_a_note else [])
    proof = acme.drop("handbook")
    assert json.loads(proof.statement)["collection"] == "handbook"
    assert (json.loads(proof.statement)["files_removed"] > 0) is room_for_a_note
    assert box.texts("acme", "second") == [("Keys do not.",)]


def test_a_damaged_record_of_another_collection_keeps_nothing_of_what_is_dropped_also_at_a_start(box: Box) -> None:
    box.add("acme", "damaged", "Badges expire.")
    for name in ("handbook", "second"):
        box.add("acme", name, "Keys do not.")
    box.libraries.close()
    knowledge = box.root / "knowledge" / "acme"
    (knowledge / "damaged" / "key.1").write_bytes(b"damaged")
    acme = box.open().of("acme")
    with pytest.raises(StoreDamaged, match=r"damaged/key\.1"):
        acme.drop("handbook")
    (knowledge / "second").rename(knowledge / ".dropped-second")  # as where the process died there
    for _ in range(2):
        box.open().of("acme")
        left = [name for name in files_of(box) if not name.startswith("damaged/")]
        assert {Path(name).name for name in left} == {"shredding"}
        assert len(left) == 2
    assert box.keys.epochs("acme") == (1, 2, 3)
    box.libraries.of("acme").drop("damaged")
    box.open().of("acme")
    assert files_of(box) == []
    assert [stated["collection"] for stated in kept_proofs(box)] == ["damaged", "handbook", "second"]
    assert len(box.keys.epochs("acme")) == 1


def test_the_proof_of_a_drop_that_a_crash_interrupted_is_kept_by_the_start_that_finishes_it(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    box.add("acme", "handbook", "Badges expire.")
    box.add("acme", "second", "Keys do not.")
    directory = box.root / "knowledge" / "acme" / "handbook"
    owner = Tenant(
        "acme", FileKeyring.open(box.root / "vault", box.root / "none"), box.keys, box.root / "vault" / "marks"
    )
    fingerprint = store.load_key(directory, "handbook", owner).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(FileTenantKeys, "destroy", die)
        with pytest.raises(Died):
            box.libraries.of("acme").drop("handbook")
    box.open().of("acme")
    (stated,) = kept_proofs(box)
    assert (stated["collection"], stated["key_fingerprint"]) == ("handbook", fingerprint)
    assert stated["tenant_epochs_destroyed"] == [1]
    assert stated["files_removed"] != 0
    assert box.keys.epochs("acme") == (2,)


def test_a_file_that_cannot_be_removed_is_named_and_no_proof_is_given(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.add("acme", "handbook", "Badges expire.")

    def stuck(path: Path, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("appliance.knowledge.storage.shred.shutil.rmtree", stuck)
        with pytest.raises(StoreDamaged, match="Input/output"):
            box.libraries.of("acme").drop("handbook")
    assert not (box.root / "vault" / "proofs").exists()


def test_a_mark_stays_where_a_live_collection_has_it(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.libraries.close()
    knowledge = box.root / "knowledge" / "acme"
    shutil.copytree(knowledge / "handbook", knowledge / ".dropped-gone")
    box.open().of("acme")
    assert box.texts("acme", "handbook") == [("Badges expire.",)]


def test_a_tenant_is_not_shredded_while_a_collection_of_it_is_being_made(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    acme = box.libraries.of("acme")
    with acme.building("second"), pytest.raises(Busy, match="being made"):
        acme.shred()
    assert box.texts("acme", "handbook") == [("Badges expire.",)]
    assert len(acme.shred()) == 2


def test_one_damaged_collection_stops_the_rotation_of_no_other(box: Box) -> None:
    for name in ("a", "damaged", "z"):
        box.add("acme", name, "Badges expire.")
    box.libraries.close()
    knowledge = box.root / "knowledge" / "acme"
    (knowledge / "damaged" / "CURRENT").write_bytes(b"damaged")
    acme = box.open().of("acme")
    with pytest.raises(StoreDamaged, match="damaged/CURRENT"):
        acme.rotate()
    assert [key.epochs(knowledge / name) for name in ("a", "damaged", "z")] == [[2], [1], [2]]
    box.open()
    assert box.texts("acme", "z") == [("Badges expire.",)]


def test_a_manifest_of_a_newer_release_is_refused_by_its_version(box: Box) -> None:
    box.add("acme", "handbook", "Badges expire.")
    box.libraries.close()
    directory = box.root / "knowledge" / "acme" / "handbook"
    keyring = FileKeyring.open(box.root / "vault", box.root / "none")
    secret = store.load_key(directory, "handbook", Tenant("acme", keyring, box.keys, box.root / "vault" / "marks"))
    manifests = ManifestStore(directory, keyring, secret)
    found, _ = manifests.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.knowledge.storage.manifest.VERSION", 3)
        manifests.commit(found)
    box.open()
    with pytest.raises(StoreDamaged, match="or of version 3; this release reads version 2"):
        box.texts("acme", "handbook")
    assert key.epochs(directory) == [1]
