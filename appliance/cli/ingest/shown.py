"""How ingestions and files look on a terminal and as JSON."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from appliance.cli import output
from appliance.types import FileOutcome, FileState, Ingestion, IngestionState, Provenance, SourceKind

OTHERWISE = {
    FileState.DUPLICATE: "known already",
    FileState.UNPACKED: "unpacked",
    FileState.QUARANTINED: "refused",
    FileState.LEFT: "left",
}
"""What became of files that are not in the collection now through this ingestion, in words."""

MAX_LINES = 20
"""Of files that failed; of more than that each reason has a line."""

SHORT_DIGITS = 8
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


def every_file(ingestion: Ingestion) -> tuple[str, ...]:
    """The verb that tells of each file."""
    return "ingest", "report", ingestion.id, "--format", "csv"


def show_preview(ingestion: Ingestion, files: Sequence[FileOutcome], each_line: str) -> None:
    """What is in a source, by format; what is known; what would be refused and why."""
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
        show_failed(refused, each_line)
    if not wanted:
        output.show("\nThere is nothing to take in.")


def preview_document(ingestion: Ingestion, files: Sequence[FileOutcome], next_line: str) -> dict[str, Any]:
    """A preview for programs."""
    wanted = [file for file in files if file.state is FileState.FOUND]
    return {
        "ingestion": ingestion,
        "formats": [{"format": name, "files": count, "size_bytes": size} for name, count, size in by_format(wanted)],
        "duplicates": [file for file in files if file.state is FileState.DUPLICATE],
        "refused": [file for file in files if file.state is FileState.QUARANTINED],
        "next": next_line if wanted else "",
    }


def by_format(files: Iterable[FileOutcome]) -> list[tuple[str, int, int]]:
    """Name, files and bytes of each format, the most bytes first."""
    counts, sizes = Counter[str](), Counter[str]()
    for file in files:
        counts[file.format or "unknown"] += 1
        sizes[file.format or "unknown"] += file.size_bytes
    return [(name, counts[name], size) for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))]


def show_summary(
    ingestion: Ingestion, failed: Sequence[FileOutcome], report_line: str = "", each_line: str = ""
) -> None:
    """What happened, in one line, then the files that failed with their reasons."""
    output.show(headline(ingestion), "bold")
    output.show(f"From {place(ingestion.provenance)}, for {', '.join(sorted(ingestion.readers))}.")
    if failed:
        output.show()
        show_failed(failed, each_line)
    if report_line:
        output.show(f"\nThe whole story: {report_line}")


def headline(ingestion: Ingestion) -> str:
    """'1 of 2,817 files taken into handbook: 2,816 refused.'"""
    counts, total = ingestion.counts, sum(ingestion.counts.values())
    taken = f"{counts.get(FileState.COMMITTED, 0):,} of {counted(total)} taken into {ingestion.collection}"
    others = ", ".join(f"{counts[state]:,} {words}" for state, words in OTHERWISE.items() if counts.get(state))
    line = f"{taken}: {others}." if others else f"{taken}."
    if ingestion.state is IngestionState.SUCCEEDED:
        return line
    return f"{ingestion.state.value.capitalize()}: {line} What was taken is kept."


def show_failed(files: Sequence[FileOutcome], each_line: str = "") -> None:
    """Files with why they were not taken, and what to do about it; of many each reason, and what lists them all."""
    if len(files) > MAX_LINES:
        _show_reasons(files)
        if each_line:
            output.show(f"\nEach of them: {each_line}")
        return
    rows = ((file.path, _reason(file), f"{file.detail} {file.remedy}".strip()) for file in files)
    output.show_table(("file", "reason", "why, and what to do"), rows)


def _show_reasons(files: Sequence[FileOutcome]) -> None:
    counts, first = Counter(map(_reason, files)), dict[str, FileOutcome]()
    for file in files:
        first.setdefault(_reason(file), file)
    rows = (
        (reason, f"{count:,}", first[reason].path, f"{first[reason].detail} {first[reason].remedy}".strip())
        for reason, count in counts.most_common()
    )
    output.show_table(("reason", "#files", "such as", "why, and what to do"), rows)


def _reason(file: FileOutcome) -> str:
    return file.reason or file.state.value


def show_files(files: Sequence[FileOutcome]) -> None:
    rows = (
        (file.path, file.state.value, file.format, output.bytes_text(file.size_bytes), file.reason) for file in files
    )
    _show_some(("file", "state", "format", "#size", "reason"), list(rows))


def show_ingestions(found: Iterable[Ingestion]) -> None:
    rows = (
        (
            short(item.id),
            item.state.value,
            item.collection,
            str(sum(item.counts.values())),
            str(item.counts.get(FileState.COMMITTED, 0)),
            str(item.counts.get(FileState.QUARANTINED, 0)),
            output.time_text(item.create_time),
            place(item.provenance),
        )
        for item in found
    )
    output.show_table(("ingestion", "state", "into", "#files", "#taken", "#refused", "started", "from"), rows)


def short(ingestion: str) -> str:
    """As much of an ingestion's id as people need to name it."""
    return ingestion[:SHORT_DIGITS]


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
    return f"{files:,} file{'s' * (files != 1)}"


def _show_some(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    output.show_table(headings, rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        output.show(f"… and {len(rows) - MAX_ROWS} more.")
