"""What a process gives up before it reads untrusted bytes: files, network, other processes, new code, endless memory.

Landlock and a seccomp allow-list are mandatory: where one is missing nothing may be parsed. Namespaces are a third
wall, taken where the kernel gives them. All of it by system calls through ctypes, unprivileged, on x86_64 and aarch64.

Sources: landlock(7), seccomp(2), bpf's classic filters in linux/filter.h, and the kernel's system call tables
(arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl).
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from dataclasses import dataclass

from appliance.errors import SandboxUnavailable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

CLONE_FLAGS = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
}

LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_CREATE_RULESET_VERSION = 1
# File rights known to each ABI: 13 at first, then refer, truncate, (4: none new), device ioctl.
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_RIGHTS = 0b11  # bind and connect of TCP, since ABI 4
_SCOPES = 0b11  # abstract unix sockets and signals, since ABI 6


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. memory_bytes: beyond what the warmed interpreter maps already."""

    memory_bytes: int
    cpu_seconds: int


@dataclass(frozen=True, slots=True)
class _Architecture:
    """A system call table. `allow` may be called; `deny` is answered EACCES, for libraries ask it harmlessly."""

    audit_arch: int
    seccomp: int
    mmap: int
    mprotect: int
    tgkill: int
    allow: tuple[int, ...]
    deny: tuple[int, ...]
    x32: bool = False


_X86_64 = _Architecture(
    audit_arch=0xC000003E,
    seccomp=317,
    mmap=9,
    mprotect=10,
    tgkill=234,
    allow=(
        *(0, 1, 3, 5, 7, 8),  # read write close fstat poll lseek
        *(11, 12, 13, 14, 15),  # munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
        *(17, 19, 20, 24, 25, 28),  # pread64 readv writev sched_yield mremap madvise
        *(35, 39, 60, 96, 98),  # nanosleep getpid exit gettimeofday getrusage
        *(102, 104, 107, 108, 131),  # getuid getgid geteuid getegid sigaltstack
        *(186, 202, 204, 219),  # gettid futex sched_getaffinity restart_syscall
        *(228, 229, 230, 231),  # clock_gettime clock_getres clock_nanosleep exit_group
        *(271, 318, 334),  # ppoll getrandom rseq
    ),
    deny=(
        *(2, 4, 6, 16, 21, 32),  # open stat lstat ioctl access dup
        *(63, 72, 79, 89, 99),  # uname fcntl getcwd readlink sysinfo
        *(217, 257, 262, 267, 269),  # getdents64 openat newfstatat readlinkat faccessat
        *(302, 332, 439),  # prlimit64 statx faccessat2
    ),
    x32=True,
)
_AARCH64 = _Architecture(
    audit_arch=0xC00000B7,
    seccomp=277,
    mmap=222,
    mprotect=226,
    tgkill=131,
    allow=(
        *(63, 64, 57, 80, 73, 62),  # read write close fstat ppoll lseek
        *(215, 214, 134, 135, 139),  # munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
        *(67, 65, 66, 124, 216, 233),  # pread64 readv writev sched_yield mremap madvise
        *(101, 172, 93, 169, 165),  # nanosleep getpid exit gettimeofday getrusage
        *(174, 176, 175, 177, 132),  # getuid getgid geteuid getegid sigaltstack
        *(178, 98, 123, 128),  # gettid futex sched_getaffinity restart_syscall
        *(113, 114, 115, 94),  # clock_gettime clock_getres clock_nanosleep exit_group
        *(278, 293),  # getrandom rseq
    ),
    deny=(
        *(56, 79, 29, 48, 23),  # openat newfstatat ioctl faccessat dup
        *(160, 25, 17, 78, 179),  # uname fcntl getcwd readlinkat sysinfo
        *(61, 261, 291, 439),  # getdents64 prlimit64 statx faccessat2
    ),
)
_ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64}

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_2 = 0, 4, 16, 32  # offsets in struct seccomp_data; low words, little endian
_KILL, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EACCES
_PROT_EXEC = 4
_X32_BIT = 0x40000000


