"""`Gemm` on flattened rows → `MatMul` and `Add` on `[batch, sequence, hidden]`.

Before (a linear layer of GPT-2, which transformers computes with `addmm`)::

    y = Reshape(Gemm(Reshape(x, [batch·sequence, hidden]), W, b), [batch, sequence, out])

After::

    y = MatMul(x, W) + b

TensorRT compiles both to the same GEMM; the second form lets the query, key and value that it
gives be seen as heads of one tensor (`tfc.optimizers.lowering.pack_qkv`). Fires when W and b are
constant, the factors are 1, and the reshapes do nothing else. Each row keeps its products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfc.optimizers.graph import (
    add_constant,
    attribute,
    constant,
    insert_before,
    is_op,
    known_shape,
    only_user,
    replace_value,
)
from tfc.optimizers.passes import Refusal, refusal

KIND = "gemm"
_BIAS = 2


@dataclass(frozen=True)
class Match:
    """The product, its input with three axes, and the value with three axes behind it."""

    gemm: ir.Node
    x: ir.Value
    result: ir.Value


class GemmToMatMul:
    """The fusion; see the module's docstring."""

    name = "Gemm to MatMul"
    anchors = ("Gemm",)

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Whether the product stands between the two reshapes."""
        if any(constant(value) is None for value in node.inputs[1:]):
            return refusal(KIND, node, "its weight or bias is not constant")
        factors = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
        if factors != [1.0, 1.0] or attribute(node, "transA", 0):
            return refusal(KIND, node, "it scales or transposes more than the weight")
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        after = only_user(node.outputs[0])
        if not (before is not None and is_op(before, "Reshape") and is_op(after, "Reshape")):
            return refusal(KIND, node, "there are no reshapes around it")
        x, result = before.inputs[0], after.outputs[0] if after is not None else None
        rows, wanted = known_shape(x), known_shape(result)
        if x is None or result is None or rows is None or wanted is None:
            return refusal(KIND, node, "the shapes around it are not known")
        width = (known_shape(node.outputs[0]) or (None,))[-1]
        if len(rows) != len(wanted) or (*rows[:-1], width) != wanted:
            return refusal(KIND, node, "the reshapes do more than merge rows and split them again")
        return Match(node, x, result)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Write the product with all axes of its input."""
        gemm = match.gemm
        weight = gemm.inputs[1]
        assert weight is not None
        if attribute(gemm, "transB", 0):
            array = constant(weight)
            assert array is not None
            weight = add_constant(model, f"{weight.name}.transposed", np.ascontiguousarray(array.T))
        new = [ir.node("MatMul", [match.x, weight], name=gemm.name)]
        if len(gemm.inputs) > _BIAS and gemm.inputs[_BIAS] is not None:
            new.append(ir.node("Add", [new[-1].outputs[0], gemm.inputs[_BIAS]]))
        insert_before(gemm, new)
        replace_value(match.result, new[-1].outputs[0])
