"""A stick's or an image's file systems as an open source: read in locked children, never mounted."""

import os
from dataclasses import replace

from appliance.errors import DocumentRefused, SourceGone
from appliance.ingest.sources.found import Found, printable
from appliance.ports import Volumes
from appliance.types import Entry, Provenance, Volume


class OpenVolumes:
    """Every FAT and exFAT volume behind one descriptor (`OpenSource`). Of several, names begin with "partition-N/"."""

    def __init__(
        self, fd: int, size_bytes: int, provenance: Provenance, reader: Volumes, entries: tuple[Entry, ...]
    ) -> None:
        """fd: taken over, not touched now. entries: what `reader` listed of it. Takes seconds where they are many.

        roots: what the names of each volume begin with.
        """
        volumes = volumes_of(entries)
        self.provenance = _named(provenance, volumes)
        self._fd, self._size_bytes, self._reader = fd, size_bytes, reader
        shown = tuple(entry for entry in entries if entry.path or entry.volume.reason)
        several = len(volumes_of(shown)) > 1  # an empty one beside it, as some systems make them, does not count
        self.roots = tuple(f"{_partition(volume)}/" for volume in volumes_of(shown)) if several else ("",)
        self._entries = {_name(entry, several): entry for entry in shown}
        self._found = tuple(_found(name, entry) for name, entry in self._entries.items())

    async def files(self) -> tuple[Found, ...]:
        """As OpenSource; as they were when it was opened."""
        require_device(self._fd, self._size_bytes)
        return self._found

    async def copy(self, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        """As OpenSource. A file of which only the name is given is taken as it is."""
        require_device(self._fd, self._size_bytes)
        entry = self._entries.get(found.name)
        if entry is None:
            raise DocumentRefused("VANISHED", "It was gone before it was read.")
        if (found.size_bytes, found.modified_ns) not in ((0, 0), (entry.size_bytes, entry.modified_ns)):
            raise DocumentRefused("CHANGED", "It is another than was seen before; ingest it again.")
        if refusal := _refusal(entry):
            raise refusal
        try:
            return await self._reader.read(self._fd, entry, target, max_bytes)
        except DocumentRefused:
            require_device(self._fd, self._size_bytes)
            raise

    async def close(self) -> None:
        """As OpenSource."""
        os.close(self._fd)


def device_bytes(fd: int) -> int:
    """Size of a block device or a file; 0 of one that was pulled."""
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError:
        return 0


def require_device(fd: int, size_bytes: int) -> None:
    """Raises SourceGone where the device has not all of these bytes any more: one that was pulled has none."""
    if not 0 < size_bytes <= device_bytes(fd):
        raise SourceGone("The stick was pulled while it was read.")


def volumes_of(entries: tuple[Entry, ...]) -> tuple[Volume, ...]:
    """The volumes that a listing tells of, in their order."""
    return tuple({entry.volume.number: entry.volume for entry in entries}.values())


def _named(provenance: Provenance, volumes: tuple[Volume, ...]) -> Provenance:
    """With the ids and labels of what can be read; several with plus signs between."""
    sound = [volume for volume in volumes if volume.filesystem]
    ids = "+".join(volume.id for volume in sound if volume.id)
    labels = "+".join(volume.label for volume in sound if volume.label)
    return replace(provenance, volume=printable(ids), label=printable(labels))


def _name(entry: Entry, of_several: bool) -> str:
    if not entry.path:
        return _partition(entry.volume)
    return f"{_partition(entry.volume)}/{entry.path}" if of_several else entry.path


def _partition(volume: Volume) -> str:
    return f"partition-{volume.number + 1}"


def _found(name: str, entry: Entry) -> Found:
    return Found(name, entry.size_bytes, entry.modified_ns, _refusal(entry))


def _refusal(entry: Entry) -> DocumentRefused | None:
    if not entry.path:
        return DocumentRefused(entry.volume.reason, entry.volume.detail)
    return DocumentRefused(entry.reason, entry.detail) if entry.reason else None
