"""Where a document came from, as metadata that it carries, and read back from there.

A document's own fields say the rest: the file's sha256, parser and pipeline; a passage knows its document.
"""

from collections.abc import Mapping
from dataclasses import fields

from appliance.types import Ingestion, Lineage, MetadataValue

MAX_CHARACTERS = 1000
"""Of a value; of a longer one the middle is left out."""

_NAMES = {
    "ingestion": "ingestion",
    "operator": "operator",
    "approver": "approver",
    "kind": "source_kind",
    "path": "source_path",
    "serial": "stick_serial",
    "volume": "stick_volume",
    "label": "stick_label",
    "container": "container",
    "signer": "signer",
}


def of(ingestion: Ingestion, container: str = "", signer: str = "") -> Lineage:
    """Of a file of an ingestion. container: the printable path of the archive or mail that it lay in."""
    origin = ingestion.provenance
    return Lineage(
        ingestion=ingestion.name,
        operator=ingestion.operator,
        approver=ingestion.approver,
        kind=origin.kind.value,
        path=origin.path,
        serial=origin.serial,
        volume=origin.volume,
        label=origin.label,
        container=container,
        signer=signer,
    )


def to_metadata(lineage: Lineage) -> dict[str, MetadataValue]:
    """What is not empty, by the names under which documents are filtered: `source_kind == "stick"`."""
    values = {_NAMES[field.name]: str(getattr(lineage, field.name)) for field in fields(Lineage)}
    return {name: _bounded(value) for name, value in values.items() if value}


def from_metadata(metadata: Mapping[str, MetadataValue]) -> Lineage | None:
    """None where no ingestion made the document."""
    if "ingestion" not in metadata:
        return None
    return Lineage(**{field.name: str(metadata.get(_NAMES[field.name], "")) for field in fields(Lineage)})


def _bounded(value: str) -> str:
    half = MAX_CHARACTERS // 2 - 1
    return value if len(value) <= MAX_CHARACTERS else f"{value[:half]}…{value[-half:]}"
