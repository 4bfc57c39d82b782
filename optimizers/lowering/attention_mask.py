"""Expand the mask of `Attention` over the queries.

ONNX Runtime's `Attention` kernels want a mask `[batch or 1, heads or 1, queries, keys]`; the
standard lets the query axis be 1. Before: `Attention(q, k, v, mask[b,1,1,s])`. After: the mask
goes through one `Expand` to `[b,1,s,s]`, shared by all blocks that use it. Self-attention only:
the number of queries is taken from the mask's own key axis, so a site with a separate key
sequence is left alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, insert_before, known_shape, nodes_of
from tfc.optimizers.passes import PassResult

_MASK = 3
_SEQUENCE_OF_HEADS = 2  # of [batch, heads, sequence, head_dim]; flat inputs have no heads


class ExpandAttentionMask:
    """The pass; see the module's docstring."""

    name = "expand attention masks"

    def apply(self, model: ir.Model) -> PassResult:
        """Give every `Attention` a mask with a query axis of full size."""
        expanded: dict[ir.Value, ir.Value] = {}
        changed = 0
        for node in nodes_of(model, "Attention"):
            mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
            if mask is None or not _query_axis_is_one(mask) or _has_one_query(node):
                continue
            if mask not in expanded:
                expanded[mask] = _expand(model, node, mask)
            node.replace_input_with(_MASK, expanded[mask])
            changed += 1
        return PassResult(changed)


def _query_axis_is_one(mask: ir.Value) -> bool:
    return mask.shape is not None and len(mask.shape) == 4 and mask.shape[2] == 1


def _has_one_query(node: ir.Node) -> bool:
    """Whether the mask has all its rows already."""
    shape = known_shape(node.inputs[0]) or ()
    flat = "q_num_heads" in node.attributes
    return len(shape) > _SEQUENCE_OF_HEADS - flat and shape[_SEQUENCE_OF_HEADS - flat] == 1


def _expand(model: ir.Model, anchor: ir.Node, mask: ir.Value) -> ir.Value:
    keys = ir.node("Shape", [mask], {"start": 3, "end": 4})
    ones = add_constant(model, "mask_leading_ones", np.array([1, 1], np.int64))
    one = add_constant(model, "mask_trailing_one", np.array([1], np.int64))
    target = ir.node("Concat", [ones, keys.outputs[0], one], {"axis": 0})
    expand = ir.node("Expand", [mask, target.outputs[0]])
    out = expand.outputs[0]
    assert mask.shape is not None
    out.type = mask.type
    out.shape = ir.Shape([mask.shape[0], mask.shape[1], mask.shape[3], mask.shape[3]])
    insert_before(anchor, [keys, target, expand])
    return out
