"""The root key replaced: everything under it still opens, and the old one is gone, whenever the process dies."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from appliance.access.apps import AppKeys
from appliance.errors import ApplianceError, DiskFull, StoreDamaged
from appliance.types import AppScope, Principal, Role
from appliance.vault import FileKeyring, FileTenantKeys, cache_key, files

STEPS = ("open", "pwrite", "fsync", "rename", "replace", "link", "unlink", "mkdir")


class Died(BaseException):
    """The process is gone."""


class Box:
    """Everything that the root key wraps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keyring = FileKeyring.open(root / "keys", root / "knowledge")
        self.tenants = FileTenantKeys(root / "keys" / "tenants", self.keyring)
        self.cache = root / "cache" / "key"
        self.apps = AppKeys(root / "access" / "apps.json", self.keyring)

    def rotate(self) -> None:
        self.keyring.rotate(
            (self.tenants.rewrap, partial(cache_key.rewrap, self.cache, self.keyring), self.apps.rewrap)
        )

    def secrets(self) -> list[bytes]:
        return [
            self.keyring.sign(b"deterministic"),
            self.tenants.get("acme", 1),
            self.tenants.get("rival", 1),
            cache_key.load(self.cache, self.keyring),
        ]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path / "box")
    made.tenants.add("acme")
    made.tenants.add("rival")
    made.secrets()
    return made


def test_everything_opens_as_before_and_again_after_a_start(box: Box) -> None:
    _, token = box.apps.create(Principal("acme", "bot", Role.APP), [AppScope.KNOWLEDGE])
    before, root = box.secrets(), (box.root / "keys" / "slots" / "file.key").read_bytes()
    box.rotate()
    assert box.secrets() == before
    assert (box.root / "keys" / "slots" / "file.key").read_bytes() != root
    assert [path.name for path in (box.root / "keys" / "slots").iterdir()] == ["file.key"]
    again = Box(box.root)
    assert not again.keyring.is_rotating
    assert again.secrets() == before
    assert again.apps.authenticate(token).user == "bot"


def test_the_old_root_key_opens_nothing_that_is_there_afterwards(box: Box, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(box.root, old)
    box.rotate()
    for path in ("keys/tenants/acme/1", "keys/signing.key", "cache/key"):
        shutil.copy(box.root / path, old / path)
    with pytest.raises(ApplianceError):
        FileKeyring.open(old / "keys", old / "knowledge")
    raw = files.read_key_file(old / "keys" / "slots" / "file.key", files.KIND_ROOT_IN_CLEAR)
    keyring = FileKeyring(raw, bytes(32))
    with pytest.raises(ApplianceError):
        FileTenantKeys(old / "keys" / "tenants", keyring).get("acme", 1)


def test_the_old_root_key_is_overwritten(box: Box, tmp_path: Path) -> None:
    kept = tmp_path / "another name of the same bytes"
    os.link(box.root / "keys" / "slots" / "file.key", kept)
    box.rotate()
    assert not any(kept.read_bytes())


@pytest.mark.parametrize("full", [False, True])
def test_a_kill_or_a_full_disk_at_any_step_loses_no_key(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    before, step, done = box.secrets(), 0, False
    while not done:
        copy = tmp_path / f"step{step}"
        shutil.copytree(box.root, copy)
        tried = Box(copy)
        with monkeypatch.context() as patch:
            _fail_from(patch, step, full)
            with suppress(Died, DiskFull, ApplianceError):
                tried.rotate()
                done = True
        if full and not done:
            assert tried.secrets() == before
            tried.rotate()  # there is room again
            assert tried.secrets() == before
        again = Box(copy)
        assert again.secrets() == before, f"after step {step}"
        if again.keyring.is_rotating:
            again.rotate()
        assert Box(copy).secrets() == before
        assert [path.name for path in (copy / "keys" / "slots").iterdir()] == ["file.key"]
        step += 1
    assert step > 20


def _fail_from(patch: pytest.MonkeyPatch, first: int, full: bool) -> None:
    """Every step to the disk from number `first` on."""
    steps = 0

    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            nonlocal steps
            reads = name == "open" and isinstance(arguments[1], int) and not arguments[1] & (os.O_CREAT | os.O_WRONLY)
            if not reads:
                steps += 1
                if steps > first:
                    if not full:
                        raise Died
                    if name not in ("unlink", "rename", "replace"):
                        raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return step

    for name in STEPS:
        patch.setattr(f"appliance.vault.files.os.{name}", wrap(name, getattr(os, name)))


def test_a_slot_of_another_box_in_the_place_of_the_next_one_is_refused(box: Box, tmp_path: Path) -> None:
    other = FileKeyring.open(tmp_path / "other", tmp_path / "nothing")
    assert other
    shutil.copy(tmp_path / "other" / "slots" / "file.key", box.root / "keys" / "slots" / "next.key")
    keyring = FileKeyring.open(box.root / "keys", box.root / "knowledge")
    assert keyring.is_rotating  # nothing tells it from a rotation that died at its first step; what is old still opens
    assert Box(box.root).secrets()


def test_a_key_wrapped_for_nothing_here_stays_refused_while_two_roots_unwrap(box: Box) -> None:
    wrapped = box.keyring.wrap(bytes(32), b"here")

    def stop() -> None:
        raise DiskFull("No space is left.")

    with pytest.raises(DiskFull):
        box.keyring.rotate([stop])
    assert box.keyring.is_rotating
    assert box.keyring.unwrap(wrapped, b"here") == bytes(32)
    with pytest.raises(StoreDamaged):
        box.keyring.unwrap(wrapped, b"there")
