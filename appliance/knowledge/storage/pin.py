"""A collection's files held open, so that a copy of them is of one instant however long it takes.

Files of a collection are replaced and unlinked, never changed, but for two: an open log grows, and counts up to its
acknowledged end; the key record is overwritten when the collection is dropped, which whoever copies must ask for last.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from appliance.errors import StoreDamaged
from appliance.knowledge.storage import durable

_PIECE_BYTES = 1 << 20


class Pinned:
    """Use as a context. collection: the 16 bytes that name it in its files. sizes: by name below its folder."""

    def __init__(self, directory: Path, collection: bytes, generation: int, sizes: Mapping[str, int | None]) -> None:
        """sizes: how many bytes of a file count; None for all that it has. Raises StoreDamaged, Busy."""
        self.collection, self.generation = collection, generation
        self._directory, self._descriptors = directory, dict[str, int]()
        self.sizes: dict[str, int] = {}
        try:
            for name, size in sizes.items():
                with durable.disk_errors(directory / name):
                    descriptor = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
                    self._descriptors[name] = descriptor
                    self.sizes[name] = os.fstat(descriptor).st_size if size is None else size
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def pieces(self, name: str) -> Iterator[bytes]:
        """All of a file that counts, up to 1 MiB at a time. Raises StoreDamaged where there is less."""
        path, size = self._directory / name, self.sizes[name]
        for offset in range(0, size, _PIECE_BYTES):
            wanted = min(_PIECE_BYTES, size - offset)
            with durable.disk_errors(path):
                piece = durable.read_at(self._descriptors[name], wanted, offset)
            if len(piece) < wanted:
                raise StoreDamaged(f"{path} is damaged: it has fewer than {size} bytes.")
            yield piece
