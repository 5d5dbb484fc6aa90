"""The durable list of files that were refused, and why: JSON lines, no content of any file."""

import contextlib
import errno
import json
import os
import threading
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from appliance.errors import DiskFull
from appliance.types import FileOutcome, FileState

MAX_ENTRIES = 10_000
BEFORE_TENANTS = "default"
"""Whose the refusals are that a release without tenants wrote."""


class Quarantine:
    """`refused.jsonl` in a folder of its own; at least the newest `max_entries` are kept. Blocking, thread-safe."""

    def __init__(self, folder: Path, max_entries: int = MAX_ENTRIES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / "refused.jsonl"
        self._max_entries = max_entries
        self._writing = threading.Lock()
        self._entries = self._read()

    def add(self, outcome: FileOutcome) -> None:
        """Durable when it returns. Raises DiskFull."""
        with self._writing:
            try:
                self._append(outcome)
                self._entries.append(outcome)
                if len(self._entries) >= 2 * self._max_entries:
                    self._drop_oldest()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(f"{self._path} cannot be written: the disk is full.") from None
                raise

    def newest_first(self, tenant: str) -> tuple[FileOutcome, ...]:
        """Those of one tenant."""
        with self._writing:
            return tuple(outcome for outcome in reversed(self._entries) if outcome.tenant == tenant)

    def _append(self, outcome: FileOutcome) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # a crash left half a line; begin a new one
            _write(fd, b"\n" * torn + _line(outcome))
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if size == 0:
            _sync_folder(self._path.parent)

    def _drop_oldest(self) -> None:
        del self._entries[: -self._max_entries]
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, b"".join(map(_line, self._entries)))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(fresh, self._path)
        _sync_folder(self._path.parent)

    def _read(self) -> list[FileOutcome]:
        entries: list[FileOutcome] = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError):  # half a line of a crash
                    entries.append(_outcome(json.loads(line)))
        return entries[-self._max_entries :]


def _line(outcome: FileOutcome) -> bytes:
    fields = asdict(outcome) | {"state": outcome.state.value, "time": outcome.time and outcome.time.isoformat()}
    return json.dumps(fields).encode() + b"\n"


def _outcome(fields: dict[str, str]) -> FileOutcome:
    time = datetime.fromisoformat(fields["time"]) if fields["time"] else None
    known = {"tenant": BEFORE_TENANTS} | fields | {"state": FileState(fields["state"]), "time": time}
    return FileOutcome(**known)  # type: ignore[arg-type]


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
