"""The process that locked children are forked from: `python -m appliance.sandbox.zygote FD SERVICE MEMORY CPU JSON`.

It is single-threaded, imports the service and warms it (what a locked child would import for the first time, it could
not), proves the lock, and then forks one locked child a request. It reads nothing untrusted itself. It and its children
yield the processor to serving. When its control socket closes, they die.

Control socket (SOCK_SEQPACKET, JSON messages):
    to the daemon    {"ready": [[wall, stands, needed, detail], …]} or {"failed": "why"}, once
    to the zygote    {"id", "request", "more_cpu_seconds"} with two descriptors, subject and result pipe; {"kill": id};
                     or {"attest": true}
    to the daemon    {"id", "status", "cpu_seconds", "peak_bytes"} when the child has ended
    to the daemon    {"attested": [what was not denied, …]}
"""

import array
import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, Protocol

from appliance.errors import SandboxUnavailable
from appliance.sandbox import lockdown
from appliance.sandbox.attest import Probe, attest, walls

LOCKED = b"L"  # written to the result pipe between the lock and the service: without it the child never was locked
MESSAGE_BYTES = 1 << 15  # a request may hold a path
NICENESS = 5  # a third of what serving gets of a core that both want; more, and limits of wall time end sound documents


class Service(Protocol):
    """What children do. Its module has `service(settings: Mapping[str, int | str]) -> Service`."""

    def warm(self) -> None:
        """Have everything imported and loaded that `answer` will need."""

    def answer(self, fd: int, request: str) -> Iterable[bytes]:
        """The answer, in pieces, in a form that says whether it is whole. fd: the subject, open for reading."""


def main() -> None:
    """Run as the daemon started it."""
    control = socket.socket(fileno=int(sys.argv[1]))
    name, memory_bytes, cpu_seconds, settings = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
    limits = lockdown.Limits(memory_bytes, cpu_seconds)
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the daemon drains first, then closes the control socket
        signal.signal(ignored, signal.SIG_IGN)
    _yield_to_serving()
    try:
        rights = lockdown.check()
        namespaces = lockdown.enter_namespaces()
        _become_first_process(control, namespaces)
        service: Service = importlib.import_module(name).service(settings)
        service.warm()
        mapped_bytes, nowhere = _mapped_bytes(), os.open(os.devnull, os.O_WRONLY)
        probe, namespaces = _leave_files(namespaces)

        def prove() -> tuple[str, ...]:
            return attest(rights, limits, mapped_bytes, probe)

        if allowed := prove():
            raise SandboxUnavailable(f"The lock does not hold against {'; '.join(allowed)}.")
    except Exception as error:  # noqa: BLE001 - anything that goes wrong here means: read nothing, and say why
        why = str(error) if isinstance(error, SandboxUnavailable) else f"{type(error).__name__}: {error}"
        control.send(json.dumps({"failed": why[:1000]}).encode())
        return
    gc.collect()
    gc.freeze()  # children then share these pages instead of copying them at their first collection
    control.send(json.dumps({"ready": walls(rights, limits, namespaces)}).encode())

    def child(subject: int, result: int, request: str, more_cpu_seconds: int) -> NoReturn:
        def lock() -> None:
            own = lockdown.Limits(memory_bytes, cpu_seconds, more_cpu_seconds)
            lockdown.lock(rights, own, mapped_bytes)

        _run_child((subject, result, nowhere), lock, lambda: service.answer(0, request))

    _serve(control, child, prove)


def _yield_to_serving() -> None:
    """Lower the priority of this process and of its session, which kernels may weigh as one (sched(7), autogroups)."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as session:
        session.write(str(NICENESS))


def _become_first_process(control: socket.socket, namespaces: Sequence[str]) -> None:
    """Go on as process 1 of the new pid namespace; the process that entered it only waits, and exits as it does."""
    if "pid" in namespaces and (pid := os.fork()):
        control.close()
        lockdown.leave_with_parent()
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    lockdown.leave_with_parent()


def _leave_files(namespaces: tuple[str, ...]) -> tuple[Probe, tuple[str, ...]]:
    """Files to prove the lock with, in an empty root where there can be one; and the namespaces that count."""
    if "mount" in namespaces and lockdown.enter_empty_root("probe"):
        return Probe("/probe", "/probe"), namespaces
    return Probe(sys.executable, os.devnull), tuple(name for name in namespaces if name != "mount")


def _serve(
    control: socket.socket, child: Callable[[int, int, str, int], NoReturn], prove: Callable[[], Sequence[str]]
) -> None:
    """Fork, kill, reap and prove on command until the control socket closes."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # by pidfd: pid and id
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                pid, number = children.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                control.send(_obituary(pid, number))
                continue
            message, fds = _receive(control)
            if not message:
                return
            order = json.loads(message)
            if "kill" in order:
                for pidfd in [pidfd for pidfd, (_, number) in children.items() if number == order["kill"]]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            elif "attest" in order:
                control.send(json.dumps({"attested": prove()}).encode())
            else:
                pidfd, pid = _fork(fds, order["request"], order["more_cpu_seconds"], child)
                children[pidfd] = (pid, order["id"])
                poll.register(pidfd, select.POLLIN)


def _fork(
    fds: Sequence[int], request: str, more_cpu_seconds: int, child: Callable[[int, int, str, int], NoReturn]
) -> tuple[int, int]:
    """pidfd and pid of a child that has the descriptors."""
    subject, result = fds
    pid = os.fork()
    if pid == 0:
        child(subject, result, request, more_cpu_seconds)
    os.close(subject)
    os.close(result)
    return os.pidfd_open(pid), pid


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    room = socket.CMSG_SPACE(2 * fds.itemsize)
    message, ancillary, _, _ = control.recvmsg(MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data)
    return message, list(fds)


def _obituary(pid: int, number: int) -> bytes:
    _, status, usage = os.wait4(pid, 0)
    inherited_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return json.dumps(
        {
            "id": number,
            "status": os.waitstatus_to_exitcode(status),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": max(0, usage.ru_maxrss - inherited_kib) * 1024,
        }
    ).encode()


def _run_child(fds: Sequence[int], lock: Callable[[], None], answer: Callable[[], Iterable[bytes]]) -> NoReturn:
    """fds: what become descriptors 0 to 2; no other is open once it is locked."""
    code = 1
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        lock()
        os.write(1, LOCKED)
        for piece in answer():
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(1, rest) :]
        code = 0
    finally:
        os._exit(code)


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    main()
