"""Texts to vectors by onnxruntime, on the CPU. Nothing else imports onnxruntime."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from appliance.errors import ModelDamaged
from appliance.types import Floats

MAX_TOKENS = 256
BATCH_TEXTS = 8  # of like length; more gains nothing on a CPU and pads more


class OnnxEmbedder:
    """`ports.Embedder` over one ONNX file and its tokenizer. Safe to call from many threads."""

    def __init__(self, onnx: Path, tokenizer: Path, threads: int = 1) -> None:
        """Raises ModelDamaged where onnxruntime or the tokenizer refuses the file."""
        model, vocabulary = onnx.read_bytes(), tokenizer.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # no busy threads between calls: the engine's cores are not ours
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_buffer(vocabulary)
        except Exception as error:  # noqa: BLE001  (both libraries raise classes of their own, some bare)
            raise ModelDamaged(f"The embedder can't be opened: {error}") from error
        # the published file pads and cuts to 128
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self.identity = hashlib.sha256(hashlib.sha256(model).digest() + hashlib.sha256(vocabulary).digest()).hexdigest()
        self.dimension = int(self._session.get_outputs()[0].shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32 [len(texts), dimension], unit norm; text past MAX_TOKENS is not seen."""
        tokens = self._encode(texts)
        by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        vectors = np.empty((len(tokens), self.dimension), np.float32)
        for start in range(0, len(by_length), BATCH_TEXTS):
            batch = by_length[start : start + BATCH_TEXTS]
            vectors[batch] = self._run([tokens[i] for i in batch])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `embed` would read."""
        return sum(map(len, self._encode(texts)))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # a lone surrogate can't be encoded; it stands for nothing readable
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(clean)]

    def _run(self, batch: Sequence[Sequence[int]]) -> Floats:
        longest = max(map(len, batch))
        ids = np.zeros((len(batch), longest), np.int32)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        vectors: Floats = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors
