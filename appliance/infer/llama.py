"""llama.cpp by its low-level API: models, vocabularies, contexts, samplers. The only module that imports llama_cpp.

Native handles are freed by `close`; nothing here is safe for threads but `Vocabulary`, which llama.cpp says is.
"""

import codecs
import contextlib
import ctypes
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as native
import numpy as np
import structlog
from numpy.typing import NDArray

from appliance.errors import (
    AdapterMismatch,
    DiskFull,
    InvalidArgument,
    ModelDamaged,
    ModelMissing,
    ModelTooLarge,
    ModelUnsupported,
)
from appliance.infer import paged
from appliance.infer.pages import PAGE_TOKENS, Copy, Trim
from appliance.infer.scheduler import Chunk
from appliance.ports import Buffer
from appliance.types import Adapter, Floats, Origin, Segment

VERSION: str = native.__version__
MAX_SEQUENCES = 256
KV_TYPES = {"f16": native.GGML_TYPE_F16, "q8_0": native.GGML_TYPE_Q8_0}
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


QUANTIZED = {"Q8_0": native.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": native.LLAMA_FTYPE_MOSTLY_Q4_K_M}
FULL_BYTES = 16 << 20  # llama.cpp says only that it failed; with less than this left, it was the disk
_QUANTIZED_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def quantize(source: str, target: str, storage: str, threads: int, report: Callable[[int, int], None]) -> None:
    """Write `target` anew with the weights of `source` as a key of QUANTIZED says. report: tensors begun, and in all.

    Raises DiskFull where the target's disk is, else ModelDamaged with llama.cpp's reason.
    """
    params = native.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, QUANTIZED[storage]
    errors: list[str] = []

    @native.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, _: object) -> None:
        line = text.decode(errors="replace").strip()
        if found := _QUANTIZED_TENSOR.match(line):
            report(int(found[1]), int(found[2]))
        elif level == _ERROR_LEVEL:
            errors.append(line)

    native.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        failed = native.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    finally:
        native.llama_log_set(_to_structlog, ctypes.c_void_p(0))
    if failed and shutil.disk_usage(Path(target).parent).free < FULL_BYTES:
        raise DiskFull("The disk became full while the model was quantized.")
    if failed:
        raise ModelDamaged(f"The engine cannot quantize the model: {'; '.join(errors)[:300] or 'it gave no reason'}.")


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
        self.end_ids = tuple(i for i in range(self.size) if native.llama_vocab_is_eog(self._native, i))
        # no text stands for these
        self.control_ids = tuple(sorted(self._control | set(self.end_ids)))
        literals = {texts[i] for i in self._control | markup if len(texts[i]) > 1}
        literals |= {text.replace("▁", " ") for text in literals}
        self._literal = _first_characters(literals)
        self.longest_bytes = max((len(text.encode()) for text in texts), default=1)
        # SentencePiece puts a blank before the first text; this byte takes it, and is cut off again
        spm = native.llama_vocab_type(self._native) == native.LLAMA_VOCAB_TYPE_SPM
        self._lead = self._ids("\x01", parse_special=False) if spm else []
        self._pieces: dict[int, bytes] = {}

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

    def encode_more(self, text: str) -> list[int]:
        """Token ids of text that goes on from other text; none of them is a control token."""
        return self._ids(text, parse_special=False, joined=True)

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
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def _read_piece(self, token: int) -> bytes:
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

    @property
    def partial(self) -> bool:
        """Is a character begun whose last byte has not come?"""
        return bool(self._decoder.getstate()[0])

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

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch_tokens: int,
        threads: int,
        outputs: int = 0,
        kv_type: str = "f16",
    ) -> None:
        """cells: tokens that all sequences may hold together. outputs: rows of a batch that may sample, at least one a
        sequence. kv_type: a key of KV_TYPES. Raises ModelTooLarge; ModelUnsupported where kv_type is not for the model.
        """
        params = native.llama_context_default_params()
        sequences = min(sequences, MAX_SEQUENCES - 1)
        self._scratch = sequences  # a sequence of our own, through which pages are saved and restored
        params.n_ctx, params.n_seq_max = cells, sequences + 1
        params.n_batch = params.n_ubatch = batch_tokens
        # rows of logits for what samples, not one a token of the batch: saves 500 MB at a vocabulary of 256k
        params.n_outputs_max, params.n_outputs_max_per_seq = max(outputs, sequences + 1), 0
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.flash_attn_type = True, native.LLAMA_FLASH_ATTN_TYPE_AUTO
        if paged.registered():  # "auto" takes attention on another device than its layer's for a lack of support
            params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = KV_TYPES[kv_type]
        with _errors() as errors:
            self._native = native.llama_init_from_model(model.handle, params)
        if not self._native:
            if any("cache type" in line or "quantized V cache" in line for line in errors):
                raise ModelUnsupported(f"model_kv_type: this model's cache cannot be kept as {kv_type}; use f16.")
            raise ModelTooLarge(f"The engine cannot allocate a context of {cells} tokens for the model.")
        self._memory = native.llama_get_memory(self._native)
        self._adapter: Any = None
        self._row = ctypes.c_float * model.vocabulary.size
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

    def copy(self, move: Copy) -> None:
        native.llama_memory_seq_cp(self._memory, move.source, move.target, 0, move.tokens)

    def trim(self, move: Trim) -> None:
        native.llama_memory_seq_rm(self._memory, move.sequence, move.tokens, -1)

    def save(self, sequence: int, page: int) -> memoryview:
        """The state of one whole page of a sequence: its positions, keys and values in the form that `restore` reads.

        Raises RuntimeError where llama.cpp fails or a part of the page was never computed.
        """
        start = page * PAGE_TOKENS
        native.llama_memory_seq_cp(self._memory, sequence, self._scratch, start, start + PAGE_TOKENS)
        whole = self._scratch_holds(start)
        size = int(native.llama_state_seq_get_size(self._native, self._scratch))
        state = np.empty(size, np.uint8)
        at = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        got = native.llama_state_seq_get_data(self._native, at, size, self._scratch)
        native.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)
        if not whole or got != size:
            raise RuntimeError("llama_state_seq_get_data failed" if whole else "a page to be saved is not there")
        return memoryview(state)  # type: ignore[arg-type]

    def restore(self, sequence: int, page: int, state: Buffer) -> bool:
        """Make the state of a saved page the sequence's next; False, and nothing, where it is not one of that page."""
        start = page * PAGE_TOKENS
        raw = np.frombuffer(state, np.uint8)
        at = raw.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        taken = native.llama_state_seq_set_data(self._native, at, len(raw), self._scratch) == len(raw)
        taken = taken and self._scratch_holds(start)  # llama.cpp takes a state without cells as well
        if taken:
            native.llama_memory_seq_cp(self._memory, self._scratch, sequence, start, start + PAGE_TOKENS)
        native.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)
        return bool(taken)

    def _scratch_holds(self, start: int) -> bool:
        """Does the scratch sequence begin and end where the page at this position does?"""
        ends = native.llama_memory_seq_pos_min, native.llama_memory_seq_pos_max
        return [end(self._memory, self._scratch) for end in ends] == [start, start + PAGE_TOKENS - 1]

    def set_adapter(self, adapter: "LoadedAdapter | None") -> None:
        """What `compute` applies from now on. A change costs llama.cpp a new graph. Raises RuntimeError."""
        if adapter is self._adapter:
            return
        if adapter is None:
            failed = native.llama_set_adapters_lora(self._native, None, 0, None)
        else:
            handles = (native.llama_adapter_lora_p_ctypes * 1)(adapter.handle)
            scales = (ctypes.c_float * 1)(adapter.scale)
            failed = native.llama_set_adapters_lora(self._native, handles, 1, scales)
        if failed:
            raise RuntimeError("llama_set_adapters_lora failed")
        self._adapter = adapter

    def compute(self, chunks: Sequence[Chunk]) -> list[int]:
        """Run one batch; returns each chunk's first row that samples, or its end where none does.

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
            self._samples[end - chunk.samples : end] = 1
            rows.append(end - chunk.samples)
        self._batch.n_tokens = end
        if code := native.llama_decode(self._native, self._batch):
            raise RuntimeError(f"llama_decode failed with code {code}")
        native.llama_synchronize(self._native)
        return rows

    def logits(self, row: int) -> Floats:
        """float32 [vocabulary] of a row that samples; a view, good until the next `compute`."""
        first = native.llama_get_logits_ith(self._native, row).contents
        return np.frombuffer(memoryview(self._row.from_address(ctypes.addressof(first))), np.float32)

    def close(self) -> None:
        self._lists[:] = self._own_lists
        native.llama_batch_free(self._batch)
        native.llama_free(self._native)


class LoadedAdapter:
    """A LoRA's weights on the device. Freed with its model at the latest."""

    def __init__(self, model: Model, adapter: Adapter) -> None:
        """Not beside `Context.compute`, another load or `set_adapter`: llama.cpp lists it in the model.

        Raises ModelMissing, AdapterMismatch where it was made for another model, ModelDamaged.
        """
        self.scale = adapter.scale
        if not os.path.isfile(adapter.path):
            raise ModelMissing(f"The file of adapter {adapter.name} is not there.")
        with _errors() as errors:
            self.handle = native.llama_adapter_lora_init(model.handle, adapter.path.encode())
        if not self.handle:
            why = "; ".join(dict.fromkeys(line.partition(": ")[2] or line for line in errors))[:300]
            if any(sign in why for sign in ("mismatch", "does not exist", "incorrect shape")):
                raise AdapterMismatch(f"Adapter {adapter.name} was made for another model: {why}.")
            raise ModelDamaged(f"The engine cannot load adapter {adapter.name}: {why or 'llama.cpp gave no reason'}.")

    def close(self) -> None:
        native.llama_adapter_lora_free(self.handle)


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
