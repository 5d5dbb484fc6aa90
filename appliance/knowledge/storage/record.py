"""What one WAL record says: a whole document was added, one was deleted, its readers changed, or several of these.
Half a document cannot be said, nor half of what happened at once.

    added     kind 4 (u8)  length of JSON (u32)  JSON  text  pieces  vectors
    deleted   kind 2 (u8)  document id (ASCII)
    readers   kind 3 (u8)  JSON: `document`, `readers`
    several   kind 5 (u8)  length (u32) and bytes of each of the above, which happened in this order and at once
    added     kind 1 (u8)  length of JSON (u32)  JSON  text  spans  vectors        of older logs; read, not written

JSON holds the document's fields; `pages`, the UTF-8 length of each page in `text`; `replaces`, the document that is
gone in the same instant; `strings`, the distinct headings and repeated texts; `blocks`, what its parser saw, each as
[kind, page, start, end, level]. `pieces` is int32 [n, 7]: page, start,
end, start and end of the section, and which of `strings` are its heading and what is repeated; `spans` is int32 [n, 3],
its first three. `vectors` is float16 [n, dimension]. Integers outside arrays are big-endian, arrays little-endian.
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from appliance.errors import StoreDamaged
from appliance.knowledge.chunk import Piece
from appliance.types import Block, BlockKind, Document, Floats, Span

_HEAD = struct.Struct(">BI")
_LENGTH = struct.Struct(">I")
_ADDED_BEFORE, _DELETED, _READERS, _ADDED, _SEVERAL = 1, 2, 3, 4, 5
_COLUMNS = {_ADDED_BEFORE: 3, _ADDED: 7}


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One whole document as it is stored. vectors: float32 [len(pieces), dimension], each value exact in float16.

    replaces: the document that is gone from the instant that this one is there. blocks: what its parser saw.
    """

    document: Document
    pages: tuple[str, ...]
    pieces: tuple[Piece, ...]
    vectors: Floats
    replaces: str = ""
    blocks: tuple[Block, ...] = ()

    def passages(self) -> list[str]:
        """The text of each piece."""
        return [self.pages[piece.span.page - 1][piece.span.start : piece.span.end] for piece in self.pieces]

    def searched(self) -> list[str]:
        """What is embedded for each piece: with its heading, and what is repeated."""
        return [piece.read(self.pages[piece.span.page - 1]) for piece in self.pieces]


@dataclass(frozen=True, slots=True)
class Deletion:
    document: str


@dataclass(frozen=True, slots=True)
class ReadersChange:
    """Who may read a document from now on, instead of those before."""

    document: str
    readers: frozenset[str]


Record = Entry | Deletion | ReadersChange


def to_stored_precision(vectors: Floats) -> Floats:
    """The vectors as a segment will give them back, so that sealing changes no score."""
    return vectors.astype(np.float16).astype(np.float32)


def encode(record: Record) -> bytes:
    """The payload that says it."""
    if isinstance(record, Deletion):
        return bytes([_DELETED]) + record.document.encode()
    if isinstance(record, ReadersChange):
        return bytes([_READERS]) + _json({"document": record.document, "readers": sorted(record.readers)})
    texts = [page.encode() for page in record.pages]
    strings = distinct(record.pieces)
    facts = {"pages": [len(text) for text in texts], "replaces": record.replaces, "strings": list(strings)}
    head = _json(document_to_json(record.document) | facts | {"blocks": blocks_to_json(record.blocks)})
    pieces = [
        (one.span.page, one.span.start, one.span.end, *one.section, strings[one.heading], strings[one.repeated])
        for one in record.pieces
    ]
    arrays = np.array(pieces, "<i4").tobytes(), record.vectors.astype("<f2").tobytes()
    return b"".join([_HEAD.pack(_ADDED, len(head)), head, *texts, *arrays])


def together(payloads: Sequence[bytes]) -> bytes:
    """The payload that says what these of `encode` say; one at least."""
    if len(payloads) == 1:
        return payloads[0]
    return b"".join([bytes([_SEVERAL]), *(part for one in payloads for part in (_LENGTH.pack(len(one)), one))])


def decode(payload: bytes) -> tuple[Record, ...]:
    """What those bytes say, which were authenticated before. Raises StoreDamaged on an unknown kind."""
    if payload[:1] != bytes([_SEVERAL]):
        return (_decode(payload),)
    found: list[Record] = []
    at = 1
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        found.append(_decode(payload[at : at + length]))
        at += length
    return tuple(found)


def _decode(payload: bytes) -> Record:
    kind = payload[0] if payload else 0
    if kind == _DELETED:
        return Deletion(payload[1:].decode())
    if kind == _READERS:
        facts = json.loads(payload[1:])
        return ReadersChange(facts["document"], frozenset(facts["readers"]))
    if kind not in _COLUMNS:
        raise StoreDamaged(f"A record is of kind {kind}, which this release does not know.")
    return _decode_added(payload, _COLUMNS[kind])


def _decode_added(payload: bytes, columns: int) -> Entry:
    _, head_bytes = _HEAD.unpack_from(payload)
    at = _HEAD.size + head_bytes
    facts = json.loads(payload[_HEAD.size : at])
    pages: list[str] = []
    for length in facts.pop("pages"):
        pages.append(payload[at : at + length].decode())
        at += length
    replaces, strings = facts.pop("replaces", ""), facts.pop("strings", [])
    blocks = tuple(Block(BlockKind(kind), *place) for kind, *place in facts.pop("blocks", []))
    document = document_from_json(facts)
    count = document.passage_count
    numbers = np.frombuffer(payload, "<i4", count * columns, at).reshape(count, columns).tolist()
    vectors = np.frombuffer(payload, "<f2", -1, at + count * columns * 4).reshape(count, -1).astype(np.float32)
    pieces = tuple(_to_piece(row, strings, pages) for row in numbers)
    return Entry(document, tuple(pages), pieces, vectors, replaces, blocks)


def _to_piece(numbers: Sequence[int], strings: Sequence[str], pages: Sequence[str]) -> Piece:
    span = Span(*numbers[:3])
    if len(numbers) == 3:
        return Piece(span, (0, len(pages[span.page - 1])), "", "")
    start, end, heading, repeated = numbers[3:]
    return Piece(span, (start, end), strings[heading], strings[repeated])


def blocks_to_json(blocks: Iterable[Block]) -> list[list[Any]]:
    """Each as [kind, page, start, end, level]."""
    return [[block.kind.value, block.page, block.start, block.end, block.level] for block in blocks]


def distinct(pieces: Iterable[Piece]) -> dict[str, int]:
    """The headings and repeated texts of pieces, each once, by their numbers from 0."""
    found: dict[str, int] = {}
    for piece in pieces:
        for text in (piece.heading, piece.repeated):
            found.setdefault(text, len(found))
    return found


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()


def document_to_json(document: Document) -> dict[str, Any]:
    """A document's fields as JSON knows them; times in microseconds since 1970, UTC."""
    fields = {name: getattr(document, name) for name in Document.__dataclass_fields__}
    own = {"readers": sorted(document.readers), "create_time": to_micros(document.create_time)}
    return fields | own | {"metadata": dict(document.metadata)}


def document_from_json(facts: dict[str, Any]) -> Document:
    """The inverse of `document_to_json`."""
    return Document(
        **facts | {"readers": frozenset(facts["readers"]), "create_time": from_micros(facts["create_time"])}
    )


def to_micros(time: datetime) -> int:
    whole = (time - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND
    return int(whole)


def from_micros(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + micros * _MICROSECOND


_MICROSECOND = datetime.resolution
