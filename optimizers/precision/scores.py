"""How large the scores inside an `Attention` get on real inputs: no value of the graph shows them.

A score is `scale · q·k`; the standard scales both factors by the scale's root before the product,
and where the scale was folded into the query it is 1. Scores that fp16 cannot hold become
infinities, and a row with two of them NaN. A smaller query is no remedy, for the softmax needs the
scores as they are: such an attention stays in fp32. Where an attention is written as its products
its scores are a value like others (`tfc.optimizers.precision.ranges`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.executor import Feed, Outputs
from tfc.optimizers.graph import attribute, constant, module_of
from tfc.optimizers.precision.intermediate import values_of
from tfc.optimizers.precision.ranges import HALF_LIMIT

_QUERY, _KEY, _PAST_KEY = 0, 1, 4
_WITH_HEADS = 4  # axes of [batch, heads, length, head_dim]; [batch, length, hidden] has three

Array = npt.NDArray[Any]


def largest_scores(model: ir.Model, feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest magnitude of the scaled scores of every attention, by the name of its output.

    Args:
        model: an fp32 graph.
        feeds: real inputs; the queries and keys that they give are in memory together.
    """
    attentions = [n for n in model.graph if n.op_type == "Attention" and n.outputs[0].name]
    factors = {str(v.name) for node in attentions for v in _factors(node) if v is not None}
    if not attentions:
        return {}
    found = values_of(model, factors, feeds)
    largest = {}
    for node in attentions:
        sizes = [_largest(node, feed, values) for feed, values in zip(feeds, found, strict=True)]
        largest[str(node.outputs[0].name)] = float(np.max(sizes))
    return largest


def overflowing_scores(model: ir.Model, feeds: Sequence[Feed]) -> dict[str, str]:
    """The outputs of attentions whose scores fp16 cannot hold → each one's module (or node)."""
    producers = {v.name: node for node in model.graph for v in node.outputs}
    return {
        name: module_of(producers[name]) or str(producers[name].name)
        for name, size in largest_scores(model, feeds).items()
        if not size <= HALF_LIMIT
    }


def _factors(node: ir.Node) -> list[ir.Value | None]:
    places = (_QUERY, _KEY, _PAST_KEY)
    return [node.inputs[place] if place < len(node.inputs) else None for place in places]


def _largest(node: ir.Node, feed: Feed, values: Outputs) -> float:
    query, key, past = (_array(value, feed, values) for value in _factors(node))
    assert query is not None
    assert key is not None
    query = _with_heads(query, attribute(node, "q_num_heads", 0))
    key = _with_heads(key, attribute(node, "kv_num_heads", 0))
    keys = key if past is None else np.concatenate([past, key], axis=2)
    if not query.size or not keys.size:
        return 0.0
    default = query.shape[-1] ** -0.5
    scale = float(attribute(node, "scale", default) or default)
    keys = np.repeat(keys, query.shape[1] // keys.shape[1], axis=1)  # grouped queries
    return scale * float(np.abs(np.matmul(query, keys.swapaxes(2, 3))).max())


def _array(value: ir.Value | None, feed: Feed, values: Outputs) -> Array | None:
    known = constant(value)
    if value is None or known is not None:
        return known
    name = str(value.name)
    return np.asarray(values[name] if name in values else feed[name])


def _with_heads(array: Array, heads: int) -> Array:
    """`[batch, heads, length, head_dim]` of either form."""
    if array.ndim == _WITH_HEADS:
        return array
    batch, length, hidden = array.shape
    return np.asarray(array.reshape(batch, length, heads, hidden // heads).swapaxes(1, 2))
