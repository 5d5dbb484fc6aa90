"""What becomes of a file whose bytes are known: is it here already, is it of others, was it deleted before?"""

from collections.abc import Container, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePath

from appliance.errors import DocumentRefused
from appliance.ingest import lineage
from appliance.ingest.formats import format_of
from appliance.ingest.ledger import Item, Ledger
from appliance.ingest.remedies import remedy_for
from appliance.ports import Library
from appliance.types import Document, Extracted, FileState, Ingestion, MetadataValue, NewDocument

PIPELINE = "ingest-3"
"""Part of a document's identity: a change here makes ingest read files again that it has read before."""

ATTACHMENTS = "attachments"
"""A document's metadata: how many files its own holds."""

STORED_FOR_OTHERS = (
    "It is stored already, for others than were named. Who may read that document, or an administrator, can delete it"
    " or change its readers."
)
DELETED_BEFORE = "It was taken in before and deleted since; what is watched does not bring it back by itself."
WRITTEN_TO = "It was written to after its watch had found it whole, so it was not taken."
ALSO_HERE = "The same file is here as "


class Judge:
    """For one ingestion. Blocking. taken: sha256 of the files that were committed to the collection, for one that a
    watch began; none, where an operator did."""

    def __init__(self, ledger: Ledger, library: Library, taken: Container[str] = ()) -> None:
        self._ledger, self._library, self._taken = ledger, library, taken

    def expect(self, item: Item, first: Mapping[str, str]) -> Item:
        """What a preview says of a hashed file; it is open still. first: by sha256, where in this load it is already.

        Raises NotFound, StoreDamaged.
        """
        if earlier := first.get(item.outcome.sha256):
            return item.changed(state=FileState.DUPLICATE, detail=f"{ALSO_HERE}{earlier}.")
        judged = self.known(item, is_read=True) or self._of_others(item)
        return judged or item

    def known(self, item: Item, *, is_read: bool = False) -> Item | None:
        """Its end, where its very bytes are in the library already; None where they are not.

        is_read: what lies in the file is at hand; without that, one that holds others must be read all the same, for
        these may not have come as far. Raises NotFound, StoreDamaged.
        """
        ingestion = self._ledger.ingestion
        found = self._library.find(ingestion.collection, item.outcome.sha256, PIPELINE)
        if found is None:  # only now: what is deleted is noted in the ledger first
            noted = self._ledger.item(item.number).outcome
            if noted.state is FileState.HELD and noted.document:  # committed and deleted, before a crash that hid it
                return item.changed(state=FileState.COMMITTED, document=noted.document) if is_read else None
            return self._deleted(item)
        if ATTACHMENTS in found.metadata and not is_read:
            return None
        if found.metadata.get("ingestion") == ingestion.name and found.title == item.outcome.path:
            return item.changed(state=FileState.COMMITTED, document=found.name)  # before a crash that hid it
        return self._duplicate(item, found)

    def document(self, item: Item, extracted: Extracted, container: str) -> tuple[Item, NewDocument | None]:
        """What to add for a file that is not known, and the item with what it replaces; None where it must not be.

        container: the path of the file that it is a member of. Raises NotFound, StoreDamaged.
        """
        ingestion, outcome = self._ledger.ingestion, item.outcome
        source = source_of(ingestion, item)
        older = self._library.find_file(ingestion.collection, source, outcome.path)
        if older and older.readers != ingestion.readers:
            return self._duplicate(item, older), None
        document = NewDocument(
            title=outcome.path,
            media_type=extracted.media_type,
            sha256=outcome.sha256,
            size_bytes=outcome.size_bytes,
            source=source,
            parser=extracted.parser,
            pipeline=PIPELINE,
            pages=extracted.pages,
            readers=ingestion.readers,
            blocks=extracted.blocks,
            metadata=lineage.to_metadata(lineage.of(ingestion, container, item.signer)) | _attachments(extracted),
            replaces=older.id if older else "",
        )
        return (replaced(item, older.sha256) if older else item), document

    def _of_others(self, item: Item) -> Item | None:
        """Where it would take the place of a document that is for others."""
        ingestion = self._ledger.ingestion
        older = self._library.find_file(ingestion.collection, source_of(ingestion, item), item.outcome.path)
        return self._duplicate(item, older) if older and older.readers != ingestion.readers else None

    def _deleted(self, item: Item) -> Item | None:
        if item.outcome.sha256 not in self._taken:
            return None
        ingestion = self._ledger.ingestion
        if self._library.find_file(ingestion.collection, source_of(ingestion, item), item.outcome.path):
            return None  # it was replaced, or another pipeline read it
        reason = "DELETED_BEFORE"
        return item.changed(state=FileState.DUPLICATE, reason=reason, detail=DELETED_BEFORE, remedy=remedy_for(reason))

    def _duplicate(self, item: Item, known: Document) -> Item:
        """A duplicate, unless it was to be for others than the stored document is: that must not go unsaid.

        Who holds a copy of a file learns no more of a document that he may neither read nor administer; and what is
        said here is read by others, too, so it names no reader.
        """
        plan = self._ledger.plan
        if plan.administers or known.readers & plan.groups:
            item = item.changed(document=known.name)
        if known.readers == self._ledger.ingestion.readers:
            return item.changed(state=FileState.DUPLICATE)
        return refused(item, DocumentRefused("READERS_DIFFER", STORED_FOR_OTHERS))


def _attachments(extracted: Extracted) -> dict[str, MetadataValue]:
    return {ATTACHMENTS: float(len(extracted.members))} if extracted.members else {}


def source_of(ingestion: Ingestion, item: Item) -> str:
    """What its document calls its source: one that changed takes the place of the document of that source."""
    return f"{ingestion.provenance.uri}/{item.outcome.path}"


def refused(item: Item, refusal: DocumentRefused) -> Item:
    """It is open still."""
    reason = refusal.file_reason
    return item.changed(
        state=FileState.QUARANTINED, reason=reason, detail=str(refusal), remedy=remedy_for(reason), format=_format(item)
    )


def left_unfinished(item: Item) -> Item:
    """What a watch saw whole, and that was written to since: the watch hands it on anew. It is open still."""
    reason = "WRITTEN_TO"
    return item.changed(state=FileState.LEFT, reason=reason, detail=WRITTEN_TO, remedy=remedy_for(reason))


def left_within(item: Item, outer: Item) -> Item:
    """What was still to be read in a container that is refused. It is open still."""
    reason = outer.outcome.reason
    why = f"It lies in {outer.outcome.path}, which was refused."
    return item.changed(state=FileState.LEFT, reason=reason, detail=why, remedy=remedy_for(reason))


def ended(item: Item) -> Item:
    """It has come to its end, now."""
    return item.changed(time=datetime.now(UTC))


def replaced(item: Item, sha256: str) -> Item:
    """It takes the place of a document of that file."""
    return replace(item, replaced=sha256)


def _format(item: Item) -> str:
    """What reads files of its name."""
    try:
        return format_of(PurePath(item.outcome.path).suffix.lower()).name
    except DocumentRefused:
        return ""
