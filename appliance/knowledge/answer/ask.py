"""Ask: a question answered from a collection, by quoting it or by a model that writes from it.

    rewrite → search → Passages → Text … → Citation | Unsupported … → AskFinish

Quote: the sentences that answer, verbatim, or none. Generate: what the model writes, with the stored sentence that
backs each of its sentences. Every citation is read again from the store before it is sent; one whose document was
deleted meanwhile, or whose text is not what was cited, is not sent. What was answered before to one who sees the same
is given again while the collection is what it was, once its passages and citations were read again.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from appliance.errors import InvalidArgument, NoChatModel, QuoteOnly
from appliance.knowledge.answer.cache import AnswerCache
from appliance.knowledge.answer.inquiry import Inquiry, bounded
from appliance.knowledge.answer.quoting import NOT_ANSWERED, QUOTE_PASSAGES, Quoter, TokenEmbedder, unanswered
from appliance.knowledge.answer.rewrite import Plan, Rewriter
from appliance.knowledge.answer.sources import Sources, groundedness
from appliance.knowledge.answer.writing import GENERATE_PASSAGES, Writer
from appliance.knowledge.quality.drift import SearchTallies
from appliance.knowledge.search.filter import parse
from appliance.ports import Composer, Generator, Libraries, Retriever
from appliance.types import (
    AnswerMode,
    AskFinish,
    AskPiece,
    Citation,
    Finish,
    FinishReason,
    ModelFile,
    Passage,
    Passages,
    Principal,
    Sampling,
    SearchOptions,
    Span,
    Turn,
    Usage,
)

__all__ = ["NOT_ANSWERED", "Asker", "TokenEmbedder"]


class Asker:
    """Answers questions. Safe to use for many calls at once, on one event loop."""

    def __init__(
        self,
        libraries: Libraries,
        retriever: Retriever,
        embedder: TokenEmbedder,
        generator: Generator,
        composer: Composer,
        prefix_salt: Callable[[str], bytes],
        quote_only: Callable[[str], bool],
        cache: AnswerCache | None = None,
        tallies: SearchTallies | None = None,
    ) -> None:
        """prefix_salt: a tenant's secret; prompts share their cached prefix within it only. quote_only: whether a
        tenant's answers must be sentences of its documents, so that no model sees them."""
        self._libraries, self._retriever, self._generator = libraries, retriever, generator
        self._quote_only = quote_only
        self._rewriter = Rewriter(generator, composer, prefix_salt)
        self._quoter = Quoter(embedder)
        self._writer = Writer(generator, composer, embedder, prefix_salt)
        self._cache = AnswerCache(0) if cache is None else cache
        self._tallies = tallies or SearchTallies()

    async def ask(
        self,
        caller: Principal,
        collection: str,
        question: str,
        mode: AnswerMode | None,
        model: str,
        sampling: Sampling,
        deadline_seconds: float = 0.0,
        *,
        history: Sequence[Turn] = (),
        condition: str = "",
        reranker: str = "",
    ) -> AsyncIterator[AskPiece]:
        """Passages, then Text, then Citation and Unsupported, then one AskFinish; closing it closes the generation.

        mode None: generate where there is a chat model and the tenant may, else quote. model '': the default chat
        model. deadline_seconds: from now, for the model's part of the work; 0 for none. history: oldest first; its last
        turns are looked at. condition: a filter over documents. reranker: a model, '' for none.
        Raises InvalidArgument, NotFound, NoChatModel, QuoteOnly, StoreDamaged, and as Generator.generate and
        Retriever.search.
        """
        if not question.strip():
            raise InvalidArgument.of("question", "must not be empty.")
        if condition.strip():
            parse(condition)  # so that a wrong one is told before a model has run
        began = found = time.monotonic()
        inquiry = Inquiry(
            caller,
            collection,
            question.strip(),
            bounded(history),
            self._chat_model(caller.tenant, mode, model),
            model,
            sampling,
            SearchOptions(filter=condition, reranker=reranker, paged=False),
            began + deadline_seconds if deadline_seconds else math.inf,
        )
        async with aclosing(self._pieces(inquiry)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Passages):
                    found = time.monotonic()
                if isinstance(piece, AskFinish):
                    self._tallies.answered(caller.tenant, collection, piece.answered)
                    piece = _timed(piece, began, found)
                yield piece

    def _chat_model(self, tenant: str, mode: AnswerMode | None, model: str) -> ModelFile | None:
        """The model that will write, or None for quote mode."""
        if self._quote_only(tenant):
            if mode is AnswerMode.GENERATE:
                raise QuoteOnly("Answers here are sentences of the documents; none may be generated.")
            return None
        if mode is AnswerMode.QUOTE:
            return None
        try:
            return self._generator.chat_model(model)
        except NoChatModel:
            if mode is AnswerMode.GENERATE:
                raise
            return None

    async def _pieces(self, inquiry: Inquiry) -> AsyncIterator[AskPiece]:
        sources = Sources(self._libraries.of(inquiry.caller.tenant), inquiry.collection, inquiry.caller.groups)
        version = await asyncio.to_thread(sources.library.version, inquiry.collection)
        if known := self._cache.get(inquiry, version):
            if await _still_holds(known, sources):
                for piece in known:
                    yield _again(piece) if isinstance(piece, AskFinish) else piece
                return
            self._cache.discard(inquiry)
        plan = await self._rewriter.plan(inquiry)
        passages = await self._search(inquiry, plan.queries)
        told: list[AskPiece] = [Passages(AnswerMode.GENERATE if inquiry.file else AnswerMode.QUOTE, passages)]
        yield told[0]
        async with aclosing(self._answer(inquiry, plan.question, passages, sources)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, AskFinish):
                    piece = _whole(piece, inquiry, plan, told)
                    if not plan.failed and version == await asyncio.to_thread(
                        sources.library.version, inquiry.collection
                    ):
                        self._cache.put(inquiry, version, [*told, piece])
                told.append(piece)
                yield piece

    async def _search(self, inquiry: Inquiry, queries: Sequence[str]) -> tuple[Passage, ...]:
        """The best passages of all queries, each once with its best score; of one query in the order of the search."""
        limit = GENERATE_PASSAGES if inquiry.file else QUOTE_PASSAGES
        best: dict[tuple[str, Span], Passage] = {}
        for query in queries:
            found = await self._retriever.search(inquiry.caller, inquiry.collection, query, limit, inquiry.options)
            for passage in found.passages:
                known = best.setdefault((passage.document, passage.span), passage)
                if passage.score > known.score:
                    best[passage.document, passage.span] = passage
        if len(queries) == 1:
            return tuple(best.values())[:limit]
        return tuple(sorted(best.values(), key=lambda passage: -passage.score)[:limit])

    def _answer(
        self, inquiry: Inquiry, question: str, passages: Sequence[Passage], sources: Sources
    ) -> AsyncIterator[AskPiece]:
        if not passages:
            return unanswered(Finish(FinishReason.STOP))
        if inquiry.file:
            return self._writer.answer(inquiry, inquiry.file, question, passages, sources)
        # Words that were carried over find the passages; the sentence that answered the last question holds them, too.
        return self._quoter.answer(inquiry.question, passages, sources)


