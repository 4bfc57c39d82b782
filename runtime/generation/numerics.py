"""Softmax and the k largest, in float32 in the order of operations that PyTorch uses on a CPU.

Tokens are compared with those of `model.generate`: a near-tie must fall the same way. Sums are
made in float64 and rounded once, which is nearer to the true value than either library's own
float32 summation, and so differs from PyTorch's by no more than its own rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


def log_softmax(scores: Floats) -> Floats:
    """Log-probabilities over the last axis.

    The largest is taken off first and the sum's logarithm after it, not both at once: of large
    scores with a small difference the sum of the two would lose the difference.
    """
    shifted: Floats = scores - scores.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    found: Floats = shifted - total.astype(np.float32)
    return found


def softmax(scores: Floats) -> Floats:
    """Probabilities over the last axis."""
    powers: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = powers.sum(axis=-1, keepdims=True, dtype=np.float64)
    found: Floats = powers / total.astype(np.float32)
    return found


def running_sum(values: Floats) -> Floats:
    """Sums of the first 1, 2, … values of the last axis; summed in float64, as PyTorch does."""
    found: Floats = values.cumsum(axis=-1, dtype=np.float64).astype(np.float32)
    return found


def kth_largest(scores: Floats, k: int) -> Floats:
    """The k-th largest of each row (the smallest where there are fewer): `[rows, 1]`."""
    place = max(scores.shape[-1] - k, 0)
    found: Floats = np.partition(scores, place, axis=-1)[:, place : place + 1]
    return found


def largest(scores: Array, k: int) -> Integers:
    """The places of the k largest of each row, largest first; of equals the first: `[rows, k]`."""
    least = np.partition(scores, scores.shape[-1] - k, axis=-1)[:, -k]
    found = np.empty((len(scores), k), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        places = np.flatnonzero(values >= bound)
        found[row] = places[np.argsort(-values[places], kind="stable")[:k]]
    return found
