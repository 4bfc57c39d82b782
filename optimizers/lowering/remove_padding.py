"""Linear layers, norms and activations on the tokens alone; padding around attention only.

Before::

    q, k, v = …linear(h)                            # h [batch, sequence, hidden]
    h = norm(h + linear(Attention(q, k, v, mask)))

After, with the tokens of all rows in one array::

    q, k, v = …linear(p)                            # p [tokens, hidden]
    a = Attention(unpack(q), unpack(k), unpack(v), mask)
    p = norm(p + linear(pack(a)))

`pack` is a Reshape and a Gather of the tokens' places; `unpack` is a Gather that gives a place of
padding the token before it, which no reader uses. The first position of every row counts as a
token, whatever the mask says: heads read it, and no batch is empty then.

Packed is what follows a linear layer position by position, by way of attention. Fires when

1. every attention block has a mask that comes from one graph input [batch, sequence], is not
   causal, and keeps no keys and values;
2. others read the packed values only as q, k or v, at the first position, for their shape, or in a
   product or choice with a value made from the mask alone (a masked mean, a masked maximum).

The numbers stay the same because a position is computed from the same operands as before, and what
is left out is hidden by the mask. Whether the graph's mask hides it, the ledger shows on batches
padded on both sides and with holes. It changes the results at padding, so a graph that gives a
result for every token is left alone (2). Measured in perf/padding_removal.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    insert_before,
    is_op,
    known_shape,
    scalar,
    set_type,
)
from tfc.optimizers.passes import Refusal, refusal

KIND = "remove_padding"
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "Pow", "Gelu", "Relu", "Tanh", "Erf", "Sigmoid", "Sqrt",
     "Neg", "Abs", "Cast", "Identity", "Clip", "Where", "Elu", "LeakyRelu", "HardSwish"}
)  # fmt: skip
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_OPERANDS, _MASK = 3, 3  # of Attention: q, k and v come first, then the mask
_RANK = 3  # [batch, sequence, hidden]
_MATRIX = 2
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Match:
    """The mask [batch, sequence], and the nodes that will compute on tokens, in order."""

    mask: ir.Value
    packed: tuple[ir.Node, ...]


class RemovePadding:
    """The fusion; see the module's docstring. It changes the whole graph at the first block."""

    name = "remove padding"
    anchors = ("Attention",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the graph around its first attention block can be packed."""
        assert node.graph is not None
        blocks = [each for each in node.graph if is_op(each, "Attention")]
        if node is not blocks[0]:
            return None
        masks = [_mask_of(block) for block in blocks]
        for block, mask in zip(blocks, masks, strict=True):
            if isinstance(mask, str):
                return refusal(KIND, block, mask)
        mask = masks[0]
        assert isinstance(mask, ir.Value)
        if any(other is not mask for other in masks):
            return refusal(KIND, node, "attention blocks have masks from different inputs")
        packed = _packed(node.graph, mask)
        if not packed:
            return refusal(KIND, node, f"no linear layer works on the positions of '{mask.name}'")
        made = _made_from(node.graph, mask)
        for value in _values(packed):
            if reason := _why_read_at_padding(value, packed, made):
                return refusal(KIND, node, reason)
        return Match(mask, tuple(packed))

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Compute the nodes on tokens, and pack and unpack around them."""
        writer = _Writer(model, match)
        inside = set(match.packed)
        for node in match.packed:
            for index, value in enumerate(node.inputs):
                if value is None or value.producer() in inside or not _per_token(value, match.mask):
                    continue
                node.replace_input_with(index, writer.packed(value))
        for value in _values(match.packed):
            outside = [use for use in value.uses() if use.node not in inside]
            if outside:
                padded = writer.padded(value)
                for use in outside:
                    use.node.replace_input_with(use.idx, padded)
        for node in match.packed:
            _on_tokens(node)


def _mask_of(block: ir.Node) -> ir.Value | str:
    """The graph input that the block's mask is made from; or why there is none."""
    mask = block.inputs[_MASK] if len(block.inputs) > _MASK else None
    if attribute(block, "is_causal", 0):
        return "attention is causal"
    if any(block.inputs[_MASK + 1 :]) or any(value.uses() for value in block.outputs[1:]):
        return "attention keeps keys and values"
    if mask is None:
        return "attention has no mask: it reads every position"
    found = [v for v in _inputs_behind(mask) if len(known_shape(v) or ()) == _MATRIX]
    if len(found) != 1:
        return "the mask is not made from one input [batch, sequence]"
    return found[0]


def _inputs_behind(value: ir.Value) -> list[ir.Value]:
    """The graph inputs whose values, not only their shapes, the value is made from."""
    found: dict[ir.Value, None] = {}
    pending, seen = [value], {value}
    while pending:
        each = pending.pop()
        node = each.producer()
        if node is None:
            if each.is_graph_input():
                found[each] = None
            continue
        if not is_op(node, "Shape"):
            new = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(new)
            pending += new
    return list(found)


def _per_token(value: ir.Value, mask: ir.Value) -> bool:
    """Whether it is [batch, sequence, …] of the mask."""
    shape = known_shape(value)
    return shape is not None and len(shape) == _RANK and shape[:2] == known_shape(mask)


def _packed(graph: ir.Graph | ir.Function, mask: ir.Value) -> dict[ir.Node, None]:
    """The nodes to compute on tokens: linear layers, and what follows them position by position."""
    packed: dict[ir.Node, None] = {}
    reached: set[ir.Value] = set()
    made = _made_from(graph, mask)
    for node in graph:
        after = any(value in reached for value in node.inputs)
        if is_op(node, "Attention") and after and _per_token(node.outputs[0], mask):
            reached.add(node.outputs[0])
        elif (
            made.isdisjoint(node.inputs)
            and _is_per_token(node, mask)
            and (after or node.op_type == "MatMul")
        ):
            packed[node] = None
            reached.update(node.outputs)
    return packed


def _is_per_token(node: ir.Node, mask: ir.Value) -> bool:
    """Whether each token's result depends on the token's own operands, and on weights."""
    if node.domain not in ("", "ai.onnx") or not _per_token(node.outputs[0], mask):
        return False
    if any(value.uses() for value in node.outputs[1:]):
        return False
    if node.op_type in _ELEMENTWISE:
        return all(v is None or _per_token(v, mask) or _is_flat(v) for v in node.inputs)
    first, *weights = node.inputs
    if first is None or not _per_token(first, mask):
        return False
    if node.op_type in _NORMS:
        last = attribute(node, "axis", -1) in (-1, _RANK - 1)
        return last and all(value is None or _is_flat(value) for value in weights)
    weight = weights[0] if node.op_type == "MatMul" else None
    return (
        weight is not None
        and weight.const_value is not None
        and len(known_shape(weight) or ()) == _MATRIX
    )


def _is_flat(value: ir.Value) -> bool:
    """Whether it is one number, or one for each place of the hidden axis."""
    shape = known_shape(value)
    return shape is not None and len(shape) <= 1


def _made_from(graph: ir.Graph | ir.Function, mask: ir.Value) -> set[ir.Value]:
    """The values that are made from the mask, constants and shapes, and from nothing else."""
    made = {mask}
    fixed: set[ir.Value] = set()
    for node in graph:
        given = [v for v in node.inputs if v is not None and v.const_value is None]
        if is_op(node, "Shape") or fixed.issuperset(given):
            fixed.update(node.outputs)
        elif all(value in made or value in fixed for value in given):
            made.update(node.outputs)
    return made


def _values(packed: dict[ir.Node, None] | tuple[ir.Node, ...]) -> Iterator[ir.Value]:
    return (node.outputs[0] for node in packed)


def _why_read_at_padding(value: ir.Value, packed: dict[ir.Node, None], made: set[ir.Value]) -> str:
    """Why the value is needed at padding, too; empty if it is not."""
    if value.is_graph_output():
        return f"the output '{value.name}' has a result for every token"
    for use in value.uses():
        if use.node in packed or _reads_tokens_only(use.node, use.idx, made):
            continue
        return f"{use.node.op_type} '{use.node.name}' may read '{value.name}' at padding"
    return ""


def _reads_tokens_only(reader: ir.Node, index: int, made: set[ir.Value]) -> bool:
    if reader.op_type in ("Mul", "Where", "MatMul"):
        return not made.isdisjoint(reader.inputs)
    if is_op(reader, "Attention"):
        return index < _OPERANDS
    return is_op(reader, "Shape") or (index == 0 and _reads_first_position(reader))


def _reads_first_position(reader: ir.Node) -> bool:
    if is_op(reader, "Gather"):
        return attribute(reader, "axis", 0) == 1 and scalar(reader.inputs[1]) == 0
    bounds = [scalar(value) for value in reader.inputs[1:]]
    return is_op(reader, "Slice") and bounds in ([0, 1, 1], [0, 1, 1, 1])


def _on_tokens(node: ir.Node) -> None:
    """Correct what the node says of its axes."""
    value = node.outputs[0]
    assert value.shape is not None
    assert value.dtype is not None
    set_type(value, value.dtype, ir.Shape(["tokens", value.shape[-1]]))
    if node.op_type in _NORMS:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)


