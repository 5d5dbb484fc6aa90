"""An asker over a library in memory and a model that says what it is told to; and what a test asks of its answers."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import cast

from appliance.knowledge.answer.ask import Asker
from appliance.knowledge.answer.cache import AnswerCache
from appliance.knowledge.quality.drift import SearchTallies
from appliance.types import (
    EVERYONE,
    AnswerMode,
    AskFinish,
    AskPiece,
    Citation,
    NewDocument,
    Principal,
    Role,
    Sampling,
    Text,
    Turn,
)
from tests.fakes import (
    LibraryRetriever,
    MemoryLibrary,
    OneLibrary,
    PlainComposer,
    ScriptedGenerator,
    WordTokenEmbedder,
)

BADGES = "Visitors wear a badge at all times. A visitor badge expires after 90 days. A lost badge costs 5 euros."
PUMP = "The pump weighs 12 kilograms. Its battery lasts 14 hours. A red lamp means that the motor is too hot."
FILLER = tuple(f"Chapter {n} tells of gardens, rivers and of stones. Nothing there is of any use." for n in range(4))
EVERYBODY = frozenset({EVERYONE})
CALLER = Principal("acme", "eve", Role.APP)


def document(title: str, *pages: str, readers: frozenset[str] = EVERYBODY) -> NewDocument:
    return NewDocument(title, "text/plain", title, 1, "test", "text 1", "1", pages, readers)


@dataclass
class Desk:
    """An asker and all that it stands on. quoting: tenants that must quote."""

    library: MemoryLibrary = field(default_factory=MemoryLibrary)
    generator: ScriptedGenerator = field(default_factory=ScriptedGenerator)
    quoting: set[str] = field(default_factory=set)
    cache: AnswerCache = field(default_factory=lambda: AnswerCache(0))
    tallies: SearchTallies = field(default_factory=SearchTallies)

    def __post_init__(self) -> None:
        self.library.create("handbook")
        self.retriever = LibraryRetriever(self.library)
        self.asker = Asker(
            OneLibrary(self.library),
            self.retriever,
            WordTokenEmbedder(),
            self.generator,
            PlainComposer(),
            str.encode,
            self.quoting.__contains__,
            self.cache,
            self.tallies,
        )

    def add(self, title: str, *pages: str, readers: frozenset[str] = EVERYBODY) -> str:
        return self.library.add("handbook", document(title, *pages, readers=readers)).id

    def pieces(
        self,
        question: str,
        mode: AnswerMode | None = None,
        model: str = "",
        collection: str = "handbook",
        deadline_seconds: float = 0.0,
        history: Sequence[Turn] = (),
        caller: Principal = CALLER,
        condition: str = "",
        reranker: str = "",
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    ) -> AsyncGenerator[AskPiece, None]:
        asked = self.asker.ask(
            caller,
            collection,
            question,
            mode,
            model,
            sampling,
            deadline_seconds,
            history=history,
            condition=condition,
            reranker=reranker,
        )
        return cast(AsyncGenerator[AskPiece, None], asked)

    async def ask(
        self,
        question: str,
        mode: AnswerMode | None = None,
        model: str = "",
        history: Sequence[Turn] = (),
        caller: Principal = CALLER,
        condition: str = "",
        reranker: str = "",
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    ) -> list[AskPiece]:
        pieces = self.pieces(
            question,
            mode,
            model,
            history=history,
            caller=caller,
            condition=condition,
            reranker=reranker,
            sampling=sampling,
        )
        return [piece async for piece in pieces]

    @property
    def queries(self) -> list[str]:
        """Everything that was searched for."""
        return [query for query, _ in self.retriever.asked]

    def stored(self, citation: Citation) -> str:
        name = citation.document.rpartition("/")[2]
        return self.library.text("handbook", name, citation.span, EVERYBODY)


def furnished(desk: Desk) -> Desk:
    """With two documents."""
    desk.add("badges.txt", *FILLER, BADGES)
    desk.add("pump.txt", PUMP)
    return desk


def text_of(pieces: Sequence[AskPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def citations_of(pieces: Sequence[AskPiece]) -> list[Citation]:
    return [piece for piece in pieces if isinstance(piece, Citation)]


def finish_of(pieces: Sequence[AskPiece]) -> AskFinish:
    assert isinstance(pieces[-1], AskFinish)
    return pieces[-1]
