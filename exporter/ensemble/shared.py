"""Compute what several branches of a graph have in common once.

    branch 1: input → layers with weights A → head 1        input → layers with A ─┬→ head 1
    branch 2: input → layers with weights A → head 2   →                           └→ head 2

1. Initializers with the same type, shape and bytes become one.
2. Nodes with the same operator, attributes and inputs become one, from the inputs on, as far as
   the branches agree.

Nothing is recomputed: each value that is left is the one that it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

# Constants in nodes are compared up to this size; larger ones are initializers.
_CONSTANT = 1024
_ATTENTIONS = frozenset({"Attention", "Softmax"})


@dataclass(frozen=True)
class Shared:
    """What was there twice: nodes, bytes of weights, and sites of fusions by kind."""

    nodes: int
    weight_bytes: int
    sites: dict[str, int]


def share_identical(model: ir.Model) -> Shared:
    """Make one of what is there several times, in place."""
    nodes, sites, size = len(model.graph), _sites(model), _weight_bytes(model)
    _share_initializers(model.graph)
    CommonSubexpressionEliminationPass(size_limit=_CONSTANT)(model)
    RemoveUnusedNodesPass()(model)
    left = _sites(model)
    return Shared(
        nodes - len(model.graph),
        size - _weight_bytes(model),
        {kind: count - left[kind] for kind, count in sites.items()},
    )


def _share_initializers(graph: ir.Graph) -> None:
    alike: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.Value]] = defaultdict(list)
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype.is_string() or value.is_graph_output():
            continue
        known = alike[tensor.dtype, tuple(tensor.shape.numpy())]
        same = next((each for each in known if _same_bytes(each, value)), None)
        if same is None:
            known.append(value)
            continue
        value.replace_all_uses_with(same)
        del graph.initializers[str(value.name)]


def _same_bytes(first: ir.Value, second: ir.Value) -> bool:
    """Bytes, not numbers: 0.0 and -0.0 are equal numbers, and NaN is not equal to itself."""
    return np.array_equal(_bytes_of(first), _bytes_of(second))


def _bytes_of(value: ir.Value) -> npt.NDArray[np.uint8]:
    assert value.const_value is not None
    array = np.ascontiguousarray(value.const_value.numpy())
    return array.reshape(-1).view(np.uint8)


def _weight_bytes(model: ir.Model) -> int:
    weights = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in weights if tensor is not None)


def _sites(model: ir.Model) -> dict[str, int]:
    """Attention blocks, and norms behind one: in an encoder those of its residual additions."""
    behind: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type in _ATTENTIONS or any(parent in behind for parent in _parents(node)):
            behind.add(node)
    return {
        "attention": sum(node.op_type in _ATTENTIONS for node in behind),
        "add_layernorm": sum(node.op_type == "LayerNormalization" for node in behind),
    }


def _parents(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer
