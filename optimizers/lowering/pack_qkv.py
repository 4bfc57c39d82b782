"""Projections of the same tensor into heads → one GEMM, in the form that TensorRT compiles best.

Before, per block (11 compiled kernels in a post-LN encoder layer, and waits between streams)::

    q, k, v = Reshape(MatMul(x, W_i) + b_i, [batch, sequence, N_i, D])     three times

After (9 kernels, no waits; 8 with the attention written as products)::

    qkv = Reshape(MatMul(x, [W_q | W_k | W_v]) + b, [0, 0, N_q + N_k + N_v, D])
    q, k, v = Split(Transpose(qkv, [0, 2, 1, 3]), [N_q, N_k, N_v], axis=1)

Heads that are read before their transposition (by rotary embeddings, say) are split before it, on
axis 2. What follows the heads (rotary embeddings, norms, a cache, the attention) stays as it is:
TensorRT puts all of it into one kernel between the GEMM and the attention. That holds with grouped
queries too, and for keys and values of cross attention; a model that packs its projections itself
and takes them apart by slices of five axes gets the same form. Without a bias in the GEMM, heads
split on axis 2 fall back to 11 kernels and waits, so there is always one then. The measurements:
`perf/layer_forms.py`, `perf/results/layer_forms.json`.

Fires when the linear layers that read one tensor give, by moving elements only, at least two
tensors of heads of one size for the same attention. (One product for the keys and values of all
cross attentions would hold all of them in memory at once.) Columns are put in the order of the
heads. A bias that some projections lack (Whisper's and BEiT's keys) is zero in the packed one.
Each number is the same product as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.computed import computed
from tfc.optimizers.graph import add_constant, add_weight, insert_before, is_op, replace_value
from tfc.optimizers.lowering.heads import TO_HEADS, Projection
from tfc.optimizers.lowering.projected_heads import HeadTensor, ProjectedHeads, projected_heads_of
from tfc.optimizers.passes import Refusal, refusal

KIND = "qkv"


@dataclass(frozen=True)
class Match:
    """The first product in the graph's order, and the projections to pack, its own among them."""

    first: ir.Node
    projections: tuple[ProjectedHeads, ...]

    @property
    def parts(self) -> list[HeadTensor]:
        """All tensors of heads, in the order of their columns."""
        return [part for projection in self.projections for part in projection.parts]


class PackQKV:
    """The fusion; see the module's docstring."""

    name = "pack QKV"
    anchors = ("MatMul",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether this product and those beside it give at least two tensors of heads."""
        own = projected_heads_of(node)
        if own is None or not own.readers:
            return None
        size = own.parts[0].head_dim
        if any(part.head_dim != size for part in own.parts):
            return refusal(KIND, node, "its result is split into heads of several sizes")
        projections = (own, *(p for p in _siblings(own) if p.parts[0].head_dim == size))
        if sum(len(each.parts) for each in projections) == 1:
            return refusal(KIND, node, "no other projection of its input has heads of this size")
        return Match(node, projections)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Write the packed form in front of the first product."""
        first, parts = match.first, match.parts
        heads_first = all(part.found.heads_first for part in parts)
        biased = any(each.layer.bias is not None for each in match.projections)
        weight = add_weight(model, f"{first.name}.packed.weight", _packed(match, _weight))
        new = [ir.node("MatMul", [match.projections[0].layer.x, weight])]
        if biased or not heads_first:
            bias = add_weight(model, f"{first.name}.packed.bias", _packed(match, _bias))
            new.append(ir.node("Add", [new[-1].outputs[0], bias]))
        counts = [part.count for part in parts]
        shape = np.array([0, 0, sum(counts), parts[0].head_dim], np.int64)
        target = add_constant(model, f"packed_heads_{sum(counts)}_{parts[0].head_dim}", shape)
        new.append(ir.node("Reshape", [new[-1].outputs[0], target]))
        if heads_first:
            new.append(ir.node("Transpose", [new[-1].outputs[0]], {"perm": TO_HEADS}))
        sizes = add_constant(model, f"packed_{'_'.join(map(str, counts))}", np.array(counts))
        axis = {"axis": 1 if heads_first else 2}
        split = ir.node("Split", [new[-1].outputs[0], sizes], axis, num_outputs=len(parts))
        insert_before(first, [*new, split])
        for part, heads in zip(parts, split.outputs, strict=True):
            late = part.found.heads_first and not heads_first
            replace_value(part.value, _transposed(first, heads) if late else heads)


def _siblings(own: ProjectedHeads) -> list[ProjectedHeads]:
    """The other linear layers on the same tensor with heads of one size for the same attention."""
    products = [u.node for u in own.layer.x.uses() if is_op(u.node, "MatMul")]
    found = [projected_heads_of(node) for node in products if node is not own.layer.product]
    return [
        each
        for each in found
        if each is not None
        and each.layer.x is own.layer.x
        and len({part.head_dim for part in each.parts}) == 1
        and each.readers == own.readers
    ]


def _transposed(first: ir.Node, heads: ir.Value) -> ir.Value:
    transpose = ir.node("Transpose", [heads], {"perm": TO_HEADS})
    insert_before(first, [transpose])
    return transpose.outputs[0]


def _packed(match: Match, of: Callable[[Projection], ir.TensorProtocol]) -> ir.TensorProtocol:
    """The weights, or the biases, of all heads side by side."""
    chosen = [
        _columns(of(each.layer), part.found.columns.reshape(-1))
        for each in match.projections
        for part in each.parts
    ]
    return computed("Concat", chosen, axis=-1)


def _columns(tensor: ir.TensorProtocol, places: npt.NDArray[np.int64]) -> ir.TensorProtocol:
    """The columns at these places, in their order; the tensor itself if those are all, in order."""
    if np.array_equal(places, np.arange(int(tensor.shape.numpy()[-1]))):
        return tensor
    return computed("Gather", [tensor, ir.tensor(places)], axis=-1)


def _weight(layer: Projection) -> ir.TensorProtocol:
    assert layer.weight.const_value is not None
    return layer.weight.const_value


def _bias(layer: Projection) -> ir.TensorProtocol:
    if layer.bias is not None and layer.bias.const_value is not None:
        return layer.bias.const_value
    weight = _weight(layer)
    return ir.tensor(np.zeros(int(weight.shape.numpy()[-1]), weight.dtype.numpy()))
