"""Where files come from: sticks and their images, watched folders and shares, paths on the box.

sources = Sources(config, UsbDevices(), volumes, SourceBook(file))
source = await sources.open(tenant, "sources/usb-4C53" or "/srv/drop")
for found in await source.files(): await source.copy(found, memfd, max_bytes)
await source.close()
"""

from appliance.ingest.sources.book import SourceBook, Watched
from appliance.ingest.sources.devices import Device, Devices, UsbDevices
from appliance.ingest.sources.folder import Folder, OpenFolder, snapshot
from appliance.ingest.sources.found import Found, OpenSource, printable
from appliance.ingest.sources.registry import Sources
from appliance.ingest.sources.watch import Watcher

__all__ = [
    "Device",
    "Devices",
    "Folder",
    "Found",
    "OpenFolder",
    "OpenSource",
    "SourceBook",
    "Sources",
    "UsbDevices",
    "Watched",
    "Watcher",
    "printable",
    "snapshot",
]
