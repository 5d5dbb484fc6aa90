"""A disk that fills up during ingest: the job says so, nothing acknowledged is lost, and it goes on with room."""

import os
from pathlib import Path

import pytest

from appliance.types import FileState, JobState
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
    folder = tmp_path / "stick"
    folder.mkdir()
    for number in range(24):
        sentences = "".join(f"Rule {number}.{line} says what to do at gate {line}. " for line in range(150))
        (folder / f"rule-{number:02}.txt").write_text(sentences)
    data = tmp_path / "data"
    with running(data, launcher=small_disk(data)) as box, box.client() as client:
        ballast = fill(box, leave_bytes=192 << 10)
        job = list(client.watch_job(client.ingest_folder(str(folder), "rules").id))[-1]
        assert (job.state, job.error_reason) == (JobState.FAILED, "DISK_FULL")
        kept = [file for file in client.files(job.id) if file.state is FileState.COMMITTED]
        assert 0 < len(kept) < 24
        stored = {document.name for document in client.documents("rules")}
        assert stored == {file.document for file in kept}
        assert client.search("rules", "rule 0.7 gate").passages

        ballast.unlink()
        again = list(client.watch_job(client.ingest_folder(str(folder), "rules").id))[-1]
        assert again.state is JobState.SUCCEEDED
        states = [file.state for file in client.files(again.id)]
        assert states.count(FileState.DUPLICATE) == len(kept)
        assert len(list(client.documents("rules"))) == 24
