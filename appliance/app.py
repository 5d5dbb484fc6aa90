"""The only place that puts the parts together: `build(config)` gives an `App` that starts and stops in order."""

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from appliance.config import Config
from appliance.errors import ApplianceError, EmbedderChanged, SandboxUnavailable, SelfTestFailed
from appliance.health import findings, host, metrics
from appliance.health.metrics import MeasuredGenerator, Metrics
from appliance.health.monitor import Monitor
from appliance.infer.encoders import EncoderOptions, Encoders
from appliance.infer.imported_embedder import ImportedEmbedder
from appliance.infer.onnx import MAX_TOKENS, OnnxEmbedder
from appliance.infer.protocol import SelfTest
from appliance.infer.quantizer import WorkerQuantizer
from appliance.infer.router import Admit, EngineOptions, Router
from appliance.infer.scheduler import output_rows
from appliance.ingest.caps import Caps
from appliance.ingest.clamav import ClamAv
from appliance.ingest.formats import FORMATS
from appliance.ingest.ocr_probe import ocr_fault
from appliance.ingest.service import Ingest
from appliance.ingest.sources import SourceBook, Sources, UsbDevices, Watcher
from appliance.jobs import JobRunner
from appliance.knowledge.answer.ask import Asker
from appliance.knowledge.answer.cache import AnswerCache
from appliance.knowledge.embedders import Background, Embedders
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.knowledge.quality.drift import SearchTallies, TalliedRetriever
from appliance.knowledge.search.retrieve import Retriever
from appliance.knowledge.transfer.jobs import Transfers
from appliance.knowledge.upkeep import Upkeep
from appliance.models import minilm, plan, starter
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
    EngineStats,
    Ingestion,
    IngestionState,
    MemoryPlan,
    ModelFile,
    ModelKind,
    ModelState,
    ModelStatus,
    Origin,
    Principal,
    Segment,
    Status,
    Walls,
)
from appliance.vault import cache_key
from appliance.vault.keyring import FileKeyring
from appliance.vault.tenants import FileTenantKeys

PARSERS = "appliance.ingest.extract"
RENEW_SECONDS, COMPACT_SECONDS, SAVE_KEYS_SECONDS, RETRY_SECONDS = 24 * 3600.0, 60.0, 60.0, 5.0
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
        with suppress(SandboxUnavailable):  # _watch_parts tells of it; ingest refuses by itself
            await self.extractor.start()
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
        """Turn what the parts say of themselves into findings."""
        while True:
            states = {f"models/{s.name}": s for s in map(self.encoders.told, self.router.statuses())}
            failed = {name: s.detail for name, s in states.items() if s.state is ModelState.FAILED}
            restarting = {name: s.detail for name, s in states.items() if s.state is ModelState.RESTARTING}
            refused = {f"models/{status.name}": status.detail for status in self.imports.statuses()}
            locked = {"sandbox": self.extractor.fault, "sandbox/volumes": self.volumes.fault}
            sandbox = {name: fault for name, fault in locked.items() if fault}
            damaged = {_place(name): why for name, why in self.libraries.damaged().items()}
            damaged |= self.ingest.damaged()
            waiting, stopped = _waiting(self.ingest.unended())
            self.monitor.set_of_tenants(findings.INGEST_WAITING, waiting)
            self.monitor.set_of_tenants(findings.INGEST_INTERRUPTED, stopped)
            scanner = {"clamd": self.ingest.scanner_fault} if self.ingest.scanner_fault else {}
            self.monitor.set(findings.SCANNER_UNAVAILABLE, scanner)
            self.monitor.set(findings.MODEL_FAILED, failed)
            self.monitor.set(findings.MODEL_RESTARTING, restarting)
            self.monitor.set(findings.MODEL_REFUSED, refused)
            demoted = {f"aliases/{name}": why for name, why in self.aliases.demoted().items()}
            self.monitor.set(findings.CANARY_DEMOTED, demoted)
            self.monitor.set(findings.ATTENTION_STOCK, _stock_attention(self.config, self.router.stats()))
            self.monitor.set(findings.KV_DISK_FAILING, _failing_caches(self.router.stats()))
            self.monitor.set(findings.SANDBOX_UNAVAILABLE, sandbox)
            self.monitor.set(findings.SANDBOX_WEAKENED, _missing_walls(self.extractor.walls))
            self.monitor.set_of_tenants(findings.STORE_DAMAGED, damaged)
            await asyncio.sleep(1.0)

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


