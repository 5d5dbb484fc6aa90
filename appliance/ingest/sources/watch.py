"""Folders, shares and sticks that are watched: what is whole in them is handed on, once.

By polling, for shares tell of no change. A file is whole when its stamp (size and times) stayed the same for
`settle_polls` polls; at once where a file of the same name and ".ready" lies beside it, where a trusted signer's
manifest lists it, or on a stick, which nobody else writes. What has a name like UNFINISHED, or lies below one, is never
looked at.

Some servers set a file's time when it is closed, and its size before it is written: so a file that is new is also read
once, at the first poll that finds its stamp unchanged, and what is copied when it is whole must have the same sha256. A
file costs two readings in all, at most HASHED_BYTES of new ones a look. No inode number is compared: some shares give a
file another one each time. Who replaces a file changes the time of its last change, which cannot be set.
"""

import asyncio
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

import structlog

from appliance.errors import ApplianceError, DocumentRefused
from appliance.ingest import durable
from appliance.ingest.memfd import new_memfd
from appliance.ingest.sources.book import Watched
from appliance.ingest.sources.devices import Devices
from appliance.ingest.sources.found import Found, OpenSource
from appliance.ingest.sources.registry import Sources
from appliance.types import Source, SourceState, Watch

READY = ".ready"
UNFINISHED = re.compile(
    r"\..*|~\$.*|.*\.(part|partial|filepart|tmp|crdownload|download)|System Volume Information|\$RECYCLE\.BIN",
    re.IGNORECASE | re.DOTALL,
)
MISSING = "MISSING"
SLACK_FILES = 1000  # of a list of what was taken, beyond twice what it must say, before it is written anew
HASHED_BYTES, READ_AT_ONCE = 1 << 30, 4
_DIGEST_BYTES = 16

Take = Callable[[str, Source, Watch, tuple[Found, ...]], Awaitable[None]]
"""Takes whole files of a tenant's source; they count as taken once it returns. It may raise any ApplianceError."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Seen:
    """How a file was at the last poll, and at how many it was so. sha256: of what was read of it then; '' where it need
    not or cannot be read, None: it was not read yet.
    """

    stamp: str
    polls: int
    sha256: str | None = None


def settle(seen: Mapping[str, Seen], found: Iterable[Found], settle_polls: int) -> tuple[dict[str, Seen], set[str]]:
    """What is remembered of a poll, and the names of the files that are whole by now. Pure."""
    now = {one.name: one for one in found}
    marked = {name.removesuffix(READY) for name in now if name.endswith(READY)}
    kept: dict[str, Seen] = {}
    whole: set[str] = set()
    for name, one in now.items():
        if not is_finished(name) or (one.refusal and one.refusal.file_reason == MISSING):
            continue
        before = seen.get(name, Seen("", 0))
        now_seen = replace(before, polls=before.polls + 1) if before.stamp == one.stamp else Seen(one.stamp, 1)
        is_told = one.refusal is None and bool(name in marked or one.signer)
        kept[name] = replace(now_seen, sha256="") if is_told or one.refusal else now_seen
        if is_told or 0 < settle_polls < now_seen.polls:
            whole.add(name)
    return kept, whole


def is_finished(name: str) -> bool:
    """Whether a name is of a file to look at: no marker, none that is hidden or still written."""
    return not name.endswith(READY) and not any(UNFINISHED.fullmatch(part) for part in PurePosixPath(name).parts)


class Taken:
    """What was taken from one watched place, so that a restart does not take it again, in a file that tells no name:

        16 bytes a file: of HMAC-SHA256 (RFC 2104) over its name and stamp

    Only a shortcut: a file that is forgotten is taken again, and found to be known by its hash. Blocking.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        """secret: from which the place's key follows; it lies elsewhere."""
        durable.make_directory(path.parent)
        content = path.read_bytes() if path.exists() else b""
        self._path, self._is_there = path, path.exists()
        self._key = hmac.digest(secret, path.name.encode(), "sha256")
        whole = range(0, len(content) - _DIGEST_BYTES + 1, _DIGEST_BYTES)  # not what a crash cut
        self._digests = {content[place : place + _DIGEST_BYTES] for place in whole}
        self._count = len(whole)

    def fresh(self, found: Iterable[Found]) -> tuple[Found, ...]:
        """Those that were not taken as they are now."""
        return tuple(one for one in found if self._digest(one) not in self._digests)

    def add(self, found: Iterable[Found], present: Iterable[Found]) -> None:
        """Note files as taken, and forget those that are not `present` any more. Raises OSError."""
        new = {self._digest(one) for one in found}
        self._digests = (self._digests | new) & {self._digest(one) for one in present}
        if not self._is_there or self._count + len(new) > 2 * len(self._digests) + SLACK_FILES:
            anew = self._path.with_suffix(".new")
            _write(anew, 0, b"".join(self._digests))
            os.replace(anew, self._path)
            self._is_there, self._count = True, len(self._digests)
        else:
            _write(self._path, self._count * _DIGEST_BYTES, b"".join(new))
            self._count += len(new)

    def _digest(self, found: Found) -> bytes:
        words = json.dumps((found.name, found.stamp)).encode()
        return hmac.digest(self._key, words, "sha256")[:_DIGEST_BYTES]


