"""Scaled dot-product attention written out → `Attention` (opset 23).

Before (every step but the two products and the softmax is optional)::

    scores = MatMul(q * s1, Transpose(k) * s2) * s3
    scores = scores + bias + mask          or Where(condition, fill, scores)
    p = Softmax(scores, axis=-1)
    p = Where(IsNaN(p), 0, p)              (the guard that PyTorch's SDPA is exported with)
    y = MatMul(p, v)

After::

    y = Attention(q, k, v, bias + mask, scale = s1·s2·s3)

with q, k, v `[batch, heads, sequence, head_dim]` and y the same. Where heads were merged into the
batch, or there is one head, they are `[batch, sequence, head_dim]`: then an axis of one head is
put in around `Attention`. Both products may be written the other way around,
`Transpose(MatMul(k, Transpose(q)))` and `Transpose(MatMul(Transpose(v), Transpose(p)))`.

A site is a softmax over the last axis between two products of tensors (neither of which is a
weight). It fires when:
1. only the second product reads the softmax (`attention_output`);
2. between the first product and the softmax stands what `attention_scores` takes off;
3. a fill value is low enough to vanish in the softmax (`-1e4` or below);
4. q, k and v agree in rank, batch and heads (or k and v have one head). What is the same for the
   whole batch (the learned query of a pooling head) is expanded to it.

Safe because `Attention` is defined as exactly this product, softmax and product; a condition
that is not met leaves the nodes as they are. A row that no key is left for keeps its meaning too:
the mean of the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    copy_type,
    insert_before,
    is_op,
    known_shape,
    replace_value,
)
from tfc.optimizers.layout import is_permutation, layout_sources
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.attention_mask_sum import mask_of
from tfc.optimizers.raising.attention_output import Product, product_after
from tfc.optimizers.raising.attention_scores import (
    Scores,
    is_between_products,
    scaling,
    scores_of,
)

KIND = "attention"
ATTENTION_OPSET = 23
_HEAD_AXIS = 1
# The axes in front of the sequence: batch, and heads where they have one of their own.
_RANKS = (3, 4)


@dataclass(frozen=True)
class Operand:
    """A value, and how it is to be transposed (None: not at all) to be q, k or v."""

    value: ir.Value
    perm: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Match:
    """A site: its ends, its operands, and what is made of the scores.

    `mirrored` if the output is to be transposed in its last two axes.
    """

    softmax: ir.Node
    output: ir.Node
    q: Operand
    k: Operand
    v: Operand
    rank: int
    scale: float
    scores: Scores
    mirrored: bool


class Attention:
    """The fusion; see the module's docstring."""

    name = "fuse attention"
    anchors = ("Softmax",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 4."""
        shape = known_shape(node.outputs[0])
        rank = 4 if shape is None else len(shape)
        if attribute(node, "axis", -1) not in (-1, rank - 1) or not is_between_products(node):
            return None
        if rank not in _RANKS:
            return refusal(KIND, node, f"the scores have {rank} axes")
        second = product_after(node)
        if isinstance(second, str):
            return refusal(KIND, node, second)
        scores = scores_of(node.inputs[0])
        if isinstance(scores, str):
            return refusal(KIND, node, scores)
        match = _match(node, second, scores, rank)
        problem = _disagreement(match)
        return refusal(KIND, node, problem) if problem else match

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put `Attention` in place of the second product."""
        new: list[ir.Node] = []
        q, k, v = _same_batch(
            model, [_placed(operand, new) for operand in (match.q, match.k, match.v)], new
        )
        for temperature in match.scores.temperatures:
            scaled = ir.node(temperature.op_type, [q, temperature.value])
            copy_type(q, scaled.outputs[0])
            q = _append(new, scaled)
        operands = [q, k, v]
        if match.rank == 3:
            operands = [_with_head_axis(model, value, new) for value in operands]
        y = attention_of(model, match, operands, new)
        if match.rank == 3:
            axis = add_constant(model, "head_axis", np.array([_HEAD_AXIS], np.int64))
            y = _append(new, ir.node("Squeeze", [y, axis]))
        if match.mirrored:
            y = _append(new, ir.node("Transpose", [y], {"perm": list(_swapped(match.rank))}))
        insert_before(match.output, new, like=match.softmax)
        replace_value(match.output.outputs[0], y)
        model.opset_imports[""] = max(model.opset_imports[""], ATTENTION_OPSET)


def attention_of(
    model: ir.Model, match: Match, operands: list[ir.Value], new: list[ir.Node]
) -> ir.Value:
    """`Attention` of q, k and v with four axes, masked and scaled as the match's; its nodes are
    appended to `new`.
    """
    kind = match.q.value.dtype
    dtype = kind.numpy() if kind is not None else np.dtype(np.float32)
    mask = mask_of(model, match.scores, dtype, new)
    masks = [] if mask is None else [_mask_with_axes(model, mask, match.rank, new)]
    attributes: dict[str, Any] = {"scale": float(match.scale)}
    if match.scores.cast:
        attributes["softmax_precision"] = int(ir.DataType.FLOAT)
    name = f"{match.softmax.name}_attention"
    return _append(new, ir.node("Attention", [*operands, *masks], attributes, name=name))


def _match(softmax: ir.Node, second: Product, scores: Scores, rank: int) -> Match:
    assert scores.product is not None
    left, left_scale = _unscaled(scores.product.inputs[0])
    right, right_scale = _unscaled(scores.product.inputs[1])
    if scores.swapped:  # (k · qᵀ)ᵀ
        q, k = _transposed(right, rank), Operand(left)
    else:
        q, k = Operand(left), _transposed(right, rank)
    value = second.node.inputs[0 if second.mirrored else 1]
    assert value is not None
    v = _transposed(value, rank) if second.mirrored else Operand(value)
    scale = scores.scale * left_scale * right_scale
    return Match(softmax, second.node, q, k, v, rank, scale, scores, second.mirrored)


def _disagreement(match: Match) -> str:
    """Condition 4: in what the operands do not fit; empty if they do, as far as is known."""
    shapes = {name: _shape(getattr(match, name)) for name in "qkv"}
    for name, shape in shapes.items():
        if shape is not None and len(shape) != match.rank:
            return f"{name} has {len(shape)} axes, the scores have {match.rank}"
    q, k, v = (shapes[name] for name in "qkv")
    if q is None or k is None or v is None:
        return ""
    if len({q[0], k[0], v[0]} - {1}) > 1:
        return f"q, k and v have batches of {q[0]}, {k[0]} and {v[0]}"
    if match.rank > 3 and (k[1] != v[1] or k[1] not in (q[1], 1)):
        return f"q, k and v have {q[1]}, {k[1]} and {v[1]} heads"
    return ""


def _shape(operand: Operand) -> tuple[int | str, ...] | None:
    shape = known_shape(operand.value)
    if shape is None or operand.perm is None or len(shape) != len(operand.perm):
        return shape
    return tuple(shape[axis] for axis in operand.perm)


def _placed(operand: Operand, new: list[ir.Node]) -> ir.Value:
    """The operand, transposed if it has to be."""
    if operand.perm is None:
        return operand.value
    node = ir.node("Transpose", [operand.value], {"perm": list(operand.perm)})
    node.outputs[0].type = operand.value.type
    shape = _shape(operand)
    node.outputs[0].shape = None if shape is None else ir.Shape(shape)
    return _append(new, node)


def _same_batch(model: ir.Model, operands: list[ir.Value], new: list[ir.Node]) -> list[ir.Value]:
    """The operands, those with a batch of 1 expanded to that of the others."""
    sizes = [shape[0] if (shape := known_shape(v)) else None for v in operands]
    whole = next((v for v, size in zip(operands, sizes, strict=True) if size != 1), None)
    if whole is None or None in sizes or 1 not in sizes:
        return operands
    batch, *rest = known_shape(whole) or ("",)
    rows = _append(new, ir.node("Shape", [whole], {"start": 0, "end": 1}))
    ones = add_constant(model, "expand_ones", np.ones(len(rest), np.int64))
    target = _append(new, ir.node("Concat", [rows, ones], {"axis": 0}))
    expanded = []
    for value, size in zip(operands, sizes, strict=True):
        if size == 1:
            node = ir.node("Expand", [value, target])
            node.outputs[0].type = value.type
            node.outputs[0].shape = ir.Shape([batch, *list(value.shape or ())[1:]])
            value = _append(new, node)
        expanded.append(value)
    return expanded


def _with_head_axis(model: ir.Model, value: ir.Value, new: list[ir.Node]) -> ir.Value:
    """`[batch, a, b]` as `[batch, 1, a, b]`."""
    axis = add_constant(model, "head_axis", np.array([_HEAD_AXIS], np.int64))
    return _append(new, ir.node("Unsqueeze", [value, axis]))


def _mask_with_axes(model: ir.Model, mask: ir.Value, rank: int, new: list[ir.Node]) -> ir.Value:
    """The mask with two axes or four, as `Attention` takes it; what is missing stands in front.

    Of scores of rank 3 the heads are missing.
    """
    if mask.shape is None or len(mask.shape) in (2, 4):
        return mask
    if len(mask.shape) == 3 and rank == 3:
        return _with_head_axis(model, mask, new)
    count = (4 if len(mask.shape) == 3 else 2) - len(mask.shape)
    axes = add_constant(model, f"mask_axes_{count}", np.arange(count, dtype=np.int64))
    wide = ir.node("Unsqueeze", [mask, axes])
    wide.outputs[0].type = mask.type
    wide.outputs[0].shape = ir.Shape([1] * count + list(mask.shape))
    return _append(new, wide)


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def _transposed(value: ir.Value, rank: int) -> Operand:
    """What was transposed to give this value, with the transpose that undoes the last swap.

    Heads may stand before or behind the tokens before; what is no transpose gets one.
    """
    swapped = _swapped(rank)
    for source in layout_sources(value):
        if is_permutation(source, value, swapped):
            return Operand(source)
    node = value.producer()
    if node is not None and is_op(node, "Transpose") and node.inputs[0] is not None:
        perm = tuple(attribute(node, "perm", ()))
        if len(perm) == rank:
            return Operand(node.inputs[0], tuple(perm[axis] for axis in swapped))
    return Operand(value, swapped)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    """An operand of the first product without the constant factors on it."""
    scale = 1.0
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Mul", "Div"):
            break
        below, factor = scaling(node)
        if factor is None or below is None:
            break
        value, scale = below, scale * factor
    assert value is not None
    return value, scale


def _append(new: list[ir.Node], node: ir.Node) -> ir.Value:
    new.append(node)
    return node.outputs[0]
