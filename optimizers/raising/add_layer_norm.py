"""Residual add + LayerNormalization → one canonical op.

Before::

    sum = Add(x, residual)
    y = LayerNormalization(sum, scale, bias)

After::

    y, sum = tfc.AddLayerNorm(x, residual, scale, bias)

`tfc.AddLayerNorm` is a model-local function whose body is the two nodes above, so the raised
graph runs wherever standard ONNX runs, and nothing about the numbers changes.

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
    insert_before,
    is_op,
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
    """The two nodes of a site."""

    add: ir.Node
    norm: ir.Node


class AddLayerNorm:
    """The fusion; see the module's docstring."""

    name = "fuse add+LayerNorm"
    anchors = ("LayerNormalization",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 3."""
        summed = node.inputs[0]
        add = summed.producer() if summed is not None else None
        if add is None or not is_op(add, "Add"):
            return None
        first, second = add.inputs
        if first is None or second is None or _is_bias(first) or _is_bias(second):
            return None
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
        return Match(add, node)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put the canonical op in place of both nodes."""
        _declare(model)
        attributes = {
            name: attribute(match.norm, name, default) for name, _, default in _NORM_ATTRIBUTES
        }
        fused = ir.node(
            OP,
            [*match.add.inputs, *match.norm.inputs[1:]],
            attributes,
            domain=DOMAIN,
            num_outputs=2,
            name=f"{match.norm.name}_add",
        )
        insert_before(match.norm, [fused])
        replace_value(match.norm.outputs[0], fused.outputs[0])
        replace_value(match.add.outputs[0], fused.outputs[1])


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