def _stock_attention(config: Config, engines: Mapping[str, EngineStats]) -> dict[str, str]:
    """Why engines compute attention by ggml's own kernels, where nobody asked for these."""
    whys = {f"models/{name}": stats.attention.partition("stock: ")[2] for name, stats in engines.items()}
    return {} if config.model_attention == "stock" else {name: why for name, why in whys.items() if why}


def _failing_caches(engines: Mapping[str, EngineStats]) -> dict[str, str]:
    """Why engines do not keep idle prefixes on disk, where they are to."""
    return {f"models/{name}": stats.disk_fault for name, stats in engines.items() if stats.disk_fault}


def _missing_walls(walls: Walls | None) -> dict[str, str]:
    """What is not there of the walls that a box can do without."""
    return {f"sandbox/{wall.name}": wall.detail for wall in walls.layers if not wall.stands} if walls else {}


def _waiting(ingestions: Sequence[Ingestion]) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """By tenant and name: those that wait for an approval, and why others stopped."""
    places = {(one.tenant, one.name): one for one in ingestions}
    stopped = (IngestionState.INTERRUPTED, IngestionState.FAILED)
    return (
        {place: f"{one.operator} began it." for place, one in places.items() if one.state is IngestionState.WAITING},
        {place: one.problem for place, one in places.items() if one.state in stopped},
    )


def _place(name: str) -> tuple[str, str]:
    """Tenant and resource name of what `Libraries.damaged` calls "tenant/collection"."""
    tenant, _, collection = name.partition("/")
    return tenant, f"collections/{collection}"


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
    embedder = OnnxEmbedder(files.onnx, files.tokenizer, threads=_threads(config))
    store = ModelStore(
        data / "models",
        keyring,
        built_in=(starter.model_file(),),
        taken=lambda name: name == minilm.NAME or name in aliases,
    )
    encoders = Encoders(
        store,
        EncoderOptions(threads=_threads(config), queue=config.model_queue, idle_seconds=config.model_idle_seconds),
        partial(_free_bytes, config),
    )
    tenant_keys = FileTenantKeys(data / "keys" / "tenants", keyring)
    behind = Background(lambda: OnnxEmbedder(files.onnx, files.tokenizer, threads=_threads(config)))
    embedders = _embedders(store, encoders, embedder, behind)
    tallies, answers = SearchTallies(), AnswerCache(config.answer_cache_mib << 20)

    def forget(tenant: str, collection: str) -> None:
        tallies.forget(tenant, collection)
        answers.forget(tenant, collection)
        upkeep.forget(tenant, collection)

    libraries = Libraries(
        data / "knowledge", data / "keys", keyring, tenant_keys, embedders, _knowledge_bounds(config), forget
    )
    upkeep = Upkeep(libraries, embedders, jobs)
    sockets = tempfile.TemporaryDirectory(prefix="appliance-")  # a unix socket's path holds 107 bytes
    aliases = AliasBook(data / "models" / "aliases.json", keyring, store)
    caches = cache_key.load(data / "cache" / "key", keyring)
    salt = partial(cache_key.derive, caches, "tenant salt")
    composer = ScaffoldComposer(secret=cache_key.derive(caches, "marks of tool results"))
    router = Router(store, _engine_options(config, Path(sockets.name), caches), admission(config), aliases)
    measured = Metrics()
    generator = MeasuredGenerator(router, measured)
    extractor = LockedExtractor(config, PARSERS, _caps(config).settings(), more_cpu_seconds=_ocr_seconds(config))
    volumes, devices = LockedVolumes(config, "appliance.ingest.volume"), UsbDevices()
    book = SourceBook(SignedFile(data / "access" / "sources.json", keyring, b"sources 1"))
    sources = Sources(config, devices, volumes, book)
    scanner = ClamAv(config.clamav_socket) if config.clamav_socket else None
    ingest = Ingest(config, libraries, extractor, jobs, sources, keyring, tenant_keys, scanner, measured.ingested)
    tenant_keys.before_destroy(ingest.retire)
    watcher = Watcher(sources, devices, data / "ingest-watches", config.source_poll_seconds)
    imports = ImportFolder(data / "import", store, jobs, config.import_poll_seconds)
    requantizer = Requantizer(store, jobs, WorkerQuantizer(_threads(config)), data / "models" / "scratch")
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
            lambda caller: replace(_status(config, monitor, store, libraries, server, caller), walls=extractor.walls),
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


