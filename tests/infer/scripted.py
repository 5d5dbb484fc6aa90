"""A model whose logits are a function of its last tokens, and the loop that an engine runs an answer in."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from appliance.infer.answer import Answer
from appliance.types import FinishReason, Floats, Text, TokenChoice

Target = Callable[[Sequence[int]], Floats]


@dataclass
class Said:
    """What an answer gave, and how."""

    tokens: list[int] = field(default_factory=list)
    pieces: list[Text] = field(default_factory=list)
    ended: FinishReason | None = None
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def choices(self) -> list[TokenChoice]:
        return [choice for piece in self.pieces for choice in piece.choices]


def markov(vocabulary: int, seed: int = 0, sharpness: float = 3.0, never: Sequence[int] = ()) -> Target:
    """Random logits for each pair of last tokens, float32 [vocabulary]."""

    @lru_cache(maxsize=4096)
    def row(last: tuple[int, ...]) -> Floats:
        random = np.random.default_rng([seed, *last])
        logits = random.standard_normal(vocabulary).astype(np.float32) * np.float32(sharpness)
        logits[list(never)] = -np.inf
        return logits

    return lambda tokens: row(tuple(tokens[-2:]))


def saying(tokens: Sequence[int], vocabulary: int, start: int) -> Target:
    """A model that is all but sure of these tokens from position `start` on."""

    def row(known: Sequence[int]) -> Floats:
        logits = np.zeros(vocabulary, np.float32)
        logits[tokens[min(len(known) - start, len(tokens) - 1)]] = 50.0
        return logits

    return row


def run(answer: Answer, target: Target, prompt: Iterable[int], most: int = 8, steps: int = 500) -> Said:
    """Drafts, rows, tokens, step after step, until the answer ends."""
    said, sequence = Said(), [int(token) for token in prompt]
    while said.ended is None and said.steps < steps:
        drafted = answer.draft(most)
        assert drafted.dtype == np.int32
        assert len(drafted) <= most
        rows = [target([*sequence, *drafted[:count].tolist()]) for count in range(len(drafted) + 1)]
        made = answer.advance(rows, drafted)
        assert made.tokens[: made.accepted] == tuple(drafted[: made.accepted].tolist())
        sequence += made.tokens
        said.tokens += made.tokens
        said.pieces += [made.piece] if made.piece else []
        said.ended = made.ended
        said.steps += 1
        said.drafted += len(drafted)
        said.accepted += made.accepted
    answer.close()
    return said
