"""What reads the probabilities of attention: the product with the values, and nothing else.

Between the two may stand a `Cast` and the guard `Where(IsNaN(p), 0, p)`. Where more reads the
probabilities, the reason tells what. Most often a module returns its attention weights (torch's
`need_weights=True`, also averaged over the heads) and they are an output of the graph: no fused
kernel has them, so such an attention stays written out.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import is_op, only_user, scalar
from tfc.optimizers.raising.attention_scores import swaps_last_axes

# What may be done to attention weights before they are returned: another layout, a mean.
_RETURNED_THROUGH = frozenset(
    {
        "Cast", "Concat", "Div", "Gather", "Identity", "IsNaN", "ReduceMean",
        "ReduceSum", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"
    }
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """The second product, and whether the probabilities are its second operand, transposed."""

    node: ir.Node
    mirrored: bool = False


def product_after(softmax: ir.Node) -> Product | str:
    """The product of the probabilities and the values, or why it is not all that reads them."""
    probabilities = softmax.outputs[0]
    guard = _nan_guard(probabilities)
    read = guard if guard is not None else probabilities
    user = only_user(read)
    if user is not None and is_op(user, "Cast"):
        read = user.outputs[0]
        user = only_user(read)
    if user is None:
        return _why_read_elsewhere(probabilities)
    if is_op(user, "MatMul") and user.inputs[0] is read:
        return Product(user)
    after = only_user(user.outputs[0]) if swaps_last_axes(user) else None
    if after is not None and is_op(after, "MatMul") and after.inputs[1] is user.outputs[0]:
        return Product(after, mirrored=True)
    return f"the probabilities are read by {user.op_type}, not by the product with the values"


def _nan_guard(probabilities: ir.Value) -> ir.Value | None:
    """The output of `Where(IsNaN(p), 0, p)` if that is all that reads p."""
    users = {use.node for use in probabilities.uses()}
    if len(users) != 2 or probabilities.is_graph_output():
        return None
    where = next((n for n in users if is_op(n, "Where")), None)
    is_nan = next((n for n in users if is_op(n, "IsNaN")), None)
    if where is None or is_nan is None or where.inputs[0] is not is_nan.outputs[0]:
        return None
    guarded = scalar(where.inputs[1]) == 0.0 and where.inputs[2] is probabilities
    return where.outputs[0] if guarded else None


def _why_read_elsewhere(probabilities: ir.Value) -> str:
    """The graph outputs that are attention weights, or the operators that read them."""
    outputs: list[str] = []
    readers: set[str] = set()
    seen, queue = {probabilities}, [probabilities]
    while queue:
        value = queue.pop(0)
        if value.is_graph_output():
            outputs.append(f"'{value.name}'")
        for node in (use.node for use in value.uses()):
            readers.add(node.op_type)
            if node.op_type in _RETURNED_THROUGH:
                queue += [v for v in node.outputs if v not in seen]
                seen.update(node.outputs)
    if outputs:
        return (
            f"its attention weights are the output {' and '.join(outputs)} of the graph, and a "
            "fused attention does not give them; to fuse it, export a module that does not "
            "return them (need_weights=False, output_attentions=False)"
        )
    return f"the probabilities have more than one reader: {', '.join(sorted(readers))}"
