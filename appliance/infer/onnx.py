"""Texts to vectors, and pairs of texts to scores, by onnxruntime on the CPU. Nothing else imports onnxruntime."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from appliance.errors import ModelDamaged, ModelUnsupported
from appliance.types import Floats, Ints

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # since 1.29 it keeps a record of each session and sends it to its maker
import onnxruntime  # reads that once, as it is imported

MAX_TOKENS = 256
MAX_CHARACTERS = 32_768  # what is cut off unread anyway must not be tokenized: that takes 600 bytes a token
MAX_TOKENS_IN_CONTEXT = 512  # all positions that the model has
BATCH_TEXTS = 8  # of like length; more gains nothing on a CPU and pads more
FRAMING_TOKENS = 2  # one opens a text, one closes it
COUNTED_CHARACTERS = 1 << 19  # that are tokenized at once where tokens are only counted: some 80 MB


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The tokens of one text as the model understands each in its context, without the tokens that frame the text."""

    ids: NDArray[np.int32]  # [tokens]
    vectors: Floats  # [tokens, dimension], unit norm
    spans: NDArray[np.int32]  # [tokens, 2]: start and end in code points of the text


class OnnxEmbedder:
    """`ports.Embedder` over one ONNX file and its tokenizer. Safe to call from many threads."""

    max_tokens = MAX_TOKENS - FRAMING_TOKENS

    def __init__(self, onnx: Path, tokenizer: Path, threads: int = 1) -> None:
        """Raises ModelDamaged where onnxruntime or the tokenizer refuses the file."""
        self._session, self._tokenizer, self.identity = _open(
            onnx.read_bytes(), tokenizer.read_bytes(), threads, "embedder"
        )
        # the published file pads, and cuts at 128; both are done here instead
        self._tokenizer.no_truncation()
        self.dimension = int(self._session.get_outputs()[0].shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32 [len(texts), dimension], unit norm; text past MAX_TOKENS is not seen."""
        tokens = [_cut(encoding.ids, MAX_TOKENS) for encoding in self._encode(texts)]
        vectors = np.empty((len(tokens), self.dimension), np.float32)
        for batch, results in self._batches(tokens, "embedding"):
            vectors[batch] = results
        return vectors

    def embed_tokens(self, texts: Sequence[str]) -> tuple[TokenVectors, ...]:
        """A vector for each token of each text; text past MAX_TOKENS_IN_CONTEXT is not seen."""
        encodings = self._encode(texts)
        tokens = [_cut(encoding.ids, MAX_TOKENS_IN_CONTEXT) for encoding in encodings]
        found: dict[int, TokenVectors] = {}
        for batch, results in self._batches(tokens, "tokens"):
            for i, states in zip(batch, results, strict=True):
                inner = slice(1, len(tokens[i]) - 1)
                vectors = states[inner] / np.maximum(np.linalg.norm(states[inner], axis=1, keepdims=True), 1e-12)
                spans = np.array(encodings[i].offsets[inner], np.int32).reshape(-1, 2)
                found[i] = TokenVectors(np.array(tokens[i][inner], np.int32), vectors, spans)
        return tuple(found[i] for i in range(len(texts)))

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `embed` would read."""
        return sum(min(len(encoding.ids), MAX_TOKENS) for encoding in self._encode(texts))

    def token_ends(self, texts: Sequence[str]) -> list[Ints]:
        """Where each token ends in its text, for any length of text, as int64 [tokens]."""
        found: list[list[Ints]] = [[] for _ in texts]
        for batch in _batches_of_windows(texts):
            encodings = self._tokenizer.encode_batch([window for _, _, window in batch], add_special_tokens=False)
            for (text, start, _), encoding in zip(batch, encodings, strict=True):
                found[text].append(np.array([start + end for _, end in encoding.offsets], np.int64))
        return [np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in found]

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        if len(texts) == 1:  # in this thread: a query waits for no batch in the tokenizers' one pool of threads
            return [self._tokenizer.encode(_clean(texts[0]))]
        found: list[Encoding] = self._tokenizer.encode_batch([_clean(text) for text in texts])
        return found

    def _batches(self, tokens: Sequence[Sequence[int]], output: str) -> Iterator[tuple[list[int], Floats]]:
        """Texts of like length together: their places, and the model's output for them, padding included."""
        by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(by_length), BATCH_TEXTS):
            batch = by_length[start : start + BATCH_TEXTS]
            longest = len(tokens[batch[-1]])
            ids = np.zeros((len(batch), longest), np.int32)
            mask = np.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(tokens[i])] = tokens[i]
                mask[row, : len(tokens[i])] = 1
            yield batch, self._session.run([output], {"input_ids": ids, "attention_mask": mask})[0]


