"""A locked extractor for tests, documents to give it, and what it may have left behind."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from appliance.config import Config
from appliance.sandbox.extractor import LockedExtractor
from appliance.types import Extracted

LIMITS = Config(
    data_dir=Path("/nowhere"), parse_memory_mib=128, parse_cpu_seconds=1, parse_wall_seconds=30, document_max_mib=1
)


async def extract(extractor: LockedExtractor, content: bytes, name: str = "document.txt") -> Extracted:
    """Give the extractor a document."""
    fd = os.memfd_create("document")
    try:
        os.write(fd, content)
        return await extractor.extract(fd, name)
    finally:
        os.close(fd)


def zygotes(of: int | None = None) -> list[psutil.Process]:
    """The processes below one: the zygote that waits, the one that serves, and a child a document."""
    return psutil.Process(of).children(recursive=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another process."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@asynccontextmanager
async def nothing_left(extractor: LockedExtractor) -> AsyncIterator[None]:
    """Whatever is read within: after it the zygote is the same process and has no child, no process has a descriptor
    more, of a memfd or of anything else, and where the zygote lives there is no file more."""
    await extractor.start()
    family = zygotes()
    before = await _all_held(family)
    yield
    await until(lambda: len(zygotes()) <= len(family))
    assert zygotes() == family
    assert await _all_held(family) == before


async def _all_held(family: Sequence[psutil.Process]) -> list[list[str]]:
    await asyncio.sleep(0)  # the loop closes an answer's pipe at its next turn
    return [_held(process) for process in (psutil.Process(), *family)]


def _held(process: psutil.Process) -> list[str]:
    """What its descriptors are of, and the files in its root; those of a zygote are shown to root alone."""
    found: list[str] = []
    seen = Path(f"/proc/{process.pid}")
    with suppress(PermissionError):
        found += os.listdir(seen / "root")
        for name in os.listdir(seen / "fd"):
            with suppress(FileNotFoundError):  # that of the listing itself
                found.append(os.readlink(seen / "fd" / name))
    return sorted(found)
