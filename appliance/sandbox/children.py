"""The daemon's side of the sandbox: starts the zygote, has it fork, kills what takes too long, believes nothing.

Where the lock cannot be proven, at the start or every hour, SandboxUnavailable, and nothing untrusted is read.
"""

import array
import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import structlog

from appliance.errors import DocumentRefused, SandboxUnavailable
from appliance.sandbox.lockdown import Limits
from appliance.sandbox.zygote import LOCKED, MESSAGE_BYTES
from appliance.types import Wall, Walls

START_SECONDS = 60.0
PROOF_SECONDS = 3600.0
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 1.0, 60.0
READ_BYTES = 1 << 20

ZYGOTE = (sys.executable, "-s", "-m", "appliance.sandbox.zygote")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class End:
    """How a child ended: exit status, negative where a signal killed it; peak memory beyond what it was forked with."""

    status: int
    cpu_seconds: float
    peak_bytes: int


class Children:
    """Locked children of one service, `parallel` of them at once.

    service: the dotted name of a module as `zygote.Service` has it; settings: for its `service`.
    zygote: the command that starts one.
    """

    def __init__(
        self,
        service: str,
        settings: Mapping[str, int | str],
        limits: Limits,
        parallel: int,
        zygote: Sequence[str] = ZYGOTE,
    ) -> None:
        self._limits = limits
        arguments = (service, str(limits.memory_bytes), str(limits.cpu_seconds), json.dumps(settings))
        self._command = (tuple(zygote), arguments)
        self._slots = asyncio.Semaphore(parallel)
        self._starting = asyncio.Lock()
        self._zygote: _Zygote | None = None
        self._fault = ""
        self._retry_at_seconds = 0.0
        self._backoff_seconds = FIRST_BACKOFF_SECONDS

    @property
    def fault(self) -> str:
        """Why nothing can be read; empty while all is well."""
        return self._fault

    @property
    def walls(self) -> Walls | None:
        """What the running zygote's lock is made of, as last proven; None while there is none."""
        return self._zygote.walls if self._zygote and self._zygote.alive else None

    async def start(self) -> None:
        """Have a proven zygote. Raises SandboxUnavailable, at once where the last start failed a moment ago."""
        await self._ready()

    async def prove(self) -> None:
        """Have the zygote try its walls anew. Where one fell, the zygote ends: SandboxUnavailable, as for `start`.

        Does nothing where none was needed so far.
        """
        if self._zygote:
            self._zygote.doubt()
        if self._zygote or self._fault:
            await self._ready()

    async def close(self) -> None:
        """Kill the zygote and its children."""
        if self._zygote:
            await self._zygote.close()
            self._zygote = None

    async def run(
        self,
        fd: int,
        request: str,
        take: Callable[[bytes], Awaitable[None]],
        wall_seconds: int,
        more_cpu_seconds: int = 0,
    ) -> End | None:
        """One child from fork to end, which gives its answer to `take` in pieces; None where the zygote died.

        fd: the subject, which stays the caller's. more_cpu_seconds: beyond the limit of all. Cancelling, and whatever
        `take` raises, kill the child. Raises DocumentRefused for one that takes longer than `wall_seconds` (SPUN), and
        for a request that is longer than a message (NAME_TOO_LONG); SandboxUnavailable.
        """
        async with self._slots:
            zygote = await self._ready()
            read_end, number, ended = zygote.fork(fd, request, more_cpu_seconds)
            try:
                async with asyncio.timeout(wall_seconds):
                    locked = await _hand_over(read_end, take)
                    end = await ended
            except TimeoutError:
                raise DocumentRefused("SPUN", f"Reading it took more than {wall_seconds} seconds.") from None
            finally:
                zygote.forget(number)
            if end is None:
                log.warning("sandbox.zygote_died")
            elif end.status >= 0 and not locked:
                await self._distrust(zygote, "A child could not lock itself.")
            return end

    def judge(self, end: End, more_cpu_seconds: int = 0) -> None:
        """Raises DocumentRefused unless the child ended well: PARSER_FAILED, FORBIDDEN_CALL (it tried what the lock
        forbids), SPUN, TOO_MUCH_MEMORY or CRASHED."""
        if end.status == 0:
            return
        if end.status > 0:
            raise DocumentRefused("PARSER_FAILED", "The parser stopped without a result.")
        if end.status == -signal.SIGSYS:
            raise DocumentRefused("FORBIDDEN_CALL", "Its parser tried what the sandbox forbids; it may be an attack.")
        if end.status == -signal.SIGPROF:
            least = f"{self._limits.cpu_seconds} processor seconds and what its pages add"
            raise DocumentRefused("SPUN", f"Reading it took more than {least}.")
        most_seconds = self._limits.cpu_seconds + more_cpu_seconds
        if end.status == -signal.SIGXCPU or end.cpu_seconds >= most_seconds:
            raise DocumentRefused("SPUN", f"Reading it took more than {most_seconds} processor seconds.")
        if end.peak_bytes > self._limits.memory_bytes / 3:  # native parsers crash where a buffer cannot double
            raise DocumentRefused("TOO_MUCH_MEMORY", "Reading it takes more memory than a document may use.")
        raise DocumentRefused("CRASHED", f"Its parser crashed ({signal.strsignal(-end.status) or -end.status}).")

    async def _ready(self) -> "_Zygote":
        """A zygote whose proof is not old."""
        async with self._starting:
            if self._zygote and self._zygote.alive and not self._zygote.proof_is_old:
                return self._zygote
            if time.monotonic() < self._retry_at_seconds and self._fault:
                raise SandboxUnavailable(self._fault)
            try:
                if self._zygote and self._zygote.alive:
                    await self._zygote.prove()
                else:
                    await self.close()
                    self._zygote = await _Zygote.start(*self._command)
            except SandboxUnavailable as error:
                await self._fail(str(error))
                raise
            self._fault, self._backoff_seconds = "", FIRST_BACKOFF_SECONDS
            log.info("sandbox.proven", walls=[wall.name for wall in self._zygote.walls.layers if wall.stands])
            return self._zygote

    async def _distrust(self, zygote: "_Zygote", why: str) -> NoReturn:
        """Raises SandboxUnavailable; health tells of it until another zygote is proven."""
        async with self._starting:
            if zygote is self._zygote:
                await self._fail(why)
        raise SandboxUnavailable(why)

    async def _fail(self, why: str) -> None:
        await self.close()
        self._fault = why
        self._retry_at_seconds = time.monotonic() + self._backoff_seconds
        self._backoff_seconds = min(2 * self._backoff_seconds, LAST_BACKOFF_SECONDS)
        log.error("sandbox.unavailable", why=why)


