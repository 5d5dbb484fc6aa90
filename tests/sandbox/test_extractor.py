import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from appliance.errors import DocumentRefused, SandboxUnavailable
from appliance.sandbox import children
from appliance.sandbox.extractor import LockedExtractor
from appliance.types import Walls
from tests.sandbox.locked import LIMITS, extract, until, zygotes


@pytest_asyncio.fixture
async def hostile() -> AsyncIterator[LockedExtractor]:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {})
    yield extractor
    await extractor.close()


async def test_the_walls_are_told(hostile: LockedExtractor) -> None:
    assert hostile.walls is None
    await hostile.start()
    assert isinstance(hostile.walls, Walls)
    stands = {wall.name for wall in hostile.walls.layers if wall.stands}
    assert {wall.name for wall in hostile.walls.layers if wall.needed} <= stands
    assert {"seccomp", "landlock"} <= stands
    assert abs((datetime.now(UTC) - hostile.walls.proof_time).total_seconds()) < 60
    assert hostile.fault == ""


async def test_namespaces_are_a_wall_more_and_not_needed() -> None:
    extractor = LockedExtractor(
        LIMITS, "tests.sandbox.hostile", {}, zygote=weakened("lockdown.enter_namespaces = lambda: ()")
    )
    assert (await extract(extractor, b"harmless")).pages == ("harmless",)
    assert extractor.walls
    namespaces = extractor.walls.layers[-1]
    assert (namespaces.name, namespaces.stands, namespaces.needed) == ("namespaces", False, False)
    assert namespaces.detail == "without user, pid, net, ipc, uts, mount"
    with pytest.raises(DocumentRefused) as refused:
        await extract(extractor, b"kill_the_parent")
    assert refused.value.file_reason == "FORBIDDEN_CALL"
    await extractor.close()
    assert zygotes() == []


async def test_where_the_root_cannot_be_emptied_the_other_walls_are_proven_all_the_same() -> None:
    extractor = LockedExtractor(
        LIMITS, "tests.sandbox.hostile", {}, zygote=weakened("lockdown.enter_empty_root = lambda probe: False")
    )
    assert (await extract(extractor, b"read_a_file")).pages == ("denied: PermissionError",)
    assert extractor.walls
    assert extractor.walls.layers[-1].detail.endswith("without mount")
    assert not extractor.walls.layers[-1].stands
    await extractor.close()


async def test_documents_are_read_beside_one_another(hostile: LockedExtractor) -> None:
    read = await asyncio.gather(*(extract(hostile, b"nap") for _ in range(4)), extract(hostile, b"harmless"))
    assert [item.pages for item in read] == [("slept",)] * 4 + [("harmless",)]


@pytest.mark.parametrize(("members", "member_bytes"), [(2, 3000), (3, 2999)])
async def test_of_a_container_no_more_members_are_believed_than_were_asked_for(members: int, member_bytes: int) -> None:
    settings = {"members": members, "member_bytes": member_bytes}
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", settings)
    assert [len(member.content) for member in (await extract(extractor, b"2", "a.zip")).members] == [1000, 1000]
    with pytest.raises(DocumentRefused) as refused:
        await extract(extractor, b"3", "a.zip")
    assert refused.value.file_reason == "PARSER_FAILED"
    await extractor.close()


async def test_a_document_is_read_from_its_start_whatever_its_offset(hostile: LockedExtractor) -> None:
    fd = os.memfd_create("document")
    os.write(fd, b"harmless")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 8
    assert (await hostile.extract(fd, "document.txt")).pages == ("harmless",)
    os.close(fd)


async def test_what_may_take_longer_has_to_ask_for_it_and_has_a_limit_of_its_own() -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, more_cpu_seconds={".scan": 1})
    for attack, name, most in (
        (b"spin", "document.txt", 1),
        (b"spin", "document.SCAN", 1),
        (b"spin_by_its_own_clock", "document.txt", 1),
        (b"spin_by_its_own_clock", "document.SCAN", 2),
    ):
        with pytest.raises(DocumentRefused, match=f"more than {most} processor seconds") as refused:
            await extract(extractor, attack, name)
        assert refused.value.file_reason == "SPUN"
    await extractor.close()


