"""Bytes in the quarantine: what comes out is what went in, or a named damage."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import NotFound, StoreDamaged
from appliance.ingest.keys import IngestKeys
from appliance.ingest.memfd import memfd_of
from appliance.ingest.quarantine import CHUNK_BYTES, HEADER_BYTES, Quarantine
from appliance.vault import FileKeyring, FileTenantKeys

SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES)


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    keyring = FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")
    tenant_keys = FileTenantKeys(tmp_path / "keys" / "tenants", keyring)
    keys = IngestKeys(tmp_path / "ingest", keyring, tenant_keys)
    for tenant in ("clinic", "rival"):
        tenant_keys.add(tenant)
        keys.prepare(tenant)
    return Quarantine(tmp_path / "ingest", keys)


def hold(quarantine: Quarantine, content: bytes, number: int = 0, tenant: str = "clinic", load: str = "1") -> None:
    memfd = memfd_of(content)
    try:
        quarantine.hold(tenant, load, number, memfd)
    finally:
        os.close(memfd)


def opened(quarantine: Quarantine, number: int = 0, tenant: str = "clinic", load: str = "1") -> bytes:
    memfd = quarantine.open(tenant, load, number)
    try:
        return os.pread(memfd, 1 << 30, 0)
    finally:
        os.close(memfd)


def path_of(tmp_path: Path, number: int = 0, tenant: str = "clinic", load: str = "1") -> Path:
    return tmp_path / "ingest" / tenant / load / "held" / str(number)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_held_comes_out_as_it_went_in_and_sealed(quarantine: Quarantine, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    hold(quarantine, content)
    assert opened(quarantine) == content
    memfd = quarantine.open("clinic", "1", 0)
    with pytest.raises(PermissionError):
        os.write(memfd, b"x")
    os.close(memfd)
    assert stat.S_IMODE(path_of(tmp_path).stat().st_mode) == 0o600
    assert content[:64] not in path_of(tmp_path).read_bytes() or size < 64


def _flip(raw: bytes) -> bytes:
    return raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:]


def _swap_chunks(raw: bytes) -> bytes:
    first, second = raw[HEADER_BYTES:][: CHUNK_BYTES + 16], raw[HEADER_BYTES:][CHUNK_BYTES + 16 :]
    return raw[:HEADER_BYTES] + second + first


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        _swap_chunks,
        lambda raw: raw[:-1],
        lambda raw: raw[: HEADER_BYTES + CHUNK_BYTES + 16],
        lambda raw: raw[: HEADER_BYTES - 1],
        lambda raw: b"",
        lambda raw: bytes(HEADER_BYTES) + raw[HEADER_BYTES:],
        lambda raw: raw[:15] + bytes([raw[15] ^ 1]) + raw[16:],
        lambda raw: raw[:20] + bytes([raw[20] ^ 1]) + raw[21:],
    ],
)
def test_a_copy_that_was_changed_does_not_open(
    quarantine: Quarantine, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    hold(quarantine, os.urandom(2 * CHUNK_BYTES))
    path = path_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreDamaged):
        opened(quarantine)


@pytest.mark.parametrize(("tenant", "load", "number"), [("rival", "1", 0), ("clinic", "2", 0), ("clinic", "1", 7)])
def test_a_copy_in_anothers_place_does_not_open(
    quarantine: Quarantine, tmp_path: Path, tenant: str, load: str, number: int
) -> None:
    hold(quarantine, b"Pay.")
    other = path_of(tmp_path, number, tenant, load)
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(path_of(tmp_path).read_bytes())
    with pytest.raises(StoreDamaged):
        opened(quarantine, number, tenant, load)


def test_what_is_destroyed_is_gone_and_its_key_was_overwritten_first(
    quarantine: Quarantine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(quarantine, b"Pay.")
    hold(quarantine, b"More.", 1)
    seen: list[bytes] = []
    real = os.unlink

    def watched(path: Path) -> None:
        seen.append(path.read_bytes())
        real(path)

    monkeypatch.setattr(os, "unlink", watched)
    assert quarantine.destroy("clinic", "1", [0, 5]) == 1
    assert not any(seen[0][:HEADER_BYTES])
    with pytest.raises(NotFound):
        opened(quarantine)
    assert opened(quarantine, 1) == b"More."
    assert quarantine.sizes("clinic", "1").keys() == {1}
