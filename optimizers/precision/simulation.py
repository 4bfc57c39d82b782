"""An fp16 graph as an fp32 graph that rounds to fp16 after every operation.

ONNX Runtime's CPU provider runs fp16 graphs in fp32 and leaves out the roundings in between, so
an overflow does not show. Here each half-precision value is kept in fp32 and goes through
`Cast(FLOAT16)`, `Cast(FLOAT)`: what a kernel with fp32 accumulation and fp16 results computes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import constant, set_type

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def has_half(model: ir.Model) -> bool:
    """Whether any operation of the graph gives an fp16 value."""
    return any(value.dtype == _HALF for node in model.graph for value in node.outputs)


def simulate_half(model: ir.Model) -> None:
    """Rewrite the model in place."""
    for value in model.graph.initializers.values():
        array = constant(value)
        if array is not None and array.dtype == np.float16:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            set_type(value, _FLOAT, value.shape)
    for node in list(model.graph):
        for value in node.outputs:
            if value.dtype == _HALF:
                _round(node, value)


def _round(node: ir.Node, value: ir.Value) -> None:
    """Let the readers of `value` read it rounded to fp16."""
    uses = list(value.uses())
    steps = []
    source = value
    if node.op_type != "Cast":
        set_type(value, _FLOAT, value.shape)
        steps.append(ir.node("Cast", [value], {"to": _HALF}))
        source = steps[-1].outputs[0]
        set_type(source, _HALF, value.shape)
    steps.append(ir.node("Cast", [source], {"to": _FLOAT}))
    rounded = steps[-1].outputs[0]
    set_type(rounded, _FLOAT, value.shape)
    assert node.graph is not None
    node.graph.insert_after(node, steps)
    for use in uses:
        use.node.replace_input_with(use.idx, rounded)
