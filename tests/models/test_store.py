import hashlib
import json
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from appliance.errors import (
    Cancelled,
    DiskFull,
    InvalidArgument,
    ModelDamaged,
    ModelMissing,
    ModelUnsupported,
    NotFound,
    StoreDamaged,
)
from appliance.infer.onnx import OnnxReranker
from appliance.models import store as store_module
from appliance.models.store import ModelStore
from appliance.types import ModelFile, ModelKind
from appliance.vault.keyring import FileKeyring
from tests.models.headers import write_chat
from tests.onnx_models import write_reranker

STARTER = ModelFile("starter", ModelKind.POINTER, "/nowhere", "llama", "0" * 64, 1, "part of the appliance")


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.open(tmp_path / "keys", tmp_path / "data")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(root: Path, keyring: FileKeyring) -> ModelStore:
    return ModelStore(root, keyring, built_in=(STARTER,))


def test_an_imported_model_is_listed_under_its_hash_and_its_name(store: ModelStore, tmp_path: Path) -> None:
    path = write_chat(tmp_path / "some file.gguf", name="Tiny Chat 1.5B")
    file = store.add(path)
    assert store.list() == (STARTER, file)
    assert store.get("tiny-chat-1.5b") == file
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Path(file.path).read_bytes() == path.read_bytes()
    assert Path(file.path).stat().st_mode & 0o777 == 0o400
    assert (file.kind, file.architecture, file.source) == (ModelKind.CHAT, "llama", "some file.gguf")
    assert (file.size_bytes, file.trained_context_tokens) == (path.stat().st_size, 512)
    assert (file.kv_bytes_per_token, file.compute_bytes_per_token) == (2 * 2 * 8 * 2, (40 + 64) * 4)
    assert file.create_time is not None


def test_a_model_without_a_name_is_called_after_its_file(store: ModelStore, tmp_path: Path) -> None:
    assert store.add(write_chat(tmp_path / "My Model_Q4.gguf", name="")).name == "my-model-q4"
    assert store.add(write_chat(tmp_path / "模型.gguf", name="\u202e", seed=1)).name == "model"