class _Zygote:
    """A running zygote and what it says. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.walls = Walls((), datetime.now(UTC))
        self.alive = True
        self._process = process
        self._control = control
        self._children: dict[int, asyncio.Future[End | None]] = {}
        self._last = 0
        self._proof: asyncio.Future[Sequence[str]] | None = None
        self._prove_at_seconds = time.monotonic() + PROOF_SECONDS

    @classmethod
    async def start(cls, command: Sequence[str], arguments: Sequence[str]) -> "_Zygote":
        """Start one and wait until it has proven its lock. Raises SandboxUnavailable."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns once it is started; the wait below is asynchronous
                [*command, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which drains
                env={"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "LC_ALL": "C.UTF-8", "OMP_THREAD_LIMIT": "1"},
            )
        zygote = cls(process, ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                message = json.loads(await asyncio.get_running_loop().sock_recv(ours, MESSAGE_BYTES) or "{}")
        except (TimeoutError, OSError):
            message = {}
        except BaseException:
            await zygote.close()
            raise
        if "ready" not in message:
            await zygote.close()
            raise SandboxUnavailable(message.get("failed", "The extractor did not start."))
        zygote.walls = Walls(tuple(Wall(*layer) for layer in message["ready"]), datetime.now(UTC))
        asyncio.get_running_loop().add_reader(ours, zygote._hear)
        return zygote

    @property
    def proof_is_old(self) -> bool:
        return time.monotonic() >= self._prove_at_seconds

    def doubt(self) -> None:
        """What was proven counts no more."""
        self._prove_at_seconds = 0.0

    async def prove(self) -> None:
        """Have it try its walls again. Raises SandboxUnavailable where one fell, or where it does not answer."""
        self._proof = asyncio.get_running_loop().create_future()
        self._tell(json.dumps({"attest": True}).encode())
        try:
            async with asyncio.timeout(START_SECONDS):
                allowed = await self._proof
        except TimeoutError:
            allowed = ("its proof, which it did not give",)
        if allowed:
            raise SandboxUnavailable(f"The lock does not hold any more against {'; '.join(allowed)}.")
        self.walls = Walls(self.walls.layers, datetime.now(UTC))
        self._prove_at_seconds = time.monotonic() + PROOF_SECONDS

    def fork(self, fd: int, request: str, more_cpu_seconds: int) -> tuple[int, int, asyncio.Future[End | None]]:
        """Have a child read `fd`; where its answer comes out, the caller's to close; its number, and its end to come,
        None where the zygote dies. Raises DocumentRefused (NAME_TOO_LONG), OSError.
        """
        number = self._last + 1
        order = {"id": number, "request": request, "more_cpu_seconds": more_cpu_seconds}
        message = json.dumps(order).encode()
        if len(message) > MESSAGE_BYTES:  # the zygote would read half of it
            raise DocumentRefused("NAME_TOO_LONG", "What it is called takes more bytes than may be asked for.")
        with ExitStack() as ours:
            subject = _for_reading(fd)
            ours.callback(os.close, subject)
            read_end, result = os.pipe()
            ours.callback(os.close, result)
            ended = self._children[number] = asyncio.get_running_loop().create_future()
            self._last = number
            self._tell(message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [subject, result]))])
        return read_end, number, ended

    def forget(self, number: int) -> None:
        """The child's end is of no more interest; if it lives, it dies now."""
        if not self._children.pop(number).done():
            self._tell(json.dumps({"kill": number}).encode())

    async def close(self) -> None:
        """Close the control socket, which ends the zygote and its children, and wait for it."""
        self._stop()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _tell(self, message: bytes, ancillary: "Sequence[tuple[int, int, array.array[int]]]" = ()) -> None:
        try:
            self._control.sendmsg([message], ancillary)
        except OSError:
            self._stop()

    def _hear(self) -> None:
        try:
            message = self._control.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._stop()
            return
        said = json.loads(message)
        if "attested" in said:
            if self._proof and not self._proof.done():
                self._proof.set_result(said["attested"])
            return
        ended = self._children.get(said["id"])
        if ended and not ended.done():
            ended.set_result(End(said["status"], said["cpu_seconds"], said["peak_bytes"]))

    def _stop(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        if self._proof and not self._proof.done():
            self._proof.set_result(("its own death",))
        for ended in self._children.values():
            if not ended.done():
                ended.set_result(None)


def _for_reading(fd: int) -> int:
    """A descriptor of the same file for the child. One that may write would let it change what others read."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return os.dup(fd)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


async def _hand_over(fd: int, take: Callable[[bytes], Awaitable[None]]) -> bool:
    """Give what is written to the pipe to `take` until its end, and say whether it began as a locked child's does.

    Takes over `fd`.
    """
    reader = asyncio.StreamReader(limit=READ_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        if await reader.read(len(LOCKED)) != LOCKED:
            return False
        while chunk := await reader.read(READ_BYTES):
            await take(chunk)
    finally:
        transport.close()
    return True
