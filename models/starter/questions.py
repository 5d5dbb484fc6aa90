"""Pseudo-questions: a sentence of prose turned into something that a person might ask whose answer it is.

A span of the sentence (a year, a number, a name, a phrase) becomes the question word, part of the other words is
dropped, some are replaced by other forms or by WordNet's words for the same, and words of the neighbourhood slip in.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from models.starter.corpus import listed
from models.starter.facts import Context, upper_first

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9'.\-]*[A-Za-z0-9]|[A-Za-z0-9]")
LOWER_WORD = re.compile(r"[a-z0-9]+")
GAP = "\0"
STOP = frozenset(
    listed(
        "a an the of and or to in on at by for with from as is are was were be been being it its this that these "
        "those he she they them his her their there which who whom whose what when where why how has have had do does "
        "did not no can could will would should may might must shall if then than so such also into over under "
        "between about after before during other some any each all both more most only very just but while you your "
        "we our i one out up off through per"
    )
)
NUMBER_WORDS = frozenset(
    listed("one two three four five six seven eight nine ten twelve twenty hundred thousand million first second third")
)
SUFFIXES = listed("ations ation ingly ings ing edly ed ies es s ions ion ly ments ment er ers or ity al ance ence e y")
ENDINGS = ("", "e", "s", "es", "ed", "ing", "er", "ion", "ation", "ment", "y", "ies", "ly", "al")
ASKING = {
    "year": "When|In what year|What year|In which year|When was|Since when|On what date",
    "number": "How many|How much|What number of|How long|How large|What percentage of|At what|How old",
    "name": "Who|Which|What|Where|Whose|What is the name of|In what|By whom|Who was",
    "phrase": "What|Which|What kind of|What type of|What is|What does|How|What was|Along with what",
    "tail": "What|How|What does|What happens|What is|Why|What did",
    "why": "Why|For what reason|What is the purpose of|What causes|What for",
    "how": "How|By what means|In what way|How does|Who",
    "where": "Where|In what place|At what|In which|Where is|Where did",
    "when": "When|Under what condition|At what time|In what case|What happens",
}
ASKING_WORDS = {kind: tuple(words.split("|")) for kind, words in ASKING.items()}
KINDS = listed("kind type person group place name term thing country city organization company system file part")
AUXILIARIES = ("is", "was", "are", "were", "did", "does", "do", "can", "has", "would", "", "", "", "", "")
OPENERS = ("Tell me", "According to the text,", "Please say", "I want to know", "Do you know", "Can you tell me")


@dataclass(frozen=True)
class Span:
    """Words [start, end) of a sentence that a question may ask for."""

    start: int
    end: int
    kind: str
    weight: float


@dataclass(frozen=True)
class Prose:
    """Blocks of neighbouring sentences by source, word rarity, and stand-ins for words."""

    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    weights: tuple[float, ...]
    rarity: Mapping[str, float]
    unseen_rarity: float
    stand_ins: Mapping[str, tuple[str, ...]]

    def idf(self, word: str) -> float:
        return self.rarity.get(word, self.unseen_rarity)


def load_prose(path: Path, stand_ins: Mapping[str, tuple[str, ...]]) -> Prose:
    """Read prose.jsonl; short runs are joined to blocks of at least four sentences, long ones cut at six."""
    runs: dict[str, list[list[str]]] = defaultdict(list)
    for line in path.open():
        row = json.loads(line)
        runs[row["source"]].append(row["sentences"])
    blocks = [tuple(_blocks(found)) for _, found in sorted(runs.items())]
    frequency = Counter(w for source in blocks for b in source for s in b for w in set(LOWER_WORD.findall(s.lower())))
    total = sum(len(b) for source in blocks for b in source) + 1
    rarity = {word: math.log(total / (n + 1)) for word, n in frequency.items()}
    weights = tuple(math.sqrt(len(source)) for source in blocks)
    return Prose(tuple(blocks), weights, rarity, math.log(total), stand_ins)


def _blocks(runs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    short: list[str] = []
    for run in runs:
        for i in range(0, len(run), 6):
            piece = run[i : i + 6]
            if len(piece) >= 3:
                found.append(tuple(piece))
            else:
                short += piece
            if len(short) >= 4:
                found.append(tuple(short[:7]))
                short = []
    return found


def spans(words: Sequence[str]) -> list[Span]:
    """Everything in a sentence that may be asked for, weighted by how often people do."""
    found = []
    for i, word in enumerate(words):
        if re.fullmatch(r"(1[0-9]|20)\d\d", word):
            found.append(Span(i, i + 1, "year", 4))
        elif word[0].isdigit():
            found.append(Span(i, i + 1, "number", 4))
        elif word.lower() in NUMBER_WORDS:
            found.append(Span(i, i + 1, "number", 2))
        elif i and word[0].isupper():
            found.append(Span(i, _run_end(words, i, lambda w: w[0].isupper()), "name", 3))
        found += _phrase_spans(words, i)
    return found


def _run_end(words: Sequence[str], start: int, belongs: Callable[[str], bool]) -> int:
    end = start
    while end < len(words) and belongs(words[end]):
        end += 1
    return end


def _phrase_spans(words: Sequence[str], i: int) -> list[Span]:
    word, n = words[i].lower(), len(words)
    if word not in STOP:
        end = min(_run_end(words, i, lambda w: w.lower() not in STOP), i + 3)
        return [Span(i, end, "phrase", 0.5), *([Span(i, n, "tail", 0.3)] if i > n * 0.5 else [])]
    if word in ("because", "so", "by", "to") and i > n * 0.3:
        return [Span(i, n, "how" if word == "by" else "why", 1.5)]
    if word in ("in", "at", "from", "on", "near") and i + 1 < n:
        return [Span(i, min(n, i + 3), "where", 0.4)]
    return [Span(i, n, "when", 0.8)] if word in ("when", "if", "after", "before", "during", "while") else []


def other_form(rng: Random, word: str, stand_ins: Mapping[str, tuple[str, ...]]) -> str:
    """Another word for the same thing, another form of the word, or the word with its case changed."""
    lower = word.lower()
    known = stand_ins.get(lower) or stand_ins.get(stem(lower)) or stand_ins.get(stem(lower) + "e")
    if known and rng.random() < 0.55:
        return rng.choice(known)
    if len(lower) < 4 or not lower.isalpha():
        return word
    if rng.random() < 0.3:
        return lower if word != lower else word.capitalize()
    return stem(lower) + rng.choice(ENDINGS)


def stem(word: str) -> str:
    """The word without one common English ending, and without the doubled letter before it."""
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "sl" else word


def pseudo_question(rng: Random, sentence: str, neighbours: Sequence[str], prose: Prose) -> str | None:
    """A question that the sentence answers, or None where the sentence offers nothing to ask for."""
    words = WORD.findall(sentence)
    choices = spans(words) if len(words) >= 4 else []
    if not choices:
        return None
    span = rng.choices(choices, [c.weight for c in choices])[0]
    kept = _thin_out(rng, [*words[: span.start], GAP, *words[span.end :]], prose)
    gap = kept.index(GAP)
    rate = rng.choice((0.0, 0.15, 0.3, 0.5, 0.7))
    before, after = (_reworded(rng, part, rate, prose) for part in (kept[:gap], kept[gap + 1 :]))
    if not before and not after:
        return None
    if before and (before[0].lower() in STOP or rng.random() < 0.5):
        before[0] = before[0].lower()
    if neighbours and rng.random() < 0.4:
        (before if rng.random() < 0.5 else after).extend(_topic(rng, sentence, neighbours))
    if rng.random() < 0.3:
        before, after = after, before
    counted = words[span.end] if span.kind == "number" and span.end < len(words) else ""
    asking = _asking(rng, span, counted if counted.lower() not in STOP else "")
    return _phrased(rng, asking, before, after)


def _thin_out(rng: Random, words: Sequence[str], prose: Prose) -> list[str]:
    """Keep a share of the words, rare ones sooner, the gap always, and at least one word with a meaning."""
    keep_content, keep_function = rng.choice((0.45, 0.6, 0.75, 0.9)), rng.choice((0.1, 0.3, 0.6))
    most = rng.choice((2, 3, 4, 5, 6, 8, 12))

    def keeps(word: str) -> bool:
        if word.lower() in STOP:
            return rng.random() < keep_function
        return rng.random() < keep_content * (0.6 + prose.idf(word.lower()) / 12)

    content = [i for i, w in enumerate(words) if w != GAP and w.lower() not in STOP]
    chosen = [i for i in content if keeps(words[i])] or rng.sample(content, min(1, len(content)))
    chosen = rng.sample(chosen, min(most, len(chosen)))
    function = [i for i, w in enumerate(words) if w.lower() in STOP and keeps(w)]
    return [words[i] for i in sorted([*chosen, *function, words.index(GAP)])]


def _reworded(rng: Random, words: Sequence[str], rate: float, prose: Prose) -> list[str]:
    return [other_form(rng, w, prose.stand_ins) if w.lower() not in STOP and rng.random() < rate else w for w in words]


def _topic(rng: Random, sentence: str, neighbours: Sequence[str]) -> list[str]:
    """A word or two from the sentences around, as people add the topic to what they ask."""
    words = [w for s in neighbours if s != sentence for w in WORD.findall(s) if w.lower() not in STOP and len(w) > 2]
    if not words:
        return []
    link = rng.choice(([], ["of"], ["in"], ["the"], ["for"]))
    return [*link, *(rng.choice(words) for _ in range(rng.choice((1, 1, 2))))]


def _asking(rng: Random, span: Span, counted: str) -> str:
    words = rng.choice(ASKING_WORDS[span.kind])
    if counted and words in ("How many", "What number of", "How much", "What percentage of"):
        words += f" {counted}"
    if span.kind in ("phrase", "name") and rng.random() < 0.12:
        words += f" {rng.choice(KINDS)}"
    return words


def _phrased(rng: Random, asking: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Question, keywords alone, question word in place, or question after a polite opener."""
    auxiliary = rng.choice(AUXILIARIES) if len(asking.split()) < 3 else ""
    form = rng.random()
    words = [asking, auxiliary, *before, *after]
    if form < 0.1:
        words = [*before, *after]
    elif form < 0.2:
        words = [*before, asking.lower(), *after]
    elif form < 0.3:
        words = [rng.choice(OPENERS), asking.lower(), auxiliary, *before, *after]
    text = " ".join(filter(None, words))
    text = text.lower() if rng.random() < 0.1 else upper_first(text)
    return text + ("?" if rng.random() < 0.9 else "")


