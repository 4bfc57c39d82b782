"""Slices of constants by the same computed bounds → one slice of all of them.

Before, in each layer::

    positions_i = Slice(constant_i, first, last, axis)

After::

    positions_1, positions_2, … = Split(Slice(Concat(constants), first, last, axis), axis=0)

TensorRT writes each slice with a kernel; this is one for all layers (DeBERTa's positions; see
`perf/position_forms.py`). Fires for at least two constants of the same shape and type that are
sliced on another axis than the first, by the same values. The elements stay what they were.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfc.optimizers.computed import computed
from tfc.optimizers.graph import add_weight, constant, insert_before, is_op, replace_value
from tfc.optimizers.passes import Refusal

_START, _AXES = 1, 3


class SharedSlice:
    """The fusion; see the module's docstring."""

    name = "share slices"
    anchors = ("Slice",)

    def match(self, node: ir.Node) -> tuple[ir.Node, ...] | Refusal | None:
        """The slices that can be one, this first."""
        table = node.inputs[0]
        if table is None or table.const_value is None or len(node.inputs) <= _AXES:
            return None
        start, axes = node.inputs[_START], constant(node.inputs[_AXES])
        if start is None or constant(start) is not None or axes is None or axes.min() < 1:
            return None
        alike = [
            use.node for use in start.uses() if use.idx == _START and _is_alike(use.node, node)
        ]
        return tuple(alike) if len(alike) > 1 else None

    def rewrite(self, model: ir.Model, match: tuple[ir.Node, ...]) -> None:
        """Write the one slice in front of the first."""
        first = match[0]
        tables = [table.const_value for node in match if (table := node.inputs[0]) is not None]
        together = computed("Concat", [t for t in tables if t is not None], axis=0)
        weight = add_weight(model, f"{first.name}.tables", together)
        rows = ir.node("Slice", [weight, *first.inputs[1:]])
        split = ir.node(
            "Split",
            [rows.outputs[0]],
            {"axis": 0, "num_outputs": len(match)},
            num_outputs=len(match),
        )
        insert_before(first, [rows, split])
        for node, part in zip(match, split.outputs, strict=True):
            replace_value(node.outputs[0], part)
            model.graph.remove(node, safe=True)


def _is_alike(node: ir.Node, other: ir.Node) -> bool:
    """Whether two slices differ in nothing but the numbers of a constant."""
    table, own = node.inputs[0], other.inputs[0]
    if not is_op(node, "Slice") or table is None or own is None:
        return False
    first, second = table.const_value, own.const_value
    if first is None or second is None or first.dtype != second.dtype:
        return False
    same = np.array_equal(first.shape.numpy(), second.shape.numpy())
    return same and list(node.inputs[1:]) == list(other.inputs[1:])
