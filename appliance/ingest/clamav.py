"""ClamAV's daemon over its unix socket: a file goes in as a stream, a verdict comes out.

Source: clamd(8), INSTREAM: after "zINSTREAM\\0" chunks, each a big-endian u32 length and that many bytes, then a length
of 0; the answer is "stream: OK\\0", "stream: NAME FOUND\\0" or "… ERROR\\0". More than clamd's StreamMaxLength in all,
and it says "INSTREAM size limit exceeded. ERROR" and hangs up, maybe in the midst of what is sent.
"""

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from appliance.errors import DocumentRefused, ScannerUnavailable

_CHUNK_BYTES = 1 << 18
_ANSWER_BYTES = 4096
_LENGTH = struct.Struct(">I")
PATIENCE_SECONDS = 120.0  # without a byte taken or given


class ClamAv:
    """A scanner (ports.Scanner). A connection a file; nothing of a file stays with it."""

    def __init__(self, socket: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._socket, self._patience_seconds = socket, patience_seconds

    async def scan(self, fd: int) -> str:
        """As ports.Scanner: whatever is not a clear verdict is a refusal or ScannerUnavailable."""
        async with self._connected() as (reader, writer):
            try:
                await self._send(fd, writer)
            except (OSError, TimeoutError) as error:
                broken = error
            else:
                return self._verdict(await self._answer(reader))
        if isinstance(broken, ConnectionError) and await self._is_well():  # so it hung up on this very file
            raise _too_long()
        raise self._unavailable(f"took only a part of a file: {_why(broken)}")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Raises ScannerUnavailable."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=_ANSWER_BYTES)
        except (OSError, TimeoutError) as error:
            raise self._unavailable(f"does not answer: {_why(error)}") from None
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _is_well(self) -> bool:
        """Whether it answers at all. Raises ScannerUnavailable."""
        async with self._connected() as (reader, writer):
            writer.write(b"zPING\0")
            return await self._answer(reader) == "PONG"

    async def _send(self, fd: int, writer: asyncio.StreamWriter) -> None:
        """Raises OSError, TimeoutError."""
        writer.write(b"zINSTREAM\0")
        offset = 0
        while chunk := await asyncio.to_thread(os.pread, fd, _CHUNK_BYTES, offset):
            writer.write(_LENGTH.pack(len(chunk)) + chunk)
            offset += len(chunk)
            await self._drain(writer)
        writer.write(_LENGTH.pack(0))
        await self._drain(writer)

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._patience_seconds):
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader) -> str:
        """Up to the NUL, '' where there is none."""
        try:
            async with asyncio.timeout(self._patience_seconds):
                answer = await reader.readuntil(b"\0")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, TimeoutError):
            return ""
        return answer[:-1].decode("ascii", "backslashreplace")

    def _verdict(self, answer: str) -> str:
        if answer == "stream: OK":
            return ""
        if answer.startswith("INSTREAM size limit exceeded"):
            raise _too_long()
        found = answer.removeprefix("stream: ").removesuffix(" FOUND")
        if answer == f"stream: {found} FOUND" and found and found.isprintable():
            return found[:200]
        raise self._unavailable(f"gave no verdict: {answer[:200] or 'it hung up'}")

    def _unavailable(self, problem: str) -> ScannerUnavailable:
        return ScannerUnavailable(f"The virus scanner at {self._socket} {problem}.")


def _too_long() -> DocumentRefused:
    return DocumentRefused(
        "NOT_SCANNED",
        "It is longer than the virus scanner takes: raise StreamMaxLength in clamd.conf above `document_max_mib`.",
    )


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.errno:
        return "it takes too long"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it hung up"
