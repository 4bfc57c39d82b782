"""RotaryEmbedding: cos and sin of batch size 1 → of the input's batch size.

torch 2.13 (with onnxscript 0.7) exports rotary embeddings whose angles do not depend on the row
as `RotaryEmbedding(x, cos, sin)` with cos and sin `[1, sequence, dim / 2]`. The standard wants
`[batch, sequence, dim / 2]`: ONNX Runtime refuses the graph when it runs, TensorRT when it parses.
So both go through an `Expand` to the batch size of x, once for all blocks that share them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, insert_before

_X, _COS, _SIN, _POSITIONS = 0, 1, 2, 3


def give_rotary_caches_a_batch(model: ir.Model) -> None:
    """Correct every `RotaryEmbedding` without position ids, in place."""
    expanded: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type != "RotaryEmbedding" or _has_positions(node):
            continue
        for index in (_COS, _SIN):
            cache = node.inputs[index]
            if cache is None or (cache.shape is not None and cache.shape[0] != 1):
                continue
            if cache not in expanded:
                expanded[cache] = _expanded(model, node, cache)
            node.replace_input_with(index, expanded[cache])


def _has_positions(node: ir.Node) -> bool:
    return len(node.inputs) > _POSITIONS and node.inputs[_POSITIONS] is not None


def _expanded(model: ir.Model, node: ir.Node, cache: ir.Value) -> ir.Value:
    x = node.inputs[_X]
    assert x is not None
    assert x.shape is not None
    tail = add_constant(model, "rotary_batch_ones", np.ones(2, np.int64))
    batch = ir.node("Shape", [x], {"start": 0, "end": 1})
    target = ir.node("Concat", [batch.outputs[0], tail], {"axis": 0})
    expand = ir.node("Expand", [cache, target.outputs[0]])
    out = expand.outputs[0]
    out.type = x.type
    if cache.shape is not None:
        out.shape = ir.Shape([x.shape[0], *list(cache.shape)[1:]])
    insert_before(node, [batch, target, expand])
    return out
