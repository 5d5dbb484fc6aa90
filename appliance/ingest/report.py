"""The story of an ingestion as a file, in pieces: JSON, CSV (RFC 4180), or one HTML page that needs nothing else.

Names and details come from hostile files. In CSV every cell is quoted, and what a spreadsheet would take for a formula
begins with an apostrophe (OWASP, CSV injection); in HTML everything is escaped, and the page forbids itself scripts and
requests.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import Enum
from html import escape
from itertools import islice

from appliance.types import FileOutcome, Ingestion

COLUMNS = ("path", "state", "reason", "detail", "remedy", "format", "size_bytes", "sha256", "document", "time", "id")
ROWS = 500
"""Files in one piece."""

_FORMULA = re.compile(r"(^|[;|\t\r\n])(\s*[=+\-@＝＋－＠])")
"""Also as full-width characters, and behind what another country's spreadsheet takes for the end of a cell."""
_STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .5rem;"
    "border-bottom:1px solid #d0d7de}td{overflow-wrap:anywhere}.quarantined td,.left td{background:#fff4e5}"
    "dt{font-weight:600;float:left;clear:left;width:9rem}dd{margin-left:10rem}"
)


class ReportFormat(Enum):
    JSON = "json"
    CSV = "csv"
    HTML = "html"


def report(ingestion: Ingestion, files: Sequence[FileOutcome], form: ReportFormat) -> Iterator[bytes]:
    """UTF-8."""
    write = {ReportFormat.JSON: _json, ReportFormat.CSV: _csv, ReportFormat.HTML: _html}[form]
    return (piece.encode(errors="backslashreplace") for piece in write(ingestion, files))


def _json(ingestion: Ingestion, files: Sequence[FileOutcome]) -> Iterator[str]:
    yield f'{{"ingestion": {json.dumps(_told(ingestion), indent=2)},\n"files": ['
    separator = "\n"
    for some in _pieces(files):
        yield separator + ",\n".join(json.dumps(_row(file)) for file in some)
        separator = ",\n"
    yield "\n]}\n"


def _csv(ingestion: Ingestion, files: Sequence[FileOutcome]) -> Iterator[str]:
    yield _lines([COLUMNS])
    for some in _pieces(files):
        yield _lines([[_inert(str(value)) for value in _row(file).values()] for file in some])


def _html(ingestion: Ingestion, files: Sequence[FileOutcome]) -> Iterator[str]:
    title = f"Ingestion {ingestion.id}"
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    yield (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><dl>"
    )
    for name, value in _told(ingestion).items():
        told = ", ".join(f"{key} {one}" for key, one in value.items() if one) if isinstance(value, dict) else value
        yield f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(told))}</dd>"
    yield "</dl><table><thead><tr>"
    yield "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in COLUMNS) + "</tr></thead><tbody>\n"
    for some in _pieces(files):
        yield "".join(_html_row(file) for file in some)
    yield "</tbody></table></body></html>\n"


def _html_row(file: FileOutcome) -> str:
    cells = "".join(f"<td>{escape(str(value))}</td>" for value in _row(file).values())
    return f'<tr class="{file.state.value}">{cells}</tr>\n'


def _told(ingestion: Ingestion) -> dict[str, object]:
    origin = ingestion.provenance
    return {
        "name": ingestion.name,
        "state": ingestion.state.value,
        "problem": ingestion.problem,
        "collection": f"collections/{ingestion.collection}",
        "readers": sorted(ingestion.readers),
        "source": {
            "kind": origin.kind.value,
            "path": origin.path,
            "serial": origin.serial,
            "volume": origin.volume,
            "label": origin.label,
            "signer": origin.signer,
        },
        "operator": ingestion.operator,
        "approver": ingestion.approver,
        "create_time": _time(ingestion.create_time),
        "end_time": _time(ingestion.end_time),
        "size_bytes": ingestion.size_bytes,
        "counts": {state.value: count for state, count in ingestion.counts.items()},
        "by_format": dict(ingestion.by_format),
    }


def _row(file: FileOutcome) -> dict[str, str | int]:
    told = (file.path, file.state.value, file.reason, file.detail, file.remedy, file.format, file.size_bytes)
    return dict(zip(COLUMNS, (*told, file.sha256, file.document, _time(file.time), file.id), strict=True))


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _time(value: datetime | None) -> str:
    return value.isoformat(timespec="seconds") if value else ""


def _inert(cell: str) -> str:
    return _FORMULA.sub(r"\1'\2", f"'{cell}" if cell.startswith(("\t", "\r", "\n")) else cell)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue()


def _pieces(files: Sequence[FileOutcome]) -> Iterator[list[FileOutcome]]:
    left = iter(files)
    while some := list(islice(left, ROWS)):
        yield some
