"""Small real classes that stand in for parts that are slow, random or outside."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import AlreadyExists, Cancelled, DocumentRefused, NoChatModel, NotFound
from appliance.knowledge.chunk import pieces
from appliance.knowledge.search import view
from appliance.knowledge.search.retrieve import Retriever
from appliance.types import (
    CANDIDATE,
    Collection,
    Document,
    Encoded,
    Finish,
    FinishReason,
    Floats,
    Found,
    Generation,
    Ints,
    Message,
    ModelFile,
    ModelKind,
    NewDocument,
    Origin,
    Passage,
    Principal,
    Ranking,
    SearchOptions,
    Segment,
    Span,
    Text,
    Tool,
    Turn,
    Usage,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class WordEmbedder:
    """`ports.Embedder`: a text's vector is the sum of fixed random vectors of its words, so shared words are near."""

    max_tokens = 180

    def __init__(self, name: str = "words", dimension: int = 32) -> None:
        self.identity = hashlib.sha256(name.encode()).hexdigest()
        self.dimension = dimension

    def embed(self, texts: Sequence[str]) -> Floats:
        sums = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:8], "big")
                sums[row] += np.random.default_rng(seed).standard_normal(self.dimension, np.float32)
        vectors: Floats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-6))
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) + 2 for text in texts)

    def token_ends(self, texts: Sequence[str]) -> list[Ints]:
        return [np.array([word.end() for word in re.finditer(r"\S+", text)], np.int64) for text in texts]


class WordEncoders:
    """`ports.Encoders`: an embedder `bge`, and a reranker `judge` that counts the query's words."""

    embedder = WordEmbedder(dimension=8)

    async def embed(self, model: str, texts: Sequence[str]) -> Encoded:
        if model != "bge":
            raise NotFound(f"There is no model models/{model}.")
        return Encoded(self.embedder.embed(texts), self.embedder.count_tokens(texts))

    def check_reranker(self, model: str) -> None:
        if model != "judge":
            raise NotFound(f"There is no model models/{model}.")

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> Encoded:
        self.check_reranker(model)
        scores = [[float(len(set(query.split()) & set(text.split())))] for text in texts]
        return Encoded(np.array(scores, np.float32), len(texts))


@dataclass(frozen=True)
class WordTokens:
    """The words of a text, a direction each."""

    ids: NDArray[np.int32]
    vectors: Floats
    spans: NDArray[np.int32]


class WordTokenEmbedder:
    """`knowledge.ask.TokenEmbedder` by words: an English ending aside, the same word has the same direction."""

    identity = "0" * 64
    dimension = 256
    max_tokens = 180

    def embed(self, texts: Sequence[str]) -> Floats:
        sums = [tokens.vectors.sum(axis=0) for tokens in self.embed_tokens(texts)]
        vectors = np.array(sums, np.float32).reshape(-1, self.dimension)
        unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return unit

    def embed_tokens(self, texts: Sequence[str]) -> tuple[WordTokens, ...]:
        return tuple(self._tokens(text) for text in texts)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(tokens.ids) for tokens in self.embed_tokens(texts))

    def token_ends(self, texts: Sequence[str]) -> list[Ints]:
        return [np.array([word.end() for word in re.finditer(r"\w+", text)], np.int64) for text in texts]

    def _tokens(self, text: str) -> WordTokens:
        matches = list(re.finditer(r"\w+", text))
        words = [re.sub(r"(s|es|ed|ing)$", "", match[0].lower()) for match in matches]
        return WordTokens(
            np.array([int.from_bytes(word.encode()[:3].ljust(1)) for word in words], np.int32),
            np.array([self._direction(word) for word in words], np.float32).reshape(-1, self.dimension),
            np.array([match.span() for match in matches], np.int32).reshape(-1, 2),
        )

    def _direction(self, word: str) -> Floats:
        drawn = np.random.default_rng([*word.encode(), 1]).standard_normal(self.dimension).astype(np.float32)
        unit: Floats = drawn / np.linalg.norm(drawn)
        return unit


