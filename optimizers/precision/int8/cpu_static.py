"""int8 for ONNX Runtime's CPU provider, with activations scaled to ranges found beforehand.

`QuantizeLinear` to uint8 over the given range of each activation; what lies outside is clipped. A
text's result does not depend on what it is batched with. The products are those of
`tfc.optimizers.precision.int8.cpu_products`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from tfc.errors import UsageError
from tfc.optimizers.graph import add_constant, insert_before, set_type
from tfc.optimizers.precision.int8.cpu_products import Quantized, to_integer_products
from tfc.optimizers.precision.int8.ranges import Range, Ranges
from tfc.optimizers.precision.int8.sites import sites_of

_LARGEST = 255  # of uint8


def cpu_static(model: ir.Model, sites: Collection[str], ranges: Ranges) -> None:
    """Compute these sites in int8, with the given ranges of what they read. In place.

    Args:
        model: an fp32 graph lowered for `onnxruntime`.
        sites: the names of their nodes (`tfc.optimizers.precision.int8.sites`).
        ranges: by the names of the activations; those of other values are not read.

    Raises:
        UsageError: a name is not that of a site, an activation has no range or one that is no
            interval, or a Gemm adds what is not a constant vector.
        BadInput: a weight is not finite.
    """
    for site in sites_of(model):
        if site.node in sites:
            _check(site.node, site.activation, ranges)

    def quantize(before: ir.Node, x: ir.Value) -> Quantized:
        scale, zero = uint8_scale(ranges[str(x.name)])
        scale_value = add_constant(model, f"{x.name}.scale", scale)
        zero_value = add_constant(model, f"{x.name}.zero", zero)
        inputs = [x, scale_value, zero_value]
        node = ir.node("QuantizeLinear", inputs, name=f"{x.name}_quantize")
        insert_before(before, [node])
        set_type(node.outputs[0], ir.DataType.UINT8, x.shape)
        return Quantized(node.outputs[0], scale_value, zero_value)

    to_integer_products(model, sites, quantize)


def uint8_scale(found: Range) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the zero point, scalars in fp32 and uint8, of a range.

    The range is widened to hold 0, which is then exact: padding and ReLU give it often.
    """
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    scale = (high - low) / _LARGEST or 1.0
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)


def _check(node: str, activation: str, ranges: Ranges) -> None:
    found = ranges.get(activation)
    if found is None:
        raise UsageError(
            f"there is no range of '{activation}'", where=node, fix="Calibrate it, or leave it out"
        )
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
        raise UsageError(
            f"the range of '{activation}' is no interval: {found.low:g} to {found.high:g}",
            where=node,
            fix="Calibrate on texts for which the model gives finite numbers",
        )
