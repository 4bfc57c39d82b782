"""RMSNorm written out → `RMSNormalization` (opset 23).

Before (the scale is optional, operands in either order)::

    n = x * Reciprocal(Sqrt(ReduceMean(x², -1) + epsilon))
    y = n * scale

`x²` is `Pow(x, 2)` or `Mul(x, x)`; the product may be `Div` by the root, or `Mul` by `1 / root`
or `Pow(…, -0.5)`. The scale may stand before the division.

After::

    y = RMSNormalization(x, scale, axis=-1, epsilon)

Fires when:
1. below the root stands the mean of the squares plus a constant, and nothing else. Without an
   addition, epsilon is 0;
2. the mean is over the last axis, and keeps it;
3. the value that is divided is the one that is squared, and no mean was subtracted from it
   (that is a LayerNorm: `tfc.optimizers.raising.layer_norm`);
4. no value in the middle is read elsewhere;
5. the scale is a constant with one number per channel; a scale of ones is written where there is
   none, and then the hidden size must be known. Scales of one normalised value become a norm
   each.

Safe because `RMSNormalization` is defined as exactly these steps; only the order of the fp32 sum
is up to the kernel.
"""

from __future__ import annotations

import onnx_ir as ir

from tfc.optimizers.graph import insert_before, replace_value
from tfc.optimizers.passes import Refusal, refusal
from tfc.optimizers.raising.layer_norm import centring
from tfc.optimizers.raising.normalization import (
    Match,
    normalized,
    over_another_axis,
    scale_of,
    site,
)
from tfc.optimizers.raising.primitives import without_cast

KIND = "rmsnorm"
RMS_NORM_OPSET = 23


class RMSNorm:
    """The fusion; see the module's docstring."""

    name = "raise RMSNorm"
    anchors = ("Div", "Mul")

    def match(self, node: ir.Node) -> Match | Refusal | None:
        """Conditions 1 to 5."""
        found = normalized(node)
        if found is None or centring(found.squared) is not None:
            return None
        x = without_cast(found.squared)
        problem = found.problem or over_another_axis(found.mean)
        if not problem and without_cast(found.value) is not x:
            problem = "the value that is divided is not the one whose squares divide it"
        if problem:
            return refusal(KIND, node, problem)
        return site(KIND, node, x, found, with_bias=False)

    def rewrite(self, model: ir.Model, match: Match) -> None:
        """Put a norm in place of each end."""
        for end in match.ends:
            norm = ir.node(
                "RMSNormalization",
                [match.x, scale_of(model, match.node, end)],
                {"axis": -1, "epsilon": match.epsilon},
                name=f"{end.node.outputs[0].name}_rms_norm",
            )
            insert_before(end.node, [norm], like=match.node)
            replace_value(end.node.outputs[0], norm.outputs[0])
        model.opset_imports[""] = max(model.opset_imports[""], RMS_NORM_OPSET)
