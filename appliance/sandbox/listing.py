"""The forms in which a locked child tells of a volume, and their strict readers: the child may be in other hands.

An answer is a stream of frames, each a big-endian u32 length, 1 to MAX_FRAME_BYTES, and that many bytes; a length of 0
ends it, and after it stands one frame more, how it ended: JSON, {} or {"reason", "message"}. The frames of a file are
its bytes. Each frame of a listing is a JSON list: "volume" and the fields of `VolumeRow`, numbered from 0, or "file"
and those of `FileRow`, of the volume before it.
"""

import json
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from appliance.errors import DocumentRefused

_LENGTH = struct.Struct(">I")
_REASON = re.compile(r"[A-Z][A-Z0-9_]{2,39}")

MAX_FRAME_BYTES = 1 << 20
MAX_PATH_BYTES = 4096
MAX_TEXT_CHARACTERS = 500
MAX_VOLUMES = 128
MAX_FILES = 400_000
MAX_LISTING_BYTES = 256 << 20

VolumeRow = tuple[int, str, int, int, str, str, str, str]
"""number, filesystem, offset_bytes, size_bytes, id, label, reason, detail: as types.Volume."""

FileRow = tuple[int, str, int, int, int, bool, str, str]
"""volume's number, path, size_bytes, modified_ns, cluster, contiguous, reason, detail: as types.Entry."""


class Malformed(Exception):
    """The bytes are no answer. The message says what is wrong, without content."""


def encode(frames: Iterable[bytes]) -> Iterator[bytes]:
    """The stream of an answer, whatever becomes of it: what is raised on the way is told at the end."""
    how: dict[str, str] = {}
    try:
        for frame in frames:
            for start in range(0, len(frame), MAX_FRAME_BYTES):
                piece = frame[start : start + MAX_FRAME_BYTES]
                yield _LENGTH.pack(len(piece)) + piece
    except DocumentRefused as refusal:
        how = {"reason": refusal.file_reason, "message": str(refusal)}
    except OSError as error:
        how = {"reason": "UNREADABLE", "message": f"The device gave an error ({error.strerror or 'no reason'})."}
    except MemoryError:
        how = {"reason": "TOO_MUCH_MEMORY", "message": "Reading it takes more memory than a volume may use."}
    except Exception as error:  # noqa: BLE001 - its text may hold content
        how = {"reason": "PARSER_FAILED", "message": f"The reader gave up ({type(error).__name__})."}
    last = json.dumps(how).encode()
    yield _LENGTH.pack(0) + _LENGTH.pack(len(last)) + last


def encode_row(kind: str, row: VolumeRow | FileRow) -> bytes:
    """The frame of a listing's row. kind: "volume" or "file"."""
    return json.dumps([kind, *row]).encode()


class Frames:
    """Reads a stream as it comes, in any pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._ended = False
        self._how: dict[str, str] | None = None

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The frames that are whole now. Raises Malformed."""
        self._rest += piece
        at = 0
        while len(self._rest) >= at + _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._rest, at)
            if size > MAX_FRAME_BYTES or self._how is not None:
                raise Malformed("a frame too long or after the last one")
            if size == 0:
                if self._ended:
                    raise Malformed("ended twice")
                self._ended = True
            elif len(self._rest) < at + _LENGTH.size + size:
                break
            frame = bytes(self._rest[at + _LENGTH.size : at + _LENGTH.size + size])
            at += _LENGTH.size + size
            if frame and self._ended:
                self._how = _ending(frame)
            elif frame:
                yield frame
        del self._rest[:at]

    def finish(self) -> None:
        """Raises Malformed where the stream is not whole, DocumentRefused where it says that it could not be."""
        if self._how is None or self._rest:
            raise Malformed("an answer that does not end")
        if self._how:
            raise DocumentRefused(self._how["reason"], self._how["message"])


class Listing:
    """Reads the frames of a listing."""

    def __init__(self) -> None:
        self.volumes: list[VolumeRow] = []
        self.files: list[FileRow] = []
        self._bytes = 0

    def add(self, frames: Iterable[bytes]) -> None:
        """Raises Malformed, or DocumentRefused (TOO_MANY_FILES) past MAX_FILES or MAX_LISTING_BYTES."""
        for frame in frames:
            self._bytes += len(frame)
            if self._bytes > MAX_LISTING_BYTES:
                most = MAX_LISTING_BYTES >> 20
                raise DocumentRefused("TOO_MANY_FILES", f"The names of its files take more than {most} MiB.")
            self._add(_loads(frame))

    def _add(self, row: object) -> None:
        if not isinstance(row, list) or len(row) != 9:
            raise Malformed("a row of another length")
        kind, *fields = row
        if kind == "volume" and len(self.volumes) < MAX_VOLUMES:
            self.volumes.append(_volume(len(self.volumes), fields))
        elif kind == "file" and self.volumes:
            if len(self.files) == MAX_FILES:
                raise DocumentRefused("TOO_MANY_FILES", f"It holds more than {MAX_FILES} files.")
            self.files.append(_file(len(self.volumes) - 1, fields))
        else:
            raise Malformed("a row of another kind")


def _volume(number: int, fields: list[Any]) -> VolumeRow:
    given, filesystem, offset, size, name, label, reason, detail = fields
    if _number(given) != number:
        raise Malformed("a volume out of order")
    _require_reason(reason)
    for text in (filesystem, name, label, detail):
        _require_text(text)
    if bool(filesystem) == bool(reason):
        raise Malformed("a volume that can be read and cannot, or neither")
    return number, filesystem, _number(offset), _number(size), name, label, reason, detail


def _file(volume: int, fields: list[Any]) -> FileRow:
    given, path, size, modified_ns, cluster, contiguous, reason, detail = fields
    if _number(given) != volume:
        raise Malformed("a file of another volume")
    _require_path(path)
    _require_reason(reason)
    _require_text(detail)
    if type(contiguous) is not bool:
        raise Malformed("a flag that is none")
    if type(modified_ns) is not int or not -(1 << 63) <= modified_ns < 1 << 63:
        raise Malformed("a time that is none")
    return volume, path, _number(size), modified_ns, _number(cluster, 32), contiguous, reason, detail


def _ending(frame: bytes) -> dict[str, str]:
    how = _loads(frame)
    if how == {}:
        return {}
    if not isinstance(how, dict) or how.keys() != {"reason", "message"}:
        raise Malformed("an ending of another form")
    _require_reason(how["reason"])
    _require_text(how["message"])
    if not how["reason"]:
        raise Malformed("a refusal without a reason")
    return how


def _loads(frame: bytes) -> object:
    def whole(digits: str) -> int:
        if len(digits) > 20:  # as many as an i64 has, and no quadratic conversion
            raise Malformed("a number too long")
        return int(digits)

    try:
        return json.loads(frame, parse_int=whole)
    except (ValueError, RecursionError):
        raise Malformed("a frame that is no JSON") from None


def _number(value: object, bits: int = 64) -> int:
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise Malformed("a number out of range")
    return value


def _require_reason(value: object) -> None:
    if value != "" and not (isinstance(value, str) and _REASON.fullmatch(value)):
        raise Malformed("a reason that is none")


def _require_text(value: object) -> None:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS or not value.isprintable():
        raise Malformed("a text that is not short and printable")


def _require_path(value: object) -> None:
    if not isinstance(value, str):
        raise Malformed("a path that is no text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Malformed("a path that is no Unicode") from None
    if size > MAX_PATH_BYTES or "\0" in value or (value and {"", ".", ".."} & set(value.split("/"))):
        raise Malformed("a path that leads elsewhere")
