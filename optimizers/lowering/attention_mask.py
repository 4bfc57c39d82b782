"""Expand the mask of `Attention` over the queries.

ONNX Runtime's `Attention` kernels want a mask `[batch or 1, heads or 1, queries, keys]`; the
standard lets the query axis be 1. Before: `Attention(q, k, v, mask[b,1,1,s])`. After: the mask
goes through one `Expand` to `[b,1,queries,s]`, shared by all blocks with as many queries. In
self-attention the number of queries is taken from the mask's own key axis, which is known before
any block; elsewhere (a decoder that attends to the encoder) from q.
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
            if mask is None or not _query_axis_is_one(mask):
                continue
            key = (mask, _queries(node) or node)
            if key not in expanded:
                expanded[key] = _expand(model, node, mask)
            node.replace_input_with(_MASK, expanded[key])
            changed += 1
        return PassResult(changed)


def _query_axis_is_one(mask: ir.Value) -> bool:
    return mask.shape is not None and len(mask.shape) == 4 and mask.shape[2] == 1


def _queries(attention: ir.Node) -> int | str | None:
    """The size of q's sequence axis, whether its heads are split or not; None if not known."""
    shape = attention.inputs[0].shape if attention.inputs[0] is not None else None
    size = shape[-2] if shape is not None and len(shape) > 1 else None
    return size if size is None or isinstance(size, int) else size.value


def _expand(model: ir.Model, anchor: ir.Node, mask: ir.Value) -> ir.Value:
    assert mask.shape is not None
    keys = mask.shape[3] if isinstance(mask.shape[3], int) else mask.shape[3].value
    if keys is not None and keys == _queries(anchor):
        count, queries = ir.node("Shape", [mask], {"start": 3, "end": 4}), mask.shape[3]
    else:
        q = anchor.inputs[0]
        count, queries = ir.node("Shape", [q], {"start": -2, "end": -1}), None
    ones = add_constant(model, "mask_leading_ones", np.array([1, 1], np.int64))
    one = add_constant(model, "mask_trailing_one", np.array([1], np.int64))
    target = ir.node("Concat", [ones, count.outputs[0], one], {"axis": 0})
    expand = ir.node("Expand", [mask, target.outputs[0]])
    out = expand.outputs[0]
    out.type = mask.type
    out.shape = ir.Shape([mask.shape[0], mask.shape[1], queries, mask.shape[3]])
    insert_before(anchor, [count, target, expand])
    return out
