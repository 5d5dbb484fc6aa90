"""Generate mode: a model writes from the passages; each of its sentences gets the stored text that backs it, if any."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog

from appliance.errors import PromptTooLong
from appliance.knowledge.answer import cite
from appliance.knowledge.answer.cite import Sentence
from appliance.knowledge.answer.inquiry import Inquiry
from appliance.knowledge.answer.sources import Sources, citation
from appliance.ports import Composer, Embedder, Generator
from appliance.types import (
    AskFinish,
    AskPiece,
    Citation,
    Finish,
    FinishReason,
    Generation,
    ModelFile,
    Passage,
    Text,
    Unsupported,
)

GENERATE_PASSAGES = 6

log = structlog.get_logger()


class Writer:
    """Answers by a model. Safe to use for many calls at once."""

    def __init__(
        self, generator: Generator, composer: Composer, embedder: Embedder, prefix_salt: Callable[[str], bytes]
    ) -> None:
        self._generator, self._composer, self._embedder = generator, composer, embedder
        self._prefix_salt = prefix_salt

    async def answer(
        self, inquiry: Inquiry, file: ModelFile, question: str, passages: Sequence[Passage], sources: Sources
    ) -> AsyncIterator[AskPiece]:
        """Text, then Citation and Unsupported, one AskFinish. question: as it stands alone. Raises as `Generator`."""
        answer, finish = "", Finish(FinishReason.STOP)
        async with aclosing(self._write(inquiry, file, question, passages)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Finish):
                    finish = piece
                else:
                    answer += piece.text
                    yield piece
        backed = False
        for judged in await self._judge(answer, passages, sources):
            backed = backed or isinstance(judged, Citation)
            yield judged
        yield AskFinish(backed, finish)

    async def _write(
        self, inquiry: Inquiry, file: ModelFile, question: str, passages: Sequence[Passage]
    ) -> AsyncIterator[Text | Finish]:
        """The model's answer, from as many of the best passages as fit into its context."""
        tenant, count = inquiry.caller.tenant, len(passages)
        generation = Generation((), inquiry.sampling, prefix_salt=self._prefix_salt(tenant), tenant=tenant)
        while True:
            prompt = self._composer.ask(file.scaffold, question, passages[:count])
            asked = replace(generation, prompt=prompt, deadline_seconds=inquiry.seconds_left())
            pieces = self._generator.generate(file.name, asked, alias=inquiry.model)
            try:
                async with aclosing(pieces):  # type: ignore[type-var]
                    async for piece in pieces:
                        yield piece
                return
            except PromptTooLong:
                if count == 1:
                    raise
                count //= 2
                log.info("ask.fewer_passages", model=file.name, passages=count)

    async def _judge(self, answer: str, passages: Sequence[Passage], sources: Sources) -> list[Citation | Unsupported]:
        """For each sentence of the answer the stored text that backs it, or that none does."""
        said = cite.statements(answer)
        stored = await asyncio.to_thread(sources.sentences, passages) if said else []
        backing = await asyncio.to_thread(self._back, said, stored)
        judged: list[Citation | Unsupported] = []
        for statement, sentence in zip(said, backing, strict=True):
            if sentence and await sources.hold(sentence.document, sentence.span, sentence.text):
                judged.append(citation(sentence, statement.start, statement.end))
            else:
                judged.append(Unsupported(statement.start, statement.end))
        return judged

    def _back(self, said: Sequence[cite.Statement], stored: Sequence[Sentence]) -> list[Sentence | None]:
        backing = [cite.quoted_from(statement, stored) for statement in said]
        open_ones = [at for at, sentence in enumerate(backing) if sentence is None]
        if open_ones and stored:
            texts = [said[at].text for at in open_ones]
            vectors = self._embedder.embed([*texts, *(sentence.text for sentence in stored)])
            cosines = vectors[: len(texts)] @ vectors[len(texts) :].T
            for at, row in zip(open_ones, cosines, strict=True):
                backing[at] = cite.supporting(said[at], stored, row)
        return backing
