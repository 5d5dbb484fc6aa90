"""Attacks by and on processes: make one, run a program, signal, trace or read another."""

import ctypes
import errno
import os
import signal
import threading

from tests.attacks.attack import World, attack, call

SIGCHLD = signal.SIGCHLD


def _forked(pid: int) -> object:
    if pid == 0:
        os._exit(0)
    return f"process {pid}"


@attack("processes", "fork")
def fork(world: World) -> object:
    return _forked(os.fork())


@attack("processes", "fork without end")
def fork_bomb(world: World) -> object:
    for _ in range(50):
        _forked(os.fork())
    return "50 processes"


@attack("processes", "vfork")
def vfork(world: World) -> object:
    return _forked(call("vfork"))


@attack("processes", "clone")
def clone(world: World) -> object:
    return _forked(call("clone", int(SIGCHLD), 0, 0, 0, 0))


@attack("processes", "clone3")
def clone3(world: World) -> object:
    arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, int(SIGCHLD), 0, 0, 0)
    return _forked(call("clone3", arguments, 64))


@attack("processes", "start threads without end")
def thread_storm(world: World) -> object:
    threads = [threading.Thread(target=threading.Event().wait, args=(0.2,)) for _ in range(20)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread") from None
    return "20 threads"


@attack("processes", "run a program")
def execute(world: World) -> object:
    os.execv("/bin/true", ["true"])


@attack("processes", "run a program from memory (execveat)")
def execute_memory(world: World) -> object:
    fd = os.memfd_create("program")
    os.write(fd, b"#!/bin/true\n")
    return call("execveat", fd, b"", None, None, 0x1000)


@attack("processes", "run the document as a program", denied_by="kernel")
def execute_document(world: World) -> object:
    try:
        return call("execveat", 0, b"", None, None, 0x1000)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # only because this document is none
            return "run"
        raise


@attack("processes", "kill the parent")
def kill_parent(world: World) -> object:
    os.kill(os.getppid(), signal.SIGURG)
    return "signalled"


@attack("processes", "kill the daemon's other processes")
def kill_victim(world: World) -> object:
    os.kill(world.victim_pid, 0)
    return "signalled"


@attack("processes", "kill everyone")
def kill_everyone(world: World) -> object:
    os.kill(-1, signal.SIGURG)
    return "signalled"


@attack("processes", "signal a thread of the parent")
def tkill(world: World) -> object:
    return call("tkill", os.getppid(), int(signal.SIGURG)) or "signalled"


@attack("processes", "queue a signal to the parent")
def sigqueue(world: World) -> object:
    information = ctypes.create_string_buffer(128)
    ctypes.memmove(information, (ctypes.c_int * 3)(int(signal.SIGURG), 0, -1), 12)
    return call("rt_sigqueueinfo", os.getppid(), int(signal.SIGURG), information) or "signalled"


@attack("processes", "signal by a pidfd")
def pidfd_signal(world: World) -> object:
    os.close(0)
    pidfd = call("pidfd_open", os.getppid(), 0)
    return call("pidfd_send_signal", pidfd, int(signal.SIGURG), None, 0) or "signalled"


@attack("processes", "take a descriptor of the parent (pidfd_getfd)")
def pidfd_getfd(world: World) -> object:
    os.close(0)
    return call("pidfd_getfd", call("pidfd_open", os.getppid(), 0), 0, 0)


@attack("processes", "trace the parent (ptrace)")
def ptrace(world: World) -> object:
    return call("ptrace", 0x4206, os.getppid(), 0, 0) or "traced"


@attack("processes", "read the parent's memory")
def read_memory(world: World) -> object:
    return _move_memory("process_vm_readv")


@attack("processes", "write the parent's memory")
def write_memory(world: World) -> object:
    return _move_memory("process_vm_writev")


def _move_memory(name: str) -> int:
    room = ctypes.create_string_buffer(16)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(room), 16)
    return call(name, os.getppid(), vector, 1, vector, 1, 0)


@attack("processes", "advise on the parent's memory")
def advise(world: World) -> object:
    room = ctypes.create_string_buffer(8192)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(room) & ~4095, 4096)
    os.close(0)
    return call("process_madvise", call("pidfd_open", os.getppid(), 0), vector, 1, 4, 0)


@attack("processes", "compare itself with the parent (kcmp)")
def kcmp(world: World) -> object:
    return call("kcmp", os.getpid(), os.getppid(), 1, 0, 0)


@attack("processes", "move the parent's pages", denied_by="kernel")
def move_pages(world: World) -> object:
    return call("migrate_pages", os.getppid(), 64, (ctypes.c_ulong * 1)(1), (ctypes.c_ulong * 1)(1))


@attack("processes", "change the parent's limits")
def limit_parent(world: World) -> object:
    return call("prlimit64", os.getppid(), 7, (ctypes.c_uint64 * 2)(0, 0), None) or "limited"


@attack("processes", "type into the terminal (TIOCSTI)")
def type_into_terminal(world: World) -> object:
    last = OSError()
    for fd in range(3):
        try:
            return call("ioctl", fd, 0x5412, b"x") or "typed"
        except OSError as error:
            last = error
    raise last


@attack("processes", "raise its own limits", denied_by="privileges")
def raise_limits(world: World) -> object:
    return call("prlimit64", 0, 9, (ctypes.c_int64 * 2)(-1, -1), None) or "raised"


@attack("processes", "run at real-time priority", denied_by="limits")
def real_time(world: World) -> object:
    return call("sched_setscheduler", 0, 1, (ctypes.c_int * 1)(50)) or "real time"


@attack("processes", "run before others (nice)", denied_by="limits")
def nice(world: World) -> object:
    return call("setpriority", 0, 0, -20) or "nice"
