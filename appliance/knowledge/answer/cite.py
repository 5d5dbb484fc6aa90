"""Which stored sentence backs which sentence of an answer. Pure; all offsets are code points.

A sentence of a generated answer is supported where a stored sentence holds its words, or where one says the same by
words and by meaning; it must hold each of the numbers, and deny something where the other does. A marker such as [2]
names where to look first and lowers the bar; it is never believed by itself. A paraphrase that changes a name can pass,
and so can a denial in a language whose words for it are not known here: this is evidence, not proof.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.knowledge.chunk import SENTENCE_CHARACTERS, sentences
from appliance.knowledge.index.analysis import UNSPACED, folded
from appliance.types import Floats, Passage, Span

# Mean of word coverage and cosine. On XQuAD in English, German and Russian 1 sentence in 40 would be "supported" by
# another one of five passages of its article, and 92 in 100 by themselves after losing a third of their words. A marker
# leaves only the few sentences of one passage to be wrong about, so less will do.
SUPPORT_FROM = 0.6
SUPPORT_FROM_IF_CITED = 0.55

_MARKERS = re.compile(r"\s*\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
_LEADING_MARKERS = re.compile(r"(?:\s*\[\d{1,3}(?:\s*,\s*\d{1,3})*\])+")
_MIN_LOCATED_TERMS = 3
_INSIDE_WORD = re.compile(rf"(?<=[^\W{UNSPACED}])(?=[^\W{UNSPACED}])|(?<=\d)(?=[.,]\d)|(?<=\d[.,])(?=\d)")
_DENIAL = re.compile(
    r"\b(?:no|not|never|none|nor|neither|nobody|nothing|nowhere|without|cannot"
    r"|nicht|nichts|nie|niemals|niemand|ohne|weder|kein(?:e|er|em|en|es)?"
    r"|не|ни|нет|нельзя|без|никогда|никто|ничто|ничего)\b|n['’]t\b",
    re.IGNORECASE,
)
_SAME = str.maketrans({**dict.fromkeys("“”„«»‟″", '"'), **dict.fromkeys("‘’‚‛′`", "'"), **dict.fromkeys("‐‑‒–—−", "-")})
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A stored sentence of a found passage. passage: the passage's number, from 1, as the model saw it."""

    passage: int
    document: str
    title: str
    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of an answer, at [start, end) with its markers; `text` is without them, `cited` their numbers."""

    start: int
    end: int
    text: str
    cited: frozenset[int]


def sentences_of(number: int, passage: Passage, page: str) -> list[Sentence]:
    """The whole sentences of the page that the passage touches. page: the text of the passage's page."""
    span = passage.span
    # Only the surroundings are split: a page may be a book, and no sentence is longer than this.
    left = max(0, span.start - 2 * SENTENCE_CHARACTERS)
    around = page[left : span.end + 2 * SENTENCE_CHARACTERS]
    return [
        Sentence(number, passage.document, passage.title, Span(span.page, left + start, left + end), around[start:end])
        for start, end in sentences(around)
        if left + end > span.start and left + start < span.end
    ]


def statements(answer: str) -> list[Statement]:
    """The sentences of an answer that say something; markers that follow a sentence's full stop belong to it."""
    ranges: list[tuple[int, int]] = []
    for start, end in sentences(answer):
        leading = _LEADING_MARKERS.match(answer, start, end)
        if leading and ranges:
            ranges[-1] = (ranges[-1][0], leading.end())
            start = leading.end() + len(answer[leading.end() : end]) - len(answer[leading.end() : end].lstrip())
        if start < end:
            ranges.append((start, end))
    found = [_statement(answer, start, end) for start, end in ranges]
    return [statement for statement in found if folded(statement.text)]


def _statement(answer: str, start: int, end: int) -> Statement:
    said = answer[start:end]
    cited = {int(number) for match in _MARKERS.finditer(said) for number in match[1].split(",")}
    return Statement(start, end, _MARKERS.sub("", said).strip(), frozenset(cited))


def supporting(statement: Statement, stored: Sequence[Sentence], cosines: Floats) -> Sentence | None:
    """The stored sentence that says what the statement says, or None.

    cosines: float32 [len(stored)], between the statement's vector and each stored sentence's.
    """
    said = frozenset(folded(statement.text))
    best: tuple[float, Sentence] | None = None
    for sentence, cosine in zip(stored, cosines, strict=True):
        if not _may_say(sentence.text, statement.text):
            continue
        held = frozenset(folded(sentence.text))
        strength = (len(said & held) / len(said) + float(cosine)) / 2
        margin = strength - (SUPPORT_FROM_IF_CITED if sentence.passage in statement.cited else SUPPORT_FROM)
        if margin >= 0 and (best is None or margin > best[0]):
            best = margin, sentence
    return best[1] if best else None


def quoted_from(statement: Statement, stored: Sequence[Sentence]) -> Sentence | None:
    """The stretch of a stored sentence that the statement repeats word for word, or None; cited passages come first.

    A stretch of a sentence that denies does not say what the sentence says.
    """
    if len(folded(statement.text)) < _MIN_LOCATED_TERMS:
        return None
    for sentence in sorted(stored, key=lambda one: one.passage not in statement.cited):
        found = locate(statement.text, sentence.text) or locate(statement.text.rstrip(".!?… "), sentence.text)
        if found and _may_say(sentence.text, statement.text):
            start, end = (sentence.span.start + at for at in found)
            span = Span(sentence.span.page, start, end)
            return Sentence(sentence.passage, sentence.document, sentence.title, span, sentence.text[slice(*found)])
    return None


def _may_say(stored: str, said: str) -> bool:
    """Whether the stored sentence holds every number of what is said, and both deny something or neither does."""
    numbers = {term for term in folded(said) if any(map(str.isdigit, term))}
    return numbers <= set(folded(stored)) and bool(_DENIAL.search(stored)) == bool(_DENIAL.search(said))


def locate(quote: str, text: str) -> tuple[int, int] | None:
    """Where the quote stands in the text: [start, end) of its first occurrence that cuts no word or number, or None.

    As it is; else but for case, white space, and the shapes of quotation marks and dashes.
    """
    at = _find(quote, text)
    if at >= 0:
        return at, at + len(quote)
    wanted, _ = _plain(quote)
    plain, places = _plain(text)
    at = _find(wanted, plain)
    return (places[at], places[at + len(wanted) - 1] + 1) if at >= 0 else None


def _find(wanted: str, text: str) -> int:
    """As str.find, of occurrences between the borders of words and numbers."""
    at = text.find(wanted) if wanted else -1
    while at >= 0 and (_INSIDE_WORD.match(text, at) or _INSIDE_WORD.match(text, at + len(wanted))):
        at = text.find(wanted, at + 1)
    return at


def _plain(text: str) -> tuple[str, list[int]]:
    """The text in one case and spacing, and for each of its characters the place in `text` that it comes from."""
    plain: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        if character in _INVISIBLE or (character.isspace() and (not plain or plain[-1] == " ")):
            continue
        for letter in " " if character.isspace() else character.translate(_SAME).casefold():
            plain.append(letter)
            places.append(at)
    while plain and plain[-1] == " ":
        plain.pop()
        places.pop()
    return "".join(plain), places
