"""Cells to blocks, for every kind of spreadsheet: what stands together is a table, its first row the header.

Empty rows divide a sheet, unless figures follow: then the table goes on, so that its header stays with them. Lines of
one cell above a table are its title, and a region of one column is text. Empty columns are nowhere.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract.pages import Pages


class Line(NamedTuple):
    """The cells of a row that show something. columns: from 0, ascending. figures: one of them is no text."""

    number: int
    columns: tuple[int, ...]
    texts: tuple[str, ...]
    figures: bool


class Cells:
    """Collects the cells of one sheet after the other. Raises DocumentRefused: TOO_MANY_CELLS."""

    def __init__(self, caps: Caps) -> None:
        self._max_cells = caps.cells
        self._count = 0
        self._columns: dict[tuple[int, ...], tuple[int, ...]] = {}  # rows alike share one
        self._lines: list[Line] = []

    def add_row(self, number: int, cells: Iterable[tuple[int, str, bool]], times: int = 1) -> None:
        """A row as often as it is there: column, what it shows, whether that is a figure. Order does not matter."""
        shown = {column: (text, figure) for column, text, figure in cells if text.strip()}
        if not shown:
            return
        self._count += len(shown) * times
        self.check_room(0)
        columns = tuple(sorted(shown))
        columns = self._columns.setdefault(columns, columns)
        texts = tuple(shown[column][0] for column in columns)
        figures = any(figure for _, figure in shown.values())
        self._lines += (Line(number + again, columns, texts, figures) for again in range(times))

    def check_room(self, count: int) -> None:
        """Raises DocumentRefused: TOO_MANY_CELLS, where so many more would be too many."""
        if self._count + count > self._max_cells:
            problem = f"It has more than {self._max_cells} cells that hold something; divide it."
            raise DocumentRefused("TOO_MANY_CELLS", problem)

    def end_sheet(self, pages: Pages) -> None:
        """Write what was collected, and start anew."""
        for region in _regions(self._lines):
            _write(region, pages)
        self._lines = []


def _regions(lines: list[Line]) -> Iterator[list[Line]]:
    region = lines[:1]
    for before, line in pairwise(lines):
        goes_on = line.figures and any(len(other.columns) > 1 for other in region[:3])
        if line.number != before.number + 1 and not goes_on:
            yield region
            region = []
        region.append(line)
    if region:
        yield region


def _write(region: list[Line], pages: Pages) -> None:
    columns = sorted({column for line in region for column in line.columns})
    if len(columns) == 1:
        pages.text("\n".join(line.texts[0] for line in region))
        return
    titles = 0
    while titles < len(region) - 1 and len(region[titles].columns) == 1 and not region[titles].figures:
        pages.text(region[titles].texts[0])
        titles += 1
    pages.table(_row(line, columns) for line in region[titles:])


def _row(line: Line, columns: list[int]) -> list[str]:
    if len(line.columns) == len(columns):
        return list(line.texts)
    shown = dict(zip(line.columns, line.texts, strict=True))
    return [shown.get(column, "") for column in columns]
