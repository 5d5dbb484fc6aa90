"""The part of a passage that answers best, in one line, with the query's words marked. Pure.

Words are compared as the index compares them, so an inflected form is marked too. The window is the one with most
different words of the query, then with most of them in one whole sentence; it begins with a sentence where a sentence
fits, ends with one where that costs less than half of it, and `…` stands where it cuts into one.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

from appliance.knowledge.chunk import sentences
from appliance.knowledge.index.analysis import UNSPACED, index_terms, language_of, words
from appliance.types import Snippet

SNIPPET_CHARACTERS = 240

_WORD = re.compile(rf"[{UNSPACED}]+|(?:(?![{UNSPACED}])[^\W_])+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_SPACE = re.compile(r"\s+")
_LEAD = 4
"""A quarter of a window at most stands before its first marked word where no sentence begins nearby."""

_WORD_CHARACTERS = 64
_KNOWN_WORDS = 1 << 15

Range = tuple[int, int]
Mark = tuple[int, int, bytes]


def snippet(text: str, query: frozenset[bytes], characters: int = SNIPPET_CHARACTERS) -> Snippet:
    """The best `characters` of a text, with its words of the query. query: index terms."""
    bounds = sentences(text) or [(0, 0)]
    starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
    marks = _marks(text, query)
    start, end = _best_window(text, marks, starts, ends, characters)
    line, places = _in_one_line(text[start:end])
    before = "" if start in starts else "… "
    after = "" if end in ends else " …"
    inside = [(at - start, to - start) for at, to, _ in marks if start <= at and to <= end]
    highlights = _merged([(places[at] + len(before), places[to] + len(before)) for at, to in inside])
    return Snippet(f"{before}{line}{after}", highlights)


def _marks(text: str, query: frozenset[bytes]) -> list[Mark]:
    """Where the query's words stand in the text, and which, in order."""
    found: list[Mark] = []
    language = language_of(words(text))
    for match in _WORD.finditer(text) if query else ():
        start, end = match.span()
        if _UNSPACED.match(match[0]):
            pieces = [(at, min(at + 2, end)) for at in range(start, max(start + 1, end - 1))]
        else:
            pieces = [(start, end)]
        for at, to in pieces:
            said = _terms(text[at : min(to, at + _WORD_CHARACTERS)], language)
            found += [(at, to, term) for term in said if term in query][:1]
    return found


@lru_cache(_KNOWN_WORDS)
def _terms(word: str, language: int) -> tuple[bytes, ...]:
    return tuple(index_terms(words(word), language))


def _best_window(
    text: str, marks: Sequence[Mark], starts: Sequence[int], ends: Sequence[int], characters: int
) -> tuple[int, int]:
    """[start, end) of the best stretch. starts, ends: of the sentences."""

    def worth(window: tuple[int, int]) -> tuple[int, int, int, int]:
        start, end = window
        inside = [mark for mark in marks[bisect_left(marks, (start,)) : bisect_left(marks, (end,))] if mark[1] <= end]
        whole: dict[int, set[bytes]] = {}
        for at, _, term in inside:
            sentence = bisect_right(starts, at) - 1
            if ends[sentence] <= end:
                whole.setdefault(sentence, set()).add(term)
        return len({term for _, _, term in inside}), max(map(len, whole.values()), default=0), len(inside), -start

    windows = [(start, _end(text, start, ends, characters)) for start in _starts(text, marks, starts, characters)]
    return max(windows, key=worth)


def _starts(text: str, marks: Sequence[Mark], starts: Sequence[int], characters: int) -> list[int]:
    """Where a window may begin: with the sentence of a marked word, or at a word before it; else with the first."""
    found: list[int] = []
    for at, to, _ in marks:
        sentence = starts[bisect_right(starts, at) - 1]
        if to - sentence <= characters:
            found.append(sentence)
        elif not found or to - found[-1] > characters:
            found.append(text.find(" ", max(sentence, at - characters // _LEAD), at) + 1 or at)
    return list(dict.fromkeys(found)) or [starts[0]]


def _end(text: str, start: int, ends: Sequence[int], characters: int) -> int:
    """Where a window from `start` ends: with a sentence, else with a word, never past `characters`."""
    limit = start + characters
    whole = ends[bisect_right(ends, limit) - 1] if ends[0] <= limit else 0
    if whole == ends[-1] or whole - start > characters // 2:
        return whole
    space = text.rfind(" ", start + characters // 2, limit + 1)
    return space if space > 0 else min(limit, len(text))


def _in_one_line(text: str) -> tuple[str, list[int]]:
    """The text with each run of white space as one space, and where each of its characters (and its end) went."""
    line: list[str] = []
    places: list[int] = []
    at, last = 0, 0
    for match in _SPACE.finditer(text):
        piece = text[last : match.start()]
        places += range(at, at + len(piece))
        at += len(piece)
        places += [at] * len(match[0])
        line += [piece, " "]
        at, last = at + 1, match.end()
    piece = text[last:]
    places += range(at, at + len(piece) + 1)
    return "".join([*line, piece]), places


def _merged(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Ranges in order, those that touch or overlap as one."""
    found: list[Range] = []
    for start, end in ranges:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)
