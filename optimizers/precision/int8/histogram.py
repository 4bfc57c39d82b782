"""How often an activation takes which values, in a fixed amount of memory.

The bins are equal and lie symmetrically around zero; where a value does not fit, the limits are
doubled and each two bins become one. Limits are powers of two, so the result does not depend on
the order in which the values came, and histograms of parts of the data can be added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# 16 to 32 bins for each of the 127 levels on one side, if nothing is clipped.
BINS = 8192
_LEAST_LIMIT = 2.0**-40


def _no_counts() -> npt.NDArray[np.int64]:
    return np.zeros(BINS, np.int64)


@dataclass
class Histogram:
    """Counts of the values from -limit to limit, and the smallest and the largest value."""

    counts: npt.NDArray[np.int64] = field(default_factory=_no_counts)
    limit: float = _LEAST_LIMIT
    low: float = math.inf
    high: float = -math.inf

    @property
    def amax(self) -> float:
        """The largest magnitude; 0 where nothing was counted."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count the values.

        Raises:
            ValueError: one of them is not finite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("an activation is not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(abs(low), abs(high)))
        places = values.reshape(-1) * (BINS / 2 / self.limit)
        places += BINS / 2
        index = np.minimum(places.astype(np.int32), BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)

    def plus(self, other: Histogram) -> Histogram:
        """Both together."""
        limit = max(self.limit, other.limit)
        total = Histogram(self.counts.copy(), self.limit, self.low, self.high)
        total._widen(limit)
        rest = Histogram(other.counts.copy(), other.limit)
        rest._widen(limit)
        total.counts += rest.counts
        total.low, total.high = min(self.low, other.low), max(self.high, other.high)
        return total

    def centres(self) -> npt.NDArray[Any]:
        """The middle of each bin."""
        width = 2 * self.limit / BINS
        return -self.limit + width * (np.arange(BINS) + 0.5)

    def _widen(self, largest: float) -> None:
        if largest <= self.limit:
            return
        limit = 2.0 ** math.ceil(math.log2(largest))
        if not self.counts.any():
            self.limit = limit
            return
        while self.limit < limit:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            quarter = BINS // 4
            self.counts = np.pad(pairs, (quarter, quarter))
            self.limit *= 2
