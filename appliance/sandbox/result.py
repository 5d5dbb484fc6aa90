"""The one form in which a locked child may answer, and its strict reader: the child may be in an attacker's hands.

A header, a frame a page, and a frame of blocks; each is a big-endian u32 length and that many bytes. The header is
JSON: {"media_type", "parser", "pages": n}, or {"reason", "message"} and nothing after it. Pages are UTF-8. A block is
14 bytes: kind u8 (its place in KINDS), level u8 (1 to MAX_LEVEL for a heading, else 0), page u32 from 1, start and end
u32 in code points of the page. Blocks are in order, hold something, lie inside their page and do not overlap.
"""

import json
import re
import struct
from collections.abc import Sequence

from appliance.errors import DocumentRefused

_LENGTH = struct.Struct(">I")
_HEADER_BYTES = 4096
_REASON = re.compile(r"[A-Z][A-Z0-9_]{2,39}")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline

KINDS = ("heading", "paragraph", "list", "table", "code")
MAX_BLOCKS = 1 << 18
MAX_LEVEL = 9
BLOCK = struct.Struct(">BBIII")

Row = tuple[str, int, int, int, int]
"""A block: kind, level, page, start, end."""

Member = tuple[str, bytes]
"""A file inside a container: its path there, its bytes."""

Parsed = tuple[str, str, Sequence[str], Sequence[Row], Sequence[Member]]
"""Media type, parser with its version, text by page, blocks, members."""


class Malformed(Exception):
    """The bytes are no result. The message says what is wrong, without content."""


def encode(parsed: Parsed) -> bytes:
    """The frames of a document that was read. Of its blocks, the first MAX_BLOCKS."""
    media_type, parser, pages, blocks, _ = parsed
    header = json.dumps({"media_type": media_type, "parser": parser, "pages": len(pages)}).encode()
    rows = b"".join(BLOCK.pack(KINDS.index(kind), *place) for kind, *place in blocks[:MAX_BLOCKS])
    return b"".join(_LENGTH.pack(len(frame)) + frame for frame in (header, *(page.encode() for page in pages), rows))


def encode_refusal(reason: str, message: str) -> bytes:
    """The frame of a document that was refused."""
    header = json.dumps({"reason": reason, "message": message}).encode()
    return _LENGTH.pack(len(header)) + header


def decode(data: bytes | bytearray | memoryview, max_pages: int) -> Parsed:
    """What the child says. Raises DocumentRefused where it refuses, Malformed where a rule of the format is broken."""
    view = memoryview(data)
    header_bytes, position = _frame(view, 0)
    header = _header(header_bytes)
    if header.keys() == {"reason", "message"}:
        reason, message = _short_text(header["reason"]), _short_text(header["message"])
        if not _REASON.fullmatch(reason) or position != len(view):
            raise Malformed("a refusal with a bad reason or with more after it")
        raise DocumentRefused(reason, message)
    if header.keys() != {"media_type", "parser", "pages"}:
        raise Malformed("a header with other fields")
    count = header["pages"]
    if type(count) is not int or not 0 < count <= max_pages:
        raise Malformed("a page count out of range")
    pages: list[str] = []
    for _ in range(count):
        page, position = _frame(view, position)
        pages.append(_page(page))
    rows, position = _frame(view, position)
    if position != len(view):
        raise Malformed("bytes after the blocks")
    return _short_text(header["media_type"]), _short_text(header["parser"]), tuple(pages), _blocks(rows, pages), ()


def _frame(view: memoryview, position: int) -> tuple[memoryview, int]:
    start = position + _LENGTH.size
    if start > len(view):
        raise Malformed("a frame without a length")
    (size,) = _LENGTH.unpack(view[position:start])
    if start + size > len(view):
        raise Malformed("a frame longer than the result")
    return view[start : start + size], start + size


def _header(frame: memoryview) -> dict[str, object]:
    if len(frame) > _HEADER_BYTES:
        raise Malformed("a header too long")
    try:
        header = json.loads(bytes(frame))
    except (ValueError, RecursionError):
        raise Malformed("a header that is no JSON") from None
    if not isinstance(header, dict):
        raise Malformed("a header that is no object")
    return header


def _short_text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 500 or not value.isprintable():
        raise Malformed("a header field that is no short printable text")
    return value


def _page(frame: memoryview) -> str:
    try:
        text = str(frame, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a page that is not UTF-8") from None
    if _CONTROL.search(text):
        raise Malformed("a page with control characters")
    return text


def _blocks(frame: memoryview, pages: Sequence[str]) -> tuple[Row, ...]:
    if len(frame) % BLOCK.size or len(frame) > MAX_BLOCKS * BLOCK.size:
        raise Malformed("blocks of a bad length")
    rows: list[Row] = []
    last = (1, 0)
    for kind, level, page, start, end in BLOCK.iter_unpack(frame):
        if kind >= len(KINDS) or not (1 <= level <= MAX_LEVEL if KINDS[kind] == "heading" else level == 0):
            raise Malformed("a block of no known kind")
        if not (page <= len(pages) and last <= (page, start) and start < end <= len(pages[page - 1])):
            raise Malformed("a block out of its place")
        rows.append((KINDS[kind], level, page, start, end))
        last = (page, end)
    return tuple(rows)
