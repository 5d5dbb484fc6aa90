"""A real HTTPS server on loopback, over parts whose answers a test writes, and the real clients to call it with."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import httpx2
import openai

from appliance.access import ca
from appliance.access.apps import AppKeys
from appliance.access.callers import Callers
from appliance.access.groups import GroupBook
from appliance.api.chat import Chat
from appliance.api.embedding import Embedding
from appliance.api.http import Gate, Limits
from appliance.api.http_routes import HttpServices, routes
from appliance.api.http_server import HttpServer
from appliance.api.mcp import McpServer
from appliance.api.openai.errors import shape
from appliance.api.openai.models import Models
from appliance.health.metrics import CONTENT_TYPE, MeasuredGenerator, Metrics
from appliance.knowledge.answer.ask import Asker
from appliance.types import (
    AppScope,
    EngineStats,
    Finish,
    FinishReason,
    Generation,
    ModelKind,
    ModelState,
    ModelStatus,
    Principal,
    Role,
    SearchTally,
    Text,
    Timings,
    Usage,
)
from appliance.vault.keyring import FileKeyring
from tests.fakes import (
    LibraryRetriever,
    MemoryLibrary,
    OneLibrary,
    PlainComposer,
    ScriptedGenerator,
    WordEncoders,
    WordTokenEmbedder,
)

Piece = Text | Finish | Exception | asyncio.Event
USAGE = Usage(input_tokens=10, cached_input_tokens=4, output_tokens=3)
STOP = Finish(FinishReason.STOP, USAGE, Timings(queue_seconds=0.25, prefill_seconds=0.5, decode_seconds=1.0))
CUT = Finish(FinishReason.LENGTH, USAGE)


@dataclass
class PieceGenerator(ScriptedGenerator):
    """`ports.Generator` by pieces: an exception among them is raised, an event is waited for."""

    pieces: list[Sequence[Piece]] = field(default_factory=list)

    def say(self, *texts: str, finish: Finish = STOP) -> None:
        """One more answer."""
        self.pieces.append([*map(Text, texts), finish])

    async def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        self.asked.append(generation)
        try:
            for piece in self.pieces.pop(0):
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, asyncio.Event):
                    await piece.wait()
                else:
                    yield piece
        finally:
            self.closed += 1


@dataclass
class HttpBox:
    """A served box. `token` opens all of it."""

    data_dir: Path
    generator: PieceGenerator
    library: MemoryLibrary
    embedder: WordTokenEmbedder
    keys: AppKeys
    groups: GroupBook
    server: HttpServer
    gate: Gate
    chat: Chat
    token: str = ""
    clients: list[httpx.AsyncClient | httpx2.AsyncClient] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://{self.server.address}"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.data_dir / "access" / "ca.pem"))

    def key(self, *scopes: AppScope, collections: Sequence[str] = (), models: Sequence[str] = ()) -> str:
        """A new key's token."""
        return self.keys.create(Principal("default", "crm", Role.APP), scopes, collections, models)[1]

    def http(self, token: str | None = None) -> httpx.AsyncClient:
        bearer = {"authorization": f"Bearer {self.token if token is None else token}"} if token != "" else {}
        client = httpx.AsyncClient(base_url=self.url, verify=self.trust(), headers=bearer, trust_env=False)
        self.clients.append(client)
        return client

    def openai(self, token: str | None = None) -> openai.AsyncOpenAI:
        client = httpx2.AsyncClient(verify=self.trust(), trust_env=False)
        self.clients.append(client)
        key = self.token if token is None else token
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, http_client=client, max_retries=0)

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
        await self.server.drain(0)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds. The limit only ends a test that would never end."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(data_dir: Path, limits: Limits = Limits()) -> AsyncIterator[HttpBox]:  # noqa: B008 - frozen
    ca.prepare(data_dir, "127.0.0.1")
    keyring = FileKeyring.open(data_dir / "keys", protects=data_dir / "knowledge")
    keys = AppKeys(data_dir / "access" / "apps.json", keyring)
    generator, library, embedder, metrics = PieceGenerator(), MemoryLibrary(), WordTokenEmbedder(), Metrics()
    measured = MeasuredGenerator(generator, metrics)

    def salt(tenant: str) -> bytes:
        return tenant.encode()

    async def scrape(tenant: str) -> tuple[str, bytes]:
        engines = {"writer": EngineStats(running=2, pages_total=8, pages_used=2)}
        return CONTENT_TYPE, metrics.render(engines, searches=[SearchTally(tenant, tenant, 1, 0, 0)])

    shelves = OneLibrary(library)
    asker = Asker(shelves, LibraryRetriever(library), embedder, measured, PlainComposer(), salt, lambda tenant: False)
    services = HttpServices(
        chat=Chat(measured, PlainComposer(), salt),
        embedding=Embedding(embedder, "minilm", WordEncoders()),
        models=Models(_statuses, lambda: ["fast"]),
        mcp=McpServer(LibraryRetriever(library), asker, ca.host_names("127.0.0.1"), "1"),
        metrics=scrape,
    )
    groups = GroupBook(data_dir / "access" / "groups.json", keyring)
    gate = Gate(keys, Callers(groups), limits)
    server = HttpServer(routes(gate, services), gate, shape, services.mcp.running, *ca.server_files(data_dir))
    await server.start("127.0.0.1:0")
    box = HttpBox(data_dir, generator, library, embedder, keys, groups, server, gate, services.chat)
    box.token = box.key(*AppScope)
    try:
        yield box
    finally:
        await box.close()


def _statuses() -> list[ModelStatus]:
    made = datetime(2026, 11, 20, tzinfo=UTC)
    return [
        ModelStatus("minilm", ModelKind.EMBEDDING, ModelState.READY),
        ModelStatus("writer", ModelKind.CHAT, ModelState.STORED, create_time=made),
        ModelStatus("broken", ModelKind.CHAT, ModelState.REFUSED),
        ModelStatus("starter", ModelKind.POINTER, ModelState.READY),
        ModelStatus("bge", ModelKind.EMBEDDING, ModelState.STORED),
        ModelStatus("judge", ModelKind.RERANKER, ModelState.STORED),
        ModelStatus("style", ModelKind.ADAPTER, ModelState.STORED, base="writer"),
    ]
