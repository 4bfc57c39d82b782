"""A smaller vocabulary: the rows of removed tokens go from embedding tables and from the head.

    Gather(table [V, hidden], input_ids)         →  Gather(table [K, hidden], input_ids)
    Equal(input_ids, 1)                          →  Equal(input_ids, <the new id of 1>)
    MatMul(x, weight [hidden, V]) + bias [V]     →  MatMul(x, weight [hidden, K]) + bias [K]

Token `kept[i]` becomes token i. A table that the head shares (tied embeddings) stays shared.

From the token ids on, every node that reads them is either one that only moves them, a comparison
with a constant id, or the lookup in a table; anything else is refused, because it could depend on
what the ids are. From an output with the vocabulary as its last axis back, every node up to the
weights works on each token by itself. Rows are moved, never changed, so hidden states are the same
to the last bit; a product with fewer columns may be summed in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.errors import UsageError
from tfc.optimizers.graph import add_constant, attribute, constant, is_op, module_of, set_type

Ids = npt.NDArray[np.int64]
_TABLE, _INDICES = 0, 1
_ROWS, _COLUMNS = -2, -1
# Token ids come out of these as they went in, in another order or shape.
_MOVES = frozenset(("Identity", "Cast", "Transpose", "Slice")) | {
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Expand",
}
_SIZES = ("Shape", "Size")
# These work on each element by itself; of two operands one may have no vocabulary axis.
_ELEMENTWISE = frozenset(("Tanh", "Add", "Sub", "Mul", "Div"))
_COPIES = frozenset(("Identity", "Cast"))
_FIX = "Leave --trim-vocab out: this model's vocabulary cannot be cut"


@dataclass(frozen=True)
class Trimmed:
    """What went: how many tables and weights were cut, and their bytes before and after."""

    weights: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _IdUses:
    """Who reads token ids: lookups in tables, and comparisons with the operand that is constant."""

    lookups: list[ir.Node] = field(default_factory=list)
    compared: list[tuple[ir.Node, int]] = field(default_factory=list)


def compared_ids(model: ir.Model, inputs: Sequence[str]) -> list[int]:
    """The token ids that the graph compares its inputs with: padding, the end of a text.

    Raises:
        UsageError: a node reads token ids in a way that depends on what they are.
    """
    found = [constant(node.inputs[place]) for node, place in _uses_of_ids(model, inputs).compared]
    return sorted({int(i) for array in found if array is not None for i in np.ravel(array)})


def trim_vocabulary(
    model: ir.Model, kept: Ids, inputs: Sequence[str], outputs: Sequence[str]
) -> Trimmed:
    """Cut the vocabulary in place.

    Args:
        model: the graph.
        kept: the ids that stay, in increasing order; `kept[i]` becomes i.
        inputs: the names of the inputs that hold token ids.
        outputs: the names of the outputs whose last axis is the vocabulary.

    Raises:
        UsageError: a node reads token ids, or makes an output, in a way that is not known.
    """
    uses = _uses_of_ids(model, inputs)
    cut = _Cut()
    for node in uses.lookups:
        cut.use(node, _TABLE, _ROWS)
    for value in model.graph.outputs:
        if value.name in outputs:
            cut.value(value, _COLUMNS)
    cut.check(outputs)
    before, weights = cut.bytes, list(cut.weights())
    for value, axis in weights:
        _take(value, kept, axis)
    for value, axis in cut.axes.items():
        _resize(value, kept, axis)
    for node, place in uses.compared:
        _compare_with_new(model, node, place, kept)
    return Trimmed(len(weights), before, cut.bytes)


class _Cut:
    """The values with a vocabulary axis, found from tables down and from outputs back."""

    def __init__(self) -> None:
        self.axes: dict[ir.Value, int] = {}
        self._seen: set[tuple[ir.Node, int]] = set()

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(v.const_value.nbytes for v, _ in self.weights() if v.const_value is not None)

    def weights(self) -> Iterator[tuple[ir.Value, int]]:
        """The constants, each with its axis."""
        return ((v, axis) for v, axis in self.axes.items() if v.const_value is not None)

    def use(self, node: ir.Node, place: int, axis: int) -> None:
        """The axis of a node's operand is the vocabulary."""
        operand = node.inputs[place]
        assert operand is not None
        self._seen.add((node, place))
        self.value(operand, axis)

    def value(self, value: ir.Value, axis: int) -> None:
        """The axis (from the right) of a value is the vocabulary, and so it is further up."""
        if self.axes.setdefault(value, axis) != axis:
            raise _refusal(value.producer(), f"'{value.name}' has the vocabulary on two axes")
        if value.const_value is not None:
            return
        node = value.producer()
        if node is None:
            raise _refusal(None, f"the vocabulary is an axis of the input '{value.name}'")
        for place, its_axis in _operands(node, axis):
            self.use(node, place, its_axis)

    def check(self, outputs: Sequence[str]) -> None:
        """Every reader of what is cut must expect it."""
        for value in self.axes:
            for node, place in value.uses():
                if (node, place) not in self._seen:
                    raise _refusal(node, f"it reads '{value.name}', which would be cut")
            if value.is_graph_output() and value.name not in outputs:
                raise _refusal(None, f"the output '{value.name}' would be cut")


