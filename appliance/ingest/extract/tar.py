"""TAR (POSIX.1-2001 pax, GNU), plain or compressed whole by gzip, xz or bzip2; and one file compressed by gzip."""

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Protocol

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import members
from appliance.ingest.extract.reading import Read

PARSER = "tar 1"

_BLOCK_BYTES = 512
_FED_BYTES, _STEP_BYTES = 1 << 16, 1 << 20
_MAGIC_AT, _MAGIC = 257, b"ustar"
_GZIP, _XZ, _BZIP2 = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh"
_GZIP_NAME, _GZIP_EXTRA = 0x08, 0x04
_XZ_MEMORY_BYTES = 64 << 20


class _Decompressor(Protocol):
    """What bz2 and lzma have, and zlib by `_Inflater`."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


class _Inflater:
    """A gzip member by zlib, in the shape of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max(max_length, 0))

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


_DECOMPRESSORS: tuple[tuple[bytes, Callable[[], _Decompressor]], ...] = (
    (_GZIP, _Inflater),
    (_XZ, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES)),
    (_BZIP2, bz2.BZ2Decompressor),
)


def read(data: bytes, caps: Caps) -> Read:
    """The files in it, as members.

    Raises DocumentRefused: TYPE_MISMATCH, ARCHIVE_BROKEN, ARCHIVE_TOO_LARGE, TOO_MANY_MEMBERS, ZIP_BOMB.
    """
    make = next((make for magic, make in _DECOMPRESSORS if data.startswith(magic)), None)
    unpacked = _unpack(data, make, caps) if make else data
    if unpacked.startswith(_MAGIC, _MAGIC_AT):
        return _read_tar(unpacked, caps)
    if make is None:
        raise DocumentRefused("TYPE_MISMATCH", "The name says TAR, the content does not begin as one.")
    taken = members.Members()
    name = _gzip_name(data)
    problem = taken.problem(name) if name else members.UNNAMED
    if problem:
        taken.leave_out(name, problem)
    else:
        taken.add(name, unpacked)
    return Read(PARSER, members=taken.found)


def _unpack(data: bytes, make: Callable[[], _Decompressor], caps: Caps) -> bytes:
    """All streams in it, one after the other. Never makes more than the caps allow and one step."""
    out, at = BytesIO(), 0
    try:
        while data[at:].strip(b"\0") if data.startswith(b"\0", at) else at < len(data):
            stream = make()
            while not stream.eof:
                fed = data[at : at + _FED_BYTES] if stream.needs_input else b""
                if stream.needs_input and not fed:
                    raise DocumentRefused("ARCHIVE_BROKEN", "It is cut off. Copy it again.")
                at += len(fed)
                out.write(stream.decompress(fed, _STEP_BYTES))
                members.check_sizes(len(data), out.tell(), caps)
            at -= len(stream.unused_data)
    except (zlib.error, lzma.LZMAError, OSError, EOFError):
        raise DocumentRefused("ARCHIVE_BROKEN", "It is damaged, or something stands after it. Pack it again.") from None
    return out.getvalue()  # without a copy


def _read_tar(data: bytes, caps: Caps) -> Read:
    taken = members.Members()
    count = 0
    try:
        with tarfile.open(fileobj=BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while entry := tar.next():
                count += 1
                members.check_count(count, caps)
                if not entry.isdir():
                    _take(data, entry, taken)
            after = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):
        raise DocumentRefused("ARCHIVE_BROKEN", "It is no TAR archive that can be read. Pack it again.") from None
    if data[after : after + _BLOCK_BYTES] != bytes(_BLOCK_BYTES):  # tarfile takes a damaged header for the end
        raise DocumentRefused("ARCHIVE_BROKEN", "It is cut off or damaged after some of its files. Copy it again.")
    return Read(PARSER, members=taken.found)


def _take(data: bytes, entry: tarfile.TarInfo, taken: members.Members) -> None:
    problem = taken.problem(entry.name)
    if entry.issym() or entry.islnk():
        problem = members.LINK
    elif not entry.isreg():
        problem = members.DEVICE
    elif entry.sparse is not None:  # it may claim any size
        problem = members.METHOD
    elif entry.size < 0:
        raise ValueError("a negative size")
    if problem:
        taken.leave_out(entry.name, problem)
    else:
        taken.add(entry.name, memoryview(data)[entry.offset_data : entry.offset_data + entry.size])


def _gzip_name(data: bytes) -> str:
    """What the header says that the file was called (RFC 1952), '' where it does not."""
    if not data.startswith(_GZIP) or len(data) < 10 or not data[3] & _GZIP_NAME:
        return ""
    at = 10
    if data[3] & _GZIP_EXTRA:
        at += 2 + int.from_bytes(data[10:12], "little")
    end = data.find(b"\0", at)
    return data[at:end].decode("utf-8", "surrogateescape") if end > at else ""


def _warm_documents() -> tuple[bytes, ...]:
    """One of each packing, and one that pax headers describe."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("wärm.txt")
        entry.size = len(b"Warm.\n")
        tar.addfile(entry, BytesIO(b"Warm.\n"))
    plain = out.getvalue()
    gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    packed = gzip.compress(plain) + gzip.flush()
    return plain, packed, lzma.compress(plain), bz2.compress(plain)


WARM_DOCUMENTS = _warm_documents()
