"""The stored text that answers rest on, as one caller may read it now."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from appliance.errors import NotFound
from appliance.knowledge.answer import cite
from appliance.knowledge.answer.cite import Sentence
from appliance.ports import Library
from appliance.types import AskPiece, Citation, Passage, Span, Text

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sources:
    """One collection of a library, seen with the rights of `groups`."""

    library: Library
    collection: str
    groups: frozenset[str]

    def sentences(self, passages: Sequence[Passage]) -> list[Sentence]:
        """The whole sentences of the passages, in the order of the passages, each once; of deleted documents none.

        Blocks on the disk. Raises StoreDamaged.
        """
        pages: dict[tuple[str, int], str] = {}
        for document, page in {(passage.document, passage.span.page) for passage in passages}:
            with suppress(NotFound):
                pages[document, page] = self.library.page(self.collection, _id(document), page, self.groups)
        found: dict[tuple[str, int, int], Sentence] = {}
        for number, passage in enumerate(passages, 1):
            text = pages.get((passage.document, passage.span.page), "")
            for sentence in cite.sentences_of(number, passage, text):
                found.setdefault((sentence.document, sentence.span.page, sentence.span.start), sentence)
        return list(found.values())

    async def hold(self, document: str, span: Span, text: str) -> bool:
        """Whether the store holds exactly this text at this place, now. document: a resource name."""
        try:
            stored = await asyncio.to_thread(self.library.text, self.collection, _id(document), span, self.groups)
        except NotFound:
            stored = None
        if stored != text:
            log.warning("ask.citation_not_found_again", document=document, page=span.page)
        return stored == text


def citation(sentence: Sentence, start: int, end: int) -> Citation:
    """That the sentence backs [start, end) of the answer."""
    return Citation(sentence.document, sentence.title, sentence.span, sentence.text, start, end)


def groundedness(pieces: Sequence[AskPiece]) -> float:
    """The share of the answer's characters, white space aside, that citations back: 0 to 1, 0 for no answer."""
    answer = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    backed = {
        at for piece in pieces if isinstance(piece, Citation) for at in range(piece.answer_start, piece.answer_end)
    }
    counted = [at for at, character in enumerate(answer) if not character.isspace()]
    return sum(at in backed for at in counted) / len(counted) if counted else 0.0


def _id(document: str) -> str:
    return document.rpartition("/")[2]