def _write(path: Path, offset: int, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fdatasync(file.fileno())


class Watcher:
    """Looks at every watched place of every tenant. Belongs to one event loop."""

    def __init__(
        self, sources: Sources, devices: Devices, folder: Path, secret: bytes, poll_seconds: float, max_bytes: int
    ) -> None:
        """folder: where is kept what was taken; secret: 32 bytes, by which that tells no name. max_bytes: of a file
        that is read; a larger one is handed on to be refused.
        """
        self._sources, self._devices, self._max_bytes = sources, devices, max_bytes
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._folder, self._secret, self._poll_seconds = folder, secret, poll_seconds
        self._seen: dict[str, dict[str, Seen]] = {}
        self._taken: dict[str, Taken] = {}
        self._done: set[str] = set()  # sticks that need no second look until they were pulled
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._faults: dict[str, str] = {}  # why the last look failed, so that it is told once
        self._problems: dict[str, tuple[str, str, str]] = {}

    async def run(self, take: Take) -> None:
        """Look, and look again when the time has come or a device was plugged in, until cancelled."""
        try:
            while True:
                self.look(take)
                await self._devices.changed(self._poll_seconds)
        finally:
            for task in self._looking.values():
                task.cancel()
            await asyncio.gather(*self._looking.values(), return_exceptions=True)

    def problems(self) -> dict[tuple[str, str], str]:
        """By tenant and name, why a watched place could not be looked at the last time."""
        return {(tenant, name): problem for tenant, name, problem in self._problems.values()}

    def look(self, take: Take) -> tuple[asyncio.Task[None], ...]:
        """Begin a look at every place where none is under way: one that hangs holds up no other. Those that run now."""
        self._looking = {key: task for key, task in self._looking.items() if not task.done()}
        known = set()
        for tenant, places in self._sources.book.watches().items():
            for watched in places:
                key = _key(tenant, watched)
                known.add(key)
                if key not in self._looking:
                    self._looking[key] = asyncio.create_task(self._look(key, tenant, watched, take))
        for key in self._seen.keys() - known:
            del self._seen[key]
        self._problems = {key: problem for key, problem in self._problems.items() if key in known}
        return tuple(self._looking.values())

    async def _look(self, key: str, tenant: str, watched: Watched, take: Take) -> None:
        fault = problem = ""
        try:
            await self._take_whole(key, tenant, watched, take)
        except ApplianceError as error:
            fault, problem = error.reason, str(error)
        except OSError as error:
            fault = problem = f"what was taken cannot be noted: {error.strerror}"
        except Exception as error:
            fault = problem = type(error).__name__
            log.exception("sources.watch_failed", source=watched.id, error=fault)
        if fault and fault != self._faults.get(key):
            log.warning("sources.not_watched", source=watched.id, reason=fault)
        self._faults[key] = fault
        self._problems.pop(key, None)
        if problem:
            self._problems[key] = (tenant, f"sources/{watched.id}", problem)

    async def _take_whole(self, key: str, tenant: str, watched: Watched, take: Take) -> None:
        is_stick = not watched.place.startswith("/")
        if is_stick and watched.id not in {device.id for device in await asyncio.to_thread(self._devices.list)}:
            return self._done.discard(key)
        if key in self._done:
            return None
        opened = await self._sources.open(tenant, f"sources/{watched.id}")
        try:
            found = await opened.files()
            new, unread = await asyncio.to_thread(self._fresh, key, watched.watch, is_stick, found)
            seen = self._seen.get(key, {})
            await self._read(opened, unread, seen)
        finally:
            await opened.close()
        if not is_stick:
            new = tuple(_as_read(new, seen))
        if new:
            source = Source(watched.id, opened.provenance, SourceState.READY, watch=watched.watch)
            await take(tenant, source, watched.watch, new)
            await asyncio.to_thread(self._taken[key].add, new, found)
        if is_stick:
            self._done.add(key)
        return None

    def _fresh(
        self, key: str, watch: Watch, is_stick: bool, found: Iterable[Found]
    ) -> tuple[tuple[Found, ...], tuple[Found, ...]]:
        """What was not taken yet and has settled; and what is to be read, for it stayed the same. Blocking: for many
        files it takes seconds.
        """
        unread = set[str]()
        if is_stick:
            settled = {one.name for one in found if is_finished(one.name)}
        else:
            self._seen[key], settled = settle(self._seen.get(key, {}), found, watch.settle_polls)
            if watch.settle_polls:
                unread = {name for name, one in self._seen[key].items() if one.polls > 1 and one.sha256 is None}
        if key not in self._taken:
            self._taken[key] = Taken(self._folder / key, self._secret)
        fresh = self._taken[key].fresh(one for one in found if one.name in settled or one.name in unread)
        return tuple(one for one in fresh if one.name in settled), tuple(one for one in fresh if one.name in unread)

    async def _read(self, source: OpenSource, files: Iterable[Found], seen: dict[str, Seen]) -> None:
        """Note the digests of files, of as many as a look may read. Raises SourceGone."""
        left_bytes = HASHED_BYTES
        for one in files:
            if left_bytes <= 0:
                return
            async with self._reading:
                memfd = new_memfd()
                try:
                    sha256, size_bytes = await source.copy(one, memfd, self._max_bytes)
                    seen[one.name] = replace(seen[one.name], sha256=sha256)
                    left_bytes -= size_bytes
                except DocumentRefused as refusal:
                    if refusal.file_reason in ("CHANGED", "VANISHED"):
                        del seen[one.name]
                    else:  # who takes it is told the same
                        seen[one.name] = replace(seen[one.name], sha256="")
                finally:
                    os.close(memfd)


def _as_read(settled: Iterable[Found], seen: Mapping[str, Seen]) -> Iterator[Found]:
    """Those that need not be read or were, with what was read of them."""
    for one in settled:
        now = seen.get(one.name)
        if now and now.sha256 is not None:
            yield replace(one, sha256=now.sha256)


def _key(tenant: str, watched: Watched) -> str:
    """Of a place and where its files go: with another collection all is taken anew."""
    words = json.dumps((tenant, watched.id, watched.watch.collection)).encode()
    return sha256(words).hexdigest()[:32]
