"""Start values that already match words, so that training begins from a lexical pointer instead of from noise.

From random weights a network this small didn't find the three-step circuit in minutes of CPU; from these it refines it:
  layer 0, head 0: every token looks back to the nearest label and copies the label's code;
  layer 1, head 0: a question token looks at tokens of the same stem and gathers the codes of their labels;
  layer 2, head 0: the answer token averages what the question tokens gathered; its state then resembles the label.
The residual space is cut into orthonormal parts: label codes (head_width directions), one direction that every token
has, one that labels (and the marks that end them) have, the rest for what a token is, shared by tokens of one stem.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from models.starter.model import Pointer, Shape
from models.starter.questions import stem
from models.starter.tokenizer import ANSWER, FIRST_LABEL, NONE, QUESTION, SENTENCES

PLAIN = re.compile(r"Ġ?[A-Za-z]{3,}")
SLOW_FROM, IDENTITY_FROM = 28, 24  # rotary dimensions from here on turn too slowly to tell near positions apart


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n))[0]


class Space:
    """The parts of the residual space, as rows of one orthogonal matrix."""

    def __init__(self, shape: Shape) -> None:
        n = shape.head_width
        rows = orthogonal(shape.width)
        self.labels, self.anything, self.marks, self.identity = rows[:n], rows[n], rows[n + 1], rows[n + 2 :]
        self.others = rows[n:]
        codes = orthogonal(n)
        self.sentence_codes, self.none_code, self.question_code = codes[:SENTENCES], codes[-2], codes[-1]


def initialise(model: Pointer, tokens: Sequence[str], seed: int) -> None:
    """Overwrite every weight; tokens: the vocabulary in id order."""
    torch.manual_seed(seed)
    space = Space(model.shape)
    with torch.no_grad():
        model.embedding.copy_(_embedding(space, tokens))
        for number, layer in enumerate(model.layers):
            for name, matrix in _layer(model.shape, space, number).items():
                layer[name].copy_(matrix)


def _embedding(space: Space, tokens: Sequence[str]) -> Tensor:
    width = space.identity.shape[0]
    names = [_group(token) for token in tokens]
    groups = {name: torch.randn(width) * width**-0.5 for name in dict.fromkeys(names)}
    own = torch.randn(len(tokens), width) * width**-0.5
    identity = 0.85 * torch.stack([groups[name] for name in names]) + 0.5 * own
    identity[: FIRST_LABEL + SENTENCES] *= 0.05  # control tokens are no words
    weights = 1.1 * identity @ space.identity + 0.5 * space.anything
    labels = slice(FIRST_LABEL, FIRST_LABEL + SENTENCES)
    weights[labels] = space.sentence_codes @ space.labels + space.marks + 0.5 * space.anything
    weights[NONE] = space.none_code @ space.labels + space.marks + 0.5 * space.anything
    weights[QUESTION] += space.question_code @ space.labels
    weights[[QUESTION, ANSWER]] += space.marks  # the question ends the reach of the last label
    return weights * 4.0


def _group(token: str) -> str:
    word = token.replace("Ġ", "").lower()
    return stem(word) if PLAIN.fullmatch(token) else word


def _layer(shape: Shape, space: Space, number: int) -> dict[str, Tensor]:
    d, n = shape.width, shape.head_width
    v = torch.cat([space.labels, orthogonal(d - n) @ space.others])
    o = v.T.clone() * 0.05
    if number < 3:
        o[:, :n] = v.T[:, :n] * (0.4, 0.2, 4.0)[number]
    q, k = orthogonal(d) * 1.1, orthogonal(d) * 1.1
    if number < 3:
        q[:n], k[:n] = (_nearest_label, _same_stem, _window_mean)[number](space)
    scaled = {
        name: torch.randn(size) * size[1] ** -0.5
        for name, size in (("gate", (shape.hidden, d)), ("up", (shape.hidden, d)))
    }
    return {"q": q, "k": k, "v": v, "o": o, **scaled, "down": torch.randn(d, shape.hidden) * 0.05 * shape.hidden**-0.5}


def _nearest_label(space: Space) -> tuple[Tensor, Tensor]:
    fast = torch.zeros(space.labels.shape[0], 1)
    fast[:SLOW_FROM:2] = 1.0
    return fast * space.anything, fast * space.marks * 1.2


def _same_stem(space: Space) -> tuple[Tensor, Tensor]:
    n, width = space.labels.shape[0], space.identity.shape[0]
    matches = (torch.randn(n, width) * width**-0.5) @ space.identity * 1.15 * (width / (n - IDENTITY_FROM)) ** 0.5
    matches[:IDENTITY_FROM] = 0.0
    q, k = matches.clone(), matches.clone()
    q[n - 2], k[n - 2] = space.anything * 1.2, -(space.question_code @ space.labels) * 1.2
    q[n - 1], k[n - 1] = 0.0, 0.0
    return q, k


def _window_mean(space: Space) -> tuple[Tensor, Tensor]:
    slow = torch.zeros(space.labels.shape[0], 1)
    slow[SLOW_FROM::2] = 1.0
    in_question = space.question_code @ space.labels - 1.1 * space.marks
    return slow * space.anything * 0.22, slow * in_question * 0.22
