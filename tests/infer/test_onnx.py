"""The embedder on the real model, where its package is installed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import ModelDamaged
from appliance.infer.onnx import MAX_TOKENS, MAX_TOKENS_IN_CONTEXT, OnnxEmbedder
from appliance.models import minilm


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> minilm.EmbedderFiles:
    return minilm.prepare(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def embedder(files: minilm.EmbedderFiles) -> OnnxEmbedder:
    return OnnxEmbedder(files.onnx, files.tokenizer)


def test_vectors_have_unit_norm_and_likeness_follows_meaning(embedder: OnnxEmbedder) -> None:
    vectors = embedder.embed(["How old are you?", "What is your age?", "The sky is blue."])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


def test_a_text_s_vector_does_not_depend_on_its_batch_mates(embedder: OnnxEmbedder) -> None:
    alone = embedder.embed(["Badges expire after 90 days."])
    beside = embedder.embed(["x", "Badges expire after 90 days.", "A much longer text about something else. " * 9])
    np.testing.assert_allclose(alone[0], beside[1], atol=1e-5)


def test_no_text_gives_no_vector(embedder: OnnxEmbedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimension)
    assert embedder.embed_tokens([]) == ()
    assert embedder.count_tokens([]) == 0


def test_text_past_the_last_token_is_not_seen(embedder: OnnxEmbedder) -> None:
    long = "word " * (2 * MAX_TOKENS)
    np.testing.assert_allclose(embedder.embed([long]), embedder.embed([long + "another end"]), atol=1e-6)
    assert embedder.count_tokens([long, "word"]) == MAX_TOKENS + 3
    assert len(embedder.embed_tokens([long * 2])[0].ids) == MAX_TOKENS_IN_CONTEXT - 2


def test_tokens_know_their_place_in_the_text(embedder: OnnxEmbedder) -> None:
    text = "Füße and 🙂 badges"
    (tokens,) = embedder.embed_tokens([text])
    assert text[slice(*tokens.spans[-1])] == "badges"
    assert tokens.vectors.shape == (len(tokens.ids), embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(tokens.vectors, axis=1), 1.0, atol=1e-5)


def test_a_token_ends_where_it_ends_in_the_text_however_long_that_is(embedder: OnnxEmbedder) -> None:
    text = "Füße and 🙂 badges, 3.14; \ud800 an unbelievable 中文 word.\n"
    (tokens,) = embedder.embed_tokens([text])
    once, often, nothing = embedder.token_ends([text, text * 2_000, ""])
    assert once.tolist() == tokens.spans[:, 1].tolist()
    assert often.tolist() == [end + at * len(text) for at in range(2_000) for end in once.tolist()]
    assert nothing.tolist() == []
    assert embedder.token_ends([]) == []
    assert embedder.count_tokens([text]) == len(once) + 2


def test_as_many_tokens_are_seen_as_the_embedder_says(embedder: OnnxEmbedder) -> None:
    seen = "word " * embedder.max_tokens
    np.testing.assert_allclose(embedder.embed([seen]), embedder.embed([seen + "end"]), atol=1e-6)
    assert np.abs(embedder.embed([seen]) - embedder.embed([seen.removesuffix("word ") + "end"])).max() > 1e-4


@pytest.mark.parametrize("text", ["x" * 100_000, " " * 100_000, "x " * 50_000, " " + "x" * 100_000, "\ud800" * 40_000])
def test_ends_ascend_and_stay_inside_whatever_the_text(embedder: OnnxEmbedder, text: str) -> None:
    (ends,) = embedder.token_ends([text])
    assert (np.diff(ends) >= 0).all()
    assert not text.strip() or 0 < ends[0] <= ends[-1] == len(text.rstrip())


def test_a_text_without_words_has_no_tokens_and_still_a_vector(embedder: OnnxEmbedder) -> None:
    assert embedder.embed_tokens([" "])[0].vectors.shape == (0, embedder.dimension)
    assert np.isfinite(embedder.embed([""])).all()


def test_a_lone_surrogate_is_embedded_like_a_mark(embedder: OnnxEmbedder) -> None:
    assert np.isfinite(embedder.embed(["broken \ud800 text"])).all()


def test_many_threads_get_what_one_gets(embedder: OnnxEmbedder) -> None:
    texts = [f"Sentence number {i} about badges." for i in range(24)]
    together = embedder.embed(texts)
    with ThreadPoolExecutor(4) as pool:
        apart = np.concatenate(list(pool.map(lambda text: embedder.embed([text]), texts)))
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_the_identity_names_model_and_tokenizer(
    files: minilm.EmbedderFiles, embedder: OnnxEmbedder, tmp_path: Path
) -> None:
    assert OnnxEmbedder(files.onnx, files.tokenizer).identity == embedder.identity
    other = tmp_path / "tokenizer.json"
    other.write_bytes(files.tokenizer.read_bytes() + b" ")
    assert OnnxEmbedder(files.onnx, other).identity != embedder.identity


def test_a_file_that_is_no_model_is_refused_as_damaged(files: minilm.EmbedderFiles, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(files.onnx.read_bytes()[:1000])
    with pytest.raises(ModelDamaged):
        OnnxEmbedder(broken, files.tokenizer)


def test_a_session_leaves_no_record_for_the_makers_of_onnxruntime(files: minilm.EmbedderFiles, tmp_path: Path) -> None:
    """In a process of its own: what it would keep before it sends it lies below the home directory."""
    script = (
        "import sys; from pathlib import Path; from appliance.infer.onnx import OnnxEmbedder;"
        " OnnxEmbedder(*map(Path, sys.argv[1:])).embed(['What leaves the building?'])"
    )
    silent = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}  # with these it would keep none by itself
    others = {name: value for name, value in os.environ.items() if name not in silent and not name.startswith("XDG_")}
    command = [sys.executable, "-c", script, str(files.onnx), str(files.tokenizer)]
    subprocess.run(command, env={**others, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []
