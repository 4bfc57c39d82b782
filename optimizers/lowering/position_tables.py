"""Relative positions as a constant, told by running the nodes that compute them.

DeBERTa projects a table of positions in each layer and repeats the result for each text (v2), or
takes the rows that the length needs before it projects (v1). Rows are projected one by one, so the
whole table can be projected once, when the graph is compiled, and sliced after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.computed import Deferred
from tfc.optimizers.graph import ancestors, constant, is_op, known_shape

Array = npt.NDArray[Any]

_SIZE_OPS = ("Shape", "Size")
# Texts and length of two runs: what is the same in both is so for each text and length.
_RUNS = ((1, 5), (2, 11))
# A product of fewer rows is added up in another order: some units in the last place of fp32.
_ROUNDING = 1e-5
_TABLE_AXES = 2


@dataclass(frozen=True)
class PositionTable:
    """`[heads, head_dim, rows]`, and the first row and the end of what the model takes of it.

    `bounds` is empty where it takes all rows.
    """

    array: Array
    bounds: tuple[ir.Value, ...]


def position_table_of(value: ir.Value | None, heads: Sequence[int | str]) -> PositionTable | str:
    """The table that a product's second operand is, or why it is none.

    Args:
        value: `[batch, heads, head_dim, rows]`, with the first two axes merged or not.
        heads: the shape `[batch, heads, sequence, head_dim]` of the first operand.
    """
    batch, count, _, head_dim = heads
    if value is None or not isinstance(batch, str):
        return "its batch is not dynamic"
    if not isinstance(count, int) or not isinstance(head_dim, int):
        return "the number of heads is not known"
    nodes = ancestors(value)
    reason = _needs_more_than_sizes(nodes)
    if reason:
        return reason
    cut = _slice_of_rows(nodes)
    if isinstance(cut, str):
        return cut
    try:
        runs = [_sizes(value, batch, *run) for run in _RUNS]
        whole = {} if cut is None else {cut.outputs[0]: _run(_source(cut), runs[0], {})}
        table = _run(value, runs[0], whole).reshape(count, head_dim, -1)
        same = all(_takes_rows(value, cut, table, sizes, sizes[batch]) for sizes in runs)
    except (ValueError, RuntimeError, TypeError) as error:
        return f"its positions cannot be computed by themselves ({error})"
    if not same:
        return "its positions are not rows of one table, the same for each text"
    return PositionTable(np.ascontiguousarray(table), _bounds(cut))


def _needs_more_than_sizes(nodes: Sequence[ir.Node]) -> str:
    """Why the nodes need more than constants and sizes; empty if they do not."""
    for node in nodes:
        for value in node.inputs:
            if value is None:
                continue
            if isinstance(value.const_value, Deferred):
                return "its positions come from weights that are not to be read yet"
            given = value.is_graph_input() and value.const_value is None
            if given and node.op_type not in _SIZE_OPS:
                return f"its positions depend on '{value.name}'"
    return ""


def _slice_of_rows(nodes: Sequence[ir.Node]) -> ir.Node | str | None:
    """The `Slice` that takes the rows that the length needs of a table, if there is one."""
    found = [
        node
        for node in nodes
        if is_op(node, "Slice")
        and len(known_shape(node.outputs[0]) or ()) == _TABLE_AXES
        and constant(node.inputs[1]) is None
    ]
    if not found:
        return None
    axes, steps = (constant(value) for value in (*found[0].inputs, None, None)[3:5])
    rows = axes is not None and axes.tolist() == [0]
    if len(found) > 1 or not rows or (steps is not None and steps.tolist() != [1]):
        return "its positions are sliced by more than rows"
    return found[0]


def _source(cut: ir.Node) -> ir.Value:
    assert cut.inputs[0] is not None
    return cut.inputs[0]


def _bounds(cut: ir.Node | None) -> tuple[ir.Value, ...]:
    return () if cut is None else tuple(v for v in cut.inputs[1:3] if v is not None)


def _takes_rows(
    value: ir.Value, cut: ir.Node | None, table: Array, sizes: Mapping[str, int], batch: int
) -> bool:
    """Whether the positions are the table's rows within the bounds, once or for each text."""
    bounds = [int(_run(bound, sizes, {}).item()) for bound in _bounds(cut)]
    rows = table[:, :, slice(*bounds)] if bounds else table
    got = _run(value, sizes, {})
    if got.size not in (rows.size, batch * rows.size):
        return False
    each = got.reshape(-1, *rows.shape)
    largest = float(np.abs(table).max())
    return float(np.abs(each - rows).max(initial=0)) <= _ROUNDING * largest


def _sizes(value: ir.Value, batch: str, texts: int, length: int) -> dict[str, int]:
    """A size for each dynamic axis of the graph's inputs."""
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    names = {d for v in graph.inputs for d in known_shape(v) or () if isinstance(d, str)}
    return dict.fromkeys(names, length) | {batch: texts}


def _run(value: ir.Value, sizes: Mapping[str, int], given: Mapping[ir.Value, Array]) -> Array:
    """The value, computed from constants, what is given, and inputs of these sizes."""
    from onnx.reference import ReferenceEvaluator

    known, graph = constant(value), value.graph
    if known is not None:
        return known
    assert isinstance(graph, ir.Graph)
    names = [str(v.name) for v in (*graph.inputs, *given)]
    cut = ir.convenience.extract(graph, names, [str(value.name)])
    arrays = {str(v.name): array for v, array in given.items()}
    feed: dict[str, Array] = {}
    for own in list(cut.inputs):
        name = str(own.name)
        if not own.uses():
            cut.inputs.remove(own)
        elif name in arrays:
            feed[name] = arrays[name]
        else:
            shape = [
                d if isinstance(d, int) else sizes.get(str(d), 1) for d in known_shape(own) or ()
            ]
            feed[name] = np.zeros(shape, own.dtype.numpy() if own.dtype else np.float32)
    model = ir.to_proto(ir.Model(cut, ir_version=10))
    (got,) = ReferenceEvaluator(model).run(None, feed)
    return np.asarray(got)