def _caps(config: Config) -> Caps:
    return Caps(
        pages=config.document_max_pages,
        members=config.archive_max_members,
        member_bytes=config.archive_max_mib << 20,
        ratio=config.archive_max_ratio,
        pixels=config.image_max_megapixels * 1_000_000,
        cells=config.sheet_max_cells,
        languages=config.ocr_languages,
        ocr_cpu_seconds=config.ocr_cpu_seconds,
    )


def _ocr_seconds(config: Config) -> dict[str, int]:
    """What files that may be recognised have beyond `parse_cpu_seconds`, by suffix."""
    return {suffix: config.ocr_cpu_seconds for suffix, form in FORMATS.items() if form.module in ("pdf", "image")}


def _knowledge_bounds(config: Config) -> Bounds:
    return Bounds(
        hot_bytes=config.knowledge_memory_mib << 20,
        cache_bytes=config.search_cache_mib << 20,
        seal_passages=config.seal_passages,
        seal_seconds=config.seal_seconds,
        background_bytes_per_second=config.compact_mib_per_second << 20,
        overlap_tokens=config.chunk_overlap_tokens,
    )


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


def _engine_options(config: Config, sockets: Path, caches: bytes) -> EngineOptions:
    test = starter.SELF_TEST
    prompt = tuple(Segment(Origin.SCAFFOLD if control else Origin.RETRIEVED, text) for text, control in test.prompt)
    return EngineOptions(
        socket_directory=sockets,
        context_tokens=config.model_context_tokens,
        sequences=config.model_sequences,
        batch_tokens=config.model_batch_tokens,
        queue=config.model_queue,
        threads=config.inference_threads,
        log_level=config.log_level,
        idle_seconds=config.model_idle_seconds,
        self_test=SelfTest(str(starter.path()), prompt, test.labels, test.expected),
        kv_type=config.model_kv_type,
        host_cache_bytes=config.kv_host_cache_mib << 20,
        disk_cache_bytes=config.kv_disk_cache_mib << 20,
        disk_cache_directory=config.data_dir / "cache" / "kv",
        disk_cache_key=cache_key.derive(caches, "prefixes on disk"),
        attention=config.model_attention,
        speculate_below_streams=config.model_speculate_below,
        draft_model=config.model_draft,
        prefill_beside_streams=config.model_prefill_beside_streams,
    )


def admission(config: Config) -> Admit:
    """The memory plan against what is available now and what loaded models were promised, whichever leaves less.

    A model that still loads has not taken its memory yet, and mapped weights count as available.
    """

    engine = plan.Engine(
        batch_tokens=config.model_batch_tokens,
        output_rows=output_rows(config.model_sequences, config.model_batch_tokens),
        kv_type=config.model_kv_type,
        host_cache_bytes=config.kv_host_cache_mib << 20,
    )

    def admit(
        file: ModelFile, context_tokens: int, loaded_bytes: int, freed_bytes: int = 0, draft: ModelFile | None = None
    ) -> MemoryPlan:
        now = host.sample(config.data_dir)
        return plan.admit(
            file,
            context_tokens,
            available_bytes=min(now.memory_available_bytes + freed_bytes, now.memory_total_bytes - loaded_bytes),
            total_bytes=now.memory_total_bytes,
            reserve_bytes=config.memory_reserve_mib << 20,
            engine=engine,
            draft=draft,
        )

    return admit


def _free_bytes(config: Config) -> int:
    return host.sample(config.data_dir).memory_available_bytes - (config.memory_reserve_mib << 20)


def _threads(config: Config) -> int:
    return config.inference_threads or max(1, len(os.sched_getaffinity(0)) - 1)


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
