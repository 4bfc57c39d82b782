"""What lies between the first product of attention and its softmax, and whether there is one.

From the softmax up, each operation is taken off the scores until their product is reached:

1. `Mul` or `Div` by a number: the scale. What is added further up is scaled with it;
2. `Mul` or `Div` by a tensor that has one value for all keys (a temperature for each head): the
   queries are scaled by it instead;
3. `Add`, `Sub`: a bias or an additive mask;
4. `Where` with a number: a fill. With `Max` or `Clip` a floor, which does nothing;
5. `Cast` to another floating-point type: the precision of the softmax;
6. `Transpose` of the last two axes, before a mask: the operands of the product are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from tfc.optimizers.graph import attribute, constant, is_op, known_shape, scalar

# exp(-1e4) is 0 in fp32, and models trained in fp16 fill with no less.
VANISHES = -1e4
# Scale, bias, mask, fill: no exporter writes more than a few operations there.
_MAX_CHAIN = 8
# How far a product is looked for around a softmax; soft caps, sinks and reshapes fit in this.
_MAX_AROUND = 48
# Operations that leave each score a score: what they are made of and become is looked at.
_AROUND = frozenset(
    {
        "Abs", "Add", "Cast", "Clip", "Concat", "Div", "Dropout", "Exp", "Expand",
        "Flatten", "Gather", "Identity", "IsNaN", "Max", "Min", "Mul", "Pad", "Reshape",
        "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
        "Where"
    }
)  # fmt: skip


@dataclass(frozen=True)
class Masked:
    """A boolean condition under which the score is kept (or, if inverted, replaced)."""

    condition: ir.Value
    inverted: bool
    fill: float


@dataclass(frozen=True)
class Added:
    """A tensor that is added to the scores, times a number."""

    value: ir.Value
    factor: float = 1.0


@dataclass(frozen=True)
class Temperature:
    """A tensor by which the scores, and so the queries, are multiplied or divided."""

    value: ir.Value
    op_type: str


@dataclass(frozen=True)
class Scores:
    """`q·kᵀ` and what is made of it before the softmax; `swapped` if it is `(k·qᵀ)ᵀ`.

    `terms` are what is added and filled in, the last first.
    """

    product: ir.Node | None = None
    swapped: bool = False
    scale: float = 1.0
    temperatures: tuple[Temperature, ...] = ()
    terms: tuple[Added | Masked, ...] = ()
    cast: bool = False


@dataclass(frozen=True)
class _Step:
    """One operation between the two, and the value below it."""

    below: ir.Value | None
    scale: float = 1.0
    temperature: Temperature | None = None
    term: Added | Masked | None = None
    cast: bool = False


def scores_of(value: ir.Value | None) -> Scores | str:
    """Follow the scores from the softmax up to the first product, or say what is in the way."""
    found = Scores()
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "MatMul"):
            return replace(found, product=node)
        if swaps_last_axes(node):
            value, found = node.inputs[0], replace(found, swapped=not found.swapped)
            continue
        step = _peel(node)
        if isinstance(step, str):
            return step
        taken = _taken(found, step)
        if isinstance(taken, str):
            return taken
        value, found = step.below, taken
    return "the scores do not come from a matrix product"


def is_between_products(softmax: ir.Node) -> bool:
    """Whether the softmax is of a product of two tensors, and goes into another one.

    A softmax over classes, over experts or over the words of a pooled text is not: there one
    factor is a weight, or there is no product.
    """
    above = _look(softmax.inputs[0], _values_above)
    below = _look(softmax.outputs[0], _values_below)
    return above and below


def swaps_last_axes(node: ir.Node | None) -> bool:
    """Whether the node is a transpose of the last two axes."""
    if node is None or not is_op(node, "Transpose"):
        return False
    perm = tuple(attribute(node, "perm", ()))
    rank = len(perm)
    return rank > 1 and perm == (*range(rank - 2), rank - 1, rank - 2)


def scaling(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """The scaled value and the factor of a Mul or Div by a constant; None if it is not one."""
    first, second = node.inputs
    factor = scalar(second)
    if factor is not None:
        return first, factor if is_op(node, "Mul") else 1.0 / factor
    factor = scalar(first)
    if factor is not None and is_op(node, "Mul"):
        return second, factor
    return None, None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _taken(found: Scores, step: _Step) -> Scores | str:
    """What was found, and one step more; what is added is scaled by what comes after it."""
    term = step.term
    if found.swapped and (term is not None or step.temperature is not None):
        return "the scores are transposed after the mask is added"
    if found.temperatures and term is not None:
        return "the scores are scaled by a tensor after the mask is added"
    if isinstance(term, Added):
        term = Added(term.value, term.factor * found.scale)
    elif isinstance(term, Masked):
        term = replace(term, fill=term.fill * found.scale)
        if not term.fill <= VANISHES:
            return f"the fill value {term.fill:g} does not vanish in the softmax"
    more = (step.temperature,) if step.temperature is not None else ()
    return Scores(
        swapped=found.swapped,
        scale=found.scale * step.scale,
        temperatures=found.temperatures + more,
        terms=found.terms if term is None else (*found.terms, term),
        cast=found.cast or step.cast,
    )


def _peel(node: ir.Node) -> _Step | str:
    """Take one operation off the scores."""
    if node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} stands between the scores and the softmax"
    if node.op_type in ("Mul", "Div"):
        return _peel_scale(node)
    if node.op_type in ("Add", "Sub"):
        return _peel_sum(node)
    if node.op_type == "Where":
        return _peel_fill(node)
    if node.op_type in ("Max", "Clip") and _is_floor(node):
        return _Step(next(v for v in node.inputs if scalar(v) is None))
    if node.op_type == "Cast" and _to_float(node):
        return _Step(node.inputs[0], cast=True)
    return f"{node.op_type} stands between the scores and the softmax"


def _peel_scale(node: ir.Node) -> _Step | str:
    below, factor = scaling(node)
    if factor is not None:
        return _Step(below, scale=factor)
    first, second = node.inputs
    ways = ((first, second), (second, first)) if is_op(node, "Mul") else ((first, second),)
    for below, tensor in ways:
        if tensor is not None and leads_to_scores(below) and _one_for_all_keys(tensor):
            return _Step(below, temperature=Temperature(tensor, node.op_type))
    return "the scores are scaled by something that is not a constant"


def _one_for_all_keys(tensor: ir.Value) -> bool:
    return tensor.shape is not None and (len(tensor.shape) == 0 or tensor.shape[-1] == 1)


def _peel_sum(node: ir.Node) -> _Step | str:
    first, second = node.inputs
    below, added = first, second
    if is_op(node, "Add") and not leads_to_scores(first):
        below, added = second, first
    if not leads_to_scores(below) or added is None or added is below:
        return "it cannot be told which operand of the addition is the mask"
    if known_shape(below) != known_shape(node.outputs[0]):
        return "the addition gives the scores another shape"
    return _Step(below, term=Added(added, 1.0 if is_op(node, "Add") else -1.0))


def _peel_fill(node: ir.Node) -> _Step | str:
    condition, chosen, other = node.inputs
    fill, below, inverted = scalar(other), chosen, False
    if fill is None:
        fill, below, inverted = scalar(chosen), other, True
    if fill is None or condition is None:
        return "the scores are replaced by something that is not a constant"
    return _Step(below, term=Masked(condition, inverted, fill))


def _is_floor(node: ir.Node) -> bool:
    """Whether the node only raises what vanishes in the softmax anyway."""
    numbers = [scalar(v) for v in node.inputs if v is not None]
    given = [number for number in numbers if number is not None]
    if len(given) != 1 or len(numbers) != 2 or given[0] > VANISHES:
        return False
    return is_op(node, "Max") or scalar(node.inputs[1]) is not None


def _to_float(node: ir.Node) -> bool:
    return attribute(node, "to", None) in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def leads_to_scores(value: ir.Value | None) -> bool:
    """Whether only what `scores_of` takes off lies between a product and this value."""
    for _ in range(_MAX_CHAIN):
        node = _producer(value)
        if node is None:
            return False
        if is_op(node, "MatMul"):
            return True
        if node.op_type in ("Add", "Sub", "Mul", "Div", "Max"):
            return any(scalar(v) is None and leads_to_scores(v) for v in node.inputs)
        if node.op_type == "Where":
            value = node.inputs[1] if scalar(node.inputs[1]) is None else node.inputs[2]
        elif node.op_type in ("Cast", "Clip") or swaps_last_axes(node):
            value = node.inputs[0]
        else:
            return False
    return False


def _look(value: ir.Value | None, around: Callable[[ir.Value], Iterator[ir.Value]]) -> bool:
    """Whether a product of two tensors is found on one side of a value."""
    seen: set[ir.Value] = set()
    queue = [value]
    while queue and len(seen) < _MAX_AROUND:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        seen.add(current)
        if any(_is_product(node) for node in _nodes(current, around)):
            return True
        queue += around(current)
    return False


def _nodes(value: ir.Value, around: object) -> list[ir.Node]:
    if around is _values_below:
        return [use.node for use in value.uses()]
    node = value.producer()
    return [node] if node is not None else []


def _values_above(value: ir.Value) -> Iterator[ir.Value]:
    node = value.producer()
    if node is not None and (node.op_type in _AROUND or _mixes_heads(node)):
        yield from (v for v in node.inputs if v is not None and constant(v) is None)


def _values_below(value: ir.Value) -> Iterator[ir.Value]:
    for use in value.uses():
        if use.node.op_type in _AROUND or _mixes_heads(use.node):
            yield from use.node.outputs


def _mixes_heads(node: ir.Node) -> bool:
    """Whether the node applies weights to scores `[batch, …, …, …]` (talking heads)."""
    if node.op_type not in ("BatchNormalization", "Conv", "MatMul"):
        return False
    shape = node.outputs[0].shape
    return shape is not None and len(shape) == 4 and any(_is_weight(v) for v in node.inputs[1:])


def _is_product(node: ir.Node) -> bool:
    """Whether the node multiplies two tensors, none of which is a weight."""
    if node.op_type not in ("MatMul", "Einsum") or len(node.inputs) < 2:
        return False
    return not any(_is_weight(value) for value in node.inputs)


def _is_weight(value: ir.Value | None) -> bool:
    node = _producer(value)
    while node is not None and node.op_type in ("Cast", "DequantizeLinear", "Transpose"):
        value = node.inputs[0]
        node = _producer(value)
    array = constant(value)
    return array is not None and array.ndim <= 2
