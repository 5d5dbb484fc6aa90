"""Where a wall cannot be had, nothing is parsed and health is critical."""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.app import App, watch
from appliance.config import Config
from appliance.errors import SandboxUnavailable
from appliance.health.monitor import Monitor
from appliance.sandbox.extractor import LockedExtractor
from appliance.sandbox.volumes import LockedVolumes
from appliance.sandbox.zygote import NICENESS
from appliance.types import Severity, Wall, Walls
from tests.sandbox.locked import LIMITS, extract, until, zygotes

KERNELS = {
    "seccomp": "name == 'seccomp' and rest[0] == 2",  # SECCOMP_GET_ACTION_AVAIL
    "Landlock": "name.startswith('landlock')",
}


def zygote(lacks: str) -> tuple[str, ...]:
    """The command for a zygote on a kernel that lacks something."""
    program = f"""
import errno
from appliance.sandbox import lockdown, zygote
kernel = lockdown._call
def call(name, *rest):
    if {KERNELS[lacks]}:
        raise OSError(errno.EOPNOTSUPP, 'Operation not supported')
    return kernel(name, *rest)
lockdown._call = call
zygote.main()
"""
    return (sys.executable, "-s", "-c", program)


class Silent:
    """A part of a box that has nothing to tell."""

    scanner_fault = ""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: {}


class Lock:
    """A part that stands behind walls, or whose walls are at fault."""

    def __init__(self, fault: str = "", walls: Walls | None = None) -> None:
        self.fault, self.walls, self.starts = fault, walls, 0

    async def start(self) -> None:
        self.starts += 1
        if self.fault:
            raise SandboxUnavailable(self.fault)


def box(extractor: object, volumes: object) -> Any:
    """An App of which only what is said about the sandbox is real."""
    app: Any = object.__new__(App)
    app.config, app.monitor, app.extractor, app.volumes = Config(ocr_languages=""), Monitor(), extractor, volumes
    for part in ("encoders", "router", "imports", "libraries", "ingest", "watcher", "aliases"):
        setattr(app, part, Silent())
    return app


def told(app: Any) -> list[tuple[str, Severity, str, str]]:
    watch.tell(app)
    return [(one.code, one.severity, one.subject, one.detail) for one in app.monitor.report().findings]


def test_a_box_whose_walls_stand_has_nothing_to_tell() -> None:
    assert told(box(Lock(), Lock())) == []


@pytest.mark.parametrize(("part", "subject"), [("extractor", "sandbox"), ("volumes", "sandbox/volumes")])
def test_the_fault_of_either_part_is_a_critical_finding_until_it_is_mended(part: str, subject: str) -> None:
    app = box(Lock(), Lock())
    getattr(app, part).fault = "There is no lock."
    assert told(app) == [("SANDBOX_UNAVAILABLE", Severity.CRITICAL, subject, "There is no lock.")]
    assert app.monitor.report().severity is Severity.CRITICAL
    getattr(app, part).fault = ""
    assert told(app) == []


@pytest.mark.parametrize("lacks", list(KERNELS))
async def test_no_document_is_parsed_on_a_kernel_that_lacks_a_needed_wall(lacks: str) -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, zygote=zygote(lacks))
    with pytest.raises(SandboxUnavailable, match=lacks):
        await extract(extractor, b"harmless")
    assert (extractor.walls, zygotes()) == (None, [])
    ((code, severity, subject, detail),) = told(box(extractor, Lock()))
    assert (code, severity, subject) == ("SANDBOX_UNAVAILABLE", Severity.CRITICAL, "sandbox")
    assert f"no {lacks}" in detail


