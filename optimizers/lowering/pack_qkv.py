"""Three projections of the same tensor → one QKV GEMM, in the form that TensorRT compiles best.

Before, per block (11 compiled kernels in a post-LN encoder layer, and waits between streams)::

    q, k, v = Transpose(Reshape(MatMul(x, W_i) + b_i))    three times
    y = Attention(q, k, v, mask, scale)

After (9 kernels, no waits)::

    qkv = Transpose(Reshape(MatMul(x, [W_q·scale | W_k | W_v]) + b, [0, 0, 3, N, D]), (2,0,3,1,4))
    q, k, v = Split(qkv, axis=0), squeezed
    y = Attention(q, k, v, mask, scale=1)

Measured with the TensorRT-RTX 1.7 builder on a BERT-base layer and on MiniLM, fp16: the bias goes
into the GEMM and one layout kernel is left on each side of the attention. Splitting on the last
axis, 3-D attention inputs, or scaling q by a Mul keep three layout kernels.

Fires when q, k and v are projections of one tensor by constant matrices of the same width, with
a bias on all three or on none, and the same number of heads. Grouped-query and cross attention
do not fire. The scale goes into W_q and b_q in fp64 and is rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, attribute, constant, copy_type, insert_before
from tfc.optimizers.lowering.heads import Heads, Projection, heads_of, projection_of
from tfc.optimizers.passes import Refusal, refusal

KIND = "qkv"
_TO_QKV_FIRST = [2, 0, 3, 1, 4]


@dataclass(frozen=True)
class Match:
    """The block, and the heads and projections of q, k and v."""

    attention: ir.Node
    heads: Heads
    projections: tuple[Projection, Projection, Projection]
    scale: float


class PackQKV:
    """The fusion; see the module's docstring."""

    name = "pack QKV"
    anchors = ("Attention",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether q, k and v can be one GEMM."""
        split: list[Heads] = []
        projections: list[Projection] = []
        for name, value in zip("qkv", node.inputs[:3], strict=True):
            heads = heads_of(value)
            if isinstance(heads, str):
                return refusal(KIND, node, f"{name}: {heads}")
            projection = projection_of(heads.flat)
            if isinstance(projection, str):
                return refusal(KIND, node, f"{name}: {projection}")
            split.append(heads)
            projections.append(projection)
        q, k, v = projections
        if not (q.x is k.x is v.x):
            return refusal(KIND, node, "q, k and v are projections of different tensors")
        if len({(h.heads, h.head_dim) for h in split}) != 1:
            return refusal(KIND, node, "q, k and v have different numbers of heads")
        if len({p.bias is None for p in projections}) != 1:
            return refusal(KIND, node, "some of q, k and v have a bias and some have none")
        default = split[0].head_dim ** -0.5
        scale = float(attribute(node, "scale", default) or default)
        return Match(node, split[0], (q, k, v), scale)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Write the packed form in front of the block."""
        node, width = match.attention, 3
        name = str(node.name)
        new = [
            ir.node(
                "MatMul",
                [
                    match.projections[0].x,
                    add_constant(model, f"{name}.qkv.weight", _weights(match)),
                ],
            )
        ]
        if match.projections[0].bias is not None:
            bias = add_constant(model, f"{name}.qkv.bias", _biases(match))
            new.append(ir.node("Add", [new[-1].outputs[0], bias]))
        shape = np.array([0, 0, width, match.heads.heads, match.heads.head_dim], np.int64)
        shape_name = f"qkv_shape_{match.heads.heads}_{match.heads.head_dim}"
        new.append(ir.node("Reshape", [new[-1].outputs[0], add_constant(model, shape_name, shape)]))
        new.append(ir.node("Transpose", [new[-1].outputs[0]], {"perm": _TO_QKV_FIRST}))
        split = ir.node(
            "Split", [new[-1].outputs[0]], {"axis": 0, "num_outputs": width}, num_outputs=width
        )
        axis = add_constant(model, "qkv_axis", np.array([0], np.int64))
        parts = [ir.node("Squeeze", [out, axis]) for out in split.outputs]
        insert_before(node, [*new, split, *parts])
        for index, part in enumerate(parts):
            old = node.inputs[index]
            if old is not None:
                copy_type(old, part.outputs[0])
            node.replace_input_with(index, part.outputs[0])
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def _weights(match: Match) -> npt.NDArray[Any]:
    return _scaled_and_joined(match, [constant(p.weight) for p in match.projections])


def _biases(match: Match) -> npt.NDArray[Any]:
    return _scaled_and_joined(match, [constant(p.bias) for p in match.projections])


def _scaled_and_joined(match: Match, arrays: list[npt.NDArray[Any] | None]) -> npt.NDArray[Any]:
    q, k, v = (a for a in arrays if a is not None)
    scaled = (q.astype(np.float64) * match.scale).astype(q.dtype)
    return np.concatenate([scaled, k, v], axis=-1)
