"""The rounding that no half-precision kernel can leave out: the floor that a gate stands on.

A copy of the fp32 graph in which what matrix products and attentions read and write, and what the
graph gives, is rounded to the significand of the half type. Exponents are those of fp32, so that
nothing overflows or underflows, and all else is computed in fp32. What a half-precision graph is
further off than this comes from the type's range, or from roundings that can be done without.

Rounding to n of 24 bits is Veltkamp's splitting (T. J. Dekker, "A floating-point technique for
extending the available precision", 1971)::

    c = (2^(24-n) + 1) · x
    rounded = c - (c - x)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, set_type
from tfc.optimizers.precision.types import HalfType

PRODUCTS = frozenset({"MatMul", "Gemm", "Attention"})
_FLOAT = ir.DataType.FLOAT
_FP32_BITS = 24
# Beyond this, c would overflow: masks and infinities stay as they are.
_SPLITTABLE = 1e33
FACTORS = 3  # of an Attention: q, k, v; the mask after them is not one


def rounded_products(model: ir.Model, half: HalfType) -> ir.Model:
    """The fp32 graph with the rounding above. The given model is not changed."""
    model = model.clone()
    rounded: dict[ir.Value, ir.Value] = {}
    for node in [node for node in model.graph if node.op_type in PRODUCTS]:
        for index, value in enumerate(node.inputs[:FACTORS]):
            if value is None or value.dtype != _FLOAT or value in rounded.values():
                continue
            if value not in rounded:
                rounded[value] = _round(model, value, node, half)
            node.replace_input_with(index, rounded[value])
        value = node.outputs[0]
        if value.dtype == _FLOAT and (uses := list(value.uses())):
            rounded[value] = _round(model, value, node, half)
            for use in uses:
                use.node.replace_input_with(use.idx, rounded[value])
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype == _FLOAT and not value.is_graph_input():
            _round_output(model, index, value, half)
    return model


def _round_output(model: ir.Model, index: int, value: ir.Value, half: HalfType) -> None:
    name, value.name = value.name, f"{value.name}_exact"
    last = model.graph[-1]
    result = _round(model, value, last, half, after=last)
    result.name = name
    model.graph.outputs[index] = result


def _round(
    model: ir.Model, value: ir.Value, reader: ir.Node, half: HalfType, after: ir.Node | None = None
) -> ir.Value:
    """The value rounded, computed right after it; an input's or a weight's before its reader."""
    factor = np.float32(2.0 ** (_FP32_BITS - half.bits) + 1)
    c = ir.node("Mul", [value, add_constant(model, "noise_factor", factor)])
    rest = ir.node("Sub", [c.outputs[0], value])
    high = ir.node("Sub", [c.outputs[0], rest.outputs[0]])
    size = ir.node("Abs", [value])
    small = ir.node(
        "Less", [size.outputs[0], add_constant(model, "noise_bound", np.float32(_SPLITTABLE))]
    )
    result = ir.node("Where", [small.outputs[0], high.outputs[0], value])
    for node in (c, rest, high, size, result):
        set_type(node.outputs[0], _FLOAT, value.shape)
    set_type(small.outputs[0], ir.DataType.BOOL, value.shape)
    place = after or value.producer()
    if place is not None:
        model.graph.insert_after(place, [c, rest, high, size, small, result])
    else:
        model.graph.insert_before(reader, [c, rest, high, size, small, result])
    return result.outputs[0]
