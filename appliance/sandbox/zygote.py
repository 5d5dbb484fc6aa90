"""The process that every parser child is forked from: `python -m appliance.sandbox.zygote FD PARSER MEMORY CPU JSON`.

It is single-threaded, imports the parser and warms it with a document of each format (what a locked child would import
for the first time, it could not), proves the lock, and then forks one locked child a document. It reads no document
itself. When its control socket closes, it and its children die.

Control socket (SOCK_SEQPACKET, JSON messages):
    to the daemon    {"ready": {"landlock_abi", "namespaces"}} or {"failed": "why"}, once
    to the zygote    {"id", "suffix"} with two descriptors, document and result pipe; or {"kill": id}
    to the daemon    {"id", "status", "cpu_seconds", "peak_bytes"} when the child has ended
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn, Protocol

from appliance.errors import DocumentRefused, SandboxUnavailable
from appliance.sandbox import lockdown
from appliance.sandbox.attest import attest
from appliance.sandbox.result import Parsed, encode, encode_refusal

LOCKED = b"L"  # written to the result pipe between the lock and the parser: without it the child never was locked
MESSAGE_BYTES = 4096


class Parser(Protocol):
    """Reads documents. A parser's module has `reader(settings: Mapping[str, int | str]) -> Parser`."""

    @property
    def warm_documents(self) -> Sequence[tuple[str, bytes]]:
        """Suffix and content, one of each format and of each road that imports anything of its own."""

    def parse(self, data: bytes, suffix: str) -> Parsed:
        """Raises DocumentRefused."""


def main() -> None:
    """Run as the daemon started it."""
    control = socket.socket(fileno=int(sys.argv[1]))
    name, memory_bytes, cpu_seconds, settings = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
    limits = lockdown.Limits(memory_bytes, cpu_seconds)
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the daemon drains first, then closes the control socket
        signal.signal(ignored, signal.SIG_IGN)
    try:
        abi = lockdown.check()
        namespaces = lockdown.enter_namespaces()
        _become_first_process(control, namespaces)
        parser = _warmed(name, settings)
        mapped_bytes = _mapped_bytes()
        if allowed := attest(abi, limits, mapped_bytes):
            raise SandboxUnavailable(f"The lock does not hold against {'; '.join(allowed)}.")
    except Exception as error:  # noqa: BLE001 - anything that goes wrong here means: parse nothing, and say why
        why = str(error) if isinstance(error, SandboxUnavailable) else f"{type(error).__name__}: {error}"
        control.send(json.dumps({"failed": why[:1000]}).encode())
        return
    gc.collect()
    gc.freeze()  # children then share these pages instead of copying them at their first collection
    control.send(json.dumps({"ready": {"landlock_abi": abi, "namespaces": namespaces}}).encode())

    def child(document: int, result: int, suffix: str) -> NoReturn:
        lock = partial(lockdown.lock, abi, limits, mapped_bytes)
        _run_child(document, result, lock, partial(_answer, parser, suffix=suffix))

    _serve(control, child)


def _become_first_process(control: socket.socket, namespaces: Sequence[str]) -> None:
    """Go on as process 1 of the new pid namespace; the process that entered it only waits, and exits as it does."""
    if "pid" in namespaces and (pid := os.fork()):
        control.close()
        lockdown.leave_with_parent()
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    lockdown.leave_with_parent()


def _warmed(name: str, settings: Mapping[str, int | str]) -> Parser:
    parser: Parser = importlib.import_module(name).reader(settings)
    for suffix, data in parser.warm_documents:
        with contextlib.suppress(DocumentRefused):
            encode(parser.parse(data, suffix))
    return parser


def _answer(parser: Parser, data: bytes, suffix: str) -> bytes:
    try:
        return encode(parser.parse(data, suffix))
    except DocumentRefused as refusal:
        return encode_refusal(refusal.file_reason, str(refusal))
    except MemoryError:
        return encode_refusal("TOO_MUCH_MEMORY", "Reading it takes more memory than a document may use.")
    except Exception as error:  # noqa: BLE001 - a parser may raise anything; its text may hold content
        return encode_refusal("PARSER_FAILED", f"The parser gave up ({type(error).__name__}).")


def _serve(control: socket.socket, child: Callable[[int, int, str], NoReturn]) -> None:
    """Fork, kill and reap on command until the control socket closes."""
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
                continue
            document, result = fds
            pid = os.fork()
            if pid == 0:
                child(document, result, order["suffix"])
            os.close(document)
            os.close(result)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, order["id"])
            poll.register(pidfd, select.POLLIN)


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


def _run_child(document: int, result: int, lock: Callable[[], None], answer: Callable[[bytes], bytes]) -> NoReturn:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        os.dup2(document, 0)
        os.dup2(result, 1)
        size = os.fstat(0).st_size
        lock()
        os.write(1, LOCKED)
        rest = memoryview(answer(_read(0, size)))
        while rest:
            rest = rest[os.write(1, rest) :]
        code = 0
    finally:
        os._exit(code)


def _read(fd: int, size: int) -> bytes:
    """The whole file from its beginning, whatever the shared offset says."""
    data = os.pread(fd, size, 0)
    if len(data) < size:  # one read gives at most 2 GiB; a sealed file cannot have shrunk
        raise OSError("short read")
    return data


def _mapped_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    main()
