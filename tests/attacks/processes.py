"""Attacks by and on processes: make one, run a program, signal, trace or read another."""

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Callable

from tests.attacks.attack import NO_EFFECT, World, attack, call

SIGCHLD = signal.SIGCHLD


def _forked(pid: int) -> object:
    if pid == 0:
        os._exit(0)
    return f"process {pid}"


@attack("processes", "fork", "seccomp", "limits")
def fork(world: World) -> object:
    return _forked(os.fork())


@attack("processes", "fork without end", "seccomp", "limits")
def fork_bomb(world: World) -> object:
    for _ in range(50):
        _forked(os.fork())
    return "50 processes"


@attack("processes", "vfork", "seccomp", "limits")
def vfork(world: World) -> object:
    return _forked(call("vfork"))


@attack("processes", "clone", "seccomp", "limits")
def clone(world: World) -> object:
    return _forked(call("clone", int(SIGCHLD), 0, 0, 0, 0))


@attack("processes", "clone3", "seccomp", "limits")
def clone3(world: World) -> object:
    arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, int(SIGCHLD), 0, 0, 0)
    return _forked(call("clone3", arguments, 64))


@attack("processes", "start threads without end", "seccomp", "limits")
def thread_storm(world: World) -> object:
    threads = [threading.Thread(target=threading.Event().wait, args=(0.2,)) for _ in range(20)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread") from None
    return "20 threads"


@attack("processes", "run a program", "seccomp", "landlock", "namespaces")
def execute(world: World) -> object:
    return _run(lambda: os.execv(f"{world.folder}/present", ["present"]))


@attack("processes", "run a program from memory (execveat)", "seccomp", "limits")
def execute_memory(world: World) -> object:
    fd = os.memfd_create("program")
    os.write(fd, b"junk")
    return _run(lambda: call("execveat", fd, b"", None, None, 0x1000))


@attack("processes", "run the document as a program", "seccomp")
def execute_document(world: World) -> object:
    return _run(lambda: call("execveat", 0, b"", None, None, 0x1000))


def _run(execute: Callable[[], object]) -> object:
    try:
        return execute()
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # only because it is no program: whatever could forbid it let it pass
            return "run"
        raise


@attack("processes", "kill the parent", "seccomp", "landlock")
def kill_parent(world: World) -> object:
    os.kill(world.parent_pid, signal.SIGURG)
    return "signalled"


@attack("processes", "kill the daemon's other processes", "seccomp", "landlock", "namespaces")
def kill_victim(world: World) -> object:
    os.kill(world.victim_pid, 0)
    return "signalled"


@attack("processes", "kill everyone", "seccomp", "landlock", "namespaces")
def kill_everyone(world: World) -> object:
    os.kill(-1, signal.SIGURG)
    os.kill(world.victim_pid, 0)  # the call before is no error where it reached nobody
    return "signalled"


@attack("processes", "signal a thread of the parent", "seccomp", "landlock")
def tkill(world: World) -> object:
    return call("tkill", world.parent_pid, int(signal.SIGURG)) or "signalled"


@attack("processes", "queue a signal to the parent", "seccomp", "landlock")
def sigqueue(world: World) -> object:
    information = ctypes.create_string_buffer(128)
    ctypes.memmove(information, (ctypes.c_int * 3)(int(signal.SIGURG), 0, -1), 12)
    return call("rt_sigqueueinfo", world.parent_pid, int(signal.SIGURG), information) or "signalled"


@attack("processes", "signal by a pidfd", "seccomp", "landlock")
def pidfd_signal(world: World) -> object:
    os.close(0)
    pidfd = call("pidfd_open", world.parent_pid, 0)
    return call("pidfd_send_signal", pidfd, int(signal.SIGURG), None, 0) or "signalled"


@attack("processes", "take a descriptor of the parent (pidfd_getfd)", "seccomp", "landlock", "privileges")
def pidfd_getfd(world: World) -> object:
    os.close(0)
    return call("pidfd_getfd", call("pidfd_open", world.parent_pid, 0), 0, 0)


@attack("processes", "trace the parent (ptrace)", "seccomp", "landlock", "privileges")
def ptrace(world: World) -> object:
    return call("ptrace", 0x4206, world.parent_pid, 0, 0) or "traced"


@attack("processes", "read the parent's memory", "seccomp", "landlock", "privileges")
def read_memory(world: World) -> object:
    return _move_memory(world, "process_vm_readv")


@attack("processes", "write the parent's memory", "seccomp", "landlock", "privileges")
def write_memory(world: World) -> object:
    return _move_memory(world, "process_vm_writev")


def _move_memory(world: World, name: str) -> int:
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(NO_EFFECT), 16)
    return call(name, world.parent_pid, vector, 1, vector, 1, 0)


@attack("processes", "advise on the parent's memory", "seccomp")
def advise(world: World) -> object:
    cold, vector = 20, (ctypes.c_size_t * 2)(ctypes.addressof(NO_EFFECT) & ~4095, 4096)
    os.close(0)
    return call("process_madvise", call("pidfd_open", world.parent_pid, 0), vector, 1, cold, 0)


@attack("processes", "compare itself with the parent (kcmp)", "seccomp", "landlock", "privileges")
def kcmp(world: World) -> object:
    return call("kcmp", os.getpid(), world.parent_pid, 1, 0, 0)


@attack("processes", "move the parent's pages", "seccomp", "landlock", "privileges")
def move_pages(world: World) -> object:
    return call("migrate_pages", world.parent_pid, 64, (ctypes.c_ulong * 1)(1), (ctypes.c_ulong * 1)(1))


@attack("processes", "change the parent's limits", "seccomp")
def limit_parent(world: World) -> object:
    core_dumps = 4  # that of descriptors would end the zygote
    return call("prlimit64", world.parent_pid, core_dumps, (ctypes.c_uint64 * 2)(0, 0), None) or "limited"


@attack("processes", "type into the terminal (TIOCSTI)", "seccomp")
def type_into_terminal(world: World) -> object:
    last = OSError()
    for fd in range(3):
        try:
            return call("ioctl", fd, 0x5412, b"x") or "typed"
        except OSError as error:
            last = error
    raise last


@attack("processes", "raise its own limits", "seccomp", "limits")
def raise_limits(world: World) -> object:
    return call("prlimit64", 0, 9, (ctypes.c_int64 * 2)(-1, -1), None) or "raised"


@attack("processes", "run at real-time priority", "seccomp")
def real_time(world: World) -> object:
    return call("sched_setscheduler", 0, 1, (ctypes.c_int * 1)(50)) or "real time"


@attack("processes", "run before others (nice)", "seccomp")
def nice(world: World) -> object:
    return call("setpriority", 0, 0, -20) or "nice"
