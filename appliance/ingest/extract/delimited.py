"""CSV and its kin (RFC 4180 and what programs make of it): one page, its rows a table. All cells are text to it."""

import csv
import re
from collections import Counter
from io import StringIO
from typing import Literal

from appliance.ingest.caps import Caps
from appliance.ingest.extract import charset
from appliance.ingest.extract.grid import Cells
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Read
from appliance.ingest.extract.text import parser_with

PARSER = "csv 1"
WARM_DOCUMENTS = (b'name;note\nwarm;"a\nb"\n',)

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_CHARACTERS, _SAMPLE_ROWS = 1 << 16, 100
_NAMED = re.compile(r"sep=([^\r\n])\r?\n", re.IGNORECASE)  # what Excel writes for itself
_FIGURE = re.compile(r"[-+(]?[^\w\s]?[ ]?\d[\d.,:/ -]{0,30}[)%]?(?:[ ]?[^\w\s])?")

csv.field_size_limit(1 << 30)  # of the whole process: what a file may hold is capped elsewhere


def read(data: bytes, caps: Caps) -> Read:
    """One page of one table, or of text where there is one column.

    Raises DocumentRefused: NOT_UTF8, NOT_TEXT, TOO_MANY_CELLS.
    """
    text, encoding = charset.decode(data)
    named = _NAMED.match(text)
    text = text[named.end() :] if named else text
    delimiter = named[1] if named else _delimiter(text[:_SAMPLE_CHARACTERS])
    cells, ended = _cells(text, delimiter, csv.QUOTE_MINIMAL, caps)
    if not ended:
        cells, _ = _cells(text, delimiter, csv.QUOTE_NONE, caps)
    pages = Pages(caps)
    cells.end_sheet(pages)
    return pages.read(parser_with(PARSER, encoding))


def _delimiter(sample: str) -> str:
    """What divides most lines into equally many cells; of equals, into the most."""

    def score(delimiter: str) -> tuple[float, int]:
        rows = csv.reader(StringIO(sample, newline=""), delimiter=delimiter)
        widths = Counter(len(row) for row, _ in zip(rows, range(_SAMPLE_ROWS), strict=False) if row)
        width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
        return (count / widths.total(), width) if width > 1 else (0.0, 0)

    return max(_DELIMITERS, key=score)


def _cells(text: str, delimiter: str, quoting: Literal[0, 3], caps: Caps) -> tuple[Cells, bool]:
    """The cells, and whether the last quote that was opened was closed."""
    cells = Cells(caps)
    row: list[str] = []
    for number, row in enumerate(csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)):
        cells.add_row(number, [(at, cell, _FIGURE.fullmatch(cell) is not None) for at, cell in enumerate(row)])
    return cells, not (row and "\n" in row[-1] and text.count('"') % 2 and quoting != csv.QUOTE_NONE)
