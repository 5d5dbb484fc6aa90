"""The layout of format version 1, as the release before wrote it, and what a start makes of it."""

import shutil
import tarfile
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, DiskFull
from appliance.knowledge.storage import upgrade
from appliance.knowledge.storage.manifest import ManifestStore
from tests.knowledge.conftest import ALL
from tests.knowledge.test_keys import Box
from tests.searching import search


def version_1(root: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "format" / "version_1.tar.gz") as archive:
        archive.extractall(root, filter="data")
    for path in (root / "vault").rglob("*.key"):
        path.chmod(0o600)
    return root


WAS = [("Badges expire after 90 days.", "", "На третьей странице 日本語 too."), ("Keys do not expire.",)]


def test_collections_of_version_1_become_the_default_tenants(tmp_path: Path) -> None:
    box = Box(version_1(tmp_path / "box"))
    for _ in range(2):
        for name in ("handbook", "default"):
            assert box.texts("default", name) == WAS
            assert search(box.libraries.of("default"), name, "badges expire", ALL, 1).passages[0].text == WAS[0][0]
            assert box.libraries.of("default").verify(name) == ()
        box.open()
    assert [path.name for path in (box.root / "knowledge").iterdir()] == ["default"]
    assert not list((box.root / "knowledge").rglob("key"))
    box.add("default", "handbook", "New.")
    box.libraries.of("default").compact("handbook")
    box.libraries.rotate("default")
    box.open()
    assert box.texts("default", "handbook") == sorted([*WAS, ("New.",)])
    assert box.libraries.damaged() == {}


def test_a_collection_of_version_1_that_is_damaged_is_told_and_the_others_are_upgraded(tmp_path: Path) -> None:
    root = version_1(tmp_path / "box")
    record = root / "knowledge" / "handbook" / "key"
    raw = record.read_bytes()
    record.write_bytes(raw[:-1] + b"\0")
    box = Box(root)
    assert list(box.libraries.damaged()) == ["default/handbook"]
    assert box.texts("default", "default") == WAS
    (root / "knowledge" / ".v1-handbook" / "key").write_bytes(raw)
    box.open()
    assert box.libraries.damaged() == {}
    assert box.texts("default", "handbook") == WAS


def test_a_collection_of_version_1_is_upgraded_though_keys_were_rotated_since_a_first_attempt(tmp_path: Path) -> None:
    root = version_1(tmp_path / "box")
    current = root / "knowledge" / "handbook" / "CURRENT"
    raw = current.read_bytes()
    current.write_bytes(b"damaged")
    box = Box(root)
    assert list(box.libraries.damaged()) == ["default/handbook"]
    box.libraries.rotate("default")
    (root / "knowledge" / ".v1-handbook" / "CURRENT").write_bytes(raw)
    box.open()
    assert box.libraries.damaged() == {}
    assert box.texts("default", "handbook") == WAS


def test_an_upgrade_that_finds_its_place_taken_leaves_both(tmp_path: Path) -> None:
    root = version_1(tmp_path / "box")
    (root / "knowledge" / "default" / "mf").rename(root / "mf")
    shutil.rmtree(root / "knowledge" / "default")
    shutil.rmtree(root / "mf")
    shutil.copytree(root / "knowledge" / "handbook", root / "copy")
    Box(root).libraries.close()
    shutil.move(root / "copy", root / "knowledge" / "handbook")
    box = Box(root)
    assert box.texts("default", "handbook") == WAS
    assert list(upgrade.left_over(root / "knowledge")) == ["default/handbook"]


def test_a_disk_that_is_full_while_upgrading_stops_the_start_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = version_1(tmp_path / "box")

    def full(*_: object) -> None:
        raise DiskFull("No space is left.")

    with monkeypatch.context() as patch:
        patch.setattr(ManifestStore, "commit", full)
        with pytest.raises(ApplianceError, match="No space"):
            Box(root)
    assert Box(root).texts("default", "handbook") == WAS
