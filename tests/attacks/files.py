"""Attacks on files: read, write, make or change what lies outside, by path or by descriptor."""

import ctypes
import errno
import os
import stat

from tests.attacks.attack import World, attack, call

DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/mem",
    "/dev/kmsg",
    "/dev/ptmx",
    "/dev/tty",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/sda",
)


@attack("files", "read a file outside")
def read(world: World) -> object:
    return open(world.secret).read()


@attack("files", "read by a relative path")
def read_relative(world: World) -> object:
    return os.read(os.open("../" * 20 + world.secret.lstrip("/"), os.O_RDONLY), 10)


@attack("files", "read by openat2")
def read_openat2(world: World) -> object:
    return call("openat2", -100, world.secret.encode(), bytes(24), 24)


@attack("files", "open by file handle", denied_by="privileges")
def open_by_handle(world: World) -> object:
    handle, mount = ctypes.create_string_buffer(136), ctypes.c_int()
    ctypes.c_uint.from_buffer(handle).value = 128
    call("name_to_handle_at", -100, world.secret.encode(), handle, ctypes.byref(mount), 0)
    root = os.open("/", os.O_RDONLY)
    return call("open_by_handle_at", root, handle, os.O_RDONLY)


@attack("files", "list a folder")
def list_folder(world: World) -> object:
    return os.listdir(world.folder)


@attack("files", "read its own environment in /proc")
def environment(world: World) -> object:
    return open("/proc/self/environ", "rb").read()


@attack("files", "read another process's memory in /proc")
def process_memory(world: World) -> object:
    return open(f"/proc/{os.getppid()}/mem", "rb").read(1)


@attack("files", "list the processes in /proc")
def processes(world: World) -> object:
    return [name for name in os.listdir("/proc") if name.isdigit()]


@attack("files", "write a file outside")
def write(world: World) -> object:
    return open(f"{world.folder}/escaped", "w").write("x")


@attack("files", "write to /tmp and /dev/shm")
def write_temporary(world: World) -> object:
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        last = OSError()
        try:
            return open(f"{folder}/appliance-escaped", "w").write("x")
        except OSError as error:
            last = error
    raise last


@attack("files", "fill the disk")
def fill_disk(world: World) -> object:
    with open(f"{world.folder}/large", "wb") as file:
        return sum(file.write(bytes(1 << 16)) for _ in range(16))


@attack("files", "open a device")
def device(world: World) -> object:
    for path in DEVICES:
        last = OSError()
        try:
            return os.open(path, os.O_RDWR)
        except OSError as error:
            last = error
    raise last


@attack("files", "make a symbolic link")
def symlink(world: World) -> object:
    os.symlink(world.secret, f"{world.folder}/link")
    return "linked"


@attack("files", "make a hard link")
def hardlink(world: World) -> object:
    os.link(f"{world.folder}/present", f"{world.folder}/hard")
    return "linked"


@attack("files", "link the inherited descriptor into a folder", denied_by="privileges")
def link_descriptor(world: World) -> object:
    return call("linkat", 0, b"", -100, f"{world.folder}/taken".encode(), 0x1000) or "linked"


@attack("files", "rename a file")
def rename(world: World) -> object:
    os.rename(f"{world.folder}/present", f"{world.folder}/renamed")
    return "renamed"


@attack("files", "delete a file")
def delete(world: World) -> object:
    os.unlink(f"{world.folder}/present")
    return "deleted"


@attack("files", "make a folder")
def make_folder(world: World) -> object:
    os.mkdir(f"{world.folder}/made")
    return "made"


@attack("files", "make a FIFO")
def make_fifo(world: World) -> object:
    os.mkfifo(f"{world.folder}/fifo")
    return "made"


@attack("files", "make a device node")
def make_device(world: World) -> object:
    os.mknod(f"{world.folder}/node", stat.S_IFCHR | 0o600, os.makedev(1, 1))
    return "made"


@attack("files", "cut a file short by its path")
def truncate(world: World) -> object:
    return call("truncate", f"{world.folder}/present".encode(), 0) or "cut"


@attack("files", "change a file's mode", denied_by="kernel")
def change_mode(world: World) -> object:
    os.chmod(f"{world.folder}/present", 0o777)
    return "changed"


@attack("files", "overwrite the document that it was given")
def overwrite_document(world: World) -> object:
    return os.write(0, b"changed")


@attack("files", "grow the document to a terabyte")
def grow_document(world: World) -> object:
    return call("ftruncate", 0, 1 << 40) or "grown"


@attack("files", "allocate room in the document")
def allocate_document(world: World) -> object:
    return call("fallocate", 0, 0, 0, 1 << 30) or "grown"


@attack("files", "read a descriptor that the daemon left open")
def inherited(world: World) -> object:
    last = OSError()
    for fd in range(3, 4096):
        try:
            return os.read(fd, 1)
        except OSError as error:
            last = error
    raise last


@attack("files", "watch files (inotify)")
def watch(world: World) -> object:
    os.close(0)
    return call("inotify_add_watch", call("inotify_init1", 0), world.folder.encode(), 0xFFF)


@attack("files", "watch files (fanotify)", denied_by="privileges")
def watch_all(world: World) -> object:
    return call("fanotify_init", 0, 0)


@attack("files", "import something new")
def late_import(world: World) -> object:
    try:
        import sqlite3
    except ImportError:
        raise PermissionError(errno.EPERM, "not found") from None
    return sqlite3.sqlite_version
