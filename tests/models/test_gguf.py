import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import ModelDamaged, ModelMissing, ModelUnsupported
from appliance.models import architectures, gguf
from tests import gguf_models
from tests.models.headers import (
    ARRAY,
    BOOL,
    INT32,
    STRING,
    UINT32,
    UINT64,
    array,
    header,
    pair,
    string,
    tensor,
    write_chat,
)

NAME = pair("general.architecture", STRING, string("llama"))


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises((ModelDamaged, ModelUnsupported)) as caught:
        gguf.read(path)
    return str(caught.value)


def test_a_sound_header_is_read_in_full(tmp_path: Path) -> None:
    path = write_chat(tmp_path / "x.gguf", template="{{ x }}", control=("<s>", "</s>", "<|im_end|>"))
    found = gguf.read(path)
    assert (found.version, found.architecture, found.name, found.tokenizer) == (3, "llama", "Tiny Chat", "llama")
    assert found.chat_template == "{{ x }}"
    assert found.guarded_tokens == {"<s>", "</s>", "<|im_end|>"}
    assert found.vocabulary == 40
    assert found.parameters == 40 * 16 + 16
    assert [item.name for item in found.tensors] == ["token_embd.weight", "output_norm.weight"]
    assert found.size_bytes <= path.stat().st_size < found.size_bytes + 32


@pytest.mark.parametrize("architecture", gguf_models.ARCHITECTURES)
def test_models_that_the_engine_loads_are_accepted(tmp_path: Path, architecture: str) -> None:
    path = gguf_models.ARCHITECTURES[architecture](tmp_path / "x.gguf")
    shape = architectures.describe(gguf.read(path))
    assert shape.kv_heads == (2, 2)
    assert shape.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2


def test_version_2_is_read_and_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header([NAME], version=2))
    assert gguf.read(path).version == 2
    assert "version 1 is" in refusal(tmp_path, header([NAME], version=1))
    assert "version 4 is" in refusal(tmp_path, header([NAME], version=4))
    assert "big-endian" in refusal(tmp_path, header([NAME], version=3 << 24))


def test_a_missing_file_a_link_and_a_fifo_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        gguf.read(tmp_path / "none.gguf")
    (tmp_path / "link.gguf").symlink_to(write_chat(tmp_path / "x.gguf"))
    with pytest.raises(ModelMissing):
        gguf.read(tmp_path / "link.gguf")
    os.mkfifo(tmp_path / "fifo.gguf")
    with pytest.raises(ModelUnsupported, match="not a regular file"):
        gguf.read(tmp_path / "fifo.gguf")


def test_an_empty_file_and_other_bytes_are_no_gguf(tmp_path: Path) -> None:
    assert "cut short: the magic number" in refusal(tmp_path, b"")
    assert "does not start with 'GGUF'" in refusal(tmp_path, b"PK\x03\x04" + bytes(100))


