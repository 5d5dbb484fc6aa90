import asyncio
import hashlib
import os
import re
import stat
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DiskFull, NotFound
from appliance.jobs import JobRunner
from appliance.models import imports
from appliance.models.imports import ImportFolder, Seen, fault, settled
from appliance.models.store import ModelStore, Report
from appliance.types import Job, JobState, ModelState, ModelStatus
from appliance.vault.keyring import FileKeyring
from tests import gguf_models
from tests.gguf_lora import write_lora
from tests.models.headers import header, pair, write_chat

FILE = Seen(100, 1, 1, stat.S_IFREG)


class Box:
    """A store, a job runner and an import folder that is looked at when the test says so."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "import"
        self.store = ModelStore(root / "models", FileKeyring.open(root / "keys", root / "models"))
        self.jobs = JobRunner()
        self.told: list[tuple[ModelStatus, ...]] = []
        self.now_seconds = 0.0
        self.watcher = ImportFolder(
            self.folder, self.store, self.jobs, 0.01, self.told.append, clock=lambda: self.now_seconds
        )

    async def settle(self) -> list[Job]:
        """Look until every file was seen twice, let the jobs end, and look at what that left."""
        jobs = [*await self.watcher.poll(), *await self.watcher.poll()]
        ended = [await self.end(job) for job in jobs]
        await self.watcher.poll()
        return ended

    async def end(self, job: Job) -> Job:
        async for latest in self.jobs.watch(job.id):
            job = latest
        return job

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir())


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    box = Box(tmp_path)
    yield box
    await box.jobs.stop()


def test_a_file_is_whole_when_two_looks_are_alike_or_its_writer_says_so() -> None:
    grown = Seen(200, 2, 1, stat.S_IFREG)
    now = {"same.gguf": FILE, "grows.gguf": grown, "new.gguf": FILE, "whole.gguf.ready": FILE, "note.txt": FILE}
    assert settled({"same.gguf": FILE, "grows.gguf": FILE, "note.txt": FILE}, now) == ("same.gguf", "whole.gguf.ready")


def test_links_fifos_folders_and_other_files_are_refused_with_the_reason() -> None:
    assert fault("a.gguf", FILE) == fault("A.GGUF", FILE) == ""
    assert "link" in fault("a.gguf", Seen(1, 1, 1, stat.S_IFLNK))
    assert "not a regular file" in fault("a.gguf", Seen(1, 1, 1, stat.S_IFIFO))
    assert "not a regular file" in fault("a.gguf", Seen(1, 1, 1, stat.S_IFDIR))
    assert "Only .gguf files" in fault("a.safetensors", FILE)


async def test_the_folder_is_there_before_the_first_look(box: Box) -> None:
    assert box.folder.is_dir()


async def test_a_dropped_model_is_imported_and_the_file_removed(box: Box) -> None:
    size = write_chat(box.folder / "tiny.gguf").stat().st_size
    [job] = await box.settle()
    assert (job.state, job.kind, job.subject) == (JobState.SUCCEEDED, "import-model", "import/tiny.gguf")
    assert (job.done, job.total, job.unit) == (size, size, "bytes")
    assert [file.name for file in box.store.list()] == ["tiny-chat"]
    assert box.names() == []
    assert box.watcher.statuses() == ()


async def test_a_file_that_still_grows_is_left_alone(box: Box) -> None:
    whole = write_chat(box.folder.parent / "whole.gguf").read_bytes()
    path = box.folder / "tiny.gguf"
    for length in (100, 200, 300):
        path.write_bytes(whole[:length])
        assert await box.watcher.poll() == ()
    path.write_bytes(whole)
    assert await box.watcher.poll() == ()
    [job] = await box.watcher.poll()
    assert (await box.end(job)).state is JobState.SUCCEEDED


async def test_a_file_renamed_to_ready_is_taken_at_the_first_look(box: Box) -> None:
    write_chat(box.folder / "tiny.gguf.ready")
    [job] = await box.watcher.poll()
    assert (await box.end(job)).state is JobState.SUCCEEDED
    assert box.names() == []


async def test_a_truncated_model_is_moved_aside_with_its_reason_and_listed(box: Box) -> None:
    path = write_chat(box.folder / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    [job] = await box.settle()
    assert (job.state, job.error_reason) == (JobState.FAILED, "MODEL_DAMAGED")
    assert box.names() == ["refused/tiny.gguf", "refused/tiny.gguf.reason.txt"]
    [status] = box.watcher.statuses()
    digest = hashlib.sha256(b"import/refused/tiny.gguf").hexdigest()[:8]
    assert (status.name, status.state, status.source) == (
        "tiny_refused_" + digest,
        ModelState.REFUSED,
        "import/refused/tiny.gguf",
    )
    assert "cut short" in status.detail
    assert box.told[-1] == (status,)


async def test_a_refusal_is_still_known_after_a_restart_and_forgotten_with_the_file(box: Box) -> None:
    (box.folder / "bad.gguf").write_bytes(b"not a model")
    await box.settle()
    again = ImportFolder(box.folder, box.store, box.jobs, 1)
    await again.poll()
    assert again.statuses() == box.watcher.statuses()
    assert again.statuses() != ()
    (box.folder / "refused" / "bad.gguf").unlink()
    await again.poll()
    assert again.statuses() == ()
    assert box.names() == []


async def test_a_sound_file_of_the_same_name_replaces_the_refused_one(box: Box) -> None:
    (box.folder / "tiny.gguf").write_bytes(b"not a model")
    await box.settle()
    write_chat(box.folder / "tiny.gguf")
    await box.settle()
    assert box.names() == []
    assert box.watcher.statuses() == ()
    assert [file.name for file in box.store.list()] == ["tiny-chat"]


async def test_the_folder_of_documents_that_ingest_takes_is_no_refused_model(box: Box) -> None:
    (box.folder / "documents" / "default").mkdir(parents=True)
    (box.folder / "documents" / "default" / "rules.txt").write_text("Badges expire.")
    assert await box.settle() == []
    assert box.watcher.statuses() == ()


async def test_what_cannot_be_a_model_stays_and_is_listed_and_hidden_files_are_not(box: Box) -> None:
    (box.folder / "notes\n\u202e.txt").write_text("x")
    (box.folder / ".upload.gguf").write_text("x")
    (box.folder / "link.gguf").symlink_to(write_chat(box.folder.parent / "x.gguf"))
    os.mkfifo(box.folder / "pipe.gguf")
    assert await box.settle() == []
    details = {status.source: status.detail for status in box.watcher.statuses()}
    assert details == {
        "import/link.gguf": "It is a link; copy the file itself.",
        "import/notes\\u000a\\u202e.txt": "Only .gguf files are taken.",
        "import/pipe.gguf": "It is not a regular file.",
    }
    assert len(box.names()) == 4


async def test_no_refused_file_has_the_name_of_a_model_or_of_another(box: Box) -> None:
    write_chat(box.folder / "chat.gguf")
    await box.settle()
    [stored] = box.store.list()
    for name in (f"{stored.name}.gguf", f"{stored.name}.GGUF", "\u4e16.gguf", "\u754c.gguf", "x" * 200 + ".gguf"):
        (box.folder / name).write_bytes(b"not a model")
    await box.settle()
    (box.folder / f"{stored.name}.gguf").symlink_to("/nowhere")
    await box.settle()
    names = [stored.name, *(status.name for status in box.watcher.statuses())]
    assert len(set(names)) == len(names) == 7
    assert all(re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) for name in names)


@pytest.mark.parametrize(("seconds", "year"), [(10**12, 9999), (-(10**12), 1970)])
async def test_a_file_with_an_absurd_time_is_listed(
    box: Box, monkeypatch: pytest.MonkeyPatch, seconds: int, year: int
) -> None:
    see = imports._see

    def absurd(path: Path) -> Seen | None:
        seen = see(path)
        return seen and replace(seen, mtime_ns=seconds * 10**9)

    monkeypatch.setattr(imports, "_see", absurd)
    (box.folder / "notes.txt").write_text("x")
    await box.watcher.poll()
    [status] = box.watcher.statuses()
    assert status.create_time is not None
    assert status.create_time.year == year


async def test_a_reason_is_never_read_or_written_through_a_link(box: Box, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    refused = box.folder / "refused"
    refused.mkdir()
    (refused / "a.gguf").write_text("x")
    (refused / "a.gguf.reason.txt").symlink_to(secret)
    await box.watcher.poll()
    assert box.watcher.statuses() == ()
    (box.folder / "a.gguf").write_bytes(b"not a model")
    await box.settle()
    assert secret.read_text() == "not yours"
    assert "GGUF" in box.watcher.statuses()[0].detail


async def until_it_is_heard() -> None:
    """Let the loop turn until a cancellation has gone wherever it goes without the thread."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_cancelling_an_import_even_twice_waits_for_its_thread_and_leaves_the_file(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, go_on = threading.Event(), threading.Event()
    add = box.store.add

    def slow(path: Path, report: Report, **more: Any) -> object:
        def wait(done: int, total: int) -> None:
            copying.set()
            assert go_on.wait(10)
            report(done, total)

        return add(path, wait, **more)

    monkeypatch.setattr(box.store, "add", slow)
    write_chat(box.folder / "tiny.gguf.ready")
    [job] = await box.watcher.poll()
    assert await asyncio.to_thread(copying.wait, 10)
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == job.name]
    for _ in range(2):
        task.cancel()
        await until_it_is_heard()
        assert not box.jobs.get(job.id).state.ended
    go_on.set()
    assert (await box.end(job)).state is JobState.CANCELLED
    assert box.store.list() == ()
    assert list((box.folder.parent / "models" / "blobs").iterdir()) == []
    assert await box.watcher.poll() == await box.watcher.poll() == ()
    assert "cancelled" in box.watcher.statuses()[0].detail
    os.utime(box.folder / "tiny.gguf.ready")
    monkeypatch.undo()
    [job] = await box.watcher.poll()
    assert (await box.end(job)).state is JobState.SUCCEEDED


