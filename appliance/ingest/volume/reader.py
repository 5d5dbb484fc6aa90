"""Volumes, their files, and a file's bytes: what the rest of the reader is for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from appliance.ingest.volume import exfat, fat
from appliance.ingest.volume.clusters import Clusters
from appliance.ingest.volume.exfat import ExfatSystem
from appliance.ingest.volume.fat import FatSystem
from appliance.ingest.volume.model import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PATH_BYTES,
    Entry,
    ReadAt,
    Refused,
    Row,
    Volume,
    exact,
)
from appliance.ingest.volume.names import require_name, shown
from appliance.ingest.volume.tables import partitions

System = FatSystem | ExfatSystem

MAX_STEPS = 1 << 21
"""Clusters that `walk` follows in all. Files behind them are listed unchecked; `content` checks them all the same."""

_MAX_SIZE = 1 << 62  # exFAT has room for more, and a reader of the listing for less

_OTHERS = (
    (3, b"NTFS    ", "NTFS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (1024 + 56, b"\x53\xef", "ext2, ext3 or ext4"),
    (0, b"XFSB", "XFS"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (1024, b"H+", "HFS+"),
    (1024, b"HX", "HFS+"),
    (32, b"NXSB", "APFS"),
    (32768 + 1, b"CD001", "ISO 9660"),
    (65536 + 64, b"_BHRfS_M", "Btrfs"),
)


def volumes(read_at: ReadAt, size_bytes: int) -> tuple[Volume, ...]:
    """The file systems of a device: the one that it is, else those of its partitions, in the order of their table.

    What cannot be read is among them, and says why: UNSUPPORTED_FILESYSTEM, BAD_BOOT_SECTOR, TRUNCATED, UNREADABLE.
    Raises Refused where the device itself cannot be read: EMPTY, TRUNCATED, UNREADABLE, BAD_PARTITION_TABLE.
    """
    if size_bytes <= 0:
        raise Refused("EMPTY", "There is nothing on it.")
    first = exact(read_at, 0, 512)
    found = () if _kind(first) else partitions(read_at, size_bytes)
    extents = found or ((0, size_bytes),)
    return tuple(_volume(read_at, number, *extent, size_bytes) for number, extent in enumerate(extents))


def walk(read_at: ReadAt, volume: Volume) -> Iterator[Entry]:
    """Every file of a volume, by the order of the names' bytes, files before folders; what cannot be read says why.

    A volume that is empty or cannot be read gives one entry with path ''. Reasons of entries: BAD_NAME, NAME_TWICE,
    NAME_TOO_LONG, BAD_ENTRY, INCOMPLETE, TRUNCATED, SIZE_MISMATCH, BAD_CHAIN, CHAIN_LOOP, CROSS_LINKED, FOLDER_LOOP,
    FOLDER_TOO_DEEP, TOO_MANY_ENTRIES, UNREADABLE. Raises nothing.
    """
    if volume.reason:
        return iter((Entry(volume, ""),))
    try:
        entries = _Walk(_mount(read_at, volume), volume).entries()
    except Refused as refusal:
        entries = [Entry(replace(volume, filesystem="", reason=refusal.reason, detail=refusal.detail), "")]
    return iter(entries or (Entry(volume, ""),))


def content(read_at: ReadAt, entry: Entry) -> Iterator[bytes]:
    """A file's bytes, `entry.size_bytes` in all, in pieces of at most 1 MiB. The entry need not be believed, but
    bound its size first: of a file in a chain four bytes of memory are taken for each cluster.

    Raises Refused, also after some pieces: the entry's own reason, TRUNCATED, SIZE_MISMATCH, BAD_CHAIN, CHAIN_LOOP,
    UNREADABLE, CHANGED where the volume is another than it was.
    """
    if entry.reason or not entry.path:
        raise Refused(entry.reason or "BAD_ENTRY", entry.detail or "It is no file.")
    system = _mount(read_at, entry.volume)
    if (system.filesystem, system.id) != (entry.volume.filesystem, entry.volume.id):
        raise Refused("CHANGED", "The volume is another than it was when it was listed.")
    clusters = _clusters(system.clusters, entry)
    yield from system.clusters.content(clusters, entry.size_bytes)


class _Walk:
    """One walk over one volume."""

    def __init__(self, system: System, volume: Volume) -> None:
        self._system, self._volume = system, volume
        self._entries: list[Entry] = []
        self._seen: set[str] = set()
        self._numbers: dict[str, int] = {}  # by a path that others have too: the last that was told apart
        self._folders: set[int] = set()
        self._count = 0

    def entries(self) -> list[Entry]:
        todo: list[tuple[str, Row | None]] = [("", None)]
        while todo:
            path, folder = todo.pop()
            todo += reversed(list(self._folder(path, folder)))
        return _Ledger(self._system.clusters).judged(self._entries)

    def _folder(self, path: str, folder: Row | None) -> Iterator[tuple[str, Row]]:
        """Note the files of a folder; the folders in it."""
        rows: list[Row] = []
        try:
            self._enter(path, folder)
            for row in self._system.rows(folder):
                self._count += 1
                if self._count > MAX_ENTRIES:
                    raise Refused("TOO_MANY_ENTRIES", f"The volume holds more than {MAX_ENTRIES} files and folders.")
                rows.append(row)
        except Refused as refusal:
            self._seen.discard(path)  # its own name is free again
            self._note(Entry(self._volume, path or "\\root", reason=refusal.reason, detail=refusal.detail))
        for row in sorted(rows, key=lambda row: row.name.encode("utf-8", "surrogatepass")):
            below = self._place(path, row)
            if below:
                yield below, row

    def _enter(self, path: str, folder: Row | None) -> None:
        """Raises Refused: FOLDER_LOOP, FOLDER_TOO_DEEP, TOO_MANY_ENTRIES."""
        cluster = folder.cluster if folder else self._system.root
        if cluster in self._folders or (folder and cluster == self._system.root):
            raise Refused("FOLDER_LOOP", "The folder is one that was met before, in another place.")
        self._folders.add(cluster)
        if path.count("/") >= MAX_DEPTH:
            raise Refused("FOLDER_TOO_DEEP", f"The folder lies more than {MAX_DEPTH} folders deep.")
        if self._count > MAX_ENTRIES:
            raise Refused("TOO_MANY_ENTRIES", f"The volume holds more than {MAX_ENTRIES} files and folders.")

    def _place(self, path: str, row: Row) -> str:
        """Where a sound folder lies; '' for a file and for what cannot be read, both noted."""
        fault = row.fault if row.fault and not row.name else self._name_fault(path, row.name) or row.fault
        name = row.name if fault is None else shown(row.name)[:200]
        below = f"{path}/{name}" if path else name
        if fault is None and row.folder:
            self._seen.add(below)
            return below
        reason, detail = (fault.reason, fault.detail) if fault else ("", "")
        self._note(
            Entry(
                self._volume,
                below,
                min(row.size_bytes, _MAX_SIZE),
                row.modified_ns,
                row.cluster,
                row.contiguous,
                reason,
                detail,
            )
        )
        return ""

    def _name_fault(self, path: str, name: str) -> Refused | None:
        try:
            require_name(name)
        except Refused as refusal:
            return refusal
        below = f"{path}/{name}" if path else name
        if below in self._seen:
            return Refused("NAME_TWICE", "Another file or folder has this name already.")
        if len(below.encode()) > MAX_PATH_BYTES - 1024:  # an escaped name, and a number, fit behind it
            return Refused("NAME_TOO_LONG", "Its path is longer than a path may be.")
        return None

    def _note(self, entry: Entry) -> None:
        path = entry.path
        while path in self._seen or not path:
            self._numbers[entry.path] = self._numbers.get(entry.path, 1) + 1
            path = f"{entry.path}\\{self._numbers[entry.path]}"
        self._seen.add(path)
        self._entries.append(replace(entry, path=path))


class _Ledger:
    """Which clusters are whose: no cluster is of two files."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._uses = bytearray(clusters.count + 2)
        self._steps = 0
        self._shared = False

    def judged(self, entries: list[Entry]) -> list[Entry]:
        """The entries, those with a bad chain or with clusters of another's refused."""
        checked = [self._claimed(entry) for entry in entries]
        if not self._shared:
            return checked
        self._steps = 0
        return [self._unshared(entry) for entry in checked]

    def _claimed(self, entry: Entry) -> Entry:
        return self._each(entry, self._claim)

    def _unshared(self, entry: Entry) -> Entry:
        return self._each(entry, self._require_alone)

    def _each(self, entry: Entry, check: Callable[[Sequence[int]], None]) -> Entry:
        if entry.reason or self._steps > MAX_STEPS:
            return entry
        try:
            needed = -(-entry.size_bytes // self._clusters.cluster_bytes)
            impossible = needed > self._clusters.count
            self._steps += 0 if impossible else needed
            if self._steps <= MAX_STEPS or impossible:
                check(_clusters(self._clusters, entry))
        except Refused as refusal:
            return replace(entry, reason=refusal.reason, detail=refusal.detail)
        return entry

    def _claim(self, clusters: Sequence[int]) -> None:
        for cluster in clusters:
            if self._uses[cluster]:
                self._uses[cluster], self._shared = 2, True
            else:
                self._uses[cluster] = 1

    def _require_alone(self, clusters: Sequence[int]) -> None:
        if any(self._uses[cluster] > 1 for cluster in clusters):
            raise Refused("CROSS_LINKED", "It shares clusters with another file: one of them, or both, is damaged.")


def _clusters(clusters: Clusters, entry: Entry) -> Sequence[int]:
    if entry.contiguous:
        return clusters.run(entry.cluster, entry.size_bytes)
    return clusters.chain(entry.cluster, entry.size_bytes)


def _volume(read_at: ReadAt, number: int, offset: int, size: int, device_bytes: int) -> Volume:
    volume = Volume(number, "", offset, size)
    try:
        if offset + size > device_bytes:
            raise Refused("TRUNCATED", "It goes on past the end of the device.")
        system = _mount(read_at, volume)
    except Refused as refusal:
        return replace(volume, reason=refusal.reason, detail=refusal.detail)
    try:
        label = shown(system.label())[:64]
    except Refused:  # the walk tells of it
        label = ""
    return replace(volume, filesystem=system.filesystem, id=system.id, label=label)


def _mount(read_at: ReadAt, volume: Volume) -> System:
    def below(offset: int, size: int) -> bytes:
        return read_at(volume.offset_bytes + offset, max(0, min(size, volume.size_bytes - offset)))

    first = exact(below, 0, 512)
    kind = _kind(first)
    if kind == "exFAT":
        return exfat.mount(below, volume.size_bytes)
    if kind == "FAT":
        return fat.mount(below, volume.size_bytes)
    raise Refused("UNSUPPORTED_FILESYSTEM", f"Its file system is {_other(below)}; FAT and exFAT are read.")


def _kind(first: bytes) -> str:
    if first[3:11] == b"EXFAT   ":
        return "exFAT"
    return "FAT" if fat.is_fat(first) else ""


def _other(read_at: ReadAt) -> str:
    for offset, magic, name in _OTHERS:
        try:
            if exact(read_at, offset, len(magic)) == magic:
                return name
        except Refused:
            continue
    return "none that is known here"
