"""The two types of 8 bits that products are quantised to: what is different between them.

Integers have equal steps, so a channel of weights that is smaller than the others needs a scale of
its own. E4M3 has a mantissa of 3 bits whatever the size of a number, from amax down to amax/28672:
one scale for the whole matrix loses nothing, and TensorRT's product needs no multiplication of its
result by a row of scales, in fp16, which could overflow before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


@dataclass(frozen=True)
class NarrowType:
    """A type of 8 bits.

    Attributes:
        name: as on the command line.
        dtype: in a graph.
        largest: the largest magnitude that is used: what a range's end is scaled to.
        per_channel: whether each output channel of a weight has a scale of its own.
    """

    name: str
    dtype: ir.DataType
    largest: int
    per_channel: bool

    def rounded(self, ratios: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Scaled values in this type: the nearest (ties to even), and the largest beyond it."""
        within = np.clip(ratios, -self.largest, self.largest)
        if self.dtype.is_floating_point():
            return np.asarray(within, self.dtype.numpy())
        return np.asarray(np.rint(within), self.dtype.numpy())

    def zeros(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Zero points."""
        return np.zeros(shape, self.dtype.numpy())


# Symmetric, to -127…127: TensorRT takes no zero point for weights, and -128 has no mirror image.
INT8 = NarrowType("int8", ir.DataType.INT8, 127, per_channel=True)
# OCP 8-bit floating point: 4 bits of exponent, 3 of fraction, no infinities; 1.75 · 2^8.
FP8 = NarrowType("fp8", ir.DataType.FLOAT8E4M3FN, 448, per_channel=False)
NARROW_TYPES = {narrow.name: narrow for narrow in (INT8, FP8)}
