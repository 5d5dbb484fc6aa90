"""USB block devices: what is plugged in, by sysfs; that something changed, by udev where it runs. Alone knows pyudev.

Source: Documentation/ABI/stable/sysfs-block and testing/sysfs-bus-usb of Linux.
"""

import asyncio
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyudev
import structlog

from appliance.ingest.sources.found import printable

SYSFS = Path("/sys")
_USB = re.compile(r"/usb\d+/")
_PLAIN = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)
_MAX_CHARACTERS = 128
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Device:
    """A USB disk as it is plugged in. path: its node, such as /dev/sdb. All text is what the device says: printable, at
    most 128 characters, to be believed in nothing.
    """

    path: str
    serial: str
    vendor: str
    model: str
    size_bytes: int
    removable: bool

    @property
    def id(self) -> str:
        """Of its source. Devices of one serial number share it; those without one are told apart by their node."""
        plain = _PLAIN.sub("-", self.serial) if self.serial else f"no-serial-{Path(self.path).name}"
        return f"usb-{plain[:64]}"


class Devices(Protocol):
    """USB disks."""

    def list(self) -> tuple[Device, ...]:
        """What is plugged in and holds a medium, by node. Blocking, but never on the disks themselves."""

    async def changed(self, timeout_seconds: float) -> None:
        """Return when something was plugged in or pulled, or after that time."""


class UsbDevices:
    """The box's own (`Devices`). Belongs to one event loop; any number may wait."""

    def __init__(self, sysfs: Path = SYSFS, events: str = "udev") -> None:
        """events: "udev", when its rules have run, or "kernel", before."""
        self._sysfs, self._events = sysfs, events
        self._monitor: pyudev.Monitor | None = None
        self._change = asyncio.Event()

    def list(self) -> tuple[Device, ...]:
        """As Devices."""
        with suppress(OSError):
            found = (self._device(path) for path in sorted((self._sysfs / "block").iterdir()))
            return tuple(device for device in found if device is not None)
        return ()

    async def changed(self, timeout_seconds: float) -> None:
        """As Devices; where udev is not there, after that time."""
        self._listen()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._change.wait()

    def close(self) -> None:
        """Listen no more."""
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor = None

    def _device(self, block: Path) -> Device | None:
        try:
            where = os.path.realpath(block)
        except OSError:
            return None
        if not _USB.search(where):
            return None
        sectors = _text(block / "size")
        size_bytes = int(sectors) * 512 if sectors.isascii() and sectors.isdecimal() else 0
        if not size_bytes:
            return None  # a card reader without a card
        usb = next((above for above in Path(where).parents if (above / "idVendor").exists()), Path(where))
        return Device(
            path=f"/dev/{block.name.replace('!', '/')}",
            serial=_text(usb / "serial"),
            vendor=_text(block / "device" / "vendor") or _text(usb / "manufacturer"),
            model=_text(block / "device" / "model") or _text(usb / "product"),
            size_bytes=size_bytes,
            removable=_text(block / "removable") == "1",
        )

    def _listen(self) -> None:
        if self._monitor is not None:
            return
        try:
            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), self._events)
            monitor.filter_by("block")
            monitor.start()
            asyncio.get_running_loop().add_reader(monitor.fileno(), self._hear)
        except (ImportError, OSError) as error:  # no libudev, or no netlink in this container: the timeout is all
            log.info("sources.no_udev", error=type(error).__name__)
            return
        self._monitor = monitor

    def _hear(self) -> None:
        while self._monitor is not None and self._monitor.poll(timeout=0) is not None:
            pass
        self._change.set()  # wakes all who wait now
        self._change = asyncio.Event()


def _text(path: Path) -> str:
    try:
        return printable(path.read_text(errors="replace").strip())[:_MAX_CHARACTERS]
    except OSError:
        return ""
