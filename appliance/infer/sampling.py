"""What becomes of logits and of text: checks of sampling parameters, labels, stop strings. Pure.

The chain itself (penalties, top-k, top-p, min-p, temperature, seeded draw) is llama.cpp's: see `llama.Sampler`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from appliance.errors import InvalidArgument
from appliance.types import MAX_STOP_CHARACTERS, MAX_STOPS, SAMPLING_RANGES, Floats, Sampling

PENALTY_WINDOW_TOKENS = 64


def check(sampling: Sampling) -> None:
    """Raises InvalidArgument, naming the field that is out of range."""
    for field, (least, most) in SAMPLING_RANGES.items():
        if not least <= getattr(sampling, field) <= most:  # also refuses NaN
            raise InvalidArgument.of(field, f"must be between {least} and {most}.")
    if len(sampling.stop) > MAX_STOPS:
        raise InvalidArgument.of("stop", f"at most {MAX_STOPS} stop strings are allowed.")
    if any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in sampling.stop):
        raise InvalidArgument.of("stop", f"each must have 1 to {MAX_STOP_CHARACTERS} characters.")


def label_logprobs(logits: Floats, labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Log-probabilities of the labels among themselves. logits: float32 [vocabulary]; labels: ids [n]; returns [n]."""
    chosen = logits[labels].astype(np.float64)
    chosen -= chosen.max()
    return chosen - math.log(np.exp(chosen).sum())


class StopFilter:
    """Text on its way out, up to the first stop string, which may lie across pieces.

    What could be the beginning of a stop string is held back, so that no part of one is ever shown; the streamed text
    is the whole text's part before the stop string that is complete first, however it was cut into pieces.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is safe to show after this piece; `stopped` is set when a stop string is complete."""
        if self.stopped or not piece:
            return ""
        self._held += piece
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """The end: what was held back is text after all."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` starts with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
