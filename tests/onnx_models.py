"""Tiny ONNX models with their tokenizers: a cross-encoder whose scores are what words are worth, and an embedder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORTH = {"[PAD]": 9.0, "[UNK]": 0.0, "[CLS]": 0.0, "[SEP]": 0.0, "badge": 1.0, "expires": 2.0, "garden": -1.0}


def write_reranker(folder: Path, worth: Mapping[str, float] = WORTH, outputs: int = 1, types: bool = True) -> Path:
    """`model.onnx` and `tokenizer.json` in `folder`. outputs 2: logits of no and yes. types: takes token_type_ids.

    Padding is worth much, so that a mask which is not obeyed shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = np.zeros((len(worth), outputs))
    table[:, -1] = list(worth.values())
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
    ]
    if types:  # of the passage alone
        nodes += [
            helper.make_node("Cast", ["token_type_ids"], ["second"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["mask", "second"], ["counted"]),
        ]
    nodes += [
        helper.make_node("Unsqueeze", ["counted" if types else "mask", "last"], ["factor"]),
        helper.make_node("Mul", ["each", "factor"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "reranker",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", outputs])],
        [
            numpy_helper.from_array(table.astype(np.float32), "table"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(list(worth))))
    return folder


def write_embedder(folder: Path, output: str = "sentence_embedding", words: Sequence[str] = tuple(WORTH)) -> Path:
    """`model.onnx` and `tokenizer.json` in `folder`: each word is a direction of its own.

    output: `sentence_embedding`, the sum over the mask, or `last_hidden_state`, the words' own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    if output == "sentence_embedding":
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["factor"]),
            helper.make_node("Mul", ["last_hidden_state", "factor"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["sentence_embedding"], keepdims=0),
        ]
    shape = ["texts", len(words)] if output == "sentence_embedding" else ["texts", "tokens", len(words)]
    names = ["input_ids", "attention_mask"]
    graph = helper.make_graph(
        nodes,
        "embedder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in names],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.eye(len(words), dtype=np.float32), "table"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(list(words))))
    return folder


def write_glutton(folder: Path, size_bytes: int) -> Path:
    """An embedder that takes `size_bytes` of memory for each text."""
    write_embedder(folder)
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["vast"]),
            helper.make_node("Add", ["vast", "one"], ["vaster"]),
            helper.make_node("ReduceSum", ["vaster"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["ids", "sum"], ["sentence_embedding"]),
        ],
        "glutton",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["texts", "t"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["texts", 8])],
        [
            numpy_helper.from_array(np.array([size_bytes // 4], np.int64), "shape"),
            numpy_helper.from_array(np.array([1], np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    return folder


def _tokenizer(words: list[str]) -> dict[str, object]:
    """Words between blanks, framed as BERT frames a pair."""

    def special(name: str, kind: int) -> dict[str, object]:
        return {"SpecialToken": {"id": name, "type_id": kind}}

    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    single = [special("[CLS]", 0), first, special("[SEP]", 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, second, special("[SEP]", 1)],
            "special_tokens": {
                name: {"id": name, "ids": [words.index(name)], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "[UNK]"},
    }
