"""llama.cpp by its low-level API: models, vocabularies, contexts, samplers. The only module that imports llama_cpp.

Native handles are freed by `close`; nothing here is safe for threads but `Vocabulary`, which llama.cpp says is.
"""

import codecs
import contextlib
import ctypes
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import llama_cpp as native
import numpy as np
import structlog
from numpy.typing import NDArray

from appliance.errors import InvalidArgument, ModelDamaged, ModelMissing, ModelTooLarge, ModelUnsupported
from appliance.infer.prefix import Tokens
from appliance.infer.sampling import PENALTY_WINDOW_TOKENS
from appliance.infer.scheduler import Chunk, Copy, Trim
from appliance.types import Floats, Origin, Sampling, Segment

MAX_SEQUENCES = 256
_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED means "draw one": not what a caller who names a seed wants
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
log = structlog.get_logger()


@native.llama_log_callback  # type: ignore[untyped-decorator]
def _to_structlog(level: int, text: bytes, _: object) -> None:
    log.debug("llama.cpp", level=level, text=text.decode(errors="replace").rstrip())


def init() -> None:
    """Once a process, before anything else here."""
    native.llama_log_set(_to_structlog, ctypes.c_void_p(0))
    native.llama_backend_init()


@contextlib.contextmanager
def _errors() -> Iterator[list[str]]:
    """Collects what llama.cpp logs as errors: the only place where it says why a load failed."""
    lines: list[str] = []

    @native.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL:
            lines.append(text.decode(errors="replace").strip())
        _to_structlog(level, text, None)

    native.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        native.llama_log_set(_to_structlog, ctypes.c_void_p(0))


