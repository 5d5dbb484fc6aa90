"""How files become models: those dropped into the import folder, and those of a path that someone names.

Share drops have no inotify, so the folder is polled. A file is taken when its size and time were the same at two looks,
or at once when its name ends in `.gguf.ready` (a writer renames it so when it is whole). A file that became a model is
removed; a refused one moves to `refused/`, beside a `.reason.txt`, and is listed until someone removes it or drops a
sound one of the same name. Links, FIFOs and other kinds of file stay where they are and are listed with the reason;
hidden files are left alone.

A path is a GGUF or a folder; of a folder every GGUF is taken, adapters after the models that they may belong to, and
what became of each is kept with the job. What was imported by mistake is undone by deleting the model.
"""

import asyncio
import hashlib
import math
import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import structlog

from appliance.errors import Cancelled, ModelMissing, ModelUnsupported, NotFound, Refused
from appliance.models import gguf
from appliance.models.adapters import ADAPTER
from appliance.models.gguf import open_regular, printable
from appliance.models.store import ModelStore, slug
from appliance.ports import Jobs, Progress
from appliance.types import ImportedFile, Job, JobState, ModelFile, ModelKind, ModelState, ModelStatus

SUFFIX, READY = ".gguf", ".gguf.ready"
REASON = ".reason.txt"
MAX_REASON_BYTES = 4096
REFUSED = "refused"
DOCUMENTS = "documents"  # below it lies what ingest takes
KIND = "import-model"
KEPT_JOBS = 200
RETRY_SECONDS = 60.0
LATEST_SECONDS = datetime(9999, 1, 1, tzinfo=UTC).timestamp()  # a file system knows later times; a datetime does not
log = structlog.get_logger()