def test_a_file_cut_anywhere_is_refused_by_name_of_what_is_missing(tmp_path: Path) -> None:
    whole = write_chat(tmp_path / "whole.gguf").read_bytes()
    end = gguf.read(tmp_path / "whole.gguf").size_bytes
    for length in [*range(0, end, 7), end - 1]:
        assert "cut short" in refusal(tmp_path, whole[:length])
    assert "output_norm.weight" in refusal(tmp_path, whole[: end - 1])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (header([NAME], pair_count=2**63), "keys are more than"),
        (header([NAME], tensor_count=2**64 - 1), "tensors and"),
        (header([NAME], pair_count=4000, alignment=1), "cut short: key 1, at byte"),
        (header([NAME], tensor_count=4000, alignment=1), "cut short: the name of tensor 0"),
        (header([struct.pack("<Q", 2**64 - 1)], pair_count=1), "The length of key 0"),
        (header([pair("a", STRING, struct.pack("<Q", 2**40))]), "The length of the value of 'a'"),
        (header([pair("a", STRING, struct.pack("<Q", 4000))]), "the value of 'a', at byte"),
        (header([pair("", UINT32, bytes(4))]), "Key 0, '', is empty"),
        (header([NAME, NAME]), "Key 1, 'general.architecture', is there twice"),
        (header([pair("a", 13, bytes(8))]), "The type of 'a', 13, does not exist"),
        (header([pair("a", BOOL, b"\x02")]), "neither 0 nor 1"),
        (header([pair("a", ARRAY, array(ARRAY, 1, array(UINT32, 0, b"")))]), "The array 'a' holds arrays"),
        (header([pair("a", ARRAY, array(99, 1, bytes(8)))]), "The array 'a' holds type 99"),
        (header([pair("a", ARRAY, array(STRING, 2**60, b""))]), "claims 1152921504606846976 items"),
        (header([pair("a", ARRAY, array(UINT64, 2**21, b""))]), "cut short: the value of 'a'"),
        (header([pair("a", ARRAY, array(STRING, 2**21, b""))], data_bytes=64), "cut short: the value of 'a'"),
        (header([pair("general.alignment", UINT32, struct.pack("<I", 0))]), "general.alignment must be a power of two"),
        (header([pair("general.alignment", UINT32, struct.pack("<I", 24))]), "general.alignment"),
        (header([pair("general.alignment", UINT32, struct.pack("<I", 1 << 31))]), "general.alignment"),
        (header([pair("general.alignment", STRING, string("32"))]), "general.alignment"),
        (header(tensors=[tensor("t", ())], data_bytes=64), "Tensor 't' has 0 dimensions"),
        (header(tensors=[tensor("t", (1, 1, 1, 1, 1))], data_bytes=64), "Tensor 't' has 5 dimensions"),
        (header(tensors=[tensor("t", (2**62, 2**62, 4))], data_bytes=64), "larger than the file"),
        (header(tensors=[tensor("t", (2**63, 2, 1, 1))], data_bytes=64), "larger than the file"),
        (header(tensors=[tensor("t", (8, 0))], data_bytes=64), "has the shape (8, 0)"),
        (header(tensors=[tensor("t", (31,), storage=8)], data_bytes=64), "whole blocks of 32"),
        (header(tensors=[tensor("t", (8,), storage=4)], data_bytes=64), "stored as type 4"),
        (header(tensors=[tensor("t", (8,), storage=2**31)], data_bytes=64), "stored as type"),
        (
            header(tensors=[tensor("t", (8,), offset=2**63)], data_bytes=64),
            "lies at offset 9223372036854775808, not at 0",
        ),
        (header(tensors=[tensor("t", (8,), offset=1)], data_bytes=64), "lies at offset 1, not at 0"),
        (
            header(tensors=[tensor("t", (8,)), tensor("u", (8,), offset=0)], data_bytes=64),
            "'u' lies at offset 0, not at 32",
        ),
        (header(tensors=[tensor("t", (8,)), tensor("t", (8,), offset=32)], data_bytes=64), "Tensor 't' is there twice"),
        (header(tensors=[tensor("n" * 64, (8,))], data_bytes=64), "the name of tensor 0, 64 bytes, is more than 63"),
        (header(tensors=[tensor("t", (8,))], data_bytes=31), "tensor 't' reaches past"),
        (
            header(
                [
                    pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 1, string("a"))),
                    pair("tokenizer.ggml.token_type", ARRAY, array(INT32, 2, bytes(8))),
                ]
            ),
            "token_type has 2 items",
        ),
        (header([pair("tokenizer.ggml.token_type", ARRAY, array(UINT64, 1, bytes(8)))]), "must hold 32-bit integers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_header_is_refused_by_name_of_its_fault(tmp_path: Path, content: bytes, fault: str) -> None:
    assert fault in refusal(tmp_path, content)


def test_a_hostile_name_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    message = refusal(tmp_path, header([pair("\x1b[31m\u202egnp\n", 13, b"")]))
    assert message.isprintable()
    assert "\\u001b[31m\\u202egnp\\u000a" in message


def test_many_empty_items_are_checked_without_being_kept(tmp_path: Path) -> None:
    count = 1 << 17
    path = tmp_path / "x.gguf"
    path.write_bytes(header([pair("a", ARRAY, array(STRING, count, bytes(8 * count)))]))
    tracemalloc.start()
    try:
        assert gguf.read(path).metadata["a"] == gguf.LongArray(count)
        assert tracemalloc.get_traced_memory()[1] < 3 * gguf.WINDOW_BYTES
    finally:
        tracemalloc.stop()


def test_a_header_larger_than_its_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 4096)
    pairs = [pair(f"k{i}", STRING, string("x" * 1000)) for i in range(5)]
    assert "The header is larger than 4096 bytes" in refusal(tmp_path, header(pairs, data_bytes=4096))


def test_a_header_is_read_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_chat(tmp_path / "x.gguf")
    whole = gguf.read(path)
    monkeypatch.setattr(gguf, "WINDOW_BYTES", 5)
    assert gguf.read(path) == whole


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_chat(tmp_path_factory.mktemp("sound") / "x.gguf", template="<|im_start|>")
    return path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 1400), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 4000),
)
def test_no_mutation_of_a_sound_file_crashes_the_reader(
    sound: bytes, tmp_path: Path, edits: list[tuple[int, bytes]], cut: int | None
) -> None:
    content = bytearray(sound)
    for at, raw in edits:
        content[at : at + len(raw)] = raw
    path = tmp_path / "mutated.gguf"
    path.write_bytes(bytes(content[:cut]))
    try:
        architectures.describe(gguf.read(path))
    except (ModelDamaged, ModelUnsupported) as error:  # and nothing else; nothing at all is fine too
        assert str(error).isprintable()  # noqa: PT017


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=400))
def test_no_bytes_after_the_magic_crash_the_reader(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + tail)
    with suppress(ModelDamaged, ModelUnsupported):
        gguf.read(path)