def test_the_same_bytes_are_the_same_model(store: ModelStore, tmp_path: Path) -> None:
    first = store.add(write_chat(tmp_path / "a.gguf"))
    assert store.add(Path(shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf"))) == first
    assert store.list() == (STARTER, first)


def test_other_bytes_of_the_same_name_get_the_start_of_their_hash(store: ModelStore, tmp_path: Path) -> None:
    store.add(write_chat(tmp_path / "a.gguf"))
    second = store.add(write_chat(tmp_path / "b.gguf", seed=1))
    assert second.name == f"tiny-chat-{second.sha256[:8]}"
    builtin = store.add(write_chat(tmp_path / "c.gguf", name="Starter", seed=2))
    assert builtin.name == f"starter-{builtin.sha256[:8]}"


def test_a_model_does_not_take_a_name_that_leads_elsewhere(root: Path, keyring: FileKeyring, tmp_path: Path) -> None:
    store = ModelStore(root, keyring, taken=lambda name: name == "assistant")
    file = store.add(write_chat(tmp_path / "a.gguf", name="Assistant"))
    assert file.name == f"assistant-{file.sha256[:8]}"
    assert store.add(tmp_path / "a.gguf", name="other") == file  # the same bytes stay the same model


def test_models_survive_a_restart(store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    assert ModelStore(root, keyring).list() == (file,)


def test_what_a_crash_left_half_done_is_removed(
    store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path
) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    (root / "blobs" / ".incoming-1234").write_bytes(b"half")
    (root / "blobs" / ("f" * 64)).write_bytes(b"renamed, but never listed")
    ModelStore(root, keyring)
    assert [path.name for path in (root / "blobs").iterdir()] == [file.sha256]


def test_blobs_outlive_a_lost_index(store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    (root / "index.json").unlink()
    again = ModelStore(root, keyring)
    assert again.list() == ()
    assert Path(file.path).exists()
    assert again.add(tmp_path / "a.gguf").sha256 == file.sha256


@pytest.mark.parametrize("change", ["name", "bytes", "other box"])
def test_an_index_that_this_box_did_not_write_is_refused(
    store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path, change: str
) -> None:
    store.add(write_chat(tmp_path / "a.gguf"))
    index = root / "index.json"
    if change == "name":
        document = json.loads(index.read_text())
        document["models"][0]["sha256"] = "0" * 64
        index.write_text(json.dumps(document))
    elif change == "bytes":
        index.write_bytes(index.read_bytes()[:-40])
    else:
        keyring = FileKeyring.open(tmp_path / "other", tmp_path / "nothing")
    with pytest.raises(StoreDamaged, match=r"index\.json"):
        ModelStore(root, keyring)


def test_a_missing_file_and_a_damaged_one_leave_nothing(store: ModelStore, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        store.add(tmp_path / "none.gguf")
    path = write_chat(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelDamaged, match="cut short"):
        store.add(path)
    with pytest.raises(ModelUnsupported):
        store.add(write_chat(path, architecture="bert"))
    assert store.list() == (STARTER,)
    assert list((root / "blobs").iterdir()) == []


def test_progress_tells_bytes_and_an_abort_leaves_nothing(
    store: ModelStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1000)
    path = write_chat(tmp_path / "a.gguf")
    size, seen = path.stat().st_size, list[tuple[int, int]]()

    def stop_in_the_middle(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 2000:
            raise Cancelled("The import was cancelled.")

    with pytest.raises(Cancelled):
        store.add(path, stop_in_the_middle)
    assert seen == [(0, size), (1000, size), (2000, size)]
    assert list((root / "blobs").iterdir()) == []
    assert store.list() == (STARTER,)


def test_a_source_that_changes_while_it_is_copied_is_judged_by_the_copy(
    store: ModelStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1000)
    path = write_chat(tmp_path / "a.gguf")

    def damage(done: int, total: int) -> None:
        if done == 0:
            path.write_bytes(b"GGUF" + bytes(total - 4))

    with pytest.raises((ModelDamaged, ModelUnsupported)):
        store.add(path, damage)
    assert list((root / "blobs").iterdir()) == []


@pytest.mark.parametrize("kind", [None, ModelKind.RERANKER])
def test_a_source_that_grows_while_it_is_copied_is_not_followed(
    store: ModelStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ModelKind | None
) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1000)
    path = write_reranker(tmp_path / "folder") if kind else write_chat(tmp_path / "a.gguf")
    growing = path / "tokenizer.json" if kind else path
    seen: list[int] = []

    def grow(done: int, total: int) -> None:
        seen.append(done)
        with growing.open("ab") as file:
            file.write(bytes(2000))

    size = sum(one.stat().st_size for one in path.iterdir()) if kind else path.stat().st_size
    with pytest.raises(ModelDamaged, match="grew while it was copied"):
        store.add(path, grow, kind=kind)
    assert max(seen) <= size
    assert list((root / "blobs").iterdir()) == []


def test_a_disk_without_room_refuses_before_copying(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    reports: list[int] = []
    with pytest.raises(DiskFull, match="1 MiB free"):
        store.add(write_chat(tmp_path / "a.gguf"), lambda done, total: reports.append(done))
    assert reports == []


def test_a_disk_that_fills_up_while_copying_is_named(store: ModelStore, root: Path, tmp_path: Path) -> None:
    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull):
        store.add(write_chat(tmp_path / "a.gguf"), full)
    assert list((root / "blobs").iterdir()) == []


def test_a_changed_blob_is_found_and_an_unchanged_one_is_hashed_once(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    store.verify(file)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        store.verify(file)
    blob, before = Path(file.path), os.stat(file.path)
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelDamaged, match="models/tiny-chat"):
        store.verify(file)
    blob.unlink()
    with pytest.raises(ModelMissing):
        store.verify(file)


def test_importing_again_mends_a_model_whose_file_is_gone_or_damaged(store: ModelStore, tmp_path: Path) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    Path(file.path).unlink()
    assert store.add(tmp_path / "a.gguf") == file
    store.verify(file)
    Path(file.path).chmod(0o600)
    Path(file.path).write_bytes(b"damage")
    assert store.add(tmp_path / "a.gguf") == file
    store.verify(file)


def test_a_deleted_model_is_gone_from_list_and_disk(store: ModelStore, root: Path, tmp_path: Path) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    store.delete(file.name)
    assert store.list() == (STARTER,)
    assert list((root / "blobs").iterdir()) == []
    for call in (store.get, store.delete):
        with pytest.raises(NotFound):
            call(file.name)


def test_a_built_in_model_is_listed_first_and_cannot_be_deleted(store: ModelStore, tmp_path: Path) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    assert store.list() == (STARTER, file)
    assert store.get("starter") == STARTER
    with pytest.raises(InvalidArgument, match="models/starter comes with the box"):
        store.delete("starter")


def test_imports_at_the_same_time_lose_none(
    store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path
) -> None:
    paths = [write_chat(tmp_path / f"{i}.gguf", seed=i // 2) for i in range(8)]
    threads = [threading.Thread(target=store.add, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list()) - 1 == len(ModelStore(root, keyring).list()) == len(list((root / "blobs").iterdir())) == 4


# --- ONNX -------------------------------------------------------------------------------------------------------------


def test_an_onnx_model_and_its_tokenizer_are_one_model(
    store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path
) -> None:
    folder = write_reranker(tmp_path / "Cross Encoder")
    told: list[tuple[int, int]] = []
    file = store.add(folder, lambda done, total: told.append((done, total)), kind=ModelKind.RERANKER)
    assert (file.name, file.kind, file.architecture) == ("cross-encoder", ModelKind.RERANKER, "onnx")
    assert told[-1] == (file.size_bytes, file.size_bytes)
    stored = Path(file.path)
    model, tokenizer = (stored / "model.onnx").read_bytes(), (stored / "tokenizer.json").read_bytes()
    assert file.sha256 == OnnxReranker(model, tokenizer).identity
    assert ModelStore(root, keyring).list() == (file,)
    store.verify(file)
    assert store.add(folder, kind=ModelKind.RERANKER) == file
    store.delete(file.name)
    assert list((root / "blobs").iterdir()) == []


@pytest.mark.parametrize("part", ["model.onnx", "tokenizer.json"])
def test_a_changed_part_of_an_onnx_model_is_found_and_mended(store: ModelStore, tmp_path: Path, part: str) -> None:
    file = store.add(write_reranker(tmp_path / "r"), kind=ModelKind.RERANKER)
    store.verify(file)
    (Path(file.path) / part).chmod(0o600)
    (Path(file.path) / part).write_bytes(b"damage")
    with pytest.raises(ModelDamaged, match="models/r "):
        store.verify(file)
    assert store.add(tmp_path / "r", kind=ModelKind.RERANKER) == file
    store.verify(file)


def test_a_folder_that_holds_no_onnx_model_leaves_nothing(store: ModelStore, root: Path, tmp_path: Path) -> None:
    folder = write_reranker(tmp_path / "r")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelMissing, match="tokenizer"):
        store.add(folder, kind=ModelKind.EMBEDDING)
    (folder / "other.onnx").write_bytes(b"x")
    with pytest.raises(ModelUnsupported, match=r"2 \.onnx files"):
        store.add(folder, kind=ModelKind.EMBEDDING)
    with pytest.raises(ModelMissing):
        store.add(tmp_path / "none", kind=ModelKind.EMBEDDING)
    assert list((root / "blobs").iterdir()) == []


# --- pins -------------------------------------------------------------------------------------------------------------


def test_a_pin_is_kept_over_a_restart_and_goes_with_its_model(
    store: ModelStore, root: Path, keyring: FileKeyring, tmp_path: Path
) -> None:
    file = store.add(write_chat(tmp_path / "a.gguf"))
    store.pin(file.name)
    store.pin("starter")
    again = ModelStore(root, keyring, built_in=(STARTER,))
    assert (again.pinned(file.name), again.pinned("starter"), again.pinned("none")) == (True, True, False)
    again.pin("starter", False)
    again.delete(file.name)
    assert again.add(tmp_path / "a.gguf").name == file.name
    assert not again.pinned(file.name)
    with pytest.raises(NotFound):
        store.pin("none")
