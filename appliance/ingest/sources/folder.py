"""Files of a folder, taken without being led astray: no links, no other file systems, no pipes or devices.

The bytes that are hashed are the bytes that are parsed: a file is copied once into a sealed anonymous file.
Source: openat2(2), memfd_create(2) and the seals of fcntl(2).
"""

import ctypes
import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from appliance.errors import DocumentRefused, InvalidArgument, NotFound, SourceGone
from appliance.ingest.memfd import seal
from appliance.ingest.sources import kernel
from appliance.ingest.sources.found import Found, printable
from appliance.ingest.sources.stalls import Beat, Calls
from appliance.types import Provenance

_OPENAT2 = 437
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CHUNK_BYTES = 1 << 20
MAX_FILES = 400_000  # and folders, of one folder and all below it

_REFUSALS = {
    errno.ELOOP: ("LINK", "It is a link; links are not followed."),
    errno.EXDEV: ("OTHER_DEVICE", "It lies on another file system than the folder."),
    errno.ENOENT: ("VANISHED", "It was gone before it was read."),
    errno.EACCES: ("UNREADABLE", "The daemon may not read it."),
    errno.ENXIO: ("NOT_A_FILE", "It is a pipe, a socket or a device."),
}
_GONE = frozenset({
    errno.ENODEV, errno.ENOMEDIUM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO,
    errno.ESHUTDOWN,
})  # fmt: skip


