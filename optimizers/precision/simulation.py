"""A half-precision graph as an fp32 graph that rounds to half after every operation.

ONNX Runtime's CPU provider runs fp16 graphs in fp32 and leaves out the roundings in between, so
an overflow does not show; bf16 graphs it does not run. Here each half-precision value is kept in
fp32 and goes through `Cast(FLOAT16)` or `Cast(BFLOAT16)`, then `Cast(FLOAT)`: what a kernel with
fp32 accumulation and half-precision results computes.
"""

from __future__ import annotations

import onnx_ir as ir

from tfc.optimizers.graph import set_type
from tfc.optimizers.precision.types import HALF_DTYPES
from tfc.optimizers.stand_ins import in_fp32

_FLOAT = ir.DataType.FLOAT


def has_half(model: ir.Model) -> bool:
    """Whether any operation of the graph gives an fp16 or bf16 value."""
    return any(value.dtype in HALF_DTYPES for node in model.graph for value in node.outputs)


def simulate_half(model: ir.Model) -> None:
    """Rewrite the model in place."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in HALF_DTYPES:
            value.const_value = in_fp32(tensor)
            set_type(value, _FLOAT, value.shape)
    nodes = list(model.graph)
    for value in model.graph.inputs:
        if value.dtype in HALF_DTYPES:
            _widen(nodes[0], value)
    for node in nodes:
        for value in node.outputs:
            if value.dtype in HALF_DTYPES:
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
    """Let the readers of `value` read it rounded to its half-precision type."""
    uses, half = list(value.uses()), value.dtype
    assert half is not None
    steps = []
    source = value
    if node.op_type != "Cast":
        set_type(value, _FLOAT, value.shape)
        steps.append(ir.node("Cast", [value], {"to": half}))
        source = steps[-1].outputs[0]
        set_type(source, half, value.shape)
    steps.append(ir.node("Cast", [source], {"to": _FLOAT}))
    rounded = steps[-1].outputs[0]
    set_type(rounded, _FLOAT, value.shape)
    assert node.graph is not None
    node.graph.insert_after(node, steps)
    for use in uses:
        use.node.replace_input_with(use.idx, rounded)
