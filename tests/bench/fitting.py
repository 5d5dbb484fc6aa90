"""Two small convex fits, by gradient descent on standardised columns with an L2 penalty."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.types import Floats

Matrix = NDArray[np.float64]
ROUNDS, RATE, PENALTY = 1500, 0.5, 3e-4


def fit_choice(items: Sequence[tuple[Floats, NDArray[np.bool_]]]) -> Matrix:
    """Weights of a conditional logit; items: [sentences, columns] and which sentences are right."""
    rows = np.concatenate([columns for columns, _ in items]).astype(np.float64)
    right = np.concatenate([flags for _, flags in items])
    starts = np.cumsum([0, *(len(flags) for _, flags in items)])
    of = np.repeat(np.arange(len(items)), np.diff(starts))
    scale = np.maximum(rows.std(0), 1e-9)
    rows = rows / scale
    weights = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        scores = rows @ weights
        odds = np.exp(scores - np.maximum.reduceat(scores, starts[:-1])[of])
        share = odds / np.add.reduceat(odds, starts[:-1])[of]
        wanted = odds * right
        wanted /= np.maximum(np.add.reduceat(wanted, starts[:-1])[of], 1e-300)
        weights -= RATE * (rows.T @ (share - wanted) / len(items) + PENALTY * weights)
    fitted: Matrix = weights / scale
    return fitted


def fit_answer(known: Floats, answerable: NDArray[np.bool_]) -> tuple[Matrix, float]:
    """Weights and constant of a logistic regression."""
    mean, scale = known.mean(0).astype(np.float64), np.maximum(known.std(0).astype(np.float64), 1e-9)
    rows = np.c_[(known - mean) / scale, np.ones(len(known))]
    weights = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        probability = 1 / (1 + np.exp(-rows @ weights))
        weights -= RATE * (rows.T @ (probability - answerable) / len(rows) + PENALTY * np.r_[weights[:-1], 0])
    return weights[:-1] / scale, float(weights[-1] - (weights[:-1] / scale) @ mean)
