"""All ingestions of the box, by tenant: begun, found again after a restart, forgotten when they are old.

<directory>/<tenant>/key          see keys.py
                     taken        sealed: which files were committed by ingestions that are forgotten
                     <ingestion>/log, held/…
"""

import json
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import RLock

import structlog

from appliance.errors import ApplianceError, NotFound, StoreDamaged
from appliance.ingest import durable
from appliance.ingest.keys import IngestKeys
from appliance.ingest.ledger import Item, Ledger, Plan
from appliance.ingest.prefix import whole_id
from appliance.ingest.quarantine import HEADER_BYTES as HELD_HEADER_BYTES
from appliance.ingest.quarantine import Quarantine
from appliance.ingest.sealed_log import HEADER_BYTES, SealedLog
from appliance.ingest.taken import Taken, TakenIndex
from appliance.types import FileState, Ingestion

LOADED = 4
"""Ingestions that nothing works on whose files stay in memory after they were asked for."""

MAX_TAKEN = 1_000_000
_DIGEST_CHARACTERS = 64
log = structlog.get_logger()


class Ledgers:
    """Blocking; safe to use from many threads."""

    def __init__(self, directory: Path, keys: IngestKeys, quarantine: Quarantine, kept: int, kept_days: int) -> None:
        """kept, kept_days: of the ended ingestions of a tenant, how many at most and for how long."""
        self._directory, self._keys, self._quarantine = directory, keys, quarantine
        self._kept, self._kept_days = kept, timedelta(days=kept_days)
        self._lock = RLock()
        self._ledgers: dict[str, dict[str, Ledger]] = {}
        self._damaged: dict[tuple[str, str], str] = {}
        self._loaded: OrderedDict[str, Ledger] = OrderedDict()
        self._taking = RLock()  # before _lock, where both are held
        self._taken: OrderedDict[tuple[str, str], TakenIndex] = OrderedDict()

    def open(self) -> tuple[str, ...]:
        """Find what is there, and destroy copies that no ledger knows, and what writers that died left; the tenants of
        whom there is anything. A ledger that is damaged is passed over, see `damaged`. Raises DiskFull, StoreDamaged.
        """
        with durable.disk_errors(self._directory):
            durable.make_directory(self._directory)
            durable.sync_directory(self._directory.parent)  # who made it may have been killed before that
            tenants = [folder for folder in sorted(self._directory.iterdir()) if (folder / "key").exists()]
        for folder in tenants:
            for left in [*folder.glob(f"{durable.NEW}*"), *folder.glob(f"*/{durable.NEW}*")]:
                durable.destroy(left, HEADER_BYTES)
            for one in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "uploads"):
                try:
                    self._find(folder.name, one)
                except ApplianceError as error:
                    self.note_damaged(folder.name, one.name, error)
        return tuple(folder.name for folder in tenants)

    def create(self, ingestion: Ingestion, plan: Plan, items: Sequence[Item] = ()) -> Ledger:
        """With its first files: durable on return, all of it or nothing. Raises DiskFull, KeyUnavailable."""
        with self._lock:
            self._prepare(ingestion.tenant)
            folder = self._directory / ingestion.tenant / ingestion.id
            with durable.disk_errors(folder):
                durable.make_directory(folder)
            made = Ledger.create(folder, self._keys, ingestion, plan, items)
            self._ledgers.setdefault(ingestion.tenant, {})[ingestion.id] = made
            return made

    def abandon(self, tenant: str, ingestion: str) -> None:
        """Destroy what is held for one that was not created. Raises StoreDamaged."""
        self._drop(self._directory / tenant / ingestion, tenant)

    def prepare(self, tenant: str) -> None:
        """Have the tenant's key and folder. Raises DiskFull, KeyUnavailable."""
        with self._lock:
            self._prepare(tenant)

    def get(self, tenant: str, ingestion: str) -> Ledger:
        """By id, or by what one id alone begins with. Raises NotFound, InvalidArgument (several begin so)."""
        with self._lock:
            ledgers = self._ledgers.get(tenant, {})
            found = ledgers.get(whole_id(ingestion, ledgers, "ingestions"))
        if found is None:
            raise NotFound(f"There is no ingestion ingestions/{ingestion}.")
        return found

    def of(self, tenant: str) -> Sequence[Ledger]:
        """Newest first."""
        with self._lock:
            found = list(self._ledgers.get(tenant, {}).values())
        return sorted(found, key=lambda one: one.ingestion.create_time, reverse=True)

    def all(self) -> Sequence[Ledger]:
        """Of every tenant."""
        with self._lock:
            return [one for ledgers in self._ledgers.values() for one in ledgers.values()]

    def items(self, ledger: Ledger) -> Sequence[Item]:
        """Its files; where nothing works on it they stay in memory for a while. Raises StoreDamaged, KeyUnavailable."""
        found = ledger.items()
        self._was_asked(ledger)
        return found

    def page(self, ledger: Ledger, after: int, limit: int, states: Collection[FileState] = ()) -> list[Item]:
        """As `Ledger.page`, and what is asked of it next comes from memory."""
        found = ledger.page(after, limit, states)
        self._was_asked(ledger)
        return found

    def damaged(self) -> Mapping[tuple[str, str], str]:
        """By tenant and name of the ingestions that cannot be read, what is wrong: the file is named."""
        with self._lock:
            return dict(self._damaged)

    def note_damaged(self, tenant: str, ingestion: str, error: ApplianceError) -> None:
        """Have one that cannot be read be told by `damaged`."""
        log.error("ingest.ledger_unreadable", tenant=tenant, ingestion=ingestion, reason=error.reason)
        with self._lock:
            self._damaged[tenant, f"ingestions/{ingestion}"] = str(error)

    def sweep(self, ledger: Ledger) -> None:
        """Destroy copies that an unfinished step left; nothing works on it meanwhile. Raises StoreDamaged."""
        tenant, ingestion = ledger.ingestion.tenant, ledger.ingestion.id
        if held := self._quarantine.sizes(tenant, ingestion):
            wanted = {item.number for item in ledger.items() if keeps_bytes(item)}
            self._quarantine.destroy(tenant, ingestion, held.keys() - wanted)

    def prune(self, tenant: str) -> None:
        """Forget the ended ones that are too many or too old, but for those that cannot be read, see `damaged`; whoever
        asks for others does not wait for it. Raises DiskFull, StoreDamaged.
        """
        with self._taking:
            ended = [one for one in self.of(tenant) if one.ingestion.state.ended]
            oldest = datetime.now(UTC) - self._kept_days
            going = [
                one
                for place, one in enumerate(ended)
                if place >= self._kept or (one.ingestion.end_time or oldest) < oldest
            ]
            if not going:
                return
            for one in self._remember(tenant, going):
                with self._lock:
                    self._loaded.pop(one.ingestion.id, None)
                    del self._ledgers[tenant][one.ingestion.id]
                self._drop(one.folder, tenant)
                self._forget_taken(tenant, one.ingestion)

    def taken(self, tenant: str, collection: str) -> Taken:
        """What was committed to a collection and not replaced since. Raises StoreDamaged, KeyUnavailable."""
        with self._taking:
            index = self._taken_index(tenant, collection)
            unended = list[Sequence[Item]]()
            for one in reversed(self.of(tenant)):
                now = one.ingestion
                if now.collection != collection or now.id in index.ingestions:
                    continue
                if now.state.ended:
                    index.count(now.id, self._committed(one))
                else:
                    unended.append(self._committed(one))
            return index.beside(unended)

    def _taken_index(self, tenant: str, collection: str) -> TakenIndex:
        """Those that were asked for last stay in memory, of so many digests in all."""
        key = tenant, collection
        if key not in self._taken:
            made = TakenIndex()
            made.remember(self._remembered(tenant).get(collection, ()))
            self._taken[key] = made
        self._taken.move_to_end(key)
        while len(self._taken) > 1 and sum(len(one.digests) for one in self._taken.values()) > MAX_TAKEN:
            self._taken.popitem(last=False)
        return self._taken[key]

    def _committed(self, ledger: Ledger) -> Sequence[Item]:
        """Files of one, read only where it has committed any; they do not stay in memory for it."""
        if not ledger.ingestion.counts.get(FileState.COMMITTED):
            return ()
        with self._lock:
            is_wanted = ledger.ingestion.id in self._loaded
        items = ledger.items()
        if not is_wanted:
            ledger.unload()
        return items

    def retire(self, tenant: str, epoch: int) -> bool:
        """The tenant's key of that epoch is about to be destroyed; if it is the last, all that ingest has of the
        tenant goes with it: whether it did. Raises KeyUnavailable, DiskFull, StoreDamaged.
        """
        with self._taking, self._lock:
            is_last = not self._keys.retire(tenant, epoch)
            if is_last:
                self._ledgers.pop(tenant, None)
                for key in [key for key in self._taken if key[0] == tenant]:
                    del self._taken[key]
                self._damaged = {place: why for place, why in self._damaged.items() if place[0] != tenant}
                shutil.rmtree(self._directory / tenant, ignore_errors=True)
            return is_last

    def _forget_taken(self, tenant: str, going: Ingestion) -> None:
        """An index goes on without one that it counts; of one that it does not it has to be read anew."""
        index = self._taken.get((tenant, going.collection))
        if index and going.id in index.ingestions:
            index.ingestions.discard(going.id)
        elif index:
            del self._taken[tenant, going.collection]

    def _was_asked(self, ledger: Ledger) -> None:
        with self._lock:
            self._loaded[ledger.ingestion.id] = ledger
            self._loaded.move_to_end(ledger.ingestion.id)
            if len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)[1].unload()

    def _prepare(self, tenant: str) -> None:
        if self._keys.prepare(tenant):  # what lies there was of a key that is no more
            folder = self._directory / tenant
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            (folder / "taken").unlink(missing_ok=True)

    def _find(self, tenant: str, folder: Path) -> None:
        if not (folder / "log").exists():  # it was being made, or dropped
            shutil.rmtree(folder, ignore_errors=True)
            return
        ledger = Ledger.open(folder, self._keys, tenant)
        self.sweep(ledger)
        ledger.unload()
        self._ledgers.setdefault(tenant, {})[folder.name] = ledger

    def _drop(self, folder: Path, tenant: str) -> None:
        """Keys first: a crash leaves a folder that the next start removes."""
        held = self._quarantine.sizes(tenant, folder.name)
        self._quarantine.destroy(tenant, folder.name, held)
        durable.destroy(folder / "log", max(HEADER_BYTES, HELD_HEADER_BYTES))
        shutil.rmtree(folder, ignore_errors=True)

    def _remember(self, tenant: str, going: Sequence[Ledger]) -> Sequence[Ledger]:
        """Which files were taken outlives the ingestions that took them: those of which it does now."""
        remembered = {collection: list(digests) for collection, digests in self._remembered(tenant).items()}
        whole: list[Ledger] = []
        for ledger in reversed(going):
            collection = ledger.ingestion.collection
            try:
                items = ledger.items()
            except StoreDamaged as error:
                self.note_damaged(tenant, ledger.ingestion.id, error)
                continue
            remembered[collection] = list(_taken(remembered.get(collection, ()), [items]))[-MAX_TAKEN:]
            whole.append(ledger)
        records = (json.dumps([name, "".join(digests)]).encode() for name, digests in remembered.items())
        SealedLog.create(self._directory / tenant / "taken", self._keys, tenant, _TAKEN, *records)
        return whole

    def _remembered(self, tenant: str) -> dict[str, Sequence[str]]:
        path = self._directory / tenant / "taken"
        if not path.exists():
            return {}
        found: dict[str, Sequence[str]] = {}
        for record in SealedLog.open(path, self._keys, tenant, _TAKEN).records():
            name, digests = json.loads(record)
            step = _DIGEST_CHARACTERS
            found[name] = [digests[place : place + step] for place in range(0, len(digests), step)]
        return found


_TAKEN = b"taken files\x00"


def keeps_bytes(item: Item) -> bool:
    """Whether a ledger that holds this item may have the file's bytes in the quarantine."""
    return item.outcome.state in (FileState.HELD, FileState.QUARANTINED)


def _taken(before: Iterable[str], ingestions: Iterable[Iterable[Item]]) -> Iterator[str]:
    """The digests after some ingestions, oldest first, in the order in which they came."""
    taken = dict.fromkeys(before)
    for items in ingestions:
        for item in items:
            if item.outcome.state is FileState.COMMITTED:
                taken.pop(item.replaced, None)
                taken[item.outcome.sha256] = None
    return iter(taken)
