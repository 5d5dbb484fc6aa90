"""A collection out of this box as one file (archive.py, content.py), and into a box from one."""

from collections.abc import Set
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import ArchiveRefused, InvalidArgument
from appliance.knowledge.library import Library
from appliance.knowledge.storage import durable
from appliance.knowledge.transfer.archive import ArchiveReader, ArchiveWriter
from appliance.knowledge.transfer.content import ContentReader, ContentWriter, Header
from appliance.ports import Keyring, Progress
from appliance.types import PassphraseCost


def export(
    library: Library,
    collection: str,
    path: Path,
    passphrase: str,
    keyring: Keyring,
    progress: Progress,
    cost: PassphraseCost = PassphraseCost(),  # noqa: B008  (frozen)
) -> None:
    """Write every document of this instant, whoever may read it, into a new file; whole under its name, or not there.

    progress: in documents; may raise, and then nothing stays. Raises NotFound, AlreadyExists, InvalidArgument,
    DocumentRefused (TOO_LARGE), DiskFull, StoreDamaged, Busy.
    """
    whole, documents = library.export(collection)
    total = whole.document_count
    progress.update(0, total)
    with durable.NewFile(path.parent) as file:
        archive = ArchiveWriter(file, keyring, passphrase, cost)
        content = ContentWriter(archive, Header(collection, total, whole.create_time, datetime.now(UTC)))
        for done, document in enumerate(documents, start=1):
            content.add(document)
            progress.update(done, total)
        content.finish()
        archive.finish()
        file.publish_new(path.name)


def import_(
    library: Library,
    collection: str,
    path: Path,
    passphrase: str,
    keyring: Keyring,
    groups: Set[str],
    progress: Progress,
) -> None:
    """A new collection of what a file holds, chunked and embedded as this box does; nobody sees it before it is whole.

    groups: of the tenant, "group:hr", …: a document whose readers name another is refused, as at ingest. progress: in
    documents; may raise, and then nothing stays. Raises NotFound (of the file), AlreadyExists, InvalidArgument,
    ArchiveRefused, PassphraseWrong, DocumentRefused, DiskFull, Busy.
    """
    with library.building(collection) as built, ArchiveReader(path, keyring, passphrase) as archive:
        content = ContentReader(archive)
        total = content.header.documents
        progress.update(0, total)
        added: set[str] = set()
        for done, document in enumerate(content.documents(), start=1):
            if unknown := sorted(one for one in document.readers - groups if one.startswith("group:")):
                problem = f"{unknown[0]!r} names no group of this tenant: `appliance access group set` makes one."
                raise InvalidArgument.of("readers", f"a document of {path}: {problem}")
            added.add(built.add(document).id)
            progress.update(done, total)
        archive.finish()
        if len(added) < total:
            raise ArchiveRefused(f"{path} holds a document twice.")