async def _still_holds(pieces: Sequence[AskPiece], sources: Sources) -> bool:
    """Whether the caller may read all that an answer shows, and it is what the store holds."""
    shown = {
        (one.document, one.span, one.text) for piece in pieces if isinstance(piece, Passages) for one in piece.passages
    }
    shown |= {(piece.document, piece.span, piece.quote) for piece in pieces if isinstance(piece, Citation)}
    for document, span, text in shown:
        if not await sources.hold(document, span, text):
            return False
    return True


def _whole(piece: AskFinish, inquiry: Inquiry, plan: Plan, told: Sequence[AskPiece]) -> AskFinish:
    """The finish with what was searched for, what that took, and how much of the answer is backed."""
    used = piece.finish.usage
    usage = replace(
        used,
        input_tokens=used.input_tokens + plan.usage.input_tokens,
        output_tokens=used.output_tokens + plan.usage.output_tokens,
    )
    queries = () if plan.queries == (inquiry.question,) else plan.queries
    grounded = groundedness(told) if piece.answered else 0.0
    return replace(piece, finish=replace(piece.finish, usage=usage), groundedness=grounded, queries=queries)


def _again(piece: AskFinish) -> AskFinish:
    """The finish of an answer for which nothing was computed."""
    return replace(piece, finish=replace(piece.finish, usage=Usage()), cached=True)


def _timed(piece: AskFinish, began: float, found: float) -> AskFinish:
    timings = replace(piece.finish.timings, search_seconds=found - began, total_seconds=time.monotonic() - began)
    return replace(piece, finish=replace(piece.finish, timings=timings))
