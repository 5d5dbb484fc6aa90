"""The daemon's side of the sandbox: starts the zygote, hands it documents, kills what takes too long, believes nothing.

A child's end is read as: refused (it said why), SPUN, TOO_MUCH_MEMORY, FORBIDDEN_CALL (it tried what the lock forbids),
CRASHED, TOO_MUCH_TEXT or PARSER_FAILED. Where the lock cannot be proven, SandboxUnavailable, and nothing is parsed.
"""

import array
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import structlog

from appliance.config import Config
from appliance.errors import DocumentRefused, SandboxUnavailable
from appliance.sandbox.result import BLOCK, MAX_BLOCKS, Malformed, decode
from appliance.sandbox.zygote import LOCKED, MESSAGE_BYTES
from appliance.types import Block, BlockKind, Extracted, Member

MIB = 1 << 20
START_SECONDS = 60.0
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 1.0, 60.0
READ_BYTES = 1 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Walls:
    """What the lock was found to be made of."""

    landlock_abi: int
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _End:
    """How a child ended: exit status, negative where a signal killed it; peak memory beyond what it was forked with."""

    status: int
    cpu_seconds: float
    peak_bytes: int


class LockedExtractor:
    """Reads untrusted documents in locked children (ports.Extractor), `parallel` of them at once.

    parser: the dotted name of a module as `zygote.Parser` has it; settings: for its `reader`.
    zygote: the command that starts one.
    """

    def __init__(
        self,
        config: Config,
        parser: str,
        settings: Mapping[str, int | str],
        parallel: int = 2,
        zygote: Sequence[str] = (sys.executable, "-s", "-m", "appliance.sandbox.zygote"),
    ) -> None:
        self._wall_seconds = config.parse_wall_seconds
        self._cpu_seconds = config.parse_cpu_seconds
        self._memory_bytes = config.parse_memory_mib * MIB
        self._max_pages = config.document_max_pages
        # UTF-16 grows by half as UTF-8, the other plain formats not at all: what is larger was compressed to hide it.
        self._max_result_bytes = 2 * config.document_max_mib * MIB + MAX_BLOCKS * BLOCK.size
        arguments = (parser, str(self._memory_bytes), str(self._cpu_seconds), json.dumps(settings))
        self._command = (tuple(zygote), arguments)
        self._slots = asyncio.Semaphore(parallel)
        self._starting = asyncio.Lock()
        self._zygote: _Zygote | None = None
        self._fault = ""
        self._retry_at_seconds = 0.0
        self._backoff_seconds = FIRST_BACKOFF_SECONDS

    @property
    def fault(self) -> str:
        """Why nothing can be parsed; empty while all is well."""
        return self._fault

    @property
    def walls(self) -> Walls | None:
        """What the running zygote's lock is made of."""
        return self._zygote.walls if self._zygote else None

    async def start(self) -> None:
        """Have a proven zygote. Raises SandboxUnavailable, at once where the last start failed a moment ago."""
        await self._ready()

    async def close(self) -> None:
        """Kill the zygote and its children."""
        if self._zygote:
            await self._zygote.close()
            self._zygote = None

    async def extract(self, fd: int, name: str) -> Extracted:
        """As ports.Extractor. A document that takes the zygote down twice is refused."""
        suffix = PurePath(name).suffix.lower()
        async with self._slots:
            for _ in range(2):
                zygote = await self._ready()
                output, end = await self._run(zygote, fd, suffix)
                if end is None:
                    log.warning("sandbox.zygote_died")
                    continue
                if end.status >= 0 and not output.startswith(LOCKED):
                    raise SandboxUnavailable("A parser child could not lock itself.")
                self._judge(end)
                return await asyncio.to_thread(self._read_result, output)
        raise DocumentRefused("CRASHED", "Reading it took the whole extractor down.")

    async def _ready(self) -> "_Zygote":
        async with self._starting:
            if self._zygote and self._zygote.alive:
                return self._zygote
            await self.close()
            if time.monotonic() < self._retry_at_seconds:
                raise SandboxUnavailable(self._fault)
            try:
                self._zygote = await _Zygote.start(*self._command)
            except SandboxUnavailable as error:
                self._fault = str(error)
                self._retry_at_seconds = time.monotonic() + self._backoff_seconds
                self._backoff_seconds = min(2 * self._backoff_seconds, LAST_BACKOFF_SECONDS)
                log.error("sandbox.unavailable", why=self._fault)
                raise
            self._fault, self._backoff_seconds = "", FIRST_BACKOFF_SECONDS
            walls = self._zygote.walls
            log.info("sandbox.ready", landlock_abi=walls.landlock_abi, namespaces=walls.namespaces)
            return self._zygote

    async def _run(self, zygote: "_Zygote", fd: int, suffix: str) -> tuple[bytearray, _End | None]:
        """One child from fork to end, None where the zygote died. It lives no longer than this call."""
        read_end, write_end = os.pipe()
        number, ended = zygote.fork(fd, write_end, suffix)
        os.close(write_end)
        try:
            async with asyncio.timeout(self._wall_seconds):
                output = await _read_all(read_end, self._max_result_bytes)
                return output, await ended
        except TimeoutError:
            raise DocumentRefused("SPUN", f"Reading it took more than {self._wall_seconds} seconds.") from None
        finally:
            zygote.forget(number)

    def _judge(self, end: _End) -> None:
        """Raises DocumentRefused unless it ended well."""
        if end.status == 0:
            return
        if end.status > 0:
            raise DocumentRefused("PARSER_FAILED", "The parser stopped without a result.")
        if end.status == -signal.SIGSYS:
            raise DocumentRefused("FORBIDDEN_CALL", "Its parser tried what the sandbox forbids; it may be an attack.")
        if end.status == -signal.SIGXCPU or end.cpu_seconds >= self._cpu_seconds:
            raise DocumentRefused("SPUN", f"Reading it took more than {self._cpu_seconds} processor seconds.")
        if end.peak_bytes > self._memory_bytes / 2:  # native parsers crash where malloc fails
            raise DocumentRefused("TOO_MUCH_MEMORY", "Reading it takes more memory than a document may use.")
        raise DocumentRefused("CRASHED", f"Its parser crashed ({signal.Signals(-end.status).name}).")

    def _read_result(self, output: bytearray) -> Extracted:
        try:
            media_type, parser, pages, rows, members = decode(memoryview(output)[len(LOCKED) :], self._max_pages)
        except Malformed as error:
            raise DocumentRefused("PARSER_FAILED", f"The parser's result was {error}.") from None
        blocks = tuple(Block(BlockKind(kind), page, start, end, level) for kind, level, page, start, end in rows)
        return Extracted(media_type, parser, tuple(pages), blocks, tuple(Member(*member) for member in members))


