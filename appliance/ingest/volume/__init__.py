"""Files of a stick, read from the bytes of the device: partition tables, FAT12, FAT16, FAT32 and exFAT.

It runs in a locked child, and is imported there before the lock: after its first import nothing here loads anything.
All functions are bounded in time and memory by the numbers in `model`, whatever the bytes are.

    for volume in volumes(read_at, size_bytes):
        for entry in walk(read_at, volume):
            if not entry.reason: pieces = content(read_at, entry)
"""

from appliance.ingest.volume.model import Entry, ReadAt, Refused, Volume
from appliance.ingest.volume.reader import content, volumes, walk

__all__ = ["Entry", "ReadAt", "Refused", "Volume", "content", "volumes", "walk"]
