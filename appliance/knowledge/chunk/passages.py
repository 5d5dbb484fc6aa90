"""Pages to spans by words alone, without an embedder."""

import re
from collections.abc import Iterator, Sequence

from appliance.knowledge.chunk.sentences import sentences
from appliance.types import Span

PASSAGE_WORDS = 180

# What counts as a word of a passage: scripts without spaces count by character, long compounds more than once,
# so that a passage of any language about fits the 256 tokens that the embedder reads.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u9fff]{1,12}|\S"
)


def passages(pages: Sequence[str]) -> list[Span]:
    """Passages of the pages: at most PASSAGE_WORDS, about equally long within a page, whole sentences if they fit."""
    return [Span(number, start, end) for number, page in enumerate(pages, 1) for start, end in _passages_of(page)]


def _passages_of(page: str) -> Iterator[tuple[int, int]]:
    pieces = [piece for start, end in sentences(page) for piece in _by_words(page, start, end)]
    total = sum(words for _, _, words in pieces)
    wanted = total / max(1, -(-total // PASSAGE_WORDS))
    first, size, previous = 0, 0, 0
    for start, end, words in pieces:
        if size and (size >= wanted or size + words > PASSAGE_WORDS):
            yield first, previous
            size = 0
        if not size:
            first = start
        size += words
        previous = end
    if size:
        yield first, previous


def _by_words(page: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """A sentence as (start, end, words), cut where it alone is longer than a passage."""
    matches = list(_WORD.finditer(page, start, end))
    for at in range(0, len(matches), PASSAGE_WORDS):
        part = matches[at : at + PASSAGE_WORDS]
        yield part[0].start(), part[-1].end(), len(part)
