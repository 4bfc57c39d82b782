"""Scaled dot-product attention written out → `Attention` (opset 23).

Before (every step but the two products and the softmax is optional)::

    scores = MatMul(q * s1, Transpose(k) * s2) * s3
    scores = scores + bias + mask          or Where(condition, fill, scores)
    p = Softmax(scores, axis=-1)
    p = Where(IsNaN(p), 0, p)              (the guard that PyTorch's SDPA is exported with)
    y = MatMul(p, v)

After::

    y = Attention(q, k, v, bias + mask, scale = s1·s2·s3)

with q, k, v `[batch, heads, sequence, head_dim]` and y the same. Where heads were merged into the
batch, or there is one head, they are `[batch, sequence, head_dim]`: then an axis of one head is
put in around `Attention`.

Fires when:
1. the softmax is over the last axis of a tensor of rank 4 or 3, and only the second product reads
   it (through the guard, if there is one);
2. scaling is by constants, and nothing is added before the last scaling (a scaled mask would be
   another mask);
3. a fill value is low enough to vanish in the softmax (`-1e4` or below);
4. k is transposed in its last two axes, wherever its tokens stood before.

Safe because `Attention` is defined as exactly this product, softmax and product; a condition
that is not met leaves the nodes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    ancestors,
    attribute,
    copy_type,
    insert_before,
    is_op,
    known_shape,
    only_user,
    replace_value,
    scalar,
)
from tfc.optimizers.layout import is_permutation, layout_sources
from tfc.optimizers.passes import Refusal, refusal

KIND = "attention"
ATTENTION_OPSET = 23
# exp(-1e4) is 0 in fp32, and models trained in fp16 fill with no less.
_VANISHES = -1e4
# ONNX Runtime's Attention takes the lowest number for -inf: a row without any key to see (the
# padding on the left of a causal model) becomes 0 instead of the mean of values. A quarter of it
# absorbs every score as well, and a padding mask on top of a causal one is still a number.
_NOT_LOWEST = 0.25
# Scale, bias, mask, fill: no exporter writes more than a few operations there.
_MAX_CHAIN = 8
# How keys become the second operand of the scores: from heads before tokens, or from tokens before
# heads (of rank 3: before the batch), which a second transpose of the keys makes up for.
_KEY_PERMS: dict[int, tuple[tuple[tuple[int, ...], tuple[int, ...] | None], ...]] = {
    4: (((0, 1, 3, 2), None), ((0, 2, 3, 1), (0, 2, 1, 3))),
    3: (((0, 2, 1), None), ((1, 2, 0), (1, 0, 2))),
}
_HEAD_AXIS = 1


@dataclass(frozen=True)
class Masked:
    """A boolean condition under which the score is kept (or, if inverted, replaced)."""

    condition: ir.Value
    inverted: bool
    fill: float


@dataclass(frozen=True)
class Match:
    """A site: its ends, its operands, and what is added to the scores."""

    softmax: ir.Node
    output: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    k_perm: tuple[int, ...] | None
    rank: int
    scale: float
    added: tuple[ir.Value, ...] = ()
    masked: tuple[Masked, ...] = ()


@dataclass(frozen=True)
class _Scores:
    """What lies between the first product and the softmax."""

    product: ir.Node | None = None
    scale: float = 1.0
    added: tuple[ir.Value, ...] = ()
    masked: tuple[Masked, ...] = ()


@dataclass(frozen=True)
class _Step:
    """One operation between the two, and the value below it."""

    below: ir.Value | None
    scale: float = 1.0
    added: tuple[ir.Value, ...] = ()
    masked: tuple[Masked, ...] = ()


class Attention:
    """The fusion; see the module's docstring."""

    name = "fuse attention"
    anchors = ("Softmax",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 4."""
        shape = known_shape(node.outputs[0])
        rank = 4 if shape is None else len(shape)
        if rank not in (3, 4) or attribute(node, "axis", -1) not in (-1, rank - 1):
            return None
        if rank == 3 and not isinstance(_second_product(node), ir.Node):
            return None  # a softmax over something else than scores
        output = _second_product(node)
        if isinstance(output, str):
            return refusal(KIND, node, output)
        scores = _scores(node.inputs[0])
        if isinstance(scores, str):
            return refusal(KIND, node, scores)
        assert scores.product is not None
        q, q_scale = _unscaled(scores.product.inputs[0])
        k_t, k_scale = _unscaled(scores.product.inputs[1])
        key = _key(k_t, rank)
        if key is None:
            return refusal(KIND, node, "the second operand of the scores is not a transposed key")
        k, k_perm = key
        v = output.inputs[1]
        assert v is not None
        scale = scores.scale * q_scale * k_scale
        return Match(node, output, q, k, v, k_perm, rank, scale, scores.added, scores.masked)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put `Attention` in place of the second product."""
        new: list[ir.Node] = []
        k = match.k
        if match.k_perm is not None:
            new.append(ir.node("Transpose", [k], {"perm": list(match.k_perm)}))
            copy_type(match.v, new[-1].outputs[0])
            k = new[-1].outputs[0]
        mask = _mask(model, match, new)
        operands = [match.q, k, match.v, *([mask] if mask is not None else [])]
        if match.rank == 3:
            operands = [_with_head_axis(model, value, new) for value in operands]
        attention = ir.node(
            "Attention",
            operands,
            {"scale": float(match.scale)},
            name=f"{match.softmax.name}_attention",
        )
        new.append(attention)
        if match.rank == 3:
            axis = add_constant(model, "head_axis", np.array([_HEAD_AXIS], np.int64))
            new.append(ir.node("Squeeze", [attention.outputs[0], axis]))
        insert_before(match.output, new, like=match.softmax)
        replace_value(match.output.outputs[0], new[-1].outputs[0])
        model.opset_imports[""] = max(model.opset_imports[""], ATTENTION_OPSET)


def _with_head_axis(model: ir.Model, value: ir.Value, new: list[ir.Node]) -> ir.Value:
    """`[batch, a, b]` as `[batch, 1, a, b]`; a mask of rank 2 broadcasts as it is."""
    if value.shape is not None and len(value.shape) == 2:
        return value
    axis = add_constant(model, "head_axis", np.array([_HEAD_AXIS], np.int64))
    return _append(new, ir.node("Unsqueeze", [value, axis]))


def _key(transposed: ir.Value, rank: int) -> tuple[ir.Value, tuple[int, ...] | None] | None:
    """What was transposed to give this value, and the transpose that puts its heads first."""
    for source in layout_sources(transposed):
        for perm, heads_first in _KEY_PERMS[rank]:
            if is_permutation(source, transposed, perm):
                return source, heads_first
    return None


def _second_product(softmax: ir.Node) -> ir.Node | str:
    probabilities = softmax.outputs[0]
    guard = _nan_guard(probabilities)
    user = only_user(guard if guard is not None else probabilities)
    if user is None:
        return "the probabilities have more than one reader"
    if not is_op(user, "MatMul") or user.inputs[0] not in (guard, probabilities):
        return f"the probabilities are read by {user.op_type}, not by the product with the values"
    return user


def _nan_guard(probabilities: ir.Value) -> ir.Value | None:
    """The output of `Where(IsNaN(p), 0, p)` if that is all that reads p."""
    users = {use.node for use in probabilities.uses()}
    if len(users) != 2 or probabilities.is_graph_output():
        return None
    where = next((n for n in users if is_op(n, "Where")), None)
    is_nan = next((n for n in users if is_op(n, "IsNaN")), None)
    if where is None or is_nan is None or where.inputs[0] is not is_nan.outputs[0]:
        return None
    guarded = scalar(where.inputs[1]) == 0.0 and where.inputs[2] is probabilities
    return where.outputs[0] if guarded else None


def _scores(value: ir.Value | None) -> _Scores | str:
    """Follow the scores from the softmax up to the first product."""
    found = _Scores()
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "MatMul"):
            return replace(found, product=node)
        step = _peel(node)
        if isinstance(step, str):
            return step
        if found.scale != 1.0 and (step.added or step.masked):
            return "the scores are scaled after the mask is added"
        value = step.below
        found = _Scores(
            scale=found.scale * step.scale,
            added=found.added + step.added,
            masked=found.masked + step.masked,
        )
    return "the scores do not come from a matrix product"


