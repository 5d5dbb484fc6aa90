"""Clusters, and the chains that the file allocation table makes of them: the same in FAT and exFAT but for the width.

Every chain is followed for no more clusters than the volume has, or than its file's size needs. Table entries are read
as the machine's own integers: little-endian, as every machine is that this runs on.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from appliance.ingest.volume.model import ReadAt, Refused, exact

PAGE_BYTES = 1 << 16
CACHED_PAGES = 128
PIECE_BYTES = 1 << 20
MAX_FOLDER_BYTES = 64 << 20  # of all folders of a volume
_FOLDER_PIECE_BYTES = 4096
_LOOP_SOUGHT = 1 << 19  # clusters of all chains of the wrong length in which a loop is looked for, to name it


@dataclass
class Clusters:
    """The data area of one volume. first: byte offset of cluster 2; count: clusters, numbered from 2. fat: byte offset
    of the table; fat_bytes: its length. bits: 12, 16, 28 of 32, or 32 (exFAT).
    """

    read_at: ReadAt
    first: int
    cluster_bytes: int
    count: int
    fat: int
    fat_bytes: int
    bits: int
    _pages: dict[int, Sequence[int]] = field(default_factory=dict)
    _of_folders: set[int] = field(default_factory=set)
    _folder_bytes: int = 0
    _sought: int = 0

    def __post_init__(self) -> None:
        self._page_entries = PAGE_BYTES if self.bits == 12 else PAGE_BYTES // (2 if self.bits == 16 else 4)
        self._mask = (1 << self.bits) - 1
        self._end = self._mask if self.bits == 32 else self._mask - 7

    def offset(self, cluster: int) -> int:
        """Where a cluster begins. Raises Refused: BAD_CHAIN where there is no such."""
        self.require(cluster)
        return self.first + (cluster - 2) * self.cluster_bytes

    def require(self, cluster: int) -> None:
        """Raises Refused: BAD_CHAIN where there is no such cluster."""
        if not 2 <= cluster < self.count + 2:
            raise Refused("BAD_CHAIN", "Its cluster chain leads out of the volume.")

    def next(self, cluster: int) -> int:
        """The cluster after an existing one in its chain, 0 at the end. Raises Refused: BAD_CHAIN, TRUNCATED."""
        number, index = divmod(cluster, self._page_entries)
        page = self._pages.get(number)
        value = (self._load(number) if page is None else page)[index] & self._mask
        if value >= self._end:
            return 0
        if not 2 <= value < self.count + 2:  # free (0) and bad clusters are such, too
            self.require(value)
        return value

    def chain(self, first: int, size_bytes: int) -> "array[int]":
        """The clusters of a file, which must be just those that its size needs.

        Raises Refused: TRUNCATED (too few), SIZE_MISMATCH (too many), CHAIN_LOOP, BAD_CHAIN.
        """
        needed = -(-size_bytes // self.cluster_bytes)
        found = array("I")
        if needed > self.count:
            raise Refused("TRUNCATED", "It claims to be larger than its volume.")
        if not size_bytes:
            if first:
                raise Refused("SIZE_MISMATCH", "It claims to be empty, and holds clusters.")
            return found
        if first:
            self.require(first)
        cluster = first
        while cluster and len(found) < needed:
            found.append(cluster)
            cluster = self.next(cluster)
        if len(found) < needed:
            raise Refused("TRUNCATED", "Its cluster chain ends before its size.")
        if cluster:
            raise (
                _loop()
                if self._loops(found, cluster)
                else Refused("SIZE_MISMATCH", "Its cluster chain goes on past its size.")
            )
        return found

    def run(self, first: int, size_bytes: int) -> range:
        """The clusters of a file without a chain, one after the other. Raises Refused: BAD_CHAIN, TRUNCATED."""
        needed = -(-size_bytes // self.cluster_bytes)
        if not needed:
            return range(0)
        self.require(first)
        if first + needed > self.count + 2:
            raise Refused("TRUNCATED", "It goes on past the end of the volume.")
        return range(first, first + needed)

    def folder(self, clusters: Iterable[int]) -> Iterator[bytes]:
        """The bytes of a folder, in short pieces: who meets its end mark needs no more.

        No cluster is of two folders, and all folders together have at most MAX_FOLDER_BYTES. Raises Refused:
        CHAIN_LOOP, CROSS_LINKED, BAD_CHAIN, TOO_MANY_ENTRIES.
        """
        mine: set[int] = set()
        for cluster in clusters:
            if cluster in mine:
                raise _loop()
            if cluster in self._of_folders:
                raise Refused("CROSS_LINKED", "The folder shares clusters with another folder.")
            mine.add(cluster)
            self._of_folders.add(cluster)
            start = self.offset(cluster)
            for at in range(0, self.cluster_bytes, _FOLDER_PIECE_BYTES):
                self._folder_bytes += min(_FOLDER_PIECE_BYTES, self.cluster_bytes)
                if self._folder_bytes > MAX_FOLDER_BYTES:
                    raise Refused(
                        "TOO_MANY_ENTRIES", f"Its folders hold more than {MAX_FOLDER_BYTES >> 20} MiB of names."
                    )
                yield exact(self.read_at, start + at, min(_FOLDER_PIECE_BYTES, self.cluster_bytes - at))

    def links(self, first: int) -> Iterator[int]:
        """The clusters of a chain until it ends, which it may never do. Raises Refused: BAD_CHAIN."""
        self.require(first)
        cluster = first
        while cluster:
            yield cluster
            cluster = self.next(cluster)

    def content(self, clusters: Sequence[int], size_bytes: int) -> Iterator[bytes]:
        """The bytes of a file, in pieces of at most PIECE_BYTES. Raises Refused: TRUNCATED."""
        at, left = 0, size_bytes
        while left:
            end = at + 1
            most = max(1, PIECE_BYTES // self.cluster_bytes)
            while end < len(clusters) and end - at < most and clusters[end] == clusters[end - 1] + 1:
                end += 1
            start, size = self.offset(clusters[at]), min(left, (end - at) * self.cluster_bytes)
            for begin in range(0, size, PIECE_BYTES):
                yield exact(self.read_at, start + begin, min(PIECE_BYTES, size - begin))
            at, left = end, left - size

    def _loops(self, found: Sequence[int], cluster: int) -> bool:
        """Whether a chain that goes on with `cluster` after those comes back to one of them, as far as it is sought."""
        self._sought += len(found)
        seen = set(found) if self._sought < _LOOP_SOUGHT else set[int]()
        while cluster and self._sought < _LOOP_SOUGHT:
            if cluster in seen:
                return True
            seen.add(cluster)
            self._sought += 1
            cluster = self.next(cluster)
        return False

    def _load(self, number: int) -> Sequence[int]:
        """Entries of the table, `_page_entries` of them; of a FAT12 all."""
        if len(self._pages) >= CACHED_PAGES:
            self._pages.clear()
        start = number * PAGE_BYTES
        raw = exact(self.read_at, self.fat + start, min(PAGE_BYTES, self.fat_bytes - start))
        page: Sequence[int]
        if self.bits == 12:
            pairs = (int.from_bytes(raw[at : at + 3], "little") for at in range(0, len(raw) - 1, 3))
            page = array("H", [half for pair in pairs for half in (pair & 0xFFF, pair >> 12)])
        else:
            width = 2 if self.bits == 16 else 4
            page = memoryview(raw[: len(raw) // width * width]).cast("H" if width == 2 else "I")
        self._pages[number] = page
        return page


def _loop() -> Refused:
    return Refused("CHAIN_LOOP", "Its cluster chain leads back to itself.")
