"""Small questions about computations written out in primitives, asked by the fusions that raise
them.

A `Cast` to the type that the value already has is looked through, up and down: exporters leave it
where a model says `.to(dtype)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from tfc.optimizers.graph import constant, is_op, scalar

# Computations that exporters write twice instead of once; none of them is random.
_REPEATED = ("Sub", "ReduceMean")


def without_cast(value: ir.Value) -> ir.Value:
    """The value before casts that change nothing."""
    node = value.producer()
    while node is not None and _changes_nothing(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that computes the value, casts that change nothing aside."""
    return None if value is None else without_cast(value).producer()


def readers(value: ir.Value) -> Iterator[ir.Node | None]:
    """The nodes that read the value, casts that change nothing aside; None for a graph output."""
    if value.is_graph_output():
        yield None
    for use in value.uses():
        if _changes_nothing(use.node):
            yield from readers(use.node.outputs[0])
        else:
            yield use.node


def number(value: ir.Value | None) -> float | None:
    """The value as a number if it is a constant that broadcasts without adding an axis."""
    array = constant(value)
    return scalar(value) if array is not None and array.ndim <= 1 else None


def either_way(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """The operands of a binary node, as they stand and, if that is the same, exchanged."""
    first, second = node.inputs
    assert first is not None
    assert second is not None
    as_they_stand = [(first, second)]
    return [*as_they_stand, (second, first)] if node.op_type in ("Add", "Mul") else as_they_stand


def same(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether both are one value, or equal constants, or one computation written twice."""
    if first is None or second is None:
        return first is second
    first, second = without_cast(first), without_cast(second)
    if first is second:
        return True
    a, b = constant(first), constant(second)
    if a is not None and b is not None:
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    one, other = first.producer(), second.producer()
    if one is None or other is None or one.op_type not in _REPEATED:
        return False
    alike = is_op(other, one.op_type, one.domain) and one.attributes == other.attributes
    if (
        not alike
        or len(one.inputs) != len(other.inputs)
        or not same(one.inputs[0], other.inputs[0])
    ):
        return False
    return _same_axes(one, other) or all(
        same(a, b) for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True)
    )


def _same_axes(one: ir.Node, other: ir.Node) -> bool:
    """Whether two means of one value are over the same axes, counted from either end."""
    if one.op_type != "ReduceMean" or len(one.inputs) < 2 or one.inputs[0] is None:
        return False
    shape, axes = one.inputs[0].shape, [constant(node.inputs[1]) for node in (one, other)]
    if shape is None or any(given is None for given in axes):
        return False
    first, second = (
        {int(axis) % len(shape) for axis in given.reshape(-1)}
        for given in axes
        if given is not None
    )
    return first == second


def square_of(value: ir.Value | None) -> ir.Value | None:
    """What is squared to give the value, by `Pow` or by `Mul`; None if it is no square."""
    node = producer(value)
    if is_op(node, "Pow") and node is not None and number(node.inputs[1]) == 2.0:
        return node.inputs[0]
    if is_op(node, "Mul") and node is not None and same(*node.inputs):
        return node.inputs[0]
    return None


def escaping(source: ir.Value, result: ir.Value) -> str:
    """Why the computation of `result` from `source` cannot go: a value in its middle is read
    elsewhere. Empty if none is.
    """
    inner: set[ir.Node] = set()
    stack = [result.producer()]
    while stack:
        node = stack.pop()
        if node is None or node in inner:
            continue
        inner.add(node)
        stack += [v.producer() for v in node.inputs if v is not None and v is not source]
    values = [v for node in inner for v in node.outputs if v is not result]
    for value in sorted(values, key=lambda v: str(v.name)):
        if value.is_graph_output():
            return f"'{value.name}' in its middle is a graph output"
        if any(use.node not in inner for use in value.uses()):
            return f"'{value.name}' in its middle is read elsewhere"
    return ""


def _changes_nothing(node: ir.Node) -> bool:
    if not is_op(node, "Cast") or node.inputs[0] is None:
        return False
    dtype = node.inputs[0].dtype
    return dtype is not None and dtype == node.outputs[0].dtype
