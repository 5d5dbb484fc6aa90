"""Proof before trust: a locked child tries what it must not, and nothing is parsed unless each try fails.

Landlock is tried alone too, so that a filter which happens to deny the same thing cannot hide that it does nothing.
"""

import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable

from appliance.sandbox import lockdown

DENIED, ALLOWED, NOT_LOCKED, ERROR = 0, 41, 42, 43

Attempt = Callable[[], object]


def attest(abi: int, limits: lockdown.Limits, mapped_bytes: int) -> tuple[str, ...]:
    """What was not denied, in words; empty when the walls stand. Forks; needs a single thread."""

    def landlock_alone() -> None:
        lockdown.leave_with_parent()
        lockdown.landlock(abi)

    def everything() -> None:
        lockdown.lock(abi, limits, mapped_bytes)

    checks = [(f"{name}, under Landlock alone", landlock_alone, attempt) for name, attempt in _landlock_attempts(abi)]
    checks += [(name, everything, attempt) for name, attempt in _attempts()]
    return tuple(name for name, restrict, attempt in checks if not denied(restrict, attempt))


def denied(restrict: Callable[[], None], attempt: Attempt) -> bool:
    """Whether a forked child that ran `restrict` is refused `attempt`: by an error of permission, or by its death."""
    pid = os.fork()
    if pid == 0:
        os._exit(_try(restrict, attempt))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGSYS
    return os.WEXITSTATUS(status) == DENIED


def _try(restrict: Callable[[], None], attempt: Attempt) -> int:
    try:
        restrict()
    except BaseException:  # noqa: BLE001 - whatever went wrong, the child is not locked
        return NOT_LOCKED
    try:
        attempt()
    except PermissionError:
        return DENIED
    except BaseException:  # noqa: BLE001 - it failed, but not because it was forbidden: no proof
        return ERROR
    return ALLOWED


def _attempts() -> tuple[tuple[str, Attempt], ...]:
    return (
        ("reading a file", _read_file),
        ("writing a file", _write_file),
        ("opening a TCP socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
        ("opening a unix socket", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)),
        ("starting a program", lambda: os.execv(sys.executable, [sys.executable, "-c", ""])),  # noqa: S606 - must fail
        ("forking", os.fork),
        ("mapping memory as code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)),
    )


def _landlock_attempts(abi: int) -> tuple[tuple[str, Attempt], ...]:
    attempts: list[tuple[str, Attempt]] = [("reading a file", _read_file), ("writing a file", _write_file)]
    if abi >= 4:
        attempts.append(("binding a TCP port", lambda: socket.socket().bind(("0.0.0.0", 0))))  # noqa: S104 - must fail
    if abi >= 6:
        parent = os.getpid()
        attempts.append(("signalling another process", lambda: os.kill(parent, 0)))
    return tuple(attempts)


def _read_file() -> None:
    os.close(os.open(sys.executable, os.O_RDONLY))


def _write_file() -> None:
    os.close(os.open(os.devnull, os.O_WRONLY))