@pytest.mark.parametrize("lacks", list(KERNELS))
async def test_no_stick_is_read_on_a_kernel_that_lacks_a_needed_wall(lacks: str) -> None:
    volumes = LockedVolumes(LIMITS, "tests.sandbox.hostile_volumes", zygote(lacks))
    fd = os.memfd_create("stick")
    with pytest.raises(SandboxUnavailable, match=lacks):
        await volumes.list(fd)
    os.close(fd)
    assert (volumes.walls, zygotes()) == (None, [])
    ((code, severity, subject, detail),) = told(box(Lock(), volumes))
    assert (code, severity, subject) == ("SANDBOX_UNAVAILABLE", Severity.CRITICAL, "sandbox/volumes")
    assert f"no {lacks}" in detail


@pytest.mark.parametrize("faulted", ["extractor", "volumes"])
async def test_both_parts_are_proven_when_the_daemon_starts_also_where_the_walls_of_one_are_missing(
    faulted: str,
) -> None:
    app = box(Lock(), Lock())
    getattr(app, faulted).fault = "There is no lock."
    await App._prove_sandbox(app)
    assert (app.extractor.starts, app.volumes.starts) == (1, 1)


def test_a_wall_that_only_one_part_lacks_is_told_all_the_same() -> None:
    seccomp, missing = Wall("seccomp", True, True, "42 calls"), Wall("namespaces", False, False, "without user")
    whole, weak = (Walls((seccomp, *more), datetime.now(UTC)) for more in ((), (missing,)))
    for app in (box(Lock(walls=weak), Lock(walls=whole)), box(Lock(walls=whole), Lock(walls=weak))):
        assert told(app) == [("SANDBOX_WEAKENED", Severity.WARNING, "sandbox/namespaces", "without user")]


def test_status_has_the_walls_of_both_parts_and_the_older_proof() -> None:
    seccomp, spaces = Wall("seccomp", True, True, "42 calls"), Wall("namespaces", True, False, "user")
    missing = Wall("namespaces", False, False, "without user")
    early, late = datetime(2026, 1, 1, 8, tzinfo=UTC), datetime(2026, 1, 1, 9, tzinfo=UTC)
    one, other = Walls((seccomp, spaces), late), Walls((seccomp, missing), early)
    assert watch.walls(one, other) == Walls((seccomp, spaces, missing), early)
    assert watch.walls(other, one) == Walls((seccomp, missing, spaces), early)


def test_status_says_where_one_part_has_not_proven_its_walls() -> None:
    seccomp, now = Wall("seccomp", True, True, "42 calls"), datetime.now(UTC)
    proven = Walls((seccomp,), now)
    assert watch.walls(proven, None) == Walls((seccomp, Wall("around sticks", False, True, "not proven")), now)
    assert watch.walls(None, proven) == Walls((seccomp, Wall("around documents", False, True, "not proven")), now)
    assert watch.walls(None, None) is None


async def test_a_zygote_that_is_starved_of_descriptors_ends_and_another_one_is_proven(
    capfd: pytest.CaptureFixture[str],
) -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {})
    await extractor.start()
    family = zygotes()
    for process in family:
        process.rlimit(psutil.RLIMIT_NOFILE, (0, 0))
    assert (await extract(extractor, b"harmless")).pages == ("harmless",)
    assert set(zygotes()).isdisjoint(family)
    assert extractor.walls
    await extractor.close()
    assert "Traceback" in capfd.readouterr().err  # of the zygote, which ended of it


async def test_whoever_reads_untrusted_bytes_yields_the_processor_to_serving() -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {})
    await extractor.start()
    idle = zygotes()
    sleeping = asyncio.create_task(extract(extractor, b"sleep"))
    await until(lambda: len(zygotes()) > len(idle))
    lowered = min(19, psutil.Process().nice() + NICENESS)
    assert {process.nice() for process in zygotes()} == {lowered}
    sessions = [Path(f"/proc/{process.pid}/autogroup") for process in zygotes()]  # not on each kernel
    assert {path.read_text().split()[-1] for path in sessions if path.exists()} <= {str(NICENESS)}
    sleeping.cancel()
    await asyncio.wait([sleeping])
    await extractor.close()
