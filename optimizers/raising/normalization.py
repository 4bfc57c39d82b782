"""`x / sqrt(mean(x²) + epsilon)`, the part that LayerNorm and RMSNorm have in common, and the
scale and bias after it.

LayerNorm is this of `x - mean(x)`, RMSNorm is this of `x`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import add_constant, attribute, constant, is_op
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.primitives import (
    either_way,
    escaping,
    number,
    producer,
    readers,
    same,
    square_of,
)

DROPPED_AXIS = "the mean drops its axis (keepdims = 0)"
# Root, reciprocal, epsilon, and a correction of two operations: no exporter writes more.
_MAX_STEPS = 6
_ROOTS = {0.5: False, -0.5: True}


@dataclass(frozen=True)
class _Root:
    """What lies between the mean of the squares and the division; the first problem counts."""

    rooted: bool = False
    inverse: bool = False
    epsilon: float = 0.0
    problem: str = ""
    mean: ir.Node | None = None

    def but(self, problem: str) -> _Root:
        """The same, with a problem."""
        return replace(self, problem=self.problem or problem)


@dataclass(frozen=True)
class Normalized:
    """`node` is `scale * value / sqrt(mean(squared²) + epsilon)`; `problem` says in what it is
    not. The scale is there only if it stands before the division.
    """

    node: ir.Node
    value: ir.Value
    squared: ir.Value
    mean: ir.Node
    epsilon: float
    problem: str
    scale: ir.Value | None = None


@dataclass(frozen=True)
class End:
    """The last node of a norm, and its constants `[hidden]` or `[1, …, hidden]`, if any."""

    node: ir.Node
    scale: ir.Value | None = None
    bias: ir.Value | None = None


@dataclass(frozen=True)
class Match:
    """A site of either norm: the input, the node that normalises it, where its norms end."""

    x: ir.Value
    epsilon: float
    node: ir.Node
    ends: tuple[End, ...]


def normalized(node: ir.Node) -> Normalized | None:
    """What a `Div` or a `Mul` normalises, or None if it does not."""
    for value, divisor in either_way(node):
        root = _root(divisor, _Root(), _MAX_STEPS)
        if root is None or root.mean is None or root.inverse != is_op(node, "Mul"):
            continue
        squared = square_of(root.mean.inputs[0])
        if squared is None or number(value) is not None:  # 1 / root is only half of it
            continue
        value, scale = _unscaled(value, squared)
        return Normalized(node, value, squared, root.mean, root.epsilon, root.problem, scale)
    return None


def over_another_axis(mean: ir.Node) -> str:
    """In what a `ReduceMean` is not one that keeps the last axis with size 1; empty if it is."""
    if attribute(mean, "keepdims", 1) != 1:
        return DROPPED_AXIS
    given = mean.inputs[1] if len(mean.inputs) > 1 else None
    axes = attribute(mean, "axes", None) if given is None else constant(given)
    if axes is None:
        return "the axis of the mean is not a constant, or it is every axis"
    axes = [int(axis) for axis in np.asarray(axes).reshape(-1)]
    rank = rank_of(mean.inputs[0])
    if axes == [-1] or (rank is not None and axes == [rank - 1]):
        return ""
    return f"the mean is over axes {axes}, not the last one"


def ends(found: Normalized, kind: str, *, with_bias: bool) -> tuple[End, ...] | Refusal:
    """Where the norms that share the normalised value end.

    Usually one; models with parallel branches scale one normalised value several times.
    """
    node, value = found.node, found.node.outputs[0]
    users = list(readers(value))
    scalings = [(user, _per_channel(user, "Mul", value)) for user in users]
    if found.scale is not None or not any(scale is not None for _, scale in scalings):
        starts = [End(node, found.scale)]
    else:
        starts = [End(user, scale) for user, scale in scalings if user and scale]
        if len(starts) < len(users):
            return refusal(kind, node, f"'{value.name}' is read before it is scaled")
    result = []
    for start in starts:
        end = _shifted(start) if with_bias else start
        if isinstance(end, str):
            return refusal(kind, node, end)
        result.append(end)
    return tuple(result)


def site(
    kind: str, node: ir.Node, x: ir.Value, found: Normalized, *, with_bias: bool
) -> Match | Refusal:
    """The site, once its own conditions hold: nothing inside is read elsewhere, the scale is known.

    The last conditions of both norms: see their docstrings.
    """
    problem = escaping(x, node.outputs[0])
    if problem:
        return refusal(kind, node, problem)
    found_ends = ends(found, kind, with_bias=with_bias)
    if isinstance(found_ends, Refusal):
        return found_ends
    if any(hidden_size(node, end) is None for end in found_ends):
        return refusal(kind, node, "there is no scale, and the hidden size is not known")
    return Match(x, found.epsilon, node, found_ends)


def hidden_size(node: ir.Node, end: End) -> int | None:
    """The size of the last axis, if it is known from the shape or from a constant."""
    if end.scale is not None or end.bias is not None:
        array = constant(end.scale if end.scale is not None else end.bias)
        return None if array is None else array.size
    return _last_size(node.outputs[0])


def scale_of(model: ir.Model, node: ir.Node, end: End) -> ir.Value:
    """The scale `[hidden]`: of ones if the model has none."""
    if end.scale is not None:
        return flat(model, end.scale)
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    hidden = hidden_size(node, end)
    return add_constant(model, f"ones_{hidden}", np.ones(hidden or 0, dtype.numpy()))


def flat(model: ir.Model, value: ir.Value) -> ir.Value:
    """A constant `[1, …, hidden]` as `[hidden]`."""
    array = constant(value)
    if array is None or array.ndim == 1:
        return value
    return add_constant(model, f"{value.name}_flat", array.reshape(-1))


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def _root(value: ir.Value, found: _Root, steps: int) -> _Root | None:
    """Follow a divisor, or a factor, up to the mean below its root."""
    node = producer(value)
    if node is None or steps == 0:
        return None
    if is_op(node, "ReduceMean"):
        return replace(found, mean=node) if found.rooted else None
    ways = (_root(below, step, steps - 1) for below, step in _steps(node, found))
    return next((way for way in ways if way is not None), None)


def _steps(node: ir.Node, found: _Root) -> Iterator[tuple[ir.Value, _Root]]:
    """The values below a node that may lead to the mean, and what is learned on the way."""
    first = node.inputs[0] if node.inputs else None
    if first is None or node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "Unsqueeze":
        yield first, found.but(DROPPED_AXIS)
    elif found.rooted:
        yield from _steps_below_root(node, found)
    elif node.op_type == "Sqrt":
        yield first, replace(found, rooted=True)
    elif node.op_type == "Pow" and (power := number(node.inputs[1])) in _ROOTS:
        assert power is not None
        yield first, replace(found, rooted=True, inverse=found.inverse != _ROOTS[power])
    elif node.op_type == "Reciprocal":
        yield first, replace(found, inverse=not found.inverse)
    elif node.op_type == "Div" and number(first) == 1.0 and node.inputs[1] is not None:
        yield node.inputs[1], replace(found, inverse=not found.inverse)
    elif node.op_type == "Add":
        for below, added in either_way(node):
            if number(added) is not None:
                yield below, found.but("epsilon is added outside the root")


def _steps_below_root(node: ir.Node, found: _Root) -> Iterator[tuple[ir.Value, _Root]]:
    if node.op_type not in ("Add", "Mul", "Div"):
        return
    for below, other in either_way(node):
        epsilon = number(other)
        if node.op_type != "Add":
            yield below, found.but("the mean of the squares is scaled (an unbiased variance)")
        elif epsilon is None:
            yield below, found.but("epsilon is not a constant")
        else:
            yield below, replace(found, epsilon=found.epsilon + epsilon)


def _unscaled(value: ir.Value, squared: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """`w * d` of `w * d / root` as d and w; any other value as it is."""
    node = producer(value)
    scale = _per_channel(node, "Mul", value)
    if node is None or scale is None or same(value, squared):
        return value, None
    below = next(v for v, other in either_way(node) if other is scale)
    return (below, scale) if same(below, squared) else (value, None)


def _shifted(end: End) -> End | str:
    """The end with the bias that is added after it, or why it cannot be told."""
    value = end.node.outputs[0]
    users = list(readers(value))
    shifts = [_per_channel(user, "Add", value) for user in users]
    if not any(bias is not None for bias in shifts):
        return end
    if len(users) > 1 or users[0] is None:
        return f"'{value.name}' is read before the bias is added"
    return End(users[0], end.scale, shifts[0])


def _per_channel(node: ir.Node | None, op_type: str, value: ir.Value) -> ir.Value | None:
    """The constant operand of the node if it has one number for each channel of `value`."""
    if node is None or not is_op(node, op_type):
        return None
    hidden, rank = _last_size(value), rank_of(value)
    for _, other in either_way(node):
        array = constant(other)
        if array is None or array.ndim == 0 or array.shape[-1] != array.size:
            continue
        fits = array.size == hidden if hidden is not None else array.size > 1
        if fits and array.ndim <= (rank or 1):
            return other
    return None


def _last_size(value: ir.Value) -> int | None:
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None