Listener = Callable[[tuple[ModelStatus, ...]], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """A file of the folder at one look."""

    size_bytes: int
    mtime_ns: int
    inode: int
    mode: int


@dataclass(frozen=True, slots=True)
class _Held:
    """A file whose import ended without a verdict on the file; it is tried again later, or when it changes."""

    seen: Seen
    until_seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class _Part:
    """ports.Progress of one file of several: its bytes among all of them."""

    whole: Progress
    before_bytes: int
    total_bytes: int
    name: str

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        self.whole.update(self.before_bytes + done, max(self.total_bytes, self.before_bytes + total), self.name)


def fault(name: str, seen: Seen) -> str:
    """Why a file can never become a model; '' where it may."""
    if stat.S_ISLNK(seen.mode):
        return "It is a link; copy the file itself."
    if not stat.S_ISREG(seen.mode):
        return "It is not a regular file."
    if not name.lower().endswith((SUFFIX, READY)):
        return f"Only {SUFFIX} files are taken."
    return ""


def settled(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> tuple[str, ...]:
    """The files that are whole, in order of name: renamed to say so, or unchanged between two looks."""
    return tuple(
        name
        for name, seen in sorted(now.items())
        if not fault(name, seen) and (name.lower().endswith(READY) or before.get(name) == seen)
    )


async def take_in(store: ModelStore, path: Path, progress: Progress, **more: Any) -> ModelFile:
    """`store.add` in a thread. Cancelling, once or often, waits until the thread has cleaned up. Raises as `add`."""
    loop, cancelled = asyncio.get_running_loop(), Event()

    def report(done: int, total: int) -> None:
        if cancelled.is_set():
            raise Cancelled("The import was cancelled.")
        loop.call_soon_threadsafe(progress.update, done, total)

    thread = asyncio.ensure_future(asyncio.to_thread(store.add, path, report, **more))
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError:
            cancelled.set()
    if cancelled.is_set():
        thread.exception()  # its own end is not news
        raise asyncio.CancelledError
    return thread.result()


class ImportFolder:
    """Watches one folder. Belongs to one event loop."""

    def __init__(
        self,
        folder: Path,
        store: ModelStore,
        jobs: Jobs,
        poll_seconds: float,
        listener: Listener = lambda refused: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`listener` gets `statuses()` whenever they changed."""
        self._folder = folder
        self._store = store
        self._jobs = jobs
        self._poll_seconds = poll_seconds
        self._listener = listener
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._seen: Mapping[str, Seen] = {}
        self._under_way: dict[str, tuple[Seen, str]] = {}
        self._held: dict[str, _Held] = {}
        self._refused: tuple[ModelStatus, ...] = ()
        self._outcomes: dict[str, list[ImportedFile]] = {}
        with suppress(OSError):  # of a full disk the first look tells
            folder.mkdir(parents=True, exist_ok=True)

    async def run(self) -> None:
        """Look at the folder until cancelled. An unreadable folder is logged and looked at again."""
        while True:
            try:
                await self.poll()
            except OSError as error:
                log.warning("import.unreadable", error=error.strerror)
            await asyncio.sleep(self._poll_seconds)

    async def poll(self) -> tuple[Job, ...]:
        """One look: starts a job for each file that is whole."""
        self._settle_ended()
        now = await asyncio.to_thread(_look, self._folder)
        taken = [name for name in settled(self._seen, now) if self._may_try(name, now[name])]
        self._seen = now
        refused = (*self._unfit(now), *await asyncio.to_thread(_refused, self._folder / REFUSED))
        if refused != self._refused:
            self._refused = refused
            self._listener(refused)
        return tuple(self._take(name, now[name]) for name in taken)

    def statuses(self) -> tuple[ModelStatus, ...]:
        """What was refused and is still there, as of the last look."""
        return self._refused

    def import_path(self, path: Path, base: str = "", kind: ModelKind | None = None) -> Job:
        """Start a job that takes a file of this machine into the store, or every GGUF of a folder; they stay there.

        base: the model that an adapter belongs to, where it fits several. kind: of a folder with an ONNX model.
        """
        outcomes: list[ImportedFile] = []

        async def work(progress: Progress) -> None:
            sizes = {path: 0} if kind else await asyncio.to_thread(_models_of, path)
            done, total, faults = 0, sum(sizes.values()), []
            for file, size in sizes.items():
                part = _Part(progress, done, total, printable(file.name))
                try:
                    model = await self._add(file, part, base, kind)
                    outcomes.append(ImportedFile(printable(str(file)), model.name))
                except Refused as error:
                    faults.append(error)
                    outcomes.append(ImportedFile(printable(str(file)), "", error.reason, str(error)))
                done += size
            progress.update(done, total, f"{len(sizes) - len(faults)} imported, {len(faults)} refused")
            if len(faults) == len(sizes):
                raise faults[0]

        job = self._jobs.start(KIND, printable(str(path)), "bytes", work)
        self._outcomes[job.id] = outcomes
        for old in list(self._outcomes)[:-KEPT_JOBS]:
            del self._outcomes[old]
        return job

    def outcomes(self, job: str) -> tuple[ImportedFile, ...]:
        """What became of each file of a job so far. Raises NotFound where it was no import by path, or long ago."""
        if job not in self._outcomes:
            raise NotFound(f"There is no import jobs/{job}.")
        return tuple(self._outcomes[job])

    def _take(self, name: str, seen: Seen) -> Job:
        async def work(progress: Progress) -> None:
            try:
                await self._add(self._folder / name, progress)
            except Refused as error:
                await asyncio.to_thread(_refuse, self._folder, name, seen, str(error))
                raise
            await asyncio.to_thread(_accept, self._folder, name, seen)

        job = self._jobs.start(KIND, f"import/{printable(name)}", "bytes", work)
        self._under_way[name] = (seen, job.id)
        return job

    async def _add(self, path: Path, progress: Progress, base: str = "", kind: ModelKind | None = None) -> ModelFile:
        async with self._one_at_a_time:
            return await take_in(self._store, path, progress, base=base, kind=kind)

    def _settle_ended(self) -> None:
        """Jobs that ended without moving their file hold it back, so that it is not tried at every look."""
        for name, (seen, job_id) in list(self._under_way.items()):
            try:
                job = self._jobs.get(job_id)
            except NotFound:  # so long ended that the runner forgot it
                del self._under_way[name]
                continue
            if job.state is JobState.CANCELLED:
                self._held[name] = _Held(seen, math.inf, "The import was cancelled. Drop the file again to import it.")
            elif job.state is JobState.FAILED:
                self._held[name] = _Held(seen, self._clock() + RETRY_SECONDS, job.error_message)
            if job.state.ended:
                del self._under_way[name]

    def _may_try(self, name: str, seen: Seen) -> bool:
        held = self._held.get(name)
        if held is not None and (held.seen != seen or self._clock() >= held.until_seconds):
            del self._held[name]
            held = None
        return held is None and name not in self._under_way

    def _unfit(self, now: Mapping[str, Seen]) -> tuple[ModelStatus, ...]:
        """The files that stay in the folder, with the reason."""
        held = {name: held.detail for name, held in self._held.items() if now.get(name) == held.seen}
        reasons = {name: fault(name, seen) or held.get(name, "") for name, seen in sorted(now.items())}
        return tuple(_status(name, f"import/{name}", reason, now[name]) for name, reason in reasons.items() if reason)


def _models_of(path: Path) -> Mapping[Path, int]:
    """The file itself, or the GGUF files of a folder, adapters last; with their bytes. Raises ModelMissing."""
    if not path.is_dir():
        return {path: _size(path)}
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise ModelMissing(f"The folder {gguf.shown(str(path), 400)} cannot be read: {error.strerror}.") from None
    found = [path / name for name in names if name.lower().endswith(SUFFIX) and not name.startswith(".")]
    if not found:
        raise ModelMissing(
            f"The folder {gguf.shown(str(path), 400)} has no {SUFFIX} file; an ONNX model needs its kind named."
        )
    return {file: _size(file) for file in sorted(found, key=_is_adapter)}


def _size(path: Path) -> int:
    seen = _see(path)
    return seen.size_bytes if seen else 0


def _is_adapter(path: Path) -> bool:
    with suppress(Refused):
        return gguf.read(path).type == ADAPTER
    return False


def _look(folder: Path) -> Mapping[str, Seen]:
    """The folder's entries by name, without hidden ones and the folders of the refused and of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in os.listdir(folder) if not name.startswith(".") and name not in (REFUSED, DOCUMENTS)]
    return {name: seen for name in names if (seen := _see(folder / name)) is not None}


def _see(path: Path) -> Seen | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return Seen(found.st_size, found.st_mtime_ns, found.st_ino, found.st_mode)


def _accept(folder: Path, name: str, seen: Seen) -> None:
    """Remove the file that became a model, unless another took its place, and what was refused under its name."""
    if _see(folder / name) == seen:
        (folder / name).unlink()
    final = folder / REFUSED / _plain_name(name)
    final.unlink(missing_ok=True)
    final.with_name(final.name + REASON).unlink(missing_ok=True)


def _refuse(folder: Path, name: str, seen: Seen, reason: str) -> None:
    """Move the file to the refused ones, unless it is gone or another took its place."""
    if _see(folder / name) != seen:
        return
    final = folder / REFUSED / _plain_name(name)
    final.parent.mkdir(exist_ok=True)
    note = final.with_name(final.name + REASON)
    note.unlink(missing_ok=True)
    with open(note, "x") as target:  # never through a link that someone else put there
        target.write(reason + "\n")
    (folder / name).replace(final)
    log.warning("import.refused", file=printable(name))


def _refused(folder: Path) -> tuple[ModelStatus, ...]:
    """The refused files that are still there; the reasons of those that are gone are removed."""
    statuses = []
    for note in sorted(folder.glob(f"*{REASON}")):
        name = note.name.removesuffix(REASON)
        seen = _see(folder / name)
        if seen is None:
            note.unlink(missing_ok=True)
            continue
        with suppress(ModelMissing, ModelUnsupported), open_regular(note) as source:
            reason = printable(source.read(MAX_REASON_BYTES).decode("utf-8", "replace").strip())
            statuses.append(_status(name, f"import/{REFUSED}/{name}", reason, seen))
    return tuple(statuses)


def _plain_name(name: str) -> str:
    return name[: -len(READY)] + SUFFIX if name.lower().endswith(READY) else name


def _refused_name(name: str, source: str) -> str:
    """A resource name of its own: no stored model's name has this `_`, no other file this digest of where it lies."""
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
    return f"{slug(_plain_name(name).removesuffix(SUFFIX)) or 'model'}_refused_{digest}"


def _status(name: str, source: str, reason: str, seen: Seen) -> ModelStatus:
    return ModelStatus(
        name=_refused_name(name, source),
        kind=ModelKind.CHAT,
        state=ModelState.REFUSED,
        source=printable(source),
        size_bytes=seen.size_bytes,
        detail=reason,
        create_time=datetime.fromtimestamp(min(max(seen.mtime_ns / 1e9, 0.0), LATEST_SECONDS), UTC),
    )
