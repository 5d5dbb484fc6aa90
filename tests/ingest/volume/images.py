"""An image in memory as the reader sees it."""

from appliance.ingest.volume import Entry, ReadAt, Volume, content, volumes, walk


def reader_of(data: bytes | bytearray) -> ReadAt:
    return lambda offset, size: bytes(data[offset : offset + size])


def entries(data: bytes | bytearray) -> list[Entry]:
    read_at = reader_of(data)
    return [entry for volume in volumes(read_at, len(data)) for entry in walk(read_at, volume)]


def read(data: bytes | bytearray, entry: Entry) -> bytes:
    return b"".join(content(reader_of(data), entry))


def whole(data: bytes | bytearray) -> dict[str, bytes]:
    return {entry.path: read(data, entry) for entry in entries(data) if not entry.reason}


def reasons(data: bytes | bytearray) -> dict[str, str]:
    return {entry.path: entry.reason or entry.volume.reason for entry in entries(data)}


def only_volume(data: bytes | bytearray) -> Volume:
    (found,) = volumes(reader_of(data), len(data))
    return found
