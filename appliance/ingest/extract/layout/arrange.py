"""Words with their places on a page to paragraphs and tables in reading order.

Whoever knows where words stand can use it: text of a PDF, or words that were recognised in a picture. Coordinates are
of an upright page, x to the right and y down, in any unit: every threshold is a multiple of a line's height.

A gutter that lines of running text leave free on both sides divides columns, which are read one after the other; lines
across it end them (a recursive cut of the page, as in Nagy and Seth, "Hierarchical representation of optically scanned
documents", 1984, with the gutters from the text's left edges). Where rows leave the same gaps free and their cells are
short, or where ruling lines make a grid, it is a table.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from appliance.ingest.extract.layout.shapes import Line, Piece, Rule, Word
from appliance.ingest.extract.layout.tables import ruled_tables

_GAP = 1.0  # of a line's height: wider is no space between words of a line
_PITCH = 1.3  # times the usual distance of lines: a new paragraph
_SIZE_CHANGE = 1.08
_COLUMN_ROWS, _COLUMN_CHARACTERS = 3, 15
_TABLE_ROWS = 3
_MAX_STRETCHES = 3000  # of a page; one with more is left in the order in which it was written
_MAX_GUTTERS = 40
_MAX_DEPTH = 12
_LABEL = re.compile(r"[-*+•–—·▪◦‣●○►\uf0a7\uf0b7§]|\(?(?:\d{1,3}(?:\.\d{1,3})*|[a-zA-Z])[.)]?")
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Words of one line without a wide gap between them, or a whole ruled table."""

    words: tuple[Word, ...]
    left: float
    top: float
    right: float
    bottom: float
    table: Piece | None = None

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def size(self) -> float:
        return max((word.size for word in self.words), default=0.0)


_Row = list[_Stretch]
_Interval = tuple[float, float]


def arrange(words: Sequence[Word], rules: Sequence[Rule] = ()) -> list[Piece]:
    """The page's pieces in reading order. What is ruled as a grid is read by its cells."""
    tables, rest = ruled_tables(words, rules)
    stretches = [*_stretches(rest), *map(_boxed, tables)]
    if len(stretches) > _MAX_STRETCHES:
        return _paragraphs([[stretch] for stretch in stretches])
    return list(_read(stretches, 0))


def _boxed(table: tuple[Piece, Rule]) -> _Stretch:
    piece, box = table
    return _Stretch((), *box, piece)


def _stretches(words: Iterable[Word]) -> Iterator[_Stretch]:
    part: list[Word] = []
    for word in words:
        if part and (word.line != part[-1].line or _distance(part[-1], word) > _GAP * word.size):
            yield _stretch(part)
            part = []
        part.append(word)
    if part:
        yield _stretch(part)


def _distance(one: Word, other: Word) -> float:
    return max(one.left, other.left) - min(one.right, other.right)


def _stretch(words: Sequence[Word]) -> _Stretch:
    return _Stretch(
        tuple(words),
        min(word.left for word in words),
        min(word.top for word in words),
        max(word.right for word in words),
        max(word.bottom for word in words),
    )


def _read(stretches: Sequence[_Stretch], depth: int) -> Iterator[Piece]:
    """By columns where there is a gutter, else row by row."""
    found = _best_gutter(stretches) if depth < _MAX_DEPTH else None
    if found is None:
        yield from _by_rows(_rows(stretches))
        return
    gutter, top, bottom = found
    above = [one for one in stretches if _middle(one) < top]
    below = [one for one in stretches if _middle(one) > bottom]
    beside = [one for one in stretches if top <= _middle(one) <= bottom]
    left = [one for one in beside if one.left < gutter]
    right = [one for one in beside if one.left >= gutter]
    if _is_rtl(beside):
        left, right = right, left
    for part in (above, left, right, below):
        yield from _read(part, depth + 1)


def _middle(stretch: _Stretch) -> float:
    return (stretch.top + stretch.bottom) / 2


def _is_rtl(stretches: Sequence[_Stretch]) -> bool:
    texts = [one.text for one in stretches]
    right_to_left = sum(len(_RTL.findall(text)) for text in texts)
    return bool(right_to_left) and 2 * right_to_left > sum(map(str.isalpha, "".join(texts)))


def _best_gutter(stretches: Sequence[_Stretch]) -> tuple[float, float, float] | None:
    """x, top and bottom of the gutter beside which the most running text stands."""
    if len(stretches) < 2 * _COLUMN_ROWS:
        return None
    unit = statistics.median(one.size or one.bottom - one.top for one in stretches) or 1.0
    starts = Counter(round(one.left / unit * 4) for one in stretches)
    edges = [edge / 4 * unit for edge, count in starts.most_common(_MAX_GUTTERS) if count >= _COLUMN_ROWS]
    best: tuple[int, float, float, float] | None = None
    ordered = sorted(stretches, key=_middle)
    for edge in edges:
        x = edge - unit / 4
        for run in _runs(ordered, x, unit):
            lines = _columns(run, x, unit)
            if lines and (best is None or lines > best[0]):
                best = lines, x, min(map(_middle, run)), max(map(_middle, run))
    return best[1:] if best else None


