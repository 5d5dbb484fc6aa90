"""Documents, passages, and answers from them."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from appliance.types.access import EVERYONE
from appliance.types.inference import Finish, Text


@dataclass(frozen=True, slots=True)
class Span:
    """A passage's place in its document: page from 1, [start, end) in code points of the page's extracted text."""

    page: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What ingest hands to a collection: the extracted text by page, and where it came from (lineage)."""

    title: str
    media_type: str
    sha256: str
    size_bytes: int
    source: str
    parser: str
    pipeline: str
    pages: tuple[str, ...]
    readers: frozenset[str] = frozenset({EVERYONE})


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document. `id` is unique in its collection."""

    id: str
    collection: str
    title: str
    media_type: str
    sha256: str
    size_bytes: int
    source: str
    parser: str
    pipeline: str
    page_count: int
    passage_count: int
    readers: frozenset[str]
    create_time: datetime

    @property
    def name(self) -> str:
        return f"collections/{self.collection}/documents/{self.id}"


@dataclass(frozen=True, slots=True)
class Collection:
    id: str
    document_count: int
    passage_count: int
    size_bytes: int
    create_time: datetime

    @property
    def name(self) -> str:
        return f"collections/{self.id}"


@dataclass(frozen=True, slots=True)
class Passage:
    """A found stretch of a document. `document` is a resource name."""

    document: str
    title: str
    span: Span
    text: str
    score: float


class AnswerMode(Enum):
    QUOTE = "quote"
    GENERATE = "generate"


@dataclass(frozen=True, slots=True)
class Passages:
    """The first piece of an Ask stream."""

    mode: AnswerMode
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Citation:
    """A span of stored text that backs [answer_start, answer_end) of the answer; `quote` was read from the store."""

    document: str
    title: str
    span: Span
    quote: str
    answer_start: int
    answer_end: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A sentence of the answer that no passage supports."""

    answer_start: int
    answer_end: int


@dataclass(frozen=True, slots=True)
class AskFinish:
    answered: bool
    finish: Finish


AskPiece = Passages | Text | Citation | Unsupported | AskFinish
