"""What the extractor gives for a file, read in this process, in the shapes that tests compare."""

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import Reader


def pages(data: bytes, suffix: str, caps: Caps | None = None) -> tuple[str, ...]:
    return Reader(caps or Caps()).parse(data, suffix)[2]


def blocks(data: bytes, suffix: str) -> list[tuple[str, int, str]]:
    """Kind, level and text of each block; in order, inside its page, without overlap."""
    _, _, found, rows, _ = Reader(Caps()).parse(data, suffix)
    last = (1, 0)
    for _, _, page, start, end in rows:
        assert last <= (page, start)
        assert start < end <= len(found[page - 1])
        last = (page, end)
    return [(kind, level, found[page - 1][start:end]) for kind, level, page, start, end in rows]


def members(data: bytes, suffix: str, caps: Caps | None = None) -> list[tuple[str, bytes, str]]:
    found = Reader(caps or Caps()).parse(data, suffix)[4]
    return [(path, bytes(content), why) for path, content, why in found]


def reason(data: bytes, suffix: str, caps: Caps | None = None) -> str:
    with pytest.raises(DocumentRefused) as refused:
        Reader(caps or Caps()).parse(data, suffix)
    return refused.value.file_reason


def ending(data: bytes, suffix: str) -> str:
    """'' for what is read, the reason for what is refused; nothing else may happen."""
    try:
        Reader(Caps()).parse(data, suffix)
    except DocumentRefused as refusal:
        return refusal.file_reason
    return ""
