"""A disk that fills up during ingest: the job says so, nothing acknowledged is lost, and it goes on with room."""

import os
from pathlib import Path

import pytest

from appliance.types import FileState, IngestionState, JobState
from tests.daemon import Daemon, running

pytestmark = pytest.mark.long
DISK_MIB = 96
MOUNT = 'mount -t tmpfs -o size={}m tmpfs "$0" && exec "$@"'


def small_disk(data_dir: Path, mib: int = DISK_MIB) -> list[str]:
    """A command that runs another with a small disk of its own at `data_dir`, which nobody else sees."""
    data_dir.mkdir()
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    return ["unshare", *namespaces, "sh", "-c", MOUNT.format(mib), str(data_dir)]


def fill(box: Daemon, leave_bytes: int) -> Path:
    """Take all but `leave_bytes` of the box's disk."""
    ballast = box.files / "ballast"
    disk = os.statvfs(box.files)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_bsize - leave_bytes))
    return ballast


def test_a_full_disk_stops_the_job_by_name_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / ("first" if number < 8 else "rest")
        folder.mkdir(exist_ok=True)
        sentences = "".join(f"Rule {number}.{line} says what to do at gate {line}. " for line in range(150))
        (folder / f"rule-{number:02}.txt").write_text(sentences)
    data = tmp_path / "data"
    with running(data, launcher=small_disk(data)) as box, box.client() as client:
        first = client.ingest(str(tmp_path / "first"), "rules")
        assert list(client.watch_job(first.job))[-1].state is JobState.SUCCEEDED
        ballast = fill(box, leave_bytes=96 << 10)
        begun = client.ingest(str(tmp_path / "rest"), "rules")
        job = list(client.watch_job(begun.job))[-1]
        assert (job.state, job.error_reason) == (JobState.FAILED, "DISK_FULL")
        told = [*client.files(first.id), *client.files(begun.id)]
        kept = {file.document for file in told if file.state is FileState.COMMITTED}
        assert 8 <= len(kept) < 24
        assert {document.name for document in client.documents("rules")} == kept
        assert client.search("rules", "rule 0.7 gate").passages

        ballast.unlink()
        again = client.resume_ingestion(begun.id)
        assert list(client.watch_job(again.job))[-1].state is JobState.SUCCEEDED
        assert client.ingestion(begun.id).state is IngestionState.SUCCEEDED
        assert {file.state for file in client.files(begun.id)} == {FileState.COMMITTED}
        assert len(list(client.documents("rules"))) == 24
