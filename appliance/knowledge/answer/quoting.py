"""Quote mode: the sentences that answer, verbatim, each with its place, or none."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Protocol

from appliance.knowledge.answer import quote
from appliance.knowledge.answer.cite import Sentence
from appliance.knowledge.answer.sentence_scores import Candidates, Tokens
from appliance.knowledge.answer.sources import Sources, citation
from appliance.ports import Embedder
from appliance.types import AskFinish, AskPiece, Citation, Finish, FinishReason, Passage, Text, Usage

NOT_ANSWERED = "Your documents do not answer this."

QUOTE_PASSAGES = 4  # as many as quote mode's constants were fitted with
QUOTE_SENTENCES = 3
ALSO_QUOTED_FROM = 0.6  # of the best sentence's share


class TokenEmbedder(Embedder, Protocol):
    """An embedder that also tells what each token means in its context."""

    def embed_tokens(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """One for each text."""


class Quoter:
    """Answers by quoting. Safe to use for many calls at once."""

    def __init__(self, embedder: TokenEmbedder) -> None:
        self._embedder = embedder

    async def answer(self, question: str, passages: Sequence[Passage], sources: Sources) -> AsyncIterator[AskPiece]:
        """Text, Citation, one AskFinish."""
        stored = await asyncio.to_thread(sources.sentences, passages)
        chosen, usage = await asyncio.to_thread(self._choose, question, stored)
        finish = Finish(FinishReason.STOP, usage)
        sound = [one for one in chosen if await sources.hold(one.document, one.span, one.text)]
        if not sound:
            async for piece in unanswered(finish):
                yield piece
            return
        citations: list[Citation] = []
        at = 0
        for sentence in sound:
            yield Text(f"\n{sentence.text}" if at else sentence.text)
            at += bool(at)
            citations.append(citation(sentence, at, at + len(sentence.text)))
            at += len(sentence.text)
        for cited in citations:
            yield cited
        yield AskFinish(answered=True, finish=finish)

    def _choose(self, question: str, stored: Sequence[Sentence]) -> tuple[list[Sentence], Usage]:
        """The sentences that answer, best first; none where the question is not answered."""
        if not stored:
            return [], Usage()
        # A copy of a document must not share the weight of its sentences: one of each is asked.
        unique: dict[str, Sentence] = {}
        for sentence in stored:
            unique.setdefault(" ".join(sentence.text.split()), sentence)
        stored = list(unique.values())
        homes = [list(group) for _, group in groupby(stored, key=lambda sentence: sentence.passage)]
        texts = [" ".join(sentence.text for sentence in home) for home in homes]
        tokens = self._embedder.embed_tokens([question, *texts])
        candidates = [
            Candidates(text, _ranges(home), known) for text, home, known in zip(texts, homes, tokens[1:], strict=True)
        ]
        choice = quote.choose(question, tokens[0], candidates)
        usage = Usage(input_tokens=sum(len(known.ids) for known in tokens))
        if choice.abstain:
            return [], usage
        least = ALSO_QUOTED_FROM * float(choice.shares[choice.order[0]])
        best = [stored[at] for at in choice.order[:QUOTE_SENTENCES] if choice.shares[at] >= least]
        return best, usage


async def unanswered(finish: Finish) -> AsyncIterator[AskPiece]:
    """What is said where the documents do not answer."""
    yield Text(NOT_ANSWERED)
    yield AskFinish(answered=False, finish=finish)


def _ranges(home: Sequence[Sentence]) -> tuple[tuple[int, int], ...]:
    """Where the sentences stand in their text joined by spaces."""
    ranges: list[tuple[int, int]] = []
    for sentence in home:
        start = ranges[-1][1] + 1 if ranges else 0
        ranges.append((start, start + len(sentence.text)))
    return tuple(ranges)