class OnnxReranker:
    """How well texts answer a query, by an ONNX cross-encoder and its tokenizer. Safe to call from many threads.

    The model: input_ids and attention_mask, and token_type_ids where it has them, [texts, tokens]; its first output
    [texts, 1], a score, or [texts, 2], logits of 'no' and 'yes', as text-classification exports have them.
    """

    def __init__(self, onnx: bytes, tokenizer: bytes, threads: int = 1) -> None:
        """Raises ModelDamaged where onnxruntime or the tokenizer refuses a file, ModelUnsupported for another shape."""
        self._session, self._tokenizer, self.identity = _open(onnx, tokenizer, threads, "reranker")
        self._tokenizer.enable_truncation(MAX_TOKENS_IN_CONTEXT)
        self._inputs = _inputs(self._session, "reranker")
        shape = self._session.get_outputs()[0].shape
        if len(shape) != 2 or shape[1] not in (1, 2):
            raise ModelUnsupported(f"The reranker's output has the shape {shape}; one score a text, or two, are read.")

    def score(self, query: str, passages: Sequence[str]) -> tuple[Floats, int]:
        """float32 [len(passages)], higher is better, for this query only; and the tokens that were read.

        Text past MAX_TOKENS_IN_CONTEXT is not seen.
        """
        pairs = [(_clean(query), _clean(passage)) for passage in passages]
        encodings: list[Encoding] = self._tokenizer.encode_batch(pairs)
        scores = np.empty(len(encodings), np.float32)
        by_length = sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(by_length), BATCH_TEXTS):
            batch = by_length[start : start + BATCH_TEXTS]
            logits = self._session.run(None, _padded([encodings[i] for i in batch], self._inputs))[0]
            scores[batch] = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return scores, sum(len(encoding.ids) for encoding in encodings)


