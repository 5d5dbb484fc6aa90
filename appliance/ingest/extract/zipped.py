"""ZIP (PKWARE APPNOTE 6.3), read strictly: every file is named in the directory, lies apart from the others and is what
it claims to be. Readers differ in what they make of archives that break this, and attacks live on the difference
(overlapping entries: D. Fifield, A better zip bomb, WOOT 2019).
"""

import codecs
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import NamedTuple

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import members
from appliance.ingest.extract.reading import Read

PARSER = "zip 1"

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_END_MAGIC = b"PK\x05\x06"

_MAX_COMMENT_BYTES = 0xFFFF
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
_ENCRYPTED, _SIZES_AFTER, _UTF8 = 0x1, 0x8, 0x800
_STORED, _DEFLATED = 0, 8
_ZIP64_EXTRA = 1
_UNIX = 3
_FED_BYTES, _STEP_BYTES = 1 << 16, 1 << 20

_CP437 = codecs.lookup("cp437")  # now: a locked child can load nothing


class Damaged(Exception):
    """The bytes are no ZIP archive that can be trusted. The message says why, without content."""


class Entry(NamedTuple):
    """A file as the directory has it. start: of its local header; mode: as stat has it, 0 where it is unknown."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    start: int
    mode: int

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & _ENCRYPTED)


def read(data: bytes, caps: Caps) -> Read:
    """The files in it, as members.

    Raises DocumentRefused: TYPE_MISMATCH, ARCHIVE_BROKEN, ARCHIVE_ENCRYPTED, ARCHIVE_TOO_LARGE, TOO_MANY_MEMBERS,
    ZIP_BOMB.
    """
    if not data.startswith((_LOCAL_MAGIC, _END_MAGIC)):
        raise DocumentRefused("TYPE_MISMATCH", "The name says ZIP, the content does not begin as one.")
    try:
        found = entries(data, caps)
    except Damaged as error:
        raise DocumentRefused("ARCHIVE_BROKEN", f"{error} Pack it again.") from None
    if found and all(entry.encrypted for entry in found):
        raise DocumentRefused("ARCHIVE_ENCRYPTED", "It is protected by a password; store a copy without one.")
    taken = members.Members()
    for entry in found:
        problem = taken.problem(entry.name) or _problem(entry)
        if not problem:
            try:
                taken.add(entry.name, content(data, entry))
            except Damaged:
                problem = members.BROKEN
        if problem:
            taken.leave_out(entry.name, problem)
    return Read(PARSER, members=taken.found)


def entries(data: bytes, caps: Caps) -> tuple[Entry, ...]:
    """The files in it, in the directory's order, without folders.

    Raises Damaged; DocumentRefused: TOO_MANY_MEMBERS, ZIP_BOMB, ARCHIVE_TOO_LARGE, by what the directory claims:
    `content` never gives more.
    """
    start, end, count = _directory(data)
    found = []
    for number, entry in enumerate(_central(data, start, end), 1):
        members.check_count(number, caps)
        found.append(entry)
    if len(found) != count:
        raise Damaged("It names another number of files than it has.")
    _check_places(data, found, start)
    members.check_sizes(len(data), sum(entry.size_bytes for entry in found), caps)
    return tuple(entry for entry in found if not (entry.raw_name.endswith(b"/") and not entry.size_bytes))


def content(data: bytes, entry: Entry) -> bytes:
    """The bytes of a file, exactly as many as the directory says. Raises Damaged."""
    start = _data_start(data, entry)
    end = start + entry.packed_bytes
    try:
        unpacked = data[start:end] if entry.method == _STORED else _inflated(data, start, end, entry.size_bytes)
    except zlib.error:
        raise Damaged("A file in it is damaged.") from None
    if len(unpacked) != entry.size_bytes or zlib.crc32(unpacked) != entry.crc:
        raise Damaged("A file in it is not as long as it says, or damaged.")
    return unpacked


def _inflated(data: bytes, start: int, end: int, size_bytes: int) -> bytes:
    """In steps, so that what is unpacked is in memory once. Stops soon after so many bytes. Raises zlib.error."""
    inflater, out, packed = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO(), memoryview(data)
    for at in range(start, end, _FED_BYTES):
        fed: bytes | memoryview = packed[at : min(at + _FED_BYTES, end)]
        while fed and out.tell() <= size_bytes and not inflater.eof:
            out.write(inflater.decompress(fed, _STEP_BYTES))
            fed = inflater.unconsumed_tail
        if inflater.eof or out.tell() > size_bytes:
            return out.getvalue()  # without a copy
    out.write(inflater.flush())
    return out.getvalue()


def _problem(entry: Entry) -> str:
    if stat.S_ISLNK(entry.mode):
        return members.LINK
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        return members.DEVICE
    if entry.encrypted:
        return members.ENCRYPTED
    return "" if entry.method in (_STORED, _DEFLATED) else members.METHOD


def _directory(data: bytes) -> tuple[int, int, int]:
    """Where the directory starts and ends, and how many files it says to name. Raises Damaged."""
    at = len(data)
    while True:
        at = data.rfind(_END_MAGIC, max(0, len(data) - _END.size - _MAX_COMMENT_BYTES), at)
        if at < 0:
            raise Damaged("Its end is missing, or something stands after it.")
        if len(data) - at >= _END.size:
            _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, at)
            if at + _END.size + comment == len(data):
                break
    end = at
    if _FULL16 in (here, count, disk) or _FULL32 in (size, start):
        end, disk, first_disk, here, count, size, start = _directory64(data, at)
    if disk or first_disk or here != count:
        raise Damaged("It is one part of several.")
    if start + size != end:
        raise Damaged("Its directory is not where it says.")
    return start, end, count


def _directory64(data: bytes, before: int) -> tuple[int, int, int, int, int, int, int]:
    locator = before - _END64_LOCATOR.size
    if locator < 0 or not data.startswith(b"PK\x06\x07", locator):
        raise Damaged("Its directory's size is missing.")
    _, _, end, _ = _END64_LOCATOR.unpack_from(data, locator)
    if end + _END64.size > locator or not data.startswith(b"PK\x06\x06", end):
        raise Damaged("Its directory is not where it says.")
    _, _, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(data, end)
    return end, disk, first_disk, here, count, size, start


def _central(data: bytes, at: int, end: int) -> Iterator[Entry]:
    """What the directory names. Raises Damaged."""
    while at < end:
        if at + _CENTRAL.size > end or not data.startswith(b"PK\x01\x02", at):
            raise Damaged("Its directory is damaged.")
        fields = _CENTRAL.unpack_from(data, at)
        made_by, flags, method = fields[1] >> 8, fields[3], fields[4]
        crc, packed, size, name_size, extra_size, comment_size = fields[7:13]
        attributes, start = fields[15:]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_size
        at = extra_at + extra_size + comment_size
        if at > end:
            raise Damaged("Its directory is damaged.")
        raw_name = data[name_at:extra_at]
        size, packed, start = _sizes(data[extra_at : extra_at + extra_size], (size, packed, start))
        mode = attributes >> 16 if made_by == _UNIX else 0
        yield Entry(_name(raw_name, flags), raw_name, flags, method, crc, packed, size, start, mode)


def _name(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8", "surrogateescape") if flags & _UTF8 else _CP437.decode(raw)[0]


def _sizes(extra: bytes, small: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and start, from the ZIP64 field where they did not fit into the directory's."""
    missing = small.count(_FULL32)
    at = 0
    while missing and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_EXTRA and length >= 8 * missing and at + 4 + length <= len(extra):
            large = iter(struct.unpack_from(f"<{missing}Q", extra, at + 4))
            size, packed, start = (next(large) if value == _FULL32 else value for value in small)
            return size, packed, start
        at += 4 + length
    return small


