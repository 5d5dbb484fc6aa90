import errno
import mmap
import os
import platform
import struct

import pytest

from appliance.errors import SandboxUnavailable
from appliance.sandbox import lockdown

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
PID = 4711

NUMBERS = {
    "x86_64": {
        "arch": 0xC000003E, "read": 0, "write": 1, "mmap": 9, "mprotect": 10, "openat": 257, "socket": 41, "clone": 56,
        "execve": 59, "kill": 62, "ptrace": 101, "tgkill": 234, "clone3": 435, "io_uring_setup": 425, "execveat": 322,
    },
    "aarch64": {
        "arch": 0xC00000B7, "read": 63, "write": 64, "mmap": 222, "mprotect": 226, "openat": 56, "socket": 198,
        "clone": 220, "execve": 221, "kill": 129, "ptrace": 117, "tgkill": 131, "clone3": 435, "io_uring_setup": 425,
        "execveat": 281,
    },
}  # fmt: skip


class Kernel:
    """Runs the filter of a processor as the kernel would: classic BPF over struct seccomp_data."""

    def __init__(self, machine: str, program: bytes) -> None:
        self.numbers = NUMBERS[machine]
        self.program = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]

    def call(self, name: str, *arguments: int, arch: int = 0, flags: int = 0) -> int:
        number = self.numbers[name] | flags
        data = struct.pack("=IIQ6Q", number, arch or self.numbers["arch"], 0, *arguments, *[0] * (6 - len(arguments)))
        accumulator, at = 0, 0
        while True:
            code, if_true, if_false, operand = self.program[at]
            at += 1
            if code == 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            elif code == 0x06:
                return int(operand)
            else:
                true = accumulator == operand if code == 0x15 else accumulator & operand
                at += if_true if true else if_false


@pytest.fixture(params=["x86_64", "aarch64"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    installed: list[bytes] = []
    real = lockdown._filter

    def record(architecture: lockdown._Architecture, pid: int) -> bytes:
        installed.append(real(architecture, PID))
        return installed[0]

    monkeypatch.setattr(platform, "machine", lambda: request.param)
    monkeypatch.setattr(lockdown, "_filter", record)
    monkeypatch.setattr(lockdown, "_syscall", lambda *_: 0)
    lockdown.seccomp()
    return Kernel(request.param, installed[0])


@pytest.mark.parametrize("name", ["read", "write"])
def test_reading_and_writing_go_on(kernel: Kernel, name: str) -> None:
    assert kernel.call(name) == ALLOW


@pytest.mark.parametrize(
    "name", ["socket", "clone", "clone3", "execve", "execveat", "kill", "ptrace", "io_uring_setup"]
)
def test_what_is_not_listed_kills(kernel: Kernel, name: str) -> None:
    assert kernel.call(name) == KILL


def test_opening_a_file_is_an_error_of_permission(kernel: Kernel) -> None:
    assert kernel.call("openat") == REFUSE


@pytest.mark.parametrize("name", ["mmap", "mprotect"])
def test_memory_never_becomes_code(kernel: Kernel, name: str) -> None:
    assert kernel.call(name, 0, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == ALLOW
    assert kernel.call(name, 0, 4096, mmap.PROT_EXEC) == REFUSE
    assert kernel.call(name, 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC) == REFUSE


def test_a_process_may_abort_itself_and_signal_nobody_else(kernel: Kernel) -> None:
    assert kernel.call("tgkill", PID, PID, 6) == ALLOW
    assert kernel.call("tgkill", PID + 1, PID + 1, 9) == KILL


def test_calls_by_another_table_kill(kernel: Kernel) -> None:
    assert kernel.call("read", arch=0x40000003) == KILL
    assert kernel.call("write", flags=0x40000000) == KILL


@pytest.mark.parametrize(
    ("abi", "expected"),
    [
        (1, struct.pack("=Q", 0x1FFF)),
        (2, struct.pack("=Q", 0x3FFF)),
        (3, struct.pack("=Q", 0x7FFF)),
        (4, struct.pack("=QQ", 0x7FFF, 3)),
        (5, struct.pack("=QQ", 0xFFFF, 3)),
        (6, struct.pack("=QQQ", 0xFFFF, 3, 3)),
        (7, struct.pack("=QQQ", 0xFFFF, 3, 3)),
        (8, struct.pack("=QQQ", 0xFFFF, 3, 3)),
    ],
)
def test_each_landlock_is_asked_for_all_it_knows(monkeypatch: pytest.MonkeyPatch, abi: int, expected: bytes) -> None:
    calls: list[tuple[object, ...]] = []

    def record(*arguments: object) -> int:
        calls.append(arguments)
        return 99

    monkeypatch.setattr(lockdown, "_syscall", record)
    monkeypatch.setattr(os, "close", lambda fd: calls.append(("close", fd)))
    lockdown.landlock(abi)
    create, restrict, close = calls
    assert create[0] == 444
    assert create[1] == expected
    assert restrict == (446, 99, 0)
    assert close == ("close", 99)


def test_a_kernel_without_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockdown, "LANDLOCK_CREATE_RULESET", 100_000)
    with pytest.raises(SandboxUnavailable, match="Landlock"):
        lockdown.check()


def test_a_processor_without_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        lockdown.check()
