"""All places that files can be taken from, by name: sticks, watched folders and shares, paths that somebody types."""

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from weakref import WeakValueDictionary

from appliance.config import Config
from appliance.errors import DocumentRefused, InvalidArgument, NotFound, SourceGone, SourceRefused
from appliance.ingest.sources import mounts
from appliance.ingest.sources.book import SourceBook, Watched
from appliance.ingest.sources.devices import Device, Devices
from appliance.ingest.sources.folder import Folder, OpenFolder
from appliance.ingest.sources.found import OpenSource, printable
from appliance.ingest.sources.opened import OpenVolumes, device_bytes, require_device, volumes_of
from appliance.ingest.sources.roots import Roots
from appliance.ingest.sources.signed import signed
from appliance.ingest.sources.stalls import Beat, Calls
from appliance.ports import Volumes
from appliance.types import Entry, Provenance, Source, SourceKind, SourceState, Volume, Watch

IMAGES = frozenset({".img", ".dd", ".raw"})
"""What a disk image's name ends in."""

PATIENCE_SECONDS = 20.0
MOST_STUCK = 16  # places that do not answer, each with its threads
_TWINS = "Two sticks of this serial number are plugged in: pull one of them."


class Sources:
    """What `appliance ingest` can take from. Belongs to one event loop."""

    def __init__(
        self,
        config: Config,
        devices: Devices,
        volumes: Volumes,
        book: SourceBook,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._config, self._devices, self._volumes, self._book = config, devices, volumes, book
        self._patience_seconds, self._roots = patience_seconds, Roots(config)
        # by place: a source that is open holds its own, and so does a thread that hangs
        self._calls = WeakValueDictionary[str, Calls]()

    @property
    def book(self) -> SourceBook:
        """What administrators said of them."""
        return self._book

    async def list(self, tenant: str) -> tuple[Source, ...]:
        """Sticks that are plugged in, for every tenant, and what that tenant watches, by id."""
        watches = {watched.id: watched for watched in self._book.watches().get(tenant, ())}
        plugged = {device.id: device for device in await self._plugged()}
        twins = await self._twins()
        found = [self._stick(device, twins, watches.get(id_)) for id_, device in plugged.items()]
        rest = [watched for id_, watched in watches.items() if id_ not in plugged]
        found += await asyncio.gather(*(self._watched(tenant, watched) for watched in rest))
        return tuple(sorted(found, key=lambda source: source.id))

    async def open(self, tenant: str, name: str) -> OpenSource:
        """name: "sources/ID", or an absolute path, in the tenant's `Roots`, of a folder, a file, or an image (IMAGES).

        Raises InvalidArgument, NotFound, SourceRefused, SourceGone, SandboxUnavailable.
        """
        if not name.startswith("sources/"):
            return await self._open_path(tenant, name, SourceKind.FOLDER)
        id_ = name.removeprefix("sources/")
        for device in await self._plugged():
            if device.id == id_:
                return await self._open_stick(device)
        for watched in self._book.watches().get(tenant, ()):
            if watched.id == id_:
                return await self._open_watched(tenant, watched)
        raise NotFound(f"There is no source {printable(name)[:200]}; a stick must be plugged in.")

    async def watch(self, tenant: str, place: str, share: bool, watch: Watch) -> Source:
        """Watch a folder, a share's mount or a stick (its "sources/ID") from now on, or with other settings.

        Raises InvalidArgument, NotFound, SourceRefused (a folder outside the tenant's `Roots`), SourceGone, DiskFull.
        """
        if place.startswith("/"):
            source = await self._open_path(tenant, place, SourceKind.SHARE if share else SourceKind.FOLDER)
            await source.close()
        made = await asyncio.to_thread(self._book.watch, tenant, place, share, watch)
        return next(source for source in await self.list(tenant) if source.id == made.id)

    async def unwatch(self, tenant: str, name: str) -> None:
        """Raises NotFound, DiskFull."""
        await asyncio.to_thread(self._book.unwatch, tenant, name.removeprefix("sources/"))

    async def _plugged(self) -> tuple[Device, ...]:
        return await asyncio.to_thread(self._devices.list)

    async def _twins(self) -> frozenset[str]:
        counted = Counter(device.id for device in await self._plugged())
        return frozenset(id_ for id_, count in counted.items() if count > 1)

    def _stick(self, device: Device, twins: frozenset[str], watched: Watched | None) -> Source:
        problem = _TWINS if device.id in twins else self._not_allowed(device)
        return Source(
            id=device.id,
            provenance=_of_device(device),
            state=SourceState.REFUSED if problem else SourceState.READY,
            problem=problem,
            size_bytes=device.size_bytes,
            watch=watched.watch if watched else None,
        )

    async def _watched(self, tenant: str, watched: Watched) -> Source:
        provenance, state, problem = _of_watched(watched), SourceState.READY, ""
        if not watched.place.startswith("/"):
            state, problem = SourceState.ABSENT, "It is not plugged in."
        else:
            try:
                await (await self._open_path(tenant, watched.place, provenance.kind)).close()
            except (NotFound, SourceGone) as error:
                state, problem = SourceState.ABSENT, str(error)
            except (InvalidArgument, SourceRefused) as error:
                state, problem = SourceState.REFUSED, str(error)
        return Source(watched.id, provenance, state, problem, watch=watched.watch)

    def _not_allowed(self, device: Device) -> str:
        """Why a stick is not let in, '' where it is."""
        if self._config.sticks_allowed == "none":
            return "No stick is let in (option `sticks_allowed`)."
        if self._config.sticks_allowed == "all" or device.serial in self._book.devices:
            return ""
        called = f"{device.vendor} {device.model}".strip() or "a stick"
        if not device.serial:
            return f"It ({called}) has no serial number to be listed by (option `sticks_allowed`)."
        return f"It ({called}) is not let in: its serial number {device.serial} is not on the list."

    async def _open_stick(self, device: Device) -> OpenSource:
        problem = _TWINS if device.id in await self._twins() else self._not_allowed(device)
        if problem:
            raise SourceRefused(problem)
        calls = self._calls_on(device.path)
        fd = await calls.run(lambda beat: self._open_plugged(device, beat))
        return await self._open_device(fd, _of_device(device), calls)

    def _open_plugged(self, device: Device, beat: Beat) -> int:
        """The node of that very device: another may have taken its place before it was open. Raises SourceGone, …"""
        fd = _open_node(device.path, beat)
        if device not in self._devices.list():
            os.close(fd)
            raise SourceGone("The stick was pulled before it was read.")
        return fd

    async def _open_watched(self, tenant: str, watched: Watched) -> OpenSource:
        if not watched.place.startswith("/"):
            raise SourceGone(f"{watched.place} is not plugged in.")
        kind = SourceKind.SHARE if watched.share else SourceKind.FOLDER
        return await self._signed(await self._open_path(tenant, watched.place, kind), required=False)

    async def _open_path(self, tenant: str, path: str, kind: SourceKind) -> OpenSource:
        calls = self._calls_on(path)
        folder = await calls.run(lambda beat: _wanted_folder(self._roots.open(tenant, path), beat))
        if PurePath(folder.single).suffix.lower() not in IMAGES:
            return OpenFolder(folder, Provenance(kind, path=folder.top), calls)
        try:
            fd = await calls.run(lambda beat: _wanted(folder.open(folder.single), beat))
        except DocumentRefused as refusal:
            raise SourceRefused(f"{printable(path)}: {refusal}") from None
        finally:
            calls.close(folder.close)
        return await self._open_device(fd, Provenance(SourceKind.IMAGE, path=printable(path)), calls)

    async def _open_device(self, fd: int, provenance: Provenance, calls: Calls) -> OpenSource:
        """What is on a stick or in an image. Takes over `fd`, also where it fails."""
        try:
            size_bytes = device_bytes(fd)
            try:
                entries = await self._volumes.list(fd)
            except DocumentRefused as refusal:
                require_device(fd, size_bytes)
                raise SourceRefused(f"It cannot be read: {refusal}") from None
            require_device(fd, size_bytes)
            source, roots = await self._read(fd, size_bytes, provenance, entries, calls)
        except BaseException:
            os.close(fd)
            raise
        return await self._signed(source, roots, required=self._config.sticks_must_be_signed == "yes")

    async def _read(
        self, fd: int, size_bytes: int, provenance: Provenance, entries: tuple[Entry, ...], calls: Calls
    ) -> tuple[OpenSource, Sequence[str]]:
        """Its volumes, or what the kernel mounts, with what the names of each begin with. Takes over `fd`."""
        if any(entry.volume.filesystem for entry in entries):
            made = await asyncio.to_thread(OpenVolumes, fd, size_bytes, provenance, self._volumes, entries)
            return made, made.roots
        return await self._mounted(fd, provenance, volumes_of(entries), calls), ("",)

    async def _mounted(self, fd: int, provenance: Provenance, volumes: tuple[Volume, ...], calls: Calls) -> OpenSource:
        """The first volume that the kernel may and can mount. Takes over `fd` where it returns."""
        filesystems = self._config.mountable()
        others = [volume for volume in volumes if volume.reason == "UNSUPPORTED_FILESYSTEM"]
        if not filesystems or not others:
            why = volumes[0].detail if volumes else "there is no file system on it."
            raise SourceRefused(f"Nothing on it can be read: {why}")
        volume, size_bytes, own = others[0], device_bytes(fd), self._config.data_dir
        mine = os.dup(fd)  # a thread that outlives this call mounts this device, whatever `fd` is by then

        def mount(beat: Beat) -> Folder:
            root, _ = mounts.mount(mine, volume.offset_bytes, volume.size_bytes, filesystems)
            return Folder(_wanted(root, beat), Path(provenance.path or "/"), own)

        folder = await calls.run(mount, release=lambda: os.close(mine))
        return OpenFolder(
            folder, provenance, calls, lambda: device_bytes(fd) >= size_bytes, closed=lambda: os.close(fd)
        )

    async def _signed(self, source: OpenSource, roots: Sequence[str] = ("",), *, required: bool) -> OpenSource:
        try:
            return await signed(source, self._book.signers, required, roots)
        except BaseException:
            await source.close()
            raise

    def _calls_on(self, place: str) -> Calls:
        """Those on one place: where it hangs, it keeps hanging under the same name."""
        calls = self._calls.get(place)
        if calls is None:
            if sum(others.stuck for others in self._calls.values()) >= MOST_STUCK:
                raise SourceGone(f"{MOST_STUCK} other places do not answer; no more are opened until they do.")
            calls = self._calls[place] = Calls(printable(place), self._patience_seconds)
        return calls


def _wanted_folder(folder: Folder, beat: Beat) -> Folder:
    try:
        beat()
    except BaseException:
        folder.close()
        raise
    return folder


def _wanted(fd: int, beat: Beat) -> int:
    """A descriptor, unless nobody waits for it any more."""
    try:
        beat()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_node(path: str, beat: Beat) -> int:
    """Raises SourceGone, SourceRefused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except PermissionError:
        raise SourceRefused(f"The daemon may not read {path}: let its user read USB disks (group `disk`).") from None
    except OSError:
        raise SourceGone("The stick was pulled before it was read.") from None
    return _wanted(fd, beat)


def _of_device(device: Device) -> Provenance:
    return Provenance(SourceKind.STICK, serial=device.serial)


def _of_watched(watched: Watched) -> Provenance:
    if watched.place.startswith("/"):
        return Provenance(SourceKind.SHARE if watched.share else SourceKind.FOLDER, path=printable(watched.place))
    return Provenance(SourceKind.STICK, serial=watched.id.removeprefix("usb-"))
