"""Ask: a question answered from a collection, by quoting it or by a model that writes from it.

    search → Passages → Text … → Citation | Unsupported … → AskFinish

Quote: the sentences that answer, verbatim, or none. Generate: what the model writes, with the stored sentence that
backs each of its sentences. Every citation is read again from the store before it is sent; one whose document was
deleted meanwhile, or whose text is not what was cited, is not sent.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import groupby
from typing import Protocol

import structlog

from appliance.errors import InvalidArgument, NoChatModel, NotFound, PromptTooLong
from appliance.knowledge.answer import cite, quote
from appliance.knowledge.answer.cite import Sentence
from appliance.knowledge.answer.sentence_scores import Candidates, Tokens
from appliance.ports import Composer, Embedder, Generator, Library
from appliance.types import (
    AnswerMode,
    AskFinish,
    AskPiece,
    Citation,
    Finish,
    FinishReason,
    Generation,
    ModelFile,
    Passage,
    Passages,
    Principal,
    Sampling,
    Text,
    Timings,
    Unsupported,
    Usage,
)

NOT_ANSWERED = "Your documents do not answer this."

QUOTE_PASSAGES = 4  # as many as quote mode's constants were fitted with
GENERATE_PASSAGES = 6
QUOTE_SENTENCES = 3
MIN_DEADLINE_SECONDS = 1e-3  # 0 would mean none
ALSO_QUOTED_FROM = 0.6  # of the best sentence's share

log = structlog.get_logger()


class TokenEmbedder(Embedder, Protocol):
    """An embedder that also tells what each token means in its context."""

    def embed_tokens(self, texts: Sequence[str]) -> Sequence[Tokens]:
        """One for each text."""


class Asker:
    """Answers questions. Safe to use for many calls at once."""

    def __init__(
        self,
        library: Library,
        embedder: TokenEmbedder,
        generator: Generator,
        composer: Composer,
        prefix_salt: Callable[[str], bytes],
    ) -> None:
        """prefix_salt: a tenant's secret; prompts share their cached prefix within it only."""
        self._library = library
        self._embedder = embedder
        self._generator = generator
        self._composer = composer
        self._prefix_salt = prefix_salt

    async def ask(
        self,
        caller: Principal,
        collection: str,
        question: str,
        mode: AnswerMode | None,
        model: str,
        sampling: Sampling,
        deadline_seconds: float = 0.0,
    ) -> AsyncIterator[AskPiece]:
        """Passages, then Text, then Citation and Unsupported, then one AskFinish; closing it closes the generation.

        mode None: generate where there is a chat model, else quote. model '': the default chat model.
        deadline_seconds: from now, for the model's part of the work; 0 for none.
        Raises InvalidArgument, NotFound, NoChatModel, StoreDamaged, and as Generator.generate.
        """
        if not question.strip():
            raise InvalidArgument.of("question", "must not be empty.")
        began, groups = time.monotonic(), caller.groups
        file = self._chat_model(mode, model)
        answering = AnswerMode.GENERATE if file else AnswerMode.QUOTE
        limit = GENERATE_PASSAGES if file else QUOTE_PASSAGES
        passages = (await asyncio.to_thread(self._library.search, collection, question, groups, limit)).passages
        found = time.monotonic()
        yield Passages(answering, passages)
        if not passages:
            pieces = _unanswered(Finish(FinishReason.STOP))
        elif file:
            generation = Generation(
                (),
                sampling,
                prefix_salt=self._prefix_salt(caller.tenant),
                tenant=caller.tenant,
                deadline_seconds=deadline_seconds and max(deadline_seconds - (found - began), MIN_DEADLINE_SECONDS),
            )
            pieces = self._generate(collection, question, groups, passages, file, generation, model)
        else:
            pieces = self._quote(collection, question, groups, passages)
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                yield _timed(piece, began, found) if isinstance(piece, AskFinish) else piece

    def _chat_model(self, mode: AnswerMode | None, model: str) -> ModelFile | None:
        """The model that will write, or None for quote mode."""
        if mode is AnswerMode.QUOTE:
            return None
        try:
            return self._generator.chat_model(model)
        except NoChatModel:
            if mode is AnswerMode.GENERATE:
                raise
            return None

    async def _quote(
        self, collection: str, question: str, groups: frozenset[str], passages: Sequence[Passage]
    ) -> AsyncIterator[AskPiece]:
        stored = await asyncio.to_thread(self._sentences, collection, passages, groups)
        chosen, usage = await asyncio.to_thread(self._choose, question, stored)
        finish = Finish(FinishReason.STOP, usage)
        sound = [one for one in chosen if await self._still_stored(collection, one, groups)]
        if not sound:
            async for piece in _unanswered(finish):
                yield piece
            return
        citations: list[Citation] = []
        at = 0
        for sentence in sound:
            yield Text(f"\n{sentence.text}" if at else sentence.text)
            at += bool(at)
            citations.append(_citation(sentence, at, at + len(sentence.text)))
            at += len(sentence.text)
        for citation in citations:
            yield citation
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

    async def _generate(
        self,
        collection: str,
        question: str,
        groups: frozenset[str],
        passages: Sequence[Passage],
        file: ModelFile,
        generation: Generation,
        alias: str,
    ) -> AsyncIterator[AskPiece]:
        answer, finish = "", Finish(FinishReason.STOP)
        pieces = self._write(question, passages, file, generation, alias)
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Finish):
                    finish = piece
                else:
                    answer += piece.text
                    yield piece
        backed = False
        for judged in await self._judge(collection, answer, passages, groups):
            backed = backed or isinstance(judged, Citation)
            yield judged
        yield AskFinish(backed, finish)

    async def _write(
        self, question: str, passages: Sequence[Passage], file: ModelFile, generation: Generation, alias: str
    ) -> AsyncIterator[Text | Finish]:
        """The model's answer, from as many of the best passages as fit into its context."""
        count = len(passages)
        while True:
            prompt = self._composer.ask(file.scaffold, question, passages[:count])
            pieces = self._generator.generate(file.name, replace(generation, prompt=prompt), alias=alias)
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

    async def _judge(
        self, collection: str, answer: str, passages: Sequence[Passage], groups: frozenset[str]
    ) -> list[Citation | Unsupported]:
        """For each sentence of the answer the stored text that backs it, or that none does."""
        said = cite.statements(answer)
        stored = await asyncio.to_thread(self._sentences, collection, passages, groups) if said else []
        backing = await asyncio.to_thread(self._back, said, stored)
        judged: list[Citation | Unsupported] = []
        for statement, sentence in zip(said, backing, strict=True):
            if sentence and await self._still_stored(collection, sentence, groups):
                judged.append(_citation(sentence, statement.start, statement.end))
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

    def _sentences(self, collection: str, passages: Sequence[Passage], groups: frozenset[str]) -> list[Sentence]:
        """The whole sentences of the passages, in the order of the passages, each once; of deleted documents none."""
        pages: dict[tuple[str, int], str] = {}
        for document, page in {(passage.document, passage.span.page) for passage in passages}:
            with suppress(NotFound):
                pages[document, page] = self._library.page(collection, _id(document), page, groups)
        found: dict[tuple[str, int, int], Sentence] = {}
        for number, passage in enumerate(passages, 1):
            text = pages.get((passage.document, passage.span.page), "")
            for sentence in cite.sentences_of(number, passage, text):
                found.setdefault((sentence.document, sentence.span.page, sentence.span.start), sentence)
        return list(found.values())

    async def _still_stored(self, collection: str, sentence: Sentence, groups: frozenset[str]) -> bool:
        """Whether the store holds exactly this text at this place, now."""
        try:
            text = await asyncio.to_thread(
                self._library.text, collection, _id(sentence.document), sentence.span, groups
            )
        except NotFound:
            text = None
        if text != sentence.text:
            log.warning("ask.citation_not_found_again", document=sentence.document, page=sentence.span.page)
        return text == sentence.text


async def _unanswered(finish: Finish) -> AsyncIterator[AskPiece]:
    yield Text(NOT_ANSWERED)
    yield AskFinish(answered=False, finish=finish)


def _ranges(home: Sequence[Sentence]) -> tuple[tuple[int, int], ...]:
    """Where the sentences stand in their text joined by spaces."""
    ranges: list[tuple[int, int]] = []
    for sentence in home:
        start = ranges[-1][1] + 1 if ranges else 0
        ranges.append((start, start + len(sentence.text)))
    return tuple(ranges)


def _citation(sentence: Sentence, start: int, end: int) -> Citation:
    return Citation(sentence.document, sentence.title, sentence.span, sentence.text, start, end)


def _id(document: str) -> str:
    return document.rpartition("/")[2]


def _timed(piece: AskFinish, began: float, found: float) -> AskFinish:
    timings: Timings = replace(
        piece.finish.timings, search_seconds=found - began, total_seconds=time.monotonic() - began
    )
    return AskFinish(piece.answered, replace(piece.finish, timings=timings))
