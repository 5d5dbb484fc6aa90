"""Backups and restores that are cut off, refused or find the disk full."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.errors import (
    BackupRefused,
    DiskFull,
    StoreDamaged,
)
from appliance.knowledge.storage import durable, store
from appliance.knowledge.transfer import backup
from tests.knowledge.conftest import Shelf
from tests.knowledge.disk_faults import Died, Disk, die, run_full
from tests.knowledge.test_transfer_backup import Meanwhile, back_up, lose, restore
from tests.knowledge.test_transfer_export import Told, filled, folders, keyring_of, whole

__all__ = ["filled"]  # a fixture


def full(*_: object) -> None:
    raise DiskFull("No space is left.")


def test_a_backup_of_what_is_being_shredded_is_refused_until_it_is_shredded_and_after(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = back_up(filled, tmp_path / "backup")
    with monkeypatch.context() as patch:
        patch.setattr("appliance.vault.FileTenantKeys.add", full)
        with pytest.raises(DiskFull):
            filled.library.drop("handbook")
    for name in ("handbook", "copy"):
        with pytest.raises(BackupRefused, match="is being shredded"):
            restore(filled, folder, name)
    filled.reopen()
    with pytest.raises(BackupRefused, match="was shredded"):
        restore(filled, folder)
    assert folders(filled) == []


@pytest.mark.parametrize("step", ["adopt", "mark_as_newest"])
def test_a_restore_in_place_of_a_sound_collection_that_fails_leaves_it_and_its_mark(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = back_up(filled, tmp_path / "backup")
    filled.add("Later.", title="later")
    filled.compact()
    before = whole(filled)
    real, (mark,) = getattr(store, step), (filled.root / "vault" / "marks").iterdir()

    def failing(*arguments: object) -> None:
        real(*arguments)
        full()

    older = Path(shutil.copytree(filled.files, tmp_path / "older"))
    filled.add("Latest.", title="latest")
    filled.compact()
    filled.library.close()
    with monkeypatch.context() as patch:
        patch.setattr(store, step, failing)
        with pytest.raises(DiskFull):
            backup.restore(filled.library, "default", "handbook", folder, keyring_of(filled), Told(), replace=True)
    filled.reopen()
    assert len(whole(filled)) == len(before) + 1
    assert list(filled.files.parent.iterdir()) == [filled.files]
    assert mark.exists()
    filled.library.close()
    shutil.rmtree(filled.files)
    shutil.copytree(older, filled.files)
    filled.reopen()
    with pytest.raises(StoreDamaged, match="an older state was put back"):
        whole(filled)


@pytest.mark.parametrize("dies_at", ["exchange", "after the exchange"])
def test_a_kill_while_a_collection_is_replaced_that_wrote_only_its_log_since_leaves_one_that_opens(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    restored, folder = whole(filled), back_up(filled, tmp_path / "backup")
    filled.add("Later.", title="later")
    present, exchange = whole(filled), durable.exchange

    def dying(one: Path, other: Path) -> None:
        if dies_at != "exchange":
            exchange(one, other)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(durable, "exchange", dying)
        with pytest.raises(Died):
            backup.restore(filled.library, "default", "handbook", folder, keyring_of(filled), Told(), replace=True)
    filled.reopen(close=False)
    assert whole(filled) == (present if dies_at == "exchange" else restored)
    assert folders(filled) == ["handbook"]


def test_what_is_restored_under_another_name_stands_in_the_way_of_no_rotation(filled: Shelf, tmp_path: Path) -> None:
    before, folder = whole(filled), back_up(filled, tmp_path / "backup")
    filled.library.create("other")
    done: list[object] = []

    def rotate() -> None:
        done.append(filled.library.rotate())

    lose(filled)
    with pytest.raises(BackupRefused, match="rotated since"):
        restore(filled, folder, "manual", Meanwhile(rotate))
    assert done == [1]
    assert folders(filled) == ["other"]
    assert len(before) == 3


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, run_full])
def test_a_backup_is_the_old_or_the_new_one_whatever_happens(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    disk, step, done = Disk(monkeypatch, fault), 0, False
    old = whole(filled)
    first = back_up(filled, tmp_path / "first")
    filled.add("Later.", title="later")
    new = whole(filled)
    while not done:
        folder = Path(shutil.copytree(first, tmp_path / f"step{step}"))
        with disk.failing_at(step), suppress(Died, DiskFull):
            back_up(filled, folder)
            done = True
        box = filled.copy(f"box{step}")
        lose(box)
        restore(box, folder)
        assert whole(box) in ([new] if done else [old, new])
        box.library.close()
        back_up(filled, folder)
        step += 1
    assert step > 5


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, run_full])
def test_a_restored_collection_is_whole_or_not_there_whatever_happens(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    disk, step, done = Disk(monkeypatch, fault), 0, False
    folder, wanted = back_up(filled, tmp_path / "backup"), whole(filled)
    lose(filled)
    while not done:
        with disk.failing_at(step), suppress(Died, DiskFull):
            restore(filled, folder)
            done = True
        filled.reopen(close=False)
        assert folders(filled) in ([["handbook"]] if done else [[], ["handbook"]])
        if folders(filled):
            assert whole(filled) == wanted
            if not done:
                lose(filled)
        step += 1
    assert step > 10


@pytest.mark.long
@pytest.mark.parametrize("fault", [die, run_full])
def test_a_replaced_collection_is_the_old_or_the_restored_one_whatever_happens(
    filled: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    disk, step, done = Disk(monkeypatch, fault), 0, False
    restored = whole(filled)
    folder = back_up(filled, tmp_path / "backup")
    filled.add("Later.", title="later")
    filled.compact()
    present = whole(filled)
    while not done:
        box = filled.copy(f"box{step}")
        with disk.failing_at(step), suppress(Died, DiskFull):
            backup.restore(box.library, "default", "handbook", folder, keyring_of(box), Told(), replace=True)
            done = True
        for _ in range(2):
            box.reopen(close=False)
            assert folders(box) == ["handbook"]
            assert whole(box) in ([restored] if done else [present, restored])
        box.add("Latest.", title="latest")
        box.reopen()
        assert "latest" in {document.title for document in whole(box)}
        box.library.close()
        step += 1
    assert step > 10
