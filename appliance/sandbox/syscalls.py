"""What a locked child may ask the kernel for, as names, and the filter that the kernel holds it to.

ALLOWED is answered. REFUSED is answered EPERM, for libraries ask it harmlessly and go on without. EXEC is answered
unless it would make memory into code. SELF is answered where it concerns the caller itself. Whatever else ends the
process, by SIGSYS; so do calls by another table (32-bit, x32).

Sources: arch/x86/entry/syscalls/syscall_64.tbl and scripts/syscall.tbl of Linux; seccomp(2); linux/filter.h.
"""

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass

ALLOWED = (
    *("read", "readv", "pread64", "lseek", "write", "writev", "close", "fstat", "poll", "ppoll"),
    *("brk", "munmap", "mremap", "madvise"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "gettimeofday", "nanosleep"),
    *("getpid", "gettid", "getuid", "getgid", "geteuid", "getegid", "getrusage", "sched_getaffinity"),
    *("futex", "rseq", "sched_yield", "getrandom", "setitimer", "exit", "exit_group"),
)
REFUSED = (
    *("open", "openat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"),
    *("readlink", "readlinkat", "getdents64", "getcwd"),
    *("ioctl", "fcntl", "dup", "uname", "sysinfo", "prlimit64"),
)
EXEC = ("mmap", "mprotect")
SELF = ("tgkill",)  # abort() signals its own process, so that it dies with the right name

_X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "ioctl": 16, "pread64": 17, "readv": 19, "writev": 20, "access": 21, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "nanosleep": 35, "setitimer": 38, "getpid": 39, "exit": 60, "uname": 63, "fcntl": 72,
    "getcwd": 79, "readlink": 89, "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "capset": 126, "sigaltstack": 131, "pivot_root": 155, "gettid": 186, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234, "openat": 257, "newfstatat": 262, "readlinkat": 267,
    "faccessat": 269, "ppoll": 271, "prlimit64": 302, "seccomp": 317, "getrandom": 318, "statx": 332, "rseq": 334,
    "close_range": 436, "faccessat2": 439, "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
}  # fmt: skip
_AARCH64 = {
    "getcwd": 17, "dup": 23, "fcntl": 25, "ioctl": 29, "pivot_root": 41, "faccessat": 48, "openat": 56, "close": 57,
    "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "ppoll": 73,
    "readlinkat": 78, "newfstatat": 79, "fstat": 80, "capset": 91, "exit": 93, "exit_group": 94, "futex": 98,
    "nanosleep": 101, "setitimer": 103, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
    "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "tgkill": 131, "sigaltstack": 132,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "uname": 160, "getrusage": 165,
    "gettimeofday": 169, "getpid": 172,
    "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214,
    "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "prlimit64": 261, "seccomp": 277,
    "getrandom": 278, "statx": 291, "rseq": 293, "close_range": 436, "faccessat2": 439,
    "landlock_create_ruleset": 444, "landlock_restrict_self": 446,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """A processor's system calls by name; what is not there under that name is left out."""

    audit_arch: int
    numbers: Mapping[str, int]
    x32: bool = False


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, _X86_64, x32=True),
    "aarch64": Architecture(0xC00000B7, _AARCH64),
}

KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_2 = 0, 4, 16, 32  # offsets in struct seccomp_data; low words, little endian
_PROT_EXEC = 4
_X32_BIT = 0x40000000


def build_filter(architecture: Architecture, pid: int) -> bytes:
    """The filter as classic BPF: 8 bytes an instruction {code, jump if true, jump if false, operand}."""
    program: list[bytes] = []

    def emit(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append(struct.pack("=HBBI", code, if_true, if_false, operand))

    def when_called(name: str, skip: int) -> bool:
        """Skips `skip` instructions unless it is that call; False where the processor has none of that name."""
        if name in architecture.numbers:
            emit(_JUMP_EQUAL, architecture.numbers[name], 0, skip)
        return name in architecture.numbers

    emit(_LOAD, _ARCH)
    emit(_JUMP_EQUAL, architecture.audit_arch, 1, 0)
    emit(_RETURN, KILL)
    emit(_LOAD, _NUMBER)
    if architecture.x32:
        emit(_JUMP_SET, _X32_BIT, 0, 1)
        emit(_RETURN, KILL)
    for names, verdict in ((ALLOWED, ALLOW), (REFUSED, REFUSE)):
        for name in names:
            if when_called(name, 1):
                emit(_RETURN, verdict)
    for name in EXEC:
        if when_called(name, 4):
            emit(_LOAD, _ARGUMENT_2)
            emit(_JUMP_SET, _PROT_EXEC, 0, 1)
            emit(_RETURN, REFUSE)
            emit(_RETURN, ALLOW)
    for name in SELF:
        if when_called(name, 3):
            emit(_LOAD, _ARGUMENT_0)
            emit(_JUMP_EQUAL, pid, 0, 1)
            emit(_RETURN, ALLOW)
            emit(_RETURN, KILL)
    emit(_RETURN, KILL)
    return b"".join(program)
