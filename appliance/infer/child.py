"""What every process does that runs native code for the daemon: die with it, leave no core dump, speak in lines."""

import ctypes
import json
import os
import resource
import signal
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def harden(parent: int) -> None:
    """Die with `parent`, leave no core dump, write files that only this user can read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    if os.getppid() != parent:  # it died before the prctl
        os._exit(0)


def take_stdout() -> int:
    """Keep stdout for our own lines: whatever native code prints goes to stderr."""
    report = os.dup(1)
    os.dup2(2, 1)
    return report


def say(report: int, line: dict[str, Any]) -> None:
    """One JSON object on the stdout that was kept."""
    os.write(report, json.dumps(line).encode() + b"\n")
