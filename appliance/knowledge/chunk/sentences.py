"""Text to sentences, as ranges of code points.

A sentence ends at terminal punctuation, at a blank line, or at a line that stands alone (a heading, a list item, a row
of a table); lines wrapped by a page's width are one sentence. The rules are few and know English, German and Russian
abbreviations; whatever the text, every character that is not white space lies in exactly one sentence, in time linear
in the text.
"""

import re
from collections.abc import Iterator, Sequence

SENTENCE_CHARACTERS = 600

_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»“)\]]*+(?=\s)|[。！？｡]++[」』”’）]*+")
_TOKEN_BEFORE = re.compile(r"[^\s(\[\"'“„«]*\Z")
_WORD_BEFORE = re.compile(r"(\w+)\s+\S*\Z")
_WORD_AFTER = re.compile(r"\w+")
_OPENERS = "\"'“”„«‘’([¿¡—–- \t\n"

_ITEM = re.compile(r"\s*(?:[-*+•–—·▪◦‣●○►]\s|\(?\d{1,3}(?:\.\d{1,3})*[.)]\s|\(?[a-zа-я][.)]\s|#|\||>)")
_ALONE = re.compile(r"\s*(?:#|\|)|.*\t")
_NEEDS_MORE = tuple(",;-–—(/&")

_WRAP_CHARACTERS = 160  # a longer line was not wrapped by a page
_INDENT_CHARACTERS = 64  # before the number of an item
_NARROW_CHARACTERS = 48  # a paragraph of lines no longer than this, without punctuation, is a list


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_ABBREVIATIONS = _words(
    "dr mr mrs ms prof st sr jr vs no nos vol fig figs eq sec ch pp ed eds cf al approx dept inc ltd gen col sgt rev"
    " hon nr hr fr abs art bd ca bzw ggf inkl evtl zzgl str tel vgl sog usf geb mio mrd bspw max min std dipl ing hrsg"
    " jh zb dh ua oä"
    " г гг ул стр рис табл др им см напр тов проф акад руб коп тыс млн млрд пп ст п д кв обл р"
)
_LETTERS_WITH_DOTS = re.compile(r"\w(?:\.\w{1,2})+\Z")  # e.g, z.B, т.е, U.S
_ENDS_A_LIST = frozenset(("p.m", "a.m", "т.д", "т.п"))
_MONTHS = _words("januar jänner februar märz april mai juni juli august september oktober november dezember")
_BEFORE_ORDINALS = _words("am der den dem des vom bis im zum zur seit ab die das beim jeder jeden ein")


def sentences(text: str) -> list[tuple[int, int]]:
    """[start, end) of each sentence, in order, without surrounding white space; at most SENTENCE_CHARACTERS long."""
    found: list[tuple[int, int]] = []
    for start, end in _units(text):
        last = start
        for border in _borders(text, start, end):
            found += _cut(text, last, border)
            last = border
        found += _cut(text, last, end)
    return found


def _units(text: str) -> Iterator[tuple[int, int]]:
    """Runs of lines that may hold sentences together; no sentence crosses a unit's border."""
    paragraph: list[tuple[int, int]] = []
    at = 0
    for line in text.splitlines(keepends=True):
        if line.isspace():
            yield from _units_of(text, paragraph)
            paragraph = []
        else:
            paragraph.append((at, at + len(line)))
        at += len(line)
    yield from _units_of(text, paragraph)


def _units_of(text: str, lines: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    if not lines:
        return
    stripped = [text[start:end].strip() for start, end in lines]
    widest = max(map(len, stripped))
    is_list = widest <= _NARROW_CHARACTERS and not _END.search(text, lines[0][0], lines[-1][1])
    first = lines[0][0]
    for index in range(1, len(lines)):
        raw = text[slice(*lines[index])]
        if is_list or _stands_apart(stripped[index - 1], raw, widest):
            yield first, lines[index][0]
            first = lines[index][0]
    yield first, lines[-1][1]


def _stands_apart(line: str, following: str, widest: int) -> bool:
    """Whether the border between two lines of a paragraph ends a sentence, punctuation or not."""
    if _ITEM.match(following) or _ALONE.match(line) or "\t" in following.strip():
        return True
    if line.endswith(_NEEDS_MORE) or following.lstrip(_OPENERS)[:1].islower():
        return False
    return len(line) > _WRAP_CHARACTERS or len(line) < 0.6 * widest


def _borders(text: str, start: int, end: int) -> Iterator[int]:
    """Where punctuation ends a sentence inside [start, end)."""
    for match in _END.finditer(text, start, end):
        at = match.end()
        if at < end and not (match[0][0] in ".…!?" and _goes_on(text, start, match.start(), at, match[0])):
            yield at


def _goes_on(text: str, start: int, dot: int, at: int, mark: str) -> bool:
    """Whether the sentence goes on after a mark: a small letter follows, or the dot belongs to the word before it."""
    after = text[at : at + 64].lstrip(_OPENERS)
    if after[:1].islower():
        return True
    if mark != ".":
        return False
    before = _TOKEN_BEFORE.search(text, max(start, dot - 24), dot)
    token = before[0] if before else ""
    if token.isdigit():
        return _is_ordinal(text, start, dot, token, after)
    word = token.lower()
    if word in _ENDS_A_LIST:
        return False
    initial = len(token) == 1 and token.isalpha()
    return initial or word in _ABBREVIATIONS or _LETTERS_WITH_DOTS.match(word) is not None


def _is_ordinal(text: str, start: int, dot: int, number: str, after: str) -> bool:
    """'1. First item', 'am 3. Mai', 'der 2. Versuch'; not '… in 1990. The next …'."""
    first = dot - len(number)
    if first - start <= _INDENT_CHARACTERS and not text[start:first].strip():
        return True
    following = _WORD_AFTER.match(after)
    preceding = _WORD_BEFORE.search(text, max(start, dot - 32), dot)
    in_date = following is not None and following[0].lower() in _MONTHS
    return len(number) <= 2 and (in_date or (preceding is not None and preceding[1].lower() in _BEFORE_ORDINALS))


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) without surrounding white space, cut at spaces where it is too long for a sentence."""
    while True:
        head = text[start : min(end, start + SENTENCE_CHARACTERS)]
        start += len(head) - len(head.lstrip())
        if start >= end:
            return
        if not head.strip():
            continue
        stop = min(end, start + SENTENCE_CHARACTERS)
        if stop < end:
            spaces = [at for at in range(stop - 1, start + SENTENCE_CHARACTERS // 2, -1) if text[at].isspace()]
            stop = spaces[0] if spaces else stop
        yield start, start + len(text[start:stop].rstrip())
        start = stop
