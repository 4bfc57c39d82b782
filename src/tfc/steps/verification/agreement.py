"""How well what a quantised model says agrees with fp32: one number between 0 and 1 for each task.

The elementwise noise floor of `tfc.runtime.parity` is not for int8: no PyTorch runs the same int8,
and its error is far above that of rounding to half. What counts is what the model is used for:

- classification, entities, answers, masks: the share of vectors (rows or tokens) whose largest
  value is at the same place;
- several labels: the share of rows with the same labels, each decided at probability 0.5;
- a score (regression): the correlation with fp32's scores;
- embeddings: the mean cosine with fp32's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.manifest import Task

Array = npt.NDArray[Any]

LABELS, LABEL_SETS, CORRELATION, COSINE = (
    "same labels",
    "same sets of labels",
    "correlation",
    "mean cosine",
)
_EMBEDDINGS = "feature-extraction"
# A share of decisions that is below what is allowed by chance alone is not held against an engine:
# of 24 texts one is 4 %. This is the chance at which it is.
_CHANCE = 0.05


def measure_of(task: Task) -> str:
    """What agreement means for a task."""
    if task.name.endswith(_EMBEDDINGS):
        return COSINE
    return {"multi_label": LABEL_SETS, "regression": CORRELATION}.get(task.problem, LABELS)


def agreement_of(task: Task, expected: Sequence[Array], got: Sequence[Array]) -> float:
    """The agreement of two lists of arrays `[…, values]`; 0 where a value is not finite."""
    if not all(np.isfinite(array).all() for array in got):
        return 0.0
    pairs = [(_vectors(e), _vectors(g)) for e, g in zip(expected, got, strict=True)]
    measure = measure_of(task)
    if measure == CORRELATION:
        return _correlation(*(np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1)))
    if measure == COSINE:
        return float(np.concatenate([_cosines(e, g) for e, g in pairs]).mean())
    decide = _label_sets if measure == LABEL_SETS else _labels
    return float(np.concatenate([decide(e, g) for e, g in pairs]).mean())


def decisions_in(task: Task, arrays: Sequence[Array]) -> int:
    """How many decisions the agreement is a share of; 0 where it is no share."""
    if measure_of(task) not in (LABELS, LABEL_SETS):
        return 0
    return sum(len(_vectors(array)) for array in arrays)


def too_many_differ(agreement: float, allowed: float, decisions: int) -> bool:
    """Whether an agreement is too low, given how many decisions it was measured on.

    Of `decisions`, those that differ would be as many with a chance of less than 5 % if each one
    differed with the probability `1 - allowed` (binomial, one-sided). With 0 decisions the
    agreement itself is compared.
    """
    if agreement >= allowed:
        return False
    if not decisions:
        return True
    differ = round((1 - agreement) * decisions)
    return _at_least(differ, decisions, 1 - allowed) < _CHANCE


def _at_least(hits: int, trials: int, probability: float) -> float:
    """The chance of so many hits or more."""
    if probability <= 0:
        return 0.0 if hits else 1.0
    below = 0.0
    for k in range(hits):
        log = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        below += math.exp(log + k * math.log(probability) + (trials - k) * math.log1p(-probability))
    return 1 - below


def _vectors(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]).astype(np.float64)


def _labels(expected: Array, got: Array) -> Array:
    same: Array = expected.argmax(axis=1) == got.argmax(axis=1)
    return same


def _label_sets(expected: Array, got: Array) -> Array:
    same: Array = ((expected >= 0) == (got >= 0)).all(axis=1)
    return same


def _cosines(expected: Array, got: Array) -> Array:
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    products = (expected * got).sum(axis=1)
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), 1.0)


def _correlation(expected: Array, got: Array) -> float:
    if np.ptp(expected) == 0 or np.ptp(got) == 0:
        return float(np.allclose(expected, got, rtol=1e-2))
    return float(np.corrcoef(expected, got)[0, 1])
