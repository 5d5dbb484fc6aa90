"""Archives and messages that break rules, made in memory and small; no bomb lies on a disk."""

import base64
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping

LOCAL, CENTRAL, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")


def zip_of(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def raw_zip(
    entries: Iterable[tuple[bytes, bytes]], *, modes: Mapping[bytes, int] | None = None, flags: int = 0
) -> bytes:
    """Names and contents as they are, stored; modes: of Unix, by name."""
    body, directory, count = bytearray(), bytearray(), 0
    for name, content in entries:
        sizes = (zlib.crc32(content), len(content), len(content), len(name))
        attributes = (modes or {}).get(name, 0) << 16
        directory += (
            CENTRAL.pack(b"PK\1\2", 3 << 8 | 20, 20, flags, 0, 0, 0, *sizes, 0, 0, 0, 0, attributes, len(body)) + name
        )
        body += LOCAL.pack(b"PK\3\4", 20, flags, 0, 0, 0, *sizes, 0) + name + content
        count += 1
    count = min(count, 0xFFFF)
    return bytes(body + directory + END.pack(b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0))


def million_entries() -> bytes:
    """A directory that names 10^6 empty files, all of which lie in one place."""
    body = LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    entry = CENTRAL.pack(b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    directory = entry * 1_000_000
    start = len(body)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    end = END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0xFFFFFFFF, 0)
    return body + directory + end64 + locator + end


def flat_bomb(mebibytes: int = 64) -> bytes:
    return zip_of({"zeros.txt": bytes(mebibytes << 20)})


def overlapping_bomb(copies: int = 50) -> bytes:
    """Many names for one compressed file, as in Fifield's construction without its quoting."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = bytes(10_000)
    packed = packer.compress(content) + packer.flush()
    sizes = (zlib.crc32(content), len(packed), len(content), 1)
    body = LOCAL.pack(b"PK\3\4", 20, 0, 8, 0, 0, *sizes, 0) + b"x" + packed
    entry = CENTRAL.pack(b"PK\1\2", 20, 20, 0, 8, 0, 0, *sizes, 0, 0, 0, 0, 0, 0) + b"x"
    return body + entry * copies + END.pack(b"PK\5\6", 0, 0, copies, copies, len(entry) * copies, len(body), 0)


def quoting_bomb() -> bytes:
    """Fifield's full construction of two: the first file's data quotes the second one's local header."""
    second = b"second" * 20
    local = LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(second), len(second), len(second), 1, 0) + b"b" + second
    quoted = b"\0" + struct.pack("<HH", len(local), ~len(local) & 0xFFFF) + local
    whole = quoted + b"\1\0\0\xff\xff"
    sizes = (zlib.crc32(local), len(whole), len(local), 1)
    first = LOCAL.pack(b"PK\3\4", 20, 0, 8, 0, 0, *sizes, 0) + b"a" + whole
    inside = LOCAL.size + 1 + 5
    directory = CENTRAL.pack(b"PK\1\2", 20, 20, 0, 8, 0, 0, *sizes, 0, 0, 0, 0, 0, 0) + b"a"
    own = (zlib.crc32(second), len(second), len(second), 1)
    directory += CENTRAL.pack(b"PK\1\2", 20, 20, 0, 0, 0, 0, *own, 0, 0, 0, 0, 0, inside) + b"b"
    return first + directory + END.pack(b"PK\5\6", 0, 0, 2, 2, len(directory), len(first), 0)


def patched(data: bytes, magic: bytes, offset: int, value: bytes) -> bytes:
    """With other bytes at an offset from the last place of a magic."""
    at = data.rindex(magic) + offset
    return data[:at] + value + data[at + len(value) :]


def tar_of(
    entries: Iterable[tuple[str, bytes]], mode: str = "w", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            entry.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def mail(headers: str, body: bytes | str = "") -> bytes:
    text = headers.strip().replace("\n", "\r\n").encode() + b"\r\n\r\n"
    return text + (body.replace("\n", "\r\n").encode() if isinstance(body, str) else body)


def multipart(*parts: str, kind: str = "mixed") -> str:
    """The headers and the body of a part that has parts; each one's headers, an empty line and its body."""
    boundary = f"b{zlib.crc32(''.join(parts).encode()):x}"
    inside = "".join(f"--{boundary}\n{part}\n" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\n\n{inside}--{boundary}--\n'


def attachment(name: str, content: bytes, kind: str = "application/octet-stream") -> str:
    return (
        f'Content-Type: {kind}\nContent-Disposition: attachment; filename="{name}"\n'
        f"Content-Transfer-Encoding: base64\n\n{base64.encodebytes(content).decode()}"
    )


def nested_mail(depth: int) -> str:
    """Parts in parts."""
    return multipart(nested_mail(depth - 1)) if depth else "Content-Type: text/plain\n\ndeep"
