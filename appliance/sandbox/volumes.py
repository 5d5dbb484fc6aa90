"""Volumes of sticks and images, read in locked children and never mounted (ports.Volumes)."""

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl

from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.sandbox.children import ZYGOTE, Children
from appliance.sandbox.listing import Frames, Listing, Malformed
from appliance.sandbox.lockdown import Limits
from appliance.types import Entry, Volume, Walls

MIB = 1 << 20
SLOW_STICK = 10  # times the wall time of a document: a file comes as slowly as its stick gives it
SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE


class LockedVolumes:
    """Reads volumes in locked children (ports.Volumes). The zygote starts when the first stick is opened.

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
        """What the running zygote's lock is made of, as last proven; None before the first stick."""
        return self._children.walls

    async def prove(self) -> None:
        """Try the walls anew, if there are any. Raises SandboxUnavailable where one fell."""
        await self._children.prove()

    async def close(self) -> None:
        """Kill the zygote and its children."""
        await self._children.close()

    async def list(self, fd: int) -> tuple[Entry, ...]:
        """As ports.Volumes. Raises DocumentRefused also for a child that ended badly or gave another answer."""
        listing = Listing()

        async def take(rows: Sequence[bytes]) -> None:
            await asyncio.to_thread(listing.add, rows)

        await self._ask(fd, {"list": True}, take)
        return await asyncio.to_thread(_entries, listing)

    async def read(self, fd: int, entry: Entry, target: int, max_bytes: int) -> tuple[str, int]:
        """As ports.Volumes. What was written into `target` before an error is to be thrown away with it."""
        if entry.size_bytes > max_bytes:
            raise DocumentRefused("TOO_LARGE", f"It has {entry.size_bytes} bytes; {max_bytes} are allowed.")
        digest, size = hashlib.sha256(), 0

        def write(pieces: Sequence[bytes]) -> None:
            nonlocal size
            for piece in pieces:
                size += len(piece)
                if size > entry.size_bytes:
                    raise DocumentRefused("CHANGED", "It gives more bytes than its size says.")
                digest.update(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(target, rest) :]

        async def take(pieces: Sequence[bytes]) -> None:
            await asyncio.to_thread(write, pieces)

        volume, *file = astuple(entry)
        await self._ask(fd, {"read": [volume, [entry.volume.number, *file]]}, take)
        if size != entry.size_bytes:
            raise DocumentRefused("CHANGED", "It gives fewer bytes than its size says.")
        fcntl(target, F_ADD_SEALS, SEALS)
        return digest.hexdigest(), size

    async def _ask(self, fd: int, request: object, take: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        """Give the frames of one child's answer to `take`."""
        frames = Frames()

        async def feed(piece: bytes) -> None:
            await take(tuple(frames.feed(piece)))

        try:
            end = await self._children.run(fd, json.dumps(request), feed, self._wall_seconds)
            if end is None:
                raise DocumentRefused("CRASHED", "Reading the volume took the whole reader down.")
            self._children.judge(end)
            frames.finish()
        except Malformed as error:
            raise DocumentRefused("PARSER_FAILED", f"The volume's reader gave {error}.") from None


def _entries(listing: Listing) -> tuple[Entry, ...]:
    """A volume of which there are no files has an entry without a path."""
    volumes = [Volume(*row) for row in listing.volumes]
    files: list[list[Entry]] = [[] for _ in volumes]
    for number, path, size_bytes, modified_ns, cluster, contiguous, reason, detail in listing.files:
        entry = Entry(volumes[number], path, size_bytes, modified_ns, cluster, contiguous, reason, detail)
        files[number].append(entry)
    bare = ((Entry(volume, "", reason=volume.reason, detail=volume.detail),) for volume in volumes)
    return tuple(entry for found, alone in zip(files, bare, strict=True) for entry in found or alone)
