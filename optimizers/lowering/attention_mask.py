"""Expand the mask of `Attention` over the queries and the keys.

ONNX Runtime's `Attention` kernels want a mask `[batch or 1, heads or 1, queries, keys]`, or the
last two of it; the standard lets each axis be 1. Before: `Attention(q, k, v, mask[b,1,1,s])`.
After: the mask goes through one `Expand` to `[b,1,queries,s]`, shared by all blocks with as many
queries. In self-attention the number of queries is taken from the mask's own key axis, which is
known before any block; elsewhere (a decoder that attends to the encoder) from q. The number of
keys, where the mask has one value for all, is taken from k.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, insert_before, nodes_of
from tfc.optimizers.passes import PassResult

_MASK = 3


class ExpandAttentionMask:
    """The pass; see the module's docstring."""

    name = "expand attention masks"

    def apply(self, model: ir.Model) -> PassResult:
        """Give every `Attention` a mask with a query axis of full size."""
        expanded: dict[tuple[ir.Value, object], ir.Value] = {}
        changed = 0
        for node in nodes_of(model, "Attention"):
            mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
            if mask is None or not _is_short(node, mask):
                continue
            key = (mask, _queries(node) or node)
            if key not in expanded:
                expanded[key] = _expand(model, node, mask)
            node.replace_input_with(_MASK, expanded[key])
            changed += 1
        return PassResult(changed)


def _is_short(attention: ir.Node, mask: ir.Value) -> bool:
    """Whether the mask has one row for several queries, or one value for several keys."""
    axes = _last_axes(mask)
    if not axes:
        return False
    return (axes[0] == 1 and _queries(attention) != 1) or (axes[1] == 1 and _keys(attention) != 1)


def _last_axes(mask: ir.Value) -> list[int | ir.SymbolicDim]:
    """The sizes of the mask's query axis and key axis; none if they are not known."""
    if mask.shape is None or len(mask.shape) < 2:
        return []
    return list(mask.shape)[-2:]


def _queries(attention: ir.Node) -> int | str | None:
    """The size of q's sequence axis, whether its heads are split or not; None if not known."""
    return _length(attention.inputs[0])


def _keys(attention: ir.Node) -> int | str | None:
    """The size of k's sequence axis."""
    return _length(attention.inputs[1])


def _length(value: ir.Value | None) -> int | str | None:
    shape = value.shape if value is not None else None
    size = shape[-2] if shape is not None and len(shape) > 1 else None
    return size if size is None or isinstance(size, int) else size.value


def _expand(model: ir.Model, anchor: ir.Node, mask: ir.Value) -> ir.Value:
    assert mask.shape is not None
    new: list[ir.Node] = []
    of_queries, of_keys = list(mask.shape)[-2:]
    own = of_keys if isinstance(of_keys, int) else of_keys.value
    counts: list[ir.Value | None] = [None] * len(mask.shape)
    sizes: list[int | ir.SymbolicDim | None] = list(mask.shape)
    if of_queries == 1 and own not in (None, 1) and own == _queries(anchor):
        counts[-2], sizes[-2] = _size(mask, -1, new), of_keys
    elif of_queries == 1:
        counts[-2], sizes[-2] = _size(anchor.inputs[0], -2, new), None
    if of_keys == 1:
        counts[-1], sizes[-1] = _size(anchor.inputs[1], -2, new), None
    if None in counts:
        one = add_constant(model, "mask_one", np.array([1], np.int64))
        counts = [one if count is None else count for count in counts]
    new.append(ir.node("Concat", counts, {"axis": 0}))
    new.append(ir.node("Expand", [mask, new[-1].outputs[0]]))
    out = new[-1].outputs[0]
    out.type = mask.type
    out.shape = ir.Shape(sizes)
    insert_before(anchor, new)
    return out


def _size(value: ir.Value | None, axis: int, new: list[ir.Node]) -> ir.Value:
    """One size of a value; the last axis is asked for without an end."""
    end = {} if axis == -1 else {"end": axis + 1}
    new.append(ir.node("Shape", [value], {"start": axis, **end}))
    return new[-1].outputs[0]
