"""Products of heads with relative positions (DeBERTa) → one product with a constant.

Before, for the queries and again for the keys, with `positions` projected from a table in each
run, and repeated for each text (v2) or only the rows that the length needs (v1)::

    bias = GatherElements(MatMul(heads, positions), index)      heads [batch, N, sequence, D]

After, with both tables, projected, in a constant `[2·N, D, rows]`, sliced where the model slices::

    rows = Reshape(Transpose(Concat(queries, keys, axis=1), [1, 0, 2, 3]), [2·N, -1, D])
    products = Transpose(Reshape(MatMul(rows, constant), …), [1, 0, 2, 3])
    of_queries, of_keys = Split(products, axis=1)
    bias = GatherElements(of_queries, index)

TensorRT otherwise projects the positions anew, writes them once for each text before it
multiplies, and makes streams wait for each other: 12 and 15 kernels per layer, and 10 like this
(`perf/position_forms.py`, `perf/kernels.py`). Fires at an `Attention` whose mask adds such gathers.
What the positions are is told by running their nodes (`position_tables`). Refuses positions that
depend on the texts, products of several sizes, products that something else reads, and weights
that are not to be read yet. Each number is the same product as before. The constants take
`2 · hidden · rows` numbers a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    add_weight,
    attribute,
    insert_before,
    is_op,
    known_shape,
    replace_value,
)
from tfc.optimizers.lowering.position_tables import PositionTable, position_table_of
from tfc.optimizers.merged_heads import heads_before_merge
from tfc.optimizers.passes import Refusal, refusal

KIND = "position products"
_MASK = 3
_HEADS_FIRST = (1, 0, 2, 3)
_RANK = 4
_POSITIONS_AXIS = 2
# What may stand between the gathers and the mask.
_BETWEEN = frozenset(
    {"Add", "Where", "Div", "Mul", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Sum",
     "Max", "Min", "Clip", "Slice", "Identity"}
)  # fmt: skip


@dataclass(frozen=True)
class PositionProduct:
    """`MatMul(heads, table)`, with the heads on an axis of their own."""

    product: ir.Node
    heads: ir.Value
    table: PositionTable


class PositionProducts:
    """The fusion; see the module's docstring."""

    name = "position products"
    anchors = ("Attention",)

    def match(self, node: ir.Node) -> tuple[PositionProduct, ...] | Refusal | None:
        """The products of one attention; at most one for queries and one for keys."""
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        products = list(dict.fromkeys(_products_before(mask)))
        found = []
        for product in products:
            own = _position_product(product)
            if isinstance(own, str):
                return refusal(KIND, node, f"{product.name}: {own}")
            found.append(own)
        if not found:
            return None
        if len({(known_shape(p.heads), p.table.array.shape, p.table.bounds) for p in found}) > 1:
            return refusal(KIND, node, "its products with positions are of several sizes")
        return tuple(found)

    def rewrite(self, model: ir.Model, match: tuple[PositionProduct, ...]) -> None:
        """Write the one product in front of the first."""
        for own, part in zip(match, _products(model, match), strict=True):
            result = own.product.outputs[0]
            merged = len(known_shape(result) or ()) != _RANK
            replace_value(result, _merged(model, own.product, part) if merged else part)


def _products_before(mask: ir.Value | None) -> list[ir.Node]:
    """The products of which the mask adds gathered elements."""
    found: list[ir.Node] = []
    seen: set[ir.Value] = set()
    open_values = [mask]
    while open_values:
        value = open_values.pop()
        node = value.producer() if value is not None else None
        if value is None or node is None or value in seen:
            continue
        seen.add(value)
        if is_op(node, "GatherElements"):
            product = node.inputs[0].producer() if node.inputs[0] is not None else None
            if product is not None and is_op(product, "MatMul"):
                found.insert(0, product)
        elif node.op_type in _BETWEEN:
            open_values += node.inputs
    return found


