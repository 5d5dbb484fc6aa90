import struct
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import (
    AdapterMismatch,
    InvalidArgument,
    ModelDamaged,
    ModelInUse,
    ModelUnsupported,
    NotFound,
)
from appliance.models import adapters, gguf
from appliance.models.store import ModelStore
from appliance.types import ModelKind
from appliance.vault.keyring import FileKeyring
from tests import gguf_models
from tests.gguf_lora import write_lora


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    wide = replace(gguf_models.TINY, embedding=128)
    return {
        "llama": gguf_models.write_llama(place / "llama.gguf"),
        "wide": gguf_models.write_llama(place / "wide.gguf", wide),
        "qwen2": gguf_models.write_qwen2(place / "qwen2.gguf"),
    }


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", FileKeyring.open(tmp_path / "keys", tmp_path / "data"))


def check(adapter: Path, base: Path) -> None:
    adapters.check(gguf.read(adapter), gguf.read(base))


@pytest.mark.parametrize("changed", ["attn_q.weight", "ffn_down.weight", "token_embd.weight", "output.weight"])
def test_an_adapter_made_for_a_base_fits_it(bases: dict[str, Path], tmp_path: Path, changed: str) -> None:
    check(write_lora(tmp_path / "a.gguf", bases["llama"], changed=(changed,)), bases["llama"])


@pytest.mark.parametrize(
    ("made_for", "message"),
    [
        (
            "wide",
            r"'blk\.0\.attn_q\.weight' has the shapes \(128, 4\) and \(4, 128\); the base's tensor has \(64, 64\)",
        ),
        ("qwen2", "for a qwen2 model; the base is llama"),
    ],
)
def test_an_adapter_for_another_base_is_refused_by_shape_or_architecture(
    bases: dict[str, Path], tmp_path: Path, made_for: str, message: str
) -> None:
    with pytest.raises(AdapterMismatch, match=message):
        check(write_lora(tmp_path / "a.gguf", bases[made_for]), bases["llama"])


def test_an_adapter_of_a_deeper_model_names_the_tensor_that_the_base_lacks(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    deep = gguf_models.write_llama(tmp_path / "deep.gguf", replace(gguf_models.TINY, layers=3))
    with pytest.raises(AdapterMismatch, match=r"'blk\.2\.\w+\.weight', which the base does not have"):
        check(write_lora(tmp_path / "a.gguf", deep), bases["llama"])


def test_other_kinds_of_adapters_and_whole_models_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match="of type 'dora'"):
        check(write_lora(tmp_path / "a.gguf", bases["llama"], kind="dora"), bases["llama"])
    with pytest.raises(ModelUnsupported, match="whole model"):
        check(bases["llama"], bases["llama"])
    with pytest.raises(ModelDamaged, match="no pair"):
        check(write_lora(tmp_path / "a.gguf", bases["llama"], changed=("nothing",)), bases["llama"])


def edited(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) >= 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))
    return path


def test_what_would_make_native_code_abort_is_refused_by_its_header(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]

    def fresh() -> Path:
        return write_lora(tmp_path / "a.gguf", base)

    alpha = b"adapter.lora.alpha"
    with pytest.raises(ModelDamaged, match="32-bit number"):  # gguf_get_val_f32 aborts on any other type
        check(edited(fresh(), alpha + struct.pack("<If", 6, 8.0), alpha + struct.pack("<II", 4, 8)), base)
    with pytest.raises(ModelDamaged, match="32-bit number"):
        check(edited(fresh(), struct.pack("<If", 6, 8.0), struct.pack("<If", 6, float("nan"))), base)
    with pytest.raises(ModelDamaged, match="lacks one half"):
        check(edited(fresh(), b"blk.0.attn_q.weight.lora_b", b"blk.9.attn_q.weight.lora_b"), base)
    with pytest.raises(ModelDamaged, match="no half of a LoRA pair"):
        check(edited(fresh(), b"blk.0.attn_q.weight.lora_b", b"blk.0.attn_q.weight.lora_c"), base)
    with pytest.raises(ModelDamaged, match="no half of a LoRA pair"):  # llama.cpp cuts both out and meets its twin
        check(edited(fresh(), b"blk.0.attn_q.weight.lora_b", b"blk.0.attn.lora_a.b.lora_b"), base)


# --- in the store -----------------------------------------------------------------------------------------------------


def test_an_adapter_is_stored_with_the_one_base_that_it_fits(
    store: ModelStore, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = store.add(bases["llama"])
    store.add(bases["wide"])
    file = store.add(write_lora(tmp_path / "a.gguf", bases["llama"], name="Contract Style"))
    assert (file.name, file.kind, file.base, file.architecture) == (
        "contract-style",
        ModelKind.ADAPTER,
        base.name,
        "llama",
    )
    store.verify(file)


def test_an_adapter_that_fits_two_models_needs_its_base_named(
    store: ModelStore, bases: dict[str, Path], tmp_path: Path
) -> None:
    store.add(bases["llama"])
    other = store.add(gguf_models.write_llama(tmp_path / "other.gguf", seed=5))
    path = write_lora(tmp_path / "a.gguf", bases["llama"])
    with pytest.raises(AdapterMismatch, match="fits several models"):
        store.add(path)
    first = store.add(path, base=other.name)
    assert first.base == other.name
    assert store.add(path, base=other.name) == first
    assert store.add(path, base="random-llama").base == "random-llama"  # the same bytes may serve two bases
    store.delete(first.name)
    store.verify(store.get(f"lora-0-{first.sha256[:8]}"))


def test_an_adapter_without_its_base_is_refused_and_leaves_nothing(
    store: ModelStore, bases: dict[str, Path], tmp_path: Path
) -> None:
    path = write_lora(tmp_path / "a.gguf", bases["llama"])
    with pytest.raises(AdapterMismatch, match="no such model is imported"):
        store.add(path)
    with pytest.raises(NotFound, match="models/none"):
        store.add(path, base="none")
    store.add(bases["wide"])
    with pytest.raises(AdapterMismatch, match="the base's tensor has"):
        store.add(path)
    with pytest.raises(InvalidArgument, match=r"^base: "):
        store.add(bases["llama"], base="random-llama")
    assert [file.name for file in store.list()] == ["random-llama"]


def test_a_base_with_adapters_cannot_be_deleted_before_them(
    store: ModelStore, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = store.add(bases["llama"])
    adapter = store.add(write_lora(tmp_path / "a.gguf", bases["llama"]))
    with pytest.raises(ModelInUse, match=f"base of the adapters {adapter.name}"):
        store.delete(base.name)
    store.delete(adapter.name)
    store.delete(base.name)
    assert store.list() == ()
