"""The projections around an `Attention` block: what both lowerings ask about a site."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import attribute, constant, is_op, known_shape, only_user

TO_HEADS = (0, 2, 1, 3)


@dataclass(frozen=True)
class Heads:
    """`Transpose(Reshape(x, [batch, sequence, heads, head_dim]))`: x split into heads.

    `flat` is x, `[batch, sequence, heads * head_dim]`, `split` the result of the Reshape.
    """

    flat: ir.Value
    split: ir.Value
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Projection:
    """`MatMul(x, weight) + bias`; `weight` is `[hidden, out]`, `bias` `[out]` or absent.

    `product` is the MatMul, `addition` the Add of the bias if there is one.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    product: ir.Node
    addition: ir.Node | None


def heads_of(value: ir.Value | None) -> Heads | str:
    """How the value was split into heads, or why it was not."""
    transpose = value.producer() if value is not None else None
    if transpose is None or not is_op(transpose, "Transpose"):
        return "it is not transposed to [batch, heads, sequence, head_dim]"
    if tuple(attribute(transpose, "perm", ())) != TO_HEADS or transpose.inputs[0] is None:
        return "its heads are transposed in another order"
    split = transpose.inputs[0]
    reshape = split.producer()
    shape = known_shape(split)
    if reshape is None or not is_op(reshape, "Reshape") or reshape.inputs[0] is None:
        return "it is not reshaped into heads"
    if shape is None or len(shape) != 4:
        return "its shape is not known"
    heads, head_dim = shape[2], shape[3]
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return "the number of heads is not known"
    flat = known_shape(reshape.inputs[0])
    if flat is None or len(flat) != 3 or flat[2] != heads * head_dim or flat[:2] != shape[:2]:
        return "the reshape does more than split the last axis"
    return Heads(reshape.inputs[0], split, heads, head_dim)


def merged_heads_after(attention: ir.Node) -> ir.Node | None:
    """The `Reshape` that merges the heads again, if nothing else reads what lies between."""
    transpose = only_user(attention.outputs[0])
    if transpose is None or not is_op(transpose, "Transpose"):
        return None
    if tuple(attribute(transpose, "perm", ())) != TO_HEADS:
        return None
    reshape = only_user(transpose.outputs[0])
    if reshape is None or not is_op(reshape, "Reshape"):
        return None
    before, after = known_shape(transpose.outputs[0]), known_shape(reshape.outputs[0])
    if before is None or after is None or len(before) != 4 or len(after) != 3:
        return None
    heads, head_dim = before[2], before[3]
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return None
    return reshape if after == (*before[:2], heads * head_dim) else None


def projection_of(value: ir.Value) -> Projection | str:
    """The linear layer that gives the value, or why it is not one."""
    node = value.producer()
    bias = addition = None
    if node is not None and is_op(node, "Add"):
        addition = node
        first, second = node.inputs
        bias = second if constant(second) is not None else first
        product = first if bias is second else second
        if constant(bias) is None:
            return "it is a sum, not a projection"
        node = product.producer() if product is not None else None
    if node is None or not is_op(node, "MatMul"):
        return "it is not the result of a MatMul"
    x, weight = node.inputs
    array = constant(weight)
    if array is None or array.ndim != 2 or x is None or weight is None:
        return "its weight is not a constant matrix"
    bias_array = constant(bias)
    if bias_array is not None and bias_array.shape != (array.shape[1],):
        return f"its bias has shape {list(bias_array.shape)}"
    return Projection(x, weight, bias, node, addition)
