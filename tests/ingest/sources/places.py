"""What sources stand on, for their tests: sticks in a list, a book in memory, a data directory."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.config import Config
from appliance.errors import DocumentRefused, StoreDamaged
from appliance.ingest.memfd import new_memfd
from appliance.ingest.sources import Device, Found, OpenSource, SourceBook, Sources
from appliance.ports import Volumes
from appliance.types import Watch
from tests.stick_images import Fat16
from tests.volumes import PlainVolumes

MIB = 1 << 20


WATCH = Watch("handbook", frozenset({"everyone"}))


def stick(path: Path, files: dict[bytes, bytes] | None = None) -> Path:
    """An image with these files, a cluster each."""
    made = Fat16()
    for number, (name, data) in enumerate((files or {b"A       TXT": b"alpha"}).items()):
        made.file(name, data, number + 2)
    path.write_bytes(made.data)
    return path


class Plugged:
    """`Devices` that a test plugs in and pulls: image files as nodes."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.change = asyncio.Event()

    def plug(self, node: Path, serial: str = "4C53") -> Device:
        device = Device(str(node), serial, "SanDisk", "Ultra", node.stat().st_size, removable=True)
        self.devices.append(device)
        return device

    def list(self) -> tuple[Device, ...]:
        return tuple(self.devices)

    async def changed(self, timeout_seconds: float) -> None:
        await self.change.wait()
        self.change.clear()


class MemoryJson:
    """`ports.SignedJson` in memory."""

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self.content = content

    def read(self) -> dict[str, Any] | None:
        return self.content

    def damaged(self) -> StoreDamaged:
        return StoreDamaged("sources.json is not what this box wrote.")

    def write(self, content: Mapping[str, Any]) -> None:
        self.content = dict(content)


class Place:
    """`Sources` in a folder, from all of which files may be taken."""

    def __init__(
        self, path: Path, volumes: Volumes | None = None, patience_seconds: float = 20, **options: Any
    ) -> None:
        (path / "data").mkdir(exist_ok=True)
        self.plugged, self.book = Plugged(), SourceBook(MemoryJson())
        self._config = replace(Config(data_dir=path / "data", ingest_roots=str(path)), **options)
        self._volumes, self._patience_seconds = volumes or PlainVolumes(), patience_seconds
        self.sources = self.again()

    def again(self, **options: Any) -> Sources:
        """As after a restart with other options."""
        config = replace(self._config, **options)
        return Sources(config, self.plugged, self._volumes, self.book, self._patience_seconds)


async def contents(source: OpenSource) -> dict[str, bytes | str]:
    """The bytes of each file, or the reason of its refusal; then it is closed."""
    found = {one.name: await content(source, one) for one in await source.files()}
    await source.close()
    return found


async def content(source: OpenSource, found: Found, max_bytes: int = MIB) -> bytes | str:
    memfd = new_memfd()
    try:
        if found.refusal:
            return found.refusal.file_reason
        _, size = await source.copy(found, memfd, max_bytes)
        return os.pread(memfd, size + 1, 0)
    except DocumentRefused as refusal:
        return refusal.file_reason
    finally:
        os.close(memfd)
