"""XQuAD as candidate passages: for each question the passage that answers it among others, and passages that don't.

A setting puts three other passages beside the answering one, from other articles or from the same article; none of
them contains the answer's text. The unanswerable twin of a question has four passages without the answer instead. A
sentence is right when it contains the answer's text; `strict` asks for the very sentence that the annotator marked.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

from appliance.knowledge.chunk import sentences

Setting = Literal["other", "same"]
OTHERS = 3
TUNING, HELD_OUT = range(24), range(24, 48)


@dataclass(frozen=True, slots=True)
class Paragraph:
    article: int
    text: str
    sentences: tuple[tuple[int, int], ...]

    def holds(self, answer: str) -> list[bool]:
        return [answer in self.text[start:end] for start, end in self.sentences]


@dataclass(frozen=True, slots=True)
class Item:
    """right, strict: one flag for each sentence of all passages in order; both all false for an unanswerable item."""

    article: int
    setting: Setting
    question: str
    passages: tuple[Paragraph, ...]
    right: tuple[bool, ...]
    strict: tuple[bool, ...]

    @property
    def answerable(self) -> bool:
        return any(self.right)


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    answer: str
    answer_start: int
    home: Paragraph


def load(data: Path, articles: range, setting: Setting, language: str = "en") -> tuple[Item, ...]:
    """Answerable and unanswerable items of those articles; distractors are drawn by a fixed seed.

    data: the folder that holds xquad/. Raises FileNotFoundError.
    """
    rng = Random(f"7/{setting}")
    paragraphs, questions = _read(data / "xquad" / f"xquad.{language}.json", articles)
    return tuple(item for question in questions for item in _items(rng, paragraphs, question, setting))


def _items(rng: Random, paragraphs: Sequence[Paragraph], asked: _Question, setting: Setting) -> Iterator[Item]:
    inside = setting == "same"
    others = [
        p
        for p in paragraphs
        if p is not asked.home and (p.article == asked.home.article) == inside and asked.answer not in p.text
    ]
    if len(others) >= OTHERS and any(asked.home.holds(asked.answer)):
        chosen = rng.sample(others, OTHERS)
        chosen.insert(rng.randrange(OTHERS + 1), asked.home)
        yield _item(asked, setting, chosen)
    if len(others) > OTHERS:
        yield _item(asked, setting, rng.sample(others, OTHERS + 1))


def _item(asked: _Question, setting: Setting, passages: Sequence[Paragraph]) -> Item:
    right = [
        flag for p in passages for flag in (p.holds(asked.answer) if p is asked.home else [False] * len(p.sentences))
    ]
    strict = [p is asked.home and start <= asked.answer_start < end for p in passages for start, end in p.sentences]
    return Item(asked.home.article, setting, asked.text, tuple(passages), tuple(right), tuple(strict))


def _read(path: Path, articles: range) -> tuple[list[Paragraph], list[_Question]]:
    rows = _json(path)["data"]
    paragraphs, questions = list[Paragraph](), list[_Question]()
    for number in articles:
        for row in rows[number]["paragraphs"]:
            paragraphs.append(Paragraph(number, row["context"], tuple(sentences(row["context"]))))
            for qa in row["qas"]:
                answer = qa["answers"][0]
                asked = _Question(qa["question"].strip(), answer["text"], answer["answer_start"], paragraphs[-1])
                questions.append(asked)
    return paragraphs, questions


@cache
def _json(path: Path) -> Any:
    return json.loads(path.read_text())
