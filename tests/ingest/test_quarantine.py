import errno
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import DiskFull
from appliance.ingest.quarantine import Quarantine
from appliance.types import FileOutcome, FileState

REFUSED = FileOutcome(
    path="a\\n.pdf",
    state=FileState.QUARANTINED,
    reason="PDF_BROKEN",
    detail="It is broken.",
    sha256="ab" * 32,
    size_bytes=7,
    job="jobs/1",
    time=datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
    tenant="clinic",
)


def paths(quarantine: Quarantine) -> list[str]:
    return [outcome.path for outcome in quarantine.newest_first("clinic")]


def test_a_refusal_is_still_there_after_a_restart(tmp_path: Path) -> None:
    Quarantine(tmp_path / "q").add(REFUSED)
    Quarantine(tmp_path / "q").add(replace(REFUSED, path="b.pdf"))
    assert Quarantine(tmp_path / "q").newest_first("clinic") == (replace(REFUSED, path="b.pdf"), REFUSED)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    Quarantine(tmp_path / "q").add(REFUSED)
    assert stat.S_IMODE((tmp_path / "q").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "q" / "refused.jsonl").stat().st_mode) == 0o600


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    Quarantine(tmp_path).add(REFUSED)
    with (tmp_path / "refused.jsonl").open("ab") as file:
        file.write(b'{"path": "half')
    again = Quarantine(tmp_path)
    assert paths(again) == [REFUSED.path]
    again.add(replace(REFUSED, path="b.pdf"))
    assert paths(Quarantine(tmp_path)) == ["b.pdf", REFUSED.path]


def test_a_tenant_is_told_of_its_own_files_alone(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.add(REFUSED)
    quarantine.add(replace(REFUSED, path="b.pdf", tenant="rival"))
    for one in (quarantine, Quarantine(tmp_path)):
        assert [outcome.path for outcome in one.newest_first("rival")] == ["b.pdf"]
        assert paths(one) == [REFUSED.path]


def test_a_line_of_a_release_without_tenants_is_of_the_default_tenant(tmp_path: Path) -> None:
    Quarantine(tmp_path).add(REFUSED)
    file = tmp_path / "refused.jsonl"
    file.write_bytes(file.read_bytes().replace(b', "tenant": "clinic"', b""))
    old = Quarantine(tmp_path)
    assert old.newest_first("default") == (replace(REFUSED, tenant="default"),)
    assert paths(old) == []


@pytest.mark.parametrize("line", [b"[]", b"1", b"{}", b'{"time": 1}', b"\xff", b'{"time": null, "state": "x"}'])
def test_a_foreign_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "refused.jsonl").write_bytes(line + b"\n")
    assert Quarantine(tmp_path).newest_first("clinic") == ()


def test_the_oldest_are_dropped_in_the_end(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, max_entries=3)
    for number in range(8):
        quarantine.add(replace(REFUSED, path=str(number)))
    assert paths(quarantine) == ["7", "6", "5", "4", "3"]
    assert paths(Quarantine(tmp_path, max_entries=3)) == ["7", "6", "5"]
    assert (tmp_path / "refused.jsonl").read_bytes().count(b"\n") == 5


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine = Quarantine(tmp_path)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(DiskFull, match=r"refused\.jsonl"):
        quarantine.add(REFUSED)
    assert quarantine.newest_first("clinic") == ()
