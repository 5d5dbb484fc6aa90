"""GGUF headers, with every count, length, type and offset checked before it is used.

Format: gguf.md of ggml, versions 2 and 3, little-endian. What llama.cpp's own reader refuses (`gguf_init_from_reader`
in ggml/src/gguf.cpp) is refused here too, by name of fault and before any native code sees the file. Time is linear in
the header's bytes, and memory is bounded by MAX_HEADER_BYTES whatever the counts claim. The file is read, never mapped:
one that is cut short meanwhile is an error here, where a mapping would end the process.
"""

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import BinaryIO

from appliance.errors import ModelDamaged, ModelMissing, ModelUnsupported

MAX_HEADER_BYTES = 64 << 20  # four times the largest vocabulary known
MAX_PAIRS = 4096
MAX_TENSORS = 65_536
MAX_ARRAY_ITEMS = 2 << 20
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 4 << 20
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less its terminator
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
KEPT_ITEMS = 512  # one a layer (LLAMA_MAX_LAYERS); longer arrays are checked and counted, not kept
WINDOW_BYTES = 1 << 20

STRING, ARRAY, BOOL, INT32, FLOAT32 = 8, 9, 7, 5, 6
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", INT32: "i", FLOAT32: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
# block length in elements, block size in bytes: type_traits in ggml/src/ggml.c
# fmt: off
STORAGE = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}
# fmt: on
TOKENS, TOKEN_TYPES, ALIGNMENT = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "general.alignment"
CONTROL, USER_DEFINED = 3, 4


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array that was checked and not kept."""

    count: int


Value = int | float | bool | str | tuple[int | float | bool | str, ...] | LongArray


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dimensions` innermost first; `offset` from the start of the tensor data; `storage` is a ggml type."""

    name: str
    dimensions: tuple[int, ...]
    storage: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A sound header. `size_bytes`: where the last tensor ends, and so the least that the file holds.

    `guarded_tokens`: the texts of the vocabulary's control and user-defined tokens. `kinds`: the GGUF type of each
    key's value, for where native code takes no other.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    size_bytes: int
    guarded_tokens: frozenset[str]
    kinds: Mapping[str, int]

    @property
    def architecture(self) -> str:
        """Raises ModelDamaged where the file does not say."""
        if not (architecture := self.text("general.architecture")):
            raise ModelDamaged("The header lacks general.architecture.")
        return architecture

    @property
    def name(self) -> str:
        return self.text("general.name")

    @property
    def type(self) -> str:
        """What the file is: 'model', 'adapter', …; '' where it does not say, as for old models."""
        return self.text("general.type")

    @property
    def tokenizer(self) -> str:
        return self.text("tokenizer.ggml.model")

    @property
    def chat_template(self) -> str:
        """Read for its markers only, never run."""
        return self.text("tokenizer.chat_template")

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.dimensions) for tensor in self.tensors)

    @property
    def vocabulary(self) -> int:
        """Tokens listed, 0 for none."""
        tokens = self.metadata.get(TOKENS)
        if isinstance(tokens, LongArray):
            return tokens.count
        return len(tokens) if isinstance(tokens, tuple) else 0

    def text(self, key: str) -> str:
        """The string of a key, '' where it is absent. Raises ModelDamaged where it is something else."""
        value = self.metadata.get(key, "")
        if not isinstance(value, str):
            raise ModelDamaged(f"The key {shown(key)} must hold a string.")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """The whole number of a key. Raises ModelDamaged where it is something else, or absent with no default."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelDamaged(f"The key {shown(key)} must hold a whole number.")
        return value


def shown(text: str, limit: int = 80) -> str:
    """Text of an untrusted file as it may stand in a message: quoted, escaped, cut."""
    return f"'{printable(text if len(text) <= limit else text[:limit] + '…')}'"


def printable(text: str) -> str:
    """Text with control, bidirectional and undecodable characters escaped."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def read(path: Path) -> Header:
    """The header of a regular file; links are not followed. Raises ModelMissing, ModelDamaged, ModelUnsupported."""
    with open_regular(path) as file:
        return parse(file)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, never waiting on a FIFO. Raises ModelMissing, ModelUnsupported."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelMissing(f"{shown(str(path), 400)} cannot be opened: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ModelUnsupported(f"{shown(str(path), 400)} is not a regular file.")
    return os.fdopen(fd, "rb")


