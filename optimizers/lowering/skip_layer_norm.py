"""`tfc.AddLayerNorm` → `com.microsoft.SkipLayerNormalization`, ONNX Runtime's kernel on CUDA.

On the CPU provider that kernel is slow (`tfc.optimizers.lowering.sum_layer_norm`).

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
    insert_before,
    replace_value,
    without_trailing_none,
)
from tfc.optimizers.lowering.residual import Residual, residual_of
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.add_layer_norm import OP

KIND = "skip_layernorm"
DOMAIN = "com.microsoft"
# SkipLayerNormalization's outputs: normalized, mean, inverse deviation, sum.
_OUTPUTS, _SUM = 4, 3
_SHIFT = 3


@dataclass(frozen=True)
class Match:
    """The canonical op and what it adds; a bias goes into the kernel."""

    fused: ir.Node
    residual: Residual


class SkipLayerNorm:
    """The fusion; see the module's docstring."""

    name = "lower to SkipLayerNormalization"
    anchors = (OP,)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the kernel computes this norm."""
        residual = residual_of(node)
        if residual is None:
            return None
        if attribute(node, "stash_type", 1) != ir.DataType.FLOAT:
            return refusal(KIND, node, "the statistics are not in fp32")
        return Match(node, residual)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put the kernel's op in place of the canonical one."""
        node = match.fused
        shift = node.inputs[3] if len(node.inputs) > _SHIFT else None
        added = match.residual
        operands = [added.x, added.residual, node.inputs[2], shift, added.bias]
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
