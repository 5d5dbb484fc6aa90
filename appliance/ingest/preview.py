"""What a source holds, before anything is taken: names, sizes, types, what will be refused, what is known already.

Nothing here opens a file but to hash it, and nothing of a file stays in the box.
"""

import asyncio
import os
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import TypeVar

from appliance.errors import DocumentRefused
from appliance.ingest.formats import format_of
from appliance.ingest.judge import Judge, left_unfinished, refused
from appliance.ingest.ledger import Item, Ledger
from appliance.ingest.memfd import new_memfd
from appliance.ingest.sources.found import Found, OpenSource, printable
from appliance.ports import Progress
from appliance.types import FileOutcome, FileState, Ingestion

GROUP = 200
"""Files whose hashes are written to the ledger at once."""

T = TypeVar("T")


async def preview(
    ledger: Ledger, source: OpenSource, judge: Judge, max_bytes: int, progress: Progress, *, hashes: bool
) -> None:
    """List the files in the ledger, and with `hashes` say which of them are known; goes on where it was stopped.

    Raises SourceGone, SandboxUnavailable, DiskFull, StoreDamaged, NotFound (the collection).
    """
    found = await source.files()
    if not ledger.plan.listed:
        listed = await asyncio.to_thread(lambda: list_files(ledger.ingestion, found, max_bytes))
        await to_its_end(asyncio.to_thread(partial(ledger.write, listed, listed=True, provenance=source.provenance)))
    if hashes:
        await _hash_all(ledger, {one.name: one for one in found}, source, judge, max_bytes, progress)


def list_files(ingestion: Ingestion, found: Iterable[Found], max_bytes: int) -> list[Item]:
    """The items of a ledger that has none yet."""
    return [_item(ingestion, number, one, max_bytes) for number, one in enumerate(found)]


def list_whole(ingestion: Ingestion, found: Sequence[Found], max_bytes: int) -> list[Item]:
    """As `list_files`, of a watch: as they are now these files are whole, and to be taken."""
    listed = zip(list_files(ingestion, found, max_bytes), found, strict=True)
    return [replace(item, seen=one.stamp, seen_sha256=one.sha256) for item, one in listed]


def new_outcome(ingestion: Ingestion, number: int, path: str, size_bytes: int = 0) -> FileOutcome:
    """Of a file that was found just now. path: printable."""
    return FileOutcome(
        path=path,
        state=FileState.FOUND,
        size_bytes=size_bytes,
        ingestion=ingestion.id,
        tenant=ingestion.tenant,
        id=f"{ingestion.id}-{number}",
    )


def _item(ingestion: Ingestion, number: int, found: Found, max_bytes: int) -> Item:
    outcome = new_outcome(ingestion, number, printable(found.name), found.size_bytes)
    return look_at(Item(number, found.name, outcome, signer=found.signer), found, max_bytes)


def look_at(item: Item, found: Found, max_bytes: int) -> Item:
    """With its format, or with why it will be refused, as far as name and size tell. It is open still."""
    try:
        if found.refusal:
            raise found.refusal
        form = format_of(PurePath(found.name).suffix.lower())
        if found.size_bytes > max_bytes:
            raise DocumentRefused("TOO_LARGE", f"It has more than {max_bytes >> 20} MiB (`document_max_mib`).")
    except DocumentRefused as refusal:
        return refused(item, refusal)
    return item.changed(state=FileState.FOUND, format=form.name)


def as_seen(item: Item, found: Found) -> bool:
    """Whether a file is still the one that a watch found whole; any is, where none did."""
    return item.seen in ("", found.stamp)


def wanted(item: Item, found: Found) -> Found:
    """What to copy: of a watch the very file that was whole, of an operator the one that is there."""
    return found if item.seen else replace(found, changed_ns=0)


async def _hash_all(
    ledger: Ledger,
    found: dict[str, Found],
    source: OpenSource,
    judge: Judge,
    max_bytes: int,
    progress: Progress,
) -> None:
    items = await asyncio.to_thread(ledger.items)
    first: dict[str, str] = {}
    group: list[Item] = []
    for done, item in enumerate(items):
        progress.update(done, len(items), item.outcome.path)
        if item.outcome.state is FileState.FOUND and not item.outcome.sha256 and item.name in found:
            item = await _hashed(item, found[item.name], source, max_bytes)
            if item.outcome.sha256:
                item = await asyncio.to_thread(judge.expect, item, first)
            group.append(item)
        if item.outcome.state is FileState.FOUND and item.outcome.sha256:
            first.setdefault(item.outcome.sha256, item.outcome.path)
        if len(group) == GROUP:
            await to_its_end(asyncio.to_thread(ledger.write, tuple(group)))
            group.clear()
    if group:
        await to_its_end(asyncio.to_thread(ledger.write, tuple(group)))
    progress.update(len(items), len(items))


async def _hashed(item: Item, found: Found, source: OpenSource, max_bytes: int) -> Item:
    if not as_seen(item, found):
        return left_unfinished(item)
    memfd = new_memfd()
    try:
        sha256, size = await source.copy(wanted(item, found), memfd, max_bytes)
    except DocumentRefused as refusal:
        return refused(item, refusal)
    finally:
        os.close(memfd)
    return item.changed(sha256=sha256, size_bytes=size)


async def to_its_end(work: Awaitable[T]) -> T:
    """Await `work`, however often cancelled, until it has ended: a thread cannot be stopped, half a commit not kept."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        task.exception()  # its own end is not news
        raise asyncio.CancelledError
    return task.result()
