"""An attention written as its products: which nodes it is made of.

    scores = MatMul(q, kᵀ)
    masked = Where(keep, scores, low)   or Add(scores, mask)   or the scores themselves
    p = Softmax(masked, axis=-1)
    p = Where(IsNaN(p), 0, p)           where a row may have no key to see
    y = MatMul(p, v)

That is what `tfc.optimizers.lowering.explicit_attention` writes. A half-precision graph has casts
between the nodes. Who sets types, counts arithmetic or names kernels treats them as one attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import constant, is_op, only_user

_HEADS_RANK = 4  # [batch, heads, sequence, head_dim]


@dataclass(frozen=True)
class AttentionProducts:
    """The nodes of one attention.

    Attributes:
        scores: the product of queries and transposed keys.
        masking: the `Where` or `Add` on the scores; None if there is none.
        softmax: over the keys.
        guard: the `IsNaN` and the `Where` that make 0 of a row without a key; empty without one.
        output: the product of probabilities and values.
    """

    scores: ir.Node
    masking: ir.Node | None
    softmax: ir.Node
    guard: tuple[ir.Node, ...]
    output: ir.Node

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All of them, in order; casts between them are not among them."""
        masking = () if self.masking is None else (self.masking,)
        return (self.scores, *masking, self.softmax, *self.guard, self.output)

    @property
    def operands(self) -> tuple[ir.Value | None, ...]:
        """Queries, transposed keys, and values."""
        return (*self.scores.inputs, self.output.inputs[1])

    @property
    def inside(self) -> frozenset[str]:
        """The names of the values between its nodes."""
        return frozenset(str(v.name) for node in self.nodes[:-1] for v in node.outputs)

    @property
    def mask(self) -> ir.Value | None:
        """What is added to the scores, or tells where they are kept."""
        if self.masking is None:
            return None
        return self.masking.inputs[0 if self.masking.op_type == "Where" else 1]


def all_attention_products(model: ir.Model) -> list[AttentionProducts]:
    """Every attention of the graph that is written as its products, in order."""
    found = (attention_products(node) for node in model.graph if node.op_type == "Softmax")
    return [each for each in found if each is not None]


def attention_products(softmax: ir.Node) -> AttentionProducts | None:
    """The attention around this softmax; None if it is another kind of softmax."""
    above = _through_cast(softmax.inputs[0])
    masking = None
    if above is not None and above.op_type in ("Where", "Add"):
        masking = above
        above = _through_cast(masking.inputs[1 if masking.op_type == "Where" else 0])
    if above is None or not _is_product_of_heads(above):
        return None
    guard, below = _guard_after(softmax.outputs[0])
    output = _reader(below)
    if output is None or not _is_product_of_heads(output):
        return None
    probabilities = _through_cast(output.inputs[0])
    if probabilities is not (guard[-1] if guard else softmax):
        return None
    return AttentionProducts(above, masking, softmax, guard, output)


def _is_product_of_heads(node: ir.Node) -> bool:
    """A product of two activations with four axes."""
    shape = node.outputs[0].shape
    return (
        is_op(node, "MatMul")
        and (shape is None or len(shape) == _HEADS_RANK)
        and all(value is not None and constant(value) is None for value in node.inputs)
    )


def _guard_after(probabilities: ir.Value) -> tuple[tuple[ir.Node, ...], ir.Value]:
    """The nodes of `Where(IsNaN(p), 0, p)` and its result; none, and p itself, without it."""
    readers = [use.node for use in probabilities.uses()]
    check = next((node for node in readers if is_op(node, "IsNaN")), None)
    choice = only_user(check.outputs[0]) if check is not None else None
    if check is None or choice is None or choice not in readers or not is_op(choice, "Where"):
        return (), probabilities
    return (check, choice), choice.outputs[0]


def _reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, or its cast."""
    user = only_user(value)
    return only_user(user.outputs[0]) if user is not None and is_op(user, "Cast") else user


def _through_cast(value: ir.Value | None) -> ir.Node | None:
    """The node that computes the value, casts left out."""
    node = value.producer() if value is not None else None
    while node is not None and is_op(node, "Cast"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node
