"""All that is added to the scores, or filled into them, as the one additive mask of `Attention`.

A fill becomes 0 where the score is kept and the fill value elsewhere. Not a boolean mask: a row
without any key to see would get another result (a mean of all values, in the original).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    ancestors,
    broadcast_shape,
    copy_type,
    is_op,
    scalar,
    set_type,
)
from tfc.optimizers.raising.attention_scores import Added, Masked, Scores

# ONNX Runtime's Attention takes the lowest number for -inf: a row without any key to see (the
# padding on the left of a causal model) becomes 0 instead of the mean of values. A quarter of it
# absorbs every score as well, and a padding mask on top of a causal one is still a number.
_NOT_LOWEST = 0.25
# A fill replaces the score, the mask is added to it: times this, it absorbs every score as well.
_ABSORBING = 1e21


def mask_of(
    model: ir.Model, scores: Scores, dtype: np.dtype[Any], new: list[ir.Node]
) -> ir.Value | None:
    """The sum, in the type of the queries; its nodes are appended to `new`.

    What is filled in replaces what was added before it, and is added to by what comes after it.
    """
    total: ir.Value | None = None
    for number, term in enumerate(reversed(scores.terms)):
        if isinstance(term, Masked):
            fill = _fill(term.fill, scores, dtype)
            total = _filled(model, term, number, fill, total, dtype, new)
        else:
            value = _term(model, term, dtype, new)
            if total is not None:
                value = _combined(ir.node("Add", [total, value]), total, value, dtype, new)
            total = value
    return total


def _term(model: ir.Model, added: Added, dtype: np.dtype[Any], new: list[ir.Node]) -> ir.Value:
    value = _above_lowest(model, added.value, dtype, new)
    kind = ir.DataType.from_numpy(dtype)
    if value.dtype is not None and value.dtype != kind:
        cast = ir.node("Cast", [value], {"to": kind})
        copy_type(value, cast.outputs[0])
        value = _append(new, cast)
        value.type = ir.TensorType(kind)
    if added.factor == 1.0:
        return value
    factor = add_constant(model, "attention_bias_factor", np.asarray(added.factor, dtype))
    scaled = ir.node("Mul", [value, factor])
    copy_type(value, scaled.outputs[0])
    return _append(new, scaled)


def _fill(fill: float, scores: Scores, dtype: np.dtype[Any]) -> float:
    """The number that a fill is written with: one that absorbs the scores, for in a row that is
    filled throughout they would come through.

    The order of the fills stays, and that of fills and the numbers that masks are made with: a
    row may be filled by one here and by another there.
    """
    floor = float(np.finfo(dtype).min) * _NOT_LOWEST
    if np.isneginf(fill):
        return fill
    lower = max(fill * _ABSORBING, floor)
    added = [term for term in scores.terms if isinstance(term, Added)]
    others = [max(n * term.factor, floor) for term in added for n in _made_with(term.value)]
    passed = any(lower < other <= fill for other in others)
    return max(fill, floor) if passed else lower


def _filled(
    model: ir.Model,
    masked: Masked,
    number: int,
    fill: float,
    before: ir.Value | None,
    dtype: np.dtype[Any],
    new: list[ir.Node],
) -> ir.Value:
    """The fill where the score is replaced, elsewhere what was added before (nothing, or 0)."""
    kept = before
    if kept is None:
        kept = add_constant(model, "attention_kept", np.zeros((), dtype))
    low = add_constant(model, f"attention_fill_{number}", np.asarray(fill, dtype))
    chosen = (low, kept) if masked.inverted else (kept, low)
    where = ir.node("Where", [masked.condition, *chosen])
    return _combined(where, masked.condition, kept, dtype, new)


def _combined(
    node: ir.Node,
    first: ir.Value,
    second: ir.Value,
    dtype: np.dtype[Any],
    new: list[ir.Node],
) -> ir.Value:
    """The node's result, typed: `Attention` needs to know how many axes its mask has."""
    shape = broadcast_shape(first, second)
    if shape is not None:
        set_type(node.outputs[0], ir.DataType.from_numpy(dtype), ir.Shape(shape))
    return _append(new, node)


def _made_with(value: ir.Value) -> list[float]:
    """The numbers among what the value is computed from."""
    values = (
        v for node in ancestors(value) for v in (*node.inputs, *node.outputs) if v is not None
    )
    single = [v for v in values if v.const_value is not None and v.const_value.size == 1]
    return [n for v in single if (n := scalar(v)) is not None and np.isfinite(n)]


def _above_lowest(
    model: ir.Model, mask: ir.Value, dtype: np.dtype[Any], new: list[ir.Node]
) -> ir.Value:
    """The mask, raised to a share of the lowest number if it is made with numbers below that."""
    floor = float(np.finfo(dtype).min) * _NOT_LOWEST
    if not any(n < floor for n in _made_with(mask)):
        return mask
    own = mask.dtype.numpy() if mask.dtype is not None else dtype
    low = add_constant(model, "attention_lowest", np.asarray(floor, own))
    readers = (use.node for use in mask.uses())
    before = next((n for n in readers if is_op(n, "Max") and low in n.inputs), None)
    if before is not None:  # another block's, which stands earlier
        return before.outputs[0]
    raised = ir.node("Max", [mask, low])
    copy_type(mask, raised.outputs[0])
    return _append(new, raised)


def _append(new: list[ir.Node], node: ir.Node) -> ir.Value:
    new.append(node)
    return node.outputs[0]
