"""What an attack is, and the calls that it is made of."""

import ctypes
import errno
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

NO_EFFECT = ctypes.create_string_buffer(1 << 13)
"""At the same address in the parent, for what is tried on its memory: nothing happens where nothing stops that."""

NUMBERS = {
    "x86_64": {
        "fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "execveat": 322, "kill": 62, "tkill": 200,
        "rt_sigqueueinfo": 129, "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440, "kcmp": 312, "mount": 165,
        "fsopen": 430, "open_tree": 428, "unshare": 272, "setns": 308, "pivot_root": 155, "chroot": 161, "setuid": 105,
        "setgid": 106, "setgroups": 116, "capset": 126, "prctl": 157, "seccomp": 317, "personality": 135,
        "keyctl": 250, "add_key": 248, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
        "memfd_create": 319, "memfd_secret": 447, "init_module": 175, "kexec_load": 246, "open_by_handle_at": 304,
        "name_to_handle_at": 303, "sethostname": 170, "clock_settime": 227, "reboot": 169, "swapon": 167, "acct": 163,
        "syslog": 103, "quotactl": 179, "mlock": 149, "pkey_mprotect": 329, "sched_setscheduler": 144,
        "setpriority": 141, "prlimit64": 302, "sched_setaffinity": 203, "ioctl": 16, "fanotify_init": 300,
        "inotify_init1": 294, "openat2": 437, "linkat": 265, "mq_open": 240, "shmget": 29, "semget": 64,
        "move_pages": 279, "migrate_pages": 256, "landlock_restrict_self": 446, "ftruncate": 77, "fallocate": 285,
        "splice": 275, "vmsplice": 278, "sendfile": 40, "copy_file_range": 326, "truncate": 76, "shmctl": 31,
        "inotify_add_watch": 254, "fanotify_mark": 301, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    },
    "aarch64": {
        "clone": 220, "clone3": 435, "execveat": 281, "kill": 129, "tkill": 130, "rt_sigqueueinfo": 138,
        "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "process_madvise": 440, "kcmp": 272, "mount": 40, "fsopen": 430, "open_tree": 428,
        "unshare": 97, "setns": 268, "pivot_root": 41, "chroot": 51, "setuid": 146, "setgid": 144, "setgroups": 159,
        "capset": 91, "prctl": 167, "seccomp": 277, "personality": 92, "keyctl": 219, "add_key": 217, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "memfd_create": 279, "memfd_secret": 447,
        "init_module": 105, "kexec_load": 104, "open_by_handle_at": 265, "name_to_handle_at": 264, "sethostname": 161,
        "clock_settime": 112, "reboot": 142, "swapon": 224, "acct": 89, "syslog": 116, "quotactl": 60, "mlock": 228,
        "pkey_mprotect": 288, "sched_setscheduler": 119, "setpriority": 140, "prlimit64": 261,
        "sched_setaffinity": 122, "ioctl": 29, "fanotify_init": 262, "inotify_init1": 26, "openat2": 437,
        "linkat": 37, "mq_open": 180, "shmget": 194, "semget": 190, "move_pages": 239, "migrate_pages": 238,
        "landlock_restrict_self": 446, "ftruncate": 46, "fallocate": 47, "splice": 76, "vmsplice": 75,
        "sendfile": 71, "copy_file_range": 285, "truncate": 45, "shmctl": 195,
        "inotify_add_watch": 27, "fanotify_mark": 263, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    },
}[platform.machine()]  # fmt: skip


@dataclass(frozen=True, slots=True)
class World:
    """What lies outside, for an attack to reach: a file with a secret, a folder that all may write to, servers.

    parent_pid: of the zygote, as its children see it; set by itself.
    """

    secret: str
    folder: str
    tcp_port: int
    udp_port: int
    unix_path: str
    abstract_name: str
    victim_pid: int
    parent_pid: int = 0


@dataclass(frozen=True, slots=True)
class Attack:
    """run: returns what it got where nothing stops it; raises OSError where something does.

    kind: files, network, processes, privileges, kernel, code, resources or answers. walls: each of these stops it also
    where the others of them are away, and without them all it succeeds, if all else stands; empty where only the daemon
    stops it. slow: it waits for a limit of time.
    """

    name: str
    kind: str
    title: str
    run: Callable[[World], object]
    walls: tuple[str, ...]
    slow: bool


ATTACKS: dict[str, Attack] = {}


def attack(
    kind: str, title: str, *walls: str, slow: bool = False
) -> Callable[[Callable[[World], object]], Callable[[World], object]]:
    """Declare an attack."""

    def declare(run: Callable[[World], object]) -> Callable[[World], object]:
        name = f"{kind}-{run.__name__.strip('_')}"
        ATTACKS[name] = Attack(name, kind, title, run, walls, slow)
        return run

    return declare


def call(name: str, *arguments: Any) -> int:
    """A system call by name. Raises OSError; ENOSYS where this processor has none of that name."""
    if name not in NUMBERS:
        raise OSError(errno.ENOSYS, "no such call on this processor")
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(int(libc.syscall(ctypes.c_long(NUMBERS[name]), *wide)))


def checked(result: int) -> int:
    """Raises OSError for -1."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
