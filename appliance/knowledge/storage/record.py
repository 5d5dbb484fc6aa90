"""What one WAL record says: a whole document was added, or one was deleted. Half a document cannot be said.

    added     kind 1 (u8)  length of JSON (u32)  JSON  text  spans  vectors
    deleted   kind 2 (u8)  document id (ASCII)

JSON holds the document's fields and `pages`, the UTF-8 length of each page in `text`. `spans` is int32 [n, 3]: page,
start, end; `vectors` is float16 [n, dimension]. Integers outside arrays are big-endian, arrays little-endian.
"""

import json
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from appliance.errors import StoreDamaged
from appliance.types import Document, Floats, Span

_ADDED = struct.Struct(">BI")
_DELETED = b"\x02"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One whole document as it is stored. vectors: float32 [len(spans), dimension], each value exact in float16."""

    document: Document
    pages: tuple[str, ...]
    spans: tuple[Span, ...]
    vectors: Floats

    def passages(self) -> list[str]:
        """The text of each span."""
        return [self.pages[span.page - 1][span.start : span.end] for span in self.spans]


@dataclass(frozen=True, slots=True)
class Deletion:
    document: str


def to_stored_precision(vectors: Floats) -> Floats:
    """The vectors as a segment will give them back, so that sealing changes no score."""
    return vectors.astype(np.float16).astype(np.float32)


def encode(record: Entry | Deletion) -> bytes:
    """The bytes of one record."""
    if isinstance(record, Deletion):
        return _DELETED + record.document.encode()
    texts = [page.encode() for page in record.pages]
    facts = document_to_json(record.document) | {"pages": [len(text) for text in texts]}
    head = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
    spans = np.array([(span.page, span.start, span.end) for span in record.spans], "<i4")
    return b"".join([_ADDED.pack(1, len(head)), head, *texts, spans.tobytes(), record.vectors.astype("<f2").tobytes()])


def decode(payload: bytes) -> Entry | Deletion:
    """The record of those bytes, which were authenticated before. Raises StoreDamaged on an unknown kind."""
    if payload[:1] == _DELETED:
        return Deletion(payload[1:].decode())
    kind, head_bytes = _ADDED.unpack_from(payload)
    if kind != 1:
        raise StoreDamaged(f"A record is of kind {kind}, which this release does not know.")
    at = _ADDED.size + head_bytes
    facts = json.loads(payload[_ADDED.size : at])
    pages: list[str] = []
    for length in facts.pop("pages"):
        pages.append(payload[at : at + length].decode())
        at += length
    document = document_from_json(facts)
    count = document.passage_count
    spans = np.frombuffer(payload, "<i4", count * 3, at).reshape(count, 3).tolist()
    vectors = np.frombuffer(payload, "<f2", -1, at + count * 12).reshape(count, -1).astype(np.float32)
    return Entry(document, tuple(pages), tuple(Span(*span) for span in spans), vectors)


def document_to_json(document: Document) -> dict[str, Any]:
    """A document's fields as JSON knows them; times in microseconds since 1970, UTC."""
    fields = {name: getattr(document, name) for name in Document.__dataclass_fields__}
    return fields | {"readers": sorted(document.readers), "create_time": to_micros(document.create_time)}


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
