"""Parts of a shape that was written out: taken directly.

Before::

    shape = Concat(rows, [8], length, [64])          # each of one element
    width = Slice(shape, -1, end)
    rows2 = Gather(shape, 0)

After::

    width = [64]
    rows2 = Squeeze(rows, 0)

What exporters compute of one size then folds to a constant where that size is one: the scale of
TorchScript's attention, `1 / sqrt(head_dim)`, is computed from the shape of q. Constants are
folded at once, for the passes that look for such a scale.

Fires when the indices are constants, and each operand of the concatenation has one element, so
that the place of an element tells its operand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tfc.optimizers.cleaning import Fold
from tfc.optimizers.graph import (
    add_constant,
    attribute,
    constant,
    is_op,
    known_shape,
    replace_value,
)
from tfc.optimizers.passes import PassResult


class TakePartsOfShapes:
    """The pass; see the module's docstring."""

    name = "take parts of shapes"

    def apply(self, model: ir.Model) -> PassResult:
        """Rewrite every `Slice` and `Gather` of a concatenation of single elements."""
        changed = 0
        for node in list(model.graph):
            if not (is_op(node, "Slice") or is_op(node, "Gather")):
                continue
            operands = _elements(node.inputs[0])
            places = _places(node, len(operands))
            if operands and places is not None:
                self._rewrite(model, node, [operands[place] for place in places])
                changed += 1
        if changed:
            Fold().apply(model)
        return PassResult(changed)

    def _rewrite(self, model: ir.Model, node: ir.Node, parts: Sequence[ir.Value]) -> None:
        indices = constant(node.inputs[1])
        if is_op(node, "Gather") and indices is not None and indices.ndim == 0:
            axis = add_constant(model, "shape_axis", np.array([0], np.int64))
            new = ir.node("Squeeze", [parts[0], axis])
        elif len(parts) == 1:
            new = ir.node("Identity", [parts[0]])
        else:
            new = ir.node("Concat", list(parts), {"axis": 0})
        model.graph.insert_before(node, [new])
        replace_value(node.outputs[0], new.outputs[0])


def _elements(value: ir.Value | None) -> list[ir.Value]:
    """The operands of a concatenation of single elements; none if the value is something else."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "Concat") or attribute(node, "axis", None) not in (0, -1):
        return []
    operands = [v for v in node.inputs if v is not None and known_shape(v) == (1,)]
    return operands if len(operands) == len(node.inputs) else []


def _places(node: ir.Node, size: int) -> list[int] | None:
    """Which elements the node takes, in order; None if that is not known, or there are none."""
    arrays = [constant(value) for value in node.inputs[1:]]
    if not arrays or any(array is None for array in arrays):
        return None
    if is_op(node, "Gather"):
        indices = arrays[0]
        if indices is None or indices.ndim > 1 or attribute(node, "axis", 0) != 0:
            return None
        return [int(i) % size for i in indices.reshape(-1)] if size and indices.size else None
    numbers = [int(array.reshape(-1)[0]) for array in arrays if array is not None and array.size]
    if len(numbers) < len(arrays) or (len(numbers) > 2 and numbers[2] not in (0, -1)):
        return None
    step = numbers[3] if len(numbers) > 3 else 1
    return list(range(size))[slice(numbers[0], numbers[1], step)] or None
