"""Relative positions as a constant, told by running the nodes that compute them.

DeBERTa projects a table of positions in each layer and repeats the result for each text (v2), or
takes the rows that the length needs before it projects (v1). Rows are projected one by one, so the
whole table can be projected once, when the graph is compiled.
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
# Two runs: one text, then two, and other lengths.
_RUNS = ((1, 5), (2, 11))
# Rounding of a product of fewer rows: BLAS adds in another order.
_TOLERANCE = 1e-5
_TABLE_AXES = 2


@dataclass(frozen=True)
class PositionTable:
    """`[heads, head_dim, rows]`, and the first and last row that the model takes, if not all."""

    array: Array
    bounds: tuple[ir.Value, ...]


def position_table_of(value: ir.Value | None, heads: Sequence[int | str]) -> PositionTable | str:
    """The table that a product's second operand is, or why it is none.

    Args:
        value: `[batch, heads, head_dim, rows]`, or with the first two axes merged or missing.
        heads: the shape `[batch, heads, sequence, head_dim]` of the first operand.
    """
    if value is None or not isinstance(heads[0], str) or not isinstance(heads[1], int):
        return "its batch is not dynamic, or its heads are"
    if constant(value) is not None:
        return "its positions are a constant already"
    nodes = ancestors(value)
    reason = _depends_on_more(nodes)
    if reason:
        return reason
    cut = _slice_of(nodes)
    if isinstance(cut, str):
        return cut
    try:
        whole = _whole(value, cut, heads[0])
        table = whole.reshape(heads[1], heads[3], -1) if whole.ndim > _TABLE_AXES else whole
        if table.ndim != _TABLE_AXES + 1 or not _is_repeated(value, cut, table, heads[0]):
            return "its positions are not rows of one table, the same for each text"
    except (ValueError, RuntimeError, TypeError) as error:
        return f"its positions cannot be computed by themselves ({error})"
    return PositionTable(np.ascontiguousarray(table), _bounds(cut))


def _depends_on_more(nodes: Sequence[ir.Node]) -> str:
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


def _slice_of(nodes: Sequence[ir.Node]) -> ir.Node | str | None:
    """The `Slice` of a table's rows by their number, if there is one."""
    found = [
        node
        for node in nodes
        if is_op(node, "Slice")
        and len(known_shape(node.outputs[0]) or ()) == _TABLE_AXES
        and constant(node.inputs[1]) is None
    ]
    if not found:
        return None
    node = found[0]
    axes, steps = (constant(v) for v in (*node.inputs, None, None)[3:5])
    rows_only = axes is not None and axes.tolist() == [0]
    if len(found) > 1 or not rows_only or (steps is not None and steps.tolist() != [1]):
        return "its positions are sliced by more than rows"
    if constant(node.inputs[0]) is None:
        return "its positions are sliced from a table that is computed"
    return node


def _bounds(cut: ir.Node | None) -> tuple[ir.Value, ...]:
    return tuple(v for v in cut.inputs[1:3] if v is not None) if cut is not None else ()


def _whole(value: ir.Value, cut: ir.Node | None, batch: str) -> Array:
    """The positions of one text, from all rows of the table."""
    given = {} if cut is None else {cut.outputs[0]: constant(cut.inputs[0])}
    return _run(value, _sizes(value, batch, _RUNS[0]), given)


def _is_repeated(value: ir.Value, cut: ir.Node | None, table: Array, batch: str) -> bool:
    """Whether the positions are the table's rows, once for each text, at several sizes."""
    largest = float(np.abs(table).max())
    for run in _RUNS:
        sizes = _sizes(value, batch, run)
        got = _run(value, sizes, {})
        got = got.reshape(-1, *table.shape[:2], got.shape[-1])
        rows = (
            table[:, :, slice(*(int(_run(bound, sizes, {})[0]) for bound in _bounds(cut)))]
            if cut is not None
            else table
        )
        if got.shape[0] not in (1, run[0]) or rows.shape != got.shape[1:]:
            return False
        if float(np.abs(got - rows).max(initial=0)) > _TOLERANCE * largest:
            return False
    return True


def _sizes(value: ir.Value, batch: str, run: tuple[int, int]) -> dict[str, int]:
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    names = {d for v in graph.inputs for d in known_shape(v) or () if isinstance(d, str)}
    return {name: run[0] if name == batch else run[1] for name in names}


def _run(
    value: ir.Value, sizes: Mapping[str, int], given: Mapping[ir.Value, Array | None]
) -> Array:
    """The value, from constants, the inputs' sizes and what is given."""
    from onnx.reference import ReferenceEvaluator

    graph = value.graph
    assert isinstance(graph, ir.Graph)
    if value in given or constant(value) is not None:
        return np.asarray(given.get(value) if value in given else constant(value))
    names = [str(v.name) for v in (*graph.inputs, *given)]
    cut = ir.convenience.extract(graph, names, [str(value.name)])
    fixed = {str(v.name): array for v, array in given.items()}
    feed: dict[str, Array] = {}
    for own in [v for v in cut.inputs if v.uses()]:
        shape = [d if isinstance(d, int) else sizes.get(d, 1) for d in known_shape(own) or ()]
        dtype = own.dtype.numpy() if own.dtype is not None else np.dtype(np.float32)
        feed[str(own.name)] = fixed.get(str(own.name), np.zeros(shape, dtype))
        if str(own.name) in fixed:
            own.shape = None
    for own in [v for v in cut.inputs if not v.uses()]:
        cut.inputs.remove(own)
    for node in cut:
        for out in node.outputs:
            out.shape = None  # said of other sizes
    model = ir.to_proto(ir.Model(cut, ir_version=10))
    return np.asarray(ReferenceEvaluator(model).run(None, feed)[0])
