"""Heads merged into the batch, as `torch.bmm` wants them → heads on an axis of their own.

Hand-written modules and `nn.MultiheadAttention` compute attention on `[batch·heads, sequence, …]`.
A `Reshape` that only merges the two leading axes of a rank-4 tensor is moved down, past every
operation that does not care, until it meets the `Reshape` that splits them again, and both go::

    MatMul(merge(a), merge(b))        →  merge(MatMul(a, b))
    Transpose<0,2,1>(merge(a))        →  merge(Transpose<0,1,3,2>(a))
    Softmax<-1>(merge(a))             →  merge(Softmax<-1>(a))
    Mul(merge(a), scalar), Div(…)     →  merge(Mul(a, scalar))
    Add(merge(a), merge(b))           →  merge(Add(a, b))
    Add(merge(a), c)                  →  merge(Add(a, split(c)))   if c has the merged axis too
    Where(c, fill, merge(a))          →  merge(Where(split(c), fill, a))              likewise
    split(merge(a))                   →  a                         if it has a's shape
    Reshape(merge(a))                 →  merge(a)                  if it has that shape already

Models that keep the sequence first (fairseq, `nn.MultiheadAttention`) merge the other way around,
with the batch in the middle; that is written with a merge first, and back at the end::

    Transpose<1,0,2>(Reshape(x, [s, b·n, d]))   →  merge(Transpose<1,2,0,3>(Reshape(x, [s,b,n,d])))
    Transpose<1,0,2>(merge(a))                  →  Reshape(Transpose<2,0,1,3>(a), [s, b·n, d])

Fires where the shapes are known and the last two axes stay as they are, so that each element
keeps its place; the numbers do not change.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    copy_type,
    insert_before,
    is_op,
    known_shape,
    replace_value,
    scalar,
)
from tfc.optimizers.passes import PassResult

_SWAP = (0, 2, 1)
_SEQUENCE_FIRST = (1, 0, 2)
# The same transpose, and that of keys for the scores, once the batch and the heads are apart.
_SPLIT_FIRST = {_SEQUENCE_FIRST: (1, 2, 0, 3), (1, 2, 0): (1, 2, 3, 0)}


class SplitMergedHeads:
    """The pass; see the module's docstring."""

    name = "split merged heads"

    def apply(self, model: ir.Model) -> PassResult:
        """One sweep in topological order moves a merge down through a whole block."""
        changed = 0
        for node in list(model.graph):
            rule = _RULES.get(node.op_type)
            if rule is not None and node.graph is not None:
                changed += rule(model, node)
        if changed:
            RemoveUnusedNodesPass()(model)
            ShapeInferencePass()(model)
        return PassResult(changed)


