"""How answers look: JSON documents, tables, errors. Text that came from documents or models is never trusted.

Nothing is coloured where stdout is no terminal.
"""

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.errors import ApplianceError, Busy, DocumentRefused
from appliance.types import Span

JOINERS = "\N{SOFT HYPHEN}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
PIPE_COLUMNS = 10_000  # no line is folded where no one sees a screen
NAME_COLUMNS = 20


def printable(text: str, newlines: bool = False) -> str:
    """Text without power over the terminal: control, bidirectional and invisible characters become escapes."""
    kept = JOINERS + ("\n\t" if newlines else "")
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in UNPRINTABLE and character not in kept
        else character
        for character in text
    )


def plain(value: Any) -> Any:
    """A value as JSON has it: enums by their lower-case name, times in ISO 8601, a Span as its three numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        name = getattr(value, "name", None)
        found: dict[str, Any] = {"name": name} if isinstance(name, str) else {}
        for item in fields(value):
            part = getattr(value, item.name)
            found |= plain(part) if isinstance(part, Span) else {item.name: plain(part)}
        return found
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(plain(part) for part in value)
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def show_json(value: Any, file: TextIO | None = None, indent: int | None = 2) -> None:
    """One document, in ASCII: a terminal cannot be led astray by it. `indent` None: one line."""
    print(json.dumps(plain(value), indent=indent), file=file or sys.stdout, flush=True)


def show_text(text: str) -> None:
    """A piece of a stream, at once."""
    sys.stdout.write(printable(text, newlines=True))
    sys.stdout.flush()


def console(stderr: bool = False) -> Console:
    """Where lines go. Strings are printed as they are: no markup, no highlighting."""
    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else PIPE_COLUMNS
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def show(text: str = "", style: str = "") -> None:
    console().print(Text(printable(text, newlines=True), style=style))


def show_marked(text: str, highlights: Iterable[tuple[int, int]]) -> None:
    """Text with [start, end) ranges of it in bold."""
    shown = Text()
    at = 0
    for start, end in highlights:
        shown.append(printable(text[at:start], newlines=True))
        shown.append(printable(text[start:end], newlines=True), "bold")
        at = end
    shown.append(printable(text[at:], newlines=True))
    console().print(shown)


def note(text: str) -> None:
    """A line about the work itself, on stderr."""
    console(stderr=True).print(Text(printable(text, newlines=True), style="dim"))


def show_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of printable cells; headings that begin with '#' are set flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    for place, heading in enumerate(headings):
        label = heading.removeprefix("#")
        longest = max((row[place].cell_len for row in cells), default=0) if place == 0 else 0
        least = max(len(label), min(longest, NAME_COLUMNS))  # what a row is called stays in one piece, if it is short
        justify: Literal["left", "right"] = "right" if heading.startswith("#") else "left"
        table.add_column(label, justify=justify, min_width=least, overflow="fold")
    for row in cells:
        table.add_row(*row)
    _show_grid(table)


def show_fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name, style="dim"), Text(printable(value)))
    _show_grid(table)


def _show_grid(table: Table) -> None:
    """As wide as the terminal; rich fills each line up with spaces, which are left away."""
    lines = console()
    with lines.capture() as captured:
        lines.print(table)
    sys.stdout.write("".join(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def show_error(error: ApplianceError, as_json: bool) -> None:
    """One line of what went wrong and one of what to do, on stderr."""
    if as_json:
        body = {"reason": error.reason, "message": str(error), "remedy": error.remedy}
        if isinstance(error, Busy):
            body["retry_after_seconds"] = error.retry_after_seconds  # type: ignore[assignment]
        if isinstance(error, DocumentRefused):
            body["file_reason"] = error.file_reason
        show_json({"error": body}, sys.stderr, indent=None)
        return
    lines = console(stderr=True)
    lines.print(Text.assemble(("error: ", "bold red"), printable(str(error))), soft_wrap=True)
    lines.print(Text.assemble(("remedy: ", "bold"), printable(error.remedy)), soft_wrap=True)


def bytes_text(size_bytes: int) -> str:
    """1536 as '1.5 KiB'."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_text(seconds: float) -> str:
    """The two largest units: 93784 as '1 d 2 h'."""
    whole = int(seconds)
    sizes = ((whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    parts = [f"{count} {unit}" for count, unit in sizes if count]
    return " ".join(parts[:2]) or f"{seconds:.1f} s"


def time_text(moment: datetime | None) -> str:
    """Local time; '' for none."""
    if moment is None or moment == datetime.fromtimestamp(0, UTC):
        return ""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
