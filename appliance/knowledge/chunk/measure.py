"""A page measured in the embedder's tokens, from where each of them ends."""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from appliance.types import Ints

CHARACTERS_A_TOKEN = 12
"""At most, on average over a piece: with more the tokenizer knows nothing of the text, and its count says nothing."""

_KNOWN_TOKENS_A_WORD = 1.4
_SAMPLE_CHARACTERS = 20_000
# What counts as a word: scripts without spaces by character, long compounds more than once, digits and marks each.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W\d_{_UNSPACED}]{{1,12}}|\S")

Range = tuple[int, int]
"""[start, end) in code points of a page."""


class Page:
    """The text of one page and what it costs to read."""

    def __init__(self, text: str, token_ends: Ints) -> None:
        self.text = text
        self._ends = array("q", token_ends.astype(np.int64).tobytes())

    def stretch(self) -> float:
        """How much more of this text a piece holds than the embedder reads: 1 in a language that it knows.

        What it does not know it spells. Its opinion then counts little (search/rank.py), and words find best in pieces
        that are as long as those of a language that it knows, so that they are counted in place of tokens.
        """
        words = len(_WORD.findall(self.text, 0, _SAMPLE_CHARACTERS))
        ratio = bisect_right(self._ends, _SAMPLE_CHARACTERS) / max(1, words)
        return ratio if ratio > _KNOWN_TOKENS_A_WORD else 1.0

    def cost(self, start: int, end: int) -> int:
        """Tokens of [start, end); at least one, where start is before end."""
        return max(bisect_right(self._ends, end) - bisect_right(self._ends, start), int(start < end))

    def trim(self, start: int, end: int) -> Range:
        """Without white space around it; empty, start == end, where there is nothing else."""
        part = self.text[start:end]
        kept = part.lstrip()
        return end - len(kept), end - len(kept) + len(kept.rstrip())

    def parted(self, start: int, end: int) -> bool:
        """Whether an empty line is between."""
        return self.text.count("\n", start, end) > 1

    def lines(self, start: int, end: int) -> Iterator[Range]:
        """The lines that hold anything, without their ends."""
        for line in self.text[start:end].split("\n"):
            if line.strip():
                yield start, start + len(line.rstrip())
            start += len(line) + 1

    def reach(self, start: int, end: int, room: int) -> int:
        """How far so many tokens go, `end` at most; to the last white space where there is some in the second half."""
        token = bisect_right(self._ends, start) + room
        stop = min(end, start + room * CHARACTERS_A_TOKEN, self._ends[token - 1] if token < len(self._ends) else end)
        if stop < end and not self.text[stop].isspace():
            space = max(self.text.rfind(one, (start + stop) // 2 + 1, stop) for one in " \n\t")
            stop = space if space > 0 else stop
        return stop

    def cut(self, start: int, end: int, room: int) -> Iterator[Range]:
        """[start, end) in parts of so many tokens at most, without white space around each."""
        while start < end:
            stop = self.reach(start, end, room)
            part = self.trim(start, stop)
            if part[0] < part[1]:
                yield part
            start = stop
