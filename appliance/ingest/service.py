"""Ingestions: files of a source into a collection, previewed, approved, taken; what became of each; what was refused.

All that an ingestion is lies in its ledger (ledger.py), so it outlives the daemon; this class begins, resumes and ends
the jobs that work on one (preview.py, work.py). Every call is of a tenant: what is another's is not there.
"""

import asyncio
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import structlog

from appliance.config import Config
from appliance.errors import (
    AlreadyExists,
    ApplianceError,
    InvalidArgument,
    NotFound,
    NotKept,
    QueueFull,
    SecondPerson,
    WrongState,
)
from appliance.ingest import refused
from appliance.ingest.keys import IngestKeys
from appliance.ingest.ledger import Item, Ledger, Plan
from appliance.ingest.ledgers import Ledgers
from appliance.ingest.preview import list_whole, look_at, new_outcome, to_its_end
from appliance.ingest.quarantine import Quarantine
from appliance.ingest.report import ReportFormat, report
from appliance.ingest.runs import Runs, Sources
from appliance.ingest.sources.found import Found, printable
from appliance.ingest.uploads import Uploads, Wanted
from appliance.ingest.work import Measure, Tools
from appliance.ports import Extractor, Jobs, Keyring, Libraries, Scanner, TenantKeys
from appliance.types import (
    Document,
    FileOutcome,
    FileState,
    Ingestion,
    IngestionState,
    Principal,
    Provenance,
    Role,
    Source,
    SourceKind,
    Upload,
    Watch,
)

MAX_OPEN = 200
"""Ingestions of a tenant that have not ended."""

POLICY = "policy"
"""Who approves, and begins, where nobody has to."""

MAX_FILES = 1 << 31
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_STOPPED = frozenset({IngestionState.INTERRUPTED, IngestionState.FAILED})
log = structlog.get_logger()


