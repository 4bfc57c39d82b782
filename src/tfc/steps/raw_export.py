"""The exported graph before any pass, in the precision of an engine: what to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfc.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

_LIMIT = float(np.finfo(np.float16).max)


def raw_in_precision(model: ir.Model, precision: str) -> ir.Model:
    """The exported graph in `fp32` (as it is) or `fp16` (every float of it, in place).

    Raises:
        UsageError: there is no such precision.
    """
    if precision == "fp32":
        return model
    if precision != "fp16":
        raise UsageError(
            f"the unoptimized export cannot be compiled in {precision}",
            fix="Compare fp32 and fp16 engines only",
        )
    return _all_in_half(model)


def _all_in_half(model: ir.Model) -> ir.Model:
    """Every float in fp16, as `model.half()` would have exported it; what overflows is cut."""
    import onnx_ir as ir

    from tfc.optimizers.graph import set_type

    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = _half(value.const_value)
    outputs = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *outputs):
        if value.dtype == ir.DataType.FLOAT:
            set_type(value, ir.DataType.FLOAT16, value.shape)
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            node.attributes[name] = _attribute_in_half(node, attribute)
    return model


def _attribute_in_half(node: ir.Node, attribute: ir.Attr) -> ir.Attr:
    """The target of a Cast, and the tensor of a Constant or ConstantOfShape."""
    import onnx_ir as ir

    if node.op_type == "Cast" and attribute.name == "to":
        to_float = attribute.as_int() == ir.DataType.FLOAT
        return ir.AttrInt64("to", ir.DataType.FLOAT16) if to_float else attribute
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            return ir.AttrTensor(attribute.name, _half(tensor))
    return attribute


def _half(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    import onnx_ir as ir

    array = np.clip(tensor.numpy(), -_LIMIT, _LIMIT).astype(np.float16)
    return ir.tensor(array, name=tensor.name)