class ImportedEmbedder:
    """Unit vectors by an ONNX model as sentence-transformers and optimum export it. Safe to call from many threads.

    The model: inputs as OnnxReranker's. Its vector is its output `sentence_embedding` [texts, dimension], else its only
    output of that shape; a model of token states alone [texts, tokens, dimension] is pooled by their mean, as
    sentence-transformers does where nothing says otherwise (`models.Pooling`, pooling_mode_mean_tokens).
    """

    def __init__(self, onnx: bytes, tokenizer: bytes, threads: int = 1) -> None:
        """Raises ModelDamaged where onnxruntime or the tokenizer refuses a file, ModelUnsupported for another shape."""
        self._session, self._tokenizer, self.identity = _open(onnx, tokenizer, threads, "embedder")
        self._tokenizer.enable_truncation(MAX_TOKENS_IN_CONTEXT)
        self._inputs = _inputs(self._session, "embedder")
        outputs = {item.name: item.shape for item in self._session.get_outputs()}
        flat = [name for name, shape in outputs.items() if len(shape) == 2]
        named = [name for name in flat if name == "sentence_embedding"] or (flat if len(outputs) == 1 else [])
        states = [name for name, shape in outputs.items() if len(shape) == 3]
        if not (named or states):
            raise ModelUnsupported("The embedder has no output of vectors; export it with `sentence_embedding`.")
        self._output, self._pooled = (named or states)[0], bool(named)
        self.dimension = outputs[self._output][-1]
        if not isinstance(self.dimension, int):
            raise ModelUnsupported(f"The embedder's output {self._output} does not say how long its vectors are.")

    def embed(self, texts: Sequence[str]) -> tuple[Floats, int]:
        """float32 [len(texts), dimension], unit norm, and the tokens that were read; what is too long is cut."""
        encodings: list[Encoding] = self._tokenizer.encode_batch([_clean(text) for text in texts])
        vectors = np.empty((len(encodings), self.dimension), np.float32)
        by_length = sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(by_length), BATCH_TEXTS):
            batch = by_length[start : start + BATCH_TEXTS]
            fed = _padded([encodings[i] for i in batch], self._inputs)
            found = self._session.run([self._output], fed)[0].astype(np.float32)
            if not self._pooled:
                mask = fed["attention_mask"][:, :, None].astype(np.float32)
                found = (found * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
            vectors[batch] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return vectors, sum(len(encoding.ids) for encoding in encodings)


_COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_Inputs = dict[str, type[np.signedinteger[Any]]]
_INTEGERS: dict[str, type[np.signedinteger[Any]]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


def _inputs(session: onnxruntime.InferenceSession, what: str) -> _Inputs:
    """The names and types of a model's inputs. Raises ModelUnsupported."""
    types = {item.name: _INTEGERS.get(item.type) for item in session.get_inputs()}
    known = {name: kind for name, kind in types.items() if name in _COLUMNS and kind is not None}
    if known.keys() != types.keys() or not {"input_ids", "attention_mask"} <= known.keys():
        raise ModelUnsupported(f"The {what} must take {', '.join(sorted(_COLUMNS))} as whole numbers.")
    return known


def _padded(encodings: Sequence[Encoding], inputs: _Inputs) -> dict[str, NDArray[np.generic]]:
    longest = max(len(encoding.ids) for encoding in encodings)
    fed: dict[str, NDArray[np.generic]] = {
        name: np.zeros((len(encodings), longest), kind) for name, kind in inputs.items()
    }
    for row, encoding in enumerate(encodings):
        for name, values in fed.items():
            values[row, : len(encoding.ids)] = getattr(encoding, _COLUMNS[name])
    return fed


def _open(
    model: bytes, vocabulary: bytes, threads: int, what: str
) -> tuple[onnxruntime.InferenceSession, Tokenizer, str]:
    """A session, a tokenizer that does not pad, and the identity of both. Raises ModelDamaged."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is raised; what a model calls its parts is not for our log
    # no busy threads between calls: the engine's cores are not ours
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        opened = Tokenizer.from_buffer(vocabulary)
    except Exception as error:
        raise ModelDamaged(f"The {what} can't be opened: {error}") from error
    opened.no_padding()
    identity = hashlib.sha256(hashlib.sha256(model).digest() + hashlib.sha256(vocabulary).digest()).hexdigest()
    return session, opened, identity


def _clean(text: str) -> str:
    """Text as it can be encoded: for a lone surrogate stands a mark of the same length, so that spans stay true."""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()


def _batches_of_windows(texts: Sequence[str]) -> Iterator[list[tuple[int, int, str]]]:
    """The texts as (text, start, window), a window at most MAX_CHARACTERS long, COUNTED_CHARACTERS together."""
    batch: list[tuple[int, int, str]] = []
    characters = 0
    for number, text in enumerate(texts):
        start = 0
        while start < len(text):
            window = _clean(text[start : start + MAX_CHARACTERS])
            if start + len(window) < len(text):  # no word is cut that could be left whole
                window = window[: window.rfind(" ") + 1] or window
            batch.append((number, start, window))
            start += len(window)
            characters += len(window)
            if characters >= COUNTED_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _cut(ids: Sequence[int], most: int) -> list[int]:
    """At most that many ids, the last one kept: it closes the text."""
    return list(ids) if len(ids) <= most else [*ids[: most - 1], ids[-1]]
