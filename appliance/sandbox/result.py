"""The one form in which a locked child may answer, and its strict reader: the child may be in an attacker's hands.

A header, a frame a page, a frame of blocks, and three frames a member; each is a big-endian u32 length and that many
bytes. The header is JSON: {"media_type", "parser", "pages": n, "members": n}, or {"reason", "message"} and nothing
after it. Pages are UTF-8; only what has members may have none. A block is 14 bytes: kind u8 (its place in KINDS), level
u8 (1 to MAX_LEVEL for a heading, else 0), page u32 from 1, start and end u32 in code points of the page. Blocks are in
order, hold something, lie inside their page and do not overlap. A member is its path (1 to MAX_PATH_BYTES bytes), '' or
why it was left out (UTF-8), and its content, empty where it was left out. A path may be any bytes: what is no UTF-8 in
it is read as Python reads file names (`surrogateescape`, PEP 383), so that a path leads back to its bytes.
"""

import json
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from appliance.errors import DocumentRefused

_LENGTH = struct.Struct(">I")
_HEADER_BYTES = 4096
_REASON = re.compile(r"[A-Z][A-Z0-9_]{2,39}")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline

KINDS = ("heading", "paragraph", "list", "table", "code")
MAX_BLOCKS = 1 << 18
MAX_LEVEL = 9
MAX_PATH_BYTES = 4096
MAX_SHORT_CHARACTERS = 500
BLOCK = struct.Struct(">BBIII")

Row = tuple[str, int, int, int, int]
"""A block: kind, level, page, start, end."""

Member = tuple[str, bytes, str]
"""A file inside a container: its path there, its bytes, '' or why it was left out."""

Parsed = tuple[str, str, Sequence[str], Sequence[Row], Sequence[Member]]
"""Media type, parser with its version, text by page, blocks, members."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is believed at most. text_bytes: of all but blocks and members. member_bytes: of all members' content."""

    text_bytes: int
    pages: int
    members: int = 0
    member_bytes: int = 0

    @property
    def result_bytes(self) -> int:
        """Of a whole answer."""
        a_member = 3 * _LENGTH.size + MAX_PATH_BYTES + 4 * MAX_SHORT_CHARACTERS
        return self.text_bytes + MAX_BLOCKS * BLOCK.size + self.members * a_member + self.member_bytes

    @property
    def frames(self) -> int:
        """Of a whole answer."""
        return 2 + self.pages + 3 * self.members


class Malformed(Exception):
    """The bytes are no result. The message says what is wrong, without content."""


def encode(parsed: Parsed) -> Iterator[bytes]:
    """The frames of a document that was read, in pieces. Of its blocks, the first MAX_BLOCKS.

    Raises DocumentRefused, before the first piece, for a member's path that is empty or too long.
    """
    media_type, parser, pages, blocks, members = parsed
    paths = [path.encode("utf-8", "surrogateescape") for path, _, _ in members]
    if not all(0 < len(path) <= MAX_PATH_BYTES for path in paths):
        raise DocumentRefused("MEMBER_NAME", f"A file in it has no name, or one of more than {MAX_PATH_BYTES} bytes.")
    header = {"media_type": media_type, "parser": parser, "pages": len(pages), "members": len(members)}
    rows = b"".join(BLOCK.pack(KINDS.index(kind), *place) for kind, *place in blocks[:MAX_BLOCKS])
    yield b"".join(map(_framed, (json.dumps(header).encode(), *(page.encode() for page in pages), rows)))
    for path, (_, content, why) in zip(paths, members, strict=True):
        yield _framed(path) + _framed(why.encode()) + _LENGTH.pack(len(content))
        yield content


def encode_refusal(reason: str, message: str) -> bytes:
    """The frame of a document that was refused."""
    return _framed(json.dumps({"reason": reason, "message": message}).encode())


