"""The forms of int8 that perf/int8_forms.py compares, as functions that rewrite an fp32 graph.

The first two are the package's; the others are what else ONNX Runtime has a CPU kernel for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization import QuantType, quantize_dynamic

from tfc.optimizers.graph import add_constant, constant, insert_before, nodes_of, replace_value
from tfc.optimizers.precision.int8.cpu_dynamic import cpu_dynamic
from tfc.optimizers.precision.int8.cpu_static import cpu_static, uint8_scale
from tfc.optimizers.precision.int8.exact_products import use_exact_products
from tfc.optimizers.precision.int8.ranges import Ranges
from tfc.optimizers.precision.int8.weights import quantized_weight

OURS, RAW = "fp32", "quantize_dynamic of the raw export"
Rewrite = Callable[[ir.Model, Sequence[str], Ranges], None]
_BLOCK = 128  # weights that share a scale in MatMulNBits
_DOMAIN = "com.microsoft"


def raw_dynamic(source: Path, target: Path) -> None:
    """ONNX Runtime's own tool on the raw export, products only: it breaks `Attention`."""
    quantize_dynamic(
        onnx.load(source),
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def dynamic(model: ir.Model, sites: Sequence[str], ranges: Ranges) -> None:
    """Ranges from each batch."""
    cpu_dynamic(model, sites)


def uint8_weights(model: ir.Model, sites: Sequence[str], ranges: Ranges) -> None:
    """What a CPU without VNNI has to run."""
    cpu_static(model, sites, ranges)
    use_exact_products(model)


def packed_qkv(model: ir.Model, sites: Sequence[str], ranges: Ranges) -> None:
    """One product for query, key and value, and a Split."""
    cpu_static(model, sites, ranges)
    for node in nodes_of(model, "Attention"):
        parts = [v.producer() for v in node.inputs[:3] if v is not None]
        first = parts[0]
        assert first is not None
        inputs = list(first.inputs)
        for place in (1, 3, 6):
            arrays = [constant(part.inputs[place]) for part in parts if part is not None]
            joined = np.concatenate([array for array in arrays if array is not None], axis=-1)
            inputs[place] = add_constant(model, f"{first.name}.packed{place}", joined)
        product = ir.node("MatMulIntegerToFloat", inputs, domain=_DOMAIN)
        axis = {"axis": -1, "num_outputs": 3}
        split = ir.node("Split", [product.outputs[0]], axis, num_outputs=3)
        insert_before(first, [product, split])
        for part, out in zip(parts, split.outputs, strict=True):
            assert part is not None
            replace_value(part.outputs[0], out)
    RemoveUnusedNodesPass()(model)


def standard(model: ir.Model, sites: Sequence[str], ranges: Ranges) -> None:
    """QuantizeLinear and DequantizeLinear around each product, which ONNX Runtime fuses itself."""
    for node in [n for n in model.graph if n.name in sites]:
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        matrix = constant(weight)
        assert matrix is not None
        made = quantized_weight(matrix, axis=1)
        scale, zero = (
            add_constant(model, f"{x.name}.{kind}", array)
            for kind, array in zip(("s", "z"), uint8_scale(ranges[str(x.name)]), strict=True)
        )
        quantize = ir.node("QuantizeLinear", [x, scale, zero])
        back = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        values = add_constant(model, f"{weight.name}.q", made.values)
        scales = add_constant(model, f"{weight.name}.s", made.scales)
        wide = ir.node("DequantizeLinear", [values, scales], {"axis": 1})
        insert_before(node, [quantize, back, wide])
        node.replace_input_with(0, back.outputs[0])
        node.replace_input_with(1, wide.outputs[0])


def blocks(model: ir.Model, sites: Sequence[str], ranges: Ranges) -> None:
    """`MatMulNBits`, 8 bits: a scale for each block of weights and of each row's activation."""
    for node in [n for n in model.graph if n.name in sites]:
        weight = constant(node.inputs[1])
        assert weight is not None
        inner, width = weight.shape
        blocked = weight.reshape(inner // _BLOCK, _BLOCK, width)
        scales = np.abs(blocked).max(axis=1) / np.float32(127)
        values = np.rint(blocked / scales[:, None]).astype(np.int16) + 128
        stored = np.ascontiguousarray(values.astype(np.uint8).transpose(2, 0, 1))
        name = str(node.name)
        inputs = [
            node.inputs[0],
            add_constant(model, f"{name}.b", stored),
            add_constant(model, f"{name}.s", np.ascontiguousarray(scales.T).reshape(-1)),
        ]
        kind = {"K": inner, "N": width, "bits": 8, "block_size": _BLOCK, "accuracy_level": 4}
        product = ir.node("MatMulNBits", inputs, kind, domain=_DOMAIN)
        insert_before(node, [product])
        replace_value(node.outputs[0], product.outputs[0])
    RemoveUnusedNodesPass()(model)
    model.opset_imports[_DOMAIN] = 1


FORMS: dict[str, Rewrite] = {
    "dynamic": dynamic,
    "static": cpu_static,
    "static, uint8 weights": uint8_weights,
    "static, packed QKV": packed_qkv,
    "static, Q/DQ": standard,
    "MatMulNBits, 8 bits": blocks,
}
