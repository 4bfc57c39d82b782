"""`tfc.AddLayerNorm` → `com.microsoft.SkipLayerNormalization`, ONNX Runtime's fused kernel.

Before::

    h = Add(product, b)                          # b: the linear layer's bias, if only this reads h
    y, sum = tfc.AddLayerNorm(h, residual, scale, shift)

After::

    y, _, _, sum = SkipLayerNormalization(product, residual, scale, shift, b)

Fires when the norm's statistics are in fp32 (the kernel's only way); otherwise the canonical op
is inlined, and runs as two kernels. The shift (the kernel's beta) may be absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import (
    attribute,
    constant,
    insert_before,
    is_op,
    only_user,
    replace_value,
    without_trailing_none,
)
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.add_layer_norm import OP

KIND = "skip_layernorm"
DOMAIN = "com.microsoft"
# SkipLayerNormalization's outputs: normalized, mean, inverse deviation, sum.
_OUTPUTS, _SUM = 4, 3
_SHIFT = 3


@dataclass(frozen=True)
class Match:
    """The canonical op, its operands, and the bias that goes into the kernel."""

    fused: ir.Node
    x: ir.Value
    residual: ir.Value
    bias: ir.Value | None


class SkipLayerNorm:
    """The fusion; see the module's docstring."""

    name = "lower to SkipLayerNormalization"
    anchors = (OP,)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the kernel computes this norm."""
        x, residual = node.inputs[0], node.inputs[1]
        if x is None or residual is None:
            return None
        if attribute(node, "stash_type", 1) != ir.DataType.FLOAT:
            return refusal(KIND, node, "the statistics are not in fp32")
        for value, other in ((x, residual), (residual, x)):
            bias = _bias_of(value)
            if bias is not None:
                return Match(node, bias[0], other, bias[1])
        return Match(node, x, residual, None)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put the kernel's op in place of the canonical one."""
        node = match.fused
        shift = node.inputs[3] if len(node.inputs) > _SHIFT else None
        operands = [match.x, match.residual, node.inputs[2], shift, match.bias]
        total = node.outputs[1]
        kernel = ir.node(
            "SkipLayerNormalization",
            without_trailing_none(operands),
            {"epsilon": float(attribute(node, "epsilon", 1e-5))},
            domain=DOMAIN,
            num_outputs=_OUTPUTS if total.uses() or total.is_graph_output() else 1,
            name=node.name,
        )
        pairs = [(node.outputs[0], kernel.outputs[0])]
        for unused in kernel.outputs[1:_SUM]:
            unused.name = ""
        if len(kernel.outputs) == _OUTPUTS:
            pairs.append((total, kernel.outputs[_SUM]))
        insert_before(node, [kernel])
        for old, new in pairs:
            replace_value(old, new)
        model.opset_imports[DOMAIN] = 1


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
