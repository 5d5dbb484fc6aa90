"""Files of a folder, taken without being led astray: no links, no other file systems, no pipes or devices.

The bytes that are hashed are the bytes that are parsed: a file is copied once into a sealed anonymous file.
Source: openat2(2), memfd_create(2) and the seals of fcntl(2).
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DocumentRefused, InvalidArgument, NotFound

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_OPENAT2 = 437
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_CHUNK_BYTES = 1 << 20

_REFUSALS = {
    errno.ELOOP: ("LINK", "It is a link; links are not followed."),
    errno.EXDEV: ("OTHER_DEVICE", "It lies on another file system than the folder."),
    errno.ENOENT: ("VANISHED", "It was gone before it was read."),
    errno.EACCES: ("UNREADABLE", "The daemon may not read it."),
    errno.ENXIO: ("NOT_A_FILE", "It is a pipe, a socket or a device."),
}


@dataclass(frozen=True, slots=True)
class Found:
    """One name below a folder. refusal: why it is no file to read, where that shows already."""

    name: str
    refusal: DocumentRefused | None = None


class Folder:
    """An absolute path of a folder, or of a single file, held open. Blocking. Raises InvalidArgument, NotFound.

    own: the box's own folder: neither it nor what lies below is ever read, by whatever path it is reached.
    """

    def __init__(self, path: str, own: Path) -> None:
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument.of("path", "must be absolute.")
        self.path, self._own = Path(path), os.stat(own)
        try:
            self._mode = os.lstat(path).st_mode
            self._single = "" if stat.S_ISDIR(self._mode) else self.path.name
            top = self.path.parent if self._single else self.path
            self._fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"There is no file or folder {printable(path)} on this box.") from None
        except OSError as error:
            raise InvalidArgument.of("path", f"{printable(path)} cannot be opened: {error.strerror}.") from None
        if self._is_inside_own():
            os.close(self._fd)
            raise InvalidArgument.of("path", f"{printable(path)} lies in the box's own data directory.")

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def source(self, printable_name: str) -> str:
        """Where a file below came from, for a document's lineage."""
        return f"file://{printable(str(self.path.parent if self._single else self.path))}/{printable_name}"

    def walk(self) -> Iterator[Found]:
        """Every name below, folders excepted, by the order of the names' bytes; what cannot be read says why."""
        if self._single:
            yield _found(self._single, self._mode)
            return
        todo = [""]
        while todo:
            name = todo.pop()
            try:
                children = self._children(name)
            except DocumentRefused as refusal:
                yield Found(name or ".", refusal)
                continue
            folders = []
            for child, mode in children:
                if stat.S_ISDIR(mode):
                    folders.append(child)
                else:
                    yield _found(child, mode)
            todo += reversed(folders)

    def open(self, name: str) -> int:
        """A descriptor of a regular file below. Raises DocumentRefused."""
        fd = self._open(name, _OPEN_FLAGS)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _refused(errno.ENXIO)
        return fd

    def _children(self, name: str) -> list[tuple[str, int]]:
        fd = self._open(name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.path.samestat(os.fstat(fd), self._own):
                raise DocumentRefused("OWN_DATA", "It is the box's own data directory.")
            with os.scandir(fd) as entries:
                found = [(os.path.join(name, item.name), item.stat(follow_symlinks=False).st_mode) for item in entries]
        except OSError as error:
            raise _refused(error.errno) from None
        finally:
            os.close(fd)
        return sorted(found, key=lambda child: os.fsencode(child[0]))

    def _is_inside_own(self) -> bool:
        path = Path(os.readlink(f"/proc/self/fd/{self._fd}"))  # what is open, whatever links led there
        above = filter(os.path.exists, (path, *path.parents))
        return any(os.path.samestat(os.stat(folder), self._own) for folder in above)

    def _open(self, name: str, flags: int) -> int:
        how = struct.pack("=QQQ", flags, 0, _RESOLVE)
        fd = int(_libc.syscall(_OPENAT2, self._fd, os.fsencode(name), how, ctypes.c_size_t(len(how))))
        if fd < 0:
            raise _refused(ctypes.get_errno())
        return fd


def _found(name: str, mode: int) -> Found:
    if stat.S_ISREG(mode):
        return Found(name)
    return Found(name, _refused(errno.ELOOP if stat.S_ISLNK(mode) else errno.ENXIO))


def snapshot(source: int, target: int, max_bytes: int) -> tuple[str, int]:
    """Copy the open file into the empty memfd `target` and seal it; sha256 in hex and size of what it holds.

    Raises DocumentRefused: TOO_LARGE, CHANGED, UNREADABLE.
    """
    before = os.fstat(source)
    if before.st_size > max_bytes:
        raise _too_large(max_bytes)
    digest, size = hashlib.sha256(), 0
    try:
        while chunk := os.read(source, _CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(target, rest) :]
    except OSError as error:
        raise _refused(error.errno) from None
    after = os.fstat(source)
    if (size, after.st_mtime_ns, after.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns):
        raise DocumentRefused("CHANGED", "It was changed while it was read; ingest it again.")
    fcntl.fcntl(target, fcntl.F_ADD_SEALS, _SEALS)
    return digest.hexdigest(), size


def new_memfd() -> int:
    """An empty anonymous file that can be sealed; the caller closes it."""
    return os.memfd_create("document", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def printable(name: str) -> str:
    """A name that deceives no reader: control, bidirectional and undecodable parts and backslashes are escaped."""
    return "".join(char if char.isprintable() and char != "\\" else _escaped(char) for char in name)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is no UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def _refused(code: int | None) -> DocumentRefused:
    reason, message = _REFUSALS.get(code or 0, ("UNREADABLE", f"It cannot be read: {os.strerror(code or errno.EIO)}."))
    return DocumentRefused(reason, message)


def _too_large(max_bytes: int) -> DocumentRefused:
    return DocumentRefused("TOO_LARGE", f"It has more than {max_bytes >> 20} MiB (`document_max_mib`).")
