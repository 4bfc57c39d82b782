"""The score scale of `Attention` → into the weights of the query projection.

Before::

    y = Attention(Transpose(Reshape(MatMul(x, W_q) + b_q)), k, v, mask, scale)

After::

    y = Attention(Transpose(Reshape(MatMul(x, W_q·scale) + b_q·scale)), k, v, mask, scale=1)

TensorRT otherwise multiplies queries and keys by the scale's root, in the kernel before the
attention. Fires when only the attention reads the query on its way, which may lead through
`RotaryEmbedding` (a rotation commutes with a factor). The product is rounded once, from fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, attribute, constant, is_op, only_user
from tfc.optimizers.lowering.heads import Heads, Projection, heads_of, projection_of
from tfc.optimizers.passes import Refusal, refusal

KIND = "scale"


@dataclass(frozen=True)
class Match:
    """The block, its query projection, and the factor."""

    attention: ir.Node
    query: Projection
    scale: float


class FoldScale:
    """The fusion; see the module's docstring."""

    name = "fold attention scale"
    anchors = ("Attention",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the query comes from a projection of its own."""
        query = node.inputs[0]
        while query is not None and is_op(query.producer(), "RotaryEmbedding"):
            rotation = query.producer()
            query = rotation.inputs[0] if rotation is not None and only_user(query) else None
        heads = heads_of(query)
        if isinstance(heads, str):
            return refusal(KIND, node, f"q: {heads}")
        projection = projection_of(heads.flat)
        if isinstance(projection, str):
            return refusal(KIND, node, f"q: {projection}")
        if query is None or not _read_once(query, heads, projection):
            return refusal(KIND, node, "q has more than one reader")
        default = heads.head_dim**-0.5
        scale = float(attribute(node, "scale", default) or default)
        return Match(node, projection, scale) if scale != 1.0 else None

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Scale copies of the weights, for others may read them too."""
        for value in (match.query.weight, match.query.bias):
            array = constant(value)
            if value is None or array is None:
                continue
            scaled = (array.astype(np.float64) * match.scale).astype(array.dtype)
            layer = match.query.product if value is match.query.weight else match.query.addition
            assert layer is not None
            index = next(i for i, operand in enumerate(layer.inputs) if operand is value)
            layer.replace_input_with(index, add_constant(model, f"{value.name}.scaled", scaled))
        match.attention.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def _read_once(query: ir.Value, heads: Heads, projection: Projection) -> bool:
    """Whether every value from the product to the attention has one reader."""
    transpose = query.producer()
    split = transpose.inputs[0] if transpose is not None else None
    on_the_way = [query, split, heads.flat, projection.product.outputs[0]]
    return all(value is not None and only_user(value) is not None for value in on_the_way)
