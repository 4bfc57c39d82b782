"""The operands of the canonical residual add + LayerNormalization, as a kernel takes them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import constant, is_op, only_user


@dataclass(frozen=True)
class Residual:
    """`x + bias + residual`; `bias` is a vector that was added to x for this sum only, if any."""

    x: ir.Value
    residual: ir.Value
    bias: ir.Value | None

    @property
    def operands(self) -> list[ir.Value]:
        """What is added, in the order in which the graph added it."""
        return [v for v in (self.x, self.bias, self.residual) if v is not None]


def residual_of(fused: ir.Node) -> Residual | None:
    """The operands of a `tfc.AddLayerNorm`."""
    x, residual = fused.inputs[0], fused.inputs[1]
    if x is None or residual is None:
        return None
    for value, other in ((x, residual), (residual, x)):
        found = _bias_of(value)
        if found is not None:
            return Residual(found[0], other, found[1])
    return Residual(x, residual, None)


def _bias_of(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """`(product, bias)` if the value is a product plus a bias vector that only one node reads."""
    add = value.producer()
    if add is None or not is_op(add, "Add") or only_user(value) is None:
        return None
    first, second = add.inputs
    for product, bias in ((first, second), (second, first)):
        array = constant(bias)
        if array is not None and array.ndim == 1 and product is not None and bias is not None:
            return product, bias
    return None
