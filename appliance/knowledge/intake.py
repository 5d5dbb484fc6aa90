"""What a document must be to be taken, and how it becomes what is stored."""

import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np

from appliance.errors import Broken, Cancelled, DocumentRefused, InvalidArgument
from appliance.knowledge import chunk
from appliance.knowledge.storage.record import Entry, to_stored_precision
from appliance.ports import Embedder
from appliance.types import Document, Floats, MetadataValue, NewDocument

EMBEDDED_TEXTS = 64
"""At once, of like length: batches of an embedder's, and so few that who embed take turns, and stop soon."""

MAX_READERS = 10_000
MAX_READER_CHARACTERS = 200
MAX_METADATA = 64
MAX_METADATA_CHARACTERS = 1000

METADATA_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SURROGATE = re.compile("[\ud800-\udfff]")


Stop = Callable[[], bool]
"""Whether nobody waits for it any more."""


def never() -> bool:
    """Of what goes on to its end."""
    return False


def check_wanted(stop: Stop) -> None:
    """Raises Cancelled."""
    if stop():
        raise Cancelled("It was cancelled while it was read.")


def to_entries(
    collection: str, new: Iterable[NewDocument], embedder: Embedder, overlap_tokens: int = 0, stop: Stop = never
) -> list[Entry | DocumentRefused]:
    """Chunk, and embed all together; in place of what is no document stands its refusal.

    Raises InvalidArgument, Cancelled, Broken where a vector is not of numbers.
    """
    found = []
    for one in new:
        check_wanted(stop)
        found.append(_to_entry(collection, one, embedder, overlap_tokens))
    entries = [one for one in found if isinstance(one, Entry)]
    vectors = embedded([text for entry in entries for text in entry.searched()], embedder, stop)
    borders = np.cumsum([0, *(len(entry.pieces) for entry in entries)])
    parts = (vectors[start:end] for start, end in pairwise(borders))
    return [replace(one, vectors=next(parts)) if isinstance(one, Entry) else one for one in found]


def _to_entry(collection: str, new: NewDocument, embedder: Embedder, overlap_tokens: int) -> Entry | DocumentRefused:
    """Without vectors."""
    readers, metadata = checked_readers(new.readers), checked_metadata(new.metadata)
    if any(_SURROGATE.search(text) for text in (new.title, new.source, *new.pages)):
        return DocumentRefused("NOT_UNICODE", f"{new.title!a} holds characters that are not Unicode text.")
    pieces = tuple(chunk.pieces(new.pages, new.blocks, embedder, overlap_tokens))
    if not pieces:
        return DocumentRefused("NO_TEXT", f"{new.title} holds no text.")
    document = Document(
        id=secrets.token_hex(16),
        collection=collection,
        title=new.title,
        media_type=new.media_type,
        sha256=new.sha256,
        size_bytes=new.size_bytes,
        source=new.source,
        parser=new.parser,
        pipeline=new.pipeline,
        page_count=len(new.pages),
        passage_count=len(pieces),
        readers=readers,
        create_time=new.create_time or datetime.now(UTC),
        metadata=metadata,
    )
    none = np.zeros((len(pieces), embedder.dimension), np.float32)
    return Entry(document, new.pages, pieces, none, new.replaces, new.blocks)


def embedded(texts: Sequence[str], embedder: Embedder, stop: Stop = never) -> Floats:
    """Vectors as they are stored, float32 [len(texts), dimension]. Raises Cancelled; Broken where one is not of
    numbers.
    """
    found = np.zeros((len(texts), embedder.dimension), np.float32)
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(texts), EMBEDDED_TEXTS):
        check_wanted(stop)
        places = by_length[start : start + EMBEDDED_TEXTS]
        some = [texts[place] for place in places]
        vectors = to_stored_precision(embedder.embed(some))
        if vectors.shape != (len(some), embedder.dimension) or not np.isfinite(vectors).all():
            raise Broken("The embedder gave a vector with a value that is no number, or of another dimension.")
        found[places] = vectors
    return found


def checked_readers(readers: frozenset[str]) -> frozenset[str]:
    """Raises InvalidArgument."""
    if len(readers) > MAX_READERS:
        problem = f"{len(readers):,} are more than the {MAX_READERS:,} that a document may have; use a group."
        raise InvalidArgument.of("readers", problem)
    if not readers:
        raise InvalidArgument.of("readers", "name one at least: a user, a role or a group.")
    for reader in readers:
        if not 0 < len(reader) <= MAX_READER_CHARACTERS or not reader.isprintable():
            problem = f"each must have 1 to {MAX_READER_CHARACTERS} printable characters."
            raise InvalidArgument.of("readers", problem)
    return frozenset(readers)


def checked_metadata(metadata: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    """With whole numbers as floats. Raises InvalidArgument."""
    if len(metadata) > MAX_METADATA:
        raise InvalidArgument.of("metadata", f"may have {MAX_METADATA} entries at most.")
    for name in metadata:
        if not METADATA_NAME.fullmatch(name):
            raise InvalidArgument.of("metadata", "a name must be 1 to 64 of a-z, 0-9 and _, a letter first.")
    return {name: _checked(name, value) for name, value in metadata.items()}


def _checked(name: str, value: MetadataValue) -> MetadataValue:
    if isinstance(value, str):
        if len(value) > MAX_METADATA_CHARACTERS or _SURROGATE.search(value):
            problem = f"{name} must be Unicode text of {MAX_METADATA_CHARACTERS} characters at most."
            raise InvalidArgument.of("metadata", problem)
        return value
    if isinstance(value, bool):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArgument.of("metadata", f"{name} must be text, true, false, or a finite number.")
    return number