def _position_product(product: ir.Node) -> PositionProduct | str:
    """What the product multiplies, or why it stays as it is."""
    operand, result = product.inputs[0], product.outputs[0]
    shape = known_shape(result)
    if shape is None or operand is None:
        return "its shape is not known"
    last = (-1, len(shape) - 1)
    if result.is_graph_output() or not all(
        is_op(use.node, "GatherElements") and attribute(use.node, "axis", 0) in last
        for use in result.uses()
    ):
        return "its result is read by more than gathers of positions"
    heads = operand if len(shape) == _RANK else heads_before_merge(operand)
    sizes = known_shape(heads)
    if heads is None or sizes is None or len(sizes) != _RANK:
        return "its first operand has no axis of heads"
    table = position_table_of(product.inputs[1], sizes)
    if isinstance(table, str):
        return table
    return PositionProduct(product, heads, table)


def _products(model: ir.Model, match: Sequence[PositionProduct]) -> Sequence[ir.Value]:
    """The products `[batch, heads, sequence, rows]` of all, from one GEMM per head."""
    first, counts = match[0].product, [own.table.array.shape[0] for own in match]
    batch, _, length, head_dim = known_shape(match[0].heads) or ()
    rows = (known_shape(first.outputs[0]) or ())[-1]
    stacked = ir.node("Concat", [own.heads for own in match], {"axis": 1})
    leading = ir.node("Transpose", [stacked.outputs[0]], {"perm": _HEADS_FIRST})
    target = add_constant(model, f"rows_{sum(counts)}_{head_dim}", _ints(sum(counts), -1, head_dim))
    flat = ir.node("Reshape", [leading.outputs[0], target])
    product = ir.node("MatMul", [flat.outputs[0], _positions(model, match)])
    sizes = ir.node("Shape", [leading.outputs[0]], {"end": 3})
    width = add_constant(model, "all_positions", _ints(-1))
    shape = ir.node("Concat", [sizes.outputs[0], width], {"axis": 0})
    apart = ir.node("Reshape", [product.outputs[0], shape.outputs[0]])
    back = ir.node("Transpose", [apart.outputs[0]], {"perm": _HEADS_FIRST})
    each = add_constant(model, f"heads_{'_'.join(map(str, counts))}", _ints(*counts))
    split = ir.node("Split", [back.outputs[0], each], {"axis": 1}, num_outputs=len(counts))
    insert_before(first, [stacked, leading, flat, product, sizes, shape, apart, back, split])
    for count, part in zip(counts, split.outputs, strict=True):
        part.type, part.shape = match[0].heads.type, ir.Shape([batch, count, length, rows])
    return split.outputs


def _positions(model: ir.Model, match: Sequence[PositionProduct]) -> ir.Value:
    """All tables `[heads, head_dim, rows]`; of a sliced one, the rows that the model takes."""
    first = match[0]
    table = np.concatenate([own.table.array for own in match])
    weight = add_weight(model, f"{first.product.name}.positions", ir.tensor(table))
    if not first.table.bounds:
        return weight
    axis = add_constant(model, "axis_of_positions", _ints(_POSITIONS_AXIS))
    rows = ir.node("Slice", [weight, *first.table.bounds, axis])
    insert_before(first.product, [rows])
    return rows.outputs[0]


def _merged(model: ir.Model, product: ir.Node, part: ir.Value) -> ir.Value:
    """The part with its heads merged into the batch, as the gathers want it."""
    sizes = ir.node("Shape", [part], {"start": 2})
    target = ir.node(
        "Concat", [add_constant(model, "merged_rows", _ints(-1)), sizes.outputs[0]], {"axis": 0}
    )
    merge = ir.node("Reshape", [part, target.outputs[0]])
    insert_before(product, [sizes, target, merge])
    return merge.outputs[0]


def _ints(*numbers: int | str) -> npt.NDArray[np.int64]:
    return np.array(numbers, np.int64)
