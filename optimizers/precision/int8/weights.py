"""A weight in int8 with one scale for each output channel.

Symmetric, to -127…127: TensorRT takes no zero point for weights, and -128 would have no mirror
image. The scale of a channel is its largest magnitude / 127, rounded to the type that the graph
keeps scales in before the weight is divided by it, so that rounding the scale costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 127
# A channel of zeros has some scale; and 2^-20 is the smallest that fp16 keeps to 6 %.
_LEAST_SCALE = 2.0**-20

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class QuantizedWeight:
    """`[in, out]` in int8 and `[out]` scales; with `axis` 0 it is `[out, in]`."""

    values: npt.NDArray[np.int8]
    scales: Array
    axis: int

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight that the int8 product computes with, in fp32."""
        scales = self.scales.astype(np.float32)
        wide = scales[:, None] if self.axis == 0 else scales[None, :]
        return (self.values.astype(np.float32) * wide).astype(np.float32)


def quantized_weight(weight: Array, axis: int, scale_type: Any = np.float32) -> QuantizedWeight:
    """Quantise a matrix.

    Args:
        weight: `[in, out]`, or `[out, in]`.
        axis: which of its axes is `out`.
        scale_type: the type of the scales: float32, or float16 in a graph in fp16.
    """
    wide = weight.astype(np.float32)
    largest = np.abs(wide).max(axis=1 - axis)
    scales = scale_of(largest, scale_type)
    along = scales.astype(np.float32)
    ratio = wide / (along[:, None] if axis == 0 else along[None, :])
    values = np.clip(np.rint(ratio), -LARGEST, LARGEST).astype(np.int8)
    return QuantizedWeight(values, scales, axis)


def scale_of(largest: Any, scale_type: Any = np.float32) -> Array:
    """The scale, or the scales, that put these largest magnitudes at 127."""
    exact = np.maximum(np.asarray(largest, np.float64) / LARGEST, _LEAST_SCALE)
    return np.asarray(exact.astype(scale_type))
