"""Where the units of a site (heads, neurons) are in the values around it.

A unit can be taken out of a graph if what it touches is known from one matrix to the next: from the
columns of the matrices that make it to the rows of the one that reads it. In between it stands at
certain places of one axis of each value, its lane. From a value whose lane is known,
`spread` finds those of all values that share the axis:

1. an elementwise operator has the same places in its inputs and its output;
2. Transpose, Reshape, Squeeze and Unsqueeze move them;
3. Split cuts the axis in equal parts, which all have the same units (a gate and what it gates);
4. a norm, rotary embedding, Expand, Slice or Concat along another axis leaves them where they are;
5. a product with a constant matrix begins or ends them;
6. `Attention` has one head of K and V for each unit, with the heads of Q that read it.

Anything else that reads or makes such a value refuses, and the reason is told. So the residual
stream, which norms read across its channels, is never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.graph import attribute, constant, is_op, known_shape

ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Pow",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
        "Where",
    }
)
RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
# What computes along axes that it names, or along its last.
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_HEADS_AXIS, _HEADS_RANK = 1, 4
_MASK, _PAST = 3, 4  # inputs of Attention
_SLICE_AXES = 3  # input of Slice


@dataclass(frozen=True)
class Lane:
    """The axis of a value along which units stand, and the unit at each place of it."""

    axis: int
    units: tuple[int, ...]

    @property
    def single(self) -> bool:
        """Whether there is one unit: it goes as a whole or not at all, wherever it stands."""
        return len(set(self.units)) == 1


class CannotCut(Exception):
    """Why units cannot be taken out."""


@dataclass
class Region:
    """The values that units run through, and the products with matrices at its ends."""

    lanes: dict[ir.Value, Lane] = field(default_factory=dict)
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)

    def lane(self, value: ir.Value | None) -> Lane | None:
        """The lane of a value, None if no unit runs through it."""
        return self.lanes.get(value) if value is not None else None


Found = Iterator[tuple[ir.Value, Lane]]


def spread(seeds: dict[ir.Value, Lane]) -> Region:
    """The region around values whose lanes are known.

    Raises:
        CannotCut: something there reads or makes the units in another way.
    """
    region = Region()
    todo = list(seeds.items())
    while todo:
        value, lane = todo.pop()
        known = region.lane(value)
        if known is not None:
            if known != lane and not (known.single and lane.single):
                raise CannotCut(f"the units of '{value.name}' stand in two orders")
            continue
        if value.is_graph_input() or value.is_graph_output():
            raise CannotCut(f"'{value.name}' is an input or output of the graph")
        region.lanes[value] = lane
        producer = value.producer()
        around = [producer] if producer is not None else []
        for node in dict.fromkeys([*around, *(use.node for use in value.uses())]):
            region.nodes[node] = None
            todo += _through(region, node, value, lane, seeds)
    return region


def weight_of(node: ir.Node) -> npt.NDArray[Any] | None:
    """The constant matrix [in, out] of a product with vectors; None if the node is none."""
    if is_op(node, "MatMul"):
        matrix = constant(node.inputs[1])
    elif is_op(node, "Gemm") and attribute(node, "transA", 0) == 0:
        matrix = constant(node.inputs[1])
        if matrix is not None and attribute(node, "transB", 0):
            matrix = matrix.T
    else:
        return None
    return matrix if matrix is not None and matrix.ndim == 2 else None


def _through(
    region: Region, node: ir.Node, value: ir.Value, lane: Lane, seeds: dict[ir.Value, Lane]
) -> Found:
    """The lanes that a node hands on from one of its values."""
    if weight_of(node) is not None:
        _end(region, node, value, lane)
        return iter(())
    if is_op(node, "Attention"):
        _check_attention(node, seeds)
        return iter(())
    handlers: dict[str, Callable[[ir.Node, ir.Value, Lane], Found]] = {
        "Transpose": _transposed,
        "Split": _split,
        "Concat": _concat,
        "Expand": _expanded,
        "Slice": _slice,
        "RotaryEmbedding": _rotary,
        **dict.fromkeys(ELEMENTWISE, _elementwise),
        **dict.fromkeys(RESHAPING, _reshaped),
        **dict.fromkeys(_NORMS, _normed),
    }
    if node.domain not in ("", "ai.onnx") or node.op_type not in handlers:
        raise CannotCut(f"'{value.name}' goes through {node.op_type}")
    return handlers[node.op_type](node, value, lane)


def _end(region: Region, node: ir.Node, value: ir.Value, lane: Lane) -> None:
    if lane.axis != rank_of(value) - 1:
        raise CannotCut(f"the product {node.name} mixes other axes of '{value.name}'")
    ends = region.makers if value is node.outputs[0] else region.readers
    if node not in ends:
        ends.append(node)


def _check_attention(node: ir.Node, seeds: dict[ir.Value, Lane]) -> None:
    if node.outputs[0] not in seeds:
        raise CannotCut(f"it is read by the attention {node.name}")


def attention_seeds(node: ir.Node) -> dict[ir.Value, Lane]:
    """The lanes of an `Attention`'s Q, K, V and output.

    Raises:
        CannotCut: its heads cannot be told apart.
    """
    query, key, value = (given for given in node.inputs[:3])
    shapes = [known_shape(each) for each in (query, key, value)]
    if any(shape is None or len(shape) != _HEADS_RANK for shape in shapes):
        raise CannotCut("its heads are not on an axis of their own")
    if len(node.inputs) > _PAST and any(given is not None for given in node.inputs[_PAST:]):
        raise CannotCut("it reads keys of earlier tokens")
    if any(list(output.uses()) for output in node.outputs[1:]):
        raise CannotCut("its scores or keys are read elsewhere")
    heads, read, others = (shape[_HEADS_AXIS] for shape in shapes if shape is not None)
    if not isinstance(heads, int) or not isinstance(read, int) or read != others:
        raise CannotCut("its number of heads is not fixed")
    mask = known_shape(node.inputs[_MASK]) if len(node.inputs) > _MASK else None
    given = len(node.inputs) > _MASK and node.inputs[_MASK] is not None
    if given and (mask is None or (len(mask) == _HEADS_RANK and mask[_HEADS_AXIS] != 1)):
        raise CannotCut("its mask or position bias differs between heads")
    assert query is not None
    assert key is not None
    assert value is not None
    groups = _groups_of(key, read)
    wide, narrow = (
        Lane(_HEADS_AXIS, tuple(head // (number // groups) for head in range(number)))
        for number in (heads, read)
    )
    return {query: wide, node.outputs[0]: wide, key: narrow, value: narrow}


def _groups_of(key: ir.Value, heads: int) -> int:
    """How many heads K has before they are written out: [batch, groups, 1, sequence, width]."""
    joined = key.producer()
    given = joined.inputs[0] if joined is not None and is_op(joined, "Reshape") else None
    expanded = given.producer() if given is not None else None
    if not is_op(expanded, "Expand") or given is None or given.shape is None:
        return heads
    groups = _size(given, _HEADS_AXIS) if rank_of(given) == _HEADS_RANK + 1 else None
    return groups if groups is not None and heads % groups == 0 else heads


def rank_of(value: ir.Value) -> int:
    """How many axes a value has.

    Raises:
        CannotCut: that is not known.
    """
    if value.shape is None:
        raise CannotCut(f"the shape of '{value.name}' is not known")
    return len(value.shape)


def _elementwise(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    """Case 1. Axes are counted from the right; what has no such axis, or one of size 1, stays."""
    from_right = lane.axis - rank_of(value)
    for other in (*node.inputs, node.outputs[0]):
        if other is None or other is value or constant(other) is not None:
            continue
        rank = rank_of(other)
        if rank < -from_right or _size(other, rank + from_right) == 1 != len(lane.units):
            continue
        yield other, Lane(rank + from_right, lane.units)


def _transposed(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    order = list(attribute(node, "perm", range(rank_of(node.outputs[0]))[::-1]))
    given = node.inputs[0]
    assert given is not None
    if value is given:
        yield node.outputs[0], Lane(order.index(lane.axis), lane.units)
    else:
        yield given, Lane(order[lane.axis], lane.units)


def _reshaped(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    """Case 2: the units of each element, in the other shape, differ along one axis only."""
    given = node.inputs[0]
    assert given is not None
    other = node.outputs[0] if value is given else given
    yield other, reshaped_lane(value, other, lane)


def reshaped_lane(value: ir.Value, other: ir.Value, lane: Lane) -> Lane:
    """The lane in a value with the same elements in another shape.

    Raises:
        CannotCut: the units do not stand along one axis there.
    """
    if known_shape(value) is not None and known_shape(value) == known_shape(other):
        return lane
    before, after = _fixed(value), _fixed(other)
    line = np.array(lane.units).reshape([-1 if a == lane.axis else 1 for a in range(len(before))])
    elements = np.broadcast_to(line, before)
    if elements.size != int(np.prod(after)):
        raise CannotCut(f"the sizes of '{value.name}' are not known")
    elements = elements.reshape(after)
    varying = [
        axis
        for axis, size in enumerate(after)
        if size > 1 and (np.take(elements, [0], axis) != elements).any()
    ]
    if not varying:  # one unit: any axis with a fixed size tells where it is
        varying = [axis for axis, size in enumerate(after) if size > 1][-1:]
    if len(varying) != 1:
        raise CannotCut(f"the units of '{other.name}' stand along several axes")
    index: list[Any] = [0] * len(after)
    index[varying[0]] = slice(None)
    return Lane(varying[0], tuple(int(unit) for unit in elements[tuple(index)]))


def _split(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    """Case 3."""
    given = node.inputs[0]
    assert given is not None
    axis = attribute(node, "axis", 0) % rank_of(given)
    if axis != lane.axis:
        yield given, lane
        yield from ((output, lane) for output in node.outputs)
        return
    sizes = {_size(output, axis) for output in node.outputs}
    if len(sizes) != 1 or sizes == {None}:
        raise CannotCut(f"'{given.name}' is split in parts of several sizes")
    if value is given:
        size = len(lane.units) // len(node.outputs)
        for number, output in enumerate(node.outputs):
            yield output, Lane(axis, lane.units[number * size : (number + 1) * size])
        return
    yield given, Lane(axis, lane.units * len(node.outputs))
    yield from ((output, lane) for output in node.outputs)


def _expanded(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    """Case 4, of heads of K and V that are written out for the heads of Q that read them."""
    given = node.inputs[0]
    if given is None or rank_of(given) != rank_of(node.outputs[0]):
        raise CannotCut(f"'{value.name}' is expanded to more axes")
    same = _size(given, lane.axis) == _size(node.outputs[0], lane.axis)
    if not same and not lane.single:
        raise CannotCut(f"'{value.name}' is expanded along its units")
    yield (node.outputs[0] if value is given else given), lane


def _concat(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    axis = attribute(node, "axis", 0) % rank_of(value)
    if axis == lane.axis:
        raise CannotCut(f"'{value.name}' is joined with others along its units")
    for other in (*node.inputs, node.outputs[0]):
        if other is not None and other is not value:
            if constant(other) is not None:
                raise CannotCut(f"'{value.name}' is joined with a constant")
            yield other, lane


def _slice(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    given = node.inputs[0]
    axes = constant(node.inputs[_SLICE_AXES]) if len(node.inputs) > _SLICE_AXES else None
    if given is None or axes is None or lane.axis in [int(a) % rank_of(value) for a in axes]:
        raise CannotCut(f"'{value.name}' is sliced along its units")
    yield (node.outputs[0] if value is given else given), lane


def _rotary(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    given = node.inputs[0]
    on_heads = lane.single or lane.axis == _HEADS_AXIS
    if given is None or rank_of(value) != _HEADS_RANK or not on_heads:
        raise CannotCut(f"'{value.name}' is rotated with all heads in one axis")
    yield (node.outputs[0] if value is given else given), lane


def _normed(node: ir.Node, value: ir.Value, lane: Lane) -> Found:
    given = node.inputs[0]
    axis = attribute(node, "axis", -1) % rank_of(value)
    if given is None or value not in (given, node.outputs[0]) or lane.axis >= axis:
        raise CannotCut(f"a norm reads all of '{value.name}'")
    yield (node.outputs[0] if value is given else given), lane


def _size(value: ir.Value, axis: int) -> int | None:
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, int) else None


def _fixed(value: ir.Value) -> list[int]:
    """The value's sizes, with 1 for those that differ from batch to batch."""
    rank_of(value)
    return [size if isinstance(size, int) else 1 for size in value.shape or ()]
