"""`tfc.AddLayerNorm` → `Sum` and `LayerNormalization`, the fastest form on ONNX Runtime's CPU.

Before::

    h = Add(product, b)                          # b: the linear layer's bias, if only this reads h
    y, sum = tfc.AddLayerNorm(h, residual, scale, shift)

After::

    sum = Sum(product, b, residual)
    y = LayerNormalization(sum, scale, shift)

ONNX Runtime has a fused kernel, `com.microsoft.SkipLayerNormalization`, and puts it in place of
every `Add` and `LayerNormalization` that it finds. On the CPU that kernel is slow: on
`[8, 256, 384]` in fp32 it takes 5 times as long as the two (ONNX Runtime 1.31, AVX-512), 11 % of
the time of all MiniLM. A `Sum` is not found. `perf/cpu_forms.py` measures the forms: 1.16 times
the raw export under ONNX Runtime's own optimisations in the geometric mean over five shapes, with
`SkipLayerNormalization` 1.05 times (`perf/results/cpu_forms.json`).

Always fires. The additions keep their order, so each sum is the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import insert_before, replace_value, without_trailing_none
from tfc.optimizers.lowering.residual import Residual, residual_of
from tfc.optimizers.raising.add_layer_norm import OP

_FIRST_OF_NORM = 2


@dataclass(frozen=True)
class Match:
    """The canonical op and what it adds."""

    fused: ir.Node
    residual: Residual


class SumLayerNorm:
    """The fusion; see the module's docstring."""

    name = "lower to Sum and LayerNormalization"
    anchors = (OP,)

    def match(self, node: ir.Node) -> Match | None:
        """Every canonical op."""
        residual = residual_of(node)
        return Match(node, residual) if residual is not None else None

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put the two nodes in place of the canonical op."""
        node = match.fused
        total = ir.node("Sum", match.residual.operands)
        parameters = without_trailing_none(node.inputs[_FIRST_OF_NORM:])
        norm = ir.Node(
            "",
            "LayerNormalization",
            [total.outputs[0], *parameters],
            attributes=list(node.attributes.values()),
            name=node.name,
        )
        insert_before(node, [total, norm])
        replace_value(node.outputs[0], norm.outputs[0])
        replace_value(node.outputs[1], total.outputs[0])
