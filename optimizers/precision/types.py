"""The two half-precision types: what a converter, a simulation and a gate need to know of each."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class HalfType:
    """A floating-point type of 16 bits.

    Attributes:
        name: as on the command line.
        dtype: in a graph.
        largest: the largest finite number.
        bits: of the significand, with the leading one.
        wide: whether it has the exponents of fp32, so that no fp32 activation overflows in it.
    """

    name: str
    dtype: ir.DataType
    largest: float
    bits: int
    wide: bool


# IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
FP16 = HalfType("fp16", ir.DataType.FLOAT16, (2 - 2.0**-10) * 2.0**15, 11, wide=False)
# The upper half of an IEEE 754 binary32: 8 bits of exponent, 7 of fraction.
BF16 = HalfType("bf16", ir.DataType.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 8, wide=True)
HALF_TYPES = {half.name: half for half in (FP16, BF16)}
HALF_DTYPES = frozenset(half.dtype for half in (FP16, BF16))
