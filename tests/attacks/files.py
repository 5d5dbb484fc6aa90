"""Attacks on files: read, write, make or change what lies outside, by path or by descriptor."""

import ctypes
import errno
import importlib.machinery
import os
import stat
import sys

from tests.attacks.attack import NO_EFFECT, World, attack, call

DEVICES = (
    "/dev/zero",
    "/dev/mem",
    "/dev/kmsg",
    "/dev/ptmx",
    "/dev/tty",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/sda",
    "/dev/null",  # every machine has it: its error is the one that is told
)


@attack("files", "read a file outside", "seccomp", "landlock", "namespaces")
def read(world: World) -> object:
    return open(world.secret).read()


@attack("files", "read by a relative path", "seccomp", "landlock", "namespaces")
def read_relative(world: World) -> object:
    return os.read(os.open("../" * 20 + world.secret.lstrip("/"), os.O_RDONLY), 10)


@attack("files", "read by openat2", "seccomp", "landlock", "namespaces")
def read_openat2(world: World) -> object:
    return call("openat2", -100, world.secret.encode(), bytes(24), 24)


@attack("files", "open by file handle", "seccomp", "landlock", "namespaces")
def open_by_handle(world: World) -> object:
    handle, mount = ctypes.create_string_buffer(136), ctypes.c_int()
    ctypes.c_uint.from_buffer(handle).value = 128
    call("name_to_handle_at", -100, world.secret.encode(), handle, ctypes.byref(mount), 0)
    root = os.open("/", os.O_RDONLY)
    return call("open_by_handle_at", root, handle, os.O_RDONLY)


@attack("files", "list a folder", "seccomp", "landlock", "namespaces")
def list_folder(world: World) -> object:
    return os.listdir(world.folder)


@attack("files", "read its own environment in /proc", "seccomp", "landlock", "namespaces", "privileges")
def environment(world: World) -> object:
    return open("/proc/self/environ", "rb").read()


@attack("files", "read another process's memory in /proc", "seccomp", "landlock", "namespaces", "privileges")
def process_memory(world: World) -> object:
    with open(f"/proc/{world.parent_pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), 1, ctypes.addressof(NO_EFFECT))


@attack("files", "list the processes in /proc", "seccomp", "landlock", "namespaces")
def processes(world: World) -> object:
    return [name for name in os.listdir("/proc") if name.isdigit()]


@attack("files", "write a file outside", "seccomp", "landlock", "namespaces")
def write(world: World) -> object:
    return open(f"{world.folder}/escaped", "w").write("x")


@attack("files", "write to /tmp and /dev/shm", "seccomp", "landlock", "namespaces")
def write_temporary(world: World) -> object:
    name = f"{os.path.basename(world.folder)}-escaped"
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        last = OSError()
        try:
            return open(f"{folder}/{name}", "w").write("x")
        except OSError as error:
            last = error
    raise last


@attack("files", "fill the disk", "seccomp", "landlock", "limits", "namespaces")
def fill_disk(world: World) -> object:
    with open(f"{world.folder}/large", "wb") as file:
        return sum(file.write(bytes(1 << 16)) for _ in range(16))


@attack("files", "open a device", "seccomp", "landlock", "namespaces")
def device(world: World) -> object:
    for path in DEVICES:
        last = OSError()
        try:
            return os.open(path, os.O_RDWR)
        except OSError as error:
            last = error
    raise last


@attack("files", "make a symbolic link", "seccomp", "landlock", "namespaces")
def symlink(world: World) -> object:
    os.symlink(world.secret, f"{world.folder}/link")
    return "linked"


@attack("files", "make a hard link", "seccomp", "landlock", "namespaces")
def hardlink(world: World) -> object:
    os.link(f"{world.folder}/present", f"{world.folder}/hard")
    return "linked"


@attack("files", "link the inherited descriptor into a folder", "seccomp")
def link_descriptor(world: World) -> object:
    return call("linkat", 0, b"", -100, f"{world.folder}/taken".encode(), 0x1000) or "linked"


@attack("files", "rename a file", "seccomp", "landlock", "namespaces")
def rename(world: World) -> object:
    os.rename(f"{world.folder}/present", f"{world.folder}/renamed")
    return "renamed"


@attack("files", "delete a file", "seccomp", "landlock", "namespaces")
def delete(world: World) -> object:
    os.unlink(f"{world.folder}/present")
    return "deleted"


@attack("files", "make a folder", "seccomp", "landlock", "namespaces")
def make_folder(world: World) -> object:
    os.mkdir(f"{world.folder}/made")
    return "made"


@attack("files", "make a FIFO", "seccomp", "landlock", "namespaces")
def make_fifo(world: World) -> object:
    os.mkfifo(f"{world.folder}/fifo")
    return "made"


@attack("files", "make a device node", "seccomp", "landlock", "namespaces")
def make_device(world: World) -> object:
    os.mknod(f"{world.folder}/node", stat.S_IFCHR | 0o600, os.makedev(1, 1))
    return "made"


@attack("files", "cut a file short by its path", "seccomp", "landlock", "namespaces")
def truncate(world: World) -> object:
    return call("truncate", f"{world.folder}/present".encode(), 0) or "cut"


@attack("files", "change a file's mode", "seccomp", "namespaces")
def change_mode(world: World) -> object:
    os.chmod(f"{world.folder}/present", 0o777)
    return "changed"


@attack("files", "overwrite the document that it was given")
def overwrite_document(world: World) -> object:
    return os.write(0, b"changed")


@attack("files", "grow the document to a terabyte", "seccomp")
def grow_document(world: World) -> object:
    return call("ftruncate", 0, 1 << 40) or "grown"


@attack("files", "allocate room in the document", "seccomp")
def allocate_document(world: World) -> object:
    return call("fallocate", 0, 0, 0, 1 << 30) or "grown"


@attack("files", "find a descriptor that was left open", "limits")
def inherited(world: World) -> object:
    last = OSError()
    for fd in range(3, 4096):
        try:
            return os.lseek(fd, 0, os.SEEK_CUR)
        except OSError as error:
            if error.errno == errno.ESPIPE:  # a pipe or a socket
                return fd
            last = error
    raise last


@attack("files", "watch files (inotify)", "seccomp", "namespaces")
def watch(world: World) -> object:
    os.close(0)
    return call("inotify_add_watch", call("inotify_init1", 0), world.folder.encode(), 0xFFF)


@attack("files", "watch files (fanotify)", "seccomp", "namespaces")
def watch_all(world: World) -> object:
    os.close(0)
    return call("fanotify_mark", call("fanotify_init", 0x200, 0), 1, 2, -100, world.folder.encode()) or "watching"


@attack("files", "import something new", "seccomp", "landlock", "namespaces")
def late_import(world: World) -> object:
    sys.dont_write_bytecode = True
    return importlib.machinery.SourceFileLoader("new", world.secret).get_code("new")