class _Zygote:
    """A running zygote and what it says. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.walls = Walls(0, ())
        self._process = process
        self._control = control
        self._children: dict[int, asyncio.Future[_End | None]] = {}
        self._last = 0
        self.alive = True

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
                env={"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "LC_ALL": "C.UTF-8"},
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
        zygote.walls = Walls(message["ready"]["landlock_abi"], tuple(message["ready"]["namespaces"]))
        asyncio.get_running_loop().add_reader(ours, zygote._hear)
        return zygote

    def fork(self, document: int, result: int, suffix: str) -> tuple[int, asyncio.Future[_End | None]]:
        """Have a child read `document` into `result`; its number, and its end to come, None where the zygote dies."""
        self._last += 1
        number = self._last
        fds = array.array("i", [document, result])
        message = json.dumps({"id": number, "suffix": suffix[:16]}).encode()
        ended = self._children[number] = asyncio.get_running_loop().create_future()
        self._tell(message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        return number, ended

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
        ended = self._children.get(said["id"])
        if ended and not ended.done():
            ended.set_result(_End(said["status"], said["cpu_seconds"], said["peak_bytes"]))

    def _stop(self) -> None:
        if not self.alive:
            return
        self.alive = False
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        for ended in self._children.values():
            if not ended.done():
                ended.set_result(None)


async def _read_all(fd: int, limit_bytes: int) -> bytearray:
    """What is written to the pipe until its end; takes over `fd`. Raises DocumentRefused past the limit."""
    reader = asyncio.StreamReader(limit=READ_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    output = bytearray()
    try:
        while chunk := await reader.read(READ_BYTES):
            output += chunk
            if len(output) > limit_bytes:
                raise DocumentRefused("TOO_MUCH_TEXT", f"It unpacks to more than {limit_bytes // MIB} MiB of text.")
    finally:
        transport.close()
    return output
