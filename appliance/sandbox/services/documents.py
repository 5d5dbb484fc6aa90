"""The service that reads documents: one descriptor, its name's suffix, and an answer as `result.py` has it."""

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from appliance.errors import DocumentRefused
from appliance.sandbox.result import Parsed, encode, encode_refusal


class Parser(Protocol):
    """Reads documents. A parser's module has `reader(settings: Mapping[str, int | str]) -> Parser`."""

    @property
    def warm_documents(self) -> Sequence[tuple[str, bytes]]:
        """Suffix and content, one of each format and of each road that imports anything of its own."""

    def parse(self, data: bytes, suffix: str) -> Parsed:
        """Raises DocumentRefused."""


class Documents:
    """zygote.Service over a parser; a request is the suffix of a document's name."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def warm(self) -> None:
        for suffix, data in self._parser.warm_documents:
            with contextlib.suppress(DocumentRefused):
                b"".join(encode(self._parser.parse(data, suffix)))

    def answer(self, fd: int, request: str) -> Iterator[bytes]:
        try:
            yield from encode(self._parser.parse(_read(fd), request))
        except DocumentRefused as refusal:
            yield encode_refusal(refusal.file_reason, str(refusal))
        except MemoryError:
            yield encode_refusal("TOO_MUCH_MEMORY", "Reading it takes more memory than a document may use.")
        except Exception as error:  # noqa: BLE001 - a parser may raise anything; its text may hold content
            yield encode_refusal("PARSER_FAILED", f"The parser gave up ({type(error).__name__}).")


def service(settings: Mapping[str, int | str]) -> Documents:
    """settings: "parser", the dotted name of its module; the others are for its `reader`."""
    rest = dict(settings)
    return Documents(importlib.import_module(str(rest.pop("parser"))).reader(rest))


def _read(fd: int) -> bytes:
    """The whole file from its beginning; a shared offset is left where it was."""
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    size = os.lseek(fd, 0, os.SEEK_END)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.pread(fd, size, 0)
    if len(data) < size:  # one read gives at most 2 GiB; a sealed file cannot have shrunk
        raise OSError("short read")
    return data