def _peel(node: ir.Node) -> _Step | str:
    """Take one operation off the scores."""
    if node.op_type in ("Mul", "Div"):
        below, factor = _scaling(node)
        if factor is None:
            return "the scores are scaled by something that is not a constant"
        return _Step(below, scale=factor)
    if is_op(node, "Add"):
        first, second = node.inputs
        below, added = (first, second) if _leads_to_scores(first) else (second, first)
        if not _leads_to_scores(below) or _leads_to_scores(added):
            return "it cannot be told which operand of the addition is the mask"
        return _Step(below, added=(added,) if added is not None else ())
    if is_op(node, "Where"):
        return _peel_fill(node)
    return f"{node.op_type} stands between the scores and the softmax"


def _peel_fill(node: ir.Node) -> _Step | str:
    condition, chosen, other = node.inputs
    fill, below, inverted = scalar(other), chosen, False
    if fill is None:
        fill, below, inverted = scalar(chosen), other, True
    if fill is None or condition is None:
        return "the scores are replaced by something that is not a constant"
    if fill > _VANISHES:
        return f"the fill value {fill:g} does not vanish in the softmax"
    return _Step(below, masked=(Masked(condition, inverted, fill),))


def _leads_to_scores(value: ir.Value | None) -> bool:
    """Whether only scaling, adding and filling lie between a product and this value."""
    for _ in range(_MAX_CHAIN):
        node = value.producer() if value is not None else None
        if node is None:
            return False
        if is_op(node, "MatMul"):
            return True
        if node.op_type in ("Mul", "Div"):
            value, factor = _scaling(node)
            if factor is None:
                return False
        elif is_op(node, "Add"):
            return any(_leads_to_scores(v) for v in node.inputs)
        elif is_op(node, "Where"):
            value = node.inputs[1] if scalar(node.inputs[1]) is None else node.inputs[2]
        else:
            return False
    return False


