"""Proof before trust: a locked child tries what it must not, and nothing is read unless each try fails.

Each layer is tried alone too, so that one which happens to deny the same thing cannot hide that another does nothing.
"""

import errno
import mmap
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from appliance.sandbox import lockdown
from appliance.sandbox.syscalls import ALLOWED, ARCHITECTURES, EXEC, SELF

DENIED, ALLOWED_AFTER_ALL, NOT_LOCKED, ERROR = 0, 41, 42, 43
NO_PERMISSION = (errno.EACCES, errno.EPERM)
MIB = 1 << 20

Attempt = Callable[[], object]
Layer = tuple[str, bool, bool, str]
"""A wall: its name, whether it stands, whether nothing is read without it, and of what it is made."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Files that may be opened while nothing is locked, and that are none the worse for it."""

    readable: str
    writable: str


@dataclass(frozen=True, slots=True)
class _Trial:
    """What must fail behind a wall, by one of these errors or by SIGSYS."""

    name: str
    restrict: Callable[[], None]
    attempt: Attempt
    errors: Sequence[int] = NO_PERMISSION


def attest(rights: lockdown.Rights, limits: lockdown.Limits, mapped_bytes: int, probe: Probe) -> tuple[str, ...]:
    """What was not denied, in words; empty when the walls stand. Forks; needs a single thread."""
    if any(denied(lambda: None, attempt) for _, attempt in _file_attempts(probe)):
        return ("what is denied without it too: there is no file to prove it with",)
    trials = (
        *_landlock_trials(rights, probe),
        *_limit_trials(limits, mapped_bytes),
        *_privilege_trials(),
        *_trials(rights, limits, mapped_bytes, probe),
    )
    return tuple(trial.name for trial in trials if not denied(trial.restrict, trial.attempt, trial.errors))


def walls(rights: lockdown.Rights, limits: lockdown.Limits, namespaces: Sequence[str]) -> tuple[Layer, ...]:
    """The layers of a lock that was attested, in the order in which a call meets them."""
    named = [("files", rights.files), ("TCP", rights.net), ("signals and abstract sockets", rights.scopes)]
    landlock = ", ".join(f"{what} ({mask.bit_count()} rights)" for what, mask in named if mask)
    answered = len({*ALLOWED, *EXEC, *SELF} & ARCHITECTURES[platform.machine()].numbers.keys())
    memory = f"{limits.memory_bytes // MIB} MiB beyond the parser's own"
    processes = ", no process started" if os.geteuid() else ""  # the kernel exempts root
    missing = tuple(name for name in lockdown.CLONE_FLAGS if name not in namespaces)
    spaces = ", ".join(namespaces) + (f"; without {', '.join(missing)}" if missing else "")
    return (
        ("seccomp", True, True, f"{answered} system calls of {platform.machine()} answered, others end the process"),
        ("landlock", True, True, f"ABI {rights.abi}: {landlock}"),
        ("limit of memory", True, True, f"{memory}, {lockdown.STACK_BYTES // MIB} MiB of stack, none locked"),
        ("limit of processor time", True, True, f"{limits.cpu_seconds} s"),
        ("limit of files", True, True, "three descriptors, nothing written to a file, no core dump" + processes),
        ("privileges", True, True, "no capability, none to be gained, no debugger"),
        ("namespaces", not missing, False, spaces.removeprefix("; ")),
    )


def denied(restrict: Callable[[], None], attempt: Attempt, errors: Sequence[int] = NO_PERMISSION) -> bool:
    """Whether a forked child that ran `restrict` is refused `attempt`: by one of the errors, or by its death."""
    pid = os.fork()
    if pid == 0:
        os._exit(_try(restrict, attempt, errors))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGSYS
    return os.WEXITSTATUS(status) == DENIED


def _try(restrict: Callable[[], None], attempt: Attempt, errors: Sequence[int]) -> int:
    try:
        restrict()
    except BaseException:  # noqa: BLE001 - whatever went wrong, the child is not locked
        return NOT_LOCKED
    try:
        attempt()
    except MemoryError:
        return DENIED if errno.ENOMEM in errors else ERROR
    except OSError as error:  # another error is no proof: it failed, but not because it was forbidden
        return DENIED if error.errno in errors else ERROR
    except BaseException:  # noqa: BLE001
        return ERROR
    return ALLOWED_AFTER_ALL


def _trials(rights: lockdown.Rights, limits: lockdown.Limits, mapped_bytes: int, probe: Probe) -> Iterator[_Trial]:
    def everything() -> None:
        lockdown.lock(rights, limits, mapped_bytes)

    for name, attempt in (
        *_file_attempts(probe),
        ("opening a TCP socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
        ("opening a unix socket", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        ("starting a program", lambda: os.execv(sys.executable, [sys.executable, "-c", ""])),  # noqa: S606 - must fail
        ("forking", os.fork),
        ("mapping memory as code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)),
    ):
        yield _Trial(name, everything, attempt)


def _landlock_trials(rights: lockdown.Rights, probe: Probe) -> Iterator[_Trial]:
    def alone() -> None:
        lockdown.leave_with_parent()
        lockdown.landlock(rights, quiet=True)

    attempts: list[tuple[str, Attempt]] = [*_file_attempts(probe), ("listing a folder", lambda: os.listdir("/"))]
    if rights.net:
        attempts.append(("binding a TCP port", lambda: socket.socket().bind(("0.0.0.0", 0))))  # noqa: S104 - must fail
        attempts.append(("connecting to a TCP port", lambda: socket.socket().connect(("127.0.0.1", 9))))
    if rights.scopes:
        parent = os.getpid()
        attempts.append(("signalling another process", lambda: os.kill(parent, 0)))
    for name, attempt in attempts:
        yield _Trial(f"{name}, under Landlock alone", alone, attempt)


def _limit_trials(limits: lockdown.Limits, mapped_bytes: int) -> Iterator[_Trial]:
    def alone() -> None:
        lockdown.limit(limits, mapped_bytes, 3)

    def alone_with_a_file() -> None:
        os.dup2(os.memfd_create("probe"), 0)
        alone()

    def beyond() -> object:
        return mmap.mmap(-1, limits.memory_bytes + MIB)

    def processor_limit() -> None:
        if resource.getrlimit(resource.RLIMIT_CPU) == (limits.cpu_seconds, limits.cpu_seconds + 1):
            raise PermissionError(errno.EPERM, "limited")

    yield _Trial("taking more memory", alone, beyond, (errno.ENOMEM,))
    yield _Trial("opening one more descriptor", alone, lambda: os.dup(0), (errno.EMFILE,))
    yield _Trial("writing to a file that is open", alone_with_a_file, lambda: os.write(0, b"x"), (errno.EFBIG,))
    yield _Trial("computing without end", alone, processor_limit)


def _privilege_trials() -> Iterator[_Trial]:
    def alone() -> None:
        lockdown.leave_with_parent()
        lockdown.drop_capabilities()

    yield _Trial("changing the root folder", alone, lambda: os.chroot("/"))


def _file_attempts(probe: Probe) -> tuple[tuple[str, Attempt], ...]:
    return (
        ("reading a file", lambda: os.close(os.open(probe.readable, os.O_RDONLY))),
        ("writing a file", lambda: os.close(os.open(probe.writable, os.O_WRONLY))),
    )
