"""Explicit int8 or fp8 in standard operators: Q/DQ around each product.

Before, for each chosen site::

    y = MatMul(x, W)

After (TensorRT compiles the three to one GEMM, which reads 8 bits and gives the graph's type)::

    y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(W8, s_w, axis = out))

Symmetric: one scale for an activation, one for each output channel of a weight (in fp8 one for all
of it: `tfc.optimizers.precision.int8.narrow`), no zero points.
Products that read the same activation share its pair. The pair stands right before the product,
so that whatever else reads the activation (a residual add, a norm) has it unrounded; biases,
attention, norms and activations stay in the type of the graph.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from tfc.errors import UsageError
from tfc.optimizers.graph import add_constant, constant, insert_before, set_type
from tfc.optimizers.precision.int8.narrow import INT8, NarrowType
from tfc.optimizers.precision.int8.ranges import Range, Ranges
from tfc.optimizers.precision.int8.sites import Site
from tfc.optimizers.precision.int8.weights import quantized_weight, scale_of

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def has_quantized(model: ir.Model) -> bool:
    """Whether some tool has put Q/DQ, or quantised operators, into the graph already."""
    kinds = {node.op_type for node in model.graph}
    return any(k in _QUANTIZED or "Integer" in k or k.startswith("QLinear") for k in kinds)


def quantize_dequantize(
    model: ir.Model, sites: Collection[Site], ranges: Ranges, narrow: NarrowType = INT8
) -> None:
    """Rewrite a graph in place.

    Args:
        model: the optimized graph, in fp32 or converted to half: nodes keep their names.
        sites: what to quantise, as `sites_of` found it in the fp32 graph.
        ranges: of the activations that they read.
        narrow: what to quantise to; fp8 needs opset 19.

    Raises:
        UsageError: there is no range for an activation.
    """
    nodes = {node.name: node for node in model.graph}
    shared: dict[ir.Value, ir.Value] = {}
    weights: dict[tuple[ir.Value, int], ir.Value] = {}
    for site in sites:
        node = nodes[site.node]
        activation, weight = node.inputs[:2]
        assert activation is not None
        assert weight is not None
        if activation not in shared:
            found = _range(ranges, site)
            shared[activation] = _activation(model, node, activation, found, narrow)
        axis = 0 if site.transposed else 1
        if (weight, axis) not in weights:
            weights[weight, axis] = _weight(model, node, weight, axis, narrow)
        node.replace_input_with(0, shared[activation])
        node.replace_input_with(1, weights[weight, axis])
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        del model.graph.initializers[name]


def _range(ranges: Ranges, site: Site) -> Range:
    found = ranges.get(site.activation)
    if found is None:
        raise UsageError(
            f"there is no range for what '{site.node}' reads",
            where=site.label,
            fix="Calibrate the graph that is to be quantised",
        )
    return found


def _activation(
    model: ir.Model, node: ir.Node, value: ir.Value, found: Range, narrow: NarrowType
) -> ir.Value:
    """The value through Q and DQ, before its first reader."""
    dtype = _type_of(value)
    name = f"{value.name}.{narrow.name}_scale"
    scale = add_constant(model, name, scale_of(found.amax, dtype.numpy(), narrow))
    zero = add_constant(model, f"{narrow.name}_zero", narrow.zeros(()))
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}_quantize")
    stored = quantize.outputs[0]
    dequantize = ir.node("DequantizeLinear", [stored, scale, zero], name=f"{value.name}_dequantize")
    set_type(stored, narrow.dtype, value.shape)
    set_type(dequantize.outputs[0], dtype, value.shape)
    insert_before(node, [quantize, dequantize])
    return dequantize.outputs[0]


def _weight(
    model: ir.Model, node: ir.Node, value: ir.Value, axis: int, narrow: NarrowType
) -> ir.Value:
    """The weight in 8 bits, widened by a DQ before its first reader."""
    dtype = _type_of(value)
    array = constant(value)
    assert array is not None
    found = quantized_weight(array, axis, dtype.numpy(), narrow)
    stored = add_constant(model, f"{value.name}.{narrow.name}", found.values)
    scales = add_constant(model, f"{value.name}.{narrow.name}_scales", found.scales)
    size = f"s_{found.scales.size}" if narrow.per_channel else ""
    zeros = add_constant(model, f"{narrow.name}_zero{size}", narrow.zeros(found.scales.shape))
    along = {"axis": axis} if narrow.per_channel else {}
    widen = ir.node(
        "DequantizeLinear", [stored, scales, zeros], along, name=f"{value.name}_dequantize"
    )
    set_type(widen.outputs[0], dtype, value.shape)
    insert_before(node, [widen])
    return widen.outputs[0]


def _type_of(value: ir.Value) -> ir.DataType:
    assert value.dtype in _FLOATS
    assert value.dtype is not None
    return value.dtype
