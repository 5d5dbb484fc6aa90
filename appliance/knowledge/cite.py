"""Which stored sentence backs which sentence of an answer. Pure; all offsets are code points.

A sentence of a generated answer is supported where a stored sentence holds its words, or where one says the same by
words and by meaning and holds each of its numbers. A marker such as [2] names where to look first and lowers the bar;
it is never believed by itself. A paraphrase that changes a name or negates can pass: this is evidence, not proof.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.knowledge.chunk import SENTENCE_CHARACTERS, sentences
from appliance.knowledge.lexical import terms
from appliance.types import Floats, Passage, Span

# Mean of word coverage and cosine. On XQuAD in English, German and Russian 1 sentence in 40 would be "supported" by
# another one of five passages of its article, and 92 in 100 by themselves after losing a third of their words. A marker
# leaves only the few sentences of one passage to be wrong about, so less will do.
SUPPORT_FROM = 0.6
SUPPORT_FROM_IF_CITED = 0.55

_MARKERS = re.compile(r"\s*\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
_LEADING_MARKERS = re.compile(r"(?:\s*\[\d{1,3}(?:\s*,\s*\d{1,3})*\])+")
_MIN_LOCATED_TERMS = 3
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
    return [statement for statement in found if terms(statement.text)]


def _statement(answer: str, start: int, end: int) -> Statement:
    said = answer[start:end]
    cited = {int(number) for match in _MARKERS.finditer(said) for number in match[1].split(",")}
    return Statement(start, end, _MARKERS.sub("", said).strip(), frozenset(cited))


def supporting(statement: Statement, stored: Sequence[Sentence], cosines: Floats) -> Sentence | None:
    """The stored sentence that says what the statement says, or None.

    cosines: float32 [len(stored)], between the statement's vector and each stored sentence's.
    """
    said = frozenset(terms(statement.text))
    numbers = {term for term in said if any(map(str.isdigit, term))}
    best: tuple[float, Sentence] | None = None
    for sentence, cosine in zip(stored, cosines, strict=True):
        held = frozenset(terms(sentence.text))
        if not numbers <= held:
            continue
        strength = (len(said & held) / len(said) + float(cosine)) / 2
        margin = strength - (SUPPORT_FROM_IF_CITED if sentence.passage in statement.cited else SUPPORT_FROM)
        if margin >= 0 and (best is None or margin > best[0]):
            best = margin, sentence
    return best[1] if best else None


def quoted_from(statement: Statement, stored: Sequence[Sentence]) -> Sentence | None:
    """The stretch of a stored sentence that the statement repeats word for word, or None; cited passages come first."""
    if len(terms(statement.text)) < _MIN_LOCATED_TERMS:
        return None
    for sentence in sorted(stored, key=lambda one: one.passage not in statement.cited):
        found = locate(statement.text, sentence.text) or locate(statement.text.rstrip(".!?… "), sentence.text)
        if found:
            start, end = (sentence.span.start + at for at in found)
            span = Span(sentence.span.page, start, end)
            return Sentence(sentence.passage, sentence.document, sentence.title, span, sentence.text[slice(*found)])
    return None


def locate(quote: str, text: str) -> tuple[int, int] | None:
    """Where the quote stands in the text: [start, end) of its first occurrence, or None.

    As it is; else but for case, white space, and the shapes of quotation marks and dashes.
    """
    at = text.find(quote) if quote else -1
    if at >= 0:
        return at, at + len(quote)
    wanted, _ = _plain(quote)
    plain, places = _plain(text)
    at = plain.find(wanted) if wanted else -1
    return (places[at], places[at + len(wanted) - 1] + 1) if at >= 0 else None


def _plain(text: str) -> tuple[str, list[int]]:
    """The text in one case and spacing, and for each of its characters the place in `text` that it comes from."""
    plain: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        if character in _INVISIBLE or (character.isspace() and (not plain or plain[-1] == " ")):
            continue
        for folded in " " if character.isspace() else character.translate(_SAME).casefold():
            plain.append(folded)
            places.append(at)
    while plain and plain[-1] == " ":
        plain.pop()
        places.pop()
    return "".join(plain), places
