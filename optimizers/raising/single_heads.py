"""Attentions of one head each, joined end to end → one attention of all heads.

Tutorials write a module for one head, with its own linear layers, and concatenate what the heads
give.

Before, for each of N heads::

    y_i = <attention>(x·Wq_i + bq_i, m·Wk_i + bk_i, m·Wv_i + bv_i)    # [batch, sequence, head_dim]
    y = Concat(y_1, …, y_N, axis=-1)

After::

    q = Transpose(Reshape(x·[Wq_1 | … | Wq_N] + bq, [batch, sequence, N, head_dim]))
    y = Reshape(Transpose(Attention(q, k, v, mask, scale)))           # k and v are made like q

`m` is x in self-attention. This runs before the contract counts: what was joined is one block, and
N heads that were not joined are N blocks.

Fires when every part of the concatenation is an attention with three axes that is fused
(`tfc.optimizers.raising.attention`), and
1. nothing else reads what a head gives;
2. the scale, the mask and the precision of the softmax are the same in all heads. Masks that are
   computed alike from equal constants are the same: each head may have a buffer of its own;
3. the queries of all heads are linear layers of one tensor and one width; likewise keys and values;
4. queries and keys have the same batch.

Safe because a column of a product depends on that column of the weight alone, and heads do not
see each other; a bias that some heads lack is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.computed import Deferred, computed
from tfc.optimizers.graph import (
    add_constant,
    add_weight,
    attribute,
    constant,
    insert_before,
    is_op,
    known_shape,
    only_user,
    replace_value,
)
from tfc.optimizers.lowering.heads import TO_HEADS, Projection, projection_of
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising import attention
from tfc.optimizers.raising.attention import ATTENTION_OPSET, Attention, attention_of
from tfc.optimizers.raising.attention_scores import Added, Masked

KIND = "single_heads"
_SINGLE_HEAD_RANK = 3
# Masks are made of tens of nodes; what takes more to compare is taken for different.
_MAX_COMPARED = 200
_RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike")


@dataclass(frozen=True)
class Match:
    """The concatenation, its heads in order, and the linear layers of q, k and v of each."""

    concat: ir.Node
    heads: tuple[attention.Match, ...]
    q: tuple[Projection, ...]
    k: tuple[Projection, ...]
    v: tuple[Projection, ...]


class SingleHeads:
    """The fusion; see the module's docstring."""

    name = "join single heads"
    anchors = ("Concat",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 4."""
        shape = known_shape(node.outputs[0])
        if shape is None or len(shape) != _SINGLE_HEAD_RANK or len(node.inputs) < 2:
            return None
        softmaxes = [_softmax_before(value) for value in node.inputs]
        if attribute(node, "axis", 0) not in (-1, len(shape) - 1) or not any(softmaxes):
            return None
        heads = []
        for number, softmax in enumerate(softmaxes):
            found = Attention().match(softmax) if softmax is not None else None
            if not isinstance(found, attention.Match):
                reason = found.reason if found is not None else "it is not an attention"
                return refusal(KIND, node, f"part {number}: {reason}")
            heads.append(found)
        problem = _difference(heads)
        layers = {role: _projections(heads, role) for role in "qkv"}
        problems = [problem, *(found for found in layers.values() if isinstance(found, str))]
        if any(problems):
            return refusal(KIND, node, next(filter(None, problems)))
        q, k, v = (found for found in layers.values() if not isinstance(found, str))
        batches = [known_shape(role[0].x) for role in (q, k, v)]
        if len({shape[:1] for shape in batches if shape is not None}) > 1:
            return refusal(KIND, node, "queries and keys have different batches")
        return Match(node, tuple(heads), q, k, v)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put one `Attention` in place of the concatenation."""
        new: list[ir.Node] = []
        operands = [
            _packed(model, layers, f"{match.concat.name}.{role}", new)
            for role, layers in zip("qkv", (match.q, match.k, match.v), strict=True)
        ]
        y = attention_of(model, match.heads[0], operands, new)
        new.append(ir.node("Transpose", [y], {"perm": TO_HEADS}))
        width = sum(_width(layer) for layer in match.v)
        target = add_constant(model, f"joined_{width}", np.array([0, 0, width], np.int64))
        new.append(ir.node("Reshape", [new[-1].outputs[0], target]))
        insert_before(match.concat, new)
        replace_value(match.concat.outputs[0], new[-1].outputs[0])
        model.opset_imports[""] = max(model.opset_imports[""], ATTENTION_OPSET)


def _softmax_before(value: ir.Value | None) -> ir.Node | None:
    """The softmax whose product with the values this is, casts and a guard in between."""
    product = value.producer() if value is not None else None
    if product is None or not is_op(product, "MatMul") or product.inputs[0] is None:
        return None
    node = product.inputs[0].producer()
    while node is not None and node.op_type in ("Cast", "Where"):
        below = node.inputs[-1]
        node = below.producer() if below is not None else None
    return node if is_op(node, "Softmax") else None


def _difference(heads: list[attention.Match]) -> str:
    """Conditions 1 and 2: why the heads are not one attention; empty if they are."""
    first = heads[0].scores
    for number, head in enumerate(heads):
        if head.rank != _SINGLE_HEAD_RANK:
            return f"part {number} has heads of its own"
        if only_user(head.output.outputs[0]) is None:
            return f"part {number} is read elsewhere"
        if head.scale != heads[0].scale:
            return f"part {number} has scale {head.scale:g}, part 0 {heads[0].scale:g}"
        if head.scores.cast != first.cast:
            return f"part {number} has a softmax of another precision than part 0"
        if head.scores.temperatures:
            return f"part {number} scales its scores by a tensor"
        terms = (head.scores.terms, first.terms)
        if len(terms[0]) != len(terms[1]) or not all(map(_same_term, *terms)):
            return f"part {number} has another mask than part 0"
    return ""


def _same_term(one: Added | Masked, other: Added | Masked) -> bool:
    if isinstance(one, Added) and isinstance(other, Added):
        return one.factor == other.factor and _same(one.value, other.value)
    if isinstance(one, Masked) and isinstance(other, Masked):
        alike = (one.inverted, one.fill) == (other.inverted, other.fill)
        return alike and _same(one.condition, other.condition)
    return False


def _same(first: ir.Value, second: ir.Value) -> bool:
    """Whether both are computed alike, from the same values and equal constants."""
    compared: set[tuple[ir.Value, ir.Value]] = set()
    pairs: list[tuple[ir.Value | None, ir.Value | None]] = [(first, second)]
    while pairs:
        one, other = pairs.pop()
        if one is other or (one is not None and other is not None and (one, other) in compared):
            continue
        if one is None or other is None or len(compared) == _MAX_COMPARED:
            return False
        compared.add((one, other))
        if one.const_value is not None or other.const_value is not None:
            if not _equal_constants(one, other):
                return False
            continue
        a, b = one.producer(), other.producer()
        if a is None or b is None or not _same_operator(a, b) or one.index() != other.index():
            return False
        pairs += zip(a.inputs, b.inputs, strict=True)
    return True


def _equal_constants(one: ir.Value, other: ir.Value) -> bool:
    """Whether the arrays are equal; of weights that are not read, whether they are one."""
    if one.const_value is other.const_value:
        return True
    if isinstance(one.const_value, Deferred) or isinstance(other.const_value, Deferred):
        return False
    a, b = constant(one), constant(other)
    if a is None or b is None or a.dtype != b.dtype:
        return False
    return np.array_equal(a, b)


def _same_operator(a: ir.Node, b: ir.Node) -> bool:
    return (
        a.op_type not in _RANDOM
        and is_op(a, b.op_type, b.domain)
        and len(a.inputs) == len(b.inputs)
        and a.attributes == b.attributes
    )


def _projections(heads: list[attention.Match], role: str) -> tuple[Projection, ...] | str:
    """Condition 3: the linear layers of all heads' q, k or v, or why they are not alike."""
    layers: list[Projection] = []
    for number, head in enumerate(heads):
        operand = getattr(head, role)
        layer = projection_of(operand.value)
        if isinstance(layer, str) or operand.perm is not None:
            why = layer if isinstance(layer, str) else "it is transposed"
            return f"{role} of part {number}: {why}"
        layers.append(layer)
        if not _same(layer.x, layers[0].x):
            return f"{role} of part {number} is projected from another tensor than part 0's"
        if _width(layer) != _width(layers[0]):
            return f"{role} of part {number} is {_width(layer)} wide, part 0's {_width(layers[0])}"
    return tuple(layers)


def _packed(
    model: ir.Model, layers: tuple[Projection, ...], name: str, new: list[ir.Node]
) -> ir.Value:
    """The heads `[batch, heads, sequence, head_dim]` of the layers side by side."""
    weight = computed("Concat", [_tensor(layer.weight) for layer in layers], axis=-1)
    new.append(ir.node("MatMul", [layers[0].x, add_weight(model, f"{name}.weight", weight)]))
    if any(layer.bias is not None for layer in layers):
        bias = computed("Concat", [_bias(layer) for layer in layers], axis=-1)
        product = new[-1].outputs[0]
        new.append(ir.node("Add", [product, add_weight(model, f"{name}.bias", bias)]))
    heads, width = len(layers), _width(layers[0])
    shape = np.array([0, 0, heads, width], np.int64)
    target = add_constant(model, f"joined_heads_{heads}_{width}", shape)
    new.append(ir.node("Reshape", [new[-1].outputs[0], target]))
    new.append(ir.node("Transpose", [new[-1].outputs[0]], {"perm": TO_HEADS}))
    return new[-1].outputs[0]


def _bias(layer: Projection) -> ir.TensorProtocol:
    if layer.bias is not None:
        return _tensor(layer.bias)
    return ir.tensor(np.zeros(_width(layer), _tensor(layer.weight).dtype.numpy()))


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _width(layer: Projection) -> int:
    return int(_tensor(layer.weight).shape.numpy()[-1])
