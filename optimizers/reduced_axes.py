"""A mean that drops its axis and gets it back → a mean that keeps it.

    Reshape(ReduceMean<-1, keepdims=0>(x), [*shape, 1])   →   ReduceMean<-1, keepdims=1>(x)

torch's exporter writes `x.var(-1, keepdim=True)` so, of which people make norms of their own.

Fires where the shapes are known: the `Reshape` does nothing but add an axis of size 1 at the end,
and the mean is over the last axis. The numbers do not change.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tfc.optimizers.graph import attribute, constant, insert_before, known_shape, replace_value
from tfc.optimizers.passes import PassResult


class KeepReducedAxes:
    """The pass; see the module's docstring."""

    name = "keep reduced axes"

    def apply(self, model: ir.Model) -> PassResult:
        """Every such `Reshape`."""
        changed = 0
        for node in list(model.graph):
            mean = _restored(node) if node.op_type == "Reshape" else None
            if mean is None:
                continue
            kept = ir.node("ReduceMean", list(mean.inputs), {"keepdims": 1})
            kept.outputs[0].type, kept.outputs[0].shape = (
                node.outputs[0].type,
                node.outputs[0].shape,
            )
            insert_before(node, [kept], like=mean)
            replace_value(node.outputs[0], kept.outputs[0])
            changed += 1
        if changed:
            RemoveUnusedNodesPass()(model)
        return PassResult(changed)


def _restored(reshape: ir.Node) -> ir.Node | None:
    """The mean whose last axis a `Reshape` puts back."""
    dropped, result = reshape.inputs[0], known_shape(reshape.outputs[0])
    mean = dropped.producer() if dropped is not None else None
    if mean is None or mean.op_type != "ReduceMean" or attribute(mean, "keepdims", 1) != 0:
        return None
    given, reduced = known_shape(mean.inputs[0]), known_shape(dropped)
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if given is None or reduced is None or axes is None:
        return None
    last = axes.reshape(-1).tolist() in ([-1], [len(given) - 1])
    return mean if last and reduced == given[:-1] and result == (*reduced, 1) else None
