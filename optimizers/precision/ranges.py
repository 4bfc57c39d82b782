"""How large the values of a graph get on real inputs: overflow found before it happens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tfc.optimizers.attention_products import all_attention_products
from tfc.optimizers.executor import Feed, outputs_of
from tfc.optimizers.graph import module_of

# fp16 holds up to 65504. Half of that leaves room for inputs that the samples do not show.
HALF_LIMIT = 65504.0 / 2


def largest_values(model: ir.Model, feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest magnitude of every fp32 value in the graph, by the value's name.

    Each value is reduced to one number inside the graph, so no activation is kept.
    """
    probe = model.clone()
    probe.graph.outputs.clear()
    names = {}
    for node in list(probe.graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT or not value.name:
                continue
            size = ir.node("Abs", [value])
            top = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0})
            probe.graph.extend([size, top])
            out = top.outputs[0]
            out.name = f"{value.name}_largest"
            out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            probe.graph.outputs.append(out)
            names[out.name] = value.name
    if not names:
        return {}
    found = outputs_of(probe, feeds)
    return {name: float(np.max([outputs[key] for outputs in found])) for key, name in names.items()}


def overflowing(model: ir.Model, feeds: Sequence[Feed]) -> dict[str, str]:
    """The values that fp16 cannot hold → the module that computes each (or its node).

    Scores are looked at without their mask, whose lowest numbers mean no more than 0 after the
    softmax.
    """
    largest = largest_values(model, feeds)
    for block in all_attention_products(model):
        if block.masking is not None:
            largest.pop(str(block.masking.outputs[0].name), None)
    producers = {v.name: node for node in model.graph for v in node.outputs}
    return {
        name: module_of(producers[name]) or str(producers[name].name)
        for name, size in largest.items()
        if not size <= HALF_LIMIT
    }
