"""Residual add + LayerNormalization → one canonical op.

Before::

    sum = Add(x, residual)
    y = LayerNormalization(sum, scale, bias)

After::

    y, sum = tfc.AddLayerNorm(x, residual, scale, bias)

`tfc.AddLayerNorm` is a model-local function whose body is the two nodes above, so the raised
graph runs wherever standard ONNX runs, and nothing about the numbers changes.

A linear layer's bias that is added last, `Add(Add(x, residual), bias)`, is added to x first. A
`Reshape` between the sum and the norm that leaves the last axis alone is put behind the norm.

Fires when:
1. the norm is over the last axis, and its input is an `Add`;
2. both operands have the same known shape (no fused kernel takes another one);
3. at least one operand is more than a sum of embedding rows, and neither is the same for all rows
   of the batch: positions added to embeddings are not a residual connection, and no site.

The sum may have other readers (pre-LN models keep it as the residual stream): they read the
second output.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import (
    attribute,
    constant,
    copy_type,
    insert_before,
    is_op,
    known_shape,
    only_user,
    replace_value,
    same_shape,
)
from tfc.optimizers.passes import Refusal, refusal

KIND = "add_layernorm"
DOMAIN = "tfc"
OP = "AddLayerNorm"
_NORM_ATTRIBUTES = (
    ("axis", ir.AttributeType.INT, -1),
    ("epsilon", ir.AttributeType.FLOAT, 1e-5),
    ("stash_type", ir.AttributeType.INT, 1),
)
# What exporters do to the rows of a table before they are added.
_MOVING = ("Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class Match:
    """The nodes of a site, the two operands of its sum, and the bias that is added besides."""

    add: ir.Node
    norm: ir.Node
    operands: tuple[ir.Value, ir.Value]
    bias: ir.Value | None = None
    reshape: ir.Node | None = None


class AddLayerNorm:
    """The fusion; see the module's docstring."""

    name = "fuse add+LayerNorm"
    anchors = ("LayerNormalization",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 3."""
        summed = node.inputs[0]
        reshape = _reshape_of_rows(summed)
        total = reshape.inputs[0] if reshape is not None else summed
        add = total.producer() if total is not None else None
        if add is None or not is_op(add, "Add"):
            return None
        operands, bias = _operands(add)
        if operands is None:
            return None
        first, second = operands
        if _is_embedding(first) and _is_embedding(second):
            return None
        if _is_shared(first, second) or _is_shared(second, first):
            return None
        axis = attribute(node, "axis", -1)
        rank = None if summed is None or summed.shape is None else len(summed.shape)
        if axis != -1 and axis + 1 != rank:
            return refusal(KIND, node, f"the norm is over axis {axis}, not the last one")
        if not same_shape(first, second):
            shapes = f"{first.shape} and {second.shape}"
            return refusal(KIND, node, f"the operands of the addition have shapes {shapes}")
        return Match(add, node, operands, bias, reshape)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put the canonical op in place of both nodes."""
        _declare(model)
        attributes = {
            name: attribute(match.norm, name, default) for name, _, default in _NORM_ATTRIBUTES
        }
        x, residual = match.operands
        if match.bias is not None:
            biased = ir.node("Add", [x, match.bias])
            copy_type(x, biased.outputs[0])
            insert_before(match.norm, [biased])
            x = biased.outputs[0]
        fused = ir.node(
            OP,
            [x, residual, *match.norm.inputs[1:]],
            attributes,
            domain=DOMAIN,
            num_outputs=2,
            name=f"{match.norm.name}_add" if match.norm.name else None,
        )
        insert_before(match.norm, [fused])
        normalized = fused.outputs[0]
        if match.reshape is not None:
            copy_type(match.add.outputs[0], normalized)
            moved = ir.node("Reshape", [normalized, match.reshape.inputs[1]])
            insert_before(match.norm, [moved])
            normalized = moved.outputs[0]
        replace_value(match.norm.outputs[0], normalized)
        replace_value(match.add.outputs[0], fused.outputs[1])


def _reshape_of_rows(value: ir.Value | None) -> ir.Node | None:
    """The `Reshape` that gives the value and keeps its last axis, if there is one."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "Reshape"):
        return None
    before, after = known_shape(node.inputs[0]), known_shape(value)
    keeps = before and after and isinstance(before[-1], int) and before[-1] == after[-1]
    return node if keeps else None


def _operands(
    add: ir.Node,
) -> tuple[tuple[ir.Value, ir.Value] | None, ir.Value | None]:
    """The two tensors of a sum, and the bias that is added to both; no tensors if one is a bias."""
    first, second = add.inputs
    if first is None or second is None:
        return None, None
    if not _is_bias(first) and not _is_bias(second):
        return (first, second), None
    bias, inner = (first, second) if _is_bias(first) else (second, first)
    below = inner.producer()
    if below is None or not is_op(below, "Add") or only_user(inner) is None:
        return None, None
    x, residual = below.inputs
    if x is None or residual is None or _is_bias(x) or _is_bias(residual):
        return None, None
    product = residual.producer()
    if product is not None and product.op_type in ("MatMul", "Gemm"):
        x, residual = residual, x
    return (x, residual), bias


def _is_bias(value: ir.Value) -> bool:
    return constant(value) is not None


def _is_shared(value: ir.Value, other: ir.Value) -> bool:
    """Whether the rows of `other` all get the same values: positions, not a residual."""
    if value.shape is None or other.shape is None:
        return False
    if len(value.shape) < len(other.shape):
        return True
    return len(value.shape) > 1 and value.shape[0] == 1 and other.shape[0] != 1


def _is_embedding(value: ir.Value) -> bool:
    """Whether the value is rows of tables, scaled or moved, or sums of such rows."""
    node = value.producer()
    if node is None:
        return constant(value) is not None
    if node.op_type in ("Add", "Mul", "Div"):
        return all(v is not None and _is_embedding(v) for v in node.inputs)
    if node.op_type in _MOVING and node.inputs[0] is not None:
        return _is_embedding(node.inputs[0])
    if is_op(node, "Gather"):
        return constant(node.inputs[0]) is not None
    return False


def _declare(model: ir.Model) -> None:
    """Add the function to the model, once."""
    key = (DOMAIN, OP, "")
    if key in model.functions:
        return
    inputs = [ir.Value(name=name) for name in ("x", "residual", "scale", "bias")]
    x, residual, scale, bias = inputs
    add = ir.node("Add", [x, residual], name="add")
    norm = ir.Node(
        "",
        "LayerNormalization",
        [add.outputs[0], scale, bias],
        attributes=[ir.RefAttr(n, n, kind) for n, kind, _ in _NORM_ATTRIBUTES],
        name="norm",
    )
    add.outputs[0].name, norm.outputs[0].name = "sum", "normalized"
    body = ir.Graph(
        inputs,
        [norm.outputs[0], add.outputs[0]],
        nodes=[add, norm],
        opset_imports={"": model.opset_imports[""]},
        name=OP,
    )
    parameters = [ir.Attr(n, kind, default) for n, kind, default in _NORM_ATTRIBUTES]
    model.functions[key] = ir.Function(DOMAIN, OP, graph=body, attributes=parameters)
    model.opset_imports[DOMAIN] = 1
