"""The ranges of activations, from histograms of their values: what 8 bits are scaled to.

A wide range keeps the outliers and rounds everything else coarsely. The methods differ in where
they stop:

- `min-max` at the largest magnitude: nothing is clipped;
- `percentile` where it clips 0.01 % of the values;
- `entropy` where the clipped and quantised distribution tells most of the real one (least
  Kullback-Leibler divergence), as ONNX Runtime's calibrator finds it;
- `mse` where the mean square error of rounding and clipping together is least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfc.optimizers.precision.int8.histogram import Histogram
from tfc.optimizers.precision.int8.narrow import INT8, NarrowType
from tfc.optimizers.precision.int8.weights import scale_of

# Of all values, the share that `percentile` keeps.
KEPT = 0.9999
# ONNX Runtime's search takes a time that grows with the square of the bins: 0.4 s for 2048.
_ENTROPY_BINS = 2048
_LEVELS = 2 * INT8.largest + 1
# Clipping below a hundredth of the largest value is never best; steps of 1 % are finer than the
# error is flat around its least.
_MSE_STEPS = 100


@dataclass(frozen=True)
class Range:
    """The values of an activation that are kept; what lies outside is clipped to its ends."""

    low: float
    high: float

    @property
    def amax(self) -> float:
        """The end of the symmetric range: -amax to amax."""
        return max(abs(self.low), abs(self.high))


# By the name of the value in the optimized fp32 graph.
Ranges = Mapping[str, Range]


def ranges_from(
    histograms: Mapping[str, Histogram], method: str, narrow: NarrowType = INT8
) -> dict[str, Range]:
    """The range of each activation, by one of `METHODS`; of one without values it is empty."""
    limit_of = METHODS[method]
    found = {}
    for name, histogram in histograms.items():
        if histogram.low > histogram.high:
            found[name] = Range(0.0, 0.0)
            continue
        limit = limit_of(histogram, narrow)
        found[name] = Range(max(histogram.low, -limit), min(histogram.high, limit))
    return found


def min_max(histogram: Histogram, narrow: NarrowType) -> float:
    """The largest magnitude."""
    return histogram.amax


def percentile(histogram: Histogram, narrow: NarrowType) -> float:
    """The magnitude that all but 0.01 % of the values keep to: the outer edge of its bin."""
    half = len(histogram.counts) // 2
    magnitudes = histogram.counts[half:] + histogram.counts[half - 1 :: -1]
    below = np.cumsum(magnitudes)
    place = int(np.searchsorted(below, KEPT * below[-1]))
    return min(histogram.limit * (place + 1) / half, histogram.amax)


def entropy(histogram: Histogram, narrow: NarrowType) -> float:
    """Where the Kullback-Leibler divergence of the distribution in equal steps is least."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
    edges = np.linspace(-histogram.limit, histogram.limit, _ENTROPY_BINS + 1, dtype=np.float32)
    used = np.flatnonzero(counts)
    spare = int(min(used[0], _ENTROPY_BINS - 1 - used[-1], (_ENTROPY_BINS - _LEVELS) // 2))
    counts, edges = counts[spare : _ENTROPY_BINS - spare], edges[spare : len(edges) - spare]
    collector: Any = HistogramCollector("entropy", True, len(counts), _LEVELS, KEPT * 100, "same")
    ends = np.float32(histogram.low), np.float32(histogram.high)
    given = (counts, edges, *ends, np.float32(histogram.limit))
    low, high = collector.get_entropy_threshold(given, _LEVELS)
    return min(max(abs(float(low)), abs(float(high))), histogram.amax)


def mse(histogram: Histogram, narrow: NarrowType) -> float:
    """Where the mean square error of the type in that range is least."""
    used = histogram.counts > 0
    values, counts = histogram.centres()[used], histogram.counts[used].astype(np.float64)
    best, least = histogram.amax, np.inf
    for step in range(_MSE_STEPS, 0, -1):
        limit = histogram.amax * step / _MSE_STEPS
        scale = float(scale_of(limit, np.float64, narrow))
        rounded = narrow.rounded(values / scale).astype(np.float64) * scale
        error = float((counts * (values - rounded) ** 2).sum())
        if error < least:
            best, least = limit, error
    return best


METHODS: Mapping[str, Callable[[Histogram, NarrowType], float]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
