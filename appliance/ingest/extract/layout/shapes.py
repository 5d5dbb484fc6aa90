"""What stands on a page and where. Coordinates are of an upright page, x to the right and y down, in any unit."""

from typing import NamedTuple


class Word(NamedTuple):
    """size: its line's height. cut: whether a hyphen at the line's end stands after it, not in `text`. line: words of
    one line follow each other and have the same number."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    size: float
    line: int
    cut: bool = False


class Rule(NamedTuple):
    """A drawn straight line, as the thin box that it is."""

    left: float
    top: float
    right: float
    bottom: float


class Line(NamedTuple):
    """top, bottom: on the page. cut: its last word goes on in the next line."""

    text: str
    size: float
    top: float
    bottom: float
    cut: bool = False


class Piece(NamedTuple):
    """A paragraph, or a table with a line a row and a tab between cells. Its lines are of one size."""

    lines: tuple[Line, ...]
    table: bool = False

    @property
    def text(self) -> str:
        """Its lines, cut words whole again."""
        return "".join(line.text if line.cut else f"{line.text}\n" for line in self.lines[:-1]) + (
            f"{self.lines[-1].text}-" if self.lines[-1].cut else self.lines[-1].text
        )


class Picture(NamedTuple):
    """Grey pixels, one byte each, rows of `stride` bytes."""

    pixels: bytes
    width: int
    height: int
    stride: int
    dots_per_inch: int
