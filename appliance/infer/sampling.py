"""From logits to tokens, and from text to what may be shown: parameters, the draw, log-probabilities, stop strings.

The draw is a function of (logits, tokens so far, parameters, seed): no state is kept between tokens. A token's noise is
Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) of (seed, position, token), and
the greatest logit / temperature + noise wins (Gumbel-max: Maddison et al., "A* sampling", 2014), which is an exact draw
from the softmax. So a stream goes on anywhere, in any batch, speculated or not, as it would have gone on alone; where
the logits differ a little (another batch width or another machine rounds otherwise) so do the scores, and the token is
another one only where two scores were that close.

Order and meaning of the parameters are llama.cpp's: penalties, top-k, top-p, min-p, temperature. The penalties look at
the last PENALTY_WINDOW_TOKENS tokens, the prompt's included: `repeat_penalty` divides a positive logit of a token seen
there and multiplies a negative one, `presence_penalty` is taken off once, `frequency_penalty` as often as it is there.
This module alone knows `native/sample.cpp`.
"""

import ctypes
import math
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from appliance.errors import Broken, InvalidArgument
from appliance.types import MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOP_LOGPROBS, SAMPLING_RANGES, Floats, Sampling

PENALTY_WINDOW_TOKENS = 64
LEAST_LOGPROB = -9999.0  # stands for less too, and for log(0): JSON has no infinity

_LIBRARY = "appliance/libsample.so"

Mask = NDArray[np.uint32]


def check(sampling: Sampling) -> None:
    """Raises InvalidArgument, naming the field that is out of range."""
    for field, (least, most) in SAMPLING_RANGES.items():
        if not least <= getattr(sampling, field) <= most:  # also refuses NaN
            raise InvalidArgument.of(field, f"must be between {least} and {most}.")
    if len(sampling.stop) > MAX_STOPS:
        raise InvalidArgument.of("stop", f"at most {MAX_STOPS} stop strings are allowed.")
    if any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in sampling.stop):
        raise InvalidArgument.of("stop", f"each must have 1 to {MAX_STOP_CHARACTERS} characters.")


class Sampler:
    """How one request's tokens are drawn. Keeps nothing between draws."""

    def __init__(self, sampling: Sampling) -> None:
        self.penalizes = (
            sampling.repeat_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        )
        self._how = _Sampling(
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.repeat_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            min(sampling.top_k, 2**31 - 1),
            sampling.seed,
        )
        self._at = ctypes.addressof(self._how)
        self._sample = _native().sample

    def draw(
        self, logits: Floats, position: int, recent: Iterable[int] = (), allowed: Mask | None = None
    ) -> int | None:
        """The token at `position` of the sequence (its prompt counted); None where no logit is a number.

        logits: float32 [vocabulary], contiguous. recent: the tokens before it, of which penalties count the last
        PENALTY_WINDOW_TOKENS; may be left out where the sampler does not penalize. allowed: one bit a token, lowest
        first: of what top-k, top-p and min-p leave of all tokens, the allowed one of the greatest score wins; only
        where none is left are they applied to the allowed tokens alone. A draw that a mask allows is the draw with it.
        """
        if self.penalizes:
            window = np.fromiter(recent, np.int32)[-PENALTY_WINDOW_TOKENS:]
            at, length = window.ctypes.data, len(window)
        else:
            at, length = None, 0
        mask = None if allowed is None else allowed.ctypes.data
        token: int = self._sample(logits.ctypes.data, len(logits), self._at, at, length, mask, position)
        return None if token < 0 else token


def logprobs(logits: Floats, chosen: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `chosen`, and the `top` likeliest tokens with theirs, best first.

    logits: float32 [vocabulary], contiguous, as the model gave them. At most MAX_TOP_LOGPROBS.
    """
    tokens, values = np.empty(MAX_TOP_LOGPROBS + 1, np.int32), np.empty(MAX_TOP_LOGPROBS + 1, np.float64)
    top = min(top, MAX_TOP_LOGPROBS)
    found = _native().logprobs(logits.ctypes.data, len(logits), chosen, top, tokens.ctypes.data, values.ctypes.data)
    logs = np.maximum(values[: found + 1], LEAST_LOGPROB).tolist()
    return logs[0], list(zip(tokens[1 : found + 1].tolist(), logs[1:], strict=True))


def label_logprobs(logits: Floats, labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Log-probabilities of the labels among themselves. logits: float32 [vocabulary]; labels: ids [n]; returns [n]."""
    least, most = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    chosen = np.nan_to_num(logits[labels].astype(np.float64), nan=least, neginf=least, posinf=most)
    chosen -= chosen.max()
    return chosen - math.log(np.exp(chosen).sum())


class StopFilter:
    """Text on its way out, up to the first stop string, which may lie across pieces.

    What could be the beginning of a stop string is held back, so that no part of one is ever shown; the streamed text
    is the whole text's part before the stop string that is complete first, however it was cut into pieces. Linear in
    the text: one automaton a stop string (Knuth, Morris and Pratt, 1977), whose state is how much of it is held.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._borders = [_borders(stop) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is safe to show after this piece; `stopped` is set when a stop string is complete."""
        if self.stopped or not piece:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        for at, character in enumerate(piece, len(self._held)):
            if complete := self._step(character):
                self.stopped, self._held = True, ""
                return text[: at + 1 - complete]
        shown = len(text) - max(self._matched)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The end: what was held back is text after all."""
        shown, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return shown

    def _step(self, character: str) -> int:
        """Take one character; the length of the longest stop string that it completes, or 0."""
        complete = 0
        for number, stop in enumerate(self._stops):
            matched = self._matched[number]
            while matched and stop[matched] != character:
                matched = self._borders[number][matched - 1]
            matched += stop[matched] == character
            self._matched[number] = matched
            if matched == len(stop):
                complete = max(complete, matched)
        return complete


def _borders(stop: str) -> list[int]:
    """For each beginning of the string, the length of its longest proper end that is also its beginning."""
    borders, length = [0] * len(stop), 0
    for at in range(1, len(stop)):
        while length and stop[at] != stop[length]:
            length = borders[length - 1]
        length += stop[at] == stop[length]
        borders[at] = length
    return borders


class _Sampling(ctypes.Structure):
    _fields_: ClassVar = [
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repeat_penalty", ctypes.c_float),
        ("presence_penalty", ctypes.c_float),
        ("frequency_penalty", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
    ]


@cache
def _native() -> ctypes.CDLL:
    """The library that the package's installation put beside it. Raises Broken."""
    try:
        library = ctypes.CDLL(str(metadata.distribution("appliance").locate_file(_LIBRARY)))
    except (metadata.PackageNotFoundError, OSError) as error:
        raise Broken(f"The sampler {_LIBRARY} is not installed: build the package with `pip install`.") from error
    pointer, size = ctypes.c_void_p, ctypes.c_int32
    library.sample.argtypes = (pointer, size, pointer, pointer, size, pointer, ctypes.c_uint32)
    library.sample.restype = size
    library.logprobs.argtypes = (pointer, size, size, size, pointer, pointer)
    library.logprobs.restype = size
    return library
