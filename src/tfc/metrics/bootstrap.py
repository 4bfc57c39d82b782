"""How sure a difference of two metrics is: the paired bootstrap.

Rows, or whole queries where rows belong to queries, are drawn with replacement, the same ones for
both sides, and the difference is taken of each draw; the interval holds the middle 95 % of them
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: the percentile
interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfc.metrics.base import Indices, Tally

# The ends of a 95 % interval are the 25th value from either side: more draws move them little.
RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0


@dataclass(frozen=True)
class Difference:
    """Of one metric: the engine's less PyTorch's, with its interval."""

    value: float
    low: float
    high: float


def paired_differences(reference: Tally, engine: Tally, rows: int) -> dict[str, Difference]:
    """The difference of each metric over `rows` rows; draws without a value are left out."""
    random = np.random.default_rng(SEED)
    every = np.arange(rows)
    names = list(reference.values(every))
    draws = np.empty((RESAMPLES, len(names)))
    for number in range(RESAMPLES):
        drawn = _drawn(random, rows, reference.units)
        before, after = reference.values(drawn), engine.values(drawn)
        draws[number] = [after[name] - before[name] for name in names]
    before, after = reference.values(every), engine.values(every)
    return {
        name: Difference(after[name] - before[name], *_interval(draws[:, column]))
        for column, name in enumerate(names)
    }


def _drawn(random: np.random.Generator, rows: int, units: Sequence[Indices] | None) -> Indices:
    """As many rows as there are, or as many units as there are."""
    if units is None:
        return random.integers(rows, size=rows)
    return np.concatenate([units[unit] for unit in random.integers(len(units), size=len(units))])


def _interval(draws: np.typing.NDArray[np.float64]) -> tuple[float, float]:
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)
