"""Exports, imports, backups and restores as an operator starts them: paths checked, progress told, cancelled whole."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from appliance.errors import AlreadyExists, ApplianceError, InvalidArgument, NotFound
from appliance.jobs import JobRunner
from appliance.knowledge.transfer.jobs import Transfers
from appliance.types import Collection, Job, JobState, NewDocument, PassphraseCost
from tests.knowledge.conftest import Shelf
from tests.knowledge.test_transfer_backup import lose
from tests.knowledge.test_transfer_export import WORDS, filled, folders, keyring_of, whole

__all__ = ["filled"]  # a fixture

GROUPS = frozenset({"group:hr"})
Start = Callable[[Transfers, str], Job]
STARTS: dict[str, Start] = {
    "export": lambda transfers, path: transfers.export("default", "handbook", path, WORDS),
    "import": lambda transfers, path: transfers.import_("default", "copy", path, WORDS),
    "backup": lambda transfers, path: transfers.backup("default", "handbook", path),
    "restore": lambda transfers, path: transfers.restore("default", "copy", path),
}


@pytest.fixture
def jobs() -> JobRunner:
    return JobRunner()


@pytest.fixture
def transfers(filled: Shelf, jobs: JobRunner) -> Transfers:
    cost = PassphraseCost(memory_kib=8, passes=1, lanes=1)
    return Transfers(filled.libraries, keyring_of(filled), jobs, filled.root, {"default": GROUPS}.__getitem__, cost)


async def ended(jobs: JobRunner, job: Job) -> Job:
    seen = [one async for one in jobs.watch(job.id)]
    return seen[-1]


async def test_readers_of_an_import_are_checked_against_the_groups_of_its_tenant(
    filled: Shelf, transfers: Transfers, jobs: JobRunner, tmp_path: Path
) -> None:
    for group, state in (("hr", JobState.SUCCEEDED), ("board", JobState.FAILED)):
        filled.add(f"Salaries of {group}.", title=group, readers=frozenset({f"group:{group}", "user:ann"}))
        await ended(jobs, transfers.export("default", "handbook", f"{tmp_path}/{group}.export", WORDS))
        job = await ended(jobs, transfers.import_("default", f"of-{group}", f"{tmp_path}/{group}.export", WORDS))
        assert job.state is state
    assert "'group:board' names no group" in job.error_message
    assert [one.id for one in filled.library.collections()] == ["handbook", "of-hr"]


async def test_each_is_a_job_that_tells_what_it_did(
    filled: Shelf, transfers: Transfers, jobs: JobRunner, tmp_path: Path
) -> None:
    before = whole(filled)
    job = await ended(jobs, transfers.export("default", "handbook", f"{tmp_path}/a.export", WORDS))
    assert (job.kind, job.subject, job.state) == ("export", "collections/handbook", JobState.SUCCEEDED)
    assert (job.done, job.total, job.unit) == (3, 3, "documents")
    job = await ended(jobs, transfers.import_("default", "copy", f"{tmp_path}/a.export", WORDS))
    assert (job.kind, job.subject, job.state) == ("import", "collections/copy", JobState.SUCCEEDED)
    assert whole(filled, "copy") == before
    job = await ended(jobs, transfers.backup("default", "handbook", f"{tmp_path}/backup"))
    assert (job.kind, job.state, job.unit, job.done) == ("backup", JobState.SUCCEEDED, "bytes", job.total)
    lose(filled)
    job = await ended(jobs, transfers.restore("default", "handbook", f"{tmp_path}/backup"))
    assert (job.kind, job.state, job.unit, job.done) == ("restore", JobState.SUCCEEDED, "bytes", job.total)
    assert whole(filled) == before


async def test_what_fails_inside_a_job_is_told_by_its_reason(
    filled: Shelf, transfers: Transfers, jobs: JobRunner, tmp_path: Path
) -> None:
    path = f"{tmp_path}/a.export"
    await ended(jobs, transfers.export("default", "handbook", path, WORDS))
    job = await ended(jobs, transfers.import_("default", "copy", path, "another passphrase"))
    assert (job.state, job.error_reason) == (JobState.FAILED, "PASSPHRASE_WRONG")
    job = await ended(jobs, transfers.import_("default", "handbook", path, WORDS))
    assert job.error_reason == "ALREADY_EXISTS"
    (tmp_path / "a.export").write_bytes(b"PK")
    job = await ended(jobs, transfers.import_("default", "copy", path, WORDS))
    assert job.error_reason == "ARCHIVE_REFUSED"
    assert WORDS not in job.error_message
    (tmp_path / "empty").mkdir()
    job = await ended(jobs, transfers.restore("default", "copy", f"{tmp_path}/empty"))
    assert job.state is JobState.FAILED
    assert folders(filled) == ["handbook"]


@pytest.mark.parametrize("name", STARTS)
async def test_a_path_that_will_not_do_is_refused_before_a_job_begins(
    filled: Shelf, transfers: Transfers, jobs: JobRunner, tmp_path: Path, name: str
) -> None:
    (tmp_path / "inside").symlink_to(filled.root / "knowledge")
    (tmp_path / "file").write_bytes(b"x")
    bad = ["relative", "", "/", f"{tmp_path}/..", f"{tmp_path}/no/where", f"{tmp_path}/file/x", f"{tmp_path}/a\0b"]
    bad += [f"{filled.root}/x", f"{filled.root}/knowledge/x", f"{tmp_path}/inside/x", f"{tmp_path}/{'x' * 256}"]
    bad += [str(filled.root)]
    for path in bad:
        with pytest.raises(ApplianceError) as refused:
            STARTS[name](transfers, path)
        assert isinstance(refused.value, InvalidArgument), path
    assert jobs.list() == ()


async def test_what_is_not_there_is_told_at_once(transfers: Transfers, jobs: JobRunner, tmp_path: Path) -> None:
    starts: list[Callable[[], Job]] = [
        lambda: transfers.export("default", "nothing", f"{tmp_path}/a", WORDS),
        lambda: transfers.backup("default", "nothing", f"{tmp_path}/a"),
        lambda: transfers.export("other", "handbook", f"{tmp_path}/a", WORDS),
        lambda: transfers.import_("default", "copy", f"{tmp_path}/a", WORDS),
        lambda: transfers.restore("default", "copy", f"{tmp_path}/a"),
    ]
    for start in starts:
        with pytest.raises(NotFound):
            start()
    (tmp_path / "taken").write_bytes(b"x")
    with pytest.raises(AlreadyExists):
        transfers.export("default", "handbook", f"{tmp_path}/taken", WORDS)
    with pytest.raises(InvalidArgument, match="passphrase: must have 12"):
        transfers.export("default", "handbook", f"{tmp_path}/a", "short")
    assert jobs.list() == ()


async def test_a_cancelled_job_leaves_nothing(
    filled: Shelf, transfers: Transfers, jobs: JobRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, export = Event(), filled.library.export

    def held(collection: str) -> tuple[Collection, Iterator[NewDocument]]:
        about, documents = export(collection)
        return about, (document for document in documents if go.wait(20))

    monkeypatch.setattr(filled.library, "export", held)
    job = transfers.export("default", "handbook", f"{tmp_path}/a.export", WORDS)
    async for seen in jobs.watch(job.id):
        if seen.total and not go.is_set():  # it runs, and has read nothing yet
            jobs.cancel(job.id)
            await asyncio.sleep(0.01)
            go.set()
    assert jobs.get(job.id).state is JobState.CANCELLED
    assert os.listdir(tmp_path) == [filled.root.name]
