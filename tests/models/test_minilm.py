"""Building the embedder: pins before parsing, a cache named by hash, and arithmetic on small weights."""

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest

from appliance.errors import ModelDamaged, ModelMissing
from appliance.models import minilm


@pytest.fixture(scope="module")
def transport() -> Path:
    found = importlib.util.find_spec(minilm.TRANSPORT)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def test_weights_that_are_not_the_publisher_s_are_refused_before_they_are_parsed(
    tmp_path: Path, transport: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "read_safetensors", lambda raw: pytest.fail("parsed"))
    (tmp_path / "tokenizer.json").write_bytes((transport / "tokenizer.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    with pytest.raises(ModelDamaged, match=minilm.SAFETENSORS_SHA256):
        minilm.prepare(tmp_path / "cache", tmp_path)


def test_a_changed_tokenizer_is_refused(tmp_path: Path, transport: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((transport / "tokenizer.json").read_bytes() + b"\n")
    with pytest.raises(ModelDamaged, match="tokenizer"):
        minilm.prepare(tmp_path / "cache", tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"tokenizer\.json"):
        minilm.prepare(tmp_path / "cache", tmp_path)


def test_without_the_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "TRANSPORT", "no_such_package_here")
    with pytest.raises(ModelMissing, match="no_such_package_here"):
        minilm.prepare(tmp_path)


def test_the_second_start_reads_the_cache_and_needs_no_transport(tmp_path: Path, transport: Path) -> None:
    first = minilm.prepare(tmp_path, transport)
    assert minilm.prepare(tmp_path, tmp_path / "nowhere") == first
    assert {path.name for path in tmp_path.iterdir()} == {first.onnx.name, first.tokenizer.name}


def test_a_damaged_cache_is_built_again(tmp_path: Path, transport: Path) -> None:
    first = minilm.prepare(tmp_path, transport)
    sound = first.onnx.read_bytes()
    first.onnx.write_bytes(sound[:-1])
    first.tokenizer.write_bytes(b"{}")
    again = minilm.prepare(tmp_path, transport)
    assert again == first
    assert again.onnx.read_bytes() == sound


def test_the_model_that_is_built_is_sound_onnx(tmp_path: Path, transport: Path) -> None:
    model = onnx.load(minilm.prepare(tmp_path, transport).onnx)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["embedding", "tokens"]


def test_safetensors_are_read_by_their_header() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    ids = np.arange(2, dtype="<i8")
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "ids": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]},
    }
    raw = json.dumps(header).encode()
    found = minilm.read_safetensors(struct.pack("<Q", len(raw)) + raw + values.tobytes() + ids.tobytes())
    assert found.keys() == {"w"}
    np.testing.assert_array_equal(found["w"], values)


def test_int8_weights_are_within_half_a_step_of_the_floats() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    weight[:, 2] = 0
    quantised, scale = minilm.int8_per_channel(weight)
    assert quantised.dtype == np.int8
    assert np.abs(quantised * scale - weight).max() <= scale.max() / 2 + 1e-6