class Ingest:
    """Belongs to one event loop; what is no coroutine may block on the disk where it does not say otherwise: call it in
    a thread, it is thread-safe. `name` is an ingestion's, as "ingestions/ID" or its id, or the first digits of that
    (prefix.py: InvalidArgument where several begin so); so is the ingestion in a file's id.
    """

    def __init__(
        self,
        config: Config,
        libraries: Libraries,
        extractor: Extractor,
        jobs: Jobs,
        sources: Sources,
        keyring: Keyring,
        tenant_keys: TenantKeys,
        scanner: Scanner | None = None,
        measure: Measure = lambda outcome, seconds: None,
    ) -> None:
        directory = config.data_dir / "ingest"
        keys = IngestKeys(directory, keyring, tenant_keys)
        self._config, self._libraries, self._sources = config, libraries, sources
        self._quarantine = Quarantine(directory, keys)
        self._ledgers = Ledgers(directory, keys, self._quarantine, config.ingestions_kept, config.ingestions_kept_days)
        self._uploads = Uploads(directory, keys, config.document_max_mib << 20)
        kept_bytes = config.quarantine_max_mib << 20
        shed = partial(refused.shed, self._ledgers, self._quarantine, max_bytes=kept_bytes)
        document_bytes, ratio = config.document_max_mib << 20, config.archive_max_ratio
        self._tools = Tools(extractor, scanner, self._quarantine, document_bytes, ratio, measure, shed)
        self._runs = Runs(self._ledgers, self._tools, jobs, libraries, sources)

    # --- the life of the daemon

    async def open(self) -> None:
        """Find what there is, and go on with what was being worked on. Raises DiskFull, StoreDamaged."""
        for tenant in await asyncio.to_thread(self._ledgers.open):
            await asyncio.to_thread(self._uploads.drop_idle, tenant)
        await self._runs.open()

    async def tend(self) -> None:
        """Until cancelled: go on with what was approved and then interrupted, once its source is back, and drop old
        previews that nobody approved."""
        await self._runs.tend()

    def stop(self) -> None:
        """The daemon ends: jobs that are cancelled from now on stop where they are, and the next start goes on."""
        self._runs.stop()

    def retire(self, tenant: str, epoch: int) -> None:
        """The tenant's key of that epoch is about to be destroyed; with the last, all that ingest has of the tenant.

        Blocks. Raises KeyUnavailable, DiskFull, StoreDamaged.
        """
        if self._ledgers.retire(tenant, epoch):
            self._uploads.forget(tenant)

    def before_delete(self, tenant: str, document: Document) -> None:
        """A document is about to be deleted from a library: what a crash or a full disk kept an ingestion from writing
        of it is written first, so that it does not make it again. Blocks.

        Raises DiskFull, StoreDamaged, KeyUnavailable.
        """
        with suppress(NotFound):  # no ingestion made it, or one that is forgotten
            self._ledger(tenant, str(document.metadata.get("ingestion", ""))).note_document(document)

    def damaged(self) -> Mapping[tuple[str, str], str]:
        """By tenant and name of the ingestions that cannot be read, why: the file is named. Does not block."""
        return self._ledgers.damaged()

    def unended(self) -> Sequence[Ingestion]:
        """Those of every tenant that have not ended, for health. Does not block."""
        return [one for one in (ledger.ingestion for ledger in self._ledgers.all()) if not one.state.ended]

    @property
    def scanner_fault(self) -> str:
        """Why nothing could be scanned when that was tried last; empty while all is well."""
        return self._runs.scanner_fault

    # --- ingestions

    async def start(
        self, caller: Principal, source: str, collection: str, readers: frozenset[str], approve: bool = False
    ) -> Ingestion:
        """Begin to look at a source: "sources/ID", or an absolute path of a folder, a file or a stick's image, in what
        the tenant may name of the box (option `ingest_roots`). `Ingestion.job` is the job of the preview and, once
        approved, of the rest; makes the collection where there is none. With `approve` it goes on after the preview,
        which then reads no file for its hash.

        Raises InvalidArgument, NotFound (of the source), SourceRefused, SourceGone, SecondPerson (`approve`, where the
        option `ingest_approval` asks for another person's word), QueueFull (too many that have not ended), DiskFull,
        KeyUnavailable.
        """
        if approve:
            self._require_second(caller.user, caller.user)
        self._require_room(caller.tenant)
        opened = await self._sources.open(caller.tenant, source)
        approver = caller.user if approve else ""
        made = _ingestion(caller.tenant, caller.user, approver, collection, readers, opened.provenance)

        async def create_and_begin() -> Ingestion:
            try:
                ledger = await asyncio.to_thread(self._create, made, _plan(caller, source))
            except BaseException:
                await opened.close()
                raise
            log.info("ingest.started", ingestion=made.id, tenant=made.tenant, operator=str(caller), approved=approve)
            return self._runs.begin(ledger, opened)

        return await to_its_end(create_and_begin())

    async def take(self, tenant: str, source: Source, watch: Watch, found: Sequence[Found]) -> None:
        """Begin what a watch asks for, of these files alone; when it returns they are in a ledger and count as taken.

        Raises QueueFull, DiskFull, KeyUnavailable.
        """
        self._require_room(tenant)
        approver = POLICY if watch.approve and self._config.ingest_approval != "second" else ""
        made = _ingestion(tenant, POLICY, approver, watch.collection, watch.readers, source.provenance)

        def create() -> Ledger:
            plan = Plan(source.name, listed=True, automatic=True, groups=watch.readers)
            return self._create(made, plan, list_whole(made, found, self._tools.max_bytes))

        ledger = await to_its_end(asyncio.to_thread(create))
        log.info("ingest.started", ingestion=made.id, tenant=tenant, operator=POLICY, approved=bool(approver))
        self._runs.begin(ledger)

    def get(self, tenant: str, name: str) -> Ingestion:
        """Does not block. Raises NotFound."""
        return self._ledger(tenant, name).ingestion

    def list(self, tenant: str) -> tuple[Ingestion, ...]:
        """Newest first. Does not block."""
        return tuple(ledger.ingestion for ledger in self._ledgers.of(tenant))

    def files(
        self, tenant: str, name: str, states: Collection[FileState] = (), after: str = "", limit: int = MAX_FILES
    ) -> tuple[FileOutcome, ...]:
        """How each file stands, in order, a container before its members; of these states only, none given: all.
        after: the id of a file of it, behind which they begin.

        Raises NotFound, StoreDamaged, KeyUnavailable.
        """
        number = int(after.rpartition("-")[2]) if after else -1
        ledger = self._ledger(tenant, name)
        held = self._quarantine.sizes(tenant, ledger.ingestion.id)
        return tuple(refused.told(item, held) for item in self._ledgers.page(ledger, number, limit, states))

    async def approve(self, caller: Principal, name: str) -> Ingestion:
        """Let one that waits go on; of one that goes on already it is no news. One that still scans goes on after that.

        Raises NotFound, SecondPerson, WrongState (it has ended, was interrupted, or failed), DiskFull.
        """
        ledger = self._ledger(caller.tenant, name)
        now = ledger.ingestion
        if now.state.ended or now.state in _STOPPED:
            raise WrongState(f"{now.name} is {now.state.value}: it cannot be approved.")
        if now.approver:
            return now
        self._require_second(now.operator, caller.user)
        state = IngestionState.RUNNING if now.state is IngestionState.WAITING else now.state

        async def write_and_begin() -> Ingestion:
            await asyncio.to_thread(partial(ledger.write, approver=caller.user, state=state))
            log.info("ingest.approved", ingestion=now.id, tenant=now.tenant, operator=str(caller))
            return self._runs.begin(ledger)

        return await to_its_end(write_and_begin())

    async def resume(self, caller: Principal, name: str) -> Ingestion:
        """Go on with one that was interrupted or failed, from where it stopped; of one that works it is no news.

        Raises NotFound, WrongState (it waits or has ended), SourceGone or SourceRefused where files are still to be
        copied from there, DiskFull.
        """
        ledger = self._ledger(caller.tenant, name)
        now = ledger.ingestion
        if now.state.ended or now.state is IngestionState.WAITING:
            raise WrongState(f"{now.name} is {now.state.value}: there is nothing to resume.")
        log.info("ingest.resumed", ingestion=now.id, tenant=now.tenant, operator=str(caller))
        return await self._runs.resume(ledger)

    async def cancel(self, caller: Principal, name: str) -> Ingestion:
        """End it: what is committed stays, the rest is LEFT, and copies in the box are destroyed; of one that was
        cancelled it is no news. Returns once it has ended.

        Raises NotFound, WrongState (it has succeeded), DiskFull.
        """
        ledger = self._ledger(caller.tenant, name)
        now = ledger.ingestion
        if now.state is IngestionState.SUCCEEDED:
            raise WrongState(f"{now.name} has succeeded already.")
        log.info("ingest.cancelled", ingestion=now.id, tenant=now.tenant, operator=str(caller))
        await self._runs.cancel(ledger)
        return ledger.ingestion

    # --- refused files

    def quarantined(self, tenant: str, after: str = "", limit: int = refused.MAX_LISTED) -> tuple[FileOutcome, ...]:
        """Files that were refused, of all ingestions, newest first. after: a file's id, behind which they begin.

        Raises StoreDamaged, KeyUnavailable.
        """
        return refused.newest_first(self._ledgers, self._quarantine, tenant, after, limit)

    async def release(
        self, caller: Principal, ids: Collection[str], readers: frozenset[str] | None = None
    ) -> Ingestion:
        """Send refused files on their way again, as a new ingestion: after a parser was mended, or for other readers
        (None: as before). The caller approves it, unless a second person must (then it waits). They must be of one
        ingestion, and their bytes still kept.

        Raises NotFound (of a file), InvalidArgument (`ids`), NotKept, Forbidden (other readers, of who neither began
        the old one nor was among its readers, nor administers), QueueFull, DiskFull, StoreDamaged.
        """
        self._require_room(caller.tenant)

        async def create_and_begin() -> Ingestion:
            ledger = await asyncio.to_thread(self._release, caller, ids, readers)
            log.info("ingest.released", ingestion=ledger.ingestion.id, files=sorted(ids), operator=str(caller))
            return self._runs.begin(ledger) if ledger.ingestion.approver else ledger.ingestion

        return await to_its_end(create_and_begin())

    async def purge(self, caller: Principal, ids: Collection[str] = (), *, all_: bool = False) -> int:
        """Destroy the kept bytes of refused files, by id or of all; how many had any. What became of them stays said.

        Raises NotFound (of a file), InvalidArgument (neither ids nor all), DiskFull, StoreDamaged.
        """
        if bool(ids) == all_:
            raise InvalidArgument.of("ids", "name the files, or all of them.")
        wanted = None if all_ else ids
        purge = partial(refused.purge, self._ledgers, self._quarantine, caller.tenant, wanted)
        purged = await to_its_end(asyncio.to_thread(purge))
        log.info("ingest.purged", tenant=caller.tenant, files=sorted(ids), all=all_, operator=str(caller))
        return purged

    def report(self, tenant: str, name: str, form: ReportFormat = ReportFormat.JSON) -> Iterator[bytes]:
        """The story of an ingestion as the pieces of a file, UTF-8. Iterate in a thread.

        Raises, before the first piece, as `files`.
        """
        return report(self.get(tenant, name), self.files(tenant, name), form)

    # --- uploads

    async def begin_upload(
        self, caller: Principal, path: str, collection: str, readers: frozenset[str], size_bytes: int = 0
    ) -> str:
        """An upload's id. path: the file's name, with folders if it has any, for people and its type. size_bytes: what
        it will have, 0: not known.

        Raises InvalidArgument, UploadTooLarge, QueueFull (too many are open), DiskFull, KeyUnavailable.
        """
        if not path.strip("/"):
            raise InvalidArgument.of("path", "must name the file.")

        def begin() -> str:
            self._collection(caller.tenant, collection)
            self._ledgers.prepare(caller.tenant)
            wanted = Wanted(caller.user, printable(path.strip("/")), collection, readers)
            return self._uploads.begin(caller.tenant, wanted, size_bytes)

        return await to_its_end(asyncio.to_thread(begin))

    async def append(self, caller: Principal, upload: str, offset: int, data: bytes) -> int:
        """How many bytes of the file are durable in the box now. What is there already is passed over.

        Raises NotFound, InvalidArgument (`offset`: past what is there), UploadTooLarge (it is dropped then), DiskFull.
        """
        return await to_its_end(asyncio.to_thread(self._uploads.append, caller, upload, offset, data))

    def upload_size(self, caller: Principal, upload: str) -> int:
        """How many bytes of it are durable. Raises NotFound, also of another user's."""
        return self._uploads.size(caller, upload)

    def uploads(self, tenant: str) -> tuple[Upload, ...]:
        """Those of every user that are open, the oldest first. Raises StoreDamaged."""
        return self._uploads.list(tenant)

    async def cancel_upload(self, caller: Principal, upload: str) -> None:
        """Destroy what came of a file, whoever of the tenant sends it; the first digits of its id will do (prefix.py).

        Raises NotFound, InvalidArgument (several begin so), StoreDamaged.
        """
        await to_its_end(asyncio.to_thread(self._uploads.cancel, caller.tenant, upload))
        log.info("ingest.upload_cancelled", upload=upload, tenant=caller.tenant, operator=str(caller))

    async def finish(self, caller: Principal, upload: str, sha256: str) -> Ingestion:
        """The file is whole: an ingestion of it, which its uploader approved, unless a second person must (then it
        waits). sha256: of all of it, 64 hex digits.

        Raises NotFound, InvalidArgument (`sha256`: the upload is not that file, and is dropped), QueueFull, DiskFull.
        """
        self._require_room(caller.tenant)
        if not _SHA256.fullmatch(sha256):
            raise InvalidArgument.of("sha256", "must have 64 hexadecimal digits.")

        async def create_and_begin() -> Ingestion:
            ledger = await asyncio.to_thread(self._finish, caller, upload, sha256)
            log.info("ingest.uploaded", ingestion=ledger.ingestion.id, tenant=caller.tenant, operator=str(caller))
            return self._runs.begin(ledger) if ledger.ingestion.approver else ledger.ingestion

        return await to_its_end(create_and_begin())

    # --- who may, and what there is

    def _ledger(self, tenant: str, name: str) -> Ledger:
        return self._ledgers.get(tenant, name.removeprefix("ingestions/"))

    def _require_second(self, operator: str, approver: str) -> None:
        if self._config.ingest_approval == "second" and operator == approver:
            raise SecondPerson("Who starts an ingestion may not approve it too.")

    def _own_approval(self, caller: Principal) -> str:
        """Who approves what needs no preview."""
        return "" if self._config.ingest_approval == "second" else caller.user

    def _require_room(self, tenant: str) -> None:
        if sum(not ledger.ingestion.state.ended for ledger in self._ledgers.of(tenant)) >= MAX_OPEN:
            raise QueueFull(f"{MAX_OPEN} ingestions have not ended; approve, resume or cancel some.", 60.0)

    # --- what blocks, in threads

    def _create(self, made: Ingestion, plan: Plan, items: Sequence[Item] = ()) -> Ledger:
        self._collection(made.tenant, made.collection)
        self._ledgers.prune(made.tenant)
        return self._ledgers.create(made, plan, items)

    def _collection(self, tenant: str, collection: str) -> None:
        """Make it where there is none, and with the first one the tenant's key."""
        with suppress(AlreadyExists):
            self._libraries.of(tenant).create(collection)

    def _release(self, caller: Principal, ids: Collection[str], readers: frozenset[str] | None) -> Ledger:
        files = refused.find(self._ledgers, caller.tenant, ids)
        if len({one.ledger.ingestion.id for one in files}) != 1:
            raise InvalidArgument.of("ids", "must be files of one ingestion.")
        old = files[0].ledger.ingestion
        held = self._quarantine.sizes(caller.tenant, old.id)
        for one in files:
            if one.item.number not in held:
                raise NotKept(f"The bytes of {one.item.outcome.id} ({one.item.outcome.path}) are not kept.")
        wanted = readers or old.readers
        refused.require_reader(caller, old, wanted)
        made = self._held_ingestion(caller, old.collection, wanted, old.provenance)

        def hold() -> Iterator[Item]:
            for number, one in enumerate(files):
                memfd = self._quarantine.open(caller.tenant, old.id, one.item.number)
                try:
                    yield self._hold(made, number, replace(one.item, within=one.within), memfd)
                finally:
                    os.close(memfd)

        ledger = self._create_held(caller, made, hold)
        with _begun_all_the_same(made):
            files[0].ledger.write(one.item.changed(released=True) for one in files)
        return ledger

    def _finish(self, caller: Principal, upload: str, sha256: str) -> Ledger:
        wanted, memfd = self._uploads.whole(caller, upload, sha256)
        origin = Provenance(SourceKind.UPLOAD, caller.user)
        made = self._held_ingestion(caller, wanted.collection, wanted.readers, origin)
        outcome = new_outcome(made, 0, wanted.path)
        file = Item(0, wanted.path, outcome).changed(sha256=sha256.lower())
        try:
            ledger = self._create_held(caller, made, lambda: [self._hold(made, 0, file, memfd)])
        finally:
            os.close(memfd)
        with _begun_all_the_same(made):
            self._uploads.drop(caller.tenant, upload)
        return ledger

    def _held_ingestion(
        self, caller: Principal, collection: str, readers: frozenset[str], origin: Provenance
    ) -> Ingestion:
        """A new one whose files are all held when it begins."""
        approver = self._own_approval(caller)
        made = _ingestion(caller.tenant, caller.user, approver, collection, readers, origin)
        return replace(made, state=IngestionState.RUNNING if approver else IngestionState.WAITING)

    def _create_held(self, caller: Principal, made: Ingestion, hold: Callable[[], Iterable[Item]]) -> Ledger:
        """Files are held before the ledger is there: a crash leaves copies that the next start destroys."""
        self._ledgers.prepare(made.tenant)
        try:
            items = list(hold())
            self._quarantine.settle(made.tenant, made.id)
            return self._create(made, replace(_plan(caller, ""), listed=True), items)
        except ApplianceError:
            self._ledgers.abandon(made.tenant, made.id)
            raise

    def _hold(self, made: Ingestion, number: int, file: Item, memfd: int) -> Item:
        """A file of an ingestion without a source."""
        old = file.outcome
        size_bytes = os.fstat(memfd).st_size
        outcome = new_outcome(made, number, old.path, size_bytes)
        item = Item(number, old.path, outcome, signer=file.signer, within=file.within)
        item = look_at(item, Found(old.path, size_bytes), self._tools.max_bytes)
        self._quarantine.hold(made.tenant, made.id, number, memfd)
        return item.changed(state=FileState.HELD, sha256=old.sha256, reason="", detail="", remedy="")


@contextmanager
def _begun_all_the_same(made: Ingestion) -> Iterator[None]:
    """What fails now is no reason not to work on an ingestion that is there."""
    try:
        yield
    except ApplianceError as error:
        log.warning("ingest.origin_not_told", ingestion=made.id, tenant=made.tenant, reason=error.reason)


def _plan(caller: Principal, source: str) -> Plan:
    return Plan(source, groups=caller.groups, administers=caller.role is Role.ADMIN)


def _ingestion(
    tenant: str, operator: str, approver: str, collection: str, readers: frozenset[str], origin: Provenance
) -> Ingestion:
    """A new one."""
    return Ingestion(
        id=secrets.token_hex(8),
        tenant=tenant,
        collection=collection,
        readers=readers,
        provenance=origin,
        operator=operator,
        approver=approver,
        state=IngestionState.SCANNING,
        create_time=datetime.now(UTC),
    )
