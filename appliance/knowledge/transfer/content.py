"""What an archive holds: a collection as records, one after another.

    record     kind u8, length u32 of the JSON, length u32 of the text; JSON; text     big-endian, UTF-8

    1 header   JSON: collection, its name; documents, how many follow; create_time; export_time
    2 document JSON: the fields of a NewDocument but `replaces`; pages: the bytes of each page in the text
      …        text: the pages, one after another
    3 end      JSON: sha256, hexadecimal, of all records before this one

Times are microseconds since 1970, UTC; readers are sorted; a block is [kind, page, start, end, level], level 1 to 9 for
a heading and else 0; blocks are in order, hold something, lie inside their page and do not overlap. Nothing here is
trusted because it was authenticated: who exported a file knew its passphrase, and may still have made it by hand.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from appliance.errors import ArchiveRefused, DocumentRefused
from appliance.knowledge.storage.record import blocks_to_json, from_micros, to_micros
from appliance.types import Block, BlockKind, MetadataValue, NewDocument

_RECORD = struct.Struct(">BII")
_HEADER, _DOCUMENT, _END = 1, 2, 3
_MAX_BYTES = {_HEADER: (1 << 16, 0), _DOCUMENT: (64 << 20, 1 << 30), _END: (1 << 16, 0)}
"""Of a record's JSON and text. Ingest takes files whose text is far shorter."""
_MAX_BLOCKS = 1 << 18  # of a document, as ingest takes
_MAX_LEVEL = 9
_FIELDS: Mapping[str, type] = {
    "title": str,
    "media_type": str,
    "sha256": str,
    "size_bytes": int,
    "source": str,
    "parser": str,
    "pipeline": str,
    "pages": list,
    "readers": list,
    "blocks": list,
    "metadata": dict,
    "create_time": int,
}


class Sink(Protocol):
    def write(self, content: bytes) -> None: ...


class Source(Protocol):
    def read(self, size: int) -> bytes:
        """Exactly so many bytes. Raises ArchiveRefused."""


@dataclass(frozen=True, slots=True)
class Header:
    """What was exported, and when. documents: how many."""

    collection: str
    documents: int
    create_time: datetime
    export_time: datetime


class ContentWriter:
    """Writes one header, its documents, then the end."""

    def __init__(self, sink: Sink, header: Header) -> None:
        self._sink, self._digest = sink, hashlib.sha256()
        times = {"create_time": to_micros(header.create_time), "export_time": to_micros(header.export_time)}
        self._write(_HEADER, {"collection": header.collection, "documents": header.documents, **times})

    def add(self, document: NewDocument) -> None:
        """Raises DocumentRefused where it is longer than a record may be."""
        pages = [page.encode() for page in document.pages]
        self._write(_DOCUMENT, _to_json(document) | {"pages": list(map(len, pages))}, b"".join(pages))

    def finish(self) -> None:
        self._write(_END, {"sha256": self._digest.hexdigest()})

    def _write(self, kind: int, facts: Mapping[str, Any], text: bytes = b"") -> None:
        head = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if not _fits(kind, len(head), len(text)):
            of = str(facts.get("sha256", ""))
            raise DocumentRefused("TOO_LARGE", f"The document of sha256 {of} is longer than an exported file can hold.")
        for piece in (_RECORD.pack(kind, len(head), len(text)), head, text):
            self._digest.update(piece)
            self._sink.write(piece)


