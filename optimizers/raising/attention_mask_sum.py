"""All that is added to the scores, or filled into them, as the one additive mask of `Attention`.

A fill becomes 0 where the score is kept and the fill value elsewhere. Not a boolean mask: a row
without any key to see would get another result (a mean of all values, in the original).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, ancestors, copy_type, is_op, scalar
from tfc.optimizers.raising.attention_scores import Added, Masked, Scores

# ONNX Runtime's Attention takes the lowest number for -inf: a row without any key to see (the
# padding on the left of a causal model) becomes 0 instead of the mean of values. A quarter of it
# absorbs every score as well, and a padding mask on top of a causal one is still a number.
_NOT_LOWEST = 0.25
# From here on a fill absorbs the score that it is added to: 1e8 is 8 apart from the next number.
_ABSORBS = -1e8


def mask_of(
    model: ir.Model, scores: Scores, dtype: np.dtype[Any], new: list[ir.Node]
) -> ir.Value | None:
    """The sum, in the type of the queries; its nodes are appended to `new`.

    What is filled in replaces what was added before it, and is added to by what comes after it.
    """
    total: ir.Value | None = None
    for number, term in enumerate(reversed(scores.terms)):
        if isinstance(term, Masked):
            alone = len(scores.terms) == 1
            total = _filled(model, term, number, alone, total, dtype, new)
        else:
            value = _term(model, term, dtype, new)
            if total is not None:
                value = _append(new, ir.node("Add", [total, value]))
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


def _filled(
    model: ir.Model,
    masked: Masked,
    number: int,
    alone: bool,
    before: ir.Value | None,
    dtype: np.dtype[Any],
    new: list[ir.Node],
) -> ir.Value:
    """The fill where the score is replaced, elsewhere what was added before (nothing, or 0).

    A fill that does not absorb the scores is lowered if it is the only mask, for in a row that is
    filled throughout they would come through.
    """
    floor = float(np.finfo(dtype).min) * _NOT_LOWEST
    fill = masked.fill if np.isneginf(masked.fill) else max(masked.fill, floor)
    if alone and fill > _ABSORBS:
        fill = floor
    kept = before
    if kept is None:
        kept = add_constant(model, "attention_kept", np.zeros((), dtype))
    low = add_constant(model, f"attention_fill_{number}", np.asarray(fill, dtype))
    chosen = (low, kept) if masked.inverted else (kept, low)
    return _append(new, ir.node("Where", [masked.condition, *chosen]))


def _above_lowest(
    model: ir.Model, mask: ir.Value, dtype: np.dtype[Any], new: list[ir.Node]
) -> ir.Value:
    """The mask, raised to a share of the lowest number if it is made with numbers below that."""
    floor = float(np.finfo(dtype).min) * _NOT_LOWEST
    made_with = [scalar(v) for node in ancestors(mask) for v in (*node.inputs, *node.outputs)]
    if not any(n is not None and np.isfinite(n) and n < floor for n in made_with):
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
