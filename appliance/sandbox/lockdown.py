"""What a process gives up before it reads untrusted bytes: files, network, other processes, new code, endless memory.

Landlock and a seccomp allow-list are mandatory: where one is missing nothing may be parsed. Limits and privileges are
given up by every kernel. Namespaces are a wall more, taken where the kernel gives them. All of it by system calls
through ctypes, unprivileged, on x86_64 and aarch64.

Sources: landlock(7), seccomp(2), capset(2), setrlimit(2), user_namespaces(7), pivot_root(2).
"""

import ctypes
import os
import platform
import resource
import signal
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import SandboxUnavailable
from appliance.sandbox.syscalls import ARCHITECTURES, KILL, build_filter

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

CLONE_FLAGS = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "mount": 0x00020000,
}
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_PRIVATE_ALL, _DETACH = 2, 4, 8, 0x4000 | (1 << 18), 2

LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_QUIET = 1  # LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF, since ABI 7
_FILES_AT_LEAST = (1 << 13) - 1  # the rights of ABI 1
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522

STACK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use. memory_bytes: beyond what the warmed interpreter maps already.

    more_cpu_seconds: which it may give itself beyond `cpu_seconds`, by the timer ITIMER_PROF, for what takes long with
    good reason; what merely spins ends before it has asked.
    """

    memory_bytes: int
    cpu_seconds: int
    more_cpu_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Rights:
    """What this kernel's Landlock can take away, a bit a right: of files, of TCP ports, of what lies outside."""

    abi: int
    files: int
    net: int
    scopes: int


def check() -> Rights:
    """What Landlock can take away. Raises SandboxUnavailable: no Landlock, no seccomp, no table for this processor.

    Each right is asked for by itself, so that those of kernels newer than this page are given up too.
    """
    if platform.machine() not in ARCHITECTURES:
        raise SandboxUnavailable(f"There is no system call table for {platform.machine()} processors.")
    try:
        abi = _call("landlock_create_ruleset", None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    except OSError as error:
        raise SandboxUnavailable(f"This kernel offers no Landlock: {error.strerror}.") from None
    rights = Rights(abi, _known(0, 32), _known(1, 16), _known(2, 16))
    if rights.files & _FILES_AT_LEAST != _FILES_AT_LEAST:
        raise SandboxUnavailable("This kernel's Landlock does not know the rights that its first release had.")
    try:
        _call("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(KILL)))
    except OSError as error:
        raise SandboxUnavailable(f"This kernel offers no seccomp filters: {error.strerror}.") from None
    return rights


def enter_namespaces() -> tuple[str, ...]:
    """New namespaces for this process and what it forks, as many as are given; their names. Needs a single thread.

    The process itself keeps its pid namespace: its next child becomes process 1 of the new one. Nothing below it can
    make a user namespace again, and with it privileges that were given up.
    """
    uid, gid = os.geteuid(), os.getegid()
    every = tuple(CLONE_FLAGS)
    for names in (every, tuple(name for name in every if name != "mount"), ("user", "net", "ipc", "uts"), ("user",)):
        flags = sum(CLONE_FLAGS[name] for name in names)
        if _libc.unshare(ctypes.c_int(flags)) == 0:
            with suppress(OSError):
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
                Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
            with suppress(OSError):
                Path("/proc/sys/user/max_user_namespaces").write_text("0")
            return names
    return ()


def enter_empty_root(probe: str) -> bool:
    """Go on in a file system of 4 KiB that holds one empty file, /`probe`; False where that is not allowed.

    Needs a mount namespace of its own. What was open stays open.
    """
    try:
        _mount(None, "/", None, _MS_PRIVATE_ALL, None)
        _mount("tmpfs", "/proc", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "size=4k,nr_inodes=2,mode=700")
        os.chdir("/proc")
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    _call("pivot_root", b".", b".")  # the old root now lies over the new one
    if _libc.umount2(b".", _DETACH) != 0:
        raise _error()
    os.chdir("/")
    return True


def leave_with_parent() -> None:
    """Die when the parent does; gain nothing by exec; show nothing to a debugger. Raises OSError."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(PR_SET_DUMPABLE, 0)


def drop_capabilities() -> None:
    """No capability is left, permitted, effective or inheritable, nor in a namespace of its own. Raises OSError."""
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def landlock(rights: Rights, quiet: bool = False) -> None:
    """No file, no TCP, no signal to or abstract socket of a process outside. Needs no_new_privs. Raises OSError.

    quiet: what is denied is not told in the kernel's audit log, where it has one.
    """
    ruleset = _ruleset(rights.files, rights.net, rights.scopes)
    _call("landlock_restrict_self", ruleset, _LANDLOCK_QUIET if quiet and rights.abi >= 7 else 0)
    os.close(ruleset)


def seccomp() -> None:
    """Only reading, writing, memory and clocks from here on; anything else kills the process. Raises OSError."""
    program = build_filter(ARCHITECTURES[platform.machine()], os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, ctypes.create_string_buffer(header, len(header)))


def limit(limits: Limits, mapped_bytes: int, open_files: int) -> None:
    """Cap memory, processor time and files. mapped_bytes: what the process maps already. Raises OSError, ValueError."""
    memory, cpu_seconds = mapped_bytes + limits.memory_bytes, limits.cpu_seconds + limits.more_cpu_seconds
    for kind, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_DATA, memory, memory),
        (resource.RLIMIT_STACK, STACK_BYTES, STACK_BYTES),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (resource.RLIMIT_NOFILE, open_files, open_files),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    if limits.more_cpu_seconds:
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)


def lock(rights: Rights, limits: Limits, mapped_bytes: int, keep: int = 3) -> None:
    """All of it, for good: descriptors from `keep` on are closed, then the walls go up. Raises OSError, ValueError."""
    leave_with_parent()
    _call("close_range", ctypes.c_uint(keep), ctypes.c_uint(0xFFFFFFFF), 0)
    drop_capabilities()
    landlock(rights)
    limit(limits, mapped_bytes, keep)
    seccomp()


def _known(field: int, bits: int) -> int:
    """The rights of one field of struct landlock_ruleset_attr that the kernel takes."""
    known = 0
    for right in (1 << bit for bit in range(bits)):
        with suppress(OSError):
            os.close(_ruleset(*(right if place == field else 0 for place in range(3))))
            known |= right
    return known


def _ruleset(files: int, net: int, scopes: int) -> int:
    """A descriptor. A kernel that knows fewer fields takes the longer struct where the rest of it is 0."""
    attributes = struct.pack("=QQQ", files, net, scopes)
    return _call("landlock_create_ruleset", attributes, ctypes.c_size_t(len(attributes)), 0)


def _call(name: str, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(ARCHITECTURES[platform.machine()].numbers[name]), *arguments))
    if result < 0:
        raise _error()
    return result


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise _error()


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = (text.encode() if text else None for text in (source, target, kind))
    if _libc.mount(*texts, ctypes.c_ulong(flags), options.encode() if options else None) != 0:
        raise _error()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
