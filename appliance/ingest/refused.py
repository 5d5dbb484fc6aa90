"""Refused files of a tenant, over all its ingestions: listed, found by id, their bytes let go."""

from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import dropwhile, islice

from appliance.errors import Forbidden, NotFound, StoreDamaged
from appliance.ingest.ledger import Item, Ledger
from appliance.ingest.ledgers import Ledgers
from appliance.ingest.quarantine import Quarantine
from appliance.types import FileOutcome, FileState, Ingestion, Principal, Role

MAX_LISTED = 10_000
LET_GO = "Its bytes are not kept any more."
KEPT_AGAIN = "Its bytes are kept where it was refused again."


@dataclass(frozen=True, slots=True)
class Refused:
    """within: the path of the container that it lay in, '' for none."""

    ledger: Ledger
    item: Item
    within: str = ""


def newest_first(
    ledgers: Ledgers, quarantine: Quarantine, tenant: str, after: str = "", limit: int = MAX_LISTED
) -> tuple[FileOutcome, ...]:
    """From behind the file of id `after`, '': from the newest on. Raises StoreDamaged, KeyUnavailable."""
    last, _, number = after.rpartition("-")
    left = dropwhile(lambda ledger: last not in ("", ledger.ingestion.id), ledgers.of(tenant))
    files = (
        told(one.item, held)
        for ledger in left
        for held in [quarantine.sizes(tenant, ledger.ingestion.id)]
        for one in reversed(_of(ledgers, ledger))
        if ledger.ingestion.id != last or one.item.number < int(number)
    )
    return tuple(islice(files, limit))


def told(item: Item, held: Container[int]) -> FileOutcome:
    """With whether its bytes are kept. held: numbers of the files of its ingestion whose bytes are."""
    kept = item.outcome.state is FileState.QUARANTINED and item.number in held
    return replace(item.outcome, kept=kept)


def find(ledgers: Ledgers, tenant: str, ids: Collection[str]) -> list[Refused]:
    """In the order of their ids, whose ingestion's part may be a unique beginning of it. Raises NotFound naming the
    first that is no refused file's, InvalidArgument.
    """
    known: dict[str, dict[str, Refused]] = {}
    found: dict[str, Refused] = {}
    for one in ids:
        ingestion, _, number = one.rpartition("-")
        if ingestion not in known:
            known[ingestion] = {str(file.item.number): file for file in _of_named(ledgers, tenant, ingestion)}
        if number not in known[ingestion]:
            raise NotFound(f"There is no refused file {one!r:.80}.")
        file = known[ingestion][number]
        found[file.item.outcome.id] = file
    return list(found.values())


def require_reader(caller: Principal, old: Ingestion, readers: frozenset[str]) -> None:
    """Raises Forbidden: refused files of others may be tried again, but not be made one's own to read."""
    own = caller.role is Role.ADMIN or caller.user == old.operator or caller.groups & old.readers
    if readers != old.readers and not own:
        raise Forbidden("They were for others: for other readers an administrator, or one of these, may release them.")


def purge(ledgers: Ledgers, quarantine: Quarantine, tenant: str, ids: Collection[str] | None) -> int:
    """Destroy what is kept of these, None: of all; how many had any. Raises NotFound, DiskFull, StoreDamaged."""
    if ids is None:
        files = [one for ledger in ledgers.of(tenant) for one in _of(ledgers, ledger)]
    else:
        files = find(ledgers, tenant, ids)
    return sum(_let_go(quarantine, tenant, ledger, items) for ledger, items in _by_ledger(files))


def shed(ledgers: Ledgers, quarantine: Quarantine, tenant: str, max_bytes: int) -> int:
    """Let bytes go that a newer refusal of the same file has as well, then the oldest while more is kept of a tenant's
    refused files; how many. What a ledger holds that cannot be read stays. Raises DiskFull, StoreDamaged.
    """
    kept: list[tuple[Refused, int]] = []
    for ledger in reversed(ledgers.of(tenant)):
        sizes = quarantine.sizes(tenant, ledger.ingestion.id)
        try:
            kept += [(one, sizes[one.item.number]) for one in _of(ledgers, ledger) if one.item.number in sizes]
        except StoreDamaged as error:
            ledgers.note_damaged(tenant, ledger.ingestion.id, error)
    newest = {_same(one): one for one, _ in kept}
    again = [one for one, _ in kept if newest[_same(one)] is not one]
    once = [(one, size) for one, size in kept if newest[_same(one)] is one]
    surplus = sum(size for _, size in once) - max_bytes
    going: list[Refused] = []
    for one, size in once:
        if surplus <= 0:
            break
        surplus -= size
        going.append(one)
    return sum(
        _let_go(quarantine, tenant, ledger, items, why)
        for files, why in ((again, KEPT_AGAIN), (going, LET_GO))
        for ledger, items in _by_ledger(files)
    )


def _same(one: Refused) -> tuple[object, ...]:
    """What the same bytes of the same place, refused again, have in common: to release either does the same."""
    of, outcome = one.ledger.ingestion, one.item.outcome
    return of.collection, of.readers, of.provenance, outcome.path, outcome.sha256


def _let_go(quarantine: Quarantine, tenant: str, ledger: Ledger, items: Sequence[Item], why: str = LET_GO) -> int:
    held = quarantine.sizes(tenant, ledger.ingestion.id)
    going = [item for item in items if item.number in held]
    if going:
        ledger.write(item.changed(detail=f"{item.outcome.detail} {why}".strip()) for item in going)
        quarantine.destroy(tenant, ledger.ingestion.id, [item.number for item in going])
        quarantine.settle(tenant, ledger.ingestion.id)
    return len(going)


def _of(ledgers: Ledgers, ledger: Ledger) -> list[Refused]:
    if not ledger.ingestion.counts.get(FileState.QUARANTINED):
        return []
    items = {item.number: item for item in ledgers.items(ledger)}
    return [
        Refused(ledger, one, items[one.container].outcome.path if one.container >= 0 else one.within)
        for one in items.values()
        if one.outcome.state is FileState.QUARANTINED and not one.is_open
    ]


def _by_ledger(files: Collection[Refused]) -> Iterator[tuple[Ledger, list[Item]]]:
    by_id: dict[str, tuple[Ledger, list[Item]]] = {}
    for one in files:
        by_id.setdefault(one.ledger.ingestion.id, (one.ledger, []))[1].append(one.item)
    return iter(by_id.values())


def _of_named(ledgers: Ledgers, tenant: str, ingestion: str) -> list[Refused]:
    with suppress(NotFound):
        return _of(ledgers, ledgers.get(tenant, ingestion))
    return []
