"""Attacks on what a process may be and on the kernel's wide doors."""

import ctypes
import errno
import mmap
import os
import socket
import struct

from tests.attacks.attack import World, attack, call, checked, libc


@attack("privileges", "enter a user namespace")
def unshare(world: World) -> object:
    return call("unshare", 0x10000000) or "entered"


@attack("privileges", "enter other namespaces", denied_by="privileges")
def unshare_others(world: World) -> object:
    return call("unshare", 0x40020000) or "entered"


@attack("privileges", "enter another process's namespace (setns)", denied_by="privileges")
def setns(world: World) -> object:
    os.close(0)
    return call("setns", call("pidfd_open", os.getppid(), 0), 0x10000000) or "entered"


@attack("privileges", "mount a file system")
def mount(world: World) -> object:
    return call("mount", b"x", b"/", b"tmpfs", 0, None) or "mounted"


@attack("privileges", "mount by descriptors (fsopen)", denied_by="privileges")
def fsopen(world: World) -> object:
    return call("fsopen", b"tmpfs", 0)


@attack("privileges", "move the root (pivot_root)")
def pivot_root(world: World) -> object:
    return call("pivot_root", b"/", b"/") or "moved"


@attack("privileges", "change the root (chroot)", denied_by="privileges")
def chroot(world: World) -> object:
    return call("chroot", b"/") or "changed"


@attack("privileges", "become another user", denied_by="privileges")
def setuid(world: World) -> object:
    return call("setuid", os.getuid() ^ 1) or "changed"


@attack("privileges", "become another group", denied_by="privileges")
def setgid(world: World) -> object:
    return call("setgid", os.getgid() ^ 1) or "changed"


@attack("privileges", "take capabilities back", denied_by="privileges")
def capset(world: World) -> object:
    return call("capset", struct.pack("=Ii", 0x20080522, 0), b"\xff" * 24) or "taken"


@attack("privileges", "lift no_new_privs")
def new_privileges(world: World) -> object:
    return call("prctl", 38, 0, 0, 0, 0) or "lifted"


@attack("privileges", "lift Landlock by another ruleset")
def landlock_again(world: World) -> object:
    return call("landlock_restrict_self", -1, 0) or "lifted"


@attack("privileges", "answer its own system calls (seccomp listener)", slow=True)
def seccomp_notify(world: World) -> object:
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FC00000), 8)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(program)), 16)
    os.close(0)
    return call("seccomp", 1, 8, header)


@attack("privileges", "change its personality")
def personality(world: World) -> object:
    return call("personality", 0x0040000)


@attack("privileges", "change the host's name", denied_by="privileges")
def host_name(world: World) -> object:
    return call("sethostname", b"owned", 5) or "changed"


@attack("privileges", "set the clock", denied_by="privileges")
def clock(world: World) -> object:
    return call("clock_settime", 0, struct.pack("=qq", 0, 0)) or "set"


@attack("privileges", "load a kernel module", denied_by="privileges")
def module(world: World) -> object:
    return call("init_module", b"", 0, b"") or "loaded"


@attack("privileges", "load another kernel", denied_by="privileges")
def kexec(world: World) -> object:
    return call("kexec_load", 0, 0, None, 0) or "loaded"


@attack("privileges", "swap to a file", denied_by="privileges")
def swap(world: World) -> object:
    return call("swapon", b"/x", 0) or "swapped"


@attack("privileges", "account processes to a file", denied_by="privileges")
def account(world: World) -> object:
    return call("acct", b"/x") or "accounted"


@attack("privileges", "read the kernel's log", denied_by="privileges")
def kernel_log(world: World) -> object:
    return call("syslog", 3, ctypes.create_string_buffer(64), 64)


@attack("kernel", "io_uring", denied_by="kernel")
def io_uring(world: World) -> object:
    os.close(0)
    return call("io_uring_setup", 8, ctypes.create_string_buffer(256))


@attack("kernel", "BPF", denied_by="privileges")
def bpf(world: World) -> object:
    os.close(0)
    attributes = struct.pack("=IIII", 2, 4, 4, 1).ljust(120, b"\0")
    return call("bpf", 0, attributes, 120)


@attack("kernel", "performance counters", denied_by="kernel")
def perf(world: World) -> object:
    os.close(0)
    attributes = struct.pack("=IIQ", 1, 112, 0).ljust(112, b"\0")
    return call("perf_event_open", attributes, 0, -1, -1, 0)


@attack("kernel", "userfaultfd", denied_by="kernel")
def userfaultfd(world: World) -> object:
    os.close(0)
    return call("userfaultfd", 0)


@attack("kernel", "keys (keyctl)", denied_by="kernel")
def keyctl(world: World) -> object:
    return call("keyctl", 0, -3, 1)


@attack("kernel", "keys (add_key)", denied_by="kernel")
def add_key(world: World) -> object:
    return call("add_key", b"user", b"x", b"y", 1, -3)


@attack("kernel", "an anonymous file (memfd)")
def memfd(world: World) -> object:
    os.close(0)
    return os.memfd_create("x")


@attack("kernel", "secret memory (memfd_secret)")
def memfd_secret(world: World) -> object:
    os.close(0)
    return call("memfd_secret", 0)


@attack("kernel", "kernel cryptography (AF_ALG)")
def alg(world: World) -> object:
    os.close(0)
    return socket.socket(38, socket.SOCK_SEQPACKET)


@attack("kernel", "a pair of sockets")
def socket_pair(world: World) -> object:
    os.close(0)
    return socket.socketpair()


@attack("kernel", "shared memory (shmget)")
def shared_memory(world: World) -> object:
    return call("shmget", 0, 4096, 0o1600)


@attack("code", "map writable code")
def map_code(world: World) -> object:
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


@attack("code", "make memory into code (mprotect)")
def protect_code(world: World) -> object:
    return checked(int(libc.mprotect(*_page(), mmap.PROT_READ | mmap.PROT_EXEC))) or "code"


@attack("code", "make memory into code (pkey_mprotect)")
def protect_code_by_key(world: World) -> object:
    address, size = _page()
    return call("pkey_mprotect", address.value or 0, size, mmap.PROT_READ | mmap.PROT_EXEC, -1) or "code"


@attack("code", "map the document as code")
def map_document(world: World) -> object:
    try:
        return mmap.mmap(0, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    except ValueError:  # the document is shorter than a page
        raise OSError(errno.EINVAL, "too short") from None


_PAGES: list[mmap.mmap] = []


def _page() -> tuple[ctypes.c_void_p, int]:
    _PAGES.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(_PAGES[-1]))), 4096
