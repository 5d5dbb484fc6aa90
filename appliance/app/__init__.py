"""The only place that puts the parts together: `build(config)` gives an `App` that starts and stops in order."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from appliance.access import ca
from appliance.access.apps import AppKeys
from appliance.access.callers import Callers
from appliance.access.groups import GroupBook
from appliance.access.signed import SignedFile
from appliance.api.access import AccessService
from appliance.api.chat import Chat
from appliance.api.embedding import Embedding
from appliance.api.http import Gate, Limits
from appliance.api.http_routes import HttpServices, routes
from appliance.api.http_server import HttpServer
from appliance.api.inference import InferenceService
from appliance.api.ingest import IngestService
from appliance.api.job import JobService
from appliance.api.knowledge import KnowledgeService
from appliance.api.mcp import McpServer
from appliance.api.model import ModelService
from appliance.api.openai.errors import shape
from appliance.api.openai.models import Models
from appliance.api.server import Server, Services
from appliance.api.telemetry import TelemetryService
from appliance.app import options, watch
from appliance.config import Config
from appliance.errors import ApplianceError, EmbedderChanged, SandboxUnavailable, SelfTestFailed
from appliance.health import findings, host, metrics
from appliance.health.metrics import MeasuredGenerator, Metrics
from appliance.health.monitor import Monitor
from appliance.infer.encoders import Encoders
from appliance.infer.imported_embedder import ImportedEmbedder
from appliance.infer.onnx import MAX_TOKENS, OnnxEmbedder
from appliance.infer.quantizer import WorkerQuantizer
from appliance.infer.router import Router
from appliance.ingest.clamav import ClamAv
from appliance.ingest.ocr_probe import ocr_fault
from appliance.ingest.service import Ingest
from appliance.ingest.sources import SourceBook, Sources, UsbDevices, Watcher
from appliance.jobs import JobRunner
from appliance.knowledge.answer.ask import Asker
from appliance.knowledge.answer.cache import AnswerCache
from appliance.knowledge.embedders import Background, Embedders
from appliance.knowledge.libraries import Libraries
from appliance.knowledge.quality.drift import SearchTallies, TalliedRetriever
from appliance.knowledge.search.retrieve import Retriever
from appliance.knowledge.transfer.jobs import Transfers
from appliance.knowledge.upkeep import Upkeep
from appliance.models import minilm, starter
from appliance.models.aliases import AliasBook
from appliance.models.imports import ImportFolder
from appliance.models.requantize import Requantizer
from appliance.models.store import ModelStore
from appliance.ports import Embedder
from appliance.sandbox.children import PROOF_SECONDS
from appliance.sandbox.extractor import LockedExtractor
from appliance.sandbox.volumes import LockedVolumes
from appliance.tenancy.compose import ScaffoldComposer
from appliance.types import (
    ModelKind,
    ModelState,
    ModelStatus,
    Principal,
    Status,
)
from appliance.vault import cache_key
from appliance.vault.keyring import FileKeyring
from appliance.vault.tenants import FileTenantKeys

PARSERS = "appliance.ingest.extract"
RENEW_SECONDS, COMPACT_SECONDS, SAVE_KEYS_SECONDS, RETRY_SECONDS, WATCH_SECONDS = 24 * 3600.0, 60.0, 60.0, 5.0, 1.0
STARTED_SECONDS = time.monotonic()
log = structlog.get_logger()


@dataclass
class App:
    """A whole box in one process. Belongs to the event loop that calls `start`."""

    config: Config
    jobs: JobRunner
    monitor: Monitor
    libraries: Libraries
    store: ModelStore
    router: Router
    encoders: Encoders
    extractor: LockedExtractor
    volumes: LockedVolumes
    ingest: Ingest
    watcher: Watcher
    imports: ImportFolder
    aliases: AliasBook
    keys: AppKeys
    server: Server
    http: HttpServer | None
    sockets: tempfile.TemporaryDirectory[str]
    renew: Callable[[], object]
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> str:
        """Listen, then bring up what takes longer; the address. Raises PortInUse."""
        await self._open_ingest()
        address = await self.server.start(self.config.listen)
        if self.http is not None:
            await self.http.start(self.config.http_listen)
        work: tuple[Callable[[], Awaitable[object]], ...] = (
            self._open_collections,
            self._prove_sandbox,
            self._prove_engine,
            self.imports.run,
            self._watch_parts,
            self.ingest.tend,
            partial(self.watcher.run, self.ingest.take),
            self._prove_sandbox_hourly,
            self._renew_daily,
            self._save_keys,
            self._compact,
            self.router.sweep,
            self.router.tend,
            self.encoders.tend,
            partial(self.monitor.watch_host, self.config.data_dir),
        )
        self._tasks += [asyncio.create_task(_persist(item)) for item in work]
        return address

    async def stop(self) -> None:
        """Refuse new calls, let running ones finish, end workers and children, close the files."""
        await asyncio.gather(
            *(server.drain(self.config.drain_seconds) for server in (self.server, self.http) if server)
        )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.ingest.stop()
        await self.jobs.stop()
        await self.router.close()
        await self.encoders.close()
        await self.extractor.close()
        await self.volumes.close()
        await asyncio.to_thread(self.libraries.close)
        await asyncio.to_thread(self.keys.save)
        self.sockets.cleanup()

    async def _open_ingest(self) -> None:
        """Before anybody asks for an ingestion: those of before the start are there, and go on."""
        try:
            await self.ingest.open()
        except ApplianceError as error:  # a full disk may still be read
            log.error("ingest.not_opened", reason=error.reason, error=str(error))

    async def _open_collections(self) -> None:
        """Open them all now, so that health tells of damage before a user meets it."""
        await asyncio.to_thread(self.libraries.open_all)

    async def _prove_sandbox(self) -> None:
        for locked in (self.extractor, self.volumes):
            with suppress(SandboxUnavailable):  # _watch_parts tells of it; ingest refuses by itself
                await locked.start()
        with suppress(SandboxUnavailable):
            if self.config.ocr_languages and (fault := await ocr_fault(self.extractor)):
                self.monitor.raise_(findings.OCR_UNAVAILABLE, "tesseract", fault)

    async def _prove_sandbox_hourly(self) -> None:
        while True:
            await asyncio.sleep(PROOF_SECONDS)
            for locked in (self.extractor, self.volumes):
                with suppress(SandboxUnavailable):  # told as above
                    await locked.prove()

    async def _prove_engine(self) -> None:
        """Run the power-on self-test once, so that a box that computes wrongly says so before the first question."""
        try:
            await self.router.load(starter.NAME)
        except SelfTestFailed as error:
            self.monitor.raise_(findings.SELF_TEST_FAILED, "engine", str(error))
        except ApplianceError as error:
            log.error("engine.unproven", reason=error.reason)
        else:
            await self.router.unload(starter.NAME)  # nothing else needs it

    async def _watch_parts(self) -> None:
        while True:
            watch.tell(self)
            await asyncio.sleep(WATCH_SECONDS)

    async def _compact(self) -> None:
        """Take deleted text off the disk, and put small segments together, without being asked."""
        while True:
            await asyncio.sleep(COMPACT_SECONDS)
            await asyncio.to_thread(self.libraries.seal_where_old)
            await asyncio.to_thread(self.libraries.compact_where_due)

    async def _renew_daily(self) -> None:
        """Renew certificates in a daemon that runs for months; the server shows the new one at the next connection."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await asyncio.to_thread(self.renew)

    async def _save_keys(self) -> None:
        """Times of last use are kept in memory by the calls, and written here."""
        while True:
            await asyncio.sleep(SAVE_KEYS_SECONDS)
            await asyncio.to_thread(self.keys.save)