class _Writer:
    """Writes `pack` and `unpack`, each value's once."""

    def __init__(self, model: ir.Model, match: Match) -> None:
        self._model = model
        self._front = match.packed[0]
        self._places, self._token_of = self._write_places(match.mask)
        self._packed: dict[ir.Value, ir.Value] = {}

    def packed(self, value: ir.Value) -> ir.Value:
        """[batch, sequence, n] → [tokens, n]."""
        if value not in self._packed:
            assert value.shape is not None
            size = np.array([-1, value.shape[-1]], np.int64)
            rows = self._op("Reshape", [value, self._ints(f"rows_{size[1]}", size)])
            self._packed[value] = self._op("Gather", [rows, self._places], axis=0)
        return self._packed[value]

    def padded(self, value: ir.Value) -> ir.Value:
        """[tokens, n] → [batch, sequence, n]."""
        return self._op("Gather", [value, self._token_of], axis=0)

    def _write_places(self, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Each token's place in the flat batch [tokens]; each place's token [batch, sequence]."""
        one, flat = self._ints("one", [1]), self._ints("flat", [-1])
        is_token = self._op("Cast", [mask], to=ir.DataType.BOOL)
        counted = self._op("Cast", [is_token], to=ir.DataType.INT64)
        behind = self._op("Slice", [counted, one, self._ints("end", [_END]), one])
        kept = self._op("Pad", [behind, self._ints("first", [0, 1, 0, 0]), self._ints("token", 1)])
        tokens = self._op("Reshape", [kept, flat])
        places = self._op("Reshape", [self._op("NonZero", [tokens]), flat])
        number = self._op("CumSum", [tokens, self._ints("along", 0)])
        token_of = self._op("Sub", [number, one])
        return places, self._op("Reshape", [token_of, self._op("Shape", [mask])])

    def _ints(self, name: str, numbers: object) -> ir.Value:
        return add_constant(self._model, f"packing_{name}", np.array(numbers, np.int64))

    def _op(self, op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        insert_before(self._front, [node])  # the pass sorts the graph
        return node.outputs[0]
