"""What can be told of a sentence as an answer to a question without a language model: words, meanings, kind of answer.

Every score is a column over all candidate sentences of one question, and depends on these candidates alone: a word is
rare when few of them hold it. Nothing here knows a language but the cues, which are silent where they don't know it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.types import Floats

Integers = NDArray[np.int32]

WORD = re.compile(r"\w+")
# Enough to join "invaded" with "invades"; other languages lose an ending now and then, in question and sentence alike.
ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ied", "ed", "es", "s", "ion", "ly", "ment", "er", "e", "y")
SATURATION, LENGTH_SHARE = 1.2, 0.5  # BM25's k1 and b


class Tokens(Protocol):
    """One text's tokens, each with a vector of its meaning in context."""

    @property
    def ids(self) -> Integers: ...

    @property
    def vectors(self) -> Floats:
        """float32 [tokens, dimension], unit norm."""

    @property
    def spans(self) -> Integers:
        """int32 [tokens, 2]: start and end in code points of the text."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """One found passage: its text, where its sentences stand in it (start, end), and its tokens."""

    text: str
    sentences: tuple[tuple[int, int], ...]
    tokens: Tokens

    def sentence_texts(self) -> list[str]:
        return [self.text[start:end] for start, end in self.sentences]


def stem(word: str) -> str:
    """The word without one common ending, never shorter than three letters."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def stems(text: str) -> list[str]:
    return [stem(word) for word in WORD.findall(text.lower())]


def rarity(frequency: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """BM25's weight of a word that `frequency` of `total` sentences hold; never negative."""
    return np.log1p((total - frequency + 0.5) / (frequency + 0.5))


@dataclass(frozen=True)
class LexicalScores:
    """bm25: [sentences]; coverage_of_passage: [passages].

    Coverage is the share, weighted by rarity, of the question's words that the passage holds.
    """

    bm25: Floats
    coverage_of_passage: Floats


def lexical_scores(question: str, passages: Sequence[Sequence[str]]) -> LexicalScores:
    asked = list(dict.fromkeys(stems(question)))
    counts = [Counter(stems(sentence)) for sentence in chain.from_iterable(passages)]
    present = np.array([[count[word] for word in asked] for count in counts], np.float64).reshape(
        len(counts), len(asked)
    )
    weight = rarity((present > 0).sum(0), len(counts))
    lengths = np.array([count.total() for count in counts], np.float64)
    norm = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths / max(lengths.mean(), 1.0))
    bm25 = (weight * present * (1 + SATURATION) / (present + norm[:, None])).sum(1)
    share = weight / max(weight.sum(), 1e-9)
    passage_of = passage_numbers([len(sentences) for sentences in passages])
    held = np.array([(present[passage_of == p] > 0).any(0) for p in range(len(passages))])
    held = held.reshape(len(passages), len(asked))
    return LexicalScores(bm25.astype(np.float32), (held @ share).astype(np.float32))


def passage_numbers(counts: Sequence[int]) -> NDArray[np.intp]:
    """The number of its passage for every sentence."""
    return np.repeat(np.arange(len(counts)), counts)


@dataclass(frozen=True)
class MeaningScores:
    """match: [sentences]; match_of_passage: [passages].

    A match is the likeness of each of the question's tokens to its best partner there, averaged by rarity.
    """

    match: Floats
    match_of_passage: Floats


def meaning_scores(question: Tokens, passages: Sequence[Candidates]) -> MeaningScores:
    """Late interaction (ColBERT, Khattab & Zaharia 2020) with the embedder's own token states."""
    spans = [(p, span) for p, passage in enumerate(passages) for span in passage.sentences]
    likeness = [question.vectors @ passage.tokens.vectors.T for passage in passages]
    best = np.zeros((len(spans), len(question.ids)), np.float32)
    held = np.zeros_like(best)
    for row, (p, span) in enumerate(spans):
        tokens = passages[p].tokens
        inside = (tokens.spans[:, 0] >= span[0]) & (tokens.spans[:, 1] <= span[1])
        if inside.any():
            best[row] = likeness[p][:, inside].max(1)
            held[row] = np.isin(question.ids, tokens.ids[inside])
    weight = rarity(held.sum(0).astype(np.float64), len(spans))
    share = (weight / max(weight.sum(), 1e-9)).astype(np.float32)
    passage_of = np.array([p for p, _ in spans], np.intp)
    of_passage = [_best_of(best[passage_of == p]) @ share for p in range(len(passages))]
    return MeaningScores(best @ share, np.array(of_passage, np.float32))


def _best_of(rows: Floats) -> Floats:
    return rows.max(0) if len(rows) else np.zeros(rows.shape[1], np.float32)


YEAR = re.compile(r"\d{3,4}s?|\d+(st|nd|rd|th)")
MONTHS = "january february march april may june july august september october november december"
DAYS = "monday tuesday wednesday thursday friday saturday sunday morning noon afternoon evening night midnight"
PERIODS = "second minute hour day week month quarter year decade century seconds minutes hours days weeks months years"
TIMES = frozenset(f"{MONTHS} {DAYS} {PERIODS}".split())
NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty hundred thousand "
    "million billion half quarter dozen third first second once twice several"
)
NUMBERS = frozenset(NUMBER_WORDS.split())
ASKS_TIME = re.compile(r"\b(when|since|(what|which) (year|date|century|decade|month|day))\b")
ASKS_NUMBER = re.compile(
    r"\bhow (many|much|long|old|large|big|far|tall|high|deep|fast|often|heavy|wide)\b"
    r"|\bwhat (percentage|percent|number|amount|fraction)\b|\bpopulation\b"
)
ASKS_NAME = re.compile(r"\b(who|whom|whose|where)\b")
ASKS_REASON = re.compile(r"\bwhy\b")
REASON = re.compile(r"\b(because|due to|since|so that|in order|therefore|caus\w+|reasons?|as a result)\b")


def cue(question: str, sentence: str) -> float:
    """1 where the sentence holds something new of the kind asked for, -1 where it holds nothing of it, 0 not known."""
    asked = question.lower()
    if ASKS_REASON.search(asked):
        return 1.0 if REASON.search(sentence.lower()) else -1.0
    words = WORD.findall(sentence)
    told = frozenset(WORD.findall(asked))
    new = [(i, word) for i, word in enumerate(words) if word.lower() not in told]
    if ASKS_TIME.search(asked):
        return 1.0 if any(YEAR.fullmatch(word) or word.lower() in TIMES for _, word in new) else -1.0
    if ASKS_NUMBER.search(asked):
        return 1.0 if any(word[0].isdigit() or word.lower() in NUMBERS for _, word in new) else -1.0
    if ASKS_NAME.search(asked):
        return 1.0 if any(i and word[0].isupper() for i, word in new) else -1.0
    return 0.0