class Decoder:
    """An answer as it comes through the pipe. All of it is in memory once, and twice the page that is decoded.

    `feed` it pieces of any size; then `parsed`, once. Raises Malformed where a rule of the format is broken.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._frames: deque[bytes] = deque()
        self._frame = BytesIO()
        self._missing_bytes = _LENGTH.size
        self._is_length = True
        self._bytes = 0

    def feed(self, piece: bytes) -> None:
        """Take what comes next. Raises DocumentRefused (TOO_MUCH_TEXT) for more than a result may have; Malformed."""
        self._bytes += len(piece)
        if self._bytes > self._bounds.result_bytes:
            raise DocumentRefused("TOO_MUCH_TEXT", f"It unpacks to more than {self._bounds.result_bytes >> 20} MiB.")
        rest = memoryview(piece)
        while rest:
            part, rest = rest[: self._missing_bytes], rest[self._missing_bytes :]
            self._missing_bytes -= self._frame.write(part)
            while not self._missing_bytes:
                self._turn()

    def parsed(self) -> Parsed:
        """What the child says. Raises DocumentRefused where it refuses; Malformed."""
        if self._missing_bytes != _LENGTH.size or not self._is_length:
            raise Malformed("a frame that is cut")
        frames, bounds = self._frames, self._bounds
        header = _header(_next(frames))
        if header.keys() == {"reason", "message"}:
            reason, message = _short_text(header["reason"]), _short_text(header["message"])
            if not _REASON.fullmatch(reason) or frames:
                raise Malformed("a refusal with a bad reason or with more after it")
            raise DocumentRefused(reason, message)
        if header.keys() != {"media_type", "parser", "pages", "members"}:
            raise Malformed("a header with other fields")
        members_count = _count(header["members"], 0, bounds.members, "member")
        page_count = _count(header["pages"], 0 if members_count else 1, bounds.pages, "page")
        pages = tuple(_page(_next(frames)) for _ in range(page_count))
        blocks = _blocks(_next(frames), pages)
        members = _members(frames, members_count, bounds.member_bytes)
        if frames:
            raise Malformed("frames after the last one")
        return _short_text(header["media_type"]), _short_text(header["parser"]), pages, blocks, members

    def _turn(self) -> None:
        """From a length to its frame, and from a frame to the next length."""
        whole = self._frame.getvalue()  # BytesIO gives its bytes away without a copy
        self._frame = BytesIO()
        if self._is_length:
            (self._missing_bytes,) = _LENGTH.unpack(whole)
        else:
            self._missing_bytes = _LENGTH.size
            self._frames.append(whole)
            if len(self._frames) > self._bounds.frames:
                raise Malformed("more frames than there may be")
        self._is_length = not self._is_length


def _framed(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _count(value: object, least: int, most: int, what: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Malformed(f"a {what} count out of range")
    return value


def _next(frames: deque[bytes]) -> bytes:
    if not frames:
        raise Malformed("a result with too few frames")
    return frames.popleft()


def _header(frame: bytes) -> dict[str, object]:
    if len(frame) > _HEADER_BYTES:
        raise Malformed("a header too long")
    try:
        header = json.loads(frame)
    except (ValueError, RecursionError):
        raise Malformed("a header that is no JSON") from None
    if not isinstance(header, dict):
        raise Malformed("a header that is no object")
    return header


def _short_text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SHORT_CHARACTERS or not value.isprintable():
        raise Malformed("a field that is no short printable text")
    return value


def _page(frame: bytes) -> str:
    try:
        text = str(frame, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a page that is not UTF-8") from None
    if _CONTROL.search(text):
        raise Malformed("a page with control characters")
    return text


def _blocks(frame: bytes, pages: Sequence[str]) -> tuple[Row, ...]:
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


def _members(frames: deque[bytes], count: int, max_bytes: int) -> tuple[Member, ...]:
    members: list[Member] = []
    for _ in range(count):
        path, why, content = _next(frames), _next(frames), _next(frames)
        max_bytes -= len(content)
        if max_bytes < 0:
            raise Malformed("more bytes of members than are allowed")
        if not 0 < len(path) <= MAX_PATH_BYTES:
            raise Malformed("a member's path of a bad length")
        if why and content:
            raise Malformed("a member that was left out and is there")
        members.append((str(path, "utf-8", "surrogateescape"), content, _why(why)))
    return tuple(members)


def _why(frame: bytes) -> str:
    try:
        return _short_text(str(frame, "utf-8")) if frame else ""
    except UnicodeDecodeError:
        raise Malformed("a member left out for what is not UTF-8") from None