@dataclass
class MemoryLibrary:
    """ports.Library in a dictionary; search is exact, by the embedder alone."""

    embedder: WordTokenEmbedder = field(default_factory=WordTokenEmbedder)
    stored: dict[str, dict[str, tuple[Document, tuple[str, ...]]]] = field(default_factory=dict)

    def create(self, collection: str) -> Collection:
        if collection in self.stored:
            raise AlreadyExists(f"There is a collection {collection} already.")
        self.stored[collection] = {}
        return self._describe(collection)

    def collections(self) -> tuple[Collection, ...]:
        return tuple(map(self._describe, sorted(self.stored)))

    def drop(self, collection: str) -> None:
        self._documents(collection)
        del self.stored[collection]

    def find(self, collection: str, sha256: str, pipeline: str) -> Document | None:
        held = (document for document, _ in self._documents(collection).values())
        return next((one for one in held if (one.sha256, one.pipeline) == (sha256, pipeline)), None)

    def find_file(self, collection: str, source: str, title: str) -> Document | None:
        held = (document for document, _ in reversed(self._documents(collection).values()))
        return next((one for one in held if (one.source, one.title) == (source, title)), None)

    def add(self, collection: str, document: NewDocument) -> Document:
        held, spans = self._documents(collection), self._spans(document.pages)
        if not spans:
            raise DocumentRefused("NO_TEXT", f"{document.title} has no text.")
        made = Document(
            id=f"{1 + max((int(id, 16) for id in held), default=0):032x}",
            collection=collection,
            title=document.title,
            media_type=document.media_type,
            sha256=document.sha256,
            size_bytes=document.size_bytes,
            source=document.source,
            parser=document.parser,
            pipeline=document.pipeline,
            page_count=len(document.pages),
            passage_count=len(spans),
            readers=document.readers,
            create_time=EPOCH,
            metadata=document.metadata,
        )
        held.pop(document.replaces, None)
        held[made.id] = (made, document.pages)
        held.pop(document.replaces, None)
        return made

    def add_all(
        self, collection: str, documents: Sequence[NewDocument], stop: Callable[[], bool] = lambda: False
    ) -> tuple[Document | DocumentRefused, ...]:
        if stop():
            raise Cancelled("It was cancelled.")
        added: list[Document | DocumentRefused] = []
        for document in documents:
            try:
                added.append(self.add(collection, document))
            except DocumentRefused as refusal:
                added.append(refusal)
        return tuple(added)

    def _spans(self, pages: tuple[str, ...]) -> list[Span]:
        return [piece.span for piece in pieces(pages, (), self.embedder)]

    def documents(self, collection: str, groups: frozenset[str]) -> tuple[Document, ...]:
        return tuple(document for document, _ in self._documents(collection).values() if document.readers & groups)

    def get(self, collection: str, document: str, groups: frozenset[str]) -> Document:
        return self._readable(collection, document, groups)[0]

    def pages(self, collection: str, document: str, groups: frozenset[str]) -> tuple[str, ...]:
        return self._readable(collection, document, groups)[1]

    def page(self, collection: str, document: str, page: int, groups: frozenset[str]) -> str:
        return self.pages(collection, document, groups)[page - 1]

    def delete(self, collection: str, document: str, groups: frozenset[str] | None) -> None:
        self._readable(collection, document, groups)
        del self.stored[collection][document]

    def compact(self, collection: str) -> Collection:
        return self._describe(collection)

    def rank(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> Ranking:
        found = [
            (document, span, pages[span.page - 1][span.start : span.end])
            for document, pages in self._documents(collection).values()
            if document.readers & groups
            for span in self._spans(pages)
        ]
        candidates = np.zeros(len(found), CANDIDATE)
        candidates["reranked"] = np.nan
        candidates["fused"] = self.embedder.embed([text for *_, text in found]) @ self.embedder.embed([query])[0]
        for candidate, (document, span, _) in zip(candidates, found, strict=True):
            candidate["document"] = bytes.fromhex(document.id)
            candidate["page"], candidate["start"], candidate["end"] = span.page, span.start, span.end
        best = np.argsort(-candidates["fused"], kind="stable")[:limit]
        return Ranking(candidates[best], 1.0, {}, np.zeros((0, 0), np.float32))

    def show(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        ranking: Ranking,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> tuple[Passage, ...]:
        shown: list[Passage] = []
        for candidate in ranking.candidates:
            with suppress(NotFound):
                document, pages = self._readable(collection, bytes(candidate["document"]).hex(), groups)
                span = view.span(candidate)
                text = pages[span.page - 1][span.start : span.end]
                shown.append(Passage(document.name, document.title, span, text, view.score(candidate)))
        return tuple(shown)

    def version(self, collection: str) -> str:
        held = (document for document, _ in self._documents(collection).values())
        known = sorted((document.id, document.sha256, sorted(document.readers)) for document in held)
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def set_readers(
        self, collection: str, document: str, readers: frozenset[str], groups: frozenset[str] | None
    ) -> Document:
        held, pages = self._readable(collection, document, groups)
        changed = replace(held, readers=readers)
        self.stored[collection][document] = (changed, pages)
        return changed

    def text(self, collection: str, document: str, span: Span, groups: frozenset[str]) -> str:
        return self.pages(collection, document, groups)[span.page - 1][span.start : span.end]

    def _documents(self, collection: str) -> dict[str, tuple[Document, tuple[str, ...]]]:
        if collection not in self.stored:
            raise NotFound(f"There is no collection {collection}.")
        return self.stored[collection]

    def _readable(
        self, collection: str, document: str, groups: frozenset[str] | None
    ) -> tuple[Document, tuple[str, ...]]:
        held = self._documents(collection).get(document)
        if held is None or not (groups is None or held[0].readers & groups):
            raise NotFound(f"There is no document {document}.")
        return held

    def _describe(self, collection: str) -> Collection:
        held = [document for document, _ in self._documents(collection).values()]
        return Collection(
            id=collection,
            document_count=len(held),
            passage_count=sum(document.passage_count for document in held),
            size_bytes=sum(document.size_bytes for document in held),
            create_time=EPOCH,
        )


@dataclass
class OneLibrary:
    """ports.Libraries with the same library for every tenant."""

    library: Any

    def of(self, tenant: str) -> Any:
        return self.library


@dataclass
class LibraryRetriever:
    """The Retriever of the product over one library; `asked` holds every query."""

    library: Any
    asked: list[tuple[str, SearchOptions]] = field(default_factory=list)

    async def search(
        self,
        caller: Principal,
        collection: str,
        query: str,
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
        page: str = "",
    ) -> Found:
        self.asked.append((query, options))
        retriever = Retriever(OneLibrary(self.library), WordEncoders())
        return await retriever.search(caller, collection, query, limit, replace(options, paged=False))


@dataclass
class ScriptedGenerator:
    """ports.Generator that says what it is told to; each item of `script` is one request's pieces, or its error.

    A text is a piece of its own; a Finish replaces the one that would come.
    """

    script: list[Sequence[str | Text | Finish] | Exception] = field(default_factory=list)
    models: tuple[str, ...] = ("writer",)
    asked: list[Generation] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    scaffold: str = "plain"
    closed: int = 0

    def chat_model(self, name: str) -> ModelFile:
        if not self.models:
            raise NoChatModel("No chat model is imported.")
        if name and name not in self.models:
            raise NotFound(f"There is no model {name}.")
        return ModelFile(
            name=name or self.models[0],
            kind=ModelKind.CHAT,
            path="",
            architecture="llama",
            sha256="0" * 64,
            size_bytes=1,
            source="test",
            scaffold=self.scaffold,
        )

    async def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        self.asked.append(generation)
        self.aliases.append(alias)
        pieces = self.script.pop(0)
        if isinstance(pieces, Exception):
            raise pieces
        try:
            for piece in pieces:
                yield Text(piece) if isinstance(piece, str) else piece
            if pieces and isinstance(pieces[-1], Finish):
                return
            yield Finish(FinishReason.STOP, Usage(input_tokens=10, output_tokens=len(pieces)))
        finally:
            self.closed += 1

    async def tokenize(self, model: str, segments: Sequence[Segment]) -> tuple[int, ...]:
        return tuple(ord(character) for segment in segments for character in segment.text)


class PlainComposer:
    """ports.Composer without a scaffold: the words and whose they are."""

    def chat(self, scaffold: str, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Segment, ...]:
        return tuple(Segment(Origin.USER, message.text) for message in messages)

    def ask(self, scaffold: str, question: str, passages: Sequence[Passage]) -> tuple[Segment, ...]:
        return (*(Segment(Origin.RETRIEVED, passage.text) for passage in passages), Segment(Origin.USER, question))

    def rewrite(self, scaffold: str, question: str, history: Sequence[Turn], others: int) -> tuple[Segment, ...]:
        told = [Segment(Origin.USER, text) for turn in history for text in (turn.question, turn.answer)]
        return (Segment(Origin.SYSTEM, f"others {others}"), *told, Segment(Origin.USER, question))