def _check_places(data: bytes, found: Sequence[Entry], directory_start: int) -> None:
    """Raises Damaged where files lie that the directory does not name; DocumentRefused: ZIP_BOMB where two overlap."""
    after = 0
    for entry in sorted(found, key=lambda entry: entry.start):
        if entry.start < after:
            raise DocumentRefused("ZIP_BOMB", "Files in it overlap, as in bombs.")
        _check_gap(data, after, entry.start)
        after = _data_start(data, entry) + entry.packed_bytes
    if after > directory_start:
        raise Damaged("A file in it is longer than it.")
    _check_gap(data, after, directory_start)


def _check_gap(data: bytes, start: int, end: int) -> None:
    if data.find(_LOCAL_MAGIC, start, end) >= 0:
        raise Damaged("Files lie in it that its directory does not name.")


def _data_start(data: bytes, entry: Entry) -> int:
    """Where a file's bytes start; its local header must say what the directory does. Raises Damaged."""
    if entry.start + _LOCAL.size > len(data) or not data.startswith(_LOCAL_MAGIC, entry.start):
        raise Damaged("A file in it is not where its directory says.")
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack_from(data, entry.start)
    name_at = entry.start + _LOCAL.size
    extra_at = name_at + name_size
    here = (data[name_at:extra_at], method, flags & _ENCRYPTED)
    if here != (entry.raw_name, entry.method, entry.flags & _ENCRYPTED):
        raise Damaged("A file in it has another name or kind than its directory says.")
    if not flags & _SIZES_AFTER:
        size, packed, _ = _sizes(data[extra_at : extra_at + extra_size], (size, packed, 0))
        if (crc, packed, size) != (entry.crc, entry.packed_bytes, entry.size_bytes):
            raise Damaged("A file in it has another size than its directory says.")
    start: int = extra_at + extra_size
    return start


def _warm_document() -> bytes:
    """One file, stored, and the directory."""
    name, body = b"warm.txt", b"Warm.\n"
    sizes = (zlib.crc32(body), len(body), len(body), len(name))
    local = _LOCAL.pack(_LOCAL_MAGIC, 20, 0, _STORED, 0, 0, *sizes, 0) + name + body
    central = _CENTRAL.pack(b"PK\x01\x02", 20, 20, 0, _STORED, 0, 0, *sizes, 0, 0, 0, 0, 0, 0) + name
    return local + central + _END.pack(_END_MAGIC, 0, 0, 1, 1, len(central), len(local), 0)


WARM_DOCUMENTS = (_warm_document(),)
