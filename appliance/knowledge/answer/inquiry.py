"""A question as it was put, and how much of the conversation before it is looked at."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.types import ModelFile, Principal, Sampling, SearchOptions, Turn

HISTORY_TURNS = 8
HISTORY_CHARACTERS = 8_000
MIN_DEADLINE_SECONDS = 1e-3  # 0 would mean none


@dataclass(frozen=True, slots=True)
class Inquiry:
    """history: bounded, oldest first. file: the model that writes the answer, None to quote. model: the name it was
    asked for by. deadline: in `time.monotonic`, inf for none."""

    caller: Principal
    collection: str
    question: str
    history: tuple[Turn, ...]
    file: ModelFile | None
    model: str
    sampling: Sampling
    options: SearchOptions
    deadline: float = math.inf

    def seconds_left(self) -> float:
        """For a Generation: 0 for no limit, and never 0 where there is one."""
        return 0.0 if math.isinf(self.deadline) else max(self.deadline - time.monotonic(), MIN_DEADLINE_SECONDS)


def bounded(history: Sequence[Turn]) -> tuple[Turn, ...]:
    """The last turns that asked something, in HISTORY_CHARACTERS; what does not fit is cut at its end."""
    left, kept = HISTORY_CHARACTERS, list[Turn]()
    for turn in reversed([turn for turn in history if turn.question.strip()][-HISTORY_TURNS:]):
        question = turn.question.strip()[:left]
        answer = turn.answer.strip()[: left - len(question)]
        left -= len(question) + len(answer)
        if question:
            kept.append(Turn(question, answer))
    return tuple(reversed(kept))
