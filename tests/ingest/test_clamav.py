"""The scanner fails closed: only clamd's clear word lets a file in."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.errors import DocumentRefused, ScannerUnavailable
from appliance.ingest.clamav import ClamAv

BAD = b"X5O-this-stands-for-a-virus"


class Clamd:
    """clamd's side of INSTREAM, with its limit; finds BAD."""

    def __init__(
        self, limit_bytes: int = 1 << 26, answer: bytes | None = None, silent: bool = False, dying: bool = False
    ) -> None:
        self.limit_bytes, self.answer, self.silent = limit_bytes, answer, silent
        self.received, self.dying = b"", dying
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            writer.write(await self._answer(reader))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        command = await reader.readuntil(b"\0")
        if command == b"zPING\0":
            return b"" if self.dying else b"PONG\0"
        assert command == b"zINSTREAM\0"
        content = b""
        while length := struct.unpack(">I", await reader.readexactly(4))[0]:
            if len(content) + length > self.limit_bytes:
                return b"" if self.dying else b"INSTREAM size limit exceeded. ERROR\0"
            content += await reader.readexactly(length)
        self.received = content
        if self.silent:
            await reader.read()
        if self.answer is not None:
            return self.answer
        return b"stream: Test.Virus-1 FOUND\0" if BAD in content else b"stream: OK\0"


@asynccontextmanager
async def serving(path: Path, clamd: Clamd) -> AsyncIterator[ClamAv]:
    server = await asyncio.start_unix_server(clamd.serve, path / "clamd.sock")
    async with server:
        yield ClamAv(str(path / "clamd.sock"), patience_seconds=5)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield file
    os.close(file)


async def test_a_clean_file_is_scanned_whole_whatever_the_offset(tmp_path: Path, fd: int) -> None:
    content = os.urandom(3_000_000)
    os.write(fd, content)
    clamd = Clamd()
    async with serving(tmp_path, clamd) as scanner:
        assert await scanner.scan(fd) == ""
    assert clamd.received == content
    assert os.lseek(fd, 0, os.SEEK_CUR) == len(content)


async def test_what_is_found_is_named(tmp_path: Path, fd: int) -> None:
    os.write(fd, bytes(1_000_000) + BAD)
    async with serving(tmp_path, Clamd()) as scanner:
        assert await scanner.scan(fd) == "Test.Virus-1"


async def test_an_empty_file_is_clean(tmp_path: Path, fd: int) -> None:
    async with serving(tmp_path, Clamd()) as scanner:
        assert await scanner.scan(fd) == ""


async def test_a_file_beyond_clamds_limit_is_refused_and_the_scanner_is_not_to_blame(tmp_path: Path, fd: int) -> None:
    os.write(fd, bytes(8_000_000))
    async with serving(tmp_path, Clamd(limit_bytes=500_000)) as scanner:
        with pytest.raises(DocumentRefused, match="StreamMaxLength") as refused:
            await scanner.scan(fd)
    assert refused.value.file_reason == "NOT_SCANNED"


async def test_a_scanner_that_hangs_up_and_is_not_well_is_unavailable(tmp_path: Path, fd: int) -> None:
    os.write(fd, bytes(8_000_000))
    async with serving(tmp_path, Clamd(limit_bytes=500_000, answer=b"", dying=True)) as scanner:
        with pytest.raises(ScannerUnavailable, match="The virus scanner at") as failed:
            await scanner.scan(fd)
    assert failed.value.retryable


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0",
        b"stream: OK",
        b"stream: OK FOUND ERROR\0",
        b"stream: \xff FOUND ERROR\0",
        b"UNKNOWN COMMAND\0",
        b"x" * 9000,
    ],
)
async def test_what_is_no_verdict_is_none(tmp_path: Path, fd: int, answer: bytes) -> None:
    async with serving(tmp_path, Clamd(answer=answer)) as scanner:
        with pytest.raises(ScannerUnavailable, match="gave no verdict"):
            await scanner.scan(fd)


async def test_a_scanner_that_hangs_is_given_up(tmp_path: Path, fd: int) -> None:
    async with serving(tmp_path, Clamd(silent=True)):
        with pytest.raises(ScannerUnavailable, match="no verdict"):
            await ClamAv(str(tmp_path / "clamd.sock"), patience_seconds=0.05).scan(fd)


async def test_no_scanner_is_said_so(tmp_path: Path, fd: int) -> None:
    with pytest.raises(ScannerUnavailable, match="does not answer: No such file or directory"):
        await ClamAv(str(tmp_path / "none.sock")).scan(fd)


async def test_scans_run_side_by_side(tmp_path: Path, fd: int) -> None:
    os.write(fd, BAD)
    clamd = Clamd()
    async with serving(tmp_path, clamd) as scanner:
        assert await asyncio.gather(*(scanner.scan(fd) for _ in range(8))) == ["Test.Virus-1"] * 8
    assert clamd.connections == 8
