"""Documents, passages, and answers from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from appliance.types.access import EVERYONE
from appliance.types.arrays import Floats
from appliance.types.inference import Finish, Text

COLLECTION_NAME = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""A regular expression."""


@dataclass(frozen=True, slots=True)
class Span:
    """A passage's place in its document: page from 1, [start, end) in code points of the page's extracted text."""

    page: int
    start: int
    end: int


class BlockKind(Enum):
    HEADING = "heading"
    PARAGRAPH = "paragraph"
    LIST = "list"
    TABLE = "table"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Block:
    """What a stretch of a page is: [start, end) in code points of the page's text. level: of a heading, from 1."""

    kind: BlockKind
    page: int
    start: int
    end: int
    level: int = 0


MetadataValue = str | float | bool


@dataclass(frozen=True, slots=True)
class NewDocument:
    """What ingest hands to a collection: the extracted text by page, and where it came from (lineage).

    blocks: the structure that the parser saw, in order, without overlap; none: it is read from the text.
    metadata: names [a-z][a-z0-9_]*, for filters and facets. replaces: the document that this one takes the place of, in
    the same instant. create_time: of a document that moves from another collection; None: now.
    """

    title: str
    media_type: str
    sha256: str
    size_bytes: int
    source: str
    parser: str
    pipeline: str
    pages: tuple[str, ...]
    readers: frozenset[str] = frozenset({EVERYONE})
    blocks: tuple[Block, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    replaces: str = ""
    create_time: datetime | None = None


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
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"collections/{self.collection}/documents/{self.id}"


@dataclass(frozen=True, slots=True)
class Collection:
    """document_count, passage_count: of what the asking principal may read. embedder: '' for the built-in."""

    id: str
    document_count: int
    passage_count: int
    size_bytes: int
    create_time: datetime
    embedder: str = ""

    @property
    def name(self) -> str:
        return f"collections/{self.id}"


class Leg(Enum):
    """What finds passages."""

    WORDS = "words"
    MEANING = "meaning"


class Expand(Enum):
    """How much of its document a passage is shown with."""

    NONE = "none"
    SECTION = "section"
    PAGE = "page"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What a search may ask for besides its words.

    filter: an expression over documents (knowledge/search/filter.py), '' for none. diversity: 0 to 1, how much being
    unlike what stands above counts (MMR). reranker: a model that orders the best anew, '' for none. facets: fields of
    documents whose values are counted. paged: whether more may be asked for after the first page.
    """

    filter: str = ""
    legs: frozenset[Leg] = frozenset(Leg)
    diversity: float = 0.0
    reranker: str = ""
    expand: Expand = Expand.NONE
    explain: bool = False
    facets: tuple[str, ...] = ()
    paged: bool = True


@dataclass(frozen=True, slots=True)
class Snippet:
    """The part of a passage that answers best, in one line. highlights: [start, end) in its code points."""

    text: str
    highlights: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LegScore:
    """rank: from 1 among what this leg found, 0 where it did not find the passage by itself."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a passage stands where it does. words: BM25; meaning: cosine; meaning_weight: how much the latter counted."""

    words: LegScore
    meaning: LegScore
    meaning_weight: float
    fused: float
    reranked: float | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A found stretch of a document. `document` is a resource name. context: the wider text, if it was asked for.

    heading: the headings that it stands under.
    """

    document: str
    title: str
    span: Span
    text: str
    score: float
    snippet: Snippet = Snippet("")
    context: str = ""
    explanation: Explanation | None = None
    heading: str = ""


PLACE = np.dtype(
    [
        ("document", "V16"),
        ("page", "<u4"),
        ("start", "<u4"),
        ("end", "<u4"),
        ("section_start", "<u4"),
        ("section_end", "<u4"),
    ]
)
"""A passage by what stays the same while documents come and go: the document's id, span, and section on its page."""

CANDIDATE = np.dtype(
    [
        *PLACE.descr,
        ("row", "<u4"),
        ("words_rank", "<u4"),
        ("words", "<f4"),
        ("meaning_rank", "<u4"),
        ("meaning", "<f4"),
        ("fused", "<f4"),
        ("reranked", "<f4"),
    ]
)
"""A found passage: its PLACE, and what it was given. row: in its unit, as long as that is the same.

reranked: not a number where no reranker read it.
"""


@dataclass(frozen=True, slots=True)
class FacetCount:
    value: str
    documents: int


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What a search found, without any text. candidates: CANDIDATE [n], best first; facets: as of Found.

    vectors: float32 [m, dimension] of the first m, where they are to be reranked and diversity was asked for.
    """

    candidates: NDArray[np.void]
    meaning_weight: float
    facets: Mapping[str, tuple[FacetCount, ...]]
    vectors: Floats


@dataclass(frozen=True, slots=True)
class Found:
    """One page of a search. facets: by field, the commonest values first, over what the caller may read and filtered.

    next_page: where the next page begins, '' at the end; pages don't shift when documents come and go.
    """

    passages: tuple[Passage, ...]
    facets: Mapping[str, tuple[FacetCount, ...]] = field(default_factory=dict)
    next_page: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of a conversation, and what was answered."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class SearchTally:
    """How a collection's searches and answers fare since the start. best_score_drift: None where too few were made."""

    tenant: str
    collection: str
    searches: int
    answers: int
    empty_answers: int
    best_score_drift: float | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A byte that is not what was written. file: relative to the box's data directory."""

    collection: str
    file: str
    problem: str


@dataclass(frozen=True, slots=True)
class ShredProof:
    """That a collection's key is no more. statement: what was signed, UTF-8; signature: Ed25519 by the box."""

    statement: str
    signature: bytes


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
    """groundedness: the share of the answer that stored sentences back, 0 to 1. cached: nothing was computed anew.

    queries: what was searched for, where it was not the question as it stands.
    """

    answered: bool
    finish: Finish
    groundedness: float = 0.0
    cached: bool = False
    queries: tuple[str, ...] = ()


AskPiece = Passages | Text | Citation | Unsupported | AskFinish