def _operands(node: ir.Node, axis: int) -> list[tuple[int, int]]:
    """Which operands of a node have the vocabulary of its output's `axis`, and where."""
    if is_op(node, "Transpose"):
        rank = _rank(node.inputs[0])
        perm = attribute(node, "perm", list(range(rank))[::-1])
        return [(0, int(perm[axis]) - rank)]
    if node.op_type in _COPIES and is_op(node, node.op_type):
        return [(0, axis)]
    if axis != _COLUMNS:
        raise _refusal(node, "the vocabulary is not its last axis")
    if is_op(node, "MatMul"):
        return [(1, _COLUMNS)]
    if is_op(node, "Gemm"):
        bias = [(2, _COLUMNS)] if len(node.inputs) > 2 and _is_wide(node, 2) else []
        return [(1, _ROWS if attribute(node, "transB", 0) else _COLUMNS), *bias]
    if node.op_type in _ELEMENTWISE and is_op(node, node.op_type):
        return [(place, axis) for place in range(len(node.inputs)) if _is_wide(node, place)]
    if is_op(node, "Gather") and _rank(node.inputs[_TABLE]) - 1 > attribute(node, "axis", 0) >= 0:
        return [(_TABLE, _COLUMNS)]
    if is_op(node, "Slice") and _slices_others(node):
        return [(0, _COLUMNS)]
    raise _refusal(node, "it is not known to work on each token by itself")


def _is_wide(node: ir.Node, place: int) -> bool:
    """Whether an operand is as wide as the node's output, not one number for all tokens."""
    operand, out = node.inputs[place], node.outputs[0]
    if operand is None or operand.shape is None or out.shape is None:
        raise _refusal(node, "the shape of an operand is not known")
    return len(operand.shape) > 0 and operand.shape[-1] == out.shape[-1]


def _slices_others(node: ir.Node) -> bool:
    """Whether a Slice leaves the last axis alone."""
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    rank = _rank(node.inputs[0])
    return axes is not None and all(int(a) % rank != rank - 1 for a in np.ravel(axes))


def _rank(value: ir.Value | None) -> int:
    if value is None or value.shape is None:
        raise _refusal(None if value is None else value.producer(), "its shape is not known")
    return len(value.shape)


def _uses_of_ids(model: ir.Model, inputs: Sequence[str]) -> _IdUses:
    uses = _IdUses()
    waiting = [value for value in model.graph.inputs if value.name in inputs]
    seen = set(waiting)
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            raise _refusal(None, f"the output '{value.name}' holds token ids")
        for node, place in value.uses():
            if node.op_type in _MOVES and place == 0 and is_op(node, node.op_type):
                waiting += [out for out in node.outputs if out not in seen]
                seen |= set(node.outputs)
            else:
                _add_use(uses, node, place)
    return uses


def _add_use(uses: _IdUses, node: ir.Node, place: int) -> None:
    if any(is_op(node, size) for size in _SIZES):
        return
    if is_op(node, "Gather") and place == _INDICES and attribute(node, "axis", 0) == 0:
        uses.lookups.append(node)
    elif is_op(node, "Equal") and constant(node.inputs[1 - place]) is not None:
        uses.compared.append((node, 1 - place))
    else:
        raise _refusal(node, "what it makes of token ids depends on their numbers")


def _take(value: ir.Value, kept: Ids, axis: int) -> None:
    """The rows, or columns, of the tokens that stay."""
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    rows = kept[kept < array.shape[axis]]
    value.const_value = ir.tensor(np.take(array, rows, axis=axis), tensor.dtype, name=tensor.name)


def _resize(value: ir.Value, kept: Ids, axis: int) -> None:
    if value.shape is None or not isinstance(size := value.shape[axis], int) or value.dtype is None:
        return
    sizes = list(value.shape)
    sizes[axis] = int((kept < size).sum())
    set_type(value, value.dtype, ir.Shape(sizes))


def _compare_with_new(model: ir.Model, node: ir.Node, place: int, kept: Ids) -> None:
    """Put the new ids in the place of the old; a number that is no token stays."""
    operand = node.inputs[place]
    old = constant(operand)
    assert operand is not None
    assert old is not None
    new = np.searchsorted(kept, old).clip(max=len(kept) - 1)
    array = np.where(kept[new] == old, new, old).astype(old.dtype)
    node.replace_input_with(place, add_constant(model, f"{operand.name}_kept", array))
    if not operand.uses() and operand.is_initializer():
        del model.graph.initializers[str(operand.name)]


def _refusal(node: ir.Node | None, reason: str) -> UsageError:
    where = ""
    if node is not None:
        where = f"{node.name} ({node.op_type}) of {module_of(node) or 'the graph'}"
    return UsageError(f"the vocabulary cannot be cut: {reason}", where=where, fix=_FIX)