class ContentReader:
    """Reads what a ContentWriter wrote, and believes nothing of it unseen."""

    def __init__(self, source: Source) -> None:
        """Raises ArchiveRefused."""
        self._source, self._digest = source, hashlib.sha256()
        self.header: Header = self._parse("header", _to_header, *self._read(_HEADER))

    def documents(self) -> Iterator[NewDocument]:
        """All of them; the last is given out before the end was compared. Raises ArchiveRefused."""
        for number in range(1, self.header.documents + 1):
            yield self._parse(f"document {number}", _to_document, *self._read(_DOCUMENT))
        digest = self._digest.hexdigest()
        facts, _ = self._read(_END)
        if facts != {"sha256": digest}:
            raise ArchiveRefused("The file's content is not what its end says.")

    def _read(self, wanted: int) -> tuple[dict[str, Any], bytes]:
        kind, head_bytes, text_bytes = _RECORD.unpack(self._take(_RECORD.size))
        if kind != wanted:
            raise ArchiveRefused(f"The file holds a record of kind {kind} where one of kind {wanted} must be.")
        if not _fits(kind, head_bytes, text_bytes):
            raise ArchiveRefused(f"The file holds a record of kind {kind} that is longer than an export writes.")
        head, text = self._take(head_bytes), self._take(text_bytes)
        try:
            facts = json.loads(head, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ArchiveRefused("The file holds a record that is no JSON.") from None
        if not isinstance(facts, dict):
            raise ArchiveRefused("The file holds a record that is no JSON object.")
        return facts, text

    def _take(self, size: int) -> bytes:
        piece = self._source.read(size)
        self._digest.update(piece)
        return piece

    def _parse(self, what: str, parse: Callable[..., Any], facts: dict[str, Any], text: bytes) -> Any:
        try:
            return parse(facts, text)
        except (ValueError, TypeError, KeyError, OverflowError):  # no words of theirs: they may quote the content
            raise ArchiveRefused(f"The file's {what} is not what an export writes.") from None


def _fits(kind: int, head_bytes: int, text_bytes: int) -> bool:
    max_head_bytes, max_text_bytes = _MAX_BYTES[kind]
    return head_bytes <= max_head_bytes and text_bytes <= max_text_bytes


def _to_json(document: NewDocument) -> dict[str, Any]:
    facts = {name: getattr(document, name) for name in _FIELDS}
    blocks = blocks_to_json(document.blocks)
    own = {"readers": sorted(document.readers), "metadata": dict(document.metadata), "blocks": blocks}
    assert document.create_time, "what is exported was stored at some time"
    return facts | own | {"create_time": to_micros(document.create_time)}


def _to_header(facts: dict[str, Any], text: bytes) -> Header:
    _check(facts, {"collection": str, "documents": int, "create_time": int, "export_time": int})
    if text or facts["documents"] < 0:
        raise ValueError
    times = from_micros(facts["create_time"]), from_micros(facts["export_time"])
    return Header(facts["collection"], facts["documents"], *times)


def _to_document(facts: dict[str, Any], text: bytes) -> NewDocument:
    _check(facts, _FIELDS)
    if facts["size_bytes"] < 0 or not all(type(reader) is str for reader in facts["readers"]):
        raise ValueError
    json.dumps(facts, ensure_ascii=False).encode()  # a lone surrogate, which JSON can name, is no text
    pages = _to_pages(facts["pages"], text)
    parsed = {
        "pages": pages,
        "readers": frozenset(facts["readers"]),
        "metadata": {name: _to_value(value) for name, value in facts["metadata"].items()},
        "blocks": tuple(_to_blocks(facts["blocks"], pages)),
        "create_time": from_micros(facts["create_time"]),
    }
    return NewDocument(**facts | parsed)


def _to_pages(lengths: list[Any], text: bytes) -> tuple[str, ...]:
    pages: list[str] = []
    at = 0
    for length in lengths:
        if type(length) is not int or not 0 <= length <= len(text) - at:
            raise ValueError
        pages.append(text[at : at + length].decode())
        at += length
    if at != len(text):
        raise ValueError
    return tuple(pages)


def _to_blocks(found: list[Any], pages: tuple[str, ...]) -> Iterator[Block]:
    if len(found) > _MAX_BLOCKS:
        raise ValueError
    last = (1, 0)
    for kind, *numbers in found:
        page, start, end, level = numbers
        if not all(type(number) is int for number in numbers):
            raise ValueError
        block = Block(BlockKind(kind), page, start, end, level)
        if not (1 <= level <= _MAX_LEVEL if block.kind is BlockKind.HEADING else level == 0):
            raise ValueError
        if not (page <= len(pages) and last <= (page, start) and start < end <= len(pages[page - 1])):
            raise ValueError
        yield block
        last = (page, end)


def _to_value(value: Any) -> MetadataValue:
    if type(value) in (str, bool):
        return value  # type: ignore[no-any-return]
    if type(value) not in (int, float) or not math.isfinite(value):  # JSON's 1e999 is infinite
        raise ValueError
    return float(value)


def _check(facts: dict[str, Any], kinds: Mapping[str, type]) -> None:
    """Exactly these fields, of exactly these types; True is no int here."""
    if facts.keys() != kinds.keys() or any(type(facts[name]) is not kind for name, kind in kinds.items()):
        raise ValueError


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
