"""Attacks on what a process may be and on the kernel's wide doors."""

import ctypes
import errno
import mmap
import os
import socket
import struct

from tests.attacks.attack import NUMBERS, World, attack, call, checked, libc


@attack("privileges", "enter a user namespace", "seccomp", "namespaces")
def unshare(world: World) -> object:
    return call("unshare", 0x10000000) or "entered"


@attack("privileges", "enter other namespaces", "seccomp", "privileges")
def unshare_others(world: World) -> object:
    return call("unshare", 0x40020000) or "entered"


@attack("privileges", "enter another process's namespace (setns)", "seccomp", "landlock", "privileges")
def setns(world: World) -> object:
    os.close(0)
    return call("setns", call("pidfd_open", world.parent_pid, 0), 0x04000000) or "entered"


@attack("privileges", "mount a file system", "seccomp", "landlock", "privileges")
def mount(world: World) -> object:
    return call("mount", b"x", b"/", b"tmpfs", 0, None) or "mounted"


@attack("privileges", "mount by descriptors (fsopen)", "seccomp", "privileges")
def fsopen(world: World) -> object:
    return call("fsopen", b"tmpfs", 0)


@attack("privileges", "move the root (pivot_root)", "seccomp", "landlock", "privileges")
def pivot_root(world: World) -> object:
    try:
        return call("pivot_root", b"/", b"/") or "moved"
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EINVAL):  # only because this root is the one that it has
            return "allowed"
        raise


@attack("privileges", "change the root (chroot)", "seccomp", "privileges")
def chroot(world: World) -> object:
    return call("chroot", b"/") or "changed"


@attack("privileges", "become another user", "seccomp")
def setuid(world: World) -> object:
    return call("setuid", os.getuid() ^ 1) or "changed"


@attack("privileges", "become another group", "seccomp")
def setgid(world: World) -> object:
    return call("setgid", os.getgid() ^ 1) or "changed"


@attack("privileges", "take capabilities back", "seccomp", "privileges")
def capset(world: World) -> object:
    return call("capset", struct.pack("=Ii", 0x20080522, 0), b"\xff" * 24) or "taken"


@attack("privileges", "lift no_new_privs", "seccomp")
def new_privileges(world: World) -> object:
    return call("prctl", 38, 0, 0, 0, 0) or "lifted"


@attack("privileges", "lift Landlock by another ruleset", "seccomp", "landlock", "namespaces")
def landlock_again(world: World) -> object:
    reading = 4
    ruleset = call("landlock_create_ruleset", struct.pack("=Q", reading), 8, 0)
    os.close(0)
    root = os.open("/", os.O_PATH)
    call("landlock_add_rule", ruleset, 1, struct.pack("=Qi", reading, root), 0)
    call("landlock_restrict_self", ruleset, 0)
    os.close(root)
    return open(world.secret).read()


@attack("privileges", "answer its own system calls (seccomp listener)", "seccomp")
def seccomp_notify(world: World) -> object:
    load, unless, ask, allow = (
        (0x20, 0, 0, 0),
        (0x15, 0, 1, NUMBERS["acct"]),
        (6, 0, 0, 0x7FC00000),
        (6, 0, 0, 0x7FFF0000),
    )
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in (load, unless, ask, allow))
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)), 16)
    os.close(0)
    return call("seccomp", 1, 8, header)


@attack("privileges", "change its personality", "seccomp")
def personality(world: World) -> object:
    return call("personality", 0x0040000)


@attack("privileges", "change the host's name", "seccomp", "privileges")
def host_name(world: World) -> object:
    return call("sethostname", b"owned", 5) or "changed"


@attack("privileges", "set the clock", "seccomp")
def clock(world: World) -> object:
    return call("clock_settime", 0, struct.pack("=qq", 0, 0)) or "set"


@attack("privileges", "load a kernel module", "seccomp")
def module(world: World) -> object:
    return call("init_module", b"", 0, b"") or "loaded"


@attack("privileges", "load another kernel", "seccomp")
def kexec(world: World) -> object:
    return call("kexec_load", 0, 0, None, 0) or "loaded"


@attack("privileges", "swap to a file", "seccomp")
def swap(world: World) -> object:
    return call("swapon", b"/x", 0) or "swapped"


@attack("privileges", "account processes to a file", "seccomp")
def account(world: World) -> object:
    return call("acct", b"/x") or "accounted"


@attack("privileges", "read the kernel's log", "seccomp")
def kernel_log(world: World) -> object:
    return call("syslog", 3, ctypes.create_string_buffer(64), 64)


@attack("kernel", "io_uring", "seccomp", "limits")
def io_uring(world: World) -> object:
    os.close(0)
    return call("io_uring_setup", 8, ctypes.create_string_buffer(256))


@attack("kernel", "BPF", "seccomp")
def bpf(world: World) -> object:
    os.close(0)
    attributes = struct.pack("=IIII", 2, 4, 4, 1).ljust(120, b"\0")
    return call("bpf", 0, attributes, 120)


@attack("kernel", "performance counters", "seccomp")
def perf(world: World) -> object:
    os.close(0)
    attributes = struct.pack("=IIQ", 1, 112, 0).ljust(112, b"\0")
    return call("perf_event_open", attributes, 0, -1, -1, 0)


@attack("kernel", "userfaultfd", "seccomp")
def userfaultfd(world: World) -> object:
    os.close(0)
    return call("userfaultfd", 1)


@attack("kernel", "keys (keyctl)", "seccomp")
def keyctl(world: World) -> object:
    return call("keyctl", 0, -3, 1)


@attack("kernel", "keys (add_key)", "seccomp")
def add_key(world: World) -> object:
    return call("add_key", b"user", b"x", b"y", 1, -3)


@attack("kernel", "an anonymous file (memfd)", "seccomp")
def memfd(world: World) -> object:
    os.close(0)
    return os.memfd_create("x")


@attack("kernel", "secret memory (memfd_secret)", "seccomp")
def memfd_secret(world: World) -> object:
    os.close(0)
    return call("memfd_secret", 0)


@attack("kernel", "kernel cryptography (AF_ALG)", "seccomp")
def alg(world: World) -> object:
    os.close(0)
    return socket.socket(38, socket.SOCK_SEQPACKET)


@attack("kernel", "a pair of sockets", "seccomp")
def socket_pair(world: World) -> object:
    os.close(0)
    return socket.socketpair()


@attack("kernel", "shared memory (shmget)", "seccomp")
def shared_memory(world: World) -> object:
    segment = call("shmget", 0, 4096, 0o1600)
    call("shmctl", segment, 0, 0)  # it would outlive a machine's trial
    return "shared"


@attack("code", "map writable code", "seccomp")
def map_code(world: World) -> object:
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


@attack("code", "make memory into code (mprotect)", "seccomp")
def protect_code(world: World) -> object:
    return checked(int(libc.mprotect(*_page(), mmap.PROT_READ | mmap.PROT_EXEC))) or "code"


@attack("code", "make memory into code (pkey_mprotect)", "seccomp")
def protect_code_by_key(world: World) -> object:
    address, size = _page()
    return call("pkey_mprotect", address.value or 0, size, mmap.PROT_READ | mmap.PROT_EXEC, -1) or "code"


@attack("code", "map the document as code", "seccomp")
def map_document(world: World) -> object:
    try:
        return mmap.mmap(0, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    except ValueError:  # the document is shorter than a page
        raise OSError(errno.EINVAL, "too short") from None


_PAGES: list[mmap.mmap] = []


def _page() -> tuple[ctypes.c_void_p, int]:
    _PAGES.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(_PAGES[-1]))), 4096
