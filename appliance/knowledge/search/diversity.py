"""Maximal marginal relevance: each next one is relevant, and unlike those that stand before it.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing summaries"
(SIGIR 1998): of what is left, take the one with the greatest (1 - d) * relevance - d * likeness to its nearest that was
taken. Relevance is spread over 0 to 1 first, so that d means the same whatever the scores are. Pure.
"""

import numpy as np
from numpy.typing import NDArray

from appliance.types import Floats


def diverse_order(scores: Floats, vectors: Floats, diversity: float) -> NDArray[np.intp]:
    """The order in which to show candidates: their indices, each once.

    scores: float32 [n], finite, higher is better; vectors: float32 [n, dim], unit norm; diversity: 0 (by score, equal
    scores as they stand) to 1. O(n² dim).
    """
    if diversity <= 0 or len(scores) < 2:
        return np.argsort(-scores, kind="stable")
    low, high = float(scores.min()), float(scores.max())
    relevance = (scores - low) / ((high - low) or 1.0)
    likeness = vectors @ vectors.T
    nearest = np.zeros(len(scores), np.float32)
    order = np.zeros(len(scores), np.intp)
    left = np.ones(len(scores), np.bool_)
    for place in range(len(scores)):
        gain = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = int(np.argmax(gain)) if place else int(np.argmax(scores))
        order[place], left[best] = best, False
        nearest = np.maximum(nearest, likeness[best])
    return order
