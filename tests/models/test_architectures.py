from pathlib import Path

import pytest

from appliance.errors import ModelDamaged, ModelUnsupported
from appliance.models import architectures, gguf
from tests.models.headers import header, pair, string, write_chat


def describe(path: Path) -> architectures.Shape:
    return architectures.describe(gguf.read(path))


def test_kv_heads_may_differ_by_layer(tmp_path: Path) -> None:
    shape = describe(write_chat(tmp_path / "x.gguf", kv_heads=[2, 0]))
    assert shape.kv_heads == (2, 0)
    assert shape.kv_bytes_per_token == 2 * (4 + 4) * 2


def test_head_sizes_are_those_of_the_larger_layers(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    shape = describe(write_chat(path, llama__attention__key_length=24, llama__attention__key_length_swa=32))
    assert (shape.key_size, shape.value_size) == (32, 4)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("bert", "does not chat"),
        ("llama-embed", "does not chat"),
        ("mamba", "recurrent state"),
        ("qwen3next", "recurrent state"),
        ("clip", "vision part"),
        ("dream", "diffusion"),
        ("eagle3", "drafts"),
        ("madeup", "'madeup' is not one that this engine knows"),
    ],
)
def test_what_cannot_chat_here_is_refused_with_the_reason(tmp_path: Path, architecture: str, reason: str) -> None:
    with pytest.raises(ModelUnsupported, match=reason):
        describe(write_chat(tmp_path / "x.gguf", architecture=architecture))


def test_the_lists_of_architectures_do_not_overlap() -> None:
    lists = [getattr(architectures, name).split() for name in ("DECODERS", "ENCODERS", "RECURRENT")]
    names = [name for group in (*lists, architectures.OTHERS) for name in group]
    assert len(names) == len(set(names)) == 153


def test_the_starter_an_adapter_and_a_part_of_a_split_model_are_no_chat_models(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with pytest.raises(ModelUnsupported, match="starter model"):
        describe(write_chat(path, name=architectures.STARTER_NAME))
    with pytest.raises(ModelUnsupported, match="type 'adapter'"):
        describe(write_chat(path, general__type="adapter"))
    with pytest.raises(ModelUnsupported, match="part 1 of 3"):
        describe(write_chat(path, split__count=3, split__no=0))


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header([pair("general.architecture", 8, string("llama"))]))
    with pytest.raises(ModelUnsupported, match="tokenizer ''"):
        describe(path)


def test_a_size_that_would_break_the_plan_is_refused_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with pytest.raises(ModelDamaged, match=r"llama\.attention\.key_length"):
        describe(write_chat(path, llama__attention__key_length=0))
    with pytest.raises(ModelDamaged, match=r"llama\.attention\.value_length"):
        describe(write_chat(path, llama__attention__value_length=1 << 20))


def test_too_few_kv_heads_for_the_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelDamaged, match=r"head_count_kv.* must hold 2 numbers"):
        describe(write_chat(tmp_path / "x.gguf", kv_heads=[2]))


def test_keys_that_are_missing_or_of_another_type_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    llama = pair("general.architecture", 8, string("llama"))
    tokenizer = pair("tokenizer.ggml.model", 8, string("llama"))
    path.write_bytes(header([llama, tokenizer]))
    with pytest.raises(ModelDamaged, match=r"llama\.block_count"):
        describe(path)
    path.write_bytes(header([pair("general.architecture", 4, bytes(4))]))
    with pytest.raises(ModelDamaged, match=r"general\.architecture"):
        describe(path)
    path.write_bytes(header())
    with pytest.raises(ModelDamaged, match=r"lacks general\.architecture"):
        describe(path)


def test_a_vocabulary_without_weights_and_one_that_contradicts_them_are_refused(tmp_path: Path) -> None:
    sound = write_chat(tmp_path / "x.gguf").read_bytes()
    (tmp_path / "renamed.gguf").write_bytes(sound.replace(b"token_embd.weight", b"token_embX.weight"))
    with pytest.raises(ModelDamaged, match="weights are missing"):
        describe(tmp_path / "renamed.gguf")
    at = sound.index(b"token_embd.weight") + len(b"token_embd.weight") + 4
    wider = sound[:at] + (8).to_bytes(8, "little") + sound[at + 8 :]
    (tmp_path / "wider.gguf").write_bytes(wider)
    with pytest.raises(ModelDamaged, match=r"lies at offset|has the shape"):
        describe(tmp_path / "wider.gguf")