def heads_before_merge(value: ir.Value | None) -> ir.Value | None:
    """The rank-4 tensor whose leading axes were merged to give this value."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "Reshape") or node.inputs[0] is None:
        return None
    before, after = known_shape(node.inputs[0]), known_shape(value)
    if before is None or after is None or len(before) != 4 or len(after) != 3:
        return None
    return node.inputs[0] if before[2:] == after[1:] else None


def _matmul(model: ir.Model, node: ir.Node) -> bool:
    a, b = (heads_before_merge(value) for value in node.inputs)
    if a is None or b is None or known_shape(a) is None:
        return False
    left, right = known_shape(a), known_shape(b)
    if left is None or right is None or left[:2] != right[:2]:
        return False
    product = ir.node("MatMul", [a, b])
    return _replace(model, node, product, (*left[:3], right[3]))


def _transpose(model: ir.Model, node: ir.Node) -> bool:
    a = heads_before_merge(node.inputs[0])
    perm = tuple(attribute(node, "perm", ()))
    if a is None and perm in _SPLIT_FIRST:
        return _merge_first(model, node, _SPLIT_FIRST[perm])
    if a is not None and perm == _SEQUENCE_FIRST:
        return _sequence_first(model, node, a)
    if a is None or perm != _SWAP:
        return False
    shape = known_shape(a) or ()
    swapped = ir.node("Transpose", [a], {"perm": [0, 1, 3, 2]})
    return _replace(model, node, swapped, (*shape[:2], shape[3], shape[2]))


def _merge_first(model: ir.Model, node: ir.Node, perm: tuple[int, ...]) -> bool:
    """`[sequence, batch, heads·d]`, split with the batch in the middle, as merged heads."""
    flat = node.inputs[0]
    reshape = flat.producer() if flat is not None else None
    if reshape is None or not is_op(reshape, "Reshape") or reshape.inputs[0] is None:
        return False
    x = reshape.inputs[0]
    before, after = known_shape(x), known_shape(flat)
    if before is None or after is None or len(before) != 3 or len(after) != 3:
        return False
    (length, batch, hidden), (_, merged, width) = before, after
    if not isinstance(hidden, int) or not isinstance(width, int) or hidden % width:
        return False
    heads = hidden // width
    if after[0] != length or merged != (
        batch * heads if isinstance(batch, int) else f"{heads}*{batch}"
    ):
        return False
    shape = (length, batch, heads, width)
    split = _reshaped(model, x, "heads_last", [0, 0, heads, width], shape)
    leading = ir.node("Transpose", [split.outputs[0]], {"perm": list(perm)})
    insert_before(node, [split])
    return _replace(model, node, leading, tuple(shape[axis] for axis in perm))


def _sequence_first(model: ir.Model, node: ir.Node, a: ir.Value) -> bool:
    """Merged heads as `[sequence, batch·heads, d]`."""
    batch, heads, length, width = known_shape(a) or ()
    result = known_shape(node.outputs[0])
    if result is None or not isinstance(width, int):
        return False
    moved = ir.node("Transpose", [a], {"perm": [2, 0, 1, 3]})
    copy_type(a, moved.outputs[0])
    moved.outputs[0].shape = ir.Shape([length, batch, heads, width])
    flat = _reshaped(model, moved.outputs[0], "batch_in_the_middle", [0, -1, width], result)
    insert_before(node, [moved, flat])
    replace_value(node.outputs[0], flat.outputs[0])
    return True


def _reshaped(
    model: ir.Model, value: ir.Value, name: str, sizes: list[int], shape: tuple[int | str, ...]
) -> ir.Node:
    target = add_constant(model, name, np.array(sizes, np.int64))
    node = ir.node("Reshape", [value, target])
    node.outputs[0].type, node.outputs[0].shape = value.type, ir.Shape(shape)
    return node


def _softmax(model: ir.Model, node: ir.Node) -> bool:
    a = heads_before_merge(node.inputs[0])
    if a is None or attribute(node, "axis", -1) not in (-1, 2):
        return False
    return _replace(model, node, ir.node("Softmax", [a], {"axis": -1}), known_shape(a) or ())


def _scale(model: ir.Model, node: ir.Node) -> bool:
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        a, factor = heads_before_merge(node.inputs[index]), node.inputs[1 - index]
        if a is not None and scalar(factor) is not None:
            scaled = ir.node(node.op_type, [a, factor])
            return _replace(model, node, scaled, known_shape(a) or ())
    return False


def _add(model: ir.Model, node: ir.Node) -> bool:
    """A bias of its own for each row and head (ALiBi) is split as the scores are."""
    for index in (0, 1):
        a, other = heads_before_merge(node.inputs[index]), node.inputs[1 - index]
        if a is None or other is None or known_shape(node.outputs[0]) is None:
            continue
        b = heads_before_merge(other)
        heads, bias = known_shape(a) or (), known_shape(b if b is not None else other) or ()
        merged = known_shape(node.outputs[0]) or ()
        if b is not None and bias[:2] == heads[:2]:
            added = ir.node("Add", [a, b])
        elif b is None and len(bias) == 3 and bias[0] == (known_shape(node.inputs[index]) or ())[0]:
            added = ir.node("Add", [a, _split_like(a, other, node)])
        else:
            continue
        return _replace(model, node, added, (*heads[:2], *merged[1:]))
    return False


def _where(model: ir.Model, node: ir.Node) -> bool:
    """A mask with a row for each row and head is split as the scores are."""
    mask, *values = node.inputs
    shape = known_shape(node.outputs[0])
    for place, value in enumerate(values):
        a, fill, rows = heads_before_merge(value), values[1 - place], known_shape(mask)
        if a is None or mask is None or scalar(fill) is None or known_shape(value) != shape:
            continue
        if rows is None or shape is None or len(rows) != len(shape) or rows[0] != shape[0]:
            continue
        split = _split_like(a, mask, node)
        chosen = [split, fill, fill]
        chosen[1 + place] = a
        return _replace(model, node, ir.node("Where", chosen), known_shape(a) or ())
    return False


def _split_like(a: ir.Value, other: ir.Value, before: ir.Node) -> ir.Value:
    """`other` `[batch·heads, x, y]` as `[batch, heads, x, y]`, with the leading axes of `a`."""
    leading = ir.node("Shape", [a], {"start": 0, "end": 2})
    rest = ir.node("Shape", [other], {"start": 1})
    target = ir.node("Concat", [leading.outputs[0], rest.outputs[0]], {"axis": 0})
    split = ir.node("Reshape", [other, target.outputs[0]])
    assert a.shape is not None
    assert other.shape is not None
    split.outputs[0].type = other.type
    split.outputs[0].shape = ir.Shape([*list(a.shape)[:2], *list(other.shape)[1:]])
    insert_before(before, [leading, rest, target, split])
    return split.outputs[0]


def _split(model: ir.Model, node: ir.Node) -> bool:
    merged = node.inputs[0]
    a, shape = heads_before_merge(merged), known_shape(node.outputs[0])
    if a is None or merged is None or shape not in (known_shape(a), known_shape(merged)):
        return False
    replace_value(node.outputs[0], a if shape == known_shape(a) else merged)
    return True


_RULES: dict[str, Callable[[ir.Model, ir.Node], bool]] = {
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "Mul": _scale,
    "Div": _scale,
    "Add": _add,
    "Where": _where,
    "Reshape": _split,
}


def _replace(model: ir.Model, node: ir.Node, new: ir.Node, shape: tuple[int | str, ...]) -> bool:
    """Put `new` and a merge in place of `node`; `shape` is the rank-4 result's."""
    result = new.outputs[0]
    result.type, result.shape = node.outputs[0].type, ir.Shape(shape)
    sizes = ir.node("Shape", [result], {"start": 2})
    rows = add_constant(model, "merged_rows", np.array([-1], np.int64))
    target = ir.node("Concat", [rows, sizes.outputs[0]], {"axis": 0})
    merge = ir.node("Reshape", [result, target.outputs[0]])
    insert_before(node, [new, sizes, target, merge])
    replace_value(node.outputs[0], merge.outputs[0])
    return True
