"""int8 for ONNX Runtime's CPU provider, with activations scaled anew in every run.

`DynamicQuantizeLinear` takes the smallest and largest number of an activation, of all texts of the
batch together, and quantises to uint8 between them. No calibration is needed and nothing is ever
clipped; one outlier coarsens the whole batch, and a text's result depends on what it is batched
with. The products are those of `tfc.optimizers.precision.int8.cpu_products`.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from tfc.optimizers.graph import insert_before, set_type
from tfc.optimizers.precision.int8.cpu_products import Quantized, to_integer_products


def cpu_dynamic(model: ir.Model, sites: Collection[str]) -> None:
    """Compute these sites in int8, with ranges taken from each batch. In place.

    Args:
        model: an fp32 graph lowered for `onnxruntime`.
        sites: the names of their nodes (`tfc.optimizers.precision.int8.sites`).

    Raises:
        UsageError: a name is not that of a site, or a Gemm adds what is not a constant vector.
        BadInput: a weight is not finite.
    """
    to_integer_products(model, sites, _quantize)


def _quantize(before: ir.Node, x: ir.Value) -> Quantized:
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{x.name}_quantize")
    insert_before(before, [node])
    values, scale, zero = node.outputs
    set_type(values, ir.DataType.UINT8, x.shape)
    set_type(scale, ir.DataType.FLOAT, ir.Shape([]))
    set_type(zero, ir.DataType.UINT8, ir.Shape([]))
    return Quantized(values, scale, zero)
