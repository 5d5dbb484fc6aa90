"""Contexts as token rows: one shared context, then many questions, each blind to the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from models.starter.facts import Context, invented_context
from models.starter.questions import Prose, prose_context
from models.starter.tokenizer import ANSWER, FIRST_LABEL, FIRST_PASSAGE, NONE, PASSAGES, QUESTION, SENTENCES, Encoder
from models.starter.wordnet import Instance

BLIND = -1e9


@dataclass(frozen=True)
class Mixture:
    """What a phase of training is made of."""

    tokens: int  # most tokens in a row
    questions: int
    invented: float  # share of contexts from facts and WordNet
    joined: float  # share of rows of two contexts joined, up to JOINED_TOKENS


JOINED_TOKENS = 1280


@dataclass(frozen=True)
class Row:
    """tokens, positions: int64 [n]; mask: float [n, n]; places, labels: int64 [m], of the answer tokens."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    places: Tensor
    labels: Tensor  # 0 none, i sentence i


@dataclass(frozen=True)
class Material:
    """All that contexts are made from."""

    prose: Prose
    instances: tuple[Instance, ...]
    encoder: Encoder


def context_tokens(encoder: Encoder, passages: Sequence[Sequence[str]], first: int = 0) -> list[int]:
    """`[1]<|s1|> sentence<|s2|> sentence [2]<|s3|> ...`; first: how many labels are skipped."""
    tokens: list[int] = []
    number = first
    for i, passage in enumerate(passages):
        tokens.append(FIRST_PASSAGE + i)
        for sentence in passage:
            tokens += [FIRST_LABEL + number, *encoder.text(sentence)]
            number += 1
    return tokens


def question_tokens(encoder: Encoder, question: str) -> list[int]:
    return [QUESTION, *encoder.text(question), ANSWER]


def draw_context(rng: Random, material: Material, mixture: Mixture) -> Context:
    if rng.random() < mixture.invented:
        return invented_context(rng, material.instances, mixture.questions)
    return prose_context(rng, material.prose, mixture.questions)


def join(rng: Random, first: Context, second: Context, questions: int) -> Context:
    """Both contexts' passages; a question that one can't answer is kept mostly from the second."""
    shift = sum(map(len, first.passages))
    kept = [(q, i) for q, i in first.questions if i >= 0 or rng.random() < 0.7]
    kept += [(q, i + shift if i >= 0 else -1) for q, i in second.questions]
    rng.shuffle(kept)
    return Context(first.passages + second.passages, tuple(kept[:questions]))


def draw_row(rng: Random, material: Material, mixture: Mixture) -> Row:
    """A row that fits; draws again until one does."""
    while True:
        most = mixture.tokens
        context = draw_context(rng, material, mixture)
        if rng.random() < mixture.joined:
            context = join(rng, context, draw_context(rng, material, mixture), mixture.questions)
            most = JOINED_TOKENS
        count = sum(map(len, context.passages))
        if len(context.passages) > PASSAGES or count > SENTENCES - 8 or not context.questions:
            continue
        first = rng.randint(0, min(12, SENTENCES - count)) if rng.random() < 0.3 else 0
        shared = context_tokens(material.encoder, context.passages, first)
        if len(shared) <= 0.8 * most:
            return _row(shared, context, first, material.encoder, most)


def _row(shared: list[int], context: Context, first: int, encoder: Encoder, most: int) -> Row:
    tokens, positions, branch = list(shared), list(range(len(shared))), [0] * len(shared)
    places, labels = list[int](), list[int]()
    for number, (question, index) in enumerate(context.questions, 1):
        asked = question_tokens(encoder, question)
        if len(tokens) + len(asked) > most and places:
            break
        tokens += asked
        positions += range(len(shared), len(shared) + len(asked))
        branch += [number] * len(asked)
        places.append(len(tokens) - 1)
        labels.append(0 if index < 0 else first + index + 1)
    t = torch.tensor
    return Row(t(tokens), t(positions), branch_mask(branch), t(places), t(labels))


def branch_mask(branch: Sequence[int]) -> Tensor:
    """A token sees what stands before it in the shared part (branch 0) and in its own branch."""
    b = torch.tensor(branch)
    before = torch.ones(len(b), len(b)).tril().bool()
    seen = before & ((b[None, :] == 0) | (b[None, :] == b[:, None]))
    return torch.zeros(len(b), len(b)).masked_fill_(~seen, BLIND)


LABEL_IDS = torch.tensor([NONE, *range(FIRST_LABEL, FIRST_LABEL + SENTENCES)])
