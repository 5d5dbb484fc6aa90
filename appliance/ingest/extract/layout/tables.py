"""Tables that ruling lines make: a grid of drawn lines that touch, and the words in its cells."""

from collections.abc import Sequence
from itertools import pairwise

from appliance.ingest.extract.layout.shapes import Line, Piece, Rule, Word

MAX_RULES = 500  # of a page; a drawing has more
_TOUCH = 0.25  # of the words' height: how far lines that touch may be apart
_MIN_LINES = 3  # each way: two rows of two cells


def ruled_tables(words: Sequence[Word], rules: Sequence[Rule]) -> tuple[list[tuple[Piece, Rule]], list[Word]]:
    """Tables with the box of each, and the words in none of them."""
    rest, tables = list(words), list[tuple[Piece, Rule]]()
    if not words or not _MIN_LINES <= len(rules) <= MAX_RULES:
        return tables, rest
    near = _TOUCH * sorted(word.size for word in words)[len(words) // 2]
    for grid in _touching(rules, near):
        box = Rule(
            min(rule.left for rule in grid),
            min(rule.top for rule in grid),
            max(rule.right for rule in grid),
            max(rule.bottom for rule in grid),
        )
        inside = [word for word in rest if _holds(box, word)]
        if inside and (piece := _table(grid, inside, near)):
            tables.append((piece, box))
            rest = [word for word in rest if not _holds(box, word)]
    return tables, rest


def _holds(box: Rule, word: Word) -> bool:
    x, y = (word.left + word.right) / 2, (word.top + word.bottom) / 2
    return box.left <= x <= box.right and box.top <= y <= box.bottom


def _touching(rules: Sequence[Rule], near: float) -> list[list[Rule]]:
    """Groups of lines that touch each other, from the top of the page."""
    groups: list[list[Rule]] = []
    for rule in sorted(rules, key=lambda rule: rule.top):
        touched = [group for group in groups if any(_touch(rule, other, near) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append([rule, *(other for group in touched for other in group)])
    return sorted(groups, key=lambda group: min(rule.top for rule in group))


def _touch(one: Rule, other: Rule, near: float) -> bool:
    beside = max(one.left, other.left) - min(one.right, other.right)
    above = max(one.top, other.top) - min(one.bottom, other.bottom)
    return beside <= near and above <= near


def _table(grid: Sequence[Rule], words: Sequence[Word], near: float) -> Piece | None:
    upright = [rule for rule in grid if rule.bottom - rule.top > rule.right - rule.left]
    level = [rule for rule in grid if rule.right - rule.left >= rule.bottom - rule.top]
    xs = _distinct([(rule.left + rule.right) / 2 for rule in upright], near)
    ys = _distinct([(rule.top + rule.bottom) / 2 for rule in level], near)
    if len(xs) < _MIN_LINES or len(ys) < _MIN_LINES:
        return None
    cells: dict[tuple[int, int], list[Word]] = {}
    for word in words:
        at = _interval(ys, (word.top + word.bottom) / 2), _interval(xs, (word.left + word.right) / 2)
        cells.setdefault(at, []).append(word)
    size = max(word.size for word in words)
    lines = []
    for row, (top, bottom) in enumerate(pairwise(ys)):
        texts = [_cell(cells.get((row, column), [])) for column in range(len(xs) - 1)]
        if any(texts):
            lines.append(Line("\t".join(texts).rstrip("\t"), size, top, bottom))
    wide = len({column for _, column in cells}) > 1
    return Piece(tuple(lines), table=True) if len(lines) > 1 and wide else None


def _distinct(places: Sequence[float], near: float) -> list[float]:
    out: list[float] = []
    for place in sorted(places):
        if not out or place - out[-1] > 2 * near:
            out.append(place)
    return out


def _interval(borders: Sequence[float], place: float) -> int:
    inner = borders[1:-1]
    return sum(border < place for border in inner)


def _cell(words: Sequence[Word]) -> str:
    return "".join(word.text if word.cut else f"{word.text} " for word in words).rstrip()
