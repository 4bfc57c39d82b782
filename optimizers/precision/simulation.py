"""An fp16 graph as an fp32 graph that rounds to fp16 after every operation.

ONNX Runtime's CPU provider runs fp16 graphs in fp32 and leaves out the roundings in between, so
an overflow does not show. Here each half-precision value is kept in fp32 and goes through
`Cast(FLOAT16)`, `Cast(FLOAT)`: what a kernel with fp32 accumulation and fp16 results computes.
"""

from __future__ import annotations

import onnx_ir as ir

from tfc.optimizers.graph import set_type
from tfc.optimizers.stand_ins import in_fp32

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def has_half(model: ir.Model) -> bool:
    """Whether any operation of the graph gives an fp16 value."""
    return any(value.dtype == _HALF for node in model.graph for value in node.outputs)


def simulate_half(model: ir.Model) -> None:
    """Rewrite the model in place."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == _HALF:
            value.const_value = in_fp32(tensor)
            set_type(value, _FLOAT, value.shape)
    nodes = list(model.graph)
    for value in model.graph.inputs:
        if value.dtype == _HALF:
            _widen(nodes[0], value)
    for node in nodes:
        for value in node.outputs:
            if value.dtype == _HALF:
                _round(node, value)


def _widen(first: ir.Node, value: ir.Value) -> None:
    """Let the readers of an input read it in fp32."""
    uses = list(value.uses())
    cast = ir.node("Cast", [value], {"to": _FLOAT})
    set_type(cast.outputs[0], _FLOAT, value.shape)
    assert first.graph is not None
    first.graph.insert_before(first, [cast])
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])


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
