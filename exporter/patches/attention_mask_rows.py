"""Attention: a mask of one row `[batch, 1, 1, keys]` → one row per query.

torch 2.13 exports `scaled_dot_product_attention` as `Attention` with its mask as it stands, and the
standard lets a mask be broadcast. ONNX Runtime 1.31 broadcasts batch and heads, and refuses a mask
whose rows are not as many as the queries. LayoutLM gives such a mask, and so does any model that
builds `mask[:, None, None, :]` by hand. So it goes through an `Expand`, once for all blocks that
share it and have as many queries: in a decoder a text may be read by itself and by another one.
The values are the same, so the numbers are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, insert_before

_QUERY, _MASK = 0, 3
_RANK = 4


def give_attention_masks_their_rows(model: ir.Model) -> None:
    """Correct every `Attention` on `[batch, heads, sequence, head_dim]`, in place."""
    expanded: dict[tuple[ir.Value, object], ir.Value] = {}
    for node in list(model.graph):
        mask = _mask_of_one_row(node)
        if mask is None:
            continue
        key = mask, _queries(node)
        if key not in expanded:
            expanded[key] = _expanded(model, node, mask)
        node.replace_input_with(_MASK, expanded[key])


def _queries(node: ir.Node) -> object:
    """Something that is equal where blocks are known to have as many queries."""
    query = node.inputs[_QUERY]
    assert query is not None
    assert query.shape is not None
    size = query.shape[2]
    if isinstance(size, int):
        return size
    return size.value if size.value is not None else query


def _mask_of_one_row(node: ir.Node) -> ir.Value | None:
    if node.op_type != "Attention" or node.domain != "" or len(node.inputs) <= _MASK:
        return None
    query, mask = node.inputs[_QUERY], node.inputs[_MASK]
    if query is None or mask is None or query.shape is None or mask.shape is None:
        return None
    if len(query.shape) != _RANK or len(mask.shape) != _RANK:
        return None
    return mask if mask.shape[2] == 1 and query.shape[2] != 1 else None


def _expanded(model: ir.Model, node: ir.Node, mask: ir.Value) -> ir.Value:
    query = node.inputs[_QUERY]
    assert query is not None
    assert query.shape is not None
    assert mask.shape is not None
    ones = add_constant(model, "attention_mask_ones", np.ones(1, np.int64))
    rows = ir.node("Shape", [query], {"start": 2, "end": 3})
    target = ir.node("Concat", [rows.outputs[0], ones], {"axis": 0})
    expand = ir.node("Expand", [mask, target.outputs[0]])
    out = expand.outputs[0]
    out.type = mask.type
    out.shape = ir.Shape([mask.shape[0], mask.shape[1], query.shape[2], mask.shape[3]])
    insert_before(node, [rows, target, expand])
    return out
