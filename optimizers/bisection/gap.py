"""How far two arrays are apart, and how far rounding explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.runtime.parity import NOISE_FACTOR, PEAK_TO_RMS

Array = npt.NDArray[Any]
# One operation in fp32 on the same inputs differs by the order of its sums: below 2e-6 of the
# largest value for products, attentions and norms of hidden sizes up to 768. A wrong weight, scale
# or epsilon that fails a model is off by more at its node.
FP32_SHARE = 1e-5


@dataclass(frozen=True)
class Gap:
    """The difference of two arrays, and what is allowed: largest, and root mean square.

    `scale` is the largest finite value of the reference. A difference is infinite where only one
    of the two has an infinity or a NaN, or the shapes differ.
    """

    max_abs: float
    rms: float
    scale: float
    allowed_max: float
    allowed_rms: float

    @property
    def beyond(self) -> bool:
        """Whether rounding does not explain the difference."""
        return not (self.max_abs <= self.allowed_max and self.rms <= self.allowed_rms)

    @property
    def excess(self) -> float:
        """The difference as a multiple of what is allowed."""
        pairs = ((self.max_abs, self.allowed_max), (self.rms, self.allowed_rms))
        return max(found / allowed if allowed else found for found, allowed in pairs)


def gap_of(expected: Array, got: Array, floor: Array | None = None, share: float = 0.0) -> Gap:
    """Compare two arrays.

    Args:
        expected: the reference.
        got: what is compared with it.
        floor: what the reference gives with the roundings that cannot be avoided; None if none.
        share: at least this share of the scale is allowed.
    """
    scale = _largest(expected)
    max_abs, rms = _difference(expected, got)
    peak, noise = _difference(expected, floor) if floor is not None else (0.0, 0.0)
    allowed_rms = max(NOISE_FACTOR * noise, share * (scale or 1.0))
    if floor is None:
        return Gap(max_abs, rms, scale, allowed_rms, allowed_rms)
    return Gap(
        max_abs, rms, scale, max(NOISE_FACTOR * peak, PEAK_TO_RMS * allowed_rms), allowed_rms
    )


def rounded(array: Array, bits: int) -> Array:
    """fp32 numbers with a significand of `bits`; their exponents stay, so that none overflows."""
    fraction, exponent = np.frexp(array)
    exact = np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)
    return np.asarray(np.where(np.isfinite(array), exact, array), array.dtype)


def _difference(expected: Array, got: Array) -> tuple[float, float]:
    """The largest and the root mean square difference."""
    if expected.shape != got.shape:
        return float("inf"), float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf"), float("inf")
    if not finite.any():
        return 0.0, 0.0
    difference = np.abs(expected[finite].astype(np.float64) - got[finite])
    return float(difference.max()), float(np.sqrt(np.mean(difference**2)))


def _largest(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