class Vocabulary:
    """Text to tokens and back, where no text becomes a control token unless it is scaffold."""

    def __init__(self, model: "Model") -> None:
        self._model = model  # the native vocabulary lives as long as its model
        self._native = native.llama_model_get_vocab(model.handle)
        self.size = int(native.llama_vocab_n_tokens(self._native))
        self._adds_bos = bool(native.llama_vocab_get_add_bos(self._native))
        self._bos = int(native.llama_vocab_bos(self._native))
        texts = [native.llama_vocab_get_text(self._native, i).decode(errors="replace") for i in range(self.size)]
        kinds = np.array([native.llama_vocab_get_attr(self._native, i) for i in range(self.size)])
        self._control = {int(i) for i in np.flatnonzero(kinds & native.LLAMA_TOKEN_ATTR_CONTROL)}
        defined = np.flatnonzero(kinds & native.LLAMA_TOKEN_ATTR_USER_DEFINED)
        # user-defined blanks and single characters are ordinary writing; the rest may be markup that a model obeys
        markup = {int(i) for i in defined if len(texts[i].replace("▁", " ").strip()) > 1}
        self._guarded = np.zeros(self.size, np.bool_)
        self._guarded[np.array(sorted(self._control | markup), np.int64)] = True
        self.control_tokens = tuple(texts[i] for i in sorted(self._control))
        literals = {texts[i] for i in self._control | markup if len(texts[i]) > 1}
        literals |= {text.replace("▁", " ") for text in literals}
        self._literal = _first_characters(literals)
        self.longest_bytes = max((len(text.encode()) for text in texts), default=1)
        # SentencePiece puts a blank before the first text; this byte takes it, and is cut off again
        spm = native.llama_vocab_type(self._native) == native.LLAMA_VOCAB_TYPE_SPM
        self._lead = self._ids("\x01", parse_special=False) if spm else []

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a prompt, with the vocabulary's BOS. Segments are tokenized apart.

        Raises InvalidArgument where untrusted text cannot be written without a guarded token.
        """
        ids = [self._bos] if self._adds_bos and self._bos >= 0 else []
        for segment in segments:
            trusted = segment.origin is Origin.SCAFFOLD
            for piece in [segment.text] if trusted else self._cut(segment.text):
                joined = bool(ids) and ids[-1] not in self._control
                made = self._ids(piece, parse_special=trusted, joined=joined)
                if not trusted and made and self._guarded[made].any():
                    raise InvalidArgument.of("prompt", "a part of it cannot be told from this model's control tokens.")
                ids += made
        return ids[1:] if ids[:2] == [self._bos, self._bos] and self._adds_bos else ids

    def label(self, text: str) -> int:
        """The id of a label. Raises InvalidArgument where it is not exactly one token."""
        ids = self._ids(text, parse_special=True)
        if len(ids) != 1:
            raise InvalidArgument.of("labels", f"each must be one token of the model; {text!r} is {len(ids)}.")
        return ids[0]

    def is_end(self, token: int) -> bool:
        """Does the token end an answer?"""
        return bool(native.llama_vocab_is_eog(self._native, token))

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; control tokens stand for none. May be a part of a character."""
        buffer = ctypes.create_string_buffer(64)
        size = native.llama_token_to_piece(self._native, token, buffer, 64, 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = native.llama_token_to_piece(self._native, token, buffer, -size, 0, False)
        return buffer.raw[:size]

    def _cut(self, text: str) -> list[str]:
        """Pieces of untrusted text, cut one character into every guarded literal, also where literals overlap."""
        if self._literal is None:
            return [text]
        cuts = [0, *(match.end() for match in self._literal.finditer(text)), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(cuts)]

    def _ids(self, text: str, *, parse_special: bool, joined: bool = False) -> list[int]:
        if not text:
            return []
        if joined and self._lead:
            made = self._ids("\x01" + text, parse_special=parse_special)
            if made[: len(self._lead)] == self._lead:
                return made[len(self._lead) :]
        data = text.encode(errors="replace")
        room = len(data) + 8
        while True:
            out = np.empty(room, np.int32)
            at = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = native.llama_tokenize(self._native, data, len(data), at, room, False, parse_special)
            if count >= 0:
                return [int(token) for token in out[:count]]
            room = -count


class Detokenizer:
    """Tokens to text as they come: a character is shown when its last byte is there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._vocabulary.piece(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class Model:
    """The weights of a GGUF file, mapped into memory."""

    def __init__(self, path: str) -> None:
        """Raises ModelMissing, ModelUnsupported, ModelDamaged with llama.cpp's reason."""
        if not os.path.isfile(path):
            raise ModelMissing("The model's file is not there.")
        with _errors() as errors:
            self.handle = native.llama_model_load_from_file(path.encode(), native.llama_model_default_params())
        if not self.handle:
            why = "; ".join(dict.fromkeys(line.partition(": ")[2] or line for line in errors))[:300]
            kind = ModelUnsupported if "architecture" in why or "unknown pre-tokenizer" in why else ModelDamaged
            raise kind(f"The engine cannot load the model: {why or 'llama.cpp gave no reason'}.")
        self.parameters = int(native.llama_model_n_params(self.handle))
        self.trained_context_tokens = int(native.llama_model_n_ctx_train(self.handle))
        if native.llama_model_has_encoder(self.handle) or not native.llama_model_has_decoder(self.handle):
            self.close()
            raise ModelUnsupported("The model is no decoder: it cannot generate text.")
        self.vocabulary = Vocabulary(self)

    @property
    def architecture(self) -> str:
        buffer = ctypes.create_string_buffer(128)
        native.llama_model_meta_val_str(self.handle, b"general.architecture", buffer, 128)
        return buffer.value.decode(errors="replace")

    def shares_prefixes(self, context_tokens: int) -> bool:
        """May a sequence go on from a part of another's cells? Not where state is recurrent, and not where a sliding
        window is shorter than the context: llama.cpp reuses cells that have left their own sequence's window."""
        if native.llama_model_is_recurrent(self.handle) or native.llama_model_is_hybrid(self.handle):
            return False
        window = int(native.llama_model_n_swa(self.handle))
        return window == 0 or window >= context_tokens

    def close(self) -> None:
        if self.handle:
            native.llama_model_free(self.handle)
            self.handle = None


class Context:
    """The unified KV cache of a model and one batch that is filled and computed again and again."""

    def __init__(self, model: Model, *, cells: int, sequences: int, batch_tokens: int, threads: int) -> None:
        """cells: tokens that all sequences may hold together. Raises ModelTooLarge."""
        params = native.llama_context_default_params()
        params.n_ctx, params.n_seq_max = cells, min(sequences, MAX_SEQUENCES)
        params.n_batch = params.n_ubatch = batch_tokens
        # one row of logits a sequence, not one a token of the batch: saves 500 MB at a vocabulary of 256k
        params.n_outputs_max = params.n_seq_max
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.flash_attn_type = True, native.LLAMA_FLASH_ATTN_TYPE_AUTO
        self._native = native.llama_init_from_model(model.handle, params)
        if not self._native:
            raise ModelTooLarge(f"The engine cannot allocate a context of {cells} tokens for the model.")
        self._memory = native.llama_get_memory(self._native)
        self._vocabulary_size = model.vocabulary.size
        self._batch = native.llama_batch_init(batch_tokens, 0, 1)
        self._tokens = _view(self._batch.token, np.int32, batch_tokens)
        self._positions = _view(self._batch.pos, np.int32, batch_tokens)
        self._samples = _view(self._batch.logits, np.int8, batch_tokens)
        _view(self._batch.n_seq_id, np.int32, batch_tokens)[:] = 1
        self._sequences = np.zeros(batch_tokens, np.int32)
        # each row's list of sequences is one long: point into our array instead of llama_batch_init's small ones
        self._lists = _view(self._batch.seq_id, np.uintp, batch_tokens)
        self._own_lists = self._lists.copy()
        self._lists[:] = self._sequences.ctypes.data + 4 * np.arange(batch_tokens)

    def move(self, moves: Sequence[Copy | Trim]) -> None:
        for move in moves:
            if isinstance(move, Copy):
                native.llama_memory_seq_cp(self._memory, move.source, move.target, 0, move.tokens)
            else:
                native.llama_memory_seq_rm(self._memory, move.sequence, move.tokens, -1)

    def compute(self, chunks: Sequence[Chunk]) -> list[int]:
        """Run one batch; returns each chunk's last row, whose logits are there where it `samples`.

        Raises RuntimeError where llama.cpp fails: the cache is then not to be trusted.
        """
        rows: list[int] = []
        end = 0
        for chunk in chunks:
            start, end = end, end + len(chunk.tokens)
            self._tokens[start:end] = chunk.tokens
            self._positions[start:end] = np.arange(chunk.start, chunk.start + end - start)
            self._sequences[start:end] = chunk.sequence
            self._samples[start:end] = 0
            self._samples[end - 1] = chunk.samples
            rows.append(end - 1)
        self._batch.n_tokens = end
        if code := native.llama_decode(self._native, self._batch):
            raise RuntimeError(f"llama_decode failed with code {code}")
        native.llama_synchronize(self._native)
        return rows

    def logits(self, row: int) -> Floats:
        """float32 [vocabulary] of a row that samples; a view, good until the next `compute`."""
        return np.ctypeslib.as_array(native.llama_get_logits_ith(self._native, row), (self._vocabulary_size,))

    def sample(self, sampler: "Sampler", row: int) -> int:
        if sampler.greedy:
            return int(self.logits(row).argmax())
        return int(native.llama_sampler_sample(sampler.chain, self._native, row))

    def close(self) -> None:
        self._lists[:] = self._own_lists
        native.llama_batch_free(self._batch)
        native.llama_free(self._native)


class Sampler:
    """llama.cpp's chain for one request: penalties, top-k, top-p, min-p, temperature, a draw by the request's seed."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary, prompt: Tokens) -> None:
        penalized = sampling.repeat_penalty != 1.0
        self.greedy = sampling.temperature == 0 and not penalized
        self.chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        if penalized:
            self._add(
                native.llama_sampler_init_penalties(
                    vocabulary.size, PENALTY_WINDOW_TOKENS, sampling.repeat_penalty, 0.0, 0.0
                )
            )
        if sampling.temperature == 0:
            self._add(native.llama_sampler_init_greedy())
        else:
            self._add(native.llama_sampler_init_top_k(sampling.top_k))
            self._add(native.llama_sampler_init_top_p(sampling.top_p, 1))
            self._add(native.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(native.llama_sampler_init_temp(sampling.temperature))
            self._add(native.llama_sampler_init_dist(min(sampling.seed, _RANDOM_SEED - 1)))
        if penalized:
            for token in prompt[-PENALTY_WINDOW_TOKENS:]:
                native.llama_sampler_accept(self.chain, int(token))

    def _add(self, link: object) -> None:
        native.llama_sampler_chain_add(self.chain, link)

    def close(self) -> None:
        native.llama_sampler_free(self.chain)


def _first_characters(literals: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the first character of each literal (of two or more) in a text, also where literals overlap.

    Each branch begins with a plain character, so that `re` skips to the next of these without trying any branch.
    """
    by_first = itertools.groupby(sorted(literals), key=lambda literal: literal[0])
    branches = [
        f"{re.escape(first)}(?={'|'.join(re.escape(literal[1:]) for literal in group)})" for first, group in by_first
    ]
    return re.compile("|".join(branches)) if branches else None


def _view(pointer: object, kind: type[np.generic], count: int) -> NDArray[Any]:
    """A numpy view of one of llama_batch's arrays."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address
    size = np.dtype(kind).itemsize * count
    return np.ndarray(count, kind, memoryview((ctypes.c_char * size).from_address(address)))
