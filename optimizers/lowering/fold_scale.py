"""The score scale of attention → into the weights of the query projection.

Before, with the scale as an attribute, or (OPT, Whisper) as a product of its own::

    y = Attention(Transpose(Reshape(MatMul(x, W_q) + b_q)), k, v, mask, scale)
    q = (MatMul(x, W_q) + b_q) · scale

After::

    y = Attention(Transpose(Reshape(MatMul(x, W_q·scale) + b_q·scale)), k, v, mask, scale=1)
    q = MatMul(x, W_q·scale) + b_q·scale

TensorRT otherwise multiplies queries and keys by the scale's root in the kernel before the
attention, and a product of its own keeps the query from being packed with key and value. Fires
when the projection has no other reader; to an attention it may lead through `RotaryEmbedding` (a
rotation commutes with a factor). The product is rounded once, from fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    constant,
    is_op,
    only_user,
    replace_value,
    scalar,
)
from tfc.optimizers.lowering.heads import Projection, heads_of, projection_of
from tfc.optimizers.passes import Refusal, refusal

KIND = "scale"


@dataclass(frozen=True)
class Match:
    """What is scaled, by how much, and the node that does it: an `Attention` or a `Mul`."""

    node: ir.Node
    layer: Projection
    factor: float


class FoldScale:
    """The fusion; see the module's docstring."""

    name = "fold attention scale"
    anchors = ("Attention", "Mul")

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the factor meets a projection that nothing else reads."""
        return _scaled_product(node) if node.op_type == "Mul" else _scaled_query(node)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Scale copies of the weights, for others may read them too."""
        layer = match.layer
        _scale(model, layer.product, layer.weight, match.factor)
        if layer.bias is not None and layer.addition is not None:
            _scale(model, layer.addition, layer.bias, match.factor)
        if match.node.op_type == "Mul":
            product, graph = match.node, match.node.graph
            assert graph is not None
            replace_value(product.outputs[0], (layer.addition or layer.product).outputs[0])
            graph.remove(product, safe=True)  # or the query would still have two readers
        else:
            match.node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def _scaled_product(node: ir.Node) -> Match | None:
    """A projection times a number, if it goes on to be split into heads."""
    for value, other in (node.inputs, node.inputs[::-1]):
        factor = scalar(other)
        layer = projection_of(value) if value is not None and factor is not None else ""
        if isinstance(layer, str) or factor is None or not _read_once(value, layer):
            continue
        user = only_user(node.outputs[0])
        return Match(node, layer, factor) if is_op(user, "Reshape") else None
    return None


def _scaled_query(node: ir.Node) -> Match | Refusal | None:
    query = _before_rotation(node.inputs[0])
    heads = heads_of(query)
    if isinstance(heads, str):
        return refusal(KIND, node, f"q: {heads}")
    layer = projection_of(heads.flat)
    if isinstance(layer, str):
        return refusal(KIND, node, f"q: {layer}")
    if not all(_read_once(value, layer) for value in (query, heads.split, heads.flat)):
        return refusal(KIND, node, "q has more than one reader")
    default = heads.head_dim**-0.5
    factor = float(attribute(node, "scale", default) or default)
    return Match(node, layer, factor) if factor != 1.0 else None


def _before_rotation(query: ir.Value | None) -> ir.Value | None:
    """What is rotated to give the query; None if a rotated value has other readers."""
    while query is not None and is_op(query.producer(), "RotaryEmbedding"):
        rotation = query.producer()
        query = rotation.inputs[0] if rotation is not None and only_user(query) else None
    return query


def _read_once(value: ir.Value | None, layer: Projection) -> bool:
    """Whether the value and the product behind it have one reader each."""
    return value is not None and all(only_user(v) for v in (value, layer.product.outputs[0]))


def _scale(model: ir.Model, node: ir.Node, value: ir.Value, factor: float) -> None:
    array = constant(value)
    assert array is not None
    scaled = add_constant(
        model, f"{value.name}.scaled", (array.astype(np.float64) * factor).astype(array.dtype)
    )
    index = next(i for i, operand in enumerate(node.inputs) if operand is value)
    node.replace_input_with(index, scaled)