def check() -> int:
    """The kernel's Landlock ABI. Raises SandboxUnavailable: no Landlock, no seccomp, no table for this processor."""
    if platform.machine() not in _ARCHITECTURES:
        raise SandboxUnavailable(f"There is no system call table for {platform.machine()} processors.")
    try:
        abi = _syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    except OSError as error:
        raise SandboxUnavailable(f"This kernel offers no Landlock: {error.strerror}.") from None
    kill = ctypes.byref(ctypes.c_uint32(_KILL))
    try:
        _syscall(_ARCHITECTURES[platform.machine()].seccomp, 2, 0, kill)  # SECCOMP_GET_ACTION_AVAIL
    except OSError as error:
        raise SandboxUnavailable(f"This kernel offers no seccomp filters: {error.strerror}.") from None
    return abi


def enter_namespaces() -> tuple[str, ...]:
    """New namespaces for this process and what it forks, as many as are given; their names. Needs a single thread.

    The process itself keeps its pid namespace: its next child becomes process 1 of the new one.
    """
    every = tuple(CLONE_FLAGS)
    for names in (every, tuple(name for name in every if name != "pid"), ("user",)):
        flags = 0
        for name in names:
            flags |= CLONE_FLAGS[name]
        if _libc.unshare(ctypes.c_int(flags)) == 0:
            return names
    return ()


def leave_with_parent() -> None:
    """Die when the parent does; gain nothing by exec; show nothing to a debugger. Raises OSError."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_DUMPABLE, 0)


def landlock(abi: int) -> None:
    """No file, no TCP, no signal to or abstract socket of a process outside. Needs no_new_privs. Raises OSError."""
    net = _NET_RIGHTS if abi >= 4 else 0
    scopes = _SCOPES if abi >= 6 else 0
    known_bytes = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("=QQQ", _FS_RIGHTS[min(abi, 5)], net, scopes)[:known_bytes]
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def seccomp() -> None:
    """Only reading, writing, memory and clocks from here on; anything else kills the process. Raises OSError."""
    architecture = _ARCHITECTURES[platform.machine()]
    program = _filter(architecture, os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _syscall(architecture.seccomp, 1, 0, ctypes.create_string_buffer(header, len(header)))  # SECCOMP_SET_MODE_FILTER


def limit(limits: Limits, mapped_bytes: int, open_files: int) -> None:
    """Cap memory, processor time and files. mapped_bytes: what the process maps already. Raises OSError, ValueError."""
    memory = mapped_bytes + limits.memory_bytes
    for kind, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_DATA, memory, memory),
        (resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1),
        (resource.RLIMIT_NOFILE, open_files, open_files),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))


def lock(abi: int, limits: Limits, mapped_bytes: int, keep: int = 3) -> None:
    """All of it, for good: descriptors from `keep` on are closed, then the walls go up. Raises OSError, ValueError."""
    leave_with_parent()
    os.closerange(keep, 1 << 20)
    landlock(abi)
    limit(limits, mapped_bytes, keep)
    seccomp()


def _filter(architecture: _Architecture, pid: int) -> bytes:
    """The allow-list as classic BPF: 8 bytes an instruction {code, jump if true, jump if false, operand}."""
    program: list[bytes] = []

    def emit(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        program.append(struct.pack("=HBBI", code, if_true, if_false, operand))

    def when_number_is(number: int, skip: int) -> None:
        emit(_JUMP_EQUAL, number, 0, skip)

    emit(_LOAD, _ARCH)
    emit(_JUMP_EQUAL, architecture.audit_arch, 1, 0)
    emit(_RETURN, _KILL)
    emit(_LOAD, _NUMBER)
    if architecture.x32:
        emit(_JUMP_SET, _X32_BIT, 0, 1)
        emit(_RETURN, _KILL)
    for number in architecture.allow:
        when_number_is(number, 1)
        emit(_RETURN, _ALLOW)
    for number in architecture.deny:
        when_number_is(number, 1)
        emit(_RETURN, _REFUSE)
    for number in (architecture.mmap, architecture.mprotect):
        when_number_is(number, 4)
        emit(_LOAD, _ARGUMENT_2)
        emit(_JUMP_SET, _PROT_EXEC, 0, 1)
        emit(_RETURN, _REFUSE)
        emit(_RETURN, _ALLOW)
    when_number_is(architecture.tgkill, 3)  # abort() signals its own process, so that it dies with the right name
    emit(_LOAD, _ARGUMENT_0)
    emit(_JUMP_EQUAL, pid, 0, 1)
    emit(_RETURN, _ALLOW)
    emit(_RETURN, _KILL)
    return b"".join(program)


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