def parse(file: BinaryIO) -> Header:
    """The header at the start of an open file. Raises ModelDamaged naming key, tensor or offset; ModelUnsupported."""
    size_bytes = os.fstat(file.fileno()).st_size
    cursor = _Cursor(file, size_bytes)
    version, tensor_count, pair_count = _read_prologue(cursor)
    metadata: dict[str, Value] = {}
    kinds: dict[str, int] = {}
    vocabulary = _Vocabulary()
    for number in range(pair_count):
        key = cursor.text(MAX_KEY_BYTES, f"key {number}")
        if not key or key in metadata:
            raise ModelDamaged(f"Key {number}, {shown(key)}, is {'there twice' if key else 'empty'}.")
        kinds[key] = cursor.number("I", f"the type of {shown(key)}")
        metadata[key] = _read_value(cursor, key, kinds[key], vocabulary)
    tensors = _read_tensors(cursor, tensor_count, _alignment(metadata), size_bytes)
    data_start = _padded(cursor.position, _alignment(metadata))
    end = data_start + tensors[-1].offset + tensors[-1].size_bytes if tensors else cursor.position
    if end > size_bytes:
        cut = next(tensor for tensor in tensors if data_start + tensor.offset + tensor.size_bytes > size_bytes)
        raise ModelDamaged(
            f"The file is cut short: tensor {shown(cut.name)} reaches past its {size_bytes} bytes; {end} are needed."
        )
    return Header(version, metadata, tensors, end, vocabulary.guarded(), kinds)


class _Cursor:
    """Reads forward through the header; no read passes the end of the file or MAX_HEADER_BYTES."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._window = b""
        self._window_start = 0
        self._at = 0

    @property
    def position(self) -> int:
        return self._window_start + self._at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes. Raises ModelDamaged where they are not there."""
        if count > len(self._window) - self._at:
            self._refill(count, what)
        start, self._at = self._at, self._at + count
        return self._window[start : self._at]

    def number(self, kind: str, what: str) -> int:
        """One little-endian whole number of a struct format."""
        value: int = struct.unpack("<" + kind, self.take(struct.calcsize(kind), what))[0]
        return value

    def string(self, limit: int, what: str) -> bytes:
        length = int.from_bytes(self.take(8, what), "little")
        if length > limit:
            raise ModelDamaged(f"The length of {what}, {length} bytes, is more than {limit}.")
        return self.take(length, what)

    def text(self, limit: int, what: str) -> str:
        return self.string(limit, what).decode("utf-8", "replace")

    def _refill(self, count: int, what: str) -> None:
        start, end = self.position, self.position + count
        if end > self._size_bytes:
            raise ModelDamaged(f"The file is cut short: {what}, at byte {start}, reaches past its {self._size_bytes}.")
        if end > MAX_HEADER_BYTES:
            raise ModelDamaged(f"The header is larger than {MAX_HEADER_BYTES} bytes: {what} is past that.")
        rest = self._window[self._at :]
        wanted = min(max(count, WINDOW_BYTES), min(self._size_bytes, MAX_HEADER_BYTES) - start) - len(rest)
        self._window, self._window_start, self._at = rest + self._file.read(wanted), start, 0
        if len(self._window) < count:
            raise ModelDamaged(f"The file became shorter while {what} was read.")


class _Vocabulary:
    """Token texts and their types, in whichever order the file has them."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []
        self.types: tuple[int, ...] = ()

    def guarded(self) -> frozenset[str]:
        if len(self.types) not in (0, len(self.tokens)):
            raise ModelDamaged(f"{TOKEN_TYPES} has {len(self.types)} items; {TOKENS} has {len(self.tokens)}.")
        pairs = zip(self.tokens, self.types, strict=False)
        return frozenset(token.decode("utf-8", "replace") for token, kind in pairs if kind in (CONTROL, USER_DEFINED))


def _read_prologue(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of key-value pairs."""
    if cursor.take(4, "the magic number") != b"GGUF":
        raise ModelDamaged("The file does not start with 'GGUF'.")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        order = " (big-endian?)" if version and version & 0xFFFF == 0 else ""
        raise ModelUnsupported(f"GGUF version {version}{order} is not read; 2 and 3 are.")
    tensors, pairs = cursor.number("Q", "the tensor count"), cursor.number("Q", "the key count")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        raise ModelDamaged(f"{tensors} tensors and {pairs} keys are more than {MAX_TENSORS} and {MAX_PAIRS}.")
    return version, tensors, pairs