def _scaling(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """The scaled value and the factor of a Mul or Div by a constant; None if it is not one."""
    first, second = node.inputs
    factor = scalar(second)
    if factor is not None:
        return first, factor if is_op(node, "Mul") else 1.0 / factor
    factor = scalar(first)
    if factor is not None and is_op(node, "Mul"):
        return second, factor
    return None, None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    """An operand of the first product without the constant factors on it."""
    scale = 1.0
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Mul", "Div"):
            break
        below, factor = _scaling(node)
        if factor is None or below is None:
            break
        value, scale = below, scale * factor
    assert value is not None
    return value, scale


def _mask(model: ir.Model, match: Match, new: list[ir.Node]) -> ir.Value | None:
    """One additive mask for `Attention`: the sum of all that was added or filled in.

    A fill becomes 0 where the score is kept and the fill value elsewhere. Not a boolean mask: a
    row without any key to see would get another result (a mean of all values, in the original).
    """
    dtype = match.q.dtype.numpy() if match.q.dtype is not None else np.dtype(np.float32)
    parts = [_above_lowest(model, value, dtype, new) for value in match.added]
    for number, masked in enumerate(match.masked):
        kept = add_constant(model, "attention_kept", np.zeros((), dtype))
        fill = np.asarray(max(masked.fill, np.finfo(dtype).min * _NOT_LOWEST), dtype)
        if np.isneginf(masked.fill):
            fill = np.asarray(-np.inf, dtype)
        low = add_constant(model, f"attention_fill_{number}", fill)
        chosen = (low, kept) if masked.inverted else (kept, low)
        parts.append(_append(new, ir.node("Where", [masked.condition, *chosen])))
    if not parts:
        return None
    total = parts[0]
    for value in parts[1:]:
        total = _append(new, ir.node("Add", [total, value]))
    return total


def _above_lowest(
    model: ir.Model, mask: ir.Value, dtype: np.dtype[Any], new: list[ir.Node]
) -> ir.Value:
    """The mask, raised to a share of the lowest number if it is made with numbers below that."""
    floor = np.asarray(np.finfo(dtype).min * _NOT_LOWEST, dtype)
    made_with = [scalar(v) for node in ancestors(mask) for v in (*node.inputs, *node.outputs)]
    if not any(n is not None and np.isfinite(n) and n < floor for n in made_with):
        return mask
    low = add_constant(model, "attention_lowest", floor)
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
