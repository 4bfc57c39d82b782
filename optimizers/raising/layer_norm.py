"""LayerNorm written out → `LayerNormalization` (opset 17).

Before (the scale and the bias are optional, operands in either order)::

    d = x - ReduceMean(x, -1)
    n = d / Sqrt(ReduceMean(d², -1) + epsilon)
    y = n * scale + bias

`d²` is `Pow(d, 2)` or `Mul(d, d)`; the division is `Div`, or `Mul` by `Reciprocal(root)`,
`1 / root` or `Pow(…, -0.5)`. The scale may stand before the division: `scale * d / root`.

After::

    y = LayerNormalization(x, scale, bias, axis=-1, epsilon)

Fires when:
1. below the root stands the mean of the squares plus a constant, and nothing else: an unbiased
   variance, or an epsilon outside the root (`torch.std`), is another function. Without an
   addition, epsilon is 0;
2. both means are over the last axis, and keep it;
3. the squares, the mean and the division are of the same x (equal computations that are written
   twice count as one);
4. no value in the middle is read elsewhere;
5. scale and bias are constants with one number per channel; a scale of ones is written where
   there is none, and then the hidden size must be known. Scales of one normalised value
   (parallel branches) become a norm each.

Safe because `LayerNormalization` is defined as exactly these steps; only the order of the fp32
sums is up to the kernel. A constant row gives 0 / sqrt(epsilon) before and after.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tfc.optimizers.graph import insert_before, is_op, replace_value
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.normalization import (
    DROPPED_AXIS,
    Match,
    Normalized,
    flat,
    normalized,
    over_another_axis,
    scale_of,
    site,
)
from tfc.optimizers.raising.primitives import producer, same, without_cast

KIND = "layernorm"


class LayerNorm:
    """The fusion; see the module's docstring."""

    name = "raise LayerNorm"
    anchors = ("Div", "Mul")

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 5."""
        found = normalized(node)
        if found is None:
            return None
        centred = centring(found.squared)
        if centred is None:
            return None
        x = without_cast(centred.value)
        problem = _problem(found, centred)
        if problem:
            return refusal(KIND, node, problem)
        return site(KIND, node, x, found, with_bias=True)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put a norm in place of each end."""
        for end in match.ends:
            scale = scale_of(model, match.node, end)
            bias = [flat(model, end.bias)] if end.bias is not None else []
            norm = ir.node(
                "LayerNormalization",
                [match.x, scale, *bias],
                {"axis": -1, "epsilon": match.epsilon},
                name=f"{end.node.outputs[0].name}_layer_norm",
            )
            insert_before(end.node, [norm], like=match.node)
            replace_value(end.node.outputs[0], norm.outputs[0])


@dataclass(frozen=True)
class Centring:
    """`value - mean`, where the mean comes from a `ReduceMean`."""

    value: ir.Value
    subtracted: ir.Value
    mean: ir.Node


def centring(value: ir.Value) -> Centring | None:
    """What a value is after a mean was subtracted, or None if none was."""
    node = producer(value)
    if node is None or not is_op(node, "Sub"):
        return None
    first, second = node.inputs
    mean = producer(second)
    if mean is not None and is_op(mean, "Unsqueeze"):
        mean = producer(mean.inputs[0])
    if first is None or second is None or mean is None or not is_op(mean, "ReduceMean"):
        return None
    return Centring(first, without_cast(second), mean)


def _problem(found: Normalized, centred: Centring) -> str:
    """The first of the conditions 1 to 3 that is not met; empty if all are."""
    if found.problem:
        return found.problem
    for mean in (found.mean, centred.mean):
        if problem := over_another_axis(mean):
            return problem
    if centred.subtracted is not centred.mean.outputs[0]:
        return DROPPED_AXIS
    if not same(centred.value, centred.mean.inputs[0]):
        return "the mean is of another value than that from which it is subtracted"
    if not same(found.value, found.squared):
        return "the value that is divided is not the one whose variance divides it"
    return ""
