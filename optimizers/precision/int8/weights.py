"""A weight in int8 with one scale for each output channel, or in fp8 with one scale.

Symmetric. The scale is the largest magnitude / 127 (in fp8 / 448), rounded to the type that the
graph keeps scales in before the weight is divided by it, so that rounding the scale costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfc.optimizers.precision.int8.narrow import INT8, NarrowType

# A channel of zeros has some scale; and 2^-20 is the smallest that fp16 keeps to 6 %.
_LEAST_SCALE = 2.0**-20

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class QuantizedWeight:
    """`[in, out]` in 8 bits and its scales, `[out]` or `[]`; with `axis` 0 it is `[out, in]`."""

    values: Array
    scales: Array
    axis: int

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight that the product computes with, in fp32."""
        wide = _along(self.scales.astype(np.float32), self.axis)
        return np.asarray(self.values.astype(np.float32) * wide, np.float32)


def quantized_weight(
    weight: Array, axis: int, scale_type: Any = np.float32, narrow: NarrowType = INT8
) -> QuantizedWeight:
    """Quantise a matrix.

    Args:
        weight: `[in, out]`, or `[out, in]`.
        axis: which of its axes is `out`.
        scale_type: the type of the scales: float32, or float16 in a graph in fp16.
        narrow: what it becomes.
    """
    wide = weight.astype(np.float32)
    largest = np.abs(wide).max(axis=1 - axis if narrow.per_channel else None)
    scales = scale_of(largest, scale_type, narrow)
    values = narrow.rounded(wide / _along(scales.astype(np.float32), axis))
    return QuantizedWeight(values, scales, axis)


def scale_of(largest: Any, scale_type: Any = np.float32, narrow: NarrowType = INT8) -> Array:
    """The scale, or the scales, that put these largest magnitudes at the end of the type."""
    exact = np.maximum(np.asarray(largest, np.float64) / narrow.largest, _LEAST_SCALE)
    return np.asarray(exact.astype(scale_type))


def _along(scales: Array, axis: int) -> Array:
    return scales if scales.ndim == 0 else np.expand_dims(scales, 1 - axis)
