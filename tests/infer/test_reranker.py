from pathlib import Path

import numpy as np
import pytest

from appliance.errors import ModelDamaged, ModelUnsupported
from appliance.infer.onnx import MAX_TOKENS_IN_CONTEXT, OnnxReranker
from tests.onnx_models import write_reranker

PASSAGES = ["badge expires", "garden", "badge", "", "badge " * 40 + "expires"]
SCORES = [3.0, -1.0, 1.0, 0.0, 42.0]


def reranker(folder: Path) -> OnnxReranker:
    return OnnxReranker((folder / "model.onnx").read_bytes(), (folder / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("outputs", [1, 2])
def test_each_passage_gets_its_own_score_whatever_its_batch_mates(tmp_path: Path, outputs: int) -> None:
    model = reranker(write_reranker(tmp_path, outputs=outputs))
    scores, tokens = model.score("badge garden", PASSAGES * 5)
    assert scores.dtype == np.float32
    assert scores.tolist() == SCORES * 5
    assert tokens == 5 * sum(len(passage.split()) + 5 for passage in PASSAGES)
    assert [float(model.score("badge garden", [passage])[0][0]) for passage in PASSAGES] == SCORES
    assert model.score("badge", [])[0].shape == (0,)


def test_a_model_that_knows_no_token_types_reads_both_texts_alike(tmp_path: Path) -> None:
    assert reranker(write_reranker(tmp_path, types=False)).score("badge", ["expires"])[0].tolist() == [3.0]


def test_a_long_passage_is_cut_and_lone_surrogates_are_read(tmp_path: Path) -> None:
    model = reranker(write_reranker(tmp_path))
    assert model.score("garden", ["badge " * 5000])[0].tolist() == [MAX_TOKENS_IN_CONTEXT - 4.0]
    assert model.score("garden \ud800", ["badge \ud800"])[0].tolist() == [1.0]


def test_files_that_are_no_reranker_are_refused(tmp_path: Path) -> None:
    folder = write_reranker(tmp_path / "three", outputs=3)
    with pytest.raises(ModelUnsupported, match="one score a text"):
        reranker(folder)
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelDamaged, match="reranker can't be opened"):
        reranker(folder)


def test_its_identity_is_of_model_and_tokenizer(tmp_path: Path) -> None:
    one, same = write_reranker(tmp_path / "a"), write_reranker(tmp_path / "b")
    assert reranker(one).identity == reranker(same).identity
    (same / "tokenizer.json").write_text((same / "tokenizer.json").read_text() + " ")
    assert reranker(one).identity != reranker(same).identity