class Folder:
    """An absolute path of a folder, or of a single file, held open. Blocking. Raises InvalidArgument, NotFound.

    own: the box's own folder: neither it nor what lies below is ever read, by whatever path it is reached.
    """

    def __init__(self, path: str, own: Path) -> None:
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument.of("path", "must be absolute.")
        self.path, self._own = Path(path), os.stat(own)
        try:
            self._status = os.lstat(path)
            self._single = "" if stat.S_ISDIR(self._status.st_mode) else self.path.name
            top = self.path.parent if self._single else self.path
            self._fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"There is no file or folder {printable(path)} on this box.") from None
        except OSError as error:
            raise InvalidArgument.of("path", f"{printable(path)} cannot be opened: {error.strerror}.") from None
        if forbidden := self._forbidden():
            os.close(self._fd)
            raise InvalidArgument.of("path", f"{printable(path)} lies in {forbidden}.")

    @classmethod
    def of(cls, fd: int, path: str, own: Path) -> "Folder":
        """The folder that is open as `fd`, which it takes over; path: how people call it."""
        folder = cls.__new__(cls)
        folder.path, folder._own, folder._status = Path(path), os.stat(own), os.fstat(fd)
        folder._single, folder._fd = "", fd
        return folder

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    @property
    def top(self) -> str:
        """The folder that names are below, printable."""
        return printable(str(self.path.parent if self._single else self.path))

    @property
    def single(self) -> str:
        """The only name below, where a file was given, else ''."""
        return self._single

    def source(self, printable_name: str) -> str:
        """Where a file below came from, for a document's lineage."""
        return f"file://{self.top}/{printable_name}"

    def walk(self, beat: Beat = lambda: None) -> Iterator[Found]:
        """Every name below, folders excepted, by the order of the names' bytes; what cannot be read says why, and so do
        folders beyond MAX_FILES names. beat: called for each. Raises SourceGone.
        """
        if self._single:
            yield _found(self._single, self._status)
            return
        todo, left = [""], MAX_FILES
        while todo:
            name = todo.pop()
            try:
                children = self._children(name, left, beat)
            except DocumentRefused as refusal:
                yield Found(name or ".", refusal=refusal)
                continue
            left -= len(children)
            folders = []
            for child, status in children:
                if stat.S_ISDIR(status.st_mode):
                    folders.append(child)
                else:
                    yield _found(child, status)
            todo += reversed(folders)

    def open(self, name: str) -> int:
        """A descriptor of a regular file below. Raises DocumentRefused, SourceGone."""
        fd = self._open(name, _OPEN_FLAGS)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _refused(errno.ENXIO)
        return fd

    def _children(self, name: str, most: int, beat: Beat) -> list[tuple[str, os.stat_result]]:
        found: list[tuple[str, os.stat_result]] = []
        fd = self._open(name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.path.samestat(os.fstat(fd), self._own):
                raise DocumentRefused("OWN_DATA", "It is the box's own data directory.")
            with os.scandir(fd) as entries:
                for item in entries:
                    beat()
                    if len(found) == most:
                        raise DocumentRefused("TOO_MANY_FILES", f"There are more than {MAX_FILES} files and folders.")
                    with suppress(FileNotFoundError):  # it went while the others were listed
                        found.append((os.path.join(name, item.name), item.stat(follow_symlinks=False)))
        except OSError as error:
            raise _refused(error.errno) from None
        finally:
            os.close(fd)
        return sorted(found, key=lambda child: os.fsencode(child[0]))

    def _forbidden(self) -> str:
        """What is never read and lies around it, '' for nothing."""
        path = Path(os.readlink(f"/proc/self/fd/{self._fd}"))  # what is open, whatever links led there
        if path.parts[1:2] in (("proc",), ("sys",)):
            return "what the kernel tells of this box, which is no document"
        above = filter(os.path.exists, (path, *path.parents))
        inside = any(os.path.samestat(os.stat(folder), self._own) for folder in above)
        return "the box's own data directory" if inside else ""

    def _open(self, name: str, flags: int) -> int:
        how = struct.pack("=QQQ", flags, 0, _RESOLVE)
        try:
            return kernel.call(_OPENAT2, self._fd, os.fsencode(name), how, ctypes.c_size_t(len(how)))
        except OSError as error:
            raise _refused(error.errno) from None


class OpenFolder:
    """A folder as an open source (`OpenSource`). answers: whether the device below it, if any, is still there. closed:
    called once it is.
    """

    def __init__(
        self,
        folder: Folder,
        provenance: Provenance,
        calls: Calls,
        answers: Callable[[], bool] = lambda: True,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.provenance = provenance
        self._folder, self._calls, self._answers, self._closed = folder, calls, answers, closed

    async def files(self) -> tuple[Found, ...]:
        """As OpenSource."""

        def walk(beat: Beat) -> tuple[Found, ...]:
            return tuple(self._folder.walk(beat))

        found = await self._calls.run(walk)
        self._require_answer()
        return found

    async def copy(self, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        """As OpenSource."""
        mine = os.dup(target)  # a thread that outlives this call writes to the file, whatever its number is then

        def take(beat: Beat) -> tuple[str, int]:
            fd = self._folder.open(found.name)
            try:
                return snapshot(fd, mine, max_bytes, beat)
            finally:
                os.close(fd)

        try:
            return await self._calls.run(take, release=lambda: os.close(mine))
        except DocumentRefused:
            self._require_answer()
            raise

    async def close(self) -> None:
        """As OpenSource."""

        def release() -> None:
            self._folder.close()
            self._closed()

        self._calls.close(release)

    def _require_answer(self) -> None:
        if not self._answers():
            raise SourceGone("The stick was pulled while it was read.")


def _found(name: str, status: os.stat_result) -> Found:
    if stat.S_ISREG(status.st_mode):
        return Found(name, status.st_size, status.st_mtime_ns)
    return Found(name, refusal=_refusal(errno.ELOOP if stat.S_ISLNK(status.st_mode) else errno.ENXIO))


def snapshot(source: int, target: int, max_bytes: int, beat: Beat = lambda: None) -> tuple[str, int]:
    """Copy the open file into the empty memfd `target` and seal it; sha256 in hex and size of what it holds.

    beat: called after each piece. Raises DocumentRefused: TOO_LARGE, CHANGED, UNREADABLE; SourceGone.
    """
    before = os.fstat(source)
    if before.st_size > max_bytes:
        raise too_large(max_bytes)
    digest, size = hashlib.sha256(), 0
    try:
        while chunk := os.read(source, _CHUNK_BYTES):
            beat()
            size += len(chunk)
            if size > max_bytes:
                raise too_large(max_bytes)
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(target, rest) :]
    except OSError as error:
        raise _refused(error.errno) from None
    after = os.fstat(source)
    if (size, after.st_mtime_ns, after.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns):
        raise DocumentRefused("CHANGED", "It was changed while it was read; ingest it again.")
    seal(target)
    return digest.hexdigest(), size


def too_large(max_bytes: int) -> DocumentRefused:
    """The refusal of a file of more bytes."""
    return DocumentRefused("TOO_LARGE", f"It has more than {max_bytes >> 20} MiB (`document_max_mib`).")


def _refused(code: int | None) -> DocumentRefused | SourceGone:
    if code in _GONE:
        return SourceGone(f"The source does not answer: {os.strerror(code or errno.EIO)}.")
    return _refusal(code)


def _refusal(code: int | None) -> DocumentRefused:
    reason, message = _REFUSALS.get(code or 0, ("UNREADABLE", f"It cannot be read: {os.strerror(code or errno.EIO)}."))
    return DocumentRefused(reason, message)
