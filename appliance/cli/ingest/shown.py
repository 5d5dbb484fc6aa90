"""How ingestions and files look on a terminal and as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from appliance.cli import output
from appliance.types import FileOutcome, FileState, Ingestion, IngestionState, Provenance, SourceKind

ALWAYS = (FileState.COMMITTED, FileState.DUPLICATE, FileState.QUARANTINED)
MAX_ROWS = 100
"""A stick may have a million files; a terminal shows the first, the report has all."""


def place(provenance: Provenance) -> str:
    """Where files come from, in words."""
    if provenance.kind is SourceKind.STICK:
        name = f"stick {provenance.label or provenance.volume or 'without a label'}"
        words = f"{name} (serial {provenance.serial})" if provenance.serial else name
    elif provenance.kind is SourceKind.IMAGE:
        words = f"image {provenance.path}" + (f" ({provenance.label})" if provenance.label else "")
    elif provenance.kind is SourceKind.UPLOAD:
        words = f"upload by {provenance.path}"
    else:
        words = f"{provenance.kind.value} {provenance.path}"
    return f"{words}, signed by {provenance.signer}" if provenance.signer else words


def show_preview(ingestion: Ingestion, files: Sequence[FileOutcome], next_line: str) -> None:
    """What is in a source, by format; what is known; what would be refused and why; and how to go on."""
    wanted = [file for file in files if file.state is FileState.FOUND]
    refused = [file for file in files if file.state is FileState.QUARANTINED]
    known = sum(file.state is FileState.DUPLICATE for file in files)
    output.show(f"Preview of {place(ingestion.provenance)}: nothing is taken in yet.", "bold")
    output.show_fields(
        [
            ("ingestion", ingestion.id),
            ("into", f"{ingestion.collection}, for {', '.join(sorted(ingestion.readers))}"),
            ("to take in", f"{counted(len(wanted))}, {output.bytes_text(sum(file.size_bytes for file in wanted))}"),
            ("known already", counted(known)),
            ("refused", counted(len(refused))),
        ]
    )
    if wanted:
        output.show()
        rows = ((name, str(count), output.bytes_text(size)) for name, count, size in by_format(wanted))
        output.show_table(("format", "#files", "#size"), rows)
    if refused:
        output.show("\nWould be refused", "bold")
        show_failed(refused)
    if ingestion.state is IngestionState.WAITING:
        output.show(f"\nTake it in: {next_line}", "bold")


def preview_document(ingestion: Ingestion, files: Sequence[FileOutcome], next_line: str) -> dict[str, Any]:
    """A preview for programs."""
    wanted = [file for file in files if file.state is FileState.FOUND]
    return {
        "ingestion": ingestion,
        "formats": [{"format": name, "files": count, "size_bytes": size} for name, count, size in by_format(wanted)],
        "duplicates": [file for file in files if file.state is FileState.DUPLICATE],
        "refused": [file for file in files if file.state is FileState.QUARANTINED],
        "next": next_line,
    }


def by_format(files: Iterable[FileOutcome]) -> list[tuple[str, int, int]]:
    """Name, files and bytes of each format, the most bytes first."""
    counts, sizes = Counter[str](), Counter[str]()
    for file in files:
        counts[file.format or "unknown"] += 1
        sizes[file.format or "unknown"] += file.size_bytes
    return [(name, counts[name], size) for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))]


def show_summary(ingestion: Ingestion, failed: Sequence[FileOutcome], report_line: str = "") -> None:
    """Counts by outcome, and each file that failed with its reason."""
    total = sum(ingestion.counts.values())
    kept = "" if ingestion.state is IngestionState.SUCCEEDED else " What was committed is kept."
    what = f"{counted(total)} of {place(ingestion.provenance)} for the collection {ingestion.collection}"
    output.show(f"{ingestion.state.value.capitalize()}: {what}.{kept}")
    states = [state for state in FileState if ingestion.counts.get(state, 0) or state in ALWAYS]
    output.show_fields((state.value, str(ingestion.counts.get(state, 0))) for state in states)
    if failed:
        output.show()
        show_failed(failed)
    if report_line:
        output.show(f"\nThe whole story: {report_line}")


def show_failed(files: Sequence[FileOutcome]) -> None:
    """Files with why they were not taken, and what to do about it."""
    rows = ((file.path, file.reason or file.state.value, f"{file.detail} {file.remedy}".strip()) for file in files)
    _show_some(("file", "reason", "why, and what to do"), list(rows))


def show_files(files: Sequence[FileOutcome]) -> None:
    rows = (
        (file.path, file.state.value, file.format, output.bytes_text(file.size_bytes), file.reason) for file in files
    )
    _show_some(("file", "state", "format", "#size", "reason"), list(rows))


def show_ingestions(found: Iterable[Ingestion]) -> None:
    rows = (
        (
            item.id,
            item.state.value,
            item.collection,
            place(item.provenance),
            str(sum(item.counts.values())),
            str(item.counts.get(FileState.COMMITTED, 0)),
            str(item.counts.get(FileState.QUARANTINED, 0)),
            item.operator,
            output.time_text(item.create_time),
        )
        for item in found
    )
    headings = ("ingestion", "state", "collection", "from", "#files", "#committed", "#refused", "by", "started")
    output.show_table(headings, rows)


def show_one(item: Ingestion) -> None:
    pairs = [
        ("ingestion", item.id),
        ("state", item.state.value),
        ("problem", item.problem),
        ("from", place(item.provenance)),
        ("into", f"{item.collection}, for {', '.join(sorted(item.readers))}"),
        ("started by", item.operator),
        ("approved by", item.approver),
        ("size", output.bytes_text(item.size_bytes)),
        *((state.value, str(item.counts[state])) for state in FileState if item.counts.get(state)),
        ("started", output.time_text(item.create_time)),
        ("ended", output.time_text(item.end_time)),
    ]
    output.show_fields(pair for pair in pairs if pair[1])


def counted(files: int) -> str:
    return f"{files} file{'s' * (files != 1)}"


def _show_some(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    output.show_table(headings, rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        output.show(f"… and {len(rows) - MAX_ROWS} more.")
