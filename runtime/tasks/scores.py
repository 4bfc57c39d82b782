"""Logits → probabilities, in float64 whatever the engine's precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def softmax(logits: npt.NDArray[Any]) -> Floats:
    """Probabilities over the last axis; the largest is subtracted first, so none overflows."""
    exact = logits.astype(np.float64)
    powers: Floats = np.exp(exact - exact.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


def sigmoid(logits: npt.NDArray[Any]) -> Floats:
    """1 / (1 + exp(-x)) in the form in which no exponential overflows."""
    exact = logits.astype(np.float64)
    small: Floats = np.exp(-np.abs(exact))
    found: Floats = np.where(exact >= 0, 1.0, small) / (1.0 + small)
    return found
