"""The processor time that is left to this process, by the timer that it was locked with (ITIMER_PROF, setitimer(2)).

Where it runs out, the kernel ends the process. What takes long with good reason is given more, so that the time that a
file can waste is a matter of its pages and not of the longest file's. All of it together stays within RLIMIT_CPU. Where
no timer runs, nothing here does anything.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def extend(cpu_seconds: float) -> None:
    """Give what follows so much more."""
    left_seconds, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    if left_seconds:
        signal.setitimer(signal.ITIMER_PROF, left_seconds + cpu_seconds)


@contextmanager
def instead(cpu_seconds: float) -> Iterator[None]:
    """Give so much to what is done within; what was left before is left again after it."""
    left_seconds, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    if left_seconds:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, left_seconds)