def _read_value(cursor: _Cursor, key: str, kind: int, vocabulary: _Vocabulary) -> Value:
    what = f"the value of {shown(key)}"
    if kind == STRING:
        return cursor.text(MAX_STRING_BYTES, what)
    if kind == ARRAY:
        return _read_array(cursor, key, what, vocabulary)
    if kind not in FORMATS:
        raise ModelDamaged(f"The type of {shown(key)}, {kind}, does not exist.")
    return _unpack(cursor, kind, 1, what)[0]


def _read_array(cursor: _Cursor, key: str, what: str, vocabulary: _Vocabulary) -> Value:
    kind, count = cursor.number("I", what), cursor.number("Q", what)
    if count > MAX_ARRAY_ITEMS:
        raise ModelDamaged(f"The array {shown(key)} claims {count} items; at most {MAX_ARRAY_ITEMS} are read.")
    if kind == STRING:
        kept = key == TOKENS or count <= KEPT_ITEMS
        texts = [item for _ in range(count) if (item := cursor.string(MAX_STRING_BYTES, what)) is not None and kept]
        if key == TOKENS:
            vocabulary.tokens = texts
        return tuple(t.decode("utf-8", "replace") for t in texts) if count <= KEPT_ITEMS else LongArray(count)
    if kind not in FORMATS:
        raise ModelDamaged(f"The array {shown(key)} holds {'arrays' if kind == ARRAY else f'type {kind}'}.")
    if key == TOKEN_TYPES and kind != INT32:
        raise ModelDamaged(f"The array {shown(key)} must hold 32-bit integers.")
    if count > KEPT_ITEMS and key != TOKEN_TYPES:
        cursor.take(struct.calcsize(FORMATS[kind]) * count, what)
        return LongArray(count)
    values = _unpack(cursor, kind, count, what)
    if key == TOKEN_TYPES:
        vocabulary.types = values
    return values if count <= KEPT_ITEMS else LongArray(count)


def _unpack(cursor: _Cursor, kind: int, count: int, what: str) -> tuple[int, ...]:
    raw = cursor.take(struct.calcsize(FORMATS[kind]) * count, what)
    if kind == BOOL and raw.strip(b"\0\1"):
        raise ModelDamaged(f"A truth value in {what} is neither 0 nor 1.")
    return struct.unpack(f"<{count}{FORMATS[kind]}", raw)


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get(ALIGNMENT, 32)
    if not isinstance(value, int) or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise ModelDamaged(f"{ALIGNMENT} must be a power of two from 8 to {MAX_ALIGNMENT}.")
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int, size_bytes: int) -> tuple[Tensor, ...]:
    tensors: dict[str, Tensor] = {}
    expected = 0
    for number in range(count):
        tensor = _read_tensor(cursor, number, size_bytes)
        if tensor.name in tensors:
            raise ModelDamaged(f"Tensor {shown(tensor.name)} is there twice.")
        if tensor.offset != expected:
            raise ModelDamaged(f"Tensor {shown(tensor.name)} lies at offset {tensor.offset}, not at {expected}.")
        tensors[tensor.name] = tensor
        expected = _padded(tensor.offset + tensor.size_bytes, alignment)
    return tuple(tensors.values())


def _read_tensor(cursor: _Cursor, number: int, size_bytes: int) -> Tensor:
    name = cursor.text(MAX_NAME_BYTES, f"the name of tensor {number}")
    what = f"Tensor {shown(name)}"
    rank = cursor.number("I", what)
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise ModelDamaged(f"{what} has {rank} dimensions.")
    dimensions = struct.unpack(f"<{rank}Q", cursor.take(8 * rank, what))
    storage, offset = cursor.number("I", what), cursor.number("Q", what)
    if storage not in STORAGE:
        raise ModelUnsupported(f"{what} is stored as type {storage}, which this engine does not know.")
    block, block_bytes = STORAGE[storage]
    if 0 in dimensions or dimensions[0] % block:
        raise ModelDamaged(f"{what} has the shape {dimensions}; rows must be whole blocks of {block}.")
    tensor_bytes = prod(dimensions) // block * block_bytes
    if tensor_bytes > size_bytes:
        raise ModelDamaged(f"{what} of shape {dimensions} is larger than the file: it is cut short.")
    return Tensor(name, dimensions, storage, offset, tensor_bytes)


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
