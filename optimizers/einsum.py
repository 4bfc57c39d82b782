"""`Einsum` of two tensors → transposes and one `MatMul`.

Before::

    y = Einsum<"bqnd,bknd->bnqk">(q, k)

After::

    y = MatMul(Transpose(q), Transpose(k))           # [b, n, q, d] · [b, n, d, k]

Fires when every letter is one of: in both operands and the result (batch), in both operands only
(summed over), in one operand and the result (its rows or columns); with exactly one letter summed
over, one of rows and one of columns. Anything else (a diagonal, a sum over one operand alone, an
outer product) is left alone. A result in another order is transposed once more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import attribute, insert_before, replace_value

_TWO_OPERANDS = re.compile(r"^([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)$")


@dataclass(frozen=True)
class Match:
    """The node, and the axes of each transpose."""

    node: ir.Node
    first: tuple[int, ...]
    second: tuple[int, ...]
    result: tuple[int, ...]


class EinsumToMatMul:
    """The fusion; see the module's docstring."""

    name = "einsum to matmul"
    anchors = ("Einsum",)

    def match(self, node: ir.Node) -> Match | None:
        """Whether the equation is a batched matrix product."""
        equation = str(attribute(node, "equation", "")).replace(" ", "")
        parsed = _TWO_OPERANDS.match(equation)
        if parsed is None or len(node.inputs) != 2:
            return None
        a, b, y = parsed.groups()
        if any(len(set(letters)) != len(letters) for letters in (a, b, y)):
            return None
        batch = [c for c in y if c in a and c in b]
        summed = [c for c in a if c in b and c not in y]
        rows = [c for c in a if c in y and c not in b]
        columns = [c for c in b if c in y and c not in a]
        if (len(summed), len(rows), len(columns)) != (1, 1, 1):
            return None
        if len(a) != len(batch) + 2 or len(b) != len(batch) + 2:
            return None
        product = [*batch, *rows, *columns]
        return Match(
            node,
            tuple(a.index(c) for c in [*batch, *rows, *summed]),
            tuple(b.index(c) for c in [*batch, *summed, *columns]),
            tuple(product.index(c) for c in y),
        )

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Write the product out."""
        new: list[ir.Node] = []
        operands = [
            _transposed(value, perm, new)
            for value, perm in zip(match.node.inputs, (match.first, match.second), strict=True)
            if value is not None
        ]
        new.append(ir.node("MatMul", operands))
        result = _transposed(new[-1].outputs[0], match.result, new)
        insert_before(match.node, new)
        replace_value(match.node.outputs[0], result)


def _transposed(value: ir.Value, perm: tuple[int, ...], new: list[ir.Node]) -> ir.Value:
    if perm == tuple(range(len(perm))):
        return value
    new.append(ir.node("Transpose", [value], {"perm": list(perm)}))
    return new[-1].outputs[0]
