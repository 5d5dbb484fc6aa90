"""The part of a passage that answers best, in one line, with the query's words marked. Pure.

Words are compared as the index compares them, so an inflected form is marked too. The window is the one with most
different words of the query, then with most of them in one whole sentence; it begins with a sentence where a sentence
fits, ends with one where that costs less than half of it, and `…` stands where it cuts into one.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from appliance.knowledge.chunk import sentences
from appliance.knowledge.index.analysis import UNSPACED, index_terms, language_of, words
from appliance.types import Snippet

SNIPPET_CHARACTERS = 240

_WORD = re.compile(rf"[^\W_{UNSPACED}]+|[{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_SPACES = re.compile(r"\s+")
_LEAD = 4
"""A quarter of a window at most stands before its first marked word where no sentence begins nearby."""

Range = tuple[int, int]
Mark = tuple[int, int, bytes]


def snippet(text: str, query: Sequence[str], characters: int = SNIPPET_CHARACTERS) -> Snippet:
    """The best `characters` of a text, with its words of the query. query: of `analysis.words`."""
    bounds = sentences(text) or [(0, 0)]
    starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
    marks = _marks(text, query)
    start, end = _best_window(text, marks, starts, ends, characters)
    before, after = "" if start in starts else "… ", "" if end in ends else " …"
    inside = _merged([(at, to) for at, to, _ in marks if start <= at and to <= end])
    line = _SPACES.sub(" ", text[start:end])

    def place(at: int) -> int:
        """Where a place of the text stands in the snippet."""
        plain = len(line) == end - start
        return len(before) + (at - start if plain else len(_SPACES.sub(" ", text[start:at])))

    return Snippet(f"{before}{line}{after}", tuple((place(at), place(to)) for at, to in inside))


def _marks(text: str, query: Sequence[str]) -> list[Mark]:
    """Where the query's words stand in the text, and which, in order."""
    if not query:
        return []
    places: list[Range] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        if _UNSPACED.match(match[0]):
            places += [(at, min(at + 2, end)) for at in range(start, max(start + 1, end - 1))]
        else:
            places.append((start, end))
    asked = _asked({text[start:end] for start, end in places}, language_of(words(text)), query)
    return [(start, end, asked[said]) for start, end in places if (said := text[start:end]) in asked]


def _asked(said: Iterable[str], language: int, query: Sequence[str]) -> dict[str, bytes]:
    """The words that stand for one of the query, in a text of that language, with their term."""
    pairs = [(whole, word) for whole in said for word in ((whole.lower(),) if whole.isascii() else words(whole))]
    terms = index_terms([*query, *(word for _, word in pairs)], language)
    asked = frozenset(terms[: len(query)])
    return {whole: term for (whole, _), term in zip(pairs, terms[len(query) :], strict=True) if term in asked}


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


def _merged(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Ranges in order, those that touch or overlap as one."""
    found: list[Range] = []
    for start, end in ranges:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)