async def test_a_full_disk_keeps_the_file_and_tries_again_later(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, report: object, **more: Any) -> object:
        raise DiskFull("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(box.store, "add", full)
        write_chat(box.folder / "tiny.gguf.ready")
        [job] = await box.watcher.poll()
        assert (await box.end(job)).state is JobState.FAILED
        assert await box.watcher.poll() == ()
        assert box.names() == ["tiny.gguf.ready"]
        assert [status.detail for status in box.watcher.statuses()] == ["The disk is full."]
    box.now_seconds += imports.RETRY_SECONDS
    [job] = await box.watcher.poll()
    assert (await box.end(job)).state is JobState.SUCCEEDED


async def test_a_file_of_this_machine_is_imported_by_path_and_stays(box: Box, tmp_path: Path) -> None:
    path = write_chat(tmp_path / "stick.gguf")
    assert (await box.end(box.watcher.import_path(path))).state is JobState.SUCCEEDED
    assert path.exists()
    missing = await box.end(box.watcher.import_path(tmp_path / "none.gguf"))
    assert (missing.state, missing.error_reason) == (JobState.FAILED, "MODEL_MISSING")


async def test_every_gguf_of_a_folder_is_imported_and_each_that_is_not_says_why(box: Box, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    (stick / "below").mkdir(parents=True)
    base = gguf_models.write_llama(stick / "z-base.gguf")
    write_lora(stick / "a-style.gguf", base, name="style")  # before its base by name, after it by need
    write_chat(stick / "tiny.GGUF")
    write_chat(stick / "part.gguf", name="Large", split__count=3, split__no=1)
    write_chat(stick / ".hidden.gguf", seed=1)
    write_chat(stick / "below" / "deep.gguf", seed=2)
    (stick / "notes.txt").write_text("x")
    (stick / "bad.gguf").write_bytes(b"not a model")
    (stick / "link.gguf").symlink_to(stick / "tiny.GGUF")
    job = await box.end(box.watcher.import_path(stick))
    assert (job.state, job.note) == (JobState.SUCCEEDED, "3 imported, 3 refused")
    assert job.done == job.total > 0
    outcomes = {Path(item.path).name: item for item in box.watcher.outcomes(job.id)}
    assert {name: item.model or item.reason for name, item in outcomes.items()} == {
        "z-base.gguf": "random-llama",
        "a-style.gguf": "style",
        "tiny.GGUF": "tiny-chat",
        "part.gguf": "MODEL_UNSUPPORTED",
        "bad.gguf": "MODEL_DAMAGED",
        "link.gguf": "MODEL_MISSING",
    }
    assert "part 2 of 3. Merge the parts first" in outcomes["part.gguf"].detail
    assert len(list(stick.iterdir())) == 9


async def test_a_later_part_of_a_split_model_says_so_although_it_has_no_architecture(box: Box, tmp_path: Path) -> None:
    part = tmp_path / "large-00002-of-00003.gguf"
    keys = [pair("split.no", 2, struct.pack("<H", 1)), pair("split.count", 2, struct.pack("<H", 3))]
    part.write_bytes(header(keys))
    job = await box.end(box.watcher.import_path(part))
    assert (job.state, job.error_reason) == (JobState.FAILED, "MODEL_UNSUPPORTED")
    assert "part 2 of 3" in job.error_message


async def test_a_folder_of_which_nothing_becomes_a_model_fails(box: Box, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    job = await box.end(box.watcher.import_path(empty))
    assert (job.error_reason, box.watcher.outcomes(job.id)) == ("MODEL_MISSING", ())
    (empty / "bad.gguf").write_bytes(b"not a model")
    job = await box.end(box.watcher.import_path(empty))
    assert (job.state, job.error_reason) == (JobState.FAILED, "MODEL_DAMAGED")
    assert [item.reason for item in box.watcher.outcomes(job.id)] == ["MODEL_DAMAGED"]
    with pytest.raises(NotFound):
        box.watcher.outcomes("none")


async def test_an_import_is_undone_by_deleting_what_it_made(box: Box, tmp_path: Path) -> None:
    job = await box.end(box.watcher.import_path(write_chat(tmp_path / "tiny.gguf")))
    [made] = box.watcher.outcomes(job.id)
    box.store.delete(made.model)
    assert box.store.list() == ()
    assert list((tmp_path / "models" / "blobs").iterdir()) == []


async def test_the_loop_imports_by_itself_until_it_is_cancelled(box: Box) -> None:
    running = asyncio.create_task(box.watcher.run())
    write_chat(box.folder / "tiny.gguf")
    async with asyncio.timeout(20):
        while not box.jobs.list():  # noqa: ASYNC110 - the runner tells of jobs, not of their beginning
            await asyncio.sleep(0.01)
        [job] = box.jobs.list()
        assert (await box.end(job)).state is JobState.SUCCEEDED
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
