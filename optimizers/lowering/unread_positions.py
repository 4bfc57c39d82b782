"""Compute only those positions of the last layer that are read.

A classifier that reads one position (`hidden[:, 0]`, BERT's pooler) needs the last layer's query,
attention row, feed-forward network and norms for that position only; keys and values are needed
for all. Before::

    h = …layer(x)                                   # [batch, sequence, hidden]
    y = Gather(h, 0, axis=1)

After::

    y = Squeeze(…layer(Slice(x, 0, 1, axis=1), keys and values of x))

The selection moves up through every operation that treats positions one by one, to where a value
has another reader. That is most of the last layer: 14 % of the work of a 6-layer encoder.

Fires at a `Gather` or `Slice` of one constant position, if at least one linear layer gets smaller.
Each number that is left is computed as before, from the same operands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    constant,
    insert_before,
    is_op,
    known_shape,
    replace_value,
    scalar,
)
from tfc.optimizers.lowering.positions import axis_of_operand, treats_positions_one_by_one
from tfc.optimizers.passes import Refusal, refusal

KIND = "unread_positions"
_SEQUENCE = 1
_BOUNDS = 3  # of a Slice: start, end, axis


@dataclass(frozen=True)
class Match:
    """The reader of one position, and the nodes to compute for it: node → axis of positions."""

    reader: ir.Node
    position: int
    cone: dict[ir.Node, int]


class DropUnreadPositions:
    """The fusion; see the module's docstring."""

    name = "drop unread positions"
    anchors = ("Gather", "Slice")

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the node reads one position of what a layer computes for all."""
        position, whole = _position(node), node.inputs[0]
        shape = known_shape(whole)
        if position is None or shape is None or len(shape) <= _SEQUENCE:
            return None
        if isinstance(shape[_SEQUENCE], int):
            return None
        cone = _cone(node)
        if not any(is_op(each, "MatMul") for each in cone):
            return refusal(KIND, node, "no linear layer is computed for this position only")
        return Match(node, position, cone)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Write the cone again for one position."""
        writer = _Writer(model, match)
        for node in reversed(match.cone):
            writer.write(node)
        reader = match.reader
        assert reader.inputs[0] is not None
        result = writer.selected(reader.inputs[0], _SEQUENCE)
        if is_op(reader, "Gather") and (known_shape(reader.inputs[1]) or ()) == ():
            axis = add_constant(model, "position_axis", np.array([_SEQUENCE], np.int64))
            squeeze = ir.node("Squeeze", [result, axis])
            insert_before(reader, [squeeze])
            result = squeeze.outputs[0]
        replace_value(reader.outputs[0], result)


def _position(node: ir.Node) -> int | None:
    """The one position that the node reads on the axis of the sequence."""
    if is_op(node, "Gather"):
        index = scalar(node.inputs[1])
        on_sequence = attribute(node, "axis", 0) == _SEQUENCE
        return int(index) if on_sequence and index is not None else None
    bounds = [constant(value) for value in node.inputs[1:]]
    if len(bounds) < _BOUNDS or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end, axis, *step = (int(b.reshape(-1)[0]) for b in bounds if b is not None)
    last = start == -1 and end > 0
    if axis != _SEQUENCE or step not in ([], [1]) or not (end == start + 1 or last):
        return None
    return start


def _cone(reader: ir.Node) -> dict[ir.Node, int]:
    """The nodes whose results only lead to the reader, nearest first: node → axis of positions."""
    cone: dict[ir.Node, int] = {}
    graph = reader.graph
    assert graph is not None
    for node in reversed(list(graph)[: graph.index(reader)]):
        axis = _axis_read(node, reader, cone)
        if axis is not None and treats_positions_one_by_one(node, axis):
            cone[node] = axis
    return cone


def _axis_read(node: ir.Node, reader: ir.Node, cone: dict[ir.Node, int]) -> int | None:
    """The axis of the node's results on which every use of them reads one position."""
    axes: set[int | None] = set()
    for value in node.outputs:
        if value.is_graph_output():
            return None
        for use in value.uses():
            if use.node is reader:
                axes.add(_SEQUENCE if use.idx == 0 else None)
            elif use.node in cone:
                axes.add(axis_of_operand(use.node, use.idx, cone[use.node]))
            else:
                return None
    return axes.pop() if len(axes) == 1 else None


class _Writer:
    """Writes nodes again for one position, in front of the reader."""

    def __init__(self, model: ir.Model, match: Match) -> None:
        self._model = model
        self._match = match
        self._new: dict[tuple[ir.Value, int], ir.Value] = {}

    def write(self, node: ir.Node) -> None:
        """One node of the cone, after those that it depends on."""
        axis = self._match.cone[node]
        operands = [self._operand(node, index, axis) for index in range(len(node.inputs))]
        if is_op(node, "Reshape"):
            operands[1] = self._target(node, axis)
        new = ir.Node(
            node.domain,
            node.op_type,
            operands,
            attributes=[a for n, a in node.attributes.items() if n != "allowzero"],
            num_outputs=len(node.outputs),
            name=node.name,
        )
        insert_before(self._match.reader, [new], like=node)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            self._remember(old, axis, value)

    def selected(self, value: ir.Value, axis: int) -> ir.Value:
        """The one position of a value: written before, or cut out of the whole."""
        if (value, axis) not in self._new:
            position = self._match.position
            end = position + 1 if position >= 0 else np.iinfo(np.int64).max
            bounds = [
                add_constant(self._model, f"{name}_{number}", np.array([number], np.int64))
                for name, number in (("from", position), ("to", end), ("axis", axis))
            ]
            cut = ir.node("Slice", [value, *bounds])
            insert_before(self._match.reader, [cut])
            self._remember(value, axis, cut.outputs[0])
        return self._new[value, axis]

    def _operand(self, node: ir.Node, index: int, axis: int) -> ir.Value | None:
        value = node.inputs[index]
        own = axis_of_operand(node, index, axis)
        return value if value is None or own is None else self.selected(value, own)

    def _target(self, node: ir.Node, axis: int) -> ir.Value:
        """The shape of a Reshape: the axes up to the positions stay as they are."""
        after = known_shape(node.outputs[0]) or ()
        dims = [0] * (axis + 1) + [int(size) for size in after[axis + 1 :]]
        name = "shape_" + "_".join(map(str, dims))
        return add_constant(self._model, name, np.array(dims, np.int64))

    def _remember(self, old: ir.Value, axis: int, new: ir.Value) -> None:
        new.type = old.type
        if old.shape is not None:
            new.shape = ir.Shape([1 if i == axis else d for i, d in enumerate(old.shape)])
        self._new[old, axis] = new
