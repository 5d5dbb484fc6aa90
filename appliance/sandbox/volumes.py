"""Volumes of sticks and images, read in locked children and never mounted (ports.Volumes)."""

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import astuple
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from itertools import islice

from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.sandbox.children import ZYGOTE, Children
from appliance.sandbox.listing import Frames, Listing, Malformed
from appliance.sandbox.lockdown import Limits
from appliance.types import Entry, Volume, Walls

MIB = 1 << 20
SLOW_STICK = 10  # times the wall time of a document: a file comes as slowly as its stick gives it
SECTOR_BYTES = 512  # no file system gives a file in shorter pieces, but for its last
TRIES = 2  # of a child whose zygote died
SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE


class LockedVolumes:
    """Reads volumes in locked children (ports.Volumes).

    reader: the dotted name of a module as `services.volumes.Volumes` has it. zygote: the command that starts one.
    """

    def __init__(self, config: Config, reader: str, zygote: Sequence[str] = ZYGOTE) -> None:
        self._wall_seconds = SLOW_STICK * config.parse_wall_seconds
        limits = Limits(config.parse_memory_mib * MIB, config.parse_cpu_seconds)
        self._children = Children("appliance.sandbox.services.volumes", {"reader": reader}, limits, 2, zygote)

    @property
    def fault(self) -> str:
        """Why no stick can be read; empty while all is well."""
        return self._children.fault

    @property
    def walls(self) -> Walls | None:
        """What the running zygote's lock is made of, as last proven."""
        return self._children.walls

    async def start(self) -> None:
        """Have a proven zygote. Raises SandboxUnavailable, at once where the last start failed a moment ago."""
        await self._children.start()

    async def prove(self) -> None:
        """Try the walls anew. Raises SandboxUnavailable where one fell, and nothing is read until they are proven."""
        await self._children.prove()

    async def close(self) -> None:
        """Kill the zygote and its children."""
        await self._children.close()

    async def list(self, fd: int) -> tuple[Entry, ...]:
        """As ports.Volumes. Raises DocumentRefused also for a child that ended badly or gave another answer."""
        for _ in range(TRIES):
            listing, frames = Listing(), Frames()

            async def take(piece: bytes, listing: Listing = listing, frames: Frames = frames) -> None:
                await asyncio.to_thread(lambda: listing.add(frames.feed(piece)))

            if await self._answered(fd, {"list": True}, take, frames):
                return await asyncio.to_thread(_entries, listing)
        raise _crashed()

    async def read(self, fd: int, entry: Entry, target: int, max_bytes: int) -> tuple[str, int]:
        """As ports.Volumes. What was written into `target` before an error is to be thrown away with it."""
        if entry.size_bytes > max_bytes:
            raise DocumentRefused("TOO_LARGE", f"It has {entry.size_bytes} bytes; {max_bytes} are allowed.")
        volume, *file = astuple(entry)
        for _ in range(TRIES):
            copy, frames = _Copy(target, entry.size_bytes), Frames()

            # in no thread: one would outlive a cancelled call, and write to whatever has the number `target` by then
            async def take(piece: bytes, copy: _Copy = copy, frames: Frames = frames) -> None:
                copy.add(frames.feed(piece))

            if await self._answered(fd, {"read": [volume, [entry.volume.number, *file]]}, take, frames):
                return copy.sealed()
        raise _crashed()

    async def _answered(
        self, fd: int, request: object, take: Callable[[bytes], Awaitable[None]], frames: Frames
    ) -> bool:
        """Give one child's answer to `take`; whether it is whole, False where the zygote died of itself."""
        try:
            end = await self._children.run(fd, json.dumps(request), take, self._wall_seconds)
            if end is None:
                return False
            self._children.judge(end)
            frames.finish()
        except Malformed as error:
            raise DocumentRefused("PARSER_FAILED", f"The volume's reader gave {error}.") from None
        return True


class _Copy:
    """A file's bytes on their way into a memfd, which is empty at first."""

    def __init__(self, target: int, size_bytes: int) -> None:
        """size_bytes: just so many must come."""
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        self._target, self._size_bytes = target, size_bytes
        self._digest, self._written = hashlib.sha256(), 0
        self._frames_left = size_bytes // SECTOR_BYTES + 2

    def add(self, frames: Iterable[bytes]) -> None:
        """Raises DocumentRefused (CHANGED), Malformed for crumbs, which would cost the daemon more than the child."""
        pieces = tuple(islice(frames, self._frames_left + 1))
        self._frames_left -= len(pieces)
        if self._frames_left < 0:
            raise Malformed("a file in crumbs")
        rest = memoryview(b"".join(pieces))
        self._written += len(rest)
        if self._written > self._size_bytes:
            raise DocumentRefused("CHANGED", "It gives more bytes than its size says.")
        self._digest.update(rest)
        while rest:
            rest = rest[os.write(self._target, rest) :]

    def sealed(self) -> tuple[str, int]:
        """Its sha256 in hex and its size; nobody changes it any more. Raises DocumentRefused (CHANGED)."""
        if self._written != self._size_bytes:
            raise DocumentRefused("CHANGED", "It gives fewer bytes than its size says.")
        fcntl(self._target, F_ADD_SEALS, SEALS)
        return self._digest.hexdigest(), self._written


def _crashed() -> DocumentRefused:
    return DocumentRefused("CRASHED", "Reading the volume took the whole reader down.")


def _entries(listing: Listing) -> tuple[Entry, ...]:
    """A volume of which there are no files has an entry without a path."""
    volumes = [Volume(*row) for row in listing.volumes]
    files: list[list[Entry]] = [[] for _ in volumes]
    for number, path, size_bytes, modified_ns, cluster, contiguous, reason, detail in listing.files:
        entry = Entry(volumes[number], path, size_bytes, modified_ns, cluster, contiguous, reason, detail)
        files[number].append(entry)
    bare = ((Entry(volume, "", reason=volume.reason, detail=volume.detail),) for volume in volumes)
    return tuple(entry for found, alone in zip(files, bare, strict=True) for entry in found or alone)
