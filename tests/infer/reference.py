"""The draw of `native/sample.cpp` once more, in numpy and as plainly as can be: the oracle of its tests."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.types import Bools, Floats, Sampling

Doubles = NDArray[np.float64]
_WORD = 2**32


def draw(logits: Floats, sampling: Sampling, position: int, recent: Sequence[int], allowed: Bools | None) -> int | None:
    """The token at `position`; None where no allowed token's logit is a number above -inf."""
    penalized = penalize(logits, sampling, recent)
    everything = np.ones(len(logits), np.bool_)
    among = everything if allowed is None else allowed
    if sampling.temperature == 0:
        return best(penalized, np.flatnonzero(among))
    kept = truncate(penalized, sampling, everything)
    if not among[kept].any():
        kept = truncate(penalized, sampling, among)
    kept = kept[among[kept]]
    scores = np.full(len(logits), -np.inf)
    for token in kept:
        scores[token] = penalized[token] / np.float32(sampling.temperature) + noise(sampling.seed, position, int(token))
    return best(scores, kept)


def penalize(logits: Floats, sampling: Sampling, recent: Sequence[int]) -> Doubles:
    """Float32 arithmetic, as llama.cpp's; what is no number is -inf, and what is infinite the greatest number."""
    out = logits.copy()
    if (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1.0, 0.0, 0.0):
        repeat, presence, frequency = map(
            np.float32, (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        )
        with np.errstate(all="ignore"):
            for token in set(recent):
                if token < len(out):
                    out[token] = out[token] * repeat if out[token] <= 0 else out[token] / repeat
                    out[token] -= np.float32(recent.count(token)) * frequency + presence
    limits = np.finfo(np.float32)
    return np.minimum(np.nan_to_num(out.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf), limits.max)


def truncate(logits: Doubles, sampling: Sampling, among: Bools) -> NDArray[np.int64]:
    """The candidates that top-k, top-p and min-p leave, best first."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    order = order[among[order] & (logits[order] > -np.inf)]
    if sampling.top_k:
        order = order[: sampling.top_k]
    if len(order) > 1 and np.float32(sampling.top_p) < 1:
        weights = np.exp(logits[order] - logits[order[0]])
        enough = np.flatnonzero(np.cumsum(weights) >= float(np.float32(sampling.top_p)) * weights.sum())
        order = order[: int(enough[0]) + 1 if len(enough) else len(order)]
    if len(order) > 1 and np.float32(sampling.min_p) > 0:
        order = order[logits[order] >= logits[order[0]] + np.log(float(np.float32(sampling.min_p)))]
    return order


def best(values: Doubles, among: NDArray[np.int64]) -> int | None:
    among = among[values[among] > -np.inf]
    return int(min(among, key=lambda token: (-values[token], token))) if len(among) else None


def noise(seed: int, position: int, token: int) -> float:
    """Gumbel's distribution."""
    word = philox((token // 4, position, 0, 0), (seed, 0))[token % 4]
    return float(-np.log(-np.log((word + 0.5) / _WORD)))


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b // _WORD) ^ c1 ^ k0, b % _WORD, (a // _WORD) ^ c3 ^ k1, a % _WORD
        k0, k1 = (k0 + 0x9E3779B9) % _WORD, (k1 + 0xBB67AE85) % _WORD
    return c0, c1, c2, c3


def log_softmax(logits: Floats) -> Doubles:
    values = penalize(logits, Sampling(), ())
    if not (values > -np.inf).any():
        return values
    top = values.max()
    return np.asarray(values - top - np.log(np.exp(values - top).sum()))
