import ctypes
import errno
import mmap
import os
import platform
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import SandboxUnavailable
from appliance.sandbox import lockdown, syscalls

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
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

    def record(name: str, operation: int, flags: int, header: ctypes.Array[ctypes.c_char]) -> int:
        assert (name, operation, flags) == ("seccomp", 1, 0)
        count, address = struct.unpack("HxxxxxxP", header.raw)
        installed.append(ctypes.string_at(address, 8 * count))
        return 0

    monkeypatch.setattr(platform, "machine", lambda: request.param)
    monkeypatch.setattr(os, "getpid", lambda: PID)
    monkeypatch.setattr(lockdown, "_call", record)
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


class OldKernel:
    """A Landlock that knows some rights: an unknown one is EINVAL, and a field that it has not must be 0."""

    def __init__(self, *known: int) -> None:
        self.known = known
        self.restricted: list[tuple[object, ...]] = []

    def call(self, name: str, *arguments: Any) -> int:
        if name == "landlock_create_ruleset" and arguments[0] is None:
            return 7
        if name == "landlock_create_ruleset":
            asked = struct.unpack("=QQQ", arguments[0])
            if not any(asked) or any(want & ~have for want, have in zip(asked, self.known, strict=True)):
                raise OSError(errno.EINVAL, "unknown")
            self.asked = asked
            return os.open(os.devnull, os.O_RDONLY)
        if name == "landlock_restrict_self":
            self.restricted.append(arguments[1:])
        return 0


@pytest.mark.parametrize(
    "known",
    [(0x1FFF, 0, 0), (0x3FFF, 0, 0), (0x7FFF, 3, 0), (0xFFFF, 3, 3), (0x1FFFF, 7, 7)],
)
def test_each_landlock_is_asked_for_all_it_knows(monkeypatch: pytest.MonkeyPatch, known: tuple[int, int, int]) -> None:
    kernel = OldKernel(*known)
    monkeypatch.setattr(lockdown, "_call", kernel.call)
    rights = lockdown.check()
    assert (rights.files, rights.net, rights.scopes) == known
    lockdown.landlock(rights)
    assert kernel.asked == known
    assert kernel.restricted == [(0,)]


def test_only_a_trial_is_kept_out_of_the_audit_log_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = OldKernel(0xFFFF, 3, 3)
    monkeypatch.setattr(lockdown, "_call", kernel.call)
    for abi in (6, 7):
        lockdown.landlock(lockdown.Rights(abi, 0xFFFF, 3, 3), quiet=True)
    assert kernel.restricted == [(0,), (1,)]


def test_a_landlock_that_lacks_what_its_first_release_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockdown, "_call", OldKernel(0x1FF7, 3, 3).call)
    with pytest.raises(SandboxUnavailable, match="first release"):
        lockdown.check()


def numbers(header: Path) -> dict[str, int]:
    """The system calls that a kernel header declares."""
    found: dict[str, str] = dict(re.findall(r"^#define __NR(\w+)\s+(\w+)$", header.read_text(), re.MULTILINE))
    own = {name: found.get(value.removeprefix("__NR"), value) for name, value in found.items()}  # 3264_: of both widths
    return {name.removeprefix("_"): int(value) for name, value in own.items() if value.isdigit()}


@pytest.mark.parametrize(
    ("machine", "headers"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_tables_are_the_kernel_s(machine: str, headers: str) -> None:
    if not Path(headers).exists():
        pytest.skip("no kernel headers here")
    table, declared = syscalls.ARCHITECTURES[machine].numbers, numbers(Path(headers))
    assert dict(table) == {name: declared[name] for name in table}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_call_that_is_named_is_in_the_table_unless_the_processor_has_none(machine: str) -> None:
    named = {*syscalls.ALLOWED, *syscalls.REFUSED, *syscalls.EXEC, *syscalls.SELF}
    unknown = named - syscalls.ARCHITECTURES[machine].numbers.keys()
    old = {"poll", "open", "stat", "lstat", "access", "readlink"}
    assert unknown == (old if machine == "aarch64" else set())


def test_a_kernel_without_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lockdown, "_call", absent)
    with pytest.raises(SandboxUnavailable, match="Landlock"):
        lockdown.check()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_kernel_without_seccomp_filters_is_refused(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    kernel = OldKernel(0xFFFF, 3, 3)

    def call(name: str, *arguments: Any) -> int:
        if (name, *arguments[:1]) == ("seccomp", 2):  # SECCOMP_GET_ACTION_AVAIL
            raise OSError(code, os.strerror(code))
        return kernel.call(name, *arguments)

    monkeypatch.setattr(lockdown, "_call", call)
    with pytest.raises(SandboxUnavailable, match="seccomp"):
        lockdown.check()


def test_a_processor_without_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match="riscv64"):
        lockdown.check()
