"""Files of a folder, taken without being led astray: no links, no other file systems, no pipes or devices.

The bytes that are hashed are the bytes that are parsed: a file is copied once into a sealed anonymous file.
Source: openat2(2), memfd_create(2) and the seals of fcntl(2).
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from appliance.errors import DocumentRefused, SourceGone
from appliance.ingest.memfd import seal
from appliance.ingest.sources import kernel
from appliance.ingest.sources.found import Found, printable
from appliance.ingest.sources.stalls import Beat, Calls
from appliance.types import Provenance

_RESOLVE = kernel.NO_XDEV | kernel.NO_MAGICLINKS | kernel.NO_SYMLINKS | kernel.BENEATH
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
    """A folder, or a single file in one, held open. Blocking.

    own: the box's own folder: where it lies below, neither it nor what is in it is ever read.
    """

    def __init__(self, fd: int, path: Path, own: Path, single: str = "") -> None:
        """fd: of the folder, taken over; path: how people call it. single: the only name in it that is looked at."""
        self._fd, self._path, self._own, self._single = fd, path, os.stat(own), single

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
        return printable(str(self._path))

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
            yield self._only()
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

    def _only(self) -> Found:
        try:
            return _found(self._single, os.stat(self._single, dir_fd=self._fd, follow_symlinks=False))
        except OSError as error:
            refusal = _refused(error.errno)
            if isinstance(refusal, SourceGone):
                raise refusal from None
            return Found(self._single, refusal=refusal)

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

    def _open(self, name: str, flags: int) -> int:
        try:
            return kernel.openat2(self._fd, os.fsencode(name), flags, _RESOLVE)
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
                return snapshot(fd, mine, max_bytes, beat, found if found.changed_ns else None)
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
        return Found(name, status.st_size, status.st_mtime_ns, changed_ns=status.st_ctime_ns)
    return Found(name, refusal=_refusal(errno.ELOOP if stat.S_ISLNK(status.st_mode) else errno.ENXIO))


def snapshot(
    source: int, target: int, max_bytes: int, beat: Beat = lambda: None, found: Found | None = None
) -> tuple[str, int]:
    """Copy the open file into the empty memfd `target` and seal it; sha256 in hex and size of what it holds.

    beat: called after each piece. found: as it must be; None: as it is when this begins. Raises DocumentRefused:
    TOO_LARGE, CHANGED, UNREADABLE; SourceGone.
    """
    before = os.fstat(source)
    if found and _found(found.name, before).stamp != found.stamp:
        raise DocumentRefused("CHANGED", "It is another than was seen before; ingest it again.")
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
