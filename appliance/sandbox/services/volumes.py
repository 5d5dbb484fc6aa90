"""The service that reads the volumes of a block device or an image, and answers as `listing.py` has it.

A request is JSON: {"list": true}, or {"read": [VolumeRow, FileRow]} with rows of an earlier listing.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from appliance.errors import DocumentRefused
from appliance.sandbox.listing import encode, encode_row

ReadAt = Callable[[int, int], bytes]


class Volumes:
    """zygote.Service over a reader of file systems, a module with pure functions that load nothing once it is imported:

    volumes(read_at, size_bytes) -> Iterable[Volume]
    walk(read_at, volume) -> Iterable[Entry], at least one; one without a path tells of its volume alone
    content(read_at, entry) -> Iterable[bytes]; volume and entry are such as the others gave, or lies
    Entry, Volume: dataclasses with the fields of types.Entry and types.Volume, in their order
    Refused: what each may raise, with `reason` and `detail`

    read_at: offset and size in bytes to the bytes there, fewer where the device ends. Raises OSError.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def warm(self) -> None:
        """The reader is imported; an answer needs nothing more than these calls have loaded."""
        b"".join(encode(self._list(lambda _offset, _size: b"", 0)))

    def answer(self, fd: int, request: str) -> Iterator[bytes]:
        asked = json.loads(request)

        def read_at(offset: int, size: int) -> bytes:
            return os.pread(fd, size, offset)

        if "read" in asked:
            volume, file = asked["read"]
            return encode(self._read(read_at, volume, file))
        return encode(self._list(read_at, _size(fd)))

    def _list(self, read_at: ReadAt, size_bytes: int) -> Iterator[bytes]:
        try:
            for volume in self._reader.volumes(read_at, size_bytes):
                told = None
                for entry in self._reader.walk(read_at, volume):
                    if told is None:
                        told = entry.volume
                        yield encode_row("volume", _fields(told))
                    if entry.path:
                        yield encode_row("file", (told.number, *_fields(entry)[1:]))
        except self._reader.Refused as refusal:
            raise DocumentRefused(refusal.reason, refusal.detail) from None

    def _read(self, read_at: ReadAt, volume: Iterable[Any], file: Iterable[Any]) -> Iterator[bytes]:
        _, *fields = file
        try:
            yield from self._reader.content(read_at, self._reader.Entry(self._reader.Volume(*volume), *fields))
        except self._reader.Refused as refusal:
            raise DocumentRefused(refusal.reason, refusal.detail) from None


def service(settings: Mapping[str, int | str]) -> Volumes:
    """settings: "reader", the dotted name of its module."""
    return Volumes(importlib.import_module(str(settings["reader"])))


def _fields(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in value.__dataclass_fields__)


def _size(fd: int) -> int:
    """Of a file or a block device."""
    return os.lseek(fd, 0, os.SEEK_END)