def prose_context(rng: Random, prose: Prose, questions: int, unanswerable: float = 0.2, passages: int = 0) -> Context:
    """Passages of prose, half the time neighbours of one document; some lose the sentence that a question asks for."""
    chosen = _passages(rng, prose, passages or rng.choice((1, 2, 3, 4, 4)))
    removed: list[tuple[str, Sequence[str]]] = []
    for i, block in enumerate(chosen):
        if len(block) > 2 and rng.random() < 0.5:
            at = rng.randrange(len(block))
            removed.append((block[at], block))
            chosen[i] = (*block[:at], *block[at + 1 :])
    flat = [(s, block) for block in chosen for s in block]
    asked = []
    for _ in range(questions):
        if rng.random() < unanswerable:
            foreign = rng.choice(rng.choice(rng.choice(prose.blocks)))
            sentence, around = rng.choice(removed) if removed and rng.random() < 0.7 else (foreign, ())
            index = -1
        else:
            index = rng.randrange(len(flat))
            sentence, around = flat[index]
        question = pseudo_question(rng, sentence, around, prose)
        if question and len(question) < 200:
            asked.append((question, index))
    return Context(tuple(chosen), tuple(asked))


def _passages(rng: Random, prose: Prose, count: int) -> list[tuple[str, ...]]:
    source = rng.choices(prose.blocks, prose.weights)[0]
    if rng.random() < 0.5:
        start, step = rng.randrange(len(source)), rng.choice((1, 1, 2))
        return [source[(start + i * step) % len(source)][:6] for i in range(count)]
    return [rng.choice(rng.choices(prose.blocks, prose.weights)[0])[:6] for _ in range(count)]