async def test_a_child_that_waits_is_killed_at_the_limit_of_wall_time() -> None:
    extractor = LockedExtractor(replace(LIMITS, parse_wall_seconds=1), "tests.sandbox.hostile", {})
    with pytest.raises(DocumentRefused, match="1 seconds") as refused:
        await extract(extractor, b"sleep")
    assert refused.value.file_reason == "SPUN"
    idle = 2 if extractor.walls and "pid" in extractor.walls.layers[-1].detail.split(";")[0] else 1
    await until(lambda: len(zygotes()) == idle)
    await extractor.close()


@pytest.mark.long
async def test_what_may_take_longer_may_wait_twice_as_much_longer() -> None:
    limits = replace(LIMITS, parse_wall_seconds=1)
    extractor = LockedExtractor(limits, "tests.sandbox.hostile", {}, more_cpu_seconds={".scan": 1})
    with pytest.raises(DocumentRefused, match="more than 3 seconds"):
        await extract(extractor, b"sleep", "document.scan")
    await extractor.close()


async def test_cancelling_kills_the_child(hostile: LockedExtractor) -> None:
    await hostile.start()
    idle = len(zygotes())
    reading = asyncio.create_task(extract(hostile, b"sleep"))
    await until(lambda: len(zygotes()) == idle + 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: len(zygotes()) == idle)
    assert (await extract(hostile, b"harmless")).pages == ("harmless",)


async def test_a_killed_zygote_is_replaced_and_its_documents_are_read_again(hostile: LockedExtractor) -> None:
    await hostile.start()
    idle = len(zygotes())
    reading = asyncio.create_task(extract(hostile, b"nap"))
    await until(lambda: len(zygotes()) == idle + 1)
    os.kill(zygotes()[0].pid, signal.SIGKILL)
    assert (await reading).pages == ("slept",)


async def test_closing_leaves_no_process(hostile: LockedExtractor) -> None:
    reading = asyncio.create_task(extract(hostile, b"sleep"))
    await until(lambda: len(zygotes()) >= 2)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await hostile.close()
    assert zygotes() == []


async def test_children_die_with_a_daemon_that_is_killed() -> None:
    script = (
        "import asyncio\n"
        "from appliance.sandbox.extractor import LockedExtractor\n"
        "from tests.sandbox.locked import LIMITS, extract\n"
        "asyncio.run(extract(LockedExtractor(LIMITS, 'tests.sandbox.hostile', {}), b'sleep'))\n"
    )
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    quiet = subprocess.DEVNULL
    daemon = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", script], stdout=quiet, stderr=quiet, env={"PYTHONPATH": path}
    )
    await until(lambda: len(zygotes(daemon.pid)) >= 3)
    family = zygotes(daemon.pid)
    daemon.kill()
    daemon.wait()
    await until(lambda: not any(process.is_running() for process in family))


def weakened(statement: str) -> tuple[str, ...]:
    """A command for a zygote whose lock was tampered with."""
    program = f"import os\nfrom appliance.sandbox import lockdown, zygote\n{statement}\nzygote.main()"
    return (sys.executable, "-s", "-c", program)


UNREADABLE_ANYWAY = """
from appliance.sandbox import attest
def closed(): raise PermissionError(13, None)
attest._file_attempts = lambda probe: (('reading a file', closed),)
"""


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("lockdown.seccomp = lambda: None", "opening a TCP socket; opening a unix socket; starting a program; forking"),
        ("lockdown.landlock = lambda *_, **__: None", "reading a file, under Landlock alone"),
        ("lockdown.lock = lambda *_: None", "reading a file; writing a file"),
        ("lockdown.limit = lambda *_: None", "taking more memory; opening one more descriptor"),
        ("lockdown.STACK_BYTES, lockdown.resource.RLIMIT_CPU = 1 << 20, lockdown.resource.RLIMIT_NICE", "without end"),
        ("lockdown.drop_capabilities = lambda: None", "changing the root folder"),
        (UNREADABLE_ANYWAY, "there is no file to prove it with"),
        ("lockdown.leave_with_parent = os.abort", "did not start"),
        ("def fails(*_): raise OSError(1, 'no')\nlockdown.lock = fails", "reading a file"),
        ("lockdown.LANDLOCK_CREATE_RULESET_VERSION = 1 << 31", "no Landlock"),
        ("lockdown.platform.machine = lambda: 'pdp11'", "pdp11"),
    ],
)
async def test_nothing_is_parsed_where_the_lock_cannot_be_proven(statement: str, complaint: str) -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, zygote=weakened(statement))
    with pytest.raises(SandboxUnavailable, match=complaint):
        await extract(extractor, b"harmless")
    assert complaint in extractor.fault
    assert extractor.walls is None
    await extractor.close()