async def _persist(work: Callable[[], Awaitable[object]]) -> None:
    """Run work to its end, and again after a fault: a box must not go on without its watchers in silence."""
    while True:
        try:
            await work()
        except Exception as error:
            log.exception("task.failed", task=getattr(work, "__name__", "watch_host"), error=type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def build(config: Config) -> App:
    """Every part, from the bottom up. Raises what makes a start impossible: KeyUnavailable, ModelMissing, …"""
    data = config.data_dir
    jobs, monitor = JobRunner(), Monitor()
    keyring = FileKeyring.open(data / "keys", protects=data / "knowledge")
    files = minilm.prepare(data / "models" / "embedder")
    embedder = OnnxEmbedder(files.onnx, files.tokenizer, threads=options.threads(config))
    store = ModelStore(
        data / "models",
        keyring,
        built_in=(starter.model_file(),),
        taken=lambda name: name == minilm.NAME or name in aliases,
    )
    encoders = Encoders(store, options.encoder_options(config), partial(options.free_bytes, config))
    tenant_keys = FileTenantKeys(data / "keys" / "tenants", keyring)
    behind = Background(lambda: OnnxEmbedder(files.onnx, files.tokenizer, threads=options.threads(config)))
    embedders = _embedders(store, encoders, embedder, behind)
    tallies, answers = SearchTallies(), AnswerCache(config.answer_cache_mib << 20)

    def forget(tenant: str, collection: str) -> None:
        tallies.forget(tenant, collection)
        answers.forget(tenant, collection)
        upkeep.forget(tenant, collection)

    libraries = Libraries(
        data / "knowledge", data / "keys", keyring, tenant_keys, embedders, options.knowledge_bounds(config), forget
    )
    upkeep = Upkeep(libraries, embedders, jobs)
    sockets = tempfile.TemporaryDirectory(prefix="appliance-")  # a unix socket's path holds 107 bytes
    aliases = AliasBook(data / "models" / "aliases.json", keyring, store)
    caches = cache_key.load(data / "cache" / "key", keyring)
    salt = partial(cache_key.derive, caches, "tenant salt")
    composer = ScaffoldComposer(secret=cache_key.derive(caches, "marks of tool results"))
    router = Router(
        store, options.engine_options(config, Path(sockets.name), caches), options.admission(config), aliases
    )
    measured = Metrics()
    generator = MeasuredGenerator(router, measured)
    extractor = LockedExtractor(
        config, PARSERS, options.caps(config).settings(), more_cpu_seconds=options.ocr_seconds(config)
    )
    volumes, devices = LockedVolumes(config, "appliance.ingest.volume"), UsbDevices()
    book = SourceBook(SignedFile(data / "access" / "sources.json", keyring, b"sources 1"))
    sources = Sources(config, devices, volumes, book)
    scanner = ClamAv(config.clamav_socket) if config.clamav_socket else None
    ingest = Ingest(config, libraries, extractor, jobs, sources, keyring, tenant_keys, scanner, measured.ingested)
    tenant_keys.before_destroy(ingest.retire)
    libraries.before_delete(ingest.before_delete)
    secret = cache_key.derive(caches, "names of what watches took")
    max_bytes = config.document_max_mib << 20
    watcher = Watcher(sources, devices, data / "ingest-watches", secret, config.source_poll_seconds, max_bytes)
    imports = ImportFolder(data / "import", store, jobs, config.import_poll_seconds)
    requantizer = Requantizer(store, jobs, WorkerQuantizer(options.threads(config)), data / "models" / "scratch")
    chat = Chat(generator, composer, salt)
    listen_host, http_host = (address.rpartition(":")[0] for address in (config.listen, config.http_listen))
    prepare = partial(ca.prepare, data, listen_host, http_host=http_host)
    retriever = TalliedRetriever(Retriever(libraries, encoders), tallies)
    asker = Asker(
        libraries, retriever, embedder, generator, composer, salt, config.quotes_only, cache=answers, tallies=tallies
    )
    embedding = Embedding(embedder, minilm.NAME, encoders)
    embedder_status = _embedder_status(files, embedder)
    keys = AppKeys(data / "access" / "apps.json", keyring)
    callers = Callers(GroupBook(data / "access" / "groups.json", keyring))
    if keyring.is_rotating:  # a rotation that a crash cut short
        keyring.rotate((tenant_keys.rewrap, partial(cache_key.rewrap, data / "cache" / "key", keyring), keys.rewrap))
    services = Services(
        access=AccessService(callers, keys),
        inference=InferenceService(callers, chat, router, embedding, encoders),
        knowledge=KnowledgeService(
            callers,
            libraries,
            retriever,
            asker,
            upkeep,
            Transfers(libraries, keyring, jobs, data, callers.groups.readers),
        ),
        ingest=IngestService(callers, ingest, sources, libraries, config.ingest_approval == "second"),
        job=JobService(callers, jobs),
        model=ModelService(router, store, imports, aliases, requantizer, embedder_status, encoders),
        telemetry=TelemetryService(
            callers,
            monitor,
            lambda caller: replace(
                _status(config, monitor, store, libraries, server, caller),
                walls=watch.walls(extractor.walls, volumes.walls),
            ),
            router.stats,
        ),
    )
    server = Server(services, prepare)
    http = _http(
        config,
        Gate(keys, callers, Limits(call_seconds=config.http_call_seconds)),
        HttpServices(
            chat=chat,
            embedding=embedding,
            models=Models(
                lambda: (embedder_status, *router.statuses()),
                lambda: (alias.name for alias in aliases.list()),
            ),
            mcp=McpServer(retriever, asker, ca.host_names(listen_host, http_host), version("appliance")),
            metrics=partial(_metrics, config, measured, router, tallies),
        ),
    )
    return App(
        config,
        jobs,
        monitor,
        libraries,
        store,
        router,
        encoders,
        extractor,
        volumes,
        ingest,
        watcher,
        imports,
        aliases,
        keys,
        server,
        http,
        sockets,
        renew=lambda: _renew(prepare, http),
    )


def _embedders(store: ModelStore, encoders: Encoders, built_in: Embedder, behind: Embedder) -> Embedders:
    """Embedders by model name. Imported ones run by the loop that is running now. behind: the built-in one again, for
    work in the background."""
    loop = asyncio.get_running_loop()

    def choose(name: str, identity: str, *, background: bool = False) -> Embedder:
        own = behind if background else built_in
        found = ImportedEmbedder(encoders, store.get(name), own, loop) if name else own
        if identity not in ("", found.identity):
            model = name or minilm.NAME
            raise EmbedderChanged(f"The vectors are of {model} {identity[:16]}; the box now has {found.identity[:16]}.")
        return found

    return choose


def _http(config: Config, gate: Gate, services: HttpServices) -> HttpServer | None:
    """The HTTP port, unless it is switched off."""
    if not config.http_listen:
        return None
    certificate, key = ca.server_files(config.data_dir)
    return HttpServer(routes(gate, services), gate, shape, services.mcp.running, certificate, key)


def _renew(prepare: Callable[[], object], http: HttpServer | None) -> None:
    prepare()
    if http is not None:
        http.renew()


async def _metrics(
    config: Config, measured: Metrics, router: Router, tallies: SearchTallies, tenant: str
) -> tuple[str, bytes]:
    engines, searches = router.stats(), [tally for tally in tallies.tallies() if tally.tenant == tenant]
    return metrics.CONTENT_TYPE, await asyncio.to_thread(
        lambda: measured.render(engines, host.sample(config.data_dir), searches)
    )


def _embedder_status(files: minilm.EmbedderFiles, embedder: OnnxEmbedder) -> ModelStatus:
    return ModelStatus(
        name=minilm.NAME,
        kind=ModelKind.EMBEDDING,
        state=ModelState.READY,
        architecture="bert",
        source=files.source,
        sha256=hashlib.sha256(files.onnx.read_bytes()).hexdigest(),
        size_bytes=files.onnx.stat().st_size,
        context_tokens=MAX_TOKENS,
    )


def _status(
    config: Config, monitor: Monitor, store: ModelStore, libraries: Libraries, server: Server, caller: Principal
) -> Status:
    now = host.sample(config.data_dir)
    collections, documents = libraries.counts(caller.tenant, caller.groups)
    return Status(
        version=version("appliance"),
        uptime_seconds=time.monotonic() - STARTED_SECONDS,
        data_directory=str(config.data_dir),
        listen_address=server.address,
        severity=monitor.report().severity,
        model_count=len(store.list()) + 1,  # and the embedder
        collection_count=collections,
        document_count=documents,
        memory_used_bytes=now.memory_used_bytes,
        memory_total_bytes=now.memory_total_bytes,
        disk_free_bytes=now.disk_free_bytes,
        principal=str(caller),
    )