def _runs(ordered: Sequence[_Stretch], x: float, unit: float) -> Iterator[list[_Stretch]]:
    """Neighbours from top to bottom that leave `x` free."""
    run: list[_Stretch] = []
    for one in ordered:
        if one.left < x and one.right > x - _GAP * unit / 2:
            yield run
            run = []
        else:
            run.append(one)
    yield run


def _columns(run: Sequence[_Stretch], x: float, unit: float) -> int:
    """How many lines stand on the side that has fewer, 0 where one side is no running text."""
    fewest = 0
    for side in ([one for one in run if one.left < x], [one for one in run if one.left >= x]):
        characters = sum(len(word.text) for one in side for word in one.words)
        rows = {round(_middle(one) / unit) for one in side if one.words}
        if len(rows) < _COLUMN_ROWS or characters < _COLUMN_CHARACTERS * max(len(rows), len(side)):
            return 0
        fewest = min(fewest, len(rows)) if fewest else len(rows)
    return fewest


def _rows(stretches: Sequence[_Stretch]) -> list[_Row]:
    """What stands on one height belongs to one row, in the direction of its script."""
    rows: list[_Row] = []
    for one in sorted(stretches, key=lambda one: (one.top, one.left)):
        first = rows[-1][0] if rows else None
        if first is None or first.table or one.table or not _level(first, one):
            rows.append([one])
        else:
            rows[-1].append(one)
    for row in rows:
        row.sort(key=lambda one: one.left, reverse=_is_rtl(row))
    return rows


def _level(one: _Stretch, other: _Stretch) -> bool:
    common = min(one.bottom, other.bottom) - max(one.top, other.top)
    return common > 0.5 * min(one.bottom - one.top, other.bottom - other.top)


def _by_rows(rows: Sequence[_Row]) -> Iterator[Piece]:
    """Tables by aligned gaps, and paragraphs between them."""
    at = last = 0
    while at < len(rows):
        after = _table_end(rows, at)
        if after > at:
            yield from _paragraphs(rows[last:at])
            yield _gap_table(rows[at:after])
            last = after
        at = max(after, at + 1)
    yield from _paragraphs(rows[last:])


def _table_end(rows: Sequence[_Row], at: int) -> int:
    """The row after the table that begins with row `at`; `at` where none does."""
    if len(rows[at]) < 2:
        return at
    covered: list[_Interval] = []
    after = full = at
    for number, row in enumerate(rows[at:], at):
        unit = max(one.size for one in row)
        apart = number > at and row[0].top - rows[number - 1][0].bottom > 1.5 * unit
        wider = _covered([*covered, *((one.left, one.right) for one in row)], _GAP * unit / 2)
        if any(one.table for one in row) or apart or len(wider) < 2:
            break
        covered, after = wider, number + 1
        full = after if len(row) > 1 else full
    several = [row for row in rows[at:full] if len(row) > 1]
    labels = all(_LABEL.fullmatch(row[0].text) for row in several) and all(len(row) == 2 for row in several)
    enough = len(several) >= _TABLE_ROWS or (len(several) == 2 and min(len(covered), *map(len, several)) > 2)
    return full if enough and not labels else at


def _covered(intervals: Iterable[_Interval], joined: float) -> list[_Interval]:
    """The union of intervals; those nearer than `joined` become one."""
    out: list[_Interval] = []
    for left, right in sorted(intervals):
        if out and left - out[-1][1] < joined:
            out[-1] = out[-1][0], max(out[-1][1], right)
        else:
            out.append((left, right))
    return out


def _gap_table(rows: Sequence[_Row]) -> Piece:
    unit = min(one.size for row in rows for one in row)
    columns = _covered(((one.left, one.right) for row in rows for one in row), _GAP * unit / 2)
    lines = []
    for row in rows:
        cells = [" ".join(one.text for one in row if left <= one.left <= right) for left, right in columns]
        if row and _is_rtl(row):
            cells.reverse()
        lines.append(_line(row, "\t".join(cells).rstrip("\t")))
    return Piece(tuple(lines), table=True)


def _line(row: _Row, text: str, cut: bool = False) -> Line:
    return Line(text, max(one.size for one in row), min(one.top for one in row), max(one.bottom for one in row), cut)


def _paragraphs(rows: Sequence[_Row]) -> list[Piece]:
    """Rows in paragraphs: a new one where the distance or the size changes."""
    pitches = [below[0].top - above[0].top for above, below in pairwise(rows) if below[0].top > above[0].top]
    usual = statistics.median_low(pitches) if pitches else 0.0
    pieces: list[Piece] = []
    part: list[Line] = []
    for row in rows:
        if row[0].table:
            pieces += [*_whole(part), row[0].table]
            part = []
            continue
        line = _line(row, " ".join(one.text for one in row), row[-1].words[-1].cut)
        if part and _begins_anew(part[-1], line, usual):
            pieces += _whole(part)
            part = []
        part.append(line)
    return [*pieces, *_whole(part)]


def _begins_anew(above: Line, line: Line, usual: float) -> bool:
    small, large = sorted((above.size, line.size))
    apart = line.top - above.top > max(_PITCH * usual, large) or line.top < above.top
    return large > _SIZE_CHANGE * small or (apart and not above.cut)


def _whole(lines: Sequence[Line]) -> list[Piece]:
    return [Piece(tuple(lines))] if lines else []
