"""The ranges of activations: what int8 is scaled to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The values of an activation that int8 keeps; what lies outside is clipped to its ends."""

    low: float
    high: float

    @property
    def amax(self) -> float:
        """The end of the symmetric range: -amax to amax."""
        return max(abs(self.low), abs(self.high))


# By the name of the value in the optimized fp32 graph.
Ranges = Mapping[str, Range]
