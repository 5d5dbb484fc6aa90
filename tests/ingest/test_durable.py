"""What a call of durable.py has said is on the disk is there after a power cut, and what it has destroyed is not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.errors import DiskFull
from appliance.ingest import durable
from appliance.ingest.durable import NEW
from tests.ingest.faults import Died, Disk, die, die_in_the_middle, run_full
from tests.knowledge.disk_faults import STATES, Platter

SECRET = b"0123456789abcdef"
NEVER = 1 << 30


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@contextmanager
def watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """By a platter; gives what a power cut leaves in a state."""
    platter = Platter(root)
    try:
        with platter.watching(monkeypatch):
            yield lambda state: platter.left(root.with_name(f"after {state}"), state)
    finally:
        platter.close()


def test_what_was_written_is_there_after_a_power_cut(root: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    with watched(root, monkeypatch) as left:
        durable.make_directory(root / "a" / "b")
        durable.replace_file(root / "a" / "b" / "file", [b"one ", b"two "])
        durable.append(root / "a" / "b" / "file", b"three", 8)
        assert (left(state) / "a" / "b" / "file").read_bytes() == b"one two three"


def test_a_new_file_is_there_once_its_folder_is_synced(root: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    with watched(root, monkeypatch) as left:
        durable.write_file(root / "file", [b"one"])
        durable.sync_directory(root)
        assert (left(state) / "file").read_bytes() == b"one"


def test_what_begins_a_destroyed_file_never_comes_back(root: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    (root / "file").write_bytes(SECRET + b"sealed")
    with watched(root, monkeypatch) as left:
        assert durable.destroy(root / "file", len(SECRET))
        after = left(state) / "file"
        assert not after.exists() or after.read_bytes() == bytes(len(SECRET)) + b"sealed"
        assert not (root / "file").exists()
    assert not durable.destroy(root / "file", len(SECRET))


@pytest.mark.parametrize("fault", [die, die_in_the_middle])
def test_a_power_cut_while_a_file_is_replaced_leaves_the_old_one_or_the_new_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, fault: Callable[..., None]
) -> None:
    step = 0
    while True:
        folder = tmp_path / str(step) / "root"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"old")
        disk, has_died = Disk(monkeypatch, folder, fault), False
        with watched(folder, monkeypatch) as left:
            try:
                with disk.failing_at(step):
                    durable.replace_file(folder / "file", [b"new and longer"])
            except Died:
                has_died = True
            after = (left(state) / "file").read_bytes()
        if not has_died:
            break
        assert after in (b"old", b"new and longer")
        step += 1
    assert after == b"new and longer"
    assert step == disk.steps == 5, "made, written, synced, renamed, synced by name"


def test_a_full_disk_takes_nothing_and_leaves_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_bytes(b"old")
    with Disk(monkeypatch, root, run_full).failing_at(0):
        with pytest.raises(DiskFull):
            durable.replace_file(root / "file", [b"new"])
        with pytest.raises(DiskFull):
            durable.append(root / "file", b" more", 3)
    assert (root / "file").read_bytes() == b"old"
    assert not (root / f"{NEW}file").exists()
