"""Which operators compute each position of a sequence for itself, and from which operands.

An axis is that of the positions in the node's result; `axis_of_operand` tells the same axis of an
operand, or None for an operand that every position needs whole (weights, keys, values).
"""

from __future__ import annotations

import onnx_ir as ir

from tfc.optimizers.graph import attribute, constant, is_op, known_shape
from tfc.optimizers.raising.add_layer_norm import DOMAIN, OP

_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "Pow", "Gelu", "Relu", "Tanh", "Erf", "Sigmoid", "Sqrt",
     "Neg", "Cast", "Identity"}
)  # fmt: skip
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_QUERY, _MASK = 0, 3
_QUERIES_AXIS = 2
_MATRIX_AXES = 2


def treats_positions_one_by_one(node: ir.Node, axis: int) -> bool:
    """Whether each position on the axis of the result depends on its own operands only."""
    if is_op(node, OP, DOMAIN):
        return _is_after(attribute(node, "axis", -1), axis)
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _ELEMENTWISE:
        values = [*node.inputs, *node.outputs]
        return all(value is not None and known_shape(value) is not None for value in values)
    if node.op_type in _NORMS:
        return _is_after(attribute(node, "axis", -1), axis)
    if node.op_type == "MatMul":
        weight = constant(node.inputs[1])
        return weight is not None and weight.ndim == _MATRIX_AXES and axis > 0
    if node.op_type == "Reshape":
        return _keeps_up_to(node, axis)
    if node.op_type == "Attention":
        return axis == _QUERIES_AXIS and _is_plain(node)
    return node.op_type == "Transpose" and bool(attribute(node, "perm", ()))


def axis_of_operand(node: ir.Node, index: int, axis: int) -> int | None:
    """The axis of positions in an operand, or None if the operand is needed whole."""
    shape = known_shape(node.inputs[index])
    if node.op_type in _ELEMENTWISE:
        own = axis - len(known_shape(node.outputs[0]) or ()) + len(shape or ())
        return own if shape is not None and own >= 0 and shape[own] != 1 else None
    if node.op_type == "Transpose":
        return int(attribute(node, "perm", ())[axis])
    if node.op_type == "Attention" and index == _MASK:
        return len(shape) - 2 if shape is not None and shape[-2] != 1 else None
    chosen = (0, 1) if node.op_type == OP else (0,)
    return axis if index in chosen else None


def _is_after(norm_axis: int, axis: int) -> bool:
    """Whether a norm is over axes behind that of the positions."""
    return norm_axis == -1 or norm_axis > axis


def _keeps_up_to(node: ir.Node, axis: int) -> bool:
    """Whether a Reshape leaves the axes up to the positions alone and knows the others."""
    before, after = known_shape(node.inputs[0]), known_shape(node.outputs[0])
    if before is None or after is None or before[: axis + 1] != after[: axis + 1]:
        return False
    return len(after) > axis and all(isinstance(size, int) for size in after[axis + 1 :])


def _is_plain(attention: ir.Node) -> bool:
    """Whether a query's result depends on its mask row, and on the keys and values, only."""
    mask = attention.inputs[_MASK] if len(attention.inputs) > _MASK else None
    shape = known_shape(attention.inputs[_QUERY])
    return (
        not attribute(attention, "is_causal", 0)
        and "q_num_heads" not in attention.attributes
        and shape is not None
        and len(shape) > _QUERIES_AXIS
        and (mask is None or known_shape(mask) is not None)
        and not any(attention.inputs[_MASK + 1 :])
        and not any(value.uses() for value in attention.outputs[1:])
    )
