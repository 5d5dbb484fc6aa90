"""A parser that does what the document says: each function is an attack on the process that runs it."""

import ctypes
import mmap
import os
import signal
import socket
import struct
import threading
import time

from appliance.errors import DocumentRefused
from appliance.sandbox.result import Member

_libc = ctypes.CDLL(None, use_errno=True)
_parent = os.getpid()  # imported by the zygote: the parent of whom it forks


class Hostile:
    warm_documents = ((".txt", b"harmless"),)

    def parse(self, data: bytes, suffix: str) -> tuple[str, str, tuple[str, ...], tuple[()], tuple[Member, ...]]:
        """One page: what the attack returned, or that it was denied; of a container, its members."""
        if suffix == ".zip":
            members = tuple((f"member {number}", bytes(1000), "") for number in range(int(data)))
            return "application/zip", "hostile 1", (), (), members
        try:
            said = globals()[data.decode()]()
        except (PermissionError, BlockingIOError) as error:
            said = f"denied: {type(error).__name__}"
        return "text/plain", "hostile 1", (str(said),), (), ()


def reader(settings: dict[str, int | str]) -> Hostile:
    return Hostile()


def harmless() -> str:
    return "harmless"


def read_a_file() -> str:
    return open("/etc/passwd").read()


def read_by_a_relative_path() -> bytes:
    return os.read(os.open("../../../../../etc/passwd", os.O_RDONLY), 10)


def read_own_environment() -> bytes:
    return open("/proc/self/environ", "rb").read()


def read_parent_memory() -> bytes:
    return open(f"/proc/{_parent}/mem", "rb").read(1)


def list_a_folder() -> list[str]:
    return os.listdir("/")


def write_a_file() -> int:
    return open("/tmp/appliance-escaped", "w").write("x")


def write_a_device() -> int:
    return os.open("/dev/null", os.O_WRONLY)


def overwrite_the_document() -> str:
    try:
        return f"{os.write(0, b'changed')} bytes changed"
    except OSError as error:
        return str(error.strerror)


def map_writable_code() -> mmap.mmap:
    return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def make_memory_code() -> str:
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if _libc.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ | mmap.PROT_EXEC) == 0:
        return "code"
    raise PermissionError(ctypes.get_errno(), "mprotect")


def read_inherited_descriptors() -> str:
    for fd in range(3, 1024):
        try:
            os.read(fd, 1)
        except OSError:
            continue
        return f"descriptor {fd} is open"
    return "none"


def open_a_tcp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def open_a_unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def make_a_socket_pair() -> object:
    return socket.socketpair()


def fork_bomb() -> None:
    while True:
        os.fork()


def start_a_thread() -> None:
    threading.Thread(target=print).start()


def start_a_program() -> None:
    os.execv("/bin/true", ["true"])


def kill_the_parent() -> None:
    os.kill(_parent, signal.SIGKILL)


def kill_everyone() -> None:
    os.kill(-1, signal.SIGKILL)


def ptrace_the_parent() -> int:
    return int(_libc.ptrace(16, _parent, 0, 0))


def make_a_link() -> None:
    os.symlink("/etc/passwd", "/tmp/appliance-escaped-link")


def enter_a_user_namespace() -> int:
    return int(_libc.unshare(0x10000000))


def set_up_io_uring() -> int:
    return int(_libc.syscall(425, 8, ctypes.create_string_buffer(256)))


def make_an_anonymous_file() -> int:
    return os.memfd_create("x")


def raise_own_limits() -> object:
    import resource

    return resource.prlimit(0, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def allocate_at_once() -> int:
    return len(bytearray(8 << 30))


def allocate_bit_by_bit() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(4 << 20))


def allocate_natively() -> None:
    """As a C library does that forgets to look at malloc's answer."""
    _libc.malloc.restype = ctypes.c_void_p
    while True:
        ctypes.memset(_libc.malloc(ctypes.c_size_t(4 << 20)), 1, 4 << 20)


def spin_by_its_own_clock() -> None:
    signal.setitimer(signal.ITIMER_PROF, 1000)
    spin()


def spin() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(600)


def nap() -> str:
    time.sleep(0.5)
    return "slept"


def follow_a_null_pointer() -> bytes:
    return ctypes.string_at(0)


def abort() -> None:
    os.abort()


def die_of_a_signal_without_a_name() -> None:
    signal.pthread_kill(threading.get_ident(), 40)


def leave() -> None:
    os._exit(0)


def leave_with_an_error() -> None:
    os._exit(77)


def write_garbage() -> None:
    os.write(1, b"\xff" * 100)
    os._exit(0)


def write_without_end() -> None:
    while True:
        os.write(1, b"\xff" * (1 << 16))


def write_empty_frames_without_end() -> None:
    while True:
        os.write(1, bytes(1 << 16))


def send_terminal_escapes() -> str:
    return "\x1b]0;owned\x07"


def promise_more_pages() -> None:
    header = b'{"media_type": "text/plain", "parser": "x", "pages": 5}'
    os.write(1, struct.pack(">I", len(header)) + header)
    os._exit(0)


def refuse_deceptively() -> None:
    raise DocumentRefused("FINE", "all is well\n\u202eyllaer")


def refuse() -> None:
    raise DocumentRefused("NOT_TODAY", "It is refused.")


def import_something_new() -> None:
    import sqlite3  # noqa: F401


def recurse() -> None:
    recurse()


def fail() -> None:
    raise ValueError("the secret content of the document")