async def test_what_was_proven_is_proven_again_on_demand(hostile: LockedExtractor) -> None:
    await hostile.prove()
    assert hostile.walls is None  # nothing runs yet that could be proven
    await hostile.start()
    assert hostile.walls
    first, family = hostile.walls, zygotes()
    await hostile.prove()
    assert hostile.walls.proof_time > first.proof_time
    assert hostile.walls.layers == first.layers
    assert zygotes() == family


async def test_a_document_waits_for_a_new_proof_where_the_last_is_old(
    hostile: LockedExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "PROOF_SECONDS", 0.0)
    await hostile.start()
    assert hostile.walls
    before = hostile.walls.proof_time
    await extract(hostile, b"harmless")
    assert hostile.walls.proof_time > before


FALLING = """
real = zygote.attest
def falls(*arguments):
    proof = real(*arguments)
    lockdown.seccomp = lambda: None
    return proof
zygote.attest = falls
"""


async def test_where_a_wall_falls_later_nothing_more_is_parsed() -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, zygote=weakened(FALLING))
    assert (await extract(extractor, b"harmless")).pages == ("harmless",)
    with pytest.raises(SandboxUnavailable, match=r"any more against .*opening a TCP socket"):
        await extractor.prove()
    assert "TCP" in extractor.fault
    assert extractor.walls is None
    assert zygotes() == []
    with pytest.raises(SandboxUnavailable, match="any more"):
        await extract(extractor, b"harmless")
    await extractor.close()


async def test_a_zygote_that_does_not_answer_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = "n = []\nzygote.attest = lambda *_: () if not n.append(1) and len(n) == 1 else os._exit(0)"
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, zygote=weakened(silent))
    await extractor.start()
    with pytest.raises(SandboxUnavailable, match="its own death"):
        await extractor.prove()
    await extractor.close()


async def test_a_child_may_not_write_to_what_it_was_given(hostile: LockedExtractor) -> None:
    fd = os.memfd_create("document")
    os.write(fd, b"overwrite_the_document")
    assert (await hostile.extract(fd, "document.txt")).pages == ("Bad file descriptor",)
    assert os.pread(fd, 100, 0) == b"overwrite_the_document"
    os.close(fd)


async def test_a_child_that_fails_to_lock_parses_nothing() -> None:
    once_proven = "zygote.attest = lambda *_: ()\ndef fails(*_): raise OSError(1, 'no')\nlockdown.lock = fails"
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, zygote=weakened(once_proven))
    with pytest.raises(SandboxUnavailable, match="could not lock itself"):
        await extract(extractor, b"harmless")
    assert extractor.fault == "A child could not lock itself."
    assert extractor.walls is None
    await extractor.close()


async def test_a_request_longer_than_a_message_is_refused_and_the_zygote_lives(hostile: LockedExtractor) -> None:
    await hostile.start()
    family, descriptors = zygotes(), os.listdir("/proc/self/fd")
    fd = os.memfd_create("document")
    with pytest.raises(DocumentRefused) as refused:
        await hostile._children.run(fd, "\x01" * 6000, ignore, 5)
    os.close(fd)
    assert refused.value.file_reason == "NAME_TOO_LONG"
    assert os.listdir("/proc/self/fd") == descriptors
    assert (await extract(hostile, b"harmless")).pages == ("harmless",)
    assert zygotes() == family


async def test_a_fork_that_finds_no_descriptor_left_leaves_none_open(
    hostile: LockedExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hostile.start()

    def full() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", full)
        with pytest.raises(OSError, match="Too many"):
            await extract(hostile, b"harmless")
    assert os.listdir("/proc/self/fd") == before
    assert (await extract(hostile, b"harmless")).pages == ("harmless",)


async def ignore(piece: bytes) -> None:
    """Of an answer nothing is kept."""


async def test_a_parser_that_cannot_be_imported_is_named() -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.absent", {})
    with pytest.raises(SandboxUnavailable, match="absent"):
        await extractor.start()


async def test_after_a_failed_start_the_next_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {}, zygote=("/bin/false",))
    started: list[object] = []
    popen = subprocess.Popen

    def count(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(arguments)
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", count)
    for _ in range(3):
        with pytest.raises(SandboxUnavailable, match="did not start"):
            await extractor.start()
    assert len(started) == 1
    later = time.monotonic() + 1.5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(SandboxUnavailable):
        await extractor.start()
    assert len(started) == 2
