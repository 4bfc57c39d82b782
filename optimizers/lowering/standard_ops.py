"""Put the body of every model-local function in place of its calls: standard operators only."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass

from tfc.optimizers.graph import without_trailing_none
from tfc.optimizers.passes import PassResult


class InlineCanonicalOps:
    """`y, sum = tfc.AddLayerNorm(…)` → `Add`, `LayerNormalization`, which TensorRT fuses itself."""

    name = "inline canonical ops"

    def apply(self, model: ir.Model) -> PassResult:
        """Inline all functions and forget them."""
        calls = sum(node.op_identifier() in model.functions for node in model.graph)
        if not model.functions:
            return PassResult(0)
        InlinePass()(model)
        for node in model.graph:
            node.resize_inputs(len(without_trailing_none(node.inputs)))
        RemoveUnusedOpsetsPass()(model)
        return PassResult(calls)
